"""The one denoising loop: a window of neighbouring segments, from noise to latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from storyreel.errors import NumericsError
from storyreel.method.blending import blend_overlap
from storyreel.models.base import Adapter, Text
from storyreel.plan import Plan, Segment, derived_seed

SHARED_NOISE = 0.3  # share of every segment's noise, in variance, that is the whole story's


@torch.inference_mode()
def denoise(
    adapter: Adapter,
    plan: Plan,
    window: Sequence[Segment],
    texts: Sequence[Text],
    negative: Text,
    before: Tensor | None,
    on_forward: Callable[[], None],
) -> list[Tensor]:
    """Return the clean latents (1, C, lead + own, H, W) of each segment of a window.

    All segments of the window are at one noise level, so that neighbours constrain each other
    in their overlap at every step. ``before`` are the finished latents of the segment before
    the window; they constrain the first one. Raises NumericsError for NaN or infinity.
    """
    guidance = plan.settings.guidance
    xs = [segment_noise(plan, segment).to(adapter.device) for segment in window]
    for sigma, lower in pairwise(adapter.sigmas(plan.settings.steps)):
        velocities = []
        for x, text in zip(xs, texts, strict=True):
            velocities.append(guided_velocity(adapter, x, sigma, text, negative, guidance))
            on_forward()
        estimates = [denoised(x, v, sigma) for x, v in zip(xs, velocities, strict=True)]
        agreed = blend_seams(window, estimates, before)
        # What blending changed, as velocity; elsewhere this is exactly the model's own.
        velocities = [
            v + (own - shared) / sigma for v, own, shared in zip(velocities, estimates, agreed, strict=True)
        ]
        xs = [euler(x, v, sigma, lower) for x, v in zip(xs, velocities, strict=True)]
    for segment, x in zip(window, xs, strict=True):
        if not x.isfinite().all():
            raise NumericsError(
                f"scene {segment.index + 1} came out as NaN or infinity",
                "Try a lower --guidance or more --steps; finished scenes are kept.",
            )
    return xs


def segment_noise(plan: Plan, segment: Segment) -> Tensor:
    """Return a segment's noise (1, C, lead + own, H, W), drawn on the CPU.

    A part of it is the whole story's, which makes segments alike. Where a segment is blended
    with the one before, the overlap's noise is that one's.
    """
    noise = _own_noise(plan, segment)
    if segment.blended:
        noise[:, :, : segment.lead] = _own_noise(plan, plan.segments[segment.index - 1])[
            :, :, -segment.lead :
        ]
    return noise


def _own_noise(plan: Plan, segment: Segment) -> Tensor:
    spec, settings = plan.spec, plan.settings
    rows, columns = settings.height // spec.pixels_per_latent, settings.width // spec.pixels_per_latent

    def draw(seed: int) -> Tensor:
        # Frame by frame, so that a longer scene begins like a shorter one.
        generator = torch.Generator().manual_seed(seed)
        frames = segment.lead + segment.latents
        noise = torch.randn(frames, spec.latent_channels, rows, columns, generator=generator)
        return noise.transpose(0, 1)[None].contiguous()

    story, own = draw(derived_seed(settings.seed, -1)), draw(segment.seed)
    return math.sqrt(SHARED_NOISE) * story + math.sqrt(1 - SHARED_NOISE) * own


def guided_velocity(
    adapter: Adapter, x: Tensor, sigma: float, text: Text, negative: Text, guidance: float
) -> Tensor:
    """Return the velocity with classifier-free guidance; at guidance 1 without a second pass."""
    if guidance == 1:
        return adapter.predict(x, sigma, [text])[0]
    without, with_text = adapter.predict(x, sigma, [negative, text])
    return without + guidance * (with_text - without)


def denoised(x: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """Return the estimate x̂0 = x - σ·v."""
    return x - sigma * velocity


def euler(x: Tensor, velocity: Tensor, sigma: float, lower: float) -> Tensor:
    """Step from σ down to ``lower`` along the velocity ε - x0."""
    return x + (lower - sigma) * velocity


def blend_seams(
    window: Sequence[Segment], estimates: Sequence[Tensor], before: Tensor | None
) -> list[Tensor]:
    """Blend neighbouring estimates in their overlaps; a finished neighbour only gives."""
    blended = list(estimates)
    for i, segment in enumerate(window):
        if not segment.blended:
            continue
        if i > 0:
            blended[i - 1], blended[i] = blend_overlap(blended[i - 1], blended[i], segment.lead)
        elif before is not None:
            _, blended[0] = blend_overlap(before, blended[0], segment.lead)
    return blended
