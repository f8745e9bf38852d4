"""What a film costs a model in arithmetic and memory, calculated on tensors that have shapes and no data.

No weights and no GPU are needed. Operations are counted as `bench` counts them: those of the
transformer's evaluations. Traffic is what tensors' operations read and write, each by itself, as without a
compiler. From both follows a lower bound of the time on some cards. Memory is what is alive on the device at
once while no graph is compiled, without the allocator's own and the kernels' scratch space: a GPU wants a few
hundred MB more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from storyreel.benchmark.meter import Meter
from storyreel.benchmark.stock import stock_of
from storyreel.benchmark.variants import STOCK, VARIANTS, planned
from storyreel.errors import UsageError
from storyreel.models.base import Request, side_by_side
from storyreel.models.loading import adapter_class
from storyreel.models.memory import GB, Needs, Working
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.specs import QUANTIZATIONS, ModelSpec
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides

# What actions have in common is not known without a model: every seam has the longest overlap.
CALCULABLE = (STOCK, *(name for name in VARIANTS if name != "without-sar"))
META = torch.device("meta")
PIECES = 12  # of a clip; decoding more of it takes no more memory (tests/models/test_decoding.py)
TOKENS = 16  # of a scene or an action prompt, and of no prompt at all; both in one text have twice as many


class Card(NamedTuple):
    """What a card can do in a second at most: dense matrices in bfloat16, and bytes of its memory."""

    operations: float
    traffic: float


CARDS = {
    "H100 SXM": Card(989e12, 3.35e12),  # NVIDIA's data sheet; its 1979 TFLOP/s are those with sparsity
    "RTX 4090": Card(165.2e12, 1.008e12),  # NVIDIA's paper on the Ada architecture, appendix A
}


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
    def of_one(latents: int, texts: int, weighting: str) -> Meter:
        if weighting == STOCK:
            return stock_evaluation(adapter, first, latents, texts)
        return evaluation(adapter, first, latents, texts, weighting)

    rows = []
    for name, plan in plans.items():
        count = len(plan.segments)
        asked = evaluations(plan, STOCK if name == STOCK else None)
        meters = [of_one(*one) for one in asked]
        rows.append(
            {
                "variant": name,
                "forwards": plan.forwards // count,
                "latents": plan.latents / count,
                "pflop": sum(meter.operations for meter in meters) / count / 1e15,
                "terabytes": sum(meter.traffic for meter in meters) / count / 1e12,
                "bound_s": {
                    card: sum(meter.seconds(*limits) for meter in meters) / count
                    for card, limits in CARDS.items()
                },
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


def weighting_of(plan: Plan) -> str:
    """Return how a film's texts are weighted: none, words or texts."""
    return {"texts": "texts", True: "words"}.get(plan.settings.method.weighting, "none")


def evaluations(plan: Plan, weighting: str | None = None) -> list[tuple[int, int, str]]:
    """Return a film's model evaluations: of each its latent frames, its texts and how these are weighted.

    Those that find characters are among them.
    """
    how = weighting or weighting_of(plan)
    looks = [(1, 2, "none")] * plan.looks(plan.segments)
    return looks + [
        (segment.lead + segment.latents, 2 if guided else 1, how)
        for segment in plan.segments
        for guided in plan.pace.guided_when_computed
    ]


def operations(plan: Plan, of_one: Callable[[int, int, str], int]) -> int:
    """Return the floating-point operations of a film's evaluations, of which ``of_one`` counts each."""
    return sum(of_one(*one) for one in evaluations(plan))


def memory_needed(adapter: PipelineAdapter, plan: Plan) -> dict[str, int]:
    """Return the bytes that a device must have free for a film in each memory mode."""
    needed = adapter.offload.weights().on_device(working(adapter, plan, plan.longest))
    return {mode: int(size) for mode, size in needed.items()}


def working(adapter: PipelineAdapter, plan: Plan, latents: int) -> Working:
    """Return the bytes that a film's size wants beside the weights, for segments of so many latent frames."""
    denoising = evaluation(adapter, plan, latents, 2, weighting_of(plan))
    with Meter(_weights(adapter)) as decoding, GpuAttention(), torch.inference_mode():
        for _ in islice(adapter._decoded(adapter.raw(_noise(plan, latents))), PIECES):
            pass
    return Working(denoising.peak, decoding.peak)


def entry(spec: ModelSpec) -> dict[str, Any]:
    """Return what a model's entry in the table says of its memory, by name."""
    adapter = adapter_class(spec).random(spec, META)
    needed = memory_needed(adapter, planned(spec, Overrides(spec.name), "full"))
    sizes = {mode: round(size / GB, 1) for mode, size in needed.items()}
    return {"memory_gb": sizes, "needs": fitted(spec)}


