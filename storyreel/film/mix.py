"""Mixes a film's sounds: a few seconds at a time, so that memory does not grow with the film.

What is heard is added up in fp32 by the plan in `sound.py`; ffmpeg decodes every sound, and measures and
levels the sum. A changed line here joins films with sound again, and renders nothing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from storyreel.errors import StoryreelError
from storyreel.files import matches
from storyreel.film import audio, ffmpeg
from storyreel.film.dissolve import GREY, begins_with, reach
from storyreel.film.sound import LEVELS, OWN_PEAK, RATE, Placed, captions, ducking, placed, samples
from storyreel.film.writer import Audio, Cue
from storyreel.story.plan import Plan, Segment

TARGET = -16.0  # LUFS of the whole film: what players on the web and podcasts are levelled to
# dBTP before AAC, which adds up to half a decibel: so that what is decoded stays below -1.
CEILING = -2.0
MOST_LIMITED = 6.0  # dB that peaks are pressed down at most; where that is not enough, the film is softer
NEAR = 0.1  # LU
CLICK = 0.005  # seconds in which a segment's own sound comes after a cut and goes before one
JOIN = 0.01  # seconds on either side of a seam in which it gives way to the next, where the shot goes on
BLOCK = 10 * RATE  # samples that are mixed at a time
_BYTES = 8  # of a sample in two channels
Samples = NDArray[np.float32]


class _Reader:
    """A file's samples, fp32 (n, 2), one after the other; behind its end zeros, or all of it again."""

    def __init__(self, path: Path, skip: float, loop: bool) -> None:
        self._path, self._skip, self._loop, self._stack = path, skip, loop, ExitStack()

    def __enter__(self) -> Self:
        self._begin(self._skip)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _begin(self, skip: float) -> None:
        self._stack.close()
        filters = audio.STEREO + (f",atrim=start_sample={round(skip * RATE)}" if skip else "")
        arguments = [*audio.of_file(self._path), "-map", "0:a:0", "-af", filters, "-f", "f32le", "pipe:1"]
        self._errors = self._stack.enter_context(ffmpeg.temporary_file())
        self._process = self._stack.enter_context(
            ffmpeg.running(arguments, self._errors, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        )

    def read(self, count: int) -> Samples:
        """Return the next samples. Raises StoryreelError if ffmpeg fails."""
        found = b""
        while len(found) < count * _BYTES:
            assert self._process.stdout is not None
            more = self._process.stdout.read(count * _BYTES - len(found))
            found += more
            if not more:
                if code := self._process.wait():
                    raise ffmpeg.failure(code, self._errors)
                if not self._loop:
                    break
                self._begin(0.0)
        sound = np.zeros((count, 2), np.float32)
        sound.reshape(-1)[: len(found) // 4] = np.frombuffer(found, np.float32)
        return sound


@dataclass
class _Track:
    """A sound that is being mixed."""

    part: Placed
    reader: _Reader
    stack: ExitStack


class Edge(NamedTuple):
    """Where a segment's own sound comes or goes.

    Over ``inside`` samples of it and ``outside`` ones beyond its end, where it goes back as it came.
    ``meets`` says whether that of another segment goes as this one comes: together they stay as loud.
    """

    inside: int
    outside: int
    meets: bool

    def ramp(self) -> Samples:
        """Return the weights with which the sound comes, from 0 to 1; it goes by the same ones backwards."""
        count = self.inside + self.outside
        rising = (np.arange(count) + 0.5) / count
        return (np.sin(rising * (np.pi / 2)) if self.meets else rising).astype(np.float32)


def edges(plan: Plan, segment: Segment) -> tuple[Edge, Edge]:
    """Return how the own sound of the segment before one goes, and how its own comes, as the pictures do."""
    transition, seam, fps = begins_with(plan, segment), plan.seam(segment), plan.spec.fps
    earlier = plan.segments[segment.index - 1].frames if seam else 0
    strength, blending = (seam.strength if seam else 0.0), plan.settings.method.blending
    shown = reach(transition, strength, blending, fps, earlier, segment.frames)
    before, behind = (round(frames * RATE / fps) for frames in shown)
    if transition in GREY:
        return Edge(before, 0, False), Edge(behind, 0, False)
    alone = round(CLICK * RATE)
    if seam is None or plan.has_card_before(segment) or not (before or seam.overlap):
        return Edge(alone, 0, False), Edge(alone, 0, False)
    if not before:  # the shot goes on
        before = behind = round(JOIN * RATE)
    return Edge(before, behind, True), Edge(behind, before, True)


@contextmanager
def own_track(plan: Plan, videos: Sequence[Path], path: Path) -> Iterator[Samples]:
    """Give what the model has made for all of a film, fp32 (n, 2), from the segments' ``videos``.

    It lies in a file, which goes afterwards. Raises StoryreelError, and OSError if it cannot be written.
    """
    try:
        track = np.memmap(path, np.float32, "w+", shape=(samples(plan), 2))
        seams = [edges(plan, segment) for segment in plan.segments]
        end_of_film = Edge(round(CLICK * RATE), 0, False)
        for segment, video, (_, come), (go, _) in zip(
            plan.segments, videos, seams, [*seams[1:], (end_of_film, end_of_film)], strict=True
        ):
            first, end = (samples(plan, segment.start + n) for n in (0, segment.frames))
            with _Reader(video, 0.0, False) as reader:
                own = reader.read(end - first)
            own = np.pad(own, ((come.outside, go.outside), (0, 0)), "symmetric")
            for edge, there in ((come, own), (go, own[::-1])):
                if width := edge.inside + edge.outside:
                    there[:width] *= edge.ramp()[: len(there), None]
            track[first - come.outside : end + go.outside] += own
        yield track
    finally:
        path.unlink(missing_ok=True)


def mixed(plan: Plan, folder: Path, own: Samples | None = None, gain: float = 0.0) -> Iterator[Samples]:
    """Yield all samples of a film, fp32 (n, 2), some seconds at a time.

    ``own`` is what the model has made of it, with a ``gain`` in dB; it goes down where somebody speaks.
    ``folder`` holds what the voice has said. Raises StoryreelError for a file that is no longer what it was.
    """
    whole, sounds = samples(plan), sorted(placed(plan), key=lambda part: part.begin)
    course, waiting = ducking(sounds), list(sounds)
    playing: list[_Track] = []
    with ExitStack() as all_of_them:
        for at in range(0, whole, BLOCK):
            block = np.zeros((min(BLOCK, whole - at), 2), np.float32)
            if own is not None:
                ducked = gain + np.interp(np.arange(at, at + len(block)), *course)
                block += own[at : at + len(block)] * (10 ** (ducked / 20)).astype(np.float32)[:, None]
            while waiting and waiting[0].begin < at + len(block):
                playing.append(_begun(waiting.pop(0), folder, all_of_them))
            for track in playing:
                _add(block, at, track, course)
            for track in [track for track in playing if track.part.end <= at + len(block)]:
                track.stack.close()
                playing.remove(track)
            yield block


def _begun(part: Placed, folder: Path, all_of_them: ExitStack) -> _Track:
    sound = part.sound
    path = sound.path or folder / sound.file
    if not matches(path, sound.sha256):
        words = f"{sound.file} is no longer the file that it was when the film was planned"
        raise StoryreelError(words, ffmpeg.RUN_AGAIN)
    stack = all_of_them.enter_context(ExitStack())
    return _Track(part, stack.enter_context(_Reader(path, sound.skip, sound.loop)), stack)


def _add(block: Samples, at: int, track: _Track, course: tuple[list[float], list[float]]) -> None:
    """Add what of a sound is heard in a block, which begins at a sample of the film."""
    part = track.part
    first, last = max(part.begin, at), min(part.end, at + len(block))
    if first >= last:
        return
    own = np.arange(first, last, dtype=np.float64)
    gain = np.full(last - first, part.gain)
    if part.sound.kind == "music":
        gain += np.interp(own, *course)
    factor = 10 ** (gain / 20)
    if part.fade_in:
        factor *= np.clip((own - part.begin) / part.fade_in, 0, 1)
    if part.fade_out:
        factor *= np.clip((part.end - own) / part.fade_out, 0, 1)
    block[first - at : last - at] += track.reader.read(last - first) * factor[:, None].astype(np.float32)


@contextmanager
def soundtrack(plan: Plan, folder: Path, videos: Sequence[Path] = ()) -> Iterator[Audio]:
    """Mix a film's sound into a file of its ``folder`` and yield it for the joining.

    ``videos`` are those of its segments, if the model has made sound with them.
    The file goes afterwards. Raises StoryreelError, and OSError if it cannot be written.
    """
    path = folder / ".mix.part.f32"
    try:
        with ExitStack() as stack:
            own, gain = None, 0.0
            if videos:
                raw = folder / ".own.part.f32"
                own = stack.enter_context(own_track(plan, videos, raw))
                found = audio.measure(audio.of_mix(raw))
                if found.loudness is not None:
                    gain = min(LEVELS["scene"] - found.loudness, OWN_PEAK - found.peak)
            with path.open("wb") as file:
                for block in mixed(plan, folder, own, gain):
                    file.write(block.tobytes())
        cues = [Cue(caption.start, caption.end, caption.text) for caption in captions(plan)]
        yield Audio(audio.of_mix(path), levelling(path, samples(plan)), samples(plan), cues)
    finally:
        path.unlink(missing_ok=True)


def levelling(path: Path, whole: int) -> str:
    """Return the filters that bring a mix of so many samples to its loudness, measured and measured again."""
    plain = audio.measure(audio.of_mix(path))
    if plain.loudness is None:  # nothing, or next to nothing
        return "anull"
    most = CEILING - plain.peak + MOST_LIMITED
    gain = min(TARGET - plain.loudness, most)
    for _ in range(2):  # pressed peaks take some loudness away
        filters = _filters(gain, plain.peak, whole)
        reached = audio.measure(audio.of_mix(path), filters).loudness
        if gain == most or reached is None or abs(TARGET - reached) <= NEAR:
            break
        gain = min(gain + TARGET - reached, most)
    return _filters(gain, plain.peak, whole)


def _filters(gain: float, peak: float, whole: int) -> str:
    """Return a gain in dB and, if the peak needs one, a limiter that sees what is between the samples."""
    volume = f"volume={gain:.2f}dB"
    if peak + gain <= CEILING:
        return volume
    limit = f"alimiter=level=disabled:limit={10 ** (CEILING / 20):.4f}:attack=2:release=60:latency=1"
    return f"{volume},aresample={4 * RATE},{limit},aresample={RATE},apad,atrim=end_sample={whole}"
