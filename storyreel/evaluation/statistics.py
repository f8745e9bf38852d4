"""Many films in few numbers: mean, spread, how sure and how large a difference is, what cannot be seen.

Stories are what is sampled: seeds of a story lie within it. Nothing here depends on the time or on what was
computed before: every resample is drawn by a generator of its own, from a seed that is written here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
POWER = 0.8  # how often a difference is to be found that is there
MOST_EXACT = 13  # stories: up to here every pattern of signs is tried, 8,192 of them


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (ddof = 1) of ``count`` values; one value has no deviation."""

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences and its interval, from ``low`` to ``high``; one pair has none.

    There are ``pairs`` of ``stories``. ``effect`` is Hedges' g of paired data (`paired_effect`), ``p`` is
    `sign_flip_p`, ``p_holm`` the same among all that are compared with one reference (`holm`), and
    ``detectable`` the difference below which as many stories show nothing (`detectable_difference`); each
    None where there are too few stories.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int
    stories: int
    effect: float | None = None
    p: float | None = None
    p_holm: float | None = None
    detectable: float | None = None


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and deviation; None of nothing."""
    if not values:
        return None
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), std, len(values))


def paired_difference(
    stories: Sequence[Sequence[float]], generator: np.random.Generator
) -> Difference | None:
    """Return the mean difference with its percentile bootstrap interval (Efron); None of nothing.

    ``stories`` hold one value a pair, here what a film has more than another one of the same story and seed.
    Stories are resampled, each with all its seeds: seeds of one story have much in common, and are no further
    stories (the cluster bootstrap; Davison and Hinkley 1997, 3.8). Of a single story its seeds are
    resampled, which says nothing of other stories. With few of them the interval is too narrow: of
    three it never leaves their range.
    """
    groups = [group for group in stories if group]
    if not groups:
        return None
    values = [value for group in groups for value in group]
    mean = float(np.mean(values))
    if len(values) == 1:
        return Difference(mean, None, None, 1, 1)
    units = groups if len(groups) > 1 else [[value] for value in values]
    sums, sizes = np.array([sum(unit) for unit in units]), np.array([len(unit) for unit in units])
    drawn = generator.integers(len(units), size=(RESAMPLES, len(units)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(sums[drawn].sum(1) / sizes[drawn].sum(1), [tail, 1 - tail])
    means = [float(np.mean(group)) for group in groups]
    return Difference(
        mean,
        float(low),
        float(high),
        len(values),
        len(groups),
        effect=paired_effect(means),
        p=sign_flip_p([sum(group) for group in groups]),
        detectable=detectable_difference(means),
    )


def paired_effect(means: Sequence[float]) -> float | None:
    """Return Hedges' g of paired data: the stories' mean difference over their standard deviation.

    ``means`` holds one difference a story. It is corrected for few stories (Hedges 1981), which is possible
    from three on. None of fewer, and where all stories differ alike.
    """
    freedom = len(means) - 1
    if freedom < 2 or not (std := _std(means)):
        return None
    correction = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return float(np.mean(means)) / std * correction


def sign_flip_p(sums: Sequence[float]) -> float | None:
    """Return how likely so large a difference is, were its sign of every story a matter of chance.

    ``sums`` holds one number a story, the sum over its seeds. This is the paired permutation test, two-sided
    (Fisher 1935): no law of the values is assumed. Exact up to `MOST_EXACT` stories, beyond by `RESAMPLES`
    patterns. Of n stories it is at least 2/2ⁿ. None of a single story, whose seeds say nothing of others.
    """
    count = len(sums)
    if count < 2:
        return None
    values = np.array(sums)
    if count <= MOST_EXACT:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        also = 0
    else:
        signs = 1 - 2 * np.random.default_rng(0).integers(2, size=(RESAMPLES, count))
        also = 1  # what was seen is one of the patterns
    reached = np.abs(signs @ values) >= abs(values.sum()) - 1e-9 * np.abs(values).sum()
    return float((reached.sum() + also) / (len(signs) + also))


def least_p(stories: int) -> float | None:
    """Return the smallest p that `sign_flip_p` can have with so many stories."""
    return None if stories < 2 else 2 / 2**stories if stories <= MOST_EXACT else 1 / (RESAMPLES + 1)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return p values after Holm's correction (1979) for as many comparisons as there are; None stays."""
    there = sorted((p, index) for index, p in enumerate(values) if p is not None)
    found: list[float | None] = [None] * len(values)
    least = 0.0
    for rank, (p, index) in enumerate(there):
        least = min(1.0, max(least, (len(there) - rank) * p))
        found[index] = least
    return found