def fitted(spec: ModelSpec) -> Needs:
    """Return a model's needs of memory, as its entry in the table has them: straight lines, by least squares.

    They are drawn through the smallest, the default and the largest size at the default length, and through
    the default size at twice that, or at half where no segment is so long. Denoising keeps what all tokens
    take; decoding what a picture takes, and of a VAE that does not go through a clip in pieces, what its
    latent frames take too.
    """
    by_storage, adapter = {}, None
    for how in QUANTIZATIONS:
        stored = spec.quantized(how)
        made = adapter_class(stored).random(stored, META)
        weights = made.offload.weights()
        by_storage[how] = (_gb(weights.experts[0]), _gb(weights.parts))
        adapter = adapter or (made, weights)
    assert adapter is not None
    model, weights = adapter
    usual = spec.usual_latents
    lengths = {(spec.min_size, usual), (spec.size, usual), (spec.max_size, usual)}
    lengths |= {(spec.size, 2 * usual if 2 * usual <= spec.max_latents else usual // 2)}
    areas, cells, found = [], [], []
    for (width, height), latents in sorted(lengths):
        plan = planned(spec, Overrides(spec.name, size=f"{width}x{height}"), "full")
        areas.append(width * height / 1e6)
        cells.append(areas[-1] * latents)
        found.append(working(model, plan, latents))
    ones = [1.0] * len(found)
    denoising = _line([ones, cells], [one.denoising for one in found])
    decoding = _line([ones, areas, cells], [one.decoding for one in found])
    return Needs(
        len(weights.experts),
        _gb(weights.encoders),
        _gb(weights.vae),
        _gb(weights.matrix),
        by_storage,
        (denoising[0], denoising[1]),
        (decoding[0], decoding[1], decoding[2]),
    )


def _gb(size: float) -> float:
    return round(size / GB, 3)


def _line(features: Sequence[Sequence[float]], sizes: Sequence[float]) -> list[float]:
    """Return the coefficients, in GB, of a linear form of features; relative errors count."""
    wanted = torch.tensor(sizes, dtype=torch.float64) / GB
    rows = torch.tensor(features, dtype=torch.float64).T / wanted[:, None]
    solution = torch.linalg.lstsq(rows, torch.ones_like(wanted)[:, None]).solution
    return [round(value, 4) + 0.0 for value in solution[:, 0].tolist()]  # which leaves no -0.0


@torch.inference_mode()
def evaluation(adapter: PipelineAdapter, plan: Plan, latents: int, texts: int, weighting: str) -> Meter:
    """Measure one evaluation of the transformer, as a GPU would do it: with guidance for two ``texts``.

    Of the prompt all words count alike, "none", or scene and action by weights of their own, as "words" of
    one text or as "texts" beside the joined one.
    """
    text = adapter.blank_text
    prompt, nothing = text(2 * TOKENS), text(TOKENS)
    if weighting == "texts":
        prompt = side_by_side([text(TOKENS), text(TOKENS), prompt], [0.0, 0.0, 1.0])
    elif weighting == "words":  # all but a few names and ends
        of_all = [torch.zeros(states.shape[1], dtype=torch.long) for states in prompt.states]
        for part in of_all:
            part[: TOKENS - 2], part[TOKENS : 2 * TOKENS - 2] = 1, 2
        prompt, _ = prompt.grouped(torch.cat(of_all))
    request = Request(
        _noise(plan, latents), 0.5, [nothing, prompt][-texts:], sound=_sound_noise(plan, latents)
    )
    meter = Meter(_weights(adapter))
    with meter, GpuAttention():
        list(adapter.predict([request]))
    return meter


@torch.inference_mode()
def stock_evaluation(adapter: PipelineAdapter, plan: Plan, latents: int, texts: int) -> Meter:
    """Measure one evaluation by diffusers' own pipeline: its calls, its padding and its attention."""
    meter, counts = Meter(_weights(adapter)), [TOKENS, 2 * TOKENS][-texts:]
    with meter, GpuAttention(counts):
        stock_of(adapter).evaluate(_noise(plan, latents), counts)
    return meter


def _weights(adapter: PipelineAdapter) -> list[Tensor]:
    modules = (*adapter.experts, adapter.vae)
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def _noise(plan: Plan, latents: int) -> Tensor:
    spec, settings = plan.spec, plan.settings
    rows, columns = (side // spec.pixels_per_latent for side in (settings.height, settings.width))
    return torch.empty(1, spec.latent_channels, latents, rows, columns, device=META)


def _sound_noise(plan: Plan, latents: int) -> Tensor | None:
    spec = plan.spec
    if spec.sound is None:
        return None
    return torch.empty(1, spec.sound.channels, spec.sound_latents(latents), 1, spec.sound.bands, device=META)


class GpuAttention(TorchFunctionMode):
    """Attends as torch does on a GPU, where no matrix of all pairs is ever there.

    ``counts`` are the tokens of a batch's texts: what a mask without data would say.
    """

    def __init__(self, counts: Sequence[int] = ()) -> None:
        super().__init__()
        self._counts = cycle(counts)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nonzero:
            return torch.empty(next(self._counts), 1, dtype=torch.long, device=META)
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
