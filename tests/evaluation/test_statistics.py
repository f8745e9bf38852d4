from __future__ import annotations

import itertools
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storyreel.evaluation.statistics import (
    Difference,
    Row,
    compare,
    detectable_difference,
    films_words,
    holm,
    interval_words,
    least_p,
    paired_difference,
    paired_effect,
    sign_flip_p,
    spread,
    student_quantile,
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
    found = difference([[0.0], [1.0]])
    assert (found.mean, found.low, found.high, found.pairs, found.stories) == (0.5, 0, 1, 2, 2)
    # Three seeds of the one, one of the other: the mean is over pairs, and stories come whole.
    found = difference([[0.0, 0.0, 0.0], [1.0]])
    assert (found.mean, found.low, found.high, found.pairs, found.stories) == (0.25, 0, 1, 4, 2)


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
    expected = asdict(Difference(3.0, None, None, 1, 1))
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
    of = found["differences"]["b"]["motion"]
    assert [of[key] for key in ("mean", "low", "high", "pairs", "stories")] == [2, 1, 3, 6, 2]
    assert of["p"] == of["p_holm"] == 0.5  # of two stories it is never less
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


# From printed tables of Student's t.
@pytest.mark.parametrize(
    ("freedom", "probability", "quantile"),
    [
        (1, 0.975, 12.7062),
        (2, 0.975, 4.30265),
        (3, 0.975, 3.18245),
        (4, 0.975, 2.77645),
        (7, 0.975, 2.36462),
        (30, 0.975, 2.04227),
        (1, 0.8, 1.37638),
        (5, 0.8, 0.91954),
        (7, 0.8, 0.89603),
    ],
)
def test_quantiles_of_student(freedom: int, probability: float, quantile: float) -> None:
    assert student_quantile(probability, freedom) == pytest.approx(quantile, abs=1e-5)


def test_what_is_detectable_is_found_four_times_in_five() -> None:
    """Eight stories whose true difference is just that: a paired t test at 5 % finds it in about 80 %."""
    rng = np.random.default_rng(7)
    spread_of = rng.normal(0, 1, 8)
    shift = detectable_difference((spread_of / spread_of.std(ddof=1)).tolist())
    assert shift is not None
    trials = rng.normal(shift, 1, (4000, 8))
    t = trials.mean(1) / (trials.std(1, ddof=1) / math.sqrt(8))
    assert 0.76 < (abs(t) > student_quantile(0.975, 7)).mean() < 0.86
    assert detectable_difference([0.3]) is None
    assert detectable_difference([0.3, 0.3, 0.3]) is None


def test_more_stories_see_smaller_differences() -> None:
    found = [detectable_difference([0.0, 1.0] * count) for count in (1, 2, 4, 16)]
    assert None not in found
    assert all(a > b for a, b in itertools.pairwise(f for f in found if f is not None))


def test_an_effect_is_measured_in_spreads_of_stories() -> None:
    """2, 4 and 6: mean 4, deviation 2; the correction of three is Γ(1)/Γ(½) = 1/√π."""
    assert paired_effect([2.0, 4.0, 6.0]) == pytest.approx(2 / math.sqrt(math.pi))
    assert paired_effect([-2.0, -4.0, -6.0]) == pytest.approx(-2 / math.sqrt(math.pi))
    many = np.random.default_rng(2).normal(0.5, 1, 400)
    assert paired_effect(many.tolist()) == pytest.approx(many.mean() / many.std(ddof=1), rel=0.003)
    assert paired_effect([1.0, 2.0]) is paired_effect([0.1, 0.1, 0.1]) is None


def test_an_effect_is_of_stories_not_of_films() -> None:
    stories = [[1.0, 3.0], [4.0], [6.0, 6.0, 6.0]]
    assert difference(stories).effect == paired_effect([2.0, 4.0, 6.0])


def test_signs_are_flipped_story_by_story() -> None:
    assert sign_flip_p([1.0] * 8) == 2 / 2**8 == least_p(8)
    # Of (1, 2, 4) only the seen pattern and its opposite reach 7; of (-1, 2, 4) two more reach 5.
    assert sign_flip_p([1.0, 2.0, 4.0]) == 2 / 8
    assert sign_flip_p([-1.0, 2.0, 4.0]) == 4 / 8
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1
    assert sign_flip_p([0.1, 0.2, -0.3]) == 1  # what is nothing but rounding
    assert sign_flip_p([5.0]) is least_p(1) is None
    assert difference([[1.0, 5.0, 2.0]]).p is None  # seeds of one story


def test_many_stories_are_tried_in_part_and_alike_again() -> None:
    values = np.random.default_rng(4).normal(0.3, 1, 13).tolist()
    exact = sign_flip_p(values)
    sampled = sign_flip_p([*values, 0.0])  # a story without a difference changes nothing
    assert exact is not None
    assert sampled == pytest.approx(exact, abs=0.015)
    assert sign_flip_p([*values, 0.0]) == sampled
    assert sign_flip_p([1.0] * 40) == least_p(40) == 1 / 10_001


def test_p_of_nothing_is_as_often_small_as_it_says() -> None:
    rng = np.random.default_rng(9)
    found = [sign_flip_p(rng.normal(0, 1, 8).tolist()) or 0.0 for _ in range(600)]
    assert 0.02 < np.mean([p <= 0.05 for p in found]) < 0.08


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), 0.06]
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([0.02]) == [0.02]
    assert holm([None, None]) == [None, None]


def test_every_number_is_corrected_for_the_runs_that_are_compared() -> None:
    rows = [row("a", f"s{i}", 0, 0.0) for i in range(8)]
    for run, values in (("b", [1.0] * 8), ("c", [1.0, -1.0] * 4), ("d", [1.0] * 8)):
        rows += [row(run, f"s{i}", 0, value) for i, value in enumerate(values)]
    found = {run: of["motion"] for run, of in compare(rows, ["motion"], "a")["differences"].items()}
    assert found["b"]["p"] == found["d"]["p"] == 1 / 128
    assert [found[run]["p_holm"] for run in "bcd"] == [3 / 128, 1, 3 / 128]


def alone(run: str, story: str, told: str, motion: float | None) -> Row:
    return Row(run, (story, told), story, {"motion": motion}, told, is_alone=True)


def test_a_film_without_seeds_stands_beside_the_mean_over_them() -> None:
    seeds = [
        Row("a", (f"seed-{seed}/x", "told"), "x", {"motion": value}, "told")
        for seed, value in enumerate((1.0, 2.0, None, 6.0))
    ]
    foreign = alone("b", "x", "told", 5.0)
    found = compare([*seeds, foreign], ["motion"], "a")["differences"]["b"]["motion"]
    assert (found["mean"], found["pairs"], found["stories"]) == (2, 1, 1)
    # As well the other way round; and not where another story, or other words, are told.
    back = compare([foreign, *seeds], ["motion"], "b")["differences"]["a"]["motion"]
    assert (back["mean"], back["pairs"], back["stories"]) == (-2, 3, 1)
    for other in (alone("b", "y", "told", 5.0), alone("b", "x", "else", 5.0)):
        assert compare([*seeds, other], ["motion"], "a")["differences"]["b"]["motion"] is None


def test_seeds_that_the_reference_lacks_stay_without_a_pair() -> None:
    rows = [Row(run, (f"seed-{s}/x", "t"), "x", {"motion": 1.0}, "t") for run, s in (("a", 0), ("b", 1))]
    assert compare(rows, ["motion"], "a")["differences"]["b"]["motion"] is None
