"""Our loop against diffusers' scheduler and pipeline, and what blending must keep."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, MochiPipeline
from diffusers.models.attention_processor import MochiAttnProcessor2_0
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from torch import Tensor

from storyreel.errors import NumericsError
from storyreel.models.base import Text
from storyreel.models.mochi import MochiAdapter
from storyreel.models.specs import MODELS
from storyreel.plan import Plan
from storyreel.sampling import blend_seams, denoise, denoised, euler, segment_noise
from tests.conftest import TINY, FakeAdapter, plan_of, tiny_transformer, tiny_vae

STORY = "render: {model: tiny}\nscenes:\n" + '  - ["a fox in the park", "a fox walks"]\n' * 3


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setitem(MODELS, "tiny", TINY)
    return plan_of(STORY)


def alone(plan: Plan, index: int = 0) -> Plan:
    segments = tuple(replace(s, blended=False) for s in plan.segments)
    return replace(plan, segments=segments)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def nothing() -> None:
    return None


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_loop_equals_the_stock_pipeline(plan: Plan, tiny: MochiAdapter, guidance: float) -> None:
    """Latents of `MochiPipeline` and ours agree to 1e-6, with guidance and without."""
    steps = 6
    plan = replace(alone(plan), settings=replace(plan.settings, steps=steps, guidance=guidance))
    segment = plan.segments[0]
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(sigmas=np.array(linear_quadratic_schedule(steps, 0.025)))

    class WithMochisSchedule(MochiAdapter):
        def sigmas(self, steps: int) -> list[float]:
            return [1 - sigma for sigma in scheduler.sigmas.tolist()]

    adapter = WithMochisSchedule(
        TINY, tiny.device, tiny_transformer(), tiny.vae, tiny.text_encoder, tiny.tokenizer
    )
    text, negative = adapter.encode("a fox walks"), adapter.encode("")
    ours = denoise(adapter, plan, [segment], [text], negative, None, nothing)[0]
    for block in adapter.transformer.transformer_blocks:
        block.attn1.processor = MochiAttnProcessor2_0()
    with_stock_attention = denoise(adapter, plan, [segment], [text], negative, None, nothing)[0]

    pipeline = MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=tiny_transformer(),
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt_embeds=text.states,
        prompt_attention_mask=text.mask,
        negative_prompt_embeds=negative.states,
        negative_prompt_attention_mask=negative.mask,
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
    own = slice(lead, None)
    correlation = float((second[:, :, own] * third[:, :, own]).mean())
    assert 0.15 < correlation < 0.45  # the story's share, not more
    other = plan_of(STORY, seed=1)
    assert not torch.equal(first, segment_noise(other, other.segments[0]))


def test_longer_scenes_begin_with_the_noise_of_shorter_ones(plan: Plan) -> None:
    longer = plan_of(STORY, seconds=2.0)
    short, long = segment_noise(plan, plan.segments[0]), segment_noise(longer, longer.segments[0])
    assert torch.equal(short, long[:, :, : short.shape[2]])


def test_neighbours_agree_in_their_overlap(plan: Plan, tiny: MochiAdapter) -> None:
    texts = [tiny.encode(p) for p in ("a fox sleeps", "a dog walks", "the park")]
    count = 0

    def forward() -> None:
        nonlocal count
        count += 1

    window = plan.segments
    together = denoise(tiny, plan, window, texts, tiny.encode(""), None, forward)
    assert count == len(window) * plan.settings.steps
    for earlier, later, segment in zip(together, together[1:], window[1:], strict=False):
        assert torch.allclose(earlier[:, :, -segment.lead :], later[:, :, : segment.lead], atol=1e-5)


def test_a_cut_leaves_a_segment_as_if_alone(plan: Plan, tiny: MochiAdapter) -> None:
    texts, negative = [tiny.encode(p) for p in ("a fox", "a dog", "a park")], tiny.encode("")
    cuts = alone(plan)
    together = denoise(tiny, cuts, cuts.segments, texts, negative, None, nothing)
    for segment, text, latents in zip(cuts.segments, texts, together, strict=True):
        single = denoise(tiny, cuts, [segment], [text], negative, None, nothing)[0]
        assert torch.equal(single, latents)


def test_a_finished_neighbour_gives_and_does_not_take(plan: Plan) -> None:
    generator = torch.Generator().manual_seed(0)
    before, x = (torch.randn(1, 12, 3, 8, 8, generator=generator) for _ in range(2))
    kept = before.clone()
    lead = plan.segments[1].lead
    (blended,) = blend_seams([plan.segments[1]], [x], before)
    assert torch.equal(before, kept)
    assert torch.allclose(blended[:, :, :lead], (before[:, :, -lead:] + x[:, :, :lead]) / 2, atol=1e-6)
    assert torch.equal(blended[:, :, lead:], x[:, :, lead:])
    (untouched,) = blend_seams([replace(plan.segments[1], blended=False)], [x], before)
    assert torch.equal(untouched, x)


def test_nan_stops_with_the_scene_named(plan: Plan) -> None:
    class Broken(FakeAdapter):
        def predict(self, x: Tensor, sigma: float, texts: object) -> list[Tensor]:
            return [x * math.nan, x * math.nan]

    adapter = Broken(TINY)
    text = Text(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(NumericsError, match="scene 1 "):
        denoise(adapter, plan, plan.segments[:1], [text], text, None, nothing)
