"""Many films in few numbers: mean and spread, and how sure a difference is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (ddof = 1) of ``count`` values; one value has no deviation."""

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences and its interval, from ``low`` to ``high``; one pair has none."""

    mean: float
    low: float | None
    high: float | None
    pairs: int


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and deviation; None of nothing."""
    if not values:
        return None
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), std, len(values))


def paired_difference(differences: Sequence[float], generator: np.random.Generator) -> Difference | None:
    """Return the mean difference with its percentile bootstrap interval (Efron); None of nothing.

    ``differences`` has one value a pair, here what a variant of a film has more than the full
    one of the same story and seed. Pairs are resampled as if independent. With few of
    them the interval is too narrow: of three pairs it never leaves their range.
    """
    if not differences:
        return None
    values = np.asarray(differences, dtype=np.float64)
    mean = float(values.mean())
    if len(values) == 1:
        return Difference(mean, None, None, 1)
    means = values[generator.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Difference(mean, float(low), float(high), len(values))


def spread_cell(found: Mapping[str, Any] | None, digits: int) -> str:
    """Return "mean ± deviation"."""
    if found is None:
        return "–"
    std = "" if found["std"] is None else f" ± {found['std']:.{digits}f}"
    return f"{found['mean']:.{digits}f}{std}"


def difference_cell(found: Mapping[str, Any] | None, digits: int) -> str:
    """Return "difference [interval]"."""
    if found is None:
        return "–"
    interval = "" if found["low"] is None else f" [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"
    return f"{found['mean']:+.{digits}f}{interval}"
