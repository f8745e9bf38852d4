"""Memory for identity: anchor frames of earlier segments in the attention (METHOD 4).

Keys and values of clean anchor frames join those of the segment that is denoised, each with the
logarithm of a weight added to its logits.
"""

from __future__ import annotations


def anchor_weight(weight: float, beta: float, distance: int, first: bool) -> float:
    """Return how much an anchor frame counts, from 0 to 1, next to a frame of the segment's own.

    ``weight``·β^(distance - 1) for an anchor ``distance`` segments back. The ``first`` anchor, the
    story's beginning, does not fade (a deviation): it is what keeps a hundredth scene from drifting.
    """
    return weight if first else weight * beta ** (distance - 1)
