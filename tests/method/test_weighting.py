from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from storyreel.method.weighting import (
    decision_prior,
    progression,
    prompt_scores,
    prompt_weights,
    smoothed,
    span_weights,
    standardised,
    text_weights,
)

pairs = st.tuples(st.floats(-1, 1), st.floats(-1, 1)).map(torch.tensor)


@given(st.floats(0, 1))
def test_first_the_scene_then_the_action(progress: float) -> None:
    assert progression(progress).tolist() == pytest.approx([1 - progress, progress])


def test_scores_by_hand() -> None:
    alignment, smoothness = torch.tensor([0.2, 0.4]), torch.tensor([-0.1, 0.3])
    scores = prompt_scores(alignment, smoothness, torch.tensor([0.75, 0.25]), (0.5, 0.2, 0.3))
    assert scores.tolist() == pytest.approx([0.1 - 0.02 + 0.225, 0.2 + 0.06 + 0.075])


@given(pairs, st.floats(0.05, 10))
def test_weights_are_shares(scores: torch.Tensor, temperature: float) -> None:
    weights = prompt_weights(scores, temperature)
    assert float(weights.sum()) == pytest.approx(1)
    assert (weights > 0).all()
    if abs(float(scores[0] - scores[1])) > 1e-5:
        assert int(weights.argmax()) == int(scores.argmax())
    # A softmax of two: the logistic function of their distance.
    distance = float(scores[0] - scores[1]) / temperature
    assert float(weights[0]) == pytest.approx(1 / (1 + math.exp(-distance)), rel=1e-4)


def test_heat_makes_weights_equal_and_cold_decides() -> None:
    scores = torch.tensor([0.9, -0.4])
    assert prompt_weights(scores, 1e6).tolist() == pytest.approx([0.5, 0.5], abs=1e-5)
    assert prompt_weights(scores, 0.01).tolist() == pytest.approx([1, 0], abs=1e-5)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.99))
def test_smoothing_keeps_a_share_of_what_was(now: float, then: float, inertia: float) -> None:
    weights, before = torch.tensor([now, 1 - now]), torch.tensor([then, 1 - then])
    kept = smoothed(weights, before, inertia)
    assert kept.tolist() == pytest.approx((inertia * before + (1 - inertia) * weights).tolist(), abs=1e-6)
    assert float(kept.sum()) == pytest.approx(1)
    assert torch.equal(smoothed(weights, before, 0.0), weights)
    assert torch.equal(smoothed(weights, None, inertia), weights)


@given(st.floats(0, 1))
def test_texts_count_by_what_one_prompt_has_more_than_the_other(share: float) -> None:
    counts = text_weights(torch.tensor([1 - share, share], dtype=torch.float64))
    assert float(counts.sum()) == pytest.approx(1)
    assert float(counts.min()) >= 0
    assert float(counts[1] - counts[0]) == pytest.approx(2 * share - 1)


def test_the_ends_are_one_prompt_alone_and_the_middle_is_the_joined_text() -> None:
    for weights, counts in (((1, 0), [1, 0, 0]), ((0, 1), [0, 1, 0]), ((0.5, 0.5), [0, 0, 1])):
        assert text_weights(torch.tensor(weights)).tolist() == counts


def test_the_action_has_all_of_the_prior_while_the_model_decides() -> None:
    for sigma, expected in ((1.0, [0, 1]), (0.66, [0, 1]), (0.65, [0.5, 0.5]), (0.0, [0.5, 0.5])):
        assert decision_prior(sigma, (0.65, 1.0)).tolist() == expected
    assert decision_prior(0.9, (0.2, 0.8)).tolist() == [0.5, 0.5]
    assert decision_prior(1.0, (0.0, 0.0)).tolist() == [0.5, 0.5]  # of a model that nobody has asked


@given(st.floats(0, 1), st.floats(1, 100))
def test_words_of_the_leading_prompt_count_more_and_no_others(share: float, emphasis: float) -> None:
    counts = span_weights(torch.tensor([1 - share, share], dtype=torch.float64), emphasis)
    leading, other = (1, 0) if share >= 0.5 else (0, 1)
    assert float(counts[other]) == 1
    assert 1 <= float(counts[leading]) <= emphasis * (1 + 1e-9)


def test_emphasis_by_hand() -> None:
    assert span_weights(torch.tensor([0.0, 1.0]), 8.0).tolist() == [1, 8]
    assert span_weights(torch.tensor([0.5, 0.5]), 8.0).tolist() == [1, 1]
    assert span_weights(torch.tensor([0.75, 0.25]), 4.0).tolist() == [2.25, 1]


def test_a_prompt_is_measured_by_common_ones() -> None:
    others = [torch.tensor([0.1, 0.3, 0.2]), torch.tensor([0.5, 0.5, 0.8])]
    own = torch.tensor([0.3, 0.5])
    deviations = [0.1, 0.3 / 3**0.5]
    expected = [(0.3 - 0.2) / deviations[0], (0.5 - 0.6) / deviations[1]]
    assert standardised(own, others).tolist() == pytest.approx(expected, rel=1e-5)
    alike = [own[:1].expand(3), own[1:].expand(4)]
    assert standardised(own, alike).tolist() == [0, 0]  # nothing stands out, and no NaN
