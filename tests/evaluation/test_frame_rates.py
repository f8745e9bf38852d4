"""The time base of films: pure functions of times and changes."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyreel.evaluation.frame_rates import common_rate, looks, picture_rate, usual_rate

RATES = st.sampled_from([5.0, 8.0, 12.0, 15.0, 16.0, 23.976, 24.0, 25.0, 29.97, 30.0, 50.0, 60.0])


def steady(rate: float, count: int, digits: int = 6) -> list[float]:
    return [round(index / rate, digits) for index in range(count)]


@given(RATES, st.integers(2, 400), st.sampled_from([3, 6]))
def test_a_steady_film_is_looked_at_frame_by_frame(rate: float, count: int, digits: int) -> None:
    """Also where a container keeps times in whole milliseconds."""
    times = steady(rate, count, digits)
    found = usual_rate(times, rate)
    assert found == rate
    assert looks(times, times[-1] + 1 / found, found) == list(range(count))


def test_a_films_own_word_counts_only_where_its_times_agree() -> None:
    times = steady(12, 48)
    assert usual_rate(times, 1000.0) == usual_rate(times, 0.0) == pytest.approx(12, rel=1e-5)
    assert usual_rate([0.0], 25.0) == 25
    gap = [*times[:10], *(time + 3 for time in times[10:])]
    assert usual_rate(gap, 12.0) == 12  # the usual one, not the mean


@given(RATES, RATES, st.integers(20, 200))
def test_nobody_is_looked_at_twice_at_a_lower_rate(high: float, low: float, count: int) -> None:
    if high < low:
        high, low = low, high
    picks = looks(steady(high, count), count / high, low)
    steps = {b - a for a, b in pairwise(picks)}
    assert steps <= {int(high / low), int(high / low) + 1}
    assert len(picks) == round(count / high * low)


def test_half_the_rate_is_every_second_frame() -> None:
    """Where a look falls is no frame's beginning, or rounding would make some steps of one and of three."""
    for digits in (3, 6):
        assert {b - a for a, b in pairwise(looks(steady(24, 240, digits), 10.0, 12))} == {2}
        assert {b - a for a, b in pairwise(looks(steady(48, 480, digits), 10.0, 12))} == {4}


def test_a_gap_is_filled_with_the_frame_that_is_shown() -> None:
    times = [time for index, time in enumerate(steady(12, 24)) if not 3 <= index <= 8]
    assert looks(times, 2.0, 12) == [0, 1, 2, 2, 2, 2, 2, 2, 2, *range(3, 18)]
    late = [time + 0.5 for time in steady(12, 12)]
    assert looks(late, 1.5, 12) == [0] * 6 + list(range(12))


def changes(base: float, rate: float, rng: Random, noise: float = 0.06) -> list[float]:
    """Changes of ten seconds of a film of ``base`` pictures a second that was made one of ``rate``."""
    own = [rng.lognormvariate(1, 0.5) for _ in range(int(10 * base) + 2)]
    shown = [int(index * base / rate + 0.5) for index in range(int(10 * rate))]
    return [0.0, *(own[b] if a != b else abs(rng.gauss(0, noise)) for a, b in pairwise(shown))]


@pytest.mark.parametrize(
    ("base", "rate"),
    [(12, 25), (12, 24), (12, 30), (8, 24), (16, 24), (16, 30), (15, 30), (24, 60), (12, 16), (5, 25)],
)
@pytest.mark.parametrize("seed", range(3))
def test_repeated_frames_are_no_pictures(base: float, rate: float, seed: int) -> None:
    assert picture_rate(changes(base, rate, Random(seed)), rate) == pytest.approx(base, rel=0.03)


@pytest.mark.parametrize("rate", [8, 12, 24, 30])
@pytest.mark.parametrize("seed", range(5))
def test_a_film_without_repeated_frames_keeps_its_rate(rate: float, seed: int) -> None:
    film = changes(rate, rate, Random(seed))
    assert picture_rate(film, rate) == rate
    film[20:60] = [0.0] * 40  # it stands still for a while
    film[70] = 90.0  # a cut
    assert picture_rate(film, rate) == rate
    assert picture_rate([0.0] * 100, rate) == rate  # a still
    assert picture_rate([0.0], rate) == rate
    assert picture_rate([0.0, 3.0], rate) == rate


def test_uneven_motion_is_no_repetition() -> None:
    """Every second step is a sixth of the other, as in a film that was slowed down by mixing frames."""
    assert picture_rate([0.0, *[6.0, 1.0] * 100], 24) == 24


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ((12,), 12),
        ((12, 25), 12),
        ((12, 24), 12),
        ((16, 24), 8),
        ((24, 30), 8),
        ((12, 16), 4),
        ((12, 18, 30), 6),
        ((23.976, 24), 23.976),
        ((2, 12), 2),
        ((5, 12), None),
    ],
)
def test_the_common_rate(rates: tuple[float, ...], expected: float | None) -> None:
    assert common_rate(rates) == expected
    assert common_rate(rates[::-1]) == expected


@given(st.lists(RATES, min_size=1, max_size=4))
def test_at_the_common_rate_every_film_goes_on_evenly(rates: list[float]) -> None:
    common = common_rate(rates)
    if common is None:
        return
    assert common <= min(rates)
    for rate in rates:
        picks = looks(steady(rate, int(20 * rate)), 20.0, common)
        usual = round(rate / common)
        wrong = sum(b - a != usual for a, b in pairwise(picks))
        assert wrong <= 0.11 * usual * len(picks)
