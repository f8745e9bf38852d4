"""What a whole film costs, in time and memory: each is rendered in a process of its own, from nothing.

Of one process the peak of its memory is that of all it has ever done, so that two films cannot be told
apart in it. The model is loaded before the clock starts, and nothing is compiled. What ffmpeg needs for
itself is no part of the memory.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storyreel import __version__
from storyreel.engine import Engine
from storyreel.errors import MissingError, StoryreelError, UsageError
from storyreel.files import digest, writing
from storyreel.film.keys import ingredients
from storyreel.models.host import peak_resident
from storyreel.models.specs import ModelSpec
from storyreel.rendering import render
from storyreel.stopping import SIGNALS, Stop
from storyreel.story.plan import Plan, Segment

if TYPE_CHECKING:
    from storyreel.models.base import Adapter

WITHOUT_STOCK = "Leave it out: name other --variants."
PATIENCE = 0.2  # seconds between two looks at whether a signal has come


@dataclass(frozen=True)
class Cost:
    """What a film took.

    ``seconds`` are of denoising, decoding and encoding. ``memory_gb`` is the peak, in 10⁹ bytes: of what
    torch had allocated on a GPU, else of what the process had resident; ``host_gb`` the latter in any case.
    ``forwards`` model evaluations and ``latents`` latent frames, leads counted, were computed on ``device``.
    """

    seconds: float
    memory_gb: float
    host_gb: float
    forwards: int
    latents: int
    device: str


class _Count:
    """A render's progress that counts model evaluations."""

    def __init__(self) -> None:
        self.forwards = 0

    def started(self, plan: Plan, scenes: int, done: int, forwards: int) -> None: ...

    def forward(self) -> None:
        self.forwards += 1

    def segment_finished(self, segment: Segment) -> None: ...

    def said(self, text: str) -> None: ...


def film_cost(plan: Plan, stock: bool, engine: Engine, out: Path) -> Cost:
    """Render a film into an empty folder, by diffusers' own pipeline if it is to be ``stock``; measure that.

    Raises as `render` does, and UsageError where the model's family has no such pipeline.
    """
    from storyreel.benchmark.run import device_name, peak_memory

    engine.ingredients(plan.spec, lambda words: None)
    adapter = engine.adapter_for(plan, lambda words: None)
    engine.scorer(plan.spec)
    with peak_memory(adapter.device) as peak:
        began = time.perf_counter()
        forwards, latents = (_stock_film if stock else _our_film)(plan, engine, adapter, out)
        seconds = time.perf_counter() - began
    host = peak_resident() / 1e9
    on_gpu = adapter.device.type == "cuda"
    memory = peak[0] / 1e3 if on_gpu else host
    return Cost(seconds, memory, host, forwards, latents, device_name(adapter.device))


def _our_film(plan: Plan, engine: Engine, adapter: Adapter, out: Path) -> tuple[int, int]:
    """Render a film as `storyreel render` does; return model evaluations and latent frames."""
    count = _Count()
    done = render(plan, "film", out, engine, count)
    manifest = json.loads(done.film.with_name("manifest.json").read_text("utf-8"))
    return count.forwards, sum(s["decided"]["lead"] + s["latents"] for s in manifest["segments"])


def _stock_film(plan: Plan, engine: Engine, adapter: Adapter, out: Path) -> tuple[int, int]:
    """Make every scene by diffusers' own pipeline; decode and encode it as a render does."""
    from storyreel.benchmark.run import stock_latents
    from storyreel.film.decode import FilmStream
    from storyreel.models.pipeline import PipelineAdapter

    if not isinstance(adapter, PipelineAdapter):
        raise UsageError(f"model {plan.spec.name} has no pipeline to compare with", WITHOUT_STOCK)
    if adapter.memory != "high":
        raise MissingError("diffusers' own pipeline wants all of the model on the device", WITHOUT_STOCK)
    out.mkdir(parents=True, exist_ok=True)
    wanted = range(len(plan.segments))
    stream = FilmStream(plan, adapter, wanted, lambda s: out / f"{s.number}.mp4", lambda s, seconds: None)
    with stream:
        for segment, latents in zip(plan.segments, stock_latents(adapter, plan), strict=True):
            stream.push(segment, latents)
        stream.finish()
    return len(plan.segments) * plan.settings.steps, plan.latents


def check_stock(spec: ModelSpec) -> None:
    """Raise UsageError if a model's family has no pipeline to compare with."""
    from storyreel.benchmark.stock import STOCK
    from storyreel.models.loading import adapter_class

    if not {*adapter_class(spec).__mro__} & {*STOCK}:
        raise UsageError(f"model {spec.name} has no pipeline to compare with", WITHOUT_STOCK)


def film_versions(specs: Iterable[ModelSpec]) -> dict[str, Any]:
    """Return what it takes to get the same films again: versions, and the models' weights and sources."""
    found = {spec.label: ingredients(spec) for spec in specs}
    return {
        "storyreel": __version__,
        "versions": {"python": platform.python_version()}
        | {name: version for of in found.values() for name, version in of["versions"].items()},
        "models": {
            label: {"weights": of["model"]["weights"], "recipe_sha256": digest(of["recipe"])}
            for label, of in found.items()
        },
    }


def measured(plan: Plan, stock: bool, device: str, out: Path, stop: Stop) -> Cost:
    """Return what a film costs in a process of its own; what it makes in ``out`` is removed again.

    Raises as `film_cost` does, StoryreelError if that process dies, and StoppedError.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".measured-", dir=out, ignore_cleanup_errors=True)
    context = multiprocessing.get_context("spawn")  # nothing of this process is in it
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_in_its_own, args=(send, plan, stock, device, Path(folder.name)))
    with folder:
        try:
            process.start()
            send.close()
            while not receive.poll(PATIENCE):
                stop.check()
            kind, answer = receive.recv()
        except EOFError:
            process.join()
            raise StoryreelError(
                f"the process that measures ended without a result (exit code {process.exitcode})",
                "If that is -9, the system ended it for want of memory: use a smaller --size or model.",
            ) from None
        finally:
            if process.is_alive() and sys.exc_info()[0] is not None:
                process.terminate()
            process.join()
    if isinstance(answer, Cost):
        return answer
    raise _error(kind, *answer)


def _in_its_own(send: Connection, plan: Plan, stock: bool, device: str, out: Path) -> None:
    """Measure a film and send what came of it; a signal is for the process that waits."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    try:
        cost = film_cost(plan, stock, Engine(device, compiled=False), out)
    except StoryreelError as error:
        send.send((type(error).__name__, (error.message, error.remedy, error.exit_code)))
    else:
        send.send(("", cost))


def _error(kind: str, message: str, remedy: str, code: int) -> StoryreelError:
    """Return an error of another process: with its words and its exit code."""
    error = StoryreelError(message, remedy)
    error.exit_code = code
    return error
