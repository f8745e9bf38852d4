"""The model and its scorer, loaded when first needed, and what to do when the device's memory is too small.

Importing this loads no torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

from storyreel.errors import MissingError, UsageError
from storyreel.film.hashes import RememberedHashes
from storyreel.film.keys import CUDA_FP8, ingredients
from storyreel.models.device_errors import (
    check_device,
    device_error,
    lacks_memory,
    machine_lacks,
    plugin_faults,
)
from storyreel.models.host import available_memory
from storyreel.models.inventory import weight_files
from storyreel.models.specs import ModelSpec
from storyreel.plugins import Plugin
from storyreel.stopping import Stop
from storyreel.story.plan import Plan

if TYPE_CHECKING:
    import torch

    from storyreel.denoise.prompts import Scorer
    from storyreel.models.base import Adapter, MemoryMode

ATTENTION_VARIABLE = "DIFFUSERS_ATTN_BACKEND"
COMPILING = (
    "the model is compiled: the first evaluations take longer, and so does the first one of another length "
    "(--no-compile leaves that out)"
)
LONG = 2 << 30  # bytes of weights: reading as many takes so long that the user is told
SCORER_REMEDY = "storyreel/README.md (Plugins) says what a scorer can."
PROGRAM = 2e9  # bytes of the machine's memory for torch and the GPU's libraries: a guess, on the safe side


@dataclass
class Engine:
    """What computes, shared by all stories of one command.

    ``device`` is auto, cpu, cuda or cuda:N, ``memory`` the memory mode. ``shared`` says whether other
    processes compute too, ``compiled`` whether models are compiled: None means large ones on a GPU. ``stop``
    knows of signals. ``attention`` is one of diffusers' attention backends; without one,
    DIFFUSERS_ATTN_BACKEND may name it.
    """

    device: str = "auto"
    memory: MemoryMode = "auto"
    shared: bool = False
    compiled: bool | None = None
    stop: Stop = field(default_factory=Stop)
    attention: str | None = None

    def __post_init__(self) -> None:
        check_device(self.device)
        self.attention = self.attention or os.environ.get(ATTENTION_VARIABLE) or None
        self._adapters: dict[tuple[str, Path], Adapter] = {}
        self._said: Callable[[str], None] = lambda words: None
        self._scorers: dict[Path, Scorer] = {}
        self._plugged: dict[str, Any] = {}
        self._ingredients: dict[tuple[str, Path], dict[str, Any]] = {}

    def ingredients(self, spec: ModelSpec, said: Callable[[str], None]) -> dict[str, Any]:
        """Return what a model's films are made from; call ``said`` first if its weights take long to read.

        Raises MissingError or DamagedError.
        """
        if (spec.name, spec.weights) not in self._ingredients:
            self.check_attention(spec)
            unread = RememberedHashes().to_read(weight_files(spec))
            if unread >= LONG:
                said(f"reading {unread / 1e9:.0f} GB of weights to compute their hashes, which are kept")
            self._ingredients[spec.name, spec.weights] = ingredients(spec)
        return self._ingredients[spec.name, spec.weights]

    def device_kind(self, spec: ModelSpec) -> str:
        """Return the kind of device that computes a model's films, one of `DEVICES`. Raises MissingError."""
        kind, name = self.device.partition(":")[0], self.device
        if kind == "auto":
            from storyreel.models.devices import pick_device

            kind = name = pick_device(self.device).type
        if kind == "cuda" and spec.quantize == "fp8" and spec.dtype == "bfloat16":
            import torch

            from storyreel.models.quantized import multiplies_float8

            kind = CUDA_FP8 if multiplies_float8(torch.device(name)) else kind
        return kind

    def device_words(self, adapter: Adapter) -> str:
        """Return the device as records name it: it decides the last digits of a picture."""
        import torch

        if adapter.device.type == "cuda":
            words = torch.cuda.get_device_name(adapter.device)
        else:
            words = f"{adapter.device.type} with OMP_NUM_THREADS={torch.get_num_threads()}"
        words = f"{words}, attention {self.attention}" if self.attention else words
        return f"{words}, compiled" if adapter.compiled else words

    def check_attention(self, spec: ModelSpec) -> None:
        """Raise UsageError or MissingError if the chosen attention backend cannot compute a model."""
        if self.attention is not None:
            from storyreel.models.devices import pick_device

            check_attention(self.attention, pick_device(self.device), spec)

    def adapter_for(self, plan: Plan, said: Callable[[str], None]) -> Adapter:
        """Return the loaded model for a film, in mode auto in the highest memory mode that fits the film.

        Call ``said`` if this machine has less memory of its own than that wants. Raises as `adapter` does.
        """
        spec, settings = plan.spec, plan.settings
        is_new = (spec.label, spec.weights) not in self._adapters
        adapter = self.adapter(spec, said)
        size = (settings.width, settings.height)
        mode = adapter.choose_memory_mode(size, plan.longest)
        if is_new and spec.needs is not None:
            weights = spec.needs.weights(spec.quantize)
            if adapter.device.type == "cuda":
                wanted = weights.on_host()[mode]
            else:
                wanted = weights.on_device(spec.needs.working(size, plan.longest))[mode]
            if (there := available_memory()) < wanted + PROGRAM:
                said(_too_little(spec, mode, wanted, there))
        return adapter

    def adapter(self, spec: ModelSpec, said: Callable[[str], None] = lambda words: None) -> Adapter:
        """Return the loaded model, and free another. Raises MissingError or DamagedError.

        ``said``, of the latest call, is called with what people should know of its compilation.
        """
        self._said = said
        if (spec.label, spec.weights) not in self._adapters:
            self._free()
            adapter = self._load(spec)
            if self._compiles(spec, adapter):
                adapter.compile(lambda words: self._said(words))
                if adapter.compiled:
                    said(COMPILING)
            if self.shared:
                from storyreel.models.workers import Workers

                adapter = Workers(adapter)
            self._adapters[spec.label, spec.weights] = adapter
        return self._adapters[spec.label, spec.weights]

    def _compiles(self, spec: ModelSpec, adapter: Adapter) -> bool:
        """Tell whether a model is to be compiled; unless it is said, large ones on a GPU are."""
        if self.compiled is not None:
            return self.compiled
        return adapter.device.type == "cuda" and spec.hub is not None  # mini's films take no longer than that

    def _free(self) -> None:
        """Let the model go that is there: two would not fit beside each other."""
        if not self._adapters:
            return
        from storyreel.models.offload import give_back

        devices = [adapter.device for adapter in self._adapters.values()]
        self._adapters.clear()
        self._scorers.clear()
        for device in devices:
            give_back(device)

    def _load(self, spec: ModelSpec) -> Adapter:
        """Load a model. Mode auto estimates what fits on a GPU; where that fails, lower modes are tried."""
        import torch

        from storyreel.models.devices import pick_device

        self.check_attention(spec)  # first: it may be what keeps diffusers from loading
        from storyreel.models.loading import load_adapter

        device = pick_device(self.device)
        modes: list[MemoryMode] = [self.memory]
        if self.memory == "auto" and device.type == "cuda":
            modes += ["balanced", "low"]
        for mode in modes:
            try:
                adapter = load_adapter(spec, device, mode)
                if self.attention:
                    adapter.attend_by(self.attention)
                return adapter
            except Exception as error:
                if not lacks_memory(error):
                    raise
                if mode == modes[-1]:
                    raise _too_large(spec, mode) from error
                clear_frames(error.__traceback__)
            torch.cuda.empty_cache()  # of what was half loaded
        raise AssertionError("there is always a mode to try")

    def scorer_for(self, plan: Plan) -> Any:
        """Return the text-image encoder for a film, loaded: a plugin's if the film asks for that.

        Raises UsageError for one that is none.
        """
        plugin = plan.settings.method.plugged.get("scorer")
        if plugin is None:
            return self.scorer(plan.spec)
        if plugin.place not in self._plugged:
            from storyreel.models.devices import pick_device

            make = plugin.function()
            with plugin_faults(plugin.words):
                scorer = make(pick_device(self.device))
            for name in ("embed_texts", "embed_pictures"):
                if not callable(getattr(scorer, name, None)):
                    words = f"{plugin.words} gives a {type(scorer).__name__} without {name}"
                    raise UsageError(words, SCORER_REMEDY)
            self._plugged[plugin.place] = PluggedScorer(plugin, scorer)
        return self._plugged[plugin.place]

    def scorer(self, spec: ModelSpec) -> Scorer | None:
        """Return the loaded text-image encoder in the folder of a model's weights; None if there is none."""
        folder = spec.weights / "scorer"
        if not folder.is_dir():
            return None
        if folder not in self._scorers:
            from storyreel.models.devices import pick_device
            from storyreel.models.scorer import Scorer

            self._scorers[folder] = Scorer.load(folder, pick_device(self.device))
        return self._scorers[folder]


