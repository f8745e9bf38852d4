"""How smooth a film is where its segments meet, and how much it moves elsewhere.

Everything rests on one number a frame, the step to the next one, so a film of any length is
measured in constant memory. A film that stands still is perfectly smooth: no measure of seams is
to be read without the motion beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import torch
from torch import Tensor

# Seconds around a seam that its transition can reach. Our dissolve spans at most this: a lead of 3
# latents is 7 frames, held 4 more, and 4 behind the seam, at 3 frames a latent and 12 a second.
BEFORE, AFTER = 11 / 12, 5 / 12


@dataclass(frozen=True)
class SeamSteps:
    """The seam before segment ``after``, in units of the median step inside segments.

    ``ratio`` is the step across the seam, ``largest`` the largest step of the transition around
    it. 1 is the inside of a segment for ``ratio``. The largest of some dozen steps lies above the
    median even where there is no seam: compare it between films. None where the film stands still.
    """

    after: int
    ratio: float | None
    largest: float | None


@dataclass(frozen=True)
class Smoothness:
    """``motion`` is the mean step inside segments, 0 to 255; None if segments are single frames."""

    motion: float | None
    seams: tuple[SeamSteps, ...]


def frame_steps(frames: Iterable[Tensor]) -> list[float]:
    """Return the mean absolute difference (0 to 255) of each frame and the next.

    ``frames`` are chunks uint8 (T, H, W, 3) of any lengths; N frames have N - 1 steps.
    """
    steps: list[float] = []
    last: Tensor | None = None
    for chunk in frames:
        run = chunk.to(torch.int16)
        if last is not None:
            run = torch.cat([last, run])
        steps += (run[1:] - run[:-1]).abs().float().mean((1, 2, 3)).tolist()
        last = run[-1:].clone()  # a view would keep the whole chunk
    return steps


def transition(starts: Sequence[int], frames: int, after: int, fps: float) -> tuple[int, int]:
    """Return the frames around the seam before segment ``after``: the first, and the one behind the last.

    ``starts`` are the segments' first frames, ``frames`` the film's, ``fps`` of them a second. It stays
    within both segments.
    """
    seam = starts[after]
    end = starts[after + 1] if after + 1 < len(starts) else frames
    return max(starts[after - 1], seam - round(BEFORE * fps)), min(end, seam + round(AFTER * fps))


def smoothness(steps: Sequence[float], starts: Sequence[int], seams: Sequence[int], fps: float) -> Smoothness:
    """Measure ``seams``, the segments (from 1) whose beginning is meant to be smooth.

    ``steps[i]`` leads from frame i to i + 1. Inside a segment is what no transition touches:
    a dissolve is no motion of anybody, and would make its own seam look small. Where segments are so
    short that this leaves nothing, inside is every step that crosses no seam.
    """
    frames = len(steps) + 1
    windows = {after: transition(starts, frames, after, fps) for after in seams}
    crossing = {start - 1 for start in starts[1:]}
    touched = {i for first, stop in windows.values() for i in range(first, stop - 1)}
    inside = [step for i, step in enumerate(steps) if i not in crossing | touched]
    inside = inside or [step for i, step in enumerate(steps) if i not in crossing]
    if not inside:
        return Smoothness(None, tuple(SeamSteps(after, None, None) for after in seams))
    usual = median(inside)

    def times(step: float) -> float | None:
        return step / usual if usual > 0 else None

    found = []
    for after, (first, stop) in windows.items():
        found.append(SeamSteps(after, times(steps[starts[after] - 1]), times(max(steps[first : stop - 1]))))
    return Smoothness(fmean(inside), tuple(found))
