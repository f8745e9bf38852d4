"""What `bench --gpu-day` measures: a table of steps, and a function for each kind of step.

A further row in `STEPS` is a further measurement; a further kind of it, a function in `KINDS`. Each returns
plain data for JSON. None claims anything: what is met is said by `report.py`, from what was measured.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from storyreel.benchmark import run as benches
from storyreel.benchmark.folders import make_folder
from storyreel.benchmark.variants import planned
from storyreel.engine import with_less_memory
from storyreel.models.base import MemoryMode
from storyreel.models.host import peak_by, peak_of, peak_resident
from storyreel.models.loading import adapter_class, random_parts
from storyreel.models.memory import MODES
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides

HEADS = (24, 128), (32, 64)  # Mochi's and LTX's: their number, and channels of each
TOKENS = 8192  # of video, where kernels are tried
FEW = 4  # steps, where one evaluation after the other is alike
TIGHT = 512 << 20  # bytes that a device has beside the weights, where memory is to run out
KERNELS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
SQUARES = {"cuda": 8192, "cpu": 64}  # sides of matrices: a CPU may emulate what it lacks, and is slow at that
PICTURES = {"cuda": (256, 3, 128, 128), "cpu": (8, 2, 8, 8)}  # channels and sides of what is convolved


@dataclass(frozen=True)
class Step:
    """A measurement: what kind, of which model, and about how many minutes it takes on an H100 (a guess).

    ``gpu`` says that it makes no sense, or no end, on a CPU.
    """

    name: str
    kind: str
    model: str | None
    minutes: float
    options: Mapping[str, Any] = field(default_factory=dict)
    gpu: bool = True


@dataclass
class Bed:
    """Where steps are measured: the device, the folder of the outcomes, and when time is up."""

    device: torch.device
    folder: Path
    deadline: float

    def spec(self, step: Step) -> ModelSpec:
        """Return the facts of a step's model."""
        return MODELS[step.model or ""].quantized(step.options.get("quantize", "none"))

    def tidy(self) -> None:
        """Give back what a step has left on the device, and its graphs."""
        torch.compiler.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def tried(compute: Callable[[], Any]) -> dict[str, Any]:
    """Return what a computation returns as "value", or why it fails as "error"."""
    try:
        return {"value": compute()}
    except Exception as error:  # whatever it is, is the answer
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]}


def seconds_of(device: torch.device, compute: Callable[[], Any], times: int = 5) -> float:
    """Return the least seconds that a computation takes, after one to warm up."""
    compute()
    best = float("inf")
    for _ in range(times):
        began = benches._now(device)
        compute()
        best = min(best, benches._now(device) - began)
    return best


# What is there


def machine(bed: Bed, step: Step) -> dict[str, Any]:
    """Say what device and libraries are there, and how fast its matrices, memory and convolutions are."""
    device = bed.device
    cuda = device.type == "cuda"
    found: dict[str, Any] = {
        "device": benches.device_name(device),
        "when": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "driver": _driver() if cuda else None,
    }
    if cuda:
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        found |= {"capability": f"{properties.major}.{properties.minor}"}
        found |= {"free_gb": free / 1e9, "total_gb": total / 1e9}
    found["matrices_tflops"] = {
        str(dtype).removeprefix("torch."): tried(
            partial(benches.matrix_peak, device, dtype, SQUARES[device.type])
        )
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
    }
    found["fp8_tflops"] = tried(lambda: _fp8_peak(device))
    found["copy_gb_s"] = tried(lambda: _copy_speed(device))
    found["from_pinned_gb_s"] = tried(lambda: _pinned_speed(device)) if cuda else {"error": "no GPU"}
    found["conv3d_ms"] = {
        f"{str(dtype).removeprefix('torch.')}, {str(layout).removeprefix('torch.')}": tried(
            partial(_conv3d, device, dtype, layout)
        )
        for dtype in (torch.bfloat16, torch.float32)
        for layout in (torch.contiguous_format, torch.channels_last_3d)
    }
    return found


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip()


