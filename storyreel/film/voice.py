"""The voice that says a story's texts: hibari-tts, whose weights come inside its package (extra ``voice``).

It reads English. Nothing is fetched: a speaker that is not on this machine is refused.
"""

from __future__ import annotations

import io
import unicodedata
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Protocol

from storyreel.errors import MissingError
from storyreel.film.sound import PRONOUNCED
from storyreel.origin import with_extra
from storyreel.story.schema import VoiceSettings
from storyreel.story.sounds import Line, Voice

PACKAGE = "hibari-tts"
_SOFT = 0.01  # of full scale: what is softer is silence
_AROUND = 0.1  # seconds of silence that are left before the first word and after the last


@dataclass(frozen=True)
class Spoken:
    """What the voice has said: a WAV file, and its sentences with their times."""

    wav: bytes
    lines: tuple[Line, ...]


class Speaker(Protocol):
    """Somebody who says texts, always in the same way."""

    voice: Voice

    def say(self, text: str) -> Spoken:
        """Say a text."""


def voice_problem(settings: VoiceSettings) -> str | None:
    """Return why the speaker that is asked for is not here; None if it is. Raises MissingError."""
    voices = _hibari("hibari.voices")
    known = [name for name in voices.VOICES if _weights(voices, name) is not None]
    if settings.speaker in known:
        return None
    return f"there is no speaker {settings.speaker!r} on this machine; there are: {', '.join(known)}"


def text_problem(text: str) -> str | None:
    """Return what of a text the voice cannot say; None if it can say all of it."""
    text = PRONOUNCED.sub(r"\1", text)
    foreign = (c for c in text if (c.isalpha() and "LATIN" not in unicodedata.name(c, "")) or c > "\uffff")
    if (char := next(foreign, None)) is not None:
        return f"the voice reads English and cannot say {char!r}; name a recording instead"
    if not any(c.isalnum() for c in text):
        return "there is no word in it to be said"
    return None


def speaker(settings: VoiceSettings) -> Speaker:
    """Return who says texts; what is loaded, is loaded when something is said. Raises MissingError."""
    return _Hibari(settings)


def _hibari(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        words = f"a text is to be spoken, and the voice is not installed ({error.name or error})"
        raise MissingError(
            words, f"Run: {with_extra('voice')}. Or name a recording: say: FILE.wav."
        ) from None


def _weights(voices: Any, name: str) -> str | None:
    """Return the file of a speaker's weights, if it is on this machine."""
    try:
        return str(voices.voice_path(name, download_missing=False))
    except FileNotFoundError:
        return None


class _Hibari:
    def __init__(self, settings: VoiceSettings) -> None:
        self.voice = Voice(PACKAGE, metadata.version(PACKAGE), settings.speaker, settings.speed)
        self._loaded: Any = None

    def say(self, text: str) -> Spoken:
        """Say a text: its noise has a fixed seed, and one thread computes it."""
        import numpy as np

        if self._loaded is None:
            if (
                weights := _weights(_hibari("hibari.voices"), self.voice.speaker)
            ) is None:  # it would be fetched
                raise MissingError(
                    f"the speaker {self.voice.speaker!r} is not on this machine", "Take another."
                )
            self._loaded = _hibari("hibari").Hibari(self.voice.speaker, weights, threads=1)
        tts, random = self._loaded, np.random.default_rng(0)
        sentences = []
        for sentence in tts.split_sentences(text):
            parts = [tts.from_ids(tts.ids(p), self.voice.speed, random) for p in tts.phonemize(sentence)]
            sentences.append((sentence, np.concatenate([np.zeros(0, np.float32), *parts])))
        return _spoken(sentences, tts.sample_rate)


def _spoken(sentences: Sequence[tuple[str, Any]], rate: int) -> Spoken:
    """Return sentences, each with its samples, fp32, as one sound with little silence around it."""
    import numpy as np

    found, at = [], 0  # sentences with the samples that their words take
    for sentence, samples in sentences:
        if len(loud := np.flatnonzero(np.abs(samples) > _SOFT)):
            found.append((sentence, at + int(loud[0]), at + int(loud[-1])))
        at += len(samples)
    if not found:
        return Spoken(_wav(b"", rate), ())
    whole, margin = np.concatenate([samples for _, samples in sentences]), round(_AROUND * rate)
    first, last = max(0, found[0][1] - margin), min(at, found[-1][2] + margin)
    lines = tuple(
        Line(
            sentence, round(max(0, begin - margin - first) / rate, 3), round((end + margin - first) / rate, 3)
        )
        for sentence, begin, end in found
    )
    return Spoken(_wav((np.clip(whole[first:last], -1, 1) * 32767).astype("<i2").tobytes(), rate), lines)


def _wav(pcm: bytes, rate: int) -> bytes:
    """Return a WAV file of one channel in 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(pcm)
    return file.getvalue()
