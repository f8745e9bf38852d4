"""What the model is told, by weights that a scorer and the progress decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from storyreel.denoise.prompts import COMMON_ACTIONS, SCORED_EVERY, Prompts, PromptWriter, similarities
from storyreel.method.settings import Method
from storyreel.models.specs import MODELS
from storyreel.story.plan import Plan, Segment, Settings
from tests.conftest import FakeAdapter, FakeScorer, plan_of

MINI = MODELS["mini"]
SCENE, ACTION = "a fox at home", "a fox sits"
STEPS = 8


@pytest.fixture
def segment() -> Segment:
    return plan_of(f"scenes:\n  - [{SCENE}, {ACTION}]\n").segments[0]


def writer(scorer: FakeScorer | None = None, **method: object) -> PromptWriter:
    return PromptWriter(FakeAdapter(MINI), settings(**method), scorer)


def settings(**method: object) -> Settings:
    plan = plan_of("scenes:\n  - [a, b]\n", steps=STEPS)
    return replace(plan.settings, method=Method.model_validate({"weighting": True, **method}))


def estimate(brightness: float) -> Tensor:
    return torch.full((1, MINI.latent_channels, 6, 8, 12), brightness)


def weighed(
    writer: PromptWriter,
    segment: Segment,
    brightness: float = 1.0,
    neighbour: Prompts | None = None,
    steps: Sequence[int] = range(STEPS),
) -> Prompts:
    """A segment's prompts after some steps, in which every estimate is of one brightness."""
    prompts = writer.prompts(segment)
    for step in steps:
        ending = None if neighbour is None else neighbour.ending
        writer.weigh(prompts, estimate(brightness), 1 - step / STEPS, step + 1, ending)
    return prompts


def action_weights(prompts: Prompts) -> list[float]:
    return torch.stack(prompts.history)[:, 1].tolist()


def test_without_weighting_one_text_joins_both_prompts(segment: Segment) -> None:
    scorer = FakeScorer(ACTION)
    prompts = weighed(writer(scorer, weighting=False), segment)
    adapter = FakeAdapter(MINI)
    joined = adapter.encode(f"{SCENE}. {ACTION}")
    assert torch.equal(prompts.text.states[0], joined.states[0])
    assert torch.equal(prompts.text.weights, joined.weights)
    assert (prompts.decided(), prompts.state(), scorer.seen) == ([], {}, [])
    assert torch.equal(writer().negative.states[0], adapter.encode("").states[0])


def test_scene_action_and_both_stand_side_by_side_each_by_its_weight(segment: Segment) -> None:
    adapter = FakeAdapter(MINI)
    texts = [SCENE, ACTION, segment.prompt]
    states = torch.cat([adapter.encode(text).states[0] for text in texts], 1)
    for steps in (1, STEPS - 1):
        prompts = weighed(writer(), segment, steps=range(steps))
        assert torch.equal(prompts.text.states[0], states)
        lead = prompts.decided()[-1][0] - prompts.decided()[-1][1]
        assert (lead > 0) == (steps == 1)
        counts = [max(lead, 0), max(-lead, 0), 1 - abs(lead)]
        expected = [c for c, text in zip(counts, texts, strict=True) for _ in text]
        assert prompts.text.weights[0].tolist() == pytest.approx(expected, abs=2e-4)


def test_weights_sum_to_one_and_follow_the_progression_without_a_scorer(segment: Segment) -> None:
    prompts = weighed(writer(inertia=0.0, progression=0.5, temperature=0.25), segment)
    history = torch.stack(prompts.history)
    assert torch.allclose(history.sum(1), torch.ones(STEPS))
    # One entry a step: of two scores ½·(1 - p) and ½·p the softmax at τ = ¼.
    expected = [1 / (1 + math.exp(-(2 * step / STEPS - 1) * 2)) for step in range(STEPS)]
    assert action_weights(prompts) == pytest.approx(expected)
    assert prompts.decided() == [(round(a, 4), round(b, 4)) for a, b in history.tolist()]


def test_inertia_makes_weights_lag(segment: Segment) -> None:
    quick, slow = (action_weights(weighed(writer(inertia=i), segment)) for i in (0.0, 0.8))
    assert slow[0] == quick[0]
    expected = slow[:1]
    for now in quick[1:]:
        expected.append(0.8 * expected[-1] + 0.2 * now)
    assert slow == pytest.approx(expected)


def test_a_scorer_that_finds_the_action_raises_its_weight(segment: Segment) -> None:
    plain = action_weights(weighed(writer(), segment))
    found = action_weights(weighed(writer(FakeScorer(ACTION)), segment, brightness=1.0))
    missed = action_weights(weighed(writer(FakeScorer(ACTION)), segment, brightness=-1.0))
    unscored = sum(1 - step / STEPS > 0.7 for step in range(STEPS)) + 1  # the first stands before all
    assert found[:unscored] == missed[:unscored] == plain[:unscored]
    for more, usual, less in list(zip(found, plain, missed, strict=True))[unscored:]:
        assert more > usual > less


