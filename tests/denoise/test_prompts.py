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
from storyreel.story.plan import Plan, Segment
from tests.conftest import FakeAdapter, FakeScorer, plan_of

MINI = MODELS["mini"]
SCENE, ACTION = "a fox at home", "a fox sits"
STEPS = 8


# What is scored is scored beside the story's other prompts.
STORY = f"""
cast: {{first: {{name: a fox}}}}
scenes:
  - [{SCENE}, {ACTION}]
  - [a bus, it drives]
"""


@pytest.fixture
def segment() -> Segment:
    return plan_of(STORY).segments[0]


def writer(scorer: FakeScorer | None = None, **method: object) -> PromptWriter:
    return PromptWriter(FakeAdapter(MINI), told(**method), scorer)


def told(**method: object) -> Plan:
    """A story whose prompts are weighed as texts, unless it says otherwise."""
    plan = plan_of(STORY, steps=STEPS)
    settings = replace(plan.settings, method=Method.model_validate({"weighting": "texts", **method}))
    return replace(plan, settings=settings)


def level(step: int) -> float:
    return 1 - step / STEPS


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
        writer.weigh(prompts, estimate(brightness), level(step), level(step + 1), step + 1, ending)
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


def test_words_of_the_action_count_more_while_the_model_decides_and_names_never_do(segment: Segment) -> None:
    """Without a scorer: the softmax of (0, λ3) at τ, then back to one half each, by inertia."""
    ours = writer(weighting=True, emphasis=8.0, temperature=0.1, progression=0.5, inertia=0.5)
    prompts = ours.prompts(segment)
    prompt = segment.prompt
    sits = prompt.rindex("sits")
    share, seen = 1 / (1 + math.exp(-5)), []
    for step in range(STEPS):
        weights = prompts.text.weights[0].tolist()
        words = {index for index, weight in enumerate(weights) if weight != 1}
        seen.append(weights[sits])
        assert words <= set(range(sits, sits + 4))  # not the scene's, nor the name in the action
        assert weights[sits] == pytest.approx((2 * share) ** 3, rel=1e-3)
        ours.weigh(prompts, estimate(0.0), level(step), level(step + 1), step + 1, None)
        decides = MINI.decides[0] < level(step + 1) <= MINI.decides[1]
        share = (share + (1 / (1 + math.exp(-5)) if decides else 0.5)) / 2
    assert seen[0] > 7.5
    assert seen == sorted(seen, reverse=True)
    assert 1 <= seen[-1] < 1.1


def test_a_scenes_words_are_its_own_also_where_the_action_says_them_again() -> None:
    (segment,) = plan_of('scenes:\n  - ["the park.", "a dog runs in the park"]\n').segments
    prompts = writer(weighting=True).prompts(segment)
    assert prompts.spans is not None
    assert segment.prompt == "the park. a dog runs in the park"
    # Tokens, here characters, stand in groups: those of neither, of the scene, of the action.
    assert prompts.spans.sum(1).tolist() == [len("thepark"), len("adogrunsinthepark")]
    assert not prompts.spans.all(0).any()


def test_an_emphasis_of_one_and_one_prompt_for_both_leave_the_text_as_it_is(segment: Segment) -> None:
    same = plan_of("scenes:\n  - [a fox sits, a fox sits]\n").segments[0]
    for ours, told_of in ((writer(weighting=True, emphasis=1.0), segment), (writer(weighting=True), same)):
        prompts = weighed(ours, told_of)
        assert (prompts.text.weights == 1).all()


