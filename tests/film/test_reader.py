"""Films read back as frames, at the size they were made at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storyreel.errors import StoryreelError
from storyreel.film import ffmpeg, reader, writer
from tests.film.test_writer import FPS, HEIGHT, WIDTH

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
    with writer.SegmentWriter(path, WIDTH, HEIGHT, FPS, 4) as encoder:
        for index in range(10):
            encoder.write(picture(index).tobytes())
    return path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Every ffmpeg that is started."""
    processes: list[subprocess.Popen[bytes]] = []
    start = ffmpeg._start

    def remembered(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        processes.append(start(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(ffmpeg, "_start", remembered)
    return processes


def test_frames_come_back_as_they_were_written(film: Path) -> None:
    data = b"".join(reader.read_frames(film, WIDTH, HEIGHT))
    frames = np.frombuffer(data, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)
    assert len(frames) == 10
    for index, frame in enumerate(frames):
        for columns in (slice(2, 13), slice(19, 30)):  # away from the edge, where chroma is shared
            difference = frame[2:-2, columns].astype(int) - picture(index)[2:-2, columns]
            assert np.abs(difference).max() <= 4


def test_no_chunk_is_larger_than_it_may_be(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = WIDTH * HEIGHT * 3
    whole = b"".join(reader.read_frames(film, WIDTH, HEIGHT))
    for limit, sizes in ((3 * frame + 5, [3, 3, 3, 1]), (1, [1] * 10)):
        monkeypatch.setattr(reader, "READ_AT_ONCE", limit)
        chunks = list(reader.read_frames(film, WIDTH, HEIGHT))
        assert [len(chunk) for chunk in chunks] == [size * frame for size in sizes]
        assert b"".join(chunks) == whole


def test_ffmpeg_ends_when_the_reader_stops(
    film: Path, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[bytes]]
) -> None:
    monkeypatch.setattr(reader, "READ_AT_ONCE", 1)
    frames = reader.read_frames(film, 1024, 512)  # more than the pipe holds: it cannot have ended itself
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
        list(reader.read_frames(film, WIDTH, HEIGHT))
    assert started[0].returncode is not None


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for ffmpeg")
def test_half_a_frame_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "ffmpeg"
    script.write_text(f"#!/bin/sh\nhead -c {WIDTH * HEIGHT * 3 + 7} /dev/zero\n")
    script.chmod(0o755)
    monkeypatch.setattr(ffmpeg, "program", lambda: str(script))
    with pytest.raises(StoryreelError, match="inside a frame"):
        list(reader.read_frames(tmp_path / "any.mp4", WIDTH, HEIGHT))


def test_a_film_says_what_it_is(film: Path) -> None:
    facts = reader.probe(film)
    assert (facts.width, facts.height, facts.fps) == (4 * WIDTH, 4 * HEIGHT, FPS)
    assert (facts.chapters, "title" in facts.tags) == ((), False)
    assert reader.count_frames(film) == 10


@pytest.mark.parametrize("name", ["matroska", "webm", "avi", "mov"])
def test_other_containers_are_read_too(film: Path, tmp_path: Path, name: str) -> None:
    codec = ["-c:v", "libvpx"] if name == "webm" else ["-c", "copy"]
    other = tmp_path / f"other.{name}"
    subprocess.run(
        [ffmpeg.program(), "-v", "error", "-i", str(film), *codec, "-f", name, str(other)], check=True
    )
    assert reader.probe(other).fps == FPS
    assert sum(map(len, reader.read_frames(other, WIDTH, HEIGHT))) == 10 * WIDTH * HEIGHT * 3


def made(film: Path, name: str, *options: str, before: tuple[str, ...] = ()) -> Path:
    """Make another film of one with ffmpeg."""
    other = film.with_name(name)
    command = [ffmpeg.program(), "-v", "error", *before, "-i", str(film), *options, str(other)]
    subprocess.run(command, check=True)
    return other


def mean_frames(path: Path, width: int, height: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    data = b"".join(reader.read_frames(path, width, height, "auto", reader.probe(path).hdr))
    return np.frombuffer(data, np.uint8).reshape(-1, height, width, 3).astype(float)


def test_when_frames_are_shown(film: Path) -> None:
    frames = reader.survey(film)
    assert frames.times == pytest.approx([i / FPS for i in range(10)], abs=1e-6)
    assert frames.changes[0] == 0
    assert min(frames.changes[1:]) > 5
    few = made(film, "few.mp4", "-vf", "select='not(between(n,3,5))'", "-fps_mode", "vfr")
    assert reader.survey(few).times == pytest.approx([i / FPS for i in (0, 1, 2, 6, 7, 8, 9)], abs=1e-3)
    twice = made(film, "twice.mp4", "-r", str(2 * FPS))
    changes = reader.survey(twice).changes
    assert len(changes) == 20
    assert max(changes[2::2]) > 5 > 10 * max(changes[1::2]) or max(changes[1::2]) > 5 > 10 * max(
        changes[2::2]
    )


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for ffmpeg")
def test_times_never_fall_and_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "ffmpeg"
    monkeypatch.setattr(ffmpeg, "program", lambda: str(script))

    def says(*times: str) -> None:
        lines = "".join(f"frame:{i} pts:{t} pts_time:?\\nlavfi.scd.mafd=2.0\\n" for i, t in enumerate(times))
        script.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
        script.chmod(0o755)

    says("0", "200000", "100000", "-5", "300000")
    assert reader.survey(tmp_path / "any.avi").times == (0, 0.2, 0.2, 0.2, 0.3)
    says("0", "NOPTS")
    with pytest.raises(StoryreelError, match="its frames have no times"):
        reader.survey(tmp_path / "any.avi")


@pytest.mark.parametrize("name", ["matroska", "webm", "mp4"])
def test_a_format_without_a_length(film: Path, tmp_path: Path, name: str) -> None:
    """As they come out of a pipe or a browser."""
    codec = ["-c:v", "libvpx"] if name == "webm" else ["-c", "copy"]
    flags = ["-movflags", "empty_moov+frag_keyframe"] if name == "mp4" else []
    command = [ffmpeg.program(), "-v", "error", "-i", str(film), *codec, *flags, "-f", name, "-"]
    piped = tmp_path / f"piped.{name}"
    piped.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    assert reader.probe(piped).fps == FPS
    assert reader.survey(piped).times == pytest.approx([i / FPS for i in range(10)], abs=1e-3)


def test_a_films_cover_is_not_the_film(film: Path) -> None:
    cover = made(film, "cover.png", "-vf", "negate,scale=64:64", "-frames:v", "1")
    for name in ("with.mp4", "with.mkv"):
        if name.endswith("mkv"):
            maps = ["-map", "0", "-c", "copy", "-attach", str(cover), "-metadata:s:t", "mimetype=image/png"]
        else:
            maps = [
                "-i",
                str(cover),
                "-map",
                "1",
                "-map",
                "0",
                "-c",
                "copy",
                "-disposition:v:0",
                "attached_pic",
            ]
        other = made(film, name, *maps)
        facts = reader.probe(other)
        assert (facts.width, facts.height, facts.fps) == (4 * WIDTH, 4 * HEIGHT, FPS)
        assert len(reader.survey(other).times) == reader.count_frames(other) == 10
        assert np.array_equal(mean_frames(other, WIDTH, HEIGHT), mean_frames(film, WIDTH, HEIGHT))


def test_pictures_are_seen_as_a_player_shows_them(film: Path) -> None:
    """In square pixels, and upright."""
    wide = made(film, "wide.mp4", "-vf", f"scale={2 * WIDTH}:{4 * HEIGHT},setsar=2/1")
    assert (reader.probe(wide).width, reader.probe(wide).height) == (4 * WIDTH, 4 * HEIGHT)
    turned = made(film, "turned.mp4", "-c", "copy", before=("-display_rotation", "90"))
    assert (reader.probe(turned).width, reader.probe(turned).height) == (4 * HEIGHT, 4 * WIDTH)
    upright = np.rot90(mean_frames(film, WIDTH, HEIGHT), 1, (1, 2))
    assert np.abs(mean_frames(turned, HEIGHT, WIDTH) - upright).mean() < 2


@pytest.mark.parametrize(("transfer", "hdr"), reader.HDR.items())
def test_hdr_is_brought_to_what_other_films_have(film: Path, transfer: str, hdr: str) -> None:
    coded = f"zscale=transfer={transfer}:primaries=bt2020:matrix=bt2020nc:range=tv:npl=100,format=yuv420p10le"
    other = made(film, f"{hdr}.mp4", "-vf", coded, "-c:v", "libx264", "-crf", "10")
    assert reader.probe(other).hdr == hdr
    assert reader.probe(film).hdr == ""
    true = mean_frames(film, WIDTH, HEIGHT)
    raw = b"".join(reader.read_frames(other, WIDTH, HEIGHT, "auto"))
    unmapped = np.frombuffer(raw, np.uint8).reshape(true.shape).astype(float)
    # Colours above half of the range are pressed together a little, so that brighter ones have room.
    assert np.abs(mean_frames(other, WIDTH, HEIGHT) - true).mean() < 15
    assert np.abs(unmapped - true).mean() > 2 * np.abs(mean_frames(other, WIDTH, HEIGHT) - true).mean()


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for ffmpeg")
def test_an_ffmpeg_that_cannot_map_hdr_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\necho \"No such filter: 'zscale'\" >&2\nexit 8\n")
    script.chmod(0o755)
    monkeypatch.setattr(ffmpeg, "program", lambda: str(script))
    with pytest.raises(StoryreelError, match=r"is HDR \(PQ\), which this ffmpeg cannot map") as caught:
        list(reader.read_frames(tmp_path / "any.mp4", WIDTH, HEIGHT, "auto", "PQ"))
    assert "zscale" in caught.value.remedy


def test_what_has_no_picture_is_no_film(tmp_path: Path, film: Path) -> None:
    silence, listed = tmp_path / "silence.mp4", tmp_path / "list.mp4"
    source = ["-f", "lavfi", "-i", "anullsrc", "-t", "1"]
    subprocess.run([ffmpeg.program(), "-v", "error", *source, str(silence)], check=True)
    listed.write_text(f"ffconcat version 1.0\nfile '{film}'\n")  # which would lead to other files
    for path in (silence, listed, tmp_path, tmp_path / "nothing.mp4"):
        with pytest.raises(StoryreelError, match="not a film"):
            reader.probe(path)
        with pytest.raises(StoryreelError, match="cannot read"):
            reader.count_frames(path)
        with pytest.raises(StoryreelError, match="cannot read"):
            reader.survey(path)
