"""Small sounds, made with the standard library; and a voice that needs no package."""

from __future__ import annotations

import io
import subprocess
import wave
from pathlib import Path

import numpy as np

from storyreel.film import ffmpeg, voice
from storyreel.film.hearing import hear
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import VoiceSettings, load_story
from storyreel.story.sounds import Line, Voice


def wav(samples: object, rate: int = 48_000) -> bytes:
    """Return a WAV file of one channel in 16 bits; 1 is full scale."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.rint(32767 * np.clip(np.asarray(samples), -1, 1)).astype("<i2").tobytes())
    return file.getvalue()


def tone(seconds: float, hertz: float = 1000, level: float = 0.25, rate: int = 48_000) -> bytes:
    return wav(level * np.sin(2 * np.pi * hertz / rate * np.arange(round(seconds * rate))), rate)


def click(seconds: float = 0.1, rate: int = 48_000) -> bytes:
    """A millisecond of full scale, then nothing."""
    return wav([0.9 * (-1) ** (n // 12) * (n < rate // 1000) for n in range(round(seconds * rate))], rate)


def convert(source: Path, target: Path, *options: str) -> Path:
    command = [ffmpeg.program(), "-v", "error", "-y", "-i", str(source), *options, str(target)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return target


class FakeSpeaker:
    """Says every word as a quarter of a second of a tone."""

    def __init__(self, settings: VoiceSettings) -> None:
        self.voice = Voice("fake-tts", "1", settings.speaker, settings.speed)
        self.said: list[str] = []

    def say(self, text: str) -> voice.Spoken:
        self.said.append(text)
        seconds = 0.25 * len(text.split()) / self.voice.speed
        return voice.Spoken(tone(seconds, rate=24_000), (Line(text, 0.0, seconds),))


def planned(folder: Path, text: str, out: Path | None = None, **overrides: object) -> Plan:
    """Plan a story that lies in a folder, with its sounds."""
    path = folder / "story.yaml"
    path.write_text(text)
    story = load_story(path)
    return make_plan(story, "story", Overrides(**overrides), hear(story, out))  # type: ignore[arg-type]
