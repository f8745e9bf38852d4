"""Where somebody is in the pictures: how they go on from look to look, and whether they are there twice.

From maps that say of every cell of a picture, (T, h, w), with what probability it shows them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SEEN = 0.25  # from here on a cell shows somebody, as half of a double exposure does
FAINT = 0.1  # of a cell: less is no trace of anybody
LEAST = 1.0  # cells of somebody who can be seen
COMPARABLE = 0.4  # of the larger: a smaller part is no second one of the same
STILL = 0.005  # of the picture's width: less is no movement, but how a map trembles
USUAL = 0.9  # quantile of the steps inside scenes: what is usual


def centres(cells: Tensor) -> Tensor:
    """Return the middle (T, 2) of somebody in every picture, across and down in widths of the picture.

    NaN where they cannot be seen.
    """
    _, height, width = cells.shape
    sure = (cells - FAINT).clamp(min=0)  # not cut off at some share, or the middle would go on in leaps
    mass = sure.sum((1, 2))
    across, down = (torch.arange(side) + 0.5 for side in (width, height))
    middle = torch.stack([(sure.sum(1) * across).sum(1), (sure.sum(2) * down).sum(1)], 1)
    middle = middle / mass[:, None] / width
    middle[mass < LEAST] = torch.nan
    return middle


def steps(track: Tensor) -> Tensor:
    """Return how far it is from each look to the next (T - 1,), from the middles (T, 2)."""
    return (track[1:] - track[:-1]).square().sum(1).sqrt()


def turns(track: Tensor) -> Tensor:
    """Return how much the motion before a step differs from that behind it, (T - 3,), from the second on."""
    motion = track[1:] - track[:-1]
    return (motion[2:] - motion[:-2]).square().sum(1).sqrt()


def usual(values: Sequence[Tensor]) -> float | None:
    """Return the 90th percentile of all values that are known; None if none is."""
    known = torch.cat([value[~value.isnan()] for value in values]) if values else torch.empty(0)
    return max(STILL, float(known.quantile(USUAL))) if len(known) else None


def across(values: Tensor, at: int) -> float | None:
    """Return the value at a position; None where there is none, or it is not known."""
    return float(values[at]) if 0 <= at < len(values) and not values[at].isnan() else None


def is_there_twice(cells: Tensor) -> bool:
    """Tell whether one picture (h, w) shows somebody at two separate places.

    That is in two parts of which the smaller has at least `COMPARABLE` of the larger's mass, further apart
    than the larger is wide.
    """
    left = {(int(y), int(x)) for y, x in (cells > SEEN).nonzero()}
    parts = []
    while left:
        waiting, part = [left.pop()], []
        while waiting:
            y, x = waiting.pop()
            part.append((y, x))
            beside = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= beside
            waiting += beside
        mass = sum(float(cells[place]) for place in part)
        rows, columns = zip(*part, strict=True)
        middle = sum(rows) / len(part), sum(columns) / len(part)
        parts.append((mass, middle, max(columns) - min(columns) + 1))
    if len(parts) < 2:
        return False
    (most, one, wide), (less, other, _) = sorted(parts, reverse=True)[:2]
    far = ((one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2) ** 0.5
    return less >= max(COMPARABLE * most, LEAST) and far > wide
