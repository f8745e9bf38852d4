"""The boxes of an MP4 (ISO/IEC 14496-12): its length is checked, and subtitles are written into it."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

from storyreel.errors import StoryreelError
from storyreel.film.ffmpeg import RUN_AGAIN

LINE = 1000  # bytes: ffmpeg breaks longer lines of SubRip itself, in the middle of a character too


def check_length(path: Path, frames: int, fps: int) -> None:
    """Compare an MP4's number of frames and its seconds with what they should be. Raises StoryreelError.

    An ffmpeg that was ended early leaves a valid, shorter film. Behind version and flags (4 bytes) and two
    times, mdhd has the time scale and the duration; behind version, flags and a size, stsz has the number
    of samples.
    """
    found: list[tuple[int, float]] = []
    with suppress(ValueError, struct.error), _mapped(path, mmap.ACCESS_READ) as data:
        for track in _tracks(data, b"vide"):
            ((mdhd, _),) = _boxes(data, track, b"mdia", b"mdhd")
            ((stsz, _),) = _boxes(data, track, b"mdia", b"minf", b"stbl", b"stsz")
            form, at = (">IQ", 20) if data[mdhd] else (">II", 12)
            scale, duration = struct.unpack_from(form, data, mdhd + at)
            found.append((*struct.unpack_from(">I", data, stsz + 8), duration / scale))
    if found != [(frames, frames / fps)]:
        words = f"{path.name} has {found} frames and seconds, not {(frames, frames / fps)}"
        raise StoryreelError(f"ffmpeg failed: {words}", RUN_AGAIN)


def check_sound(path: Path, samples: int) -> None:
    """Compare the length of an MP4's sound, whole frames of 1024, with its samples. Raises StoryreelError."""
    found: list[int] = []
    with suppress(ValueError, struct.error), _mapped(path, mmap.ACCESS_READ) as data:
        for track in _tracks(data, b"soun"):
            ((mdhd, _),) = _boxes(data, track, b"mdia", b"mdhd")
            found.append(
                struct.unpack_from(">Q", data, mdhd + 24)[0]
                if data[mdhd]
                else struct.unpack_from(">I", data, mdhd + 16)[0]
            )
    if len(found) != 1 or not samples <= found[0] < samples + 3 * 1024:
        words = f"{path.name} has {found} samples of sound, not {samples}"
        raise StoryreelError(f"ffmpeg failed: {words}", RUN_AGAIN)


def blank(text: bytes) -> bytes:
    """Return meaningless lines of as many bytes altogether as a text has."""
    return b"".join(b"\n" if n % LINE == 0 and n < len(text) else b"x" for n in range(1, len(text) + 1))


def write_subtitles(path: Path, tracks: Sequence[Sequence[bytes]]) -> None:
    """Replace the `blank` text of every subtitle by the real one, track by track, and disable the tracks.

    ffmpeg's muxer enables the first track of a kind. tkhd starts with version (1 byte) and flags (3 bytes),
    of which bit 0 is track_enabled. 3GPP TS 26.245: a sample is the text's length (2 bytes) and the text;
    an empty one fills a gap. Raises StoryreelError if the film has other subtitles.
    """
    with _mapped(path, mmap.ACCESS_WRITE) as data:
        there = list(_tracks(data, b"sbtl"))
        if len(there) != len(tracks):
            raise StoryreelError(f"ffmpeg failed: {path.name} lacks subtitles", RUN_AGAIN)
        for track, texts in zip(there, tracks, strict=True):
            _disable(data, track)
            waiting = iter(texts)
            for at, size in _samples(data, track):
                (length,) = struct.unpack_from(">H", data, at)
                if length:
                    text = next(waiting, b"")
                    if data[at + 2 : at + size] != blank(text):
                        raise StoryreelError(f"ffmpeg failed: {path.name} has other subtitles", RUN_AGAIN)
                    data[at + 2 : at + size] = text
            if next(waiting, None) is not None:
                raise StoryreelError(f"ffmpeg failed: {path.name} lacks subtitles", RUN_AGAIN)


def disable_subtitles(path: Path) -> None:
    """Disable a film's subtitle track, which is there and is not shown until somebody asks for it."""
    with _mapped(path, mmap.ACCESS_WRITE) as data:
        for track in _tracks(data, b"sbtl"):
            _disable(data, track)


def _disable(data: mmap.mmap, track: tuple[int, int]) -> None:
    for tkhd, _ in _boxes(data, track, b"tkhd"):
        data[tkhd + 3] &= 0xFE


def _samples(data: mmap.mmap, track: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield where a track's samples begin, and their sizes.

    stsc says how many samples the chunks from a number on hold, stco or co64 where the chunks begin, stsz
    how large all samples are, or each. Entries follow version, flags and a count.
    """
    tables = (b"mdia", b"minf", b"stbl")

    def table(name: bytes, form: str) -> list[tuple[int, ...]]:
        for start, _ in _boxes(data, track, *tables, name):
            (count,) = struct.unpack_from(">I", data, start + 4)
            size = struct.calcsize(form)
            return [struct.unpack_from(form, data, start + 8 + size * i) for i in range(count)]
        return []

    ((stsz, _),) = _boxes(data, track, *tables, b"stsz")
    same, count = struct.unpack_from(">II", data, stsz + 4)
    sizes = [same] * count if same else list(struct.unpack_from(f">{count}I", data, stsz + 12))
    runs = table(b"stsc", ">III")
    chunks = table(b"stco", ">I") or table(b"co64", ">Q")
    for (first, held, _), (following, *_) in pairwise([*runs, (len(chunks) + 1,)]):
        for (at,) in chunks[first - 1 : following - 1]:
            for _ in range(held):
                yield at, (size := sizes.pop(0))
                at += size


@contextmanager
def _mapped(path: Path, access: int) -> Iterator[mmap.mmap]:
    mode = "rb+" if access == mmap.ACCESS_WRITE else "rb"
    with path.open(mode) as file, mmap.mmap(file.fileno(), 0, access=access) as data:
        yield data


def _tracks(data: mmap.mmap, kind: bytes) -> Iterator[tuple[int, int]]:
    """Yield the boxes of an MP4's tracks of one kind, which hdlr names behind 8 bytes."""
    for track in _boxes(data, (0, len(data)), b"moov", b"trak"):
        if any(data[h + 8 : h + 12] == kind for h, _ in _boxes(data, track, b"mdia", b"hdlr")):
            yield track


def _boxes(data: mmap.mmap, within: tuple[int, int], *names: bytes) -> Iterator[tuple[int, int]]:
    """Yield where the contents of boxes begin and end, by their names from the outermost in."""
    if not names:
        yield within
        return
    start, end = within
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1:
            (size,), header = struct.unpack_from(">Q", data, start + 8), 16
        if name == names[0]:
            yield from _boxes(data, (start + header, start + size), *names[1:])
        start += max(size, 8)
