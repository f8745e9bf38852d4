"""What is heard in a story: files are read, texts spoken, and faults found before anything is rendered."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from storyreel.errors import MissingError, ScriptError, StoryreelError
from storyreel.film import ffmpeg, hearing, voice
from storyreel.film.hearing import hear, keep_spoken
from storyreel.story.schema import VoiceSettings, load_story
from storyreel.story.sounds import Heard, Line, Soundtrack
from tests.sounds import FakeSpeaker, convert, tone, wav

SCENE = "scene: a park, action: a fox sits"


@pytest.fixture
def speakers(monkeypatch: pytest.MonkeyPatch) -> list[FakeSpeaker]:
    """Whoever is asked to speak."""
    asked: list[FakeSpeaker] = []

    def speaker(settings: VoiceSettings) -> FakeSpeaker:
        asked.append(FakeSpeaker(settings))
        return asked[-1]

    monkeypatch.setattr(voice, "speaker", speaker)
    monkeypatch.setattr(voice, "voice_problem", lambda settings: None)
    return asked


def heard(folder: Path, *scenes: str, head: str = "", film: Path | None = None) -> Heard:
    path = folder / "story.yaml"
    path.write_text("\n".join([head, "scenes:", *(f"  - {{{SCENE}, {scene}}}" for scene in scenes)]))
    return hear(load_story(path), film)


def track(found: Heard) -> Soundtrack:
    assert found.faults == ()
    assert found.track is not None
    return found.track


def test_a_story_without_sound_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg, "running", lambda *given, **named: pytest.fail("ffmpeg was started"))
    assert heard(tmp_path, "seconds: 1") == Heard()


def test_files_of_every_usual_kind_are_heard(tmp_path: Path) -> None:
    source = tmp_path / "tone.wav"
    source.write_bytes(tone(1.5, rate=44_100))
    made = {"tone.wav": source}
    for name in ("a.flac", "a.mp3", "a.m4a", "a.ogg", "a.opus", "a.mka"):
        made[name] = convert(source, tmp_path / name)
    picture = ["-f", "lavfi", "-i", "color=size=32x32:duration=1.5:rate=10", "-map", "1:v", "-map", "0:a"]
    made["film.mp4"] = convert(source, tmp_path / "film.mp4", *picture)
    found = track(heard(tmp_path, *(f"audio: {name}" for name in made)))
    assert [sound.file for sound in found.sounds] == list(made)
    for sound in found.sounds:
        assert sound.seconds == pytest.approx(1.5, abs=0.03), sound.file
        assert sound.loudness == pytest.approx(-15.1, abs=0.5), sound.file
        assert sound.peak == pytest.approx(-15.1, abs=2), sound.file
        assert (sound.kind, sound.path) == ("scene", made[sound.file])


def test_links_are_followed_and_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.wav").write_bytes(tone(0.5))
    (tmp_path / "link.wav").symlink_to(tmp_path / "elsewhere" / "a.wav")
    starts, running = [], ffmpeg.running

    def counted(*given: Any, **named: Any) -> Any:
        starts.append(given)
        return running(*given, **named)

    monkeypatch.setattr(ffmpeg, "running", counted)
    found = track(heard(tmp_path, "audio: link.wav", "say: link.wav", head="audio: link.wav"))
    assert [(sound.kind, sound.scene) for sound in found.sounds] == [
        ("music", None),
        ("scene", 0),
        ("speech", 1),
    ]
    assert len(starts) == 1


def bad_files(folder: Path) -> None:
    (folder / "empty.wav").touch()
    (folder / "noise.mp3").write_bytes(os.urandom(5000))
    (folder / "text.wav").write_text("no sound\n" * 99)
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")
    (folder / "broken.wav").symlink_to(folder / "nowhere")
    (folder / "silent.wav").write_bytes(wav([0.0] * 48_000))
    (folder / "good.wav").write_bytes(tone(1))
    with (folder / "huge.wav").open("wb") as file:
        file.truncate(hearing.LARGEST + 1)
    convert(folder / "good.wav", folder / "good.flac")
    damaged = bytearray((folder / "good.flac").read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 50] = bytes(50)
    (folder / "damaged.flac").write_bytes(damaged)
    blank = ["-f", "lavfi", "-i", "color=size=32x32:duration=1:rate=10", "-map", "1:v"]
    convert(folder / "good.wav", folder / "mute.mp4", *blank)
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\ngood.wav\n#EXT-X-ENDLIST\n")
    (folder / "list.wav").write_text("ffconcat version 1.0\nfile good.wav\n")


WRONG = {
    "missing.wav": "is not there: looked for /",
    "broken.wav": "is not there: looked for /",
    "good.wav/a.wav": "is not there: looked for /",
    "x" * 300 + ".wav": "cannot be read: File name too long",
    "empty.wav": "is empty",
    "noise.mp3": "is no sound that ffmpeg can read; name",
    "text.wav": "is no sound that ffmpeg can read; name",
    "damaged.flac": "is damaged after 0.",
    "list.m3u8": "is no sound that ffmpeg can read; name",
    "list.wav": "is no sound that ffmpeg can read; name",
    "folder.wav": "is a folder",
    "pipe.wav": "is not a file",
    "silent.wav": "is silent",
    "huge.wav": "is larger than 4 GB; cut out what is to be heard",
    "mute.mp4": "has no sound in it",
}


def test_what_is_wrong_with_files_is_said_at_once_with_its_place(tmp_path: Path) -> None:
    bad_files(tmp_path)
    scenes = [f"audio: {{volume: 1, file: {name}}}" for name in WRONG]
    found = heard(
        tmp_path, *scenes, "say: missing.wav", "audio: {file: good.wav, skip: 2}", head="audio: empty.wav"
    )
    places = {fault.line: fault for fault in found.faults}
    assert len(places) == len(WRONG) + 3
    assert (places[1].message, places[1].column) == ("empty.wav is empty", 8)
    for line, (name, words) in enumerate(WRONG.items(), 3):
        fault = places[line]
        assert fault.message.startswith(f"{name} {words}"), fault.message
        assert fault.source[fault.column - 1 :] == f"{name}}}}}"
    last, *_ = (
        f.source[f.column - 1 :] for f in found.faults if f.message == "good.wav has only 1.00 seconds"
    )
    assert last == "2}}"


def test_a_file_that_may_not_be_read_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.wav").write_bytes(tone(0.5))

    def refuse(self: object, paths: object) -> None:
        raise PermissionError(13, "Permission denied", "a.wav")

    monkeypatch.setattr("storyreel.film.hearing.RememberedHashes.of", refuse)
    (fault,) = heard(tmp_path, "audio: a.wav").faults
    assert fault.message == "a.wav cannot be read: Permission denied"


def test_what_is_longer_than_any_film_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.wav").write_bytes(tone(3))
    monkeypatch.setattr(hearing, "MAX_SOUND", 1.0)
    (fault,) = heard(tmp_path, "audio: a.wav").faults
    assert fault.message.startswith("a.wav is longer than 0.000277778 hours")


def test_a_recording_may_tell_its_words(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(tone(0.5))
    head = "cast: {first: {name: a fox}}"
    found = track(heard(tmp_path, "say: {file: a.wav, text: '{first} sits'}", "say: a.wav", head=head))
    assert [sound.lines for sound in found.sounds] == [(Line("a fox sits", 0.0, 0.5),), ()]
    assert found.voice is None


def test_texts_are_spoken_once(tmp_path: Path, speakers: list[FakeSpeaker]) -> None:
    film = tmp_path / "film"
    (film / "segments").mkdir(parents=True)
    scenes = "say: One two three", "say: {text: Four, volume: -3, start: 1}"
    found = track(heard(tmp_path, *scenes, head="voice: {speed: 2}", film=film))
    assert list((film / "segments").iterdir()) == []  # nothing is written while a story is looked at
    assert [sound.seconds for sound in found.sounds] == [0.375, 0.125]
    assert [(sound.volume, sound.start) for sound in found.sounds] == [(0, 0), (-3, 1)]
    assert found.voice is not None
    assert found.voice.speed == 2
    keep_spoken(found, film / "segments")
    assert sorted(path.suffix for path in (film / "segments").iterdir()) == [".json", ".json", ".wav", ".wav"]
    speakers.clear()
    assert track(heard(tmp_path, *scenes, head="voice: {speed: 2}", film=film)) == found
    keep_spoken(found, film / "segments")
    assert [speaker.said for speaker in speakers] == [[]]
    heard(tmp_path, "say: One two", *scenes[1:], head="voice: {speed: 2}", film=film)
    assert speakers[-1].said == ["One two"]
    heard(tmp_path, *scenes, film=film)  # at another speed
    assert speakers[-1].said == ["One two three", "Four"]


@pytest.mark.parametrize("damage", ["sound", "record", "seal", "no record", "no sound", "pipe"])
def test_a_damaged_speech_is_spoken_again(damage: str, tmp_path: Path, speakers: list[FakeSpeaker]) -> None:
    segments = tmp_path / "film" / "segments"
    segments.mkdir(parents=True)
    found = track(heard(tmp_path, "say: One", film=segments.parent))
    keep_spoken(found, segments)
    (sound,) = segments.glob("*.wav")
    record = sound.with_name(f"{sound.name}.json")
    before = sound.read_bytes(), record.read_bytes()
    match damage:
        case "sound":
            sound.write_bytes(before[0][:-1] + b"x")
        case "record":
            record.write_text("[1]")
        case "seal":
            record.write_text(json.dumps(json.loads(before[1]) | {"seconds": 9.0}))
        case "pipe":
            record.unlink()
            os.mkfifo(record)
            assert track(heard(tmp_path, "say: One", film=segments.parent)) == found
            record.unlink()
        case "no record":
            record.unlink()
        case "no sound":
            sound.unlink()
    speakers.clear()
    assert track(heard(tmp_path, "say: One", film=segments.parent)) == found
    keep_spoken(found, segments)
    assert (sound.read_bytes(), record.read_bytes()) == before
    assert speakers[-1].said == ["One"]


def test_a_voice_that_is_not_the_same_leaves_nothing(tmp_path: Path, speakers: list[FakeSpeaker]) -> None:
    found = track(heard(tmp_path, "say: One"))
    speakers.clear()
    other = Soundtrack(
        tuple(s.__class__(**{**vars(s), "sha256": "0" * 64}) for s in found.sounds), found.voice
    )
    with pytest.raises(StoryreelError, match="otherwise"):
        keep_spoken(other, tmp_path)
    assert list(tmp_path.glob("voice-*")) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("猫 runs", "the voice reads English and cannot say '猫'; name a recording instead"),
        ("A fox 🦊", "the voice reads English and cannot say '🦊'; name a recording instead"),
        ("'...!'", "there is no word in it to be said"),
    ],
)
def test_what_no_voice_can_say_is_a_fault(
    text: str, fault: str, tmp_path: Path, speakers: list[FakeSpeaker]
) -> None:
    (found,) = heard(tmp_path, f"say: {text}").faults
    assert found.message == fault
    assert found.source[found.column - 1 :] == f"{text}}}"


def test_the_voice_is_asked_for_only_where_it_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ImportError(name=module)

    (tmp_path / "a.wav").write_bytes(tone(0.5))
    monkeypatch.setattr("importlib.import_module", missing)
    assert track(heard(tmp_path, "say: a.wav"))
    with pytest.raises(MissingError, match="the voice is not installed") as caught:
        heard(tmp_path, "say: Hello")
    assert "pip install" in caught.value.remedy
    assert "[voice]" in caught.value.remedy


def test_standard_input_has_its_files_where_the_command_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storyreel.story.schema import parse_story

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.wav").write_bytes(tone(0.5))
    found = hear(parse_story("stdin", f"scenes: [{{{SCENE}, audio: a.wav}}]".encode()))
    assert track(found).sounds[0].seconds == 0.5


def test_validate_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from storyreel.cli.app import run

    (tmp_path / "story.yaml").write_text(f"scenes: [{{{SCENE}, audio: none.wav}}]")
    assert run(["validate", str(tmp_path / "story.yaml")]) == ScriptError.exit_code
    assert "story.yaml:1:53: error: none.wav is not there" in capsys.readouterr().err
