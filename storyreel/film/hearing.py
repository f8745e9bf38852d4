"""Finds what is heard in a story: reads its files and has its texts spoken, before anything is rendered.

Every file is decoded once, to its end: so a fault costs no work, and lengths and levels are known. What the
voice has said lies in the film's folder, under a key of the text, the voice and its package's version.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from storyreel.errors import Fault, StoryreelError
from storyreel.files import digest, file_hash, matches, write_atomically, writing
from storyreel.film import audio, voice
from storyreel.film.ffmpeg import RUN_AGAIN
from storyreel.film.hashes import RememberedHashes
from storyreel.film.store import MOST_BYTES, RECORD, spoken_name
from storyreel.story.schema import MAX_SOUND, STDIN, Say, SceneSound, Story, VoiceSettings
from storyreel.story.sounds import Heard, Kind, Line, Sound, Soundtrack, Voice

LARGEST = 4 << 30  # bytes of a file; a WAV file is never larger
_FORMAT = 1  # of records of what was said

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class _SpokenRecord:
    """What is known of a file that the voice has made."""

    key: str
    sha256: str
    seconds: float
    loudness: float | None
    peak: float
    lines: tuple[Line, ...]


_RECORD = TypeAdapter(_SpokenRecord)


def hear(story: Story, folder: Path | None = None) -> Heard:
    """Return what is heard in a story, and what is wrong with it; nothing is written.

    ``folder`` is that of its film, where something may have been spoken already. Raises MissingError if a
    text is to be spoken and the voice is not installed, or without ffmpeg.
    """
    return _Hearing(story, folder).all() if story.has_sound else Heard()


def keep_spoken(track: Soundtrack | None, segments: Path) -> None:
    """Write what the voice says into a film's folder of segments, where it is not there yet.

    Raises StoryreelError, OutputError and MissingError.
    """
    if track is None or track.voice is None:
        return
    settings = VoiceSettings(speaker=track.voice.speaker, speed=track.voice.speed)
    speaker: voice.Speaker | None = None
    for sound in track.sounds:
        path = segments / sound.file
        if sound.text is None or (_recorded(path) and matches(path, sound.sha256)):
            continue
        speaker = speaker or voice.speaker(settings)
        spoken = speaker.say(sound.text)
        with writing(path):
            write_atomically(path, spoken.wav)
            if (found := file_hash(path)) != sound.sha256:
                path.unlink()
                raise StoryreelError(f"the voice now says {sound.text[:40]!r} otherwise", RUN_AGAIN)
            record = _SpokenRecord(
                _key(sound.text, track.voice), found, sound.seconds, sound.loudness, sound.peak, sound.lines
            )
            content = {"format": _FORMAT, **asdict(record)}
            sealed = json.dumps(content | {"seal": digest(content)}, ensure_ascii=False) + "\n"
            write_atomically(path.with_name(f"{path.name}{RECORD}"), sealed)


def _key(text: str, by: Voice) -> str:
    return digest([text, asdict(by)])


def _recorded(path: Path) -> _SpokenRecord | None:
    """Return the record of a file that the voice has made; None without one, or if anything was changed."""
    try:
        record = path.with_name(f"{path.name}{RECORD}")
        if not record.is_file() or record.stat().st_size > MOST_BYTES:  # a pipe would never end
            return None
        content = json.loads(record.read_bytes())
        seal = content.pop("seal")
        if content.get("format") != _FORMAT or seal != digest(content):
            return None
        del content["format"]
        return _RECORD.validate_python(content)
    except (OSError, ValueError, ValidationError, TypeError, KeyError, AttributeError, RecursionError):
        return None


@dataclass(frozen=True)
class _File:
    """A file that was read."""

    path: Path
    sha256: str
    measured: audio.Measured


class _Hearing:
    """Goes through a story once; a file that is named twice is read once."""

    def __init__(self, story: Story, folder: Path | None) -> None:
        self._story, self._folder = story, folder
        self._faults: list[Fault] = []
        self._files: dict[str, _File | str] = {}
        self._settings = story.voice or VoiceSettings()
        self._speaker: voice.Speaker | None = None

    def all(self) -> Heard:
        """Return everything, the film's own sound first."""
        sounds = [sound for sound in self._sounds() if sound is not None]
        by = self._speaker.voice if self._speaker else None
        track = Soundtrack(tuple(sounds), by) if sounds else None
        return Heard(track, tuple(self._faults))

    def _sounds(self) -> Iterator[Sound | None]:
        story = self._story
        if story.audio is not None:
            yield self._file("music", None, story.audio, ("audio",), story.audio.loop)
        texts = []
        for index, scene in enumerate(story.scenes):
            if scene.audio is not None:
                yield self._file("scene", index, scene.audio, ("scenes", index, "audio"))
            if scene.say is not None and scene.say.file is not None:
                yield self._recording(index, scene.say)
            elif scene.say is not None:
                texts.append((index, scene.say))
        for index, say in texts if self._has_voice(bool(texts)) else ():  # which takes longer than files do
            yield self._spoken(index, say)

    def _fault(self, message: str, *place: str | int) -> None:
        self._faults.append(self._story.fault(message, *place))

    def _file(
        self, kind: Kind, scene: int | None, wanted: SceneSound, place: Place, loop: bool = False
    ) -> Sound | None:
        if (file := self._read(wanted.file, *place, "file")) is None:
            return None
        seconds = file.measured.seconds
        if wanted.skip >= seconds:
            self._fault(f"{wanted.file} has only {seconds:.2f} seconds", *place, "skip")
            return None
        return Sound(
            kind,
            scene,
            wanted.file,
            file.sha256,
            **vars(file.measured),
            **{name: getattr(wanted, name) for name in ("volume", "start", "skip", "fade")},
            loop=loop,
            path=file.path,
        )

    def _recording(self, index: int, say: Say) -> Sound | None:
        assert say.file is not None
        if (file := self._read(say.file, "scenes", index, "say", "file")) is None:
            return None
        seconds, words = file.measured.seconds, self._story.filled(say.text or "")
        lines = (Line(words, 0.0, seconds),) if words else ()
        facts = (file.sha256, seconds, file.measured.loudness, file.measured.peak)
        return Sound("speech", index, say.file, *facts, say.volume, say.start, lines=lines, path=file.path)

    def _read(self, name: str, *place: str | int) -> _File | None:
        if name not in self._files:
            self._files[name] = self._listened(name)
        file = self._files[name]
        if isinstance(file, str):
            self._fault(f"{name} {file}", *place)
            return None
        return file

    def _listened(self, name: str) -> _File | str:
        """Read a file to its end; return what is wrong with it, if it is not sound."""
        base = Path() if self._story.path in ("stdin", str(STDIN)) else Path(self._story.path).parent
        path = base / name
        try:
            facts = path.stat()
            if not stat.S_ISREG(facts.st_mode):  # a pipe would never end
                return "is a folder" if path.is_dir() else "is not a file"
            if facts.st_size > LARGEST:
                return f"is larger than {LARGEST >> 30} GB; cut out what is to be heard"
            if facts.st_size == 0:
                return "is empty"
            sha256 = RememberedHashes().of([path])[path]
            measured = audio.measure(audio.of_file(path), most=MAX_SOUND + 1)
        except (OSError, ValueError) as error:
            code = getattr(error, "errno", None)
            if code in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return f"is not there: looked for {os.path.abspath(path)}"
            return f"cannot be read: {getattr(error, 'strerror', None) or error}"
        except audio.NoSoundError as error:
            return str(error)
        if measured.seconds > MAX_SOUND:
            return f"is longer than {MAX_SOUND / 3600:g} hours; cut out what is to be heard"
        return _File(path, sha256, measured) if measured.peak > audio.SILENT else "is silent"

    def _has_voice(self, needed: bool) -> bool:
        if not needed:
            return False
        if (problem := voice.voice_problem(self._settings)) is not None:
            self._fault(problem, "voice", "speaker")
            return False
        self._speaker = voice.speaker(self._settings)
        return True

    def _spoken(self, index: int, say: Say) -> Sound | None:
        assert say.text is not None
        assert self._speaker is not None
        text = self._story.filled(say.text)
        if (problem := voice.text_problem(text)) is not None:
            self._fault(problem, "scenes", index, "say", "text")
            return None
        key = _key(text, self._speaker.voice)
        name = spoken_name(key)
        found = self._known(name, key) or self._said(text, key)
        if found is None:
            self._fault("the voice says nothing of this; write other words", "scenes", index, "say", "text")
            return None
        facts = (found.sha256, found.seconds, found.loudness, found.peak, say.volume, say.start)
        return Sound("speech", index, name, *facts, lines=found.lines, text=text)

    def _known(self, name: str, key: str) -> _SpokenRecord | None:
        """Return the record of what lies in the film's folder already, whole."""
        if self._folder is None:
            return None
        path = self._folder / "segments" / name
        record = _recorded(path)
        return record if record and record.key == key and matches(path, record.sha256) else None

    def _said(self, text: str, key: str) -> _SpokenRecord | None:
        assert self._speaker is not None
        spoken = self._speaker.say(text)
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            file.write(spoken.wav)
            file.flush()
            try:
                measured = audio.measure(audio.of_file(Path(file.name)))
            except audio.NoSoundError:
                return None
            sha256 = file_hash(Path(file.name))
        if measured.peak <= audio.SILENT:
            return None
        return _SpokenRecord(key, sha256, measured.seconds, measured.loudness, measured.peak, spoken.lines)
