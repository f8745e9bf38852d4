"""Our loop against diffusers' scheduler and pipeline, and what blending must keep."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, MochiPipeline
from diffusers.models.attention_processor import MochiAttnProcessor2_0
from torch import Tensor

from storyreel.denoise.anchors import Anchors
from storyreel.denoise.loop import (
    State,
    begin,
    blend_seams,
    denoise,
    denoised,
    euler,
    first_noise,
    next_velocities,
    sample,
    segment_noise,
)
from storyreel.denoise.prompts import Prompts, PromptWriter
from storyreel.errors import NumericsError
from storyreel.models.base import Adapter, Request, Text
from storyreel.models.mochi import MochiAdapter
from storyreel.models.specs import MODELS
from storyreel.story.plan import Plan
from tests.conftest import FakeAdapter, FakeScorer, plan_of
from tests.tiny import CPU, MOCHI, TINY, mochi_transformer, mochi_vae

SCENES = (("a fox in the park", "a fox walks"), ("a dog in the park", "a dog sleeps"), ("the park", "a dog"))
HEAD = "render: {model: tiny}\nscenes:\n"
STORY = HEAD + "".join(f"  - [{scene}, {action}]\n" for scene, action in SCENES)
CUTS = HEAD + "".join(f"  - {{scene: {s}, action: {a}, transition: cut}}\n" for s, a in SCENES)
CUT_SCENE = "  - {scene: a fox in the park, action: a fox sleeps, transition: cut}\n"


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setitem(MODELS, "tiny", TINY)
    return plan_of(STORY)


def without_all(text: str = STORY, **overrides: object) -> Plan:
    return plan_of(text, without=frozenset({"all"}), **overrides)


def film(adapter: Adapter, plan: Plan, scorer: FakeScorer | None = None) -> list[Tensor]:
    """Return the latents of every segment, each run denoised from its beginning."""
    finished: dict[int, Tensor] = {}
    writer = PromptWriter(adapter, plan.settings, scorer)
    anchors = Anchors(adapter, plan, finished.__getitem__)
    for run in plan.runs():
        for done, _ in denoise(adapter, plan, run, writer, anchors, State(None, []), nothing):
            finished[done.segment.index] = done.x
    return [finished[index] for index in range(len(plan.segments))]


class WithPreview(MochiAdapter):
    """The tiny model with a picture of its latents, so that a scorer has something to see."""

    @classmethod
    def of(cls, tiny: MochiAdapter) -> WithPreview:
        return cls(TINY, tiny.device, tiny.parts)

    def preview(self, latents: Tensor) -> Tensor | None:
        return latents[0, :3].transpose(0, 1).tanh()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def nothing() -> None:
    return None


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_loop_equals_the_stock_pipeline(plan: Plan, tiny: MochiAdapter, guidance: float) -> None:
    """Latents of `MochiPipeline` and ours agree to 1e-6, with guidance and without."""
    steps = 6
    plan = without_all(steps=steps, guidance=guidance)
    segment = plan.segments[1]
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    parts = replace(tiny.parts, experts=[mochi_transformer()], scheduler=scheduler)
    adapter = MochiAdapter(MOCHI, CPU, parts)
    text, negative = adapter.encode(segment.prompt), adapter.encode("")
    ours = film(adapter, plan)[1]
    for block in adapter.experts[0].transformer_blocks:
        block.attn1.processor = MochiAttnProcessor2_0()
    with_stock_attention = film(adapter, plan)[1]

    pipeline = MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=mochi_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=mochi_transformer(),
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt_embeds=text.states[0],
        prompt_attention_mask=text.weights.bool(),
        negative_prompt_embeds=negative.states[0],
        negative_prompt_attention_mask=negative.weights.bool(),
        latents=segment_noise(plan, segment),
        height=64,
        width=64,
        num_frames=6 * (ours.shape[2] - 1) + 1,
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="latent",
    ).frames
    # The loop alone: the largest difference of any element. Seen: 0.
    assert relative(with_stock_attention, theirs) <= 1e-6
    # Batched attention rounds otherwise, and guidance enlarges that: in norm. Seen: 4e-7.
    assert float((ours - theirs).norm() / theirs.norm()) <= 1e-6


def test_euler_equals_the_scheduler() -> None:
    generator = torch.Generator().manual_seed(0)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.35, 0.1])
    ours = theirs = torch.randn(1, 2, 3, 4, 4, generator=generator)
    sigmas = scheduler.sigmas.tolist()
    for i, timestep in enumerate(scheduler.timesteps):
        velocity = torch.randn(ours.shape, generator=generator)
        theirs = scheduler.step(velocity, timestep, theirs, return_dict=False)[0]
        ours = euler(ours, velocity, sigmas[i], sigmas[i + 1])
    assert relative(ours, theirs) <= 1e-6


def test_a_model_that_knows_the_answer_is_taken_at_its_word() -> None:
    x0, eps = torch.full((1, 1, 1, 1, 1), 0.3), torch.full((1, 1, 1, 1, 1), -2.0)
    x, sigma = 0.4 * x0 + 0.6 * eps, 0.6
    assert math.isclose(float(denoised(x, eps - x0, sigma)), 0.3, rel_tol=1e-6)
    assert math.isclose(float(euler(x, eps - x0, sigma, 0.0)), 0.3, rel_tol=1e-6)
    assert math.isclose(float(euler(x, eps - x0, sigma, 0.2)), 0.8 * 0.3 - 0.2 * 2.0, rel_tol=1e-6)


def test_noise_is_reproducible_shared_and_continuous(plan: Plan) -> None:
    first, second, third = (segment_noise(plan, s) for s in plan.segments)
    assert torch.equal(first, segment_noise(plan, plan.segments[0]))
    lead = plan.segments[1].lead
    assert lead > 0
    assert torch.equal(second[:, :, :lead], first[:, :, -lead:])
    assert torch.equal(third[:, :, :lead], second[:, :, -lead:])
    for noise in (first, second, third):
        assert abs(float(noise.mean())) < 0.1
        assert abs(float(noise.std()) - 1) < 0.05
    frames = min(second.shape[2], third.shape[2])
    own = slice(lead, frames)
    correlation = float((second[:, :, own] * third[:, :, own]).mean())
    assert 0.15 < correlation < 0.45  # the story's share, not more
    other = plan_of(STORY, seed=1)
    assert not torch.equal(first, segment_noise(other, other.segments[0]))


def test_longer_scenes_begin_with_the_noise_of_shorter_ones(plan: Plan) -> None:
    longer = plan_of(STORY, seconds=2.0)
    short, long = segment_noise(plan, plan.segments[0]), segment_noise(longer, longer.segments[0])
    assert torch.equal(short, long[:, :, : short.shape[2]])


def test_neighbours_agree_in_their_overlap(plan: Plan, tiny: MochiAdapter) -> None:
    """At strength 1, blended to the last step, both sides come out with the same frames there."""
    plan = plan_of(STORY, steps=8, method=("release=0.0", "window=8"))
    later = plan.segments[1:]
    latents = film(tiny, plan)
    for segment, a, b in zip(later, latents, latents[1:], strict=False):
        assert segment.lead == 2
        assert torch.allclose(a[:, :, -segment.lead :], b[:, :, : segment.lead], atol=1e-5)
    released = film(tiny, plan_of(STORY, steps=8, method=("release=0.5", "window=8")))
    assert not torch.allclose(released[0][:, :, -2:], released[1][:, :, :2], atol=1e-3)


def test_strength_0_leaves_independent_segments_bit_for_bit(tiny: MochiAdapter, plan: Plan) -> None:
    """With a scorer too, which could carry one segment's end into the next one's weights."""
    scorer = FakeScorer("a fox walks")
    latents = [
        film(WithPreview.of(tiny), plan_of(text, method=method), scorer)
        for text, method in ((STORY, ("strength=0.0",)), (CUTS, ()), (STORY, ()))
    ]
    for independent, cut, blended in zip(*latents, strict=True):
        assert torch.equal(independent, cut)
        assert independent.shape != blended.shape or not torch.equal(independent, blended)


@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_cut_seam_equals_an_independent_seam(tiny: MochiAdapter, window: int, plan: Plan) -> None:
    """What is behind a cut comes out as if the story began there."""
    method = (f"window={window}",)
    whole = plan_of(STORY + CUT_SCENE, method=method)
    latents = film(tiny, whole)
    before = film(tiny, plan_of(STORY, method=method))
    for a, b in zip(latents, before, strict=False):
        assert torch.equal(a, b)
    last = whole.segments[-1]
    writer = PromptWriter(tiny, whole.settings, None)
    ((alone, _),) = denoise(tiny, whole, [last], writer, None, State(None, []), nothing)
    assert torch.equal(latents[-1], alone.x)


def test_without_all_is_the_base_model_segment_by_segment(tiny: MochiAdapter, plan: Plan) -> None:
    plan = without_all()
    latents = film(tiny, plan)
    for segment, x in zip(plan.segments, latents, strict=True):
        assert torch.equal(x, sample(tiny, plan, segment, tiny.encode(segment.prompt)))


def test_a_window_of_one_is_one_after_the_other(plan: Plan) -> None:
    adapter = FakeAdapter(TINY)
    film(adapter, plan_of(STORY, method=("window=1",)))
    levels = [sigma for sigma, _ in adapter.predicted]
    assert levels == adapter.sigmas(3, ())[:-1] * 3


def test_only_a_window_of_segments_is_under_way(plan: Plan) -> None:
    adapter = FakeAdapter(TINY)
    plan = plan_of(STORY + '  - ["a", "b"]\n' * 7, steps=8, method=("window=4",))
    writer = PromptWriter(adapter, plan.settings, None)
    for _, after in denoise(adapter, plan, plan.segments, writer, None, State(None, []), nothing):
        assert len(after.window) <= 3


def test_a_state_is_all_it_takes_to_go_on(tiny: MochiAdapter, plan: Plan) -> None:
    plan = plan_of(STORY, method=("context=0.3", "window=2"))
    whole = film(tiny, plan)
    writer = PromptWriter(tiny, plan.settings, None)
    anchors = Anchors(tiny, plan, whole.__getitem__)
    takes = denoise(tiny, plan, plan.segments, writer, anchors, State(None, []), nothing)
    _, after = next(takes)
    del takes
    rest = plan.segments[1 + len(after.window) :]
    resumed = [done.x for done, _ in denoise(tiny, plan, rest, writer, anchors, after, nothing)]
    assert len(resumed) == 2
    for a, b in zip(whole[1:], resumed, strict=True):
        assert torch.equal(a, b)


def test_a_finished_neighbour_gives_and_does_not_take(plan: Plan) -> None:
    generator = torch.Generator().manual_seed(0)
    before, x = (torch.randn(1, 12, 3, 8, 8, generator=generator) for _ in range(2))
    kept, lead = before.clone(), plan.segments[1].lead
    take = begin(FakeAdapter(TINY), plan, plan.segments[1], Prompts(Text((x,), x)))
    (blended,) = blend_seams(plan, [take], [x], [0.9], before)
    assert torch.equal(before, kept)
    assert torch.equal(blended[:, :, :lead], before[:, :, -lead:])
    assert torch.equal(blended[:, :, lead:], x[:, :, lead:])
    (released,) = blend_seams(plan, [take], [x], [plan.settings.method.release], before)
    assert torch.equal(released, x)
    cut = plan_of(CUTS)
    (untouched,) = blend_seams(cut, [replace(take, segment=cut.segments[1])], [x], [0.9], before)
    assert torch.equal(untouched, x)


def test_equal_prompts_make_every_weight_the_same(tiny: MochiAdapter, plan: Plan) -> None:
    """Scene, action and both are one text then: weighted or not, the film is the same."""
    text = HEAD + "  - [a fox sleeps, a fox sleeps]\n" * 2
    weighted = film(tiny, plan_of(text, method=("temperature=0.05",)))
    plain = film(tiny, plan_of(text, without=frozenset({"dipw"})))
    for a, b in zip(weighted, plain, strict=True):
        assert torch.allclose(a, b, atol=2e-5 * float(b.abs().max()))


def test_the_published_form_pulls_the_first_noise(plan: Plan) -> None:
    plan = plan_of(STORY, method=("blending=published",))
    before = torch.ones(1, 12, 3, 8, 8)
    segment = plan.segments[1]
    pulled, noise = first_noise(plan, segment, before), segment_noise(plan, segment)
    gamma = plan.settings.method.gamma
    assert torch.allclose(pulled, 2 * gamma + math.sqrt(1 - (2 * gamma) ** 2) * noise, atol=1e-5)
    assert torch.equal(first_noise(plan, segment, None), noise)
    assert torch.equal(first_noise(plan_of(CUTS), segment, before), noise)


def test_the_published_form_pulls_towards_the_neighbour(plan: Plan) -> None:
    """Each of five scenes begins with its own neighbour's latents in its noise, not with an earlier one's."""
    begun: list[Tensor] = []

    class Watched(FakeAdapter):
        def answer(self, request: Request) -> list[Tensor]:
            if request.sigma == 1:
                begun.append(request.x)
            return super().answer(request)

    text = HEAD + "".join(f"  - [a {n}, it goes]\n" for n in ("fox", "dog", "cat", "cow", "ape"))
    plan = plan_of(text, method=("blending=published", "gamma=0.4"))
    latents = film(Watched(TINY), plan)
    for segment, noise in zip(plan.segments, begun, strict=True):
        before = latents[segment.index - 1] if segment.index else None
        assert torch.equal(noise, first_noise(plan, segment, before))
    assert not torch.equal(begun[4], segment_noise(plan, plan.segments[4]))


def test_context_reaches_the_segments_behind_and_its_weight_fades_to_nothing(
    tiny: MochiAdapter, plan: Plan
) -> None:
    plain = film(tiny, plan_of(STORY, method=("window=1", "context=0.0")))
    faint = film(tiny, plan_of(STORY, method=("window=1", "context=0.000000001")))
    strong = film(tiny, plan_of(STORY, method=("window=1", "context=1.0")))
    assert torch.equal(plain[0], strong[0])  # nothing is before it
    for a, b, c in zip(plain[1:], faint[1:], strong[1:], strict=True):
        assert torch.allclose(a, b, atol=1e-5)
        assert not torch.allclose(a, c, atol=1e-3)


def test_context_crosses_a_cut(tiny: MochiAdapter, plan: Plan) -> None:
    """A cut ends blending, not the character."""
    whole = plan_of(STORY + CUT_SCENE, method=("context=0.5",))
    assert whole.anchors(whole.segments[-1]) == (0, 2)
    last = film(tiny, whole)[-1]
    assert not torch.allclose(last, film(tiny, plan_of(STORY + CUT_SCENE))[-1], atol=1e-4)


@pytest.mark.parametrize("at", [0, 4])
def test_nan_stops_with_scene_and_step_named(plan: Plan, at: int) -> None:
    class Broken(FakeAdapter):
        def answer(self, request: Request) -> list[Tensor]:
            factor = math.nan if len(self.predicted) == at else 1.0
            return [factor * v for v in super().answer(request)]

    plan = plan_of(STORY, method=("window=1",))
    finished = []
    writer = PromptWriter(adapter := Broken(TINY), plan.settings, None)
    with pytest.raises(NumericsError, match=f"scene {at // 3 + 1} .* step {at % 3 + 1}"):
        for done, _ in denoise(adapter, plan, plan.segments, writer, None, State(None, []), nothing):
            finished.append(done.segment.index)
    assert finished == list(range(at // 3))


def test_a_speed_goes_on_from_no_other_experts_velocity(plan: Plan) -> None:
    """Nor is guidance then the same: the line through both would lead nowhere."""

    class TwoExperts(FakeAdapter):
        def expert_at(self, sigma: float) -> int:
            return 0 if sigma >= 0.5 else 1

    adapter = TwoExperts(TINY)
    settings = replace(plan.settings, speed="balanced", steps=10, guidance_2=1.0)
    writer = PromptWriter(adapter, settings, None)
    plan = replace(plan, settings=settings)
    take = begin(adapter, plan, plan.segments[0], writer.prompts(plan.segments[0]))
    lines = []
    for take.step in range(10):
        next_velocities(adapter, [take], writer.negative, settings, nothing)
        lines.append({adapter.expert_at(sigma) for sigma, _ in take.known})
    assert all(len(experts) == 1 for experts in lines)
    assert lines[0] == {0}
    assert lines[-1] == {1}
    assert len(take.known) == 2
