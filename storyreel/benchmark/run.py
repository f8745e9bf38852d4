"""Measures the time and memory of a model's variants, and of diffusers' own pipeline, in one process.

All take the same prompts, noise, steps, sizes and weights. Video encoding is left out. Decoding is timed
apart, and is storyreel's for all: stock has no time of its own for it. Stock encodes its prompts while it
is timed, which with random weights is next to nothing. Arithmetic is calculated (`work.py`), and stock's is
taken to be plain's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from storyreel.benchmark.stock import LTX2Stock, stock_of
from storyreel.benchmark.variants import STOCK, VARIANTS, planned
from storyreel.benchmark.work import Work
from storyreel.denoise.lead import Leads
from storyreel.denoise.loop import SegmentState, begin, denoise, segment_noise, sound_noise
from storyreel.denoise.prompts import PromptWriter, similarities
from storyreel.errors import MissingError, UsageError
from storyreel.models.device_errors import lacks_memory
from storyreel.models.host import peak_resident
from storyreel.models.loading import adapter_class, load_adapter
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.scorer import Scorer
from storyreel.models.specs import ModelSpec
from storyreel.story.plan import Plan, Segment
from storyreel.story.planning import Overrides

MATRIX = {"cuda": 8192, "cpu": 1024}  # the side of what the device's peak is measured with


@dataclass(frozen=True)
class Timing:
    """What a variant took, a segment: ``seconds`` of denoising, the median of all rounds.

    ``forwards`` are model evaluations, guidance included; ``latents`` latent frames, overlaps counted;
    ``tflops`` 10¹² operations a second, ``of_peak`` their share of what matrices reach; ``peak_mb`` and
    ``decode_peak_mb`` the device's memory in either part, None on a CPU, where it cannot be told apart.
    """

    variant: str
    seconds: float
    decode_seconds: float | None
    forwards: int
    latents: float
    tflops: float
    of_peak: float
    peak_mb: float | None
    decode_peak_mb: float | None


def bench(
    spec: ModelSpec,
    device: torch.device,
    overrides: Overrides,
    variants: Sequence[str],
    rounds: int,
    random_weights: bool,
    compiled: bool,
    tell: Callable[[str], None],
    attention: str | None = None,
    scenes: int | None = None,
) -> dict[str, Any]:
    """Measure variants; ``overrides`` are what all share, ``scenes`` of how many the film is, or of all.

    ``attention`` is a backend that works, for all variants. Raises UsageError for an unknown variant.
    """
    if unknown := set(variants) - {STOCK, *VARIANTS}:
        raise UsageError(f"unknown variant {min(unknown)!r}", f"Known: {', '.join((STOCK, *VARIANTS))}")
    with enough_memory(spec):
        adapter = load(spec, device, random_weights)
        if attention is not None:
            adapter.attend_by(attention)
        folder = spec.weights / "scorer"
        scorer = Scorer.load(folder, device) if folder.is_dir() and not random_weights else None
        peak = matrix_peak(device, adapter.dtype)
        tell(f"{spec.label} on {device_name(device)}: matrices reach {peak:.2f} TFLOP/s")
        plans = {name: planned(spec, overrides, name, scenes) for name in variants}
        plans = {name: plan.settled(similarities(plan, adapter, None)) for name, plan in plans.items()}
        calculation = Work(adapter)
        work = {name: calculation.of(plan) for name, plan in plans.items()}
        # The first round compiles and chooses kernels, by the shapes: few steps have them all.
        warm = {
            name: briefly(plan, lambda n, name=name: planned(spec, replace(overrides, steps=n), name, scenes))  # type: ignore[misc]
            for name, plan in plans.items()
        }
        if compiled:
            adapter.compile(tell)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        memory: dict[str, tuple[float, float]] = dict.fromkeys(variants, (0.0, 0.0))
        for number in range(rounds + 1):
            for name, plan in (plans if number else warm).items():
                seconds, peaks = run(adapter, plan, name, scorer)
                memory[name] = max(memory[name][0], peaks[0]), max(memory[name][1], peaks[1])
                if number:  # the first round warms up, and compiles
                    times[name].append(seconds)
            tell(f"round {number} of {rounds}" if number else "warmed up")
    rows = []
    for name, plan in plans.items():
        count = len(plan.segments)
        denoising, decoding = (statistics.median(part) for part in zip(*times[name], strict=True))
        reached = work[name] / denoising / 1e12
        rows.append(
            Timing(
                name,
                denoising / count,
                None if name == STOCK else decoding / count,
                plan.forwards // count,
                plan.latents / count,
                reached,
                reached / peak,
                *(memory[name] if device.type == "cuda" else (None, None)),
            )
        )
    settings = next(iter(plans.values())).settings
    return {
        "model": spec.name,
        "weights": "random" if random_weights else "its own",
        "quantize": spec.quantize,
        "device": device_name(device),
        "torch": torch.__version__,
        "size": f"{settings.width}x{settings.height}",
        "frames": plans[variants[0]].segments[0].frames + 1,
        "steps": settings.steps,
        "segments": len(plans[variants[0]].segments),
        "rounds": rounds,
        "compiled": adapter.compiled,
        "attention": attention,
        "peak_tflops": peak,
        "process_peak_mb": peak_resident() / 1e6,
        "variants": [asdict(row) for row in rows],
    }


@contextmanager
def enough_memory(spec: ModelSpec) -> Iterator[None]:
    """Turn a lack of the device's memory into MissingError."""
    try:
        yield
    except Exception as error:
        if not lacks_memory(error):
            raise
        lighter = "--quantize fp8, " if spec.quantize == "none" else ""
        remedy = f"Use {lighter}fewer --frames, a smaller --size or model, or a GPU with more memory."
        raise MissingError(f"the device has too little memory for {spec.label}", remedy) from error


