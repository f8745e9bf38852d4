from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storyreel.evaluation.statistics import (
    Difference,
    Row,
    compare,
    films_words,
    interval_words,
    paired_difference,
    spread,
)

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


def difference(stories: list[list[float]], seed: int = 0) -> Difference:
    found = paired_difference(stories, np.random.default_rng(seed))
    assert found is not None
    return found


def width(found: Difference) -> float:
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


def test_mean_and_sample_deviation_by_hand() -> None:
    found = spread([2.0, 4.0, 9.0])
    assert found is not None
    assert (found.mean, found.count) == (5, 3)
    assert found.std == pytest.approx(math.sqrt((9 + 1 + 16) / 2))


def test_one_value_has_no_spread_and_none_nothing() -> None:
    one = spread([3.0])
    assert one is not None
    assert (one.mean, one.std, one.count) == (3, None, 1)
    assert spread([]) is None
    assert difference([[3.0]]) == Difference(3, None, None, 1, 1)
    assert paired_difference([], np.random.default_rng(0)) is None
    assert paired_difference([[], []], np.random.default_rng(0)) is None


def test_two_stories_by_hand() -> None:
    """Resamples of (0, 1) have mean 0, 1/2 or 1, each end in a quarter of them: beyond 2.5 %."""
    assert difference([[0.0], [1.0]]) == Difference(0.5, 0, 1, 2, 2)
    # Three seeds of the one, one of the other: the mean is over pairs, and stories come whole.
    assert difference([[0.0, 0.0, 0.0], [1.0]]) == Difference(0.25, 0, 1, 4, 2)


def test_many_stories_are_as_the_normal_law_has_it() -> None:
    values = np.random.default_rng(5).normal(3, 2, 400)
    found = difference([[value] for value in values.tolist()], seed=1)
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_seeds_of_a_story_are_no_further_stories() -> None:
    """Seeds that say the same again make no interval narrower; as many stories would."""
    values = np.random.default_rng(3).normal(0, 1, 24).tolist()
    stories = [[value] for value in values[:8]]
    again = [[value] * 3 for value in values[:8]]
    found, once = difference(again), difference(stories)
    assert (found.mean, found.low, found.high) == pytest.approx((once.mean, once.low, once.high))
    assert (found.pairs, found.stories) == (24, 8)
    assert width(difference([[value] for value in values])) < 0.8 * width(found)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Eight stories of three seeds that have half of their variance in common: 95 % of 400 intervals or so.

    Percentile intervals of eight are a little narrow. Were all 24 films resampled, 83 % would hold it.
    """
    rng = np.random.default_rng(11)
    held = alone = 0
    for trial in range(400):
        films = rng.normal(0, 1, (8, 1)) + rng.normal(0, 1, (8, 3))
        found = difference(films.tolist(), trial)
        flat = difference([[value] for value in films.flatten().tolist()], trial)
        assert found.low is not None and found.high is not None  # noqa: PT018
        assert flat.low is not None and flat.high is not None  # noqa: PT018
        held += found.low <= 0 <= found.high
        alone += flat.low <= 0 <= flat.high
    assert 0.86 < held / 400 < 0.97
    assert alone < held - 15


def test_of_one_story_its_seeds_are_resampled() -> None:
    found = difference([[1.0, 2.0, 6.0]])
    assert (found.mean, found.pairs, found.stories) == (3, 3, 1)
    assert (found.low, found.high) == (1, 6)


@settings(max_examples=25, deadline=None)
@given(VALUES, st.floats(-50, 50))
def test_an_interval_holds_the_mean_and_moves_with_it(values: list[float], shift: float) -> None:
    found = difference([[value] for value in values], 2)
    moved = difference([[value + shift] for value in values], 2)
    assert found.low is not None
    assert found.high is not None
    assert moved.low == pytest.approx(found.low + shift, abs=1e-9)
    assert moved.high == pytest.approx(found.high + shift, abs=1e-9)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


def test_the_generator_decides() -> None:
    values = [[math.sqrt(i)] for i in range(40)]
    again = [difference(values, seed) for seed in (3, 3, 4)]
    assert again[0] == again[1] != again[2]


def row(run: str, story: str, seed: int, motion: float | None) -> Row:
    return Row(run, (story, seed), story, {"motion": motion, "lpips": None})


def test_films_are_paired_and_what_has_no_pair_is_left_out() -> None:
    rows = [row("a", "x", 0, 1.0), row("a", "y", 0, 2.0), row("b", "y", 0, 5.0), row("b", "z", 0, 9.0)]
    found = compare(rows, ["motion", "lpips"], "a")
    assert found["summary"]["a"]["motion"] == {"mean": 1.5, "std": pytest.approx(0.5**0.5), "count": 2}
    expected = {"mean": 3.0, "low": None, "high": None, "pairs": 1, "stories": 1}
    assert found["differences"] == {"b": {"motion": expected, "lpips": None}}
    assert found["summary"]["a"]["lpips"] is None
    assert not found["same_films"]
    assert (
        compare(rows, ["motion"], None)["differences"] == compare(rows, ["motion"], "c")["differences"] == {}
    )


def test_seeds_are_grouped_by_their_story() -> None:
    rows = [row("a", story, seed, 0.0) for story in "xy" for seed in range(3)]
    rows += [row("b", story, seed, value) for story, value in (("x", 1.0), ("y", 3.0)) for seed in range(3)]
    found = compare(rows, ["motion"], "a")
    assert found["differences"]["b"]["motion"] == {"mean": 2, "low": 1, "high": 3, "pairs": 6, "stories": 2}
    assert found["same_films"]
    assert interval_words(found["differences"]) == "95 % interval over 2 stories"


def test_captions_are_true_of_every_column() -> None:
    def summary(*counts: int) -> dict[str, dict[str, dict[str, float] | None]]:
        return {str(i): {"motion": {"count": n}, "lpips": None} for i, n in enumerate(counts)}

    assert films_words(summary(1)) == "One film"
    assert films_words(summary(1, 1, 1)) == "One film a column"
    assert films_words(summary(3)) == "Mean ± standard deviation of 3 films"
    assert films_words(summary(3, 3)) == "Mean ± standard deviation of 3 films a column"
    assert films_words(summary(8, 1)) == "Mean ± standard deviation of 1 to 8 films a column"
    assert interval_words({"b": {"motion": None}}) == "one pair, which has no interval"
    seeds = {"motion": {"pairs": 3, "stories": 1}, "lpips": None}
    assert interval_words({"b": seeds}) == "95 % interval over 3 seeds of one story"
