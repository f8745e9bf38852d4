"""Many films in few numbers: mean and spread, and how sure a difference is."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
    """The mean of paired differences and its interval, from ``low`` to ``high``; one pair has none.

    There are ``pairs`` of ``stories``.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int
    stories: int


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
    return Difference(mean, float(low), float(high), len(values), len(groups))


@dataclass(frozen=True)
class Row:
    """A film's numbers: ``run``s are compared, film by film of the same ``pair``; ``story`` groups pairs."""

    run: str
    pair: Hashable
    story: str
    values: Mapping[str, float | None]


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

    def beyond_first(run: str, name: str) -> list[list[float]]:
        stories: dict[str, list[float]] = {}
        for pair, row in runs[run].items():
            ours = row.values.get(name)
            theirs = reference[pair].values.get(name) if pair in reference else None
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
