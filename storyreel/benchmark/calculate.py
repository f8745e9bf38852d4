"""What a model's work costs, calculated on tensors that have shapes and no data.

It needs neither weights nor a GPU. Operations are counted as `bench` counts them: those of the
transformer's forwards. Memory is what is alive on the device at once while no graph is compiled, without
the allocator's own and the kernels' scratch space: a GPU wants a few hundred MB more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from storyreel.benchmark.meter import Meter
from storyreel.benchmark.run import VARIANTS, planned
from storyreel.errors import UsageError
from storyreel.method.step_skipping import SPEEDS
from storyreel.models.base import Text, adapter_class, side_by_side
from storyreel.models.pipeline import MODES, PipelineAdapter
from storyreel.models.specs import ModelSpec
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides

# What actions have in common is not known without a model: every seam has the longest overlap.
CALCULABLE = tuple(name for name in VARIANTS if name != "without-sar")
META = torch.device("meta")
TOKENS = 16  # of a scene or an action prompt, and of no prompt at all; both in one text have twice as many


def calculate(spec: ModelSpec, overrides: Overrides, variants: Sequence[str]) -> dict[str, Any]:
    """Return what variants of a model cost. Raises UsageError for an unknown one."""
    if unknown := set(variants) - set(CALCULABLE):
        raise UsageError(f"nothing can be calculated for {min(unknown)!r}", f"Known: {', '.join(CALCULABLE)}")
    if spec.hub is None:
        raise UsageError(f"model {spec.name} can be measured: it is here", "Leave out --calculate.")
    adapter = adapter_class(spec).random(spec, META)
    plans = {name: planned(spec, overrides, name) for name in variants}
    first = plans[variants[0]]

    @cache
    def once(latents: int, texts: int, weighted: bool) -> int:
        return forward(adapter, first, latents, texts, weighted).operations

    rows = []
    for name, plan in plans.items():
        rows.append(
            {
                "variant": name,
                "forwards": plan.forwards // len(plan.segments),
                "latents": plan.latents / len(plan.segments),
                "pflop": operations(plan, once) / len(plan.segments) / 1e15,
            }
        )
    settings = first.settings
    return {
        "model": spec.name,
        "size": f"{settings.width}x{settings.height}",
        "frames": first.segments[0].frames + 1,
        "steps": settings.steps,
        "memory_gb": {mode: round(size / 1e9, 1) for mode, size in needs(adapter, first).items()},
        "variants": rows,
    }


def operations(plan: Plan, once: Callable[[int, int, bool], int]) -> int:
    """Return the floating-point operations of all forwards of a film's denoising.

    ``once`` tells those of one forward for latent frames, texts and whether prompts are weighted.
    """
    steps, speed, weighted = (
        plan.settings.steps,
        SPEEDS[plan.settings.speed],
        bool(plan.settings.method.weighting),
    )
    return sum(
        once(segment.lead + segment.latents, 2 if speed.guides(step, steps) else 1, weighted)
        for segment in plan.segments
        for step in range(steps)
        if speed.computes(step, steps)
    )


def needs(adapter: PipelineAdapter, plan: Plan) -> dict[str, int]:
    """Return the bytes that a device must have free for a film in each memory mode."""
    longest = max(segment.lead + segment.latents for segment in plan.segments)
    experts, encoder, codec = (
        sum(map(_bytes, modules)) for modules in (adapter.experts, [adapter.text_encoder], [adapter.vae])
    )
    denoising = forward(adapter, plan, longest, 2, True)
    with Meter(_weights(adapter)) as decoding, torch.inference_mode():
        latents = adapter._raw(_noise(plan, longest)).to(next(adapter.vae.parameters()).dtype)
        for _ in adapter._decoded(latents):
            pass
    blocks = adapter.blocks(adapter.transformer)
    # Two blocks at a time, the second on its way, and whatever is no block; one matrix of the encoder.
    parts = _bytes(adapter.transformer) - sum(map(_bytes, blocks)) + 2 * max(map(_bytes, blocks))
    largest = max(p.numel() * p.element_size() for p in adapter.text_encoder.parameters())
    found = (
        experts + encoder + codec + max(denoising.peak, decoding.peak),
        experts + max(encoder, denoising.peak, codec + decoding.peak),
        max(parts + denoising.peak, codec + decoding.peak, largest),
    )
    return dict(zip(MODES, found, strict=True))


@torch.inference_mode()
def forward(adapter: PipelineAdapter, plan: Plan, latents: int, texts: int, weighted: bool) -> Meter:
    """Ask the transformer once, as a GPU would do it: with guidance for two ``texts``."""
    width = adapter.text_encoder.config.d_model

    def text(tokens: int) -> Text:
        mask = torch.ones(1, tokens, device=META, dtype=torch.bool)
        return Text(torch.empty(1, tokens, width, device=META, dtype=adapter.dtype), mask)

    told, nothing = text(2 * TOKENS), text(TOKENS)
    if weighted:
        told = side_by_side([text(TOKENS), text(TOKENS), told], [0.0, 0.0, 1.0])
    x = _noise(plan, latents)
    meter = Meter(_weights(adapter))
    with meter, GpuAttention():
        adapter.predict(x, 0.5, [nothing, told][-texts:])
    return meter


def _weights(adapter: PipelineAdapter) -> list[Tensor]:
    modules = (*adapter.experts, adapter.vae)
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def _noise(plan: Plan, latents: int) -> Tensor:
    spec, settings = plan.spec, plan.settings
    rows, columns = (side // spec.pixels_per_latent for side in (settings.height, settings.width))
    return torch.empty(1, spec.latent_channels, latents, rows, columns, device=META)


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


class GpuAttention(TorchFunctionMode):
    """Attends as torch does on a GPU, where no matrix of all pairs is ever there."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        output: Tensor
        if attn_mask is None:
            output = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        else:
            added = query.new_empty(attn_mask.shape).expand(*query.shape[:3], key.shape[2])
            output = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, added, False)[
                0
            ]
        return output
