"""What a film costs a model in arithmetic and memory, calculated on tensors that have shapes and no data.

No weights and no GPU are needed. Operations are counted as `bench` counts them: those of the
transformer's evaluations. Memory is what is alive on the device at once while no graph is compiled, without
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
from storyreel.models.base import Request, Text, side_by_side
from storyreel.models.loading import adapter_class
from storyreel.models.offload import MODES
from storyreel.models.pipeline import PipelineAdapter
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
        raise UsageError(f"{min(unknown)!r} cannot be calculated", f"Known: {', '.join(CALCULABLE)}")
    if spec.hub is None:
        raise UsageError(f"model {spec.name} can be measured: it is here", "Leave out --calculate.")
    adapter = adapter_class(spec).random(spec, META)
    plans = {name: planned(spec, overrides, name) for name in variants}
    first = plans[variants[0]]

    @cache
    def of_one(latents: int, texts: int, weighted: bool) -> int:
        return evaluation(adapter, first, latents, texts, weighted).operations

    rows = []
    for name, plan in plans.items():
        rows.append(
            {
                "variant": name,
                "forwards": plan.forwards // len(plan.segments),
                "latents": plan.latents / len(plan.segments),
                "pflop": operations(plan, of_one) / len(plan.segments) / 1e15,
            }
        )
    settings = first.settings
    return {
        "model": spec.name,
        "size": f"{settings.width}x{settings.height}",
        "frames": first.segments[0].frames + 1,
        "steps": settings.steps,
        "memory_gb": {mode: round(size / 1e9, 1) for mode, size in memory_needed(adapter, first).items()},
        "variants": rows,
    }


def operations(plan: Plan, of_one: Callable[[int, int, bool], int]) -> int:
    """Return the floating-point operations of all model evaluations of a film's denoising.

    Those that find characters are among them. ``of_one`` returns those of one evaluation, given its latent
    frames, its texts and whether it reads three prompts.
    """
    steps, speed, weighted = (
        plan.settings.steps,
        SPEEDS[plan.settings.speed],
        plan.settings.method.weighting == "texts",
    )
    looks = plan.looks(plan.segments)
    return (looks and looks * of_one(1, 2, False)) + sum(
        of_one(segment.lead + segment.latents, 2 if speed.guides(step, steps) else 1, weighted)
        for segment in plan.segments
        for step in range(steps)
        if speed.computes(step, steps)
    )


def memory_needed(adapter: PipelineAdapter, plan: Plan) -> dict[str, int]:
    """Return the bytes that a device must have free for a film in each memory mode."""
    longest = max(segment.lead + segment.latents for segment in plan.segments)
    experts, encoders, vae = adapter.offload.sizes()
    denoising = evaluation(adapter, plan, longest, 2, plan.settings.method.weighting == "texts")
    with Meter(_weights(adapter)) as decoding, torch.inference_mode():
        for _ in adapter._decoded(adapter.raw(_noise(plan, longest))):
            pass
    transformer = adapter.experts[0]
    blocks = adapter.blocks(transformer)
    # Two blocks at a time, the second on its way, and whatever is no block; one matrix of an encoder.
    parts = _bytes(transformer) - sum(map(_bytes, blocks)) + 2 * max(map(_bytes, blocks))
    largest = max(p.numel() * p.element_size() for e in adapter.text_encoders for p in e.parameters())
    by_mode = (
        experts + encoders + vae + max(denoising.peak, decoding.peak),
        experts + max(encoders, denoising.peak, vae + decoding.peak),
        max(parts + denoising.peak, vae + decoding.peak, largest),
    )
    return dict(zip(MODES, by_mode, strict=True))


@torch.inference_mode()
def evaluation(adapter: PipelineAdapter, plan: Plan, latents: int, texts: int, weighted: bool) -> Meter:
    """Measure one evaluation of the transformer, as a GPU would do it: with guidance for two ``texts``."""
    widths = [encoder.get_input_embeddings().embedding_dim for encoder in adapter.text_encoders]

    def text(tokens: int) -> Text:
        states = (torch.empty(1, tokens, width, device=META, dtype=adapter.dtype) for width in widths)
        return Text(tuple(states), torch.ones(1, tokens * len(widths), device=META))

    prompt, nothing = text(2 * TOKENS), text(TOKENS)
    if weighted:
        prompt = side_by_side([text(TOKENS), text(TOKENS), prompt], [0.0, 0.0, 1.0])
    request = Request(_noise(plan, latents), 0.5, [nothing, prompt][-texts:])
    meter = Meter(_weights(adapter))
    with meter, GpuAttention():
        list(adapter.predict([request]))
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