def test_nothing_is_scored_above_its_noise_level(segment: Segment) -> None:
    for level in (0.0, 0.3, 0.7, 1.0):
        scorer = FakeScorer(ACTION)
        weighed(writer(scorer, score_below=level), segment, brightness=0.5)
        # The last step's weights would be of no use.
        scored = sum(1 - step / STEPS <= level for step in range(STEPS - 1) if (step + 1) % SCORED_EVERY == 0)
        assert scorer.seen == [0.5] * 2 * scored
    unused = FakeScorer(ACTION)
    weighed(writer(unused, alignment=0.0, smoothness=0.0, progression=1.0), segment)
    assert unused.seen == []


def test_the_later_half_of_an_estimate_is_scored(segment: Segment) -> None:
    scorer = FakeScorer(ACTION)
    told = writer(scorer)
    prompts = told.prompts(segment)
    rising = torch.linspace(-1, 1, 7).view(1, 1, -1, 1, 1).expand(1, MINI.latent_channels, -1, 8, 12)
    told.weigh(prompts, rising, 0.5, STEPS // 2, None)
    assert scorer.seen == pytest.approx([0, 1], abs=1e-6)  # from the middle to the end
    assert prompts.ending is not None
    assert prompts.ending.tolist() == pytest.approx([1, 0], abs=1e-6)


def test_how_the_neighbour_ends_counts_by_smoothness(segment: Segment) -> None:
    scorer = FakeScorer(ACTION)
    smooth = writer(scorer, alignment=0.0, smoothness=0.5, progression=0.5)
    alone = action_weights(weighed(smooth, segment))
    shows_action, shows_scene = (weighed(smooth, segment, brightness=b) for b in (1.0, -1.0))
    after_action = action_weights(weighed(smooth, segment, neighbour=shows_action))
    after_scene = action_weights(weighed(smooth, segment, neighbour=shows_scene))
    for more, usual, less in list(zip(after_action, alone, after_scene, strict=True))[1:]:
        assert more > usual > less
    unscored = smooth.prompts(segment)
    assert action_weights(weighed(smooth, segment, neighbour=unscored)) == alone


def test_a_model_without_previews_is_ruled_by_progression(segment: Segment) -> None:
    class Blind(FakeAdapter):
        def preview(self, latents: Tensor) -> Tensor | None:
            return None

    scorer = FakeScorer(ACTION)
    blind = PromptWriter(Blind(MINI), settings(), scorer)
    assert action_weights(weighed(blind, segment)) == action_weights(weighed(writer(), segment))
    assert scorer.seen == []


def test_the_weights_are_written_in_place(segment: Segment) -> None:
    told = writer(FakeScorer(ACTION))
    prompts = told.prompts(segment)
    place, text = prompts.text.weights.data_ptr(), prompts.text
    seen = [prompts.text.weights.clone()]
    for step in range(STEPS - 1):
        told.weigh(prompts, estimate(1.0), 1 - step / STEPS, step + 1, None)
        seen.append(prompts.text.weights.clone())
    assert prompts.text is text
    assert prompts.text.weights.data_ptr() == place
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))
    assert all(float(w.max()) <= 1 and float(w.min()) >= 0 for w in seen)
    prompts.restore(told.prompts(segment).state())
    assert prompts.text.weights.data_ptr() == place
    assert torch.equal(prompts.text.weights, seen[0])


@pytest.mark.parametrize("scored", [True, False])
def test_a_restored_segment_goes_on_as_if_nothing_had_been(segment: Segment, scored: bool) -> None:
    told = writer(FakeScorer(ACTION) if scored else None, smoothness=0.3, progression=0.3)
    neighbour = weighed(told, segment, brightness=-0.5)
    half, rest = range(STEPS // 2), range(STEPS // 2, STEPS)
    kept = weighed(told, segment, 0.25, neighbour, half)
    state = kept.state()
    assert ("ending" in state) == scored
    restored = told.prompts(segment)
    restored.restore({name: value.clone() for name, value in state.items()})
    assert torch.equal(restored.text.weights, kept.text.weights)
    assert restored.decided() == kept.decided()
    for name, value in restored.state().items():
        assert torch.equal(value, state[name])
    # Above the level of scoring, it is the restored scores that count.
    for sigma in (0.9, *(1 - step / STEPS for step in rest)):
        for prompts in (kept, restored):
            told.weigh(prompts, estimate(0.75), sigma, STEPS - 1, neighbour.ending)
        assert torch.equal(restored.text.weights, kept.text.weights)


PAIRS = f"""
scenes:
  - [a, x is {COMMON_ACTIONS[0]}]
  - [b, x is {COMMON_ACTIONS[0]}]
  - [c, x is dancing]
  - {{scene: d, action: x is dancing, transition: cut}}
"""


def told_plan(**overrides: object) -> Plan:
    return plan_of(PAIRS, **overrides)


def test_similar_actions_are_found_where_segments_are_blended() -> None:
    plan, adapter = told_plan(), FakeAdapter(MINI)
    scorer = FakeScorer(plan.segments[0].phrase)
    assert similarities(plan, adapter, scorer) == [1.0, 0.0, None]
    assert similarities(told_plan(without=frozenset({"sar"})), adapter, scorer) == [None] * 3
    assert similarities(told_plan(without=frozenset({"twb"})), adapter, scorer) == [None] * 3


def test_without_a_scorer_the_models_own_words_are_compared() -> None:
    found = similarities(told_plan(), FakeAdapter(MINI), None)
    assert found[0] == 1
    assert found[1] in (0, 1)  # in one dimension texts are alike or opposite
    assert found[2] is None
