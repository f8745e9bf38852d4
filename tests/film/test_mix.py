"""Sounds mixed, levelled and joined into a film, read back by PyAV and by another measure of loudness."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from storyreel.errors import StoryreelError
from storyreel.film import ffmpeg, mix, reader, writer
from storyreel.film.keys import film_chapters
from storyreel.film.mix import Samples
from storyreel.film.sound import DUCKED, FILM_FADE, LEVELS, RATE
from storyreel.story.plan import Plan
from tests.film.test_writer import cues, write
from tests.sounds import click, convert, planned, tone, wav

FPS = 12  # of mini
FRAMES = 6  # of a scene


def story(*scenes: str, head: str = "") -> str:
    begin = "  - {scene: a park, action: a fox sits, seconds: 0.5"
    return f"{head}\nscenes:\n" + "".join(f"{begin}{', ' if scene else ''}{scene}}}\n" for scene in scenes)


def mixed(plan: Plan, folder: Path) -> Samples:
    return np.concatenate(list(mix.mixed(plan, folder)))


def loudness(sound: Samples) -> float:
    """Of a tone of 1000 Hz in both channels, LUFS is the sum of both channels' mean squares, in dB."""
    return 10 * float(np.log10(2 * np.square(sound.astype(np.float64)).mean()))


def test_sounds_stand_where_they_are_planned(tmp_path: Path) -> None:
    (tmp_path / "click.wav").write_bytes(click())
    made = planned(tmp_path, story("", "audio: click.wav", "audio: {file: click.wav, start: 0.2}"))
    sound = mixed(made, tmp_path)
    assert sound.shape == (round(1.5 * RATE), 2)
    loud = np.flatnonzero(np.abs(sound[:, 0]) > 0.1)
    groups = np.split(loud, np.flatnonzero(np.diff(loud) > 1000) + 1)
    assert [group[0] / RATE for group in groups] == pytest.approx([0.5, 1.2], abs=2e-4)
    assert (sound[:, 0] == sound[:, 1]).all()


def test_levels_fades_and_ducking_are_as_planned(tmp_path: Path) -> None:
    (tmp_path / "music.wav").write_bytes(tone(20, level=0.05))
    (tmp_path / "speech.wav").write_bytes(tone(0.5, hertz=500))
    made = planned(tmp_path, story(*[""] * 12, "say: speech.wav", *[""] * 3, head="audio: music.wav"))
    alone = planned(tmp_path, story(*[""] * 16, head="audio: music.wav"))
    music = mixed(alone, tmp_path)
    both = mixed(made, tmp_path)

    def at(sound: Samples, second: float) -> float:
        return loudness(sound[round(second * RATE) : round((second + 0.2) * RATE)])

    assert at(music, 4) == pytest.approx(LEVELS["music"], abs=0.2)
    assert at(music, FILM_FADE / 2 - 0.1) == pytest.approx(LEVELS["music"] - 6, abs=0.7)
    assert at(music, 8 - FILM_FADE / 2 - 0.1) == pytest.approx(LEVELS["music"] - 6, abs=0.7)
    assert np.abs(music[0]).max() == 0
    assert np.array_equal(both[: round(5.7 * RATE)], music[: round(5.7 * RATE)])
    assert at(both, 6.1) == pytest.approx(LEVELS["speech"], abs=1.0)
    ducked = np.interp([6.55], [6.5, 7.1], [DUCKED, 0])[0]
    assert loudness(both[round(6.5 * RATE) : round(6.6 * RATE)]) - at(music, 6.5) == pytest.approx(
        ducked, abs=0.5
    )


