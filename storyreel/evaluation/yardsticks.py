"""What benchmarks of long videos measure by local weights: similarity of shots, and drift over a film.

EntityBench (commit 3776439) compares class tokens of DINOv2, HeliosBench (2276f8f) a film's first 15 % with
its last. A film that stands still is as alike as can be and never drifts: none of these numbers is to be read
without the motion beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PART = 0.15  # of a film's frames, at either end


def to_centroid(vectors: Tensor) -> float | None:
    """Return the mean cosine of unit vectors (n, D) with their centroid; None of less than two."""
    if len(vectors) < 2:
        return None
    return float((vectors @ F.normalize(vectors.mean(0), dim=0)).mean())


def similarity_by_distance(vectors: Tensor) -> list[dict[str, Any]]:
    """Return the mean cosine of all pairs of unit vectors (n, D) some ``distance`` apart, and how many."""
    cosines = vectors @ vectors.T
    diagonals = [torch.diagonal(cosines, distance) for distance in range(1, len(vectors))]
    return [
        {"distance": distance, "pairs": len(values), "similarity": float(values.mean())}
        for distance, values in enumerate(diagonals, 1)
    ]


def drift_between_ends(values: Iterable[tuple[int, float]], frames: int) -> float | None:
    """Return how far the means over a film's first and its last 15 % of ``frames`` are apart.

    ``values`` are numbers of single frames, by their places; None where either end has none.
    """
    length = max(1, int(frames * PART))
    ends: Sequence[list[float]] = ([], [])
    for place, value in values:
        if place < length:
            ends[0].append(value)
        if place >= frames - length:
            ends[1].append(value)
    return abs(fmean(ends[0]) - fmean(ends[1])) if all(ends) else None