def load(spec: ModelSpec, device: torch.device, random_weights: bool) -> PipelineAdapter:
    """Return the model with its own weights or random ones."""
    if not random_weights:
        adapter = load_adapter(spec, device, "high")  # the stock pipeline wants all of it there
    elif spec.hub is None:
        raise UsageError(f"model {spec.name} has its weights with it", "Leave out --random-weights.")
    else:
        adapter = adapter_class(spec).random(replace(spec, loras=()), device)
    if not isinstance(adapter, PipelineAdapter):
        raise UsageError(f"model {spec.name} has no pipeline to compare with", "Choose another model.")
    return adapter


def briefly(plan: Plan, in_steps: Callable[[int], Plan]) -> Plan:
    """Return the plan in as few steps as have all forms of evaluations that ``plan`` has: guided, and not."""

    def forms(plan: Plan) -> set[bool]:
        return set(plan.pace.guided_when_computed)

    steps = plan.settings.steps
    if plan.spec.sigmas:  # of which none can be left out
        return plan
    plans = map(in_steps, range(min(2, steps), steps + 1))
    return next(few for few in plans if forms(few) == forms(plan))


def run(
    adapter: PipelineAdapter, plan: Plan, variant: str, scorer: Scorer | None
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the seconds that denoising and decoding of all segments take, and the peaks of both in MB."""
    device = adapter.device
    with peak_memory(device) as first:
        began = _now(device)
        of = stock_latents(adapter, plan) if variant == STOCK else our_latents(adapter, plan, scorer)
        segments = list(of)
        denoising = _now(device) - began
    with peak_memory(device) as second:
        began = _now(device)
        for latents in segments:
            adapter.decode(latents)
        decoding = _now(device) - began
    return (denoising, decoding), (first[0], second[0])


def our_latents(
    adapter: PipelineAdapter,
    plan: Plan,
    scorer: Scorer | None,
    on_forward: Callable[[], None] = lambda: None,
) -> Iterator[Tensor]:
    """Yield the segments' latents as a render denoises them."""
    writer = PromptWriter(adapter, plan, scorer)
    done: dict[int, Tensor] = {}
    leads = Leads(adapter, plan, done.__getitem__)

    def start(segment: Segment) -> SegmentState | None:
        if not all(source in done for source in plan.sources(segment)):
            return None
        prompts, lead = writer.prompts(segment), leads.of(segment)
        return begin(adapter, plan, segment, prompts, lead, done.get(segment.index - 1))

    for finished in denoise(
        adapter, plan.settings, plan.segments, writer, start, lambda window: on_forward()
    ):
        done[finished.segment.index] = finished.x
        yield finished.x


def stock_latents(adapter: PipelineAdapter, plan: Plan) -> Iterator[Tensor]:
    """Yield the segments' latents as diffusers' own pipeline denoises them."""
    stock = stock_of(adapter)
    for segment in plan.segments:
        noise = segment_noise(plan, segment).to(adapter.device)
        if isinstance(stock, LTX2Stock):
            stock.sound = sound_noise(plan, segment).to(adapter.device)
        yield stock.latents(segment.prompt, noise, plan.settings)


def matrix_peak(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Return what a square matrix product reaches, in TFLOP/s: the best of some tries."""
    side = side or MATRIX[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        began = _now(device)
        for _ in range(5):
            a @ b
        best = min(best, (_now(device) - began) / 5)
    return 2 * side**3 / best / 1e12


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[float]]:
    """Measure the device's peak memory in MB, into the list's one entry."""
    used = [0.0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield used
    if device.type == "cuda":
        used[0] = torch.cuda.max_memory_allocated(device) / 1e6


def device_name(device: torch.device) -> str:
    """Return what people call a device."""
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