def test_the_scene_prompt_alone_can_be_told(segment: Segment) -> None:
    prompts = weighed(writer(prompt="scene"), segment)
    assert torch.equal(prompts.text.states[0], FakeAdapter(MINI).encode(SCENE).states[0])
    assert prompts.decided() == []


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
    scored = writer(scorer)
    prompts = scored.prompts(segment)
    rising = torch.linspace(-1, 1, 7).view(1, 1, -1, 1, 1).expand(1, MINI.latent_channels, -1, 8, 12)
    scored.weigh(prompts, rising, 0.5, 0.375, STEPS // 2, None)
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
    blind = PromptWriter(Blind(MINI), told(), scorer)
    assert action_weights(weighed(blind, segment)) == action_weights(weighed(writer(), segment))
    assert scorer.seen == []


def test_the_weights_are_written_in_place(segment: Segment) -> None:
    scored = writer(FakeScorer(ACTION))
    prompts = scored.prompts(segment)
    place, text = prompts.text.weights.data_ptr(), prompts.text
    seen = [prompts.text.weights.clone()]
    for step in range(STEPS - 1):
        scored.weigh(prompts, estimate(1.0), level(step), level(step + 1), step + 1, None)
        seen.append(prompts.text.weights.clone())
    assert prompts.text is text
    assert prompts.text.weights.data_ptr() == place
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))
    assert all(float(w.max()) <= 1 and float(w.min()) >= 0 for w in seen)
    prompts.restore(scored.prompts(segment).state())
    assert prompts.text.weights.data_ptr() == place
    assert torch.equal(prompts.text.weights, seen[0])


@pytest.mark.parametrize("weighting", ["texts", True])
@pytest.mark.parametrize("scored", [True, False])
def test_a_restored_segment_goes_on_as_if_nothing_had_been(
    segment: Segment, scored: bool, weighting: object
) -> None:
    scorer = FakeScorer(ACTION) if scored else None
    ours = writer(scorer, smoothness=0.3, progression=0.3, weighting=weighting, emphasis=4.0)
    neighbour = weighed(ours, segment, brightness=-0.5)
    half, rest = range(STEPS // 2), range(STEPS // 2, STEPS)
    kept = weighed(ours, segment, 0.25, neighbour, half)
    state = kept.state()
    assert ("ending" in state) == scored
    restored = ours.prompts(segment)
    restored.restore({name: value.clone() for name, value in state.items()})
    assert torch.equal(restored.text.weights, kept.text.weights)
    assert restored.decided() == kept.decided()
    for name, value in restored.state().items():
        assert torch.equal(value, state[name])
    # Above the level of scoring, it is the restored scores that count.
    for sigma in (0.9, *(1 - step / STEPS for step in rest)):
        for prompts in (kept, restored):
            ours.weigh(prompts, estimate(0.75), sigma, sigma - 0.1, STEPS - 1, neighbour.ending)
        assert torch.equal(restored.text.weights, kept.text.weights)


PAIRS = f"""
scenes:
  - [a park, x is {COMMON_ACTIONS[0]}]
  - [a park, x is {COMMON_ACTIONS[0]}]
  - [a park, x is dancing]
  - {{scene: a park, action: x is dancing, transition: cut}}
"""


def similar_plan(**overrides: object) -> Plan:
    return plan_of(PAIRS, method=("overlap=2",), **overrides)


def test_similar_actions_are_found_where_segments_are_blended() -> None:
    plan, adapter = similar_plan(), FakeAdapter(MINI)
    scorer = FakeScorer(plan.segments[0].phrase)
    assert similarities(plan, adapter, scorer) == [1.0, 0.0, None]
    assert similarities(similar_plan(without=frozenset({"sar"})), adapter, scorer) == [None] * 3
    assert similarities(plan_of(PAIRS), adapter, scorer) == [None] * 3  # one latent frame cannot be shortened
    assert similarities(similar_plan(without=frozenset({"twb"})), adapter, scorer) == [None] * 3


def test_without_a_scorer_the_models_own_words_are_compared() -> None:
    found = similarities(similar_plan(), FakeAdapter(MINI), None)
    assert found[0] == 1
    assert found[1] in (0, 1)  # in one dimension texts are alike or opposite
    assert found[2] is None
