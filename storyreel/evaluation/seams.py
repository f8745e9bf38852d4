"""How smooth a film is where its scenes meet, and how much it moves elsewhere.

Everything rests on one number a frame, the step to the next one, so a film of any length is
measured in constant memory. A film that stands still is perfectly smooth: no measure of seams is
to be read without the motion beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor

# Seconds around a seam that its transition can reach. Our dissolve spans at most this: a lead of 3
# latents is 7 frames, held 4 more, and 4 behind the seam, at 3 frames a latent and 12 a second.
BEFORE, AFTER = 11 / 12, 5 / 12
FROZEN = 0.1  # of 255: less than this from one frame to the next is no movement; codecs leave none


@dataclass(frozen=True)
class SeamSteps:
    """A border between scenes, in units of the film's usual step.

    ``ratio`` is the step across it, ``largest`` the largest step of the transition around it. 1 is the
    inside of a scene for ``ratio``. The largest of some dozen steps lies above the median even where there
    is no seam: compare it between films. None where the film stands still.
    """

    ratio: float | None
    largest: float | None


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
    within both segments, and has a frame of each, however few a second has.
    """
    seam = starts[after]
    end = starts[after + 1] if after + 1 < len(starts) else frames
    before, behind = (max(1, round(seconds * fps)) for seconds in (BEFORE, AFTER))
    return max(starts[after - 1], seam - before), min(end, seam + behind)


def quiet_parts(starts: Sequence[int], frames: int, fps: float) -> list[tuple[int, int]]:
    """Return each scene's frames that no transition reaches; where none are left, all of them.

    A dissolve is no motion of anybody, and would make its own seam look small. Hard borders are treated
    alike, so that the same frames count whatever was done there.
    """
    around = [transition(starts, frames, after, fps) for after in range(1, len(starts))]
    found = []
    for index, (start, stop) in enumerate(pairwise([*starts, frames])):
        first = around[index - 1][1] if index else start
        last = around[index][0] if index < len(around) else stop
        found.append((first, last) if last - first > 1 else (start, stop))
    return found


def usual_step(steps: Sequence[float], parts: Sequence[tuple[int, int]]) -> float | None:
    """Return the median of the steps inside ``parts`` that move; None if none does.

    ``steps[i]`` leads from frame i to i + 1.
    """
    moving = [step for start, stop in parts for step in steps[start : stop - 1] if step >= FROZEN]
    return median(moving) if moving else None


def seam_steps(steps: Sequence[float], starts: Sequence[int], fps: float) -> list[SeamSteps]:
    """Measure every border between scenes, in their order; ``starts`` are the scenes' first frames."""
    frames = len(steps) + 1
    usual = usual_step(steps, quiet_parts(starts, frames, fps))
    if usual is None:
        return [SeamSteps(None, None)] * (len(starts) - 1)
    found = []
    for after in range(1, len(starts)):
        first, stop = transition(starts, frames, after, fps)
        found.append(SeamSteps(steps[starts[after] - 1] / usual, max(steps[first : stop - 1]) / usual))
    return found
