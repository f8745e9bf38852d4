"""The voice itself, where it is installed: what it says is always the same, and fetched from nowhere."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest

from storyreel.errors import MissingError
from storyreel.film import audio, voice
from storyreel.story.schema import VoiceSettings

pytest.importorskip("hibari")

TEXT = "The corgi boards the train. Then it looks out of the window, and waits for Dr. Smith."


@pytest.fixture(scope="module")
def speaker() -> voice.Speaker:
    return voice.speaker(VoiceSettings())


@pytest.fixture(scope="module")
def spoken(speaker: voice.Speaker) -> voice.Spoken:
    return speaker.say(TEXT)


def samples(spoken: voice.Spoken) -> np.ndarray:
    with wave.open(io.BytesIO(spoken.wav)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24_000)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767


def test_the_same_text_is_always_said_alike(speaker: voice.Speaker, spoken: voice.Spoken) -> None:
    speaker.say("Something else.")
    assert speaker.say(TEXT) == spoken
    faster = voice.speaker(VoiceSettings(speed=1.5))
    assert len(faster.say(TEXT).wav) < 0.8 * len(spoken.wav)


def test_sentences_stand_at_their_times(spoken: voice.Spoken) -> None:
    sound = np.abs(samples(spoken))
    first, second = spoken.lines
    assert f"{first.text} {second.text}" == TEXT
    assert first.start == 0
    assert second.end == pytest.approx(len(sound) / 24_000, abs=0.001)
    assert first.end + 0.1 < second.start
    assert sound[round(first.end * 24_000) : round(second.start * 24_000)].max() < 0.02
    assert sound[: round(0.09 * 24_000)].max() < 0.02 < sound[: round(0.2 * 24_000)].max()


def test_it_is_neither_silent_nor_clipped(spoken: voice.Spoken, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(spoken.wav)
    found = audio.measure(audio.of_file(tmp_path / "a.wav"))
    assert 3 < found.seconds < 7
    assert -35 < (found.loudness or 0) < -18
    assert -16 < found.peak < -1


def test_a_speaker_that_would_be_fetched_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HIBARI_HOME", str(tmp_path))
    assert voice.voice_problem(VoiceSettings()) is None
    words = "there is no speaker 'emma' on this machine; there are: heart"
    assert voice.voice_problem(VoiceSettings(speaker="emma")) == words
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MissingError, match="emma"):
        voice.speaker(VoiceSettings(speaker="emma")).say("Hello")


@pytest.mark.parametrize(
    "text", ["It's 20°C, naïve Zoë!", "On the 3rd of March, $9.99.", "[Oz](/ˈɑz/) runs."]
)
def test_what_an_english_text_holds_is_said(text: str, speaker: voice.Speaker) -> None:
    assert voice.text_problem(text) is None
    assert speaker.say(text).lines
