"""Films read back as frames, at the size they were made at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storyreel import video
from storyreel.errors import StoryreelError
from tests.test_video import FPS, HEIGHT, WIDTH

COLOURS = [(200, 40, 40), (40, 160, 60), (50, 60, 210), (230, 230, 230)]


def picture(index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Two halves of different colours, so that neither order nor place can be mixed up."""
    frame = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    frame[:, : WIDTH // 2] = COLOURS[index % 4]
    frame[:, WIDTH // 2 :] = COLOURS[(index + 1) % 4]
    return frame


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    with video.SegmentWriter(path, WIDTH, HEIGHT, FPS, 4) as writer:
        for index in range(10):
            writer.write(picture(index).tobytes())
    return path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Every ffmpeg that is started."""
    processes: list[subprocess.Popen[bytes]] = []
    start = video._start

    def remembered(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        processes.append(start(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(video, "_start", remembered)
    return processes


def test_frames_come_back_as_they_were_written(film: Path) -> None:
    data = b"".join(video.read_frames(film, WIDTH, HEIGHT))
    frames = np.frombuffer(data, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)
    assert len(frames) == 10
    for index, frame in enumerate(frames):
        for columns in (slice(2, 13), slice(19, 30)):  # away from the edge, where chroma is shared
            difference = frame[2:-2, columns].astype(int) - picture(index)[2:-2, columns]
            assert np.abs(difference).max() <= 4


def test_no_chunk_is_larger_than_it_may_be(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = WIDTH * HEIGHT * 3
    whole = b"".join(video.read_frames(film, WIDTH, HEIGHT))
    for limit, sizes in ((3 * frame + 5, [3, 3, 3, 1]), (1, [1] * 10)):
        monkeypatch.setattr(video, "READ_AT_ONCE", limit)
        chunks = list(video.read_frames(film, WIDTH, HEIGHT))
        assert [len(chunk) for chunk in chunks] == [size * frame for size in sizes]
        assert b"".join(chunks) == whole


def test_ffmpeg_ends_when_the_reader_stops(
    film: Path, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[bytes]]
) -> None:
    monkeypatch.setattr(video, "READ_AT_ONCE", 1)
    frames = video.read_frames(film, 1024, 512)  # more than the pipe holds: it cannot have ended itself
    next(iter(frames))
    assert started[0].poll() is None
    frames.close()  # type: ignore[attr-defined]
    assert started[0].returncode is not None


@pytest.mark.parametrize("damage", ["noise", "cut", "missing"])
def test_what_is_no_whole_film_is_one_clear_error(
    film: Path, damage: str, started: list[subprocess.Popen[bytes]]
) -> None:
    if damage == "noise":
        film.write_bytes(os.urandom(999))
    elif damage == "cut":
        film.write_bytes(film.read_bytes()[:-300])
    else:
        film.unlink()
    with pytest.raises(StoryreelError, match="cannot read the film"):
        list(video.read_frames(film, WIDTH, HEIGHT))
    assert started[0].returncode is not None


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for ffmpeg")
def test_half_a_frame_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "ffmpeg"
    script.write_text(f"#!/bin/sh\nhead -c {WIDTH * HEIGHT * 3 + 7} /dev/zero\n")
    script.chmod(0o755)
    monkeypatch.setattr(video, "ffmpeg", lambda: str(script))
    with pytest.raises(StoryreelError, match="inside a frame"):
        list(video.read_frames(tmp_path / "any.mp4", WIDTH, HEIGHT))


def test_a_film_says_what_it_is(film: Path) -> None:
    facts = video.probe(film)
    assert (facts.width, facts.height, facts.fps) == (4 * WIDTH, 4 * HEIGHT, FPS)
    assert (facts.chapters, "title" in facts.tags) == ((), False)
    assert video.count_frames(film) == 10


@pytest.mark.parametrize("name", ["matroska", "webm", "avi", "mov"])
def test_other_containers_are_read_too(film: Path, tmp_path: Path, name: str) -> None:
    codec = ["-c:v", "libvpx"] if name == "webm" else ["-c", "copy"]
    other = tmp_path / f"other.{name}"
    subprocess.run(
        [video.ffmpeg(), "-v", "error", "-i", str(film), *codec, "-f", name, str(other)], check=True
    )
    assert video.probe(other).fps == FPS
    assert sum(map(len, video.read_frames(other, WIDTH, HEIGHT))) == 10 * WIDTH * HEIGHT * 3


def test_what_has_no_picture_is_no_film(tmp_path: Path, film: Path) -> None:
    silence, listed = tmp_path / "silence.mp4", tmp_path / "list.mp4"
    source = ["-f", "lavfi", "-i", "anullsrc", "-t", "1"]
    subprocess.run([video.ffmpeg(), "-v", "error", *source, str(silence)], check=True)
    listed.write_text(f"ffconcat version 1.0\nfile '{film}'\n")  # which would lead to other files
    for path in (silence, listed, tmp_path, tmp_path / "nothing.mp4"):
        with pytest.raises(StoryreelError, match="not a film"):
            video.probe(path)
        with pytest.raises(StoryreelError, match="cannot read"):
            video.count_frames(path)