@dataclass(frozen=True)
class PluggedScorer:
    """A plugin's text-image encoder: its faults are told as its own, what it prints goes to stderr."""

    plugin: Plugin
    scorer: Any

    def embed_texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return unit vectors (P, D) of texts. Raises UsageError where the plugin does not."""
        return self._vectors("embed_texts", prompts)

    def embed_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return unit vectors (N, D) of pictures (N, 3, H, W) in [-1, 1]. Raises UsageError as for texts."""
        return self._vectors("embed_pictures", pictures)

    def _vectors(self, name: str, given: Any) -> torch.Tensor:
        import torch

        with plugin_faults(self.plugin.words), redirect_stdout(sys.stderr):
            found = getattr(self.scorer, name)(given)
        if not isinstance(found, torch.Tensor) or found.ndim != 2 or len(found) != len(given):
            what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            words = f"{self.plugin.words}: {name} gives {what}, not vectors ({len(given)}, D)"
            raise UsageError(words, SCORER_REMEDY)
        return found


def check_attention(name: str, device: torch.device, spec: ModelSpec) -> None:
    """Raise UsageError or MissingError if an attention backend cannot compute a model on a device."""
    import torch

    try:
        from storyreel.models.kernels import check_backend
    except ValueError as error:  # of diffusers, which reads the variable as it is loaded
        remedy = f"Unset {ATTENTION_VARIABLE}, or set it to one of diffusers' attention backends."
        raise UsageError(f"{ATTENTION_VARIABLE}: {error}", remedy) from error
    check_backend(name, device, getattr(torch, spec.dtype))


