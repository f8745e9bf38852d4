"""The time base on which films are looked at: their frames as a player shows them, at one rate for all.

Numbers from frame to frame (motion, seams, SSIM) mean something only beside others of the same rate. A film
is looked at as often as it has pictures of its own, by the times of its frames: one that says every frame
twice has no fewer steps than the film it was made from, and no smoother ones.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median

SLACK = 0.01  # of a rate's own: 23.976 is no 24, but containers round
LOWEST = 4.0  # looks a second that films of unlike rates are compared at, at least
UNEVEN = 0.1  # of the frames from one look to the next that may be too many or too few
# Where in its time a look falls: before the middle, which is where a frame begins at twice the rate.
PHASE = 0.45
REPEAT = 0.25  # of what changes around it: less may be a frame said again, as a codec leaves it
RESTS = 0.1  # of what moving frames change by: what a film's repeated frames change by at most
NEAR = 0.4  # seconds around a frame
FEW = 0.15  # share of repeated frames that nobody need be told of: 24 of 25, and what a take brings with it


def usual_rate(times: Sequence[float], said: float) -> float:
    """Return how many frames a second a film has, from their ``times`` in seconds.

    ``said`` is the film's own word, taken where the times agree with it as far as containers keep them.
    """
    gaps = [b - a for a, b in pairwise(times)]
    if not gaps or times[-1] <= times[0]:
        return said or 1.0
    mean = (times[-1] - times[0]) / len(gaps)
    steady = all(abs(time - times[0] - i * mean) <= mean / 2 for i, time in enumerate(times))
    found = 1 / (mean if steady else max(median(gaps), 1e-3))
    return said if abs(found - said) <= 2 * SLACK * said else found


def looks(times: Sequence[float], length: float, rate: float) -> list[int]:
    """Return which frame a player shows at each of ``rate`` moments a second, over ``length`` seconds.

    At its own rate a film of steady frames comes back frame by frame.
    """
    count = max(1, round(length * rate))
    shown = (bisect_right(times, (look + PHASE) / rate) - 1 for look in range(count))
    return [max(0, index) for index in shown]


def picture_rate(changes: Sequence[float], rate: float) -> float:
    """Return how many pictures a second a film of ``rate`` frames really has.

    ``changes`` are each frame's difference from the one before. Where many frames repeat the one before them,
    as in a film of 12 frames a second that was made one of 25, it is less than ``rate``. A film that only
    stands still now and then has its own rate.
    """
    reach, steps = max(1, round(NEAR * rate)), changes[1:]
    usual = []
    for index in range(len(steps)):
        around = sorted(steps[max(0, index - reach) : index + reach + 1])
        usual.append(around[-2] if len(around) > 1 else around[-1])  # the largest may be a cut
    limit = REPEAT
    for _ in range(2):
        moving = [step > limit * around for step, around in zip(steps, usual, strict=True)]
        moves = [step for step, moved in zip(steps, moving, strict=True) if moved]
        rests = [step for step, moved in zip(steps, moving, strict=True) if not moved]
        if not moves or not rests or median(rests) > RESTS * median(moves):
            return rate  # it only moves unevenly
        limit = min(REPEAT, math.sqrt(median(rests) / median(moves)))  # between the two kinds
    places = [index for index, moved in enumerate(moving) if moved]
    gaps = [b - a for a, b in pairwise(places) if b - a <= reach]
    if not gaps or fmean(gaps) * (1 - FEW) < 1:
        return rate
    found = rate / fmean(gaps)
    return float(round(found)) if abs(found - round(found)) < 3 * SLACK * found else found


def common_rate(rates: Sequence[float]) -> float | None:
    """Return the highest rate at which films of all ``rates`` can be looked at evenly, at most the lowest.

    Evenly: from one look to the next they go on by whole frames, all by nearly as many. None if films would
    have to be looked at so rarely that nothing of their motion is left.
    """
    lowest, parts = min(rates), 1
    while parts == 1 or lowest / parts >= LOWEST:
        common = lowest / parts
        if all(abs(rate / common - round(rate / common)) <= UNEVEN * rate / common for rate in rates):
            return common
        parts += 1
    return None
