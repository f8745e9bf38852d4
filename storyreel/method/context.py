"""Context frames of earlier segments in the attention, for identity.

An addition of storyreel's: arXiv 2503.06310 has nothing of the kind. Keys and values of clean frames join
those of the segment that is denoised, with the logarithm of a weight added to their logits. The weight
decays with β, as that of the paper's blending does.
"""

from __future__ import annotations


def context_weight(weight: float, beta: float, distance: int, first: bool) -> float:
    """Return how much a context frame counts, from 0 to 1, next to a frame of the segment's own.

    ``weight``·β^(distance - 1) for a frame ``distance`` segments back. That of the ``first`` segment does
    not fade: it keeps a hundredth scene from drifting.
    """
    return weight if first else weight * beta ** (distance - 1)
