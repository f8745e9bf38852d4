from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storyreel.evaluation.statistics import paired_difference, spread

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


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
    pair = paired_difference([3.0], np.random.default_rng(0))
    assert pair is not None
    assert (pair.mean, pair.low, pair.high, pair.pairs) == (3, None, None, 1)
    assert paired_difference([], np.random.default_rng(0)) is None


def test_two_pairs_by_hand() -> None:
    """Resamples of (0, 1) have mean 0, 1/2 or 1, each end in a quarter of them: beyond 2.5 %."""
    found = paired_difference([0.0, 1.0], np.random.default_rng(0))
    assert found is not None
    assert (found.mean, found.low, found.high, found.pairs) == (0.5, 0, 1, 2)


def test_many_pairs_are_as_the_normal_law_has_it() -> None:
    values = np.random.default_rng(5).normal(3, 2, 400)
    found = paired_difference(values.tolist(), np.random.default_rng(1))
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


@settings(max_examples=25, deadline=None)
@given(VALUES, st.floats(-50, 50))
def test_an_interval_holds_the_mean_and_moves_with_it(values: list[float], shift: float) -> None:
    found = paired_difference(values, np.random.default_rng(2))
    moved = paired_difference([value + shift for value in values], np.random.default_rng(2))
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert moved is not None
    assert moved.low == pytest.approx(found.low + shift, abs=1e-9)
    assert moved.high == pytest.approx(found.high + shift, abs=1e-9)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


def test_the_generator_decides() -> None:
    values = [math.sqrt(i) for i in range(40)]
    again = [paired_difference(values, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert again[0] == again[1] != again[2]
