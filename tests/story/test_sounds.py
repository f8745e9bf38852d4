"""What a story says of its sound, and the lengths of scenes that follow from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyreel.errors import ScriptError
from storyreel.story.plan import Plan
from storyreel.story.planning import make_plan
from storyreel.story.schema import Music, Say, SceneSound, Story, VoiceSettings, load_story, parse_story
from storyreel.story.sounds import Heard, Kind, Sound, Soundtrack
from tests.conftest import ROOT

SCENE = "scene: a park, action: a fox sits"


def story(*scenes: str, head: str = "") -> Story:
    lines = [*head.splitlines(), "scenes:", *(f"  - {{{SCENE}, {scene}}}" for scene in scenes)]
    return parse_story("story.yaml", "\n".join(lines).encode())


def faults(text: str) -> list[str]:
    with pytest.raises(ScriptError) as caught:
        parse_story("story.yaml", text.encode())
    return shown(caught.value)


def shown(error: ScriptError) -> list[str]:
    """What is at the place of each fault, and its message."""
    return [f"{fault.source[fault.column - 1 :]} | {fault.message}" for fault in error.faults]


def test_the_short_forms_are_the_long_ones() -> None:
    parsed = story("audio: rain.wav", head="audio: music.mp3\nvoice: {speed: 1.2}")
    assert parsed.audio == Music(file="music.mp3")
    assert parsed.voice == VoiceSettings(speaker="heart", speed=1.2)
    assert parsed.scenes[0].audio == SceneSound(file="rain.wav")
    levels = "volume: -6, start: 1, skip: 2.5, fade: 3"
    assert story("audio: {file: a.flac, " + levels + "}").scenes[0].audio == SceneSound(
        file="a.flac", volume=-6, start=1, skip=2.5, fade=3
    )


@pytest.mark.parametrize(
    ("written", "text", "file"),
    [
        ('"Good morning."', "Good morning.", None),
        ("It is called song.mp3 by all.", "It is called song.mp3 by all.", None),
        ("one.wav", None, "one.wav"),
        ('"my voice/Take 2.FLAC"', None, "my voice/Take 2.FLAC"),
        ("{text: play song.mp3}", "play song.mp3", None),
        ("{file: one.raw.wav, text: Hello}", "Hello", "one.raw.wav"),
    ],
)
def test_words_are_told_from_files(written: str, text: str | None, file: str | None) -> None:
    assert story(f"say: {written}").scenes[0].say == Say(text=text, file=file)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (
            "audio: {file: a.wav, fil: a}",
            "fil: a}} | unknown key 'fil'; allowed: file, volume, start, skip, fade",
        ),
        ("audio: {file: a.wav, loop: true}", "loop: true}} | unknown key 'loop'"),
        ("audio: 5", "5} | a sound is the name of a file, or has the key file"),
        ("audio: {file: a.wav, volume: 40}", "40}} | input should be less than or equal to 20"),
        ("say: {start: 1}", "{start: 1}} | something is said: give it a text, or a file"),
        (
            "say: [a, b]",
            "[a, b]} | what is said is a text, the name of a recording, or has the key text or file",
        ),
        (
            "say: 'Hello {someone}'",
            "'Hello {someone}'} | unknown placeholder {someone}; known: none: the story has no cast",
        ),
        ("say: {text: 'Hello {someone}'}", "'Hello {someone}'}} | unknown placeholder {someone}"),
        ("seconds: soon", "soon} | expected a number or auto, not 'soon'"),
        ("seconds: 0", "0} | input should be greater than 0"),
    ],
)
def test_every_fault_has_its_place(line: str, fault: str) -> None:
    found = faults(f"title: a\nscenes:\n  - {{{SCENE}, {line}}}\n")
    assert [words[: len(fault)] for words in found] == [fault]


def test_faults_of_the_films_own_sound_have_their_place() -> None:
    scenes = "scenes:\n  - [a park, a fox sits]\n"
    assert faults(f"audio: {{file: a.wav, lop: true}}\n{scenes}") == [
        "lop: true} | unknown key 'lop'; allowed: file, volume, start, skip, fade, loop"
    ]
    assert faults(f"voice: {{speed: 9}}\n{scenes}") == ["9} | input should be less than or equal to 2"]
    assert faults(f"audio: take #2.wav\n{scenes}")[0].startswith("#2.wav | quote it: a number sign")


def test_a_story_without_sound_says_nothing_of_it() -> None:
    """Its hash, which is in its film, is that of before there was sound."""
    for path in (ROOT / "stories").glob("*.yaml"):
        written = load_story(path).model_dump(mode="json")
        assert written.keys() == {"title", "cast", "scenes", "render"}
        assert {key for scene in written["scenes"] for key in scene} == {
            "scene",
            "action",
            "seconds",
            "transition",
        }
    written = story("say: Hello", head="audio: a.wav").model_dump(mode="json")
    assert written.keys() == {"title", "cast", "scenes", "render", "audio"}
    assert written["scenes"][0]["say"] == {"text": "Hello", "file": None, "volume": 0.0, "start": 0.0}


def plan(*scenes: str, sounds: dict[tuple[Kind, int | None], tuple[float, float]], head: str = "") -> Plan:
    """Plan scenes of mini, whose latent frames are a quarter of a second, the longest scene 3 seconds."""
    heard = [
        Sound(kind, scene, "a.wav", "0", seconds, -20, -3, start=start)
        for (kind, scene), (seconds, start) in sounds.items()
    ]
    return make_plan(story(*scenes, head=head), "a", heard=Heard(Soundtrack(tuple(heard))))


@pytest.mark.parametrize(
    ("takes", "start", "seconds"),
    [(0.01, 0, 0.25), (1.0, 0, 1.0), (1.0000001, 0, 1.0), (1.01, 0, 1.25), (1.0, 0.3, 1.5), (3.0, 0, 3.0)],
)
def test_a_scene_may_be_as_long_as_its_sound(takes: float, start: float, seconds: float) -> None:
    made = plan("say: Hello, seconds: auto, audio: a.wav", sounds={("speech", 0): (takes, start)})
    assert made.segments[0].frames == round(seconds * made.spec.fps)
    made = plan("audio: a.wav, seconds: auto", sounds={("scene", 0): (takes, start)})
    assert made.segments[0].frames == round(seconds * made.spec.fps)


def test_only_the_speech_decides_where_there_is_some() -> None:
    sounds: dict[tuple[Kind, int | None], tuple[float, float]] = {
        ("scene", 0): (60, 0),
        ("speech", 0): (1, 0),
    }
    assert plan("say: Hello, audio: a.wav, seconds: auto", sounds=sounds).seconds == 1


@pytest.mark.parametrize(
    ("scene", "sounds", "fault"),
    [
        ("seconds: auto", {}, "auto} | the scene has no sound to take its length from"),
        (
            "say: Hello, seconds: auto",
            {("speech", 0): (3.2, 0)},
            "auto} | the scene's speech takes 3.20 seconds, and the longest scene of model mini is 3; say it",
        ),
        (
            "audio: a.wav, seconds: auto",
            {("scene", 0): (9, 0)},
            "auto} | the scene's audio takes 9.00 seconds, and the longest scene of model mini is 3; write",
        ),
        (
            "say: Hello, seconds: 1",
            {("speech", 0): (1.2, 0)},
            "Hello, seconds: 1} | it takes 1.20 seconds to say this, and the",
        ),
        (
            "say: {text: Hi, start: 5}",
            {("speech", 0): (1, 5)},
            "5}} | it would begin 5 seconds after the scene's",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    scene: str, sounds: dict[tuple[Kind, int | None], tuple[float, float]], fault: str
) -> None:
    with pytest.raises(ScriptError) as caught:
        plan(scene, sounds=sounds)
    assert [words[: len(fault)] for words in shown(caught.value)] == [fault]


def test_music_after_the_films_end_is_refused() -> None:
    with pytest.raises(ScriptError) as caught:
        plan("seconds: 1", sounds={("music", None): (5, 2)}, head="audio: {file: a.wav, start: 2}")
    words = "2} | it would begin 2 seconds after the film's beginning, and the film is 1 seconds long"
    assert shown(caught.value) == [words]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-99, 99)
    | st.floats(-99, 99)
    | st.sampled_from(["a.wav", "Hi", ""]),
    lambda inner: (
        st.dictionaries(
            st.sampled_from(["file", "text", "volume", "start", "skip", "fade", "loop", "speed", "speaker"]),
            inner,
        )
        | st.lists(inner, max_size=2)
    ),
    max_leaves=6,
)


@given(VALUES, VALUES, VALUES, VALUES, VALUES)
def test_any_sound_is_legal_or_has_its_fault(a: object, b: object, c: object, d: object, e: object) -> None:
    import yaml

    scene = {"scene": "a park", "action": "a fox sits", "say": a, "audio": b, "seconds": c}
    try:
        parsed = parse_story("s", yaml.safe_dump({"audio": d, "voice": e, "scenes": [scene]}).encode())
    except ScriptError as error:
        assert all(fault.message and fault.source for fault in error.faults)
        return
    written = parsed.model_dump(mode="json")
    assert Story.model_validate(written).model_dump(mode="json") == written