def test_a_sound_is_cut_and_faded_at_its_scenes_end(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(tone(3))
    sound = np.abs(mixed(planned(tmp_path, story("audio: a.wav", "")), tmp_path)[:, 0])
    assert sound[: RATE // 50].max() > 0.05  # begins at once
    assert sound[round(0.49 * RATE) : RATE // 2].max() < 0.15 * sound.max()
    assert sound[RATE // 2 :].max() == 0


def test_music_begins_again_and_again_without_a_gap(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(tone(0.25))  # whole periods
    head = "audio: {file: a.wav, loop: true, fade: 0, skip: 0.1}"
    sound = mixed(planned(tmp_path, story("", "", head=head)), tmp_path)
    whole = np.abs(sound[:, 0])
    assert [whole[at : at + 48].max() for at in range(0, RATE, 48)] == pytest.approx(
        [whole.max()] * 1000, rel=0.01
    )
    once = mixed(planned(tmp_path, story("", "", head=head.replace("true", "false"))), tmp_path)
    end = round(0.15 * RATE)
    assert np.array_equal(once[:end], sound[:end])
    assert not once[end:].any()


def test_how_much_is_mixed_at_a_time_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.wav").write_bytes(tone(2, rate=44_100))
    scenes = story("audio: {file: a.wav, skip: 0.1}", "say: {file: a.wav, start: 0.1}", head="audio: a.wav")
    (tmp_path / "b.wav").write_bytes(tone(0.4))
    made = planned(tmp_path, scenes.replace("say: {file: a.wav", "say: {file: b.wav"))
    at_once = mixed(made, tmp_path)
    monkeypatch.setattr(mix, "BLOCK", 777)
    assert np.array_equal(mixed(made, tmp_path), at_once)


def test_a_file_that_has_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(tone(1))
    made = planned(tmp_path, story("audio: a.wav"))
    (tmp_path / "a.wav").write_bytes(tone(1, hertz=440))
    with pytest.raises(StoryreelError, match=r"a\.wav is no longer the file"):
        mixed(made, tmp_path)
    (tmp_path / "a.wav").unlink()
    with pytest.raises(StoryreelError, match=r"a\.wav is no longer the file"), mix.soundtrack(made, tmp_path):
        pass
    assert list(tmp_path.glob(".*")) == []


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    write(path, 100, FRAMES)
    return path


def film(plan: Plan, clip: Path) -> Path:
    path = clip.with_name("film.mp4")
    with mix.soundtrack(plan, clip.parent) as sound:
        writer.join([clip] * len(plan.segments), path, FPS, film_chapters(plan), {"title": "a"}, sound)
    return path


def decoded(path: Path) -> tuple[Samples, float]:
    """Return a film's sound as a player plays it, mono, and the second at which it begins."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    assert all(frame.sample_rate == RATE for frame in frames)
    return np.concatenate([frame.to_ndarray().mean(0) for frame in frames]), float(frames[0].time or 0)


def test_a_click_at_the_tenth_scene_is_heard_within_a_frame(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "click.wav").write_bytes(click())
    made = planned(tmp_path, story(*[""] * 9, "audio: click.wav", "", "say: click.wav"))
    sound, begin = decoded(film(made, clip))
    loud = np.flatnonzero(np.abs(sound) > 0.3 * np.abs(sound).max())
    groups = np.split(loud, np.flatnonzero(np.diff(loud) > RATE // 4) + 1)
    found = [begin + group[0] / RATE for group in groups]
    wanted = [made.segments[index].start / FPS for index in (9, 11)]
    assert found == pytest.approx(wanted, abs=0.005)  # a frame takes 0.083


def measured(path: Path) -> dict[str, str]:
    """What loudnorm, which shares no code with ebur128, measures of a film."""
    filters = ["-map", "0:a", "-af", "loudnorm=print_format=json", "-f", "null", "-"]
    command = [ffmpeg.program(), "-hide_banner", "-nostats", "-i", str(path), *filters]
    words = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL).stderr.decode()
    found: dict[str, str] = json.loads(words[words.rindex("{") : words.rindex("}") + 1])
    return found


def noise(seconds: float, level: float, burst: bool = False) -> bytes:
    """Noise without the treble that AAC takes away."""
    random = np.convolve(
        np.random.default_rng(1).normal(0, 4 * level, round(seconds * RATE)), np.ones(16) / 16
    )
    if burst:  # peaks far above the loudness, as speech has them
        random *= 1 + 3 * (np.arange(len(random)) % (RATE // 4) < 2000)
    return wav(random)


@pytest.mark.parametrize("kind", ["soft", "loud", "peaks"])
def test_a_film_has_its_loudness_and_its_peaks_stay_below(kind: str, tmp_path: Path, clip: Path) -> None:
    level = {"soft": 0.002, "loud": 0.3, "peaks": 0.04}[kind]
    (tmp_path / "a.wav").write_bytes(noise(4, level, kind == "peaks"))
    found = measured(film(planned(tmp_path, story(*[""] * 8, head="audio: {file: a.wav, fade: 0.2}")), clip))
    assert float(found["input_i"]) == pytest.approx(mix.TARGET, abs=0.5)
    assert float(found["input_tp"]) <= -1.0


def test_peaks_are_pressed_down_so_far_and_no_farther(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "click.wav").write_bytes(click())
    found = measured(film(planned(tmp_path, story("audio: click.wav", "", "", "")), clip))
    assert float(found["input_i"]) < mix.TARGET - 3
    assert -6 < float(found["input_tp"]) <= -1.0


def test_players_find_one_whole_sound(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "a.wav").write_bytes(tone(0.3))
    scenes = [
        "say: {file: a.wav, text: 'Hello {b} there \\N.', start: 0.1}",
        "",
        "say: {file: a.wav, text: 猫}",
    ]
    head = "cast: {b: {name: <b>Bo</b>}}"
    made = planned(tmp_path, story(*[scene.replace("\\N", "x") for scene in scenes], head=head))
    path = film(made, clip)
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams if stream.type != "data"] == [
            *("video", "audio", "subtitle", "subtitle")
        ]
        (audio,) = container.streams.audio
        assert (audio.codec_context.name, audio.rate, audio.layout.name) == ("aac", RATE, "stereo")
        assert audio.start_time == 0
        assert audio.duration is not None
        assert audio.time_base is not None
        assert audio.duration * audio.time_base == 1.5 == made.seconds
        assert container.duration == 1_500_000
        off = [stream.disposition & av.stream.Disposition.default for stream in container.streams.subtitles]
        assert off == [0, 0]
        assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["a park"] * 3
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    sound = data.index(b"elst", data.index(b"elst") + 4)
    assert int.from_bytes(data[sound + 16 : sound + 20]) == 1024  # the encoder's delay is left out
    assert len(decoded(path)[0]) - round(1.5 * RATE) < 1024  # whole frames of AAC
    assert cues(path) == ["Hello <b>Bo</b> there x.", "猫"]
    assert reader.count_frames(path) == 18
    srt = [ffmpeg.program(), "-v", "error", "-i", str(path), "-map", "0:s:0", "-f", "srt", "-"]
    times = [
        line
        for line in subprocess.run(srt, capture_output=True, check=True).stdout.decode().splitlines()
        if " --> " in line
    ]
    assert times == ["00:00:00,100 --> 00:00:00,400", "00:00:01,000 --> 00:00:01,300"]
    prompts = [*srt[:6], "0:s:1", *srt[7:]]
    words = subprocess.run(prompts, capture_output=True, check=True).stdout.decode()
    assert words.count("a park\na fox sits") == 3


def test_the_same_sounds_give_the_same_bytes(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "a.wav").write_bytes(noise(3, 0.1, burst=True))
    convert(tmp_path / "a.wav", tmp_path / "a.mp3")
    made = planned(tmp_path, story("audio: a.wav", "", head="audio: a.mp3"))
    first = film(made, clip).read_bytes()
    assert film(made, clip).read_bytes() == first
    softer = planned(tmp_path, story("audio: {file: a.wav, volume: -20}", "", head="audio: a.mp3"))
    assert film(softer, clip).read_bytes() != first


def test_a_film_without_sound_is_joined_as_ever(tmp_path: Path, clip: Path) -> None:
    made = planned(tmp_path, story("", ""))
    writer.join([clip] * 2, tmp_path / "film.mp4", FPS, film_chapters(made), {"title": "a"})
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert not container.streams.audio
        assert len(container.streams.subtitles) == 1


def test_a_sound_that_is_too_short_is_noticed(tmp_path: Path, clip: Path) -> None:
    """As an ffmpeg leaves it that was ended early."""
    (tmp_path / "a.wav").write_bytes(tone(0.3))
    made = planned(tmp_path, story("audio: a.wav", "", "", ""))
    with mix.soundtrack(made, tmp_path) as sound:
        short = replace(sound, filters="atrim=end_sample=20000")
        with pytest.raises(StoryreelError, match="samples of sound, not 96000"):
            writer.join([clip] * 4, tmp_path / "film.mp4", FPS, film_chapters(made), {}, short)
