"""The life of a film with sound, with a fake model and a fake voice: what is kept, made again and refused."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import pytest

from storyreel.cli.app import run
from storyreel.cli.results import result_schema
from storyreel.errors import OutputError, StoryreelError
from storyreel.film import audio, mix, voice, writer
from storyreel.film.clean import remove_unused, unused
from storyreel.film.verify import verify, verify_folder
from storyreel.rendering import Rendered, render
from storyreel.story.plan import Plan
from tests.conftest import FakeEngine, Silent
from tests.sounds import FakeSpeaker, planned, tone

pytestmark = pytest.mark.usefixtures("fake_model")

STORY = """
title: Foxes
audio: {file: music.wav, loop: true}
render: {model: fake}
scenes:
  - {scene: a park, action: a fox sits, say: One two, seconds: auto}
  - {scene: a street, action: it walks, audio: sounds/rain.wav, transition: cut}
  - {scene: a home, action: it sleeps, say: {file: word.wav, text: Three}, transition: cut}
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A story's sounds; all that the voice has said."""
    (tmp_path / "sounds").mkdir()
    (tmp_path / "music.wav").write_bytes(tone(0.6, hertz=300))
    (tmp_path / "sounds" / "rain.wav").write_bytes(tone(0.7, hertz=3000))
    (tmp_path / "word.wav").write_bytes(tone(0.3))
    said: list[str] = []

    class Heard(FakeSpeaker):
        def say(self, text: str) -> voice.Spoken:
            said.append(text)
            return super().say(text)

    monkeypatch.setattr(voice, "speaker", lambda settings: Heard(settings))
    monkeypatch.setattr(voice, "voice_problem", lambda settings: None)
    return said


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing measured or mixed, but for tests that ask for `ffmpeg`: that takes most of the time."""
    if "ffmpeg" in request.fixturenames:
        return

    def measure(source: list[str], filters: str = "", most: float | None = None) -> audio.Measured:
        with wave.open(source[-1].removeprefix("file:")) as file:
            return audio.Measured(file.getnframes() / file.getframerate(), -20.0, -6.0)

    @contextmanager
    def soundtrack(made: Plan, folder: Path) -> Iterator[writer.Audio]:
        yield writer.Audio([], "anull", 0, [])

    monkeypatch.setattr(audio, "measure", measure)
    monkeypatch.setattr(mix, "soundtrack", soundtrack)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[writer.Audio]:
    """What is given to every joining."""
    given: list[writer.Audio] = []
    join = writer.join

    def joined(*arguments: Any) -> None:
        if arguments[-1] is not None:
            given.append(arguments[-1])
        join(*arguments)

    monkeypatch.setattr(writer, "join", joined)
    return given


Maker = Callable[..., tuple[Rendered, Silent]]


@pytest.fixture
def make(tmp_path: Path, told: list[str]) -> Maker:
    def made(text: str = STORY, **overrides: object) -> tuple[Rendered, Silent]:
        progress = Silent()
        result = render(plan(tmp_path, text, **overrides), "foxes", tmp_path / "out", FakeEngine(), progress)
        return result, progress

    return made


def plan(folder: Path, text: str = STORY, **overrides: object) -> Plan:
    return planned(folder, text, folder / "out" / "foxes", **overrides)


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "foxes" / "manifest.json").read_text())
    return found


@pytest.mark.usefixtures("ffmpeg")
def test_a_film_with_sound_has_what_was_promised(tmp_path: Path, make: Maker) -> None:
    result, _ = make()
    with av.open(str(result.film)) as film:
        (stream,) = film.streams.audio
        assert stream.codec_context.name == "aac"
        assert film.duration == 1_500_000
        assert len(film.streams.subtitles) == 2
        assert film.metadata["storyreel_voice"] == "fake-tts 1 heart"
    sounds = manifest(tmp_path)["sound"]["sounds"]
    assert [(sound["kind"], sound["scene"]) for sound in sounds] == [
        *(("music", None), ("scene", 1), ("speech", 2), ("speech", 0))
    ]
    assert all(len(sound["sha256"]) == 64 for sound in sounds)
    assert str(tmp_path) not in json.dumps(manifest(tmp_path))
    assert set(manifest(tmp_path)["sound"]["recipe"]) == {"film/audio.py", "film/mix.py", "film/sound.py"}
    files = verify_folder(tmp_path / "out" / "foxes")
    assert set(files.values()) == {""}
    assert len(files) == 3 * 2 + 1 + 3
    assert set(verify(plan(tmp_path), "foxes", tmp_path / "out").values()) == {""}


def test_nothing_is_done_twice(
    tmp_path: Path, make: Maker, told: list[str], heard: list[writer.Audio]
) -> None:
    make()
    film = (tmp_path / "out" / "foxes" / "foxes.mp4").read_bytes()
    assert told == ["One two"] * 2  # to be measured, and to be kept
    result, progress = make()
    assert (result.rendered, len(heard), len(told)) == (0, 1, 2)
    (tmp_path / "out" / "foxes" / "foxes.mp4").unlink()
    make()
    assert (tmp_path / "out" / "foxes" / "foxes.mp4").read_bytes() == film
    assert (progress.heard, len(heard), len(told)) == ([], 2, 2)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("loop: true", "loop: false", "the music"),
        ("audio: {file: music.wav, loop: true}", "", "the music"),
        ("sounds/rain.wav", "{file: sounds/rain.wav, volume: -3}", "the sound of scene 2"),
        ("text: Three", "text: Four", "the sound of scene 3"),
        ("say: One two", "say: Two two", "the sound of scene 1"),
        ("", "", "the music"),
    ],
)
def test_other_sound_renders_nothing(
    old: str, new: str, words: str, tmp_path: Path, make: Maker, heard: list[writer.Audio]
) -> None:
    make()
    before = manifest(tmp_path)
    if not old:  # the same name, other music
        (tmp_path / "music.wav").write_bytes(tone(0.6, hertz=200))
    result, progress = make(STORY.replace(old, new))
    after = manifest(tmp_path)
    assert (result.rendered, progress.forwards, len(heard)) == (0, 0, 2)
    assert [s["video_key"] for s in after["segments"]] == [s["video_key"] for s in before["segments"]]
    assert after["film"]["key"] != before["film"]["key"]
    assert progress.heard == [f"differs from the film that is there: {words}"]


def test_a_length_from_sound_renders_its_scene(tmp_path: Path, make: Maker) -> None:
    make()
    result, _ = make(STORY.replace("say: One two", "say: One two three"))
    assert result.rendered == 1
    assert [segment["frames"] for segment in manifest(tmp_path)["segments"]] == [9, 6, 6]


def test_segments_are_those_of_the_film_without_sound(tmp_path: Path, make: Maker) -> None:
    silent = "\n".join(line for line in STORY.splitlines() if not line.startswith("audio:"))
    for part in (
        ", say: One two, seconds: auto",
        ", audio: sounds/rain.wav",
        ", say: {file: word.wav, text: Three}",
    ):
        silent = silent.replace(part, "")
    make(silent)
    assert "sound" not in manifest(tmp_path)
    assert make(STORY)[0].rendered == 0
    assert make(silent)[0].rendered == 0
    assert "sound" not in manifest(tmp_path)


def test_what_is_said_in_a_film_is_kept_and_what_was_said_can_go(tmp_path: Path, make: Maker) -> None:
    make()
    folder = tmp_path / "out" / "foxes"
    (first,) = folder.glob("segments/voice-*.wav")
    assert unused(folder).files == {}
    make(STORY.replace("say: One two", "say: Two two"))
    assert set(unused(folder).files) == {first, first.with_name(f"{first.name}.json")}
    remove_unused(folder)
    (second,) = folder.glob("segments/voice-*.wav")
    assert first != second
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    wrong = {path: words for path, words in verify_folder(folder).items() if words}
    assert wrong == {str(second): "is damaged: it is not what was recorded"}
    make(STORY.replace("say: One two", "say: Two two"))
    assert set(verify_folder(folder).values()) == {""}


def test_verify_knows_that_a_sound_has_changed(tmp_path: Path, make: Maker) -> None:
    make()
    (tmp_path / "word.wav").write_bytes(tone(0.2))
    wrong = {
        Path(path).name: words
        for path, words in verify(plan(tmp_path), "foxes", tmp_path / "out").items()
        if words
    }
    assert wrong.keys() == {"foxes.mp4", "manifest.json"}
    assert wrong["foxes.mp4"] == "belongs to another film (the sound of scene 3)"
    assert set(verify_folder(tmp_path / "out" / "foxes").values()) == {""}


@pytest.mark.parametrize("change", [{"sounds": 5}, {"sounds": [5]}, {"voice": 7}, None])
def test_a_manifest_with_nonsense_for_sound_is_not_believed(change: Any, tmp_path: Path, make: Maker) -> None:
    make()
    path = tmp_path / "out" / "foxes" / "manifest.json"
    facts = manifest(tmp_path)
    path.write_text(json.dumps(facts | {"sound": change if change is None else facts["sound"] | change}))
    assert "is damaged, or of an earlier version" in verify_folder(path.parent).values() or change is None
    assert set(verify_folder(path.parent).values()) != {""}
    assert make()[0].rendered == 0
    assert set(verify_folder(path.parent).values()) == {""}


@pytest.mark.usefixtures("ffmpeg")
@pytest.mark.parametrize("where", ["mixing", "writing", "joining"])
def test_a_film_that_fails_to_be_mixed_leaves_the_one_before(
    where: str, tmp_path: Path, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    folder = tmp_path / "out" / "foxes"
    before = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".mp4", ".html", ".json")
    }

    def fail(*given: object) -> None:
        raise OSError(28, "No space left on device") if where == "writing" else StoryreelError("it fails")

    monkeypatch.setattr(
        *{
            "mixing": (mix, "levelling", fail),
            "writing": (mix, "mixed", fail),
            "joining": (writer, "join", fail),
        }[where]
    )
    with pytest.raises(OutputError if where == "writing" else StoryreelError):
        make(STORY.replace("loop: true", "loop: false"))
    monkeypatch.undo()
    after = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".mp4", ".html", ".json")
    }
    assert after == before
    assert [path for path in folder.rglob(".*") if ".part" in path.name] == []


@pytest.mark.usefixtures("told", "fake_engine")
def test_the_command_line_says_what_is_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import jsonschema

    (tmp_path / "foxes.yaml").write_text(STORY)
    assert run(["render", str(tmp_path / "foxes.yaml"), "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    jsonschema.validate(facts, result_schema("render"))
    assert [sound["kind"] for sound in facts["foxes"]["sounds"]] == ["music", "scene", "speech", "speech"]
    assert run(["render", str(tmp_path / "foxes.yaml"), "--dry-run"]) == 0
    words = capsys.readouterr().out
    assert "      says:   One two, 0.5 s\n" in words
    assert "      audio:  sounds/rain.wav, 0.7 s\n" in words
    assert "  sound: music.wav, 0.6 s, again and again, speech in 2 scenes, audio in 1 scene\n" in words
    assert run(["render", str(tmp_path / "foxes.yaml"), "--out", str(tmp_path / "out")]) == 0
    assert run(["render", str(tmp_path / "foxes.yaml"), "--out", str(tmp_path / "out"), "--verify"]) == 0