def _fp8_peak(device: torch.device) -> float:
    """Return what a product of matrices in fp8 with a scale a row reaches, in TFLOP/s."""
    side = SQUARES[device.type]
    a, b = (torch.randn(side, side, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    rows, columns = torch.ones(side, 1, device=device), torch.ones(1, side, device=device)

    def compute() -> Tensor:
        return torch._scaled_mm(a, b.t(), scale_a=rows, scale_b=columns, out_dtype=torch.bfloat16)

    return 2 * side**3 / seconds_of(device, compute) / 1e12


def _copy_speed(device: torch.device) -> float:
    source = torch.empty(1 << (28 if device.type == "cuda" else 20), dtype=torch.uint8, device=device)
    return 2 * source.numel() / seconds_of(device, source.clone) / 1e9


def _pinned_speed(device: torch.device) -> float:
    source = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    return source.numel() / seconds_of(device, lambda: source.to(device, non_blocking=True)) / 1e9


def _conv3d(device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> float:
    """Return the milliseconds of a codec's convolution: some of torch 2.9 were slow, and took much memory."""
    channels, *sides = PICTURES[device.type]
    layer = nn.Conv3d(channels, channels, 3, padding=1, device=device, dtype=dtype)
    layer = layer.to(memory_format=layout)  # type: ignore[call-overload]
    x = torch.randn(1, channels, *sides, device=device, dtype=dtype).to(memory_format=layout)
    with torch.inference_mode():
        return 1000 * seconds_of(device, lambda: layer(x))


def attention(bed: Bed, step: Step) -> dict[str, Any]:
    """Try every attention kernel of torch's and every backend of diffusers', and time those that work."""
    device = bed.device
    tokens = TOKENS if device.type == "cuda" else 64
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = []
    for (heads, channels), masked in product(HEADS, (False, True)):
        q, k, v = (torch.randn(1, tokens, heads, channels, device=device, dtype=dtype) for _ in range(3))
        mask = torch.zeros(1, 1, 1, tokens, device=device, dtype=dtype) if masked else None
        for library, name, attend in _attends():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says in warnings why a kernel does not fit
                found = tried(partial(seconds_of, device, partial(attend, q, k, v, mask)))
            work = 4 * heads * tokens**2 * channels / 1e12
            reached = {"tflops": work / found["value"]} if "value" in found else found
            rows.append({"library": library, "name": name, "channels": channels, "mask": masked, **reached})
    return {"tokens": tokens, "dtype": str(dtype), "rows": rows}


def _attends() -> Iterator[tuple[str, str, Callable[..., Tensor]]]:
    """Yield library, name and function of each way to attend; tensors are (B, L, heads, channels)."""
    for kernel in KERNELS:
        yield "torch", kernel.name, partial(_by_torch, kernel)
    for backend in AttentionBackendName:
        if "hub" not in backend.value and "varlen" not in backend.value:  # nothing is fetched
            yield "diffusers", backend.value, partial(_by_diffusers, backend)


@torch.inference_mode()
def _by_torch(kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(kernel):
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@torch.inference_mode()
def _by_diffusers(
    backend: AttentionBackendName, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> Tensor:
    output: Tensor = dispatch_attention_fn(q, k, v, attn_mask=mask, backend=backend)
    return output


# Denoising


def variants(bed: Bed, step: Step) -> dict[str, Any]:
    """Time variants of a model as `bench` does. Where stock fails, it says why, and goes on without."""
    spec, options = bed.spec(step), step.options
    chosen = list(options.get("variants", ("stock", "plain", "full")))
    overrides = Overrides(
        spec.name, steps=options.get("steps"), quantize=spec.quantize, size=options.get("size")
    )

    def measure(names: Sequence[str]) -> dict[str, Any]:
        return benches.bench(
            spec,
            bed.device,
            overrides,
            names,
            options.get("rounds", 2),
            True,
            options.get("compiled", False),
            lambda _: None,
            scenes=options.get("scenes"),
        )

    if "stock" not in chosen:
        return measure(chosen)
    try:
        return measure(chosen)
    except Exception as error:
        bed.tidy()
        others = [name for name in chosen if name != "stock"]
        return measure(others) | {"stock_error": f"{type(error).__name__}: {error}"[:500]}


def of_one_scene(bed: Bed, step: Step) -> Plan:
    """Return the plan of the whole method for one scene in a few steps."""
    spec = bed.spec(step)
    overrides = Overrides(spec.name, steps=step.options.get("steps", FEW), size=step.options.get("size"))
    return planned(spec, overrides, "full", 1)


def model_in(bed: Bed, step: Step, mode: MemoryMode) -> PipelineAdapter:
    """Return a step's model with random weights in a memory mode."""
    spec = bed.spec(step)
    family = adapter_class(spec)
    adapter: PipelineAdapter = family(spec, bed.device, random_parts(family, spec, bed.device), mode)
    bed.tidy()
    return adapter


def memory_modes(bed: Bed, step: Step) -> dict[str, Any]:
    """Denoise and decode a scene in every memory mode: seconds, the device's peaks, and the machine's."""
    rows = []
    for mode in MODES:
        found = tried(partial(_in_mode, bed, step, mode))
        rows.append({"mode": mode, **(found.get("value") or found)})
        bed.tidy()
    return {"rows": rows, "table_gb": dict(bed.spec(step).memory_gb)}


def _in_mode(bed: Bed, step: Step, mode: MemoryMode) -> dict[str, Any]:
    adapter, plan = model_in(bed, step, mode), of_one_scene(bed, step)
    for _ in range(2):  # the first warms up
        (denoising, decoding), (first, second) = benches.run(adapter, plan, "full", None)
    cuda = bed.device.type == "cuda"
    return {
        "denoising_s": denoising,
        "decoding_s": decoding,
        "peak_mb": first if cuda else None,
        "decode_peak_mb": second if cuda else None,
        "reserved_mb": torch.cuda.max_memory_reserved(bed.device) / 1e6 if cuda else None,
        "host_mb": peak_resident() / 1e6,  # so far
    }


# Decoding


def decode(bed: Bed, step: Step) -> dict[str, Any]:
    """Decode a clip of the default length and one of the greatest: seconds, peak, and its pieces."""
    adapter = model_in(bed, step, "balanced" if bed.device.type == "cuda" else "high")
    for expert in adapter.experts:
        expert.to("meta")  # which leaves the device to the codec
    bed.tidy()
    spec, plan = adapter.spec, of_one_scene(bed, step)
    rows = []
    for latents in (plan.segments[0].latents + 1, spec.max_latents):
        found = tried(partial(_decoded, bed, adapter, plan, latents))
        rows.append({"latents": latents, **(found.get("value") or found)})
        bed.tidy()
    return {"size": f"{plan.settings.width}x{plan.settings.height}", "rows": rows}


@torch.inference_mode()
def _decoded(bed: Bed, adapter: PipelineAdapter, plan: Plan, latents: int) -> dict[str, Any]:
    spec = adapter.spec
    sides = (side // spec.pixels_per_latent for side in (plan.settings.height, plan.settings.width))
    x = torch.randn(1, spec.latent_channels, latents, *sides, device=bed.device)
    seconds, pieces = [], []
    with benches.peak_memory(bed.device) as peak, adapter.offload.decoding():
        for _ in range(2):  # the first chooses kernels
            began = benches._now(bed.device)
            pieces = [part.shape[2] for part in adapter._decoded(adapter.raw(x))]
            seconds.append(benches._now(bed.device) - began)
    return {
        "first_s": seconds[0],
        "seconds": seconds[1],
        "peak_mb": peak[0] if bed.device.type == "cuda" else None,
        "pictures": sum(pieces),
        "pieces": len(pieces),
        "largest_piece": max(pieces),
    }


# What must hold on a GPU


def out_of_memory(bed: Bed, step: Step) -> dict[str, Any]:
    """Denoise and decode a scene with hardly more memory than the weights, and say by which modes."""
    adapter, plan = model_in(bed, step, "high"), of_one_scene(bed, step)
    total = torch.cuda.get_device_properties(bed.device).total_memory
    limit = torch.cuda.memory_reserved(bed.device) + TIGHT
    modes = ["high"]
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), bed.device)
    try:
        began = time.perf_counter()
        with_less_memory(adapter, lambda: _run(adapter, plan), modes.append)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bed.device)
    return {"limit_gb": limit / 1e9, "modes": modes, "seconds": time.perf_counter() - began}


def _run(adapter: PipelineAdapter, plan: Plan) -> None:
    benches.run(adapter, plan, "full", None)


def waits(bed: Bed, step: Step) -> dict[str, Any]:
    """Count where a denoising step waits for the device, by torch's own debug mode."""
    adapter = model_in(bed, step, "high")
    counts = []
    for steps in (FEW, 2 * FEW):
        plan = of_one_scene(bed, replace(step, options={**step.options, "steps": steps}))
        adapter.prepare([])
        counts.append(_warned(partial(_denoise, adapter, plan)))
    more = counts[1] - counts[0]
    return {
        "waits_a_step": sum(more.values()) / FEW,
        "where": {place: count / FEW for place, count in more.most_common(10)},
        "beside_steps": sum(counts[0].values()) - sum(more.values()),
    }


def _denoise(adapter: PipelineAdapter, plan: Plan) -> None:
    for _ in benches.our_latents(adapter, plan, None):
        pass


def _warned(compute: Callable[[], Any]) -> Counter[str]:
    compute()  # chooses kernels, and encodes
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compute()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))


# A whole film


def film(bed: Bed, step: Step) -> dict[str, Any]:
    """Render a film by the command itself, from a folder as a hub has it: loading, hashes, memory, ffmpeg."""
    spec = bed.spec(step)
    folder, story = bed.folder / f"weights-{spec.name}", bed.folder / "three.yaml"
    began = time.perf_counter()
    if not (folder / "model_index.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(spec, folder, "bfloat16", lambda _: None)
    making = time.perf_counter() - began
    story.write_text(STORY)
    modes = step.options.get("memory", ("auto", "low"))
    try:
        rows = [{"memory": mode, **_rendered(bed, step, folder, story, mode)} for mode in modes]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"making_weights_s": making, "rows": rows}


STORY = """\
title: Three segments
scenes:
  - ["a corgi dog is inside of the subway train", "a corgi dog is sitting"]
  - ["a corgi dog is inside of the subway train", "a corgi dog is looking around"]
  - ["a corgi dog is in Central Park", "a corgi dog is running"]
"""


def _rendered(bed: Bed, step: Step, weights: Path, story: Path, memory: str) -> dict[str, Any]:
    """Render in a process of its own, with what is left of the time."""
    out = bed.folder / f"film-{step.model}-{memory}"
    shutil.rmtree(out, ignore_errors=True)
    words = ["render", str(story), "--model", str(step.model), "--weights", str(weights), "--memory", memory]
    words += ["--device", str(bed.device), "--out", str(out), "--json"]
    for name in ("steps", "size", "seconds"):
        words += [f"--{name}", str(step.options[name])] if name in step.options else []
    began = time.perf_counter()
    code, peak, printed, said = run_command(words, max(30.0, bed.deadline - time.time()))
    found: dict[str, Any] = {"exit_code": code, "seconds": time.perf_counter() - began, "host_mb": peak}
    if code:
        return found | {"error": said[-500:]}
    (result,) = json.loads(printed).values()
    return found | {"film": result}


def run_command(words: Sequence[str], patience: float) -> tuple[int, float, str, str]:
    """Run a command of storyreel's; return its exit code, its peak memory in MB, its stdout and stderr."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen([sys.executable, "-m", "storyreel", *words], stdout=out, stderr=err)
        ended, peak = time.monotonic() + patience, 0
        while True:
            peak = max(peak, peak_of(process.pid))
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > ended:
                process.kill()
            time.sleep(0.1)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return process.returncode, (peak or peak_by(used)) / 1e6, out.read(), err.read()


KINDS: dict[str, Callable[[Bed, Step], dict[str, Any]]] = {
    "machine": machine,
    "attention": attention,
    "variants": variants,
    "memory": memory_modes,
    "decode": decode,
    "out of memory": out_of_memory,
    "waits": waits,
    "film": film,
}

SMALL, MIDDLE, LARGE = "ltx-2b", "wan-1.3b", "mochi"
COMPILED = {"compiled": True, "steps": FEW, "rounds": 1}
EAGER = {"steps": 2, "rounds": 1}
PRESETS = {"variants": ("stock", "full", "balanced", "fast"), "scenes": 1, "rounds": 1, "compiled": True}
FP8 = {"variants": ("plain", "full"), "scenes": 1, "quantize": "fp8", **COMPILED}

# By value: what the targets ask of first. The minutes are guesses, from what Wan 2.1 1.3B took on an H200
# (models/README.md) and from the others' calculated arithmetic.
STEPS: tuple[Step, ...] = (
    Step("machine", "machine", None, 0.5, gpu=False),
    Step("attention", "attention", None, 0.5),
    Step("wan-1.3b compiled", "variants", MIDDLE, 2.5, COMPILED),
    Step("ltx-2b compiled", "variants", SMALL, 1.5, COMPILED),
    Step("mochi compiled", "variants", LARGE, 3.5, COMPILED),
    Step("wan-1.3b eager", "variants", MIDDLE, 1.0, EAGER),
    Step("ltx-2b eager", "variants", SMALL, 0.5, EAGER),
    Step("mochi eager", "variants", LARGE, 1.5, EAGER),
    Step("wan-1.3b presets", "variants", MIDDLE, 2.0, {**PRESETS, "steps": 25}),
    Step("ltx-2b presets", "variants", SMALL, 1.0, {**PRESETS, "steps": 25}),
    Step("mochi presets", "variants", LARGE, 2.5, {**PRESETS, "steps": 16}),
    Step("wan-1.3b memory", "memory", MIDDLE, 1.0),
    Step("mochi memory", "memory", LARGE, 1.5),
    Step("wan-1.3b fp8", "variants", MIDDLE, 1.0, FP8),
    Step("ltx-2b film", "film", SMALL, 2.5, {"steps": 20}),
    Step("ltx-2b decode", "decode", SMALL, 0.3),
    Step("wan-1.3b decode", "decode", MIDDLE, 0.5),
    Step("mochi decode", "decode", LARGE, 0.5),
    Step("wan-1.3b out of memory", "out of memory", MIDDLE, 0.7),
    Step("wan-1.3b waits", "waits", MIDDLE, 0.5),
    Step("ltx-2b waits", "waits", SMALL, 0.3),
    Step("mochi waits", "waits", LARGE, 1.0),
    Step("mochi fp8", "variants", LARGE, 2.0, FP8),
    Step("ltx-2b memory", "memory", SMALL, 0.7),
    Step("ltx-2b fp8", "variants", SMALL, 0.7, FP8),
    Step("mochi out of memory", "out of memory", LARGE, 1.0),
    Step("wan-1.3b film", "film", MIDDLE, 3.0, {"steps": 10}),
)