def detectable_difference(means: Sequence[float]) -> float | None:
    """Return how large a difference has to be to be found, with as many stories that spread as these do.

    ``means`` holds one difference a story. It is found by a paired t test at 5 %, two-sided and not
    corrected, in `POWER` of all cases: (t₁₋α/₂ + t_power)·s/√n. None of a single story, and where all differ
    alike, which tells nothing of how others would.
    """
    if len(means) < 2 or not (std := _std(means)):
        return None
    freedom = len(means) - 1
    reach = student_quantile(1 - (1 - CONFIDENCE) / 2, freedom) + student_quantile(POWER, freedom)
    return reach * std / math.sqrt(len(means))


def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t from 0.5 up, of a whole number of degrees of freedom."""
    low, high = 0.0, 1.0
    while _student(high, freedom) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student(middle, freedom) < probability else (low, middle)
    return high


def _student(t: float, freedom: int) -> float:
    """Return the share of Student's t below ``t``: a finite series (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    inside = math.sin(angle) * total
    if odd:
        inside = 2 / math.pi * (angle + inside)
    return (1 + inside) / 2


def _std(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation; None where it is nothing but rounding."""
    std = float(np.std(values, ddof=1))
    return std if std > 1e-12 * max(map(abs, values)) else None


@dataclass(frozen=True)
class Row:
    """A film's numbers: ``run``s are compared, film by film of the same ``pair``; ``story`` groups pairs.

    ``told`` is what its scenes are to show. One that ``is_alone`` has no seed of its own: it stands beside
    the mean over all seeds of its story, where that is told in the same words.
    """

    run: str
    pair: Hashable
    story: str
    values: Mapping[str, float | None]
    told: Hashable = None
    is_alone: bool = False


def compare(rows: Sequence[Row], names: Iterable[str], first: str | None) -> dict[str, Any]:
    """Return mean and spread of every number over a run's films, and runs' paired differences to ``first``.

    A number that one of a pair lacks leaves the pair out. Without a ``first`` there are no differences.
    ``same_films`` says whether all runs have the same, so that their means may be held against each other.
    """
    names = list(names)
    runs: dict[str, dict[Hashable, Row]] = {}
    for row in rows:
        runs.setdefault(row.run, {})[row.pair] = row
    reference = {} if first is None else runs.get(first, {})

    def numbers(run: str, name: str) -> list[float]:
        return [value for row in runs[run].values() if (value := row.values.get(name)) is not None]

    def of_first(row: Row, name: str) -> float | None:
        if row.pair in reference:
            return reference[row.pair].values.get(name)
        alike = [r for r in reference.values() if (r.story, r.told) == (row.story, row.told)]
        found = [r.values.get(name) for r in alike if row.is_alone or r.is_alone]
        values = [value for value in found if value is not None]
        return float(np.mean(values)) if values else None

    def beyond_first(run: str, name: str) -> list[list[float]]:
        stories: dict[str, list[float]] = {}
        for row in runs[run].values():
            ours, theirs = row.values.get(name), of_first(row, name)
            if ours is not None and theirs is not None:
                stories.setdefault(row.story, []).append(ours - theirs)
        return list(stories.values())

    summary = {
        run: {name: asdict(s) if (s := spread(numbers(run, name))) else None for name in names}
        for run in runs
    }
    differences: dict[str, Any] = {}
    for run in runs if reference else ():
        if run != first:
            # The same resamples for every number, so that no row depends on those above it.
            found = {n: paired_difference(beyond_first(run, n), np.random.default_rng(0)) for n in names}
            differences[run] = {name: asdict(value) if value else None for name, value in found.items()}
    for name in names:
        compared = [of[name] for of in differences.values() if of[name]]
        for value, p in zip(compared, holm([value["p"] for value in compared]), strict=True):
            value["p_holm"] = p
    same_films = len({frozenset(of) for of in runs.values()}) <= 1
    return {"summary": summary, "differences": differences, "same_films": same_films}


def films_words(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Say what the columns of a summary are: means over how many films, or one film each."""
    counts = {run: max((s["count"] for s in of.values() if s), default=0) for run, of in summary.items()}
    most, fewest = max(counts.values(), default=0), min(counts.values(), default=0)
    if most <= 1:
        return "One film" if len(counts) == 1 else "One film a column"
    films = f"{most} films" if most == fewest else f"{fewest} to {most} films"
    return f"Mean ± standard deviation of {films}" + (" a column" if len(counts) > 1 else "")


def interval_words(differences: Mapping[str, Mapping[str, Any]]) -> str:
    """Say what the intervals of differences are over."""
    found = [d for of in differences.values() for d in of.values() if d]
    stories, pairs = (max((d[key] for d in found), default=0) for key in ("stories", "pairs"))
    if pairs < 2:
        return "one pair, which has no interval"
    if stories < 2:
        return f"95 % interval over {pairs} seeds of one story"
    return f"95 % interval over {stories} stories"


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