def _too_little(spec: ModelSpec, mode: str, wanted: float, there: float) -> str:
    return (
        f"{spec.label} in mode {mode} wants {(wanted + PROGRAM) / 1e9:.0f} GB of the machine's own memory "
        f"(calculated), and {there / 1e9:.0f} GB are free: weights may be read from disk again and again, or "
        "the system may end this process; free some, or ask the batch system for more"
    )


def _too_large(spec: ModelSpec, mode: MemoryMode) -> MissingError:
    message = f"the device has too little memory for model {spec.label} in mode {mode}"
    lighter = "--quantize fp8, " if spec.quantize == "none" else ""
    lower = {"low": "", "balanced": "--memory low, "}.get(mode, "--memory balanced or low, ")
    pinned = " (mode low also wants the weights in the machine's own memory)" if mode == "low" else ""
    return MissingError(message, f"Use {lower}{lighter}a smaller model or another --device{pinned}.")


def memory_words(mode: str, spec: ModelSpec) -> str:
    """Return a memory mode for people, below high with what else would save memory."""
    if mode == "high" or spec.quantize != "none":
        return mode
    return f"{mode} (--quantize fp8 would halve the transformer, and change the film)"


def with_less_memory(adapter: Adapter, compute: Callable[[], None], on_mode: Callable[[str], None]) -> None:
    """Compute; where the device has too little memory, go to the next lower memory mode and compute again.

    ``on_mode`` is called with the name of every such mode. Raises MissingError if there is no lower one.
    """
    while True:
        try:
            compute()
            return
        except Exception as error:
            if not lacks_memory(error):
                raise
            if adapter.device.type != "cpu" and machine_lacks(error):  # lower modes take more of that
                raise
            clear_frames(error.__traceback__)  # of what the failed step held
            mode = adapter.lower_memory_mode()
            if mode is None:
                remedy = "Use a smaller --size, shorter scenes, or a GPU with more memory."
                words = "the device has too little memory; finished scenes are kept"
                raise MissingError(words, remedy) from error
        on_mode(mode)


@contextmanager
def device_faults() -> Iterator[None]:
    """Turn errors about a GPU that no longer answers, or about memory that is full, into MissingError."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if (found := device_error(error)) is None:
            raise
        raise found from error
