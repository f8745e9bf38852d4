"""The one convention that every model is brought to.

Latents are (B, C, F, H, W) in fp32, normalised as the transformer sees them. σ is 1 for noise
and 0 for a clean picture, x_σ = (1 - σ)·x0 + σ·ε. A model's own habits end in its adapter.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, cast

import torch
import transformers
from torch import Tensor

from storyreel import origin
from storyreel.errors import DamagedError, MissingError
from storyreel.files import file_hash
from storyreel.models.device_errors import lacks_memory
from storyreel.models.specs import MINI_WEIGHTS, ModelSpec

Loaded = TypeVar("Loaded")

# high: all on the device. balanced: text encoder and codec only while they work. low: the transformer's
# blocks too come and go. None changes a picture.
MemoryMode = Literal["auto", "high", "balanced", "low"]
CHECKSUMS = "SHA256SUMS"  # as `sha256sum` writes and checks it


@dataclass(frozen=True)
class Text:
    """An encoded prompt: states (1, L, D) and the mask (1, L) of the tokens that count.

    As a float, the mask says how much each token counts; 2 is as if it stood there twice.
    """

    states: Tensor
    mask: Tensor


def side_by_side(texts: Sequence[Text], weights: Sequence[float]) -> Text:
    """Return several prompts' tokens as one text in which each prompt counts by its weight.

    The weights sum to 1: (1, 0) is the first prompt alone, and two equal prompts are that
    prompt, whatever their weights (METHOD 4).
    """
    states = torch.cat([text.states for text in texts], 1)
    masks = [text.mask.float() * weight for text, weight in zip(texts, weights, strict=True)]
    return Text(states, torch.cat(masks, 1))


@dataclass(frozen=True)
class Memory:
    """What a model saw in some frames: a pair of keys and values (1, M, heads, D) for each of its layers.

    Of several experts, those of the one for σ = 0.

    ``weights`` (M,) say how much each token counts next to the segment's own.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    weights: Tensor


def joined_memories(memories: Sequence[Memory]) -> Memory:
    """Return several memories of one model as one."""
    layers = zip(*(memory.layers for memory in memories), strict=True)
    pairs = ([torch.cat(parts, 1) for parts in zip(*layer, strict=True)] for layer in layers)
    weights = torch.cat([memory.weights for memory in memories])
    return Memory(tuple((keys, values) for keys, values in pairs), weights)


class Request(NamedTuple):
    """One question to a transformer; see `Adapter.predict`."""

    x: Tensor
    sigma: float
    texts: Sequence[Text]
    memory: Memory | None


class OneByOne(ABC):
    """Answers several requests one after the other, as an adapter on one device does."""

    def predict_all(self, requests: Sequence[Request]) -> Iterator[list[Tensor]]:
        """Yield the answers to requests, in their order."""
        return (self.predict(*request) for request in requests)

    @abstractmethod
    def predict(
        self, x: Tensor, sigma: float, texts: Sequence[Text], memory: Memory | None = None
    ) -> list[Tensor]:
        """See `Adapter.predict`."""


class Adapter(Protocol):
    """A loaded model."""

    spec: ModelSpec
    device: torch.device

    @property
    def memory(self) -> MemoryMode:
        """The memory mode that it is in."""
        ...

    def compile(self) -> None:
        """Compile what is called in every step, if that can be."""
        ...

    def prepare(self, prompts: Iterable[str]) -> None:
        """Encode a film's prompts in advance and forget those of others. Raises PromptError."""
        ...

    def economise(self) -> str | None:
        """Go to the next lower memory mode and return its name; None if there is none."""
        ...

    def encode(self, prompt: str) -> Text:
        """Encode a prompt. Raises PromptError if it is too long to be read whole."""
        ...

    def sigmas(self, steps: int, shape: Sequence[int]) -> list[float]:
        """Return the steps + 1 noise levels from 1 to 0 for latents of a shape."""
        ...

    def expert_at(self, sigma: float) -> int:
        """Return which of the model's transformers is made for a noise level; 0 where there is one."""
        ...

    def predict(
        self, x: Tensor, sigma: float, texts: Sequence[Text], memory: Memory | None = None
    ) -> list[Tensor]:
        """Return the velocity ε - x0 at ``x`` (1, C, F, H, W) for each text, in fp32."""
        ...

    def predict_all(self, requests: Sequence[Request]) -> Iterator[list[Tensor]]:
        """Yield what `predict` returns, for several requests, each as soon as it is there."""
        ...

    def remember(self, latents: Tensor, text: Text) -> Memory:
        """Return what the model sees in clean latents (1, C, F, H, W) told by ``text``, at weight 1."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pictures, uint8 (T, H, W, 3) on the CPU, of a clip's latents (1, C, F, H, W).

        The first latent frame is one picture, every other several.
        """
        ...

    def preview(self, latents: Tensor) -> Tensor | None:
        """Return a cheap picture (F, 3, H, W) in [-1, 1] of each latent frame; None if there is no way."""
        ...


def load_adapter(spec: ModelSpec, device: torch.device, memory: MemoryMode = "auto") -> Adapter:
    """Load a model. Raises MissingError or DamagedError, saying what to do."""
    transformers.utils.logging.disable_progress_bar()  # ours is enough
    if not spec.weights.is_dir():
        raise MissingError(f"the weights of model {spec.name} are not here", spec.remedy)
    check_checksums(spec.weights)
    return cast(Adapter, adapter_class(spec).load(spec, device, memory))


def adapter_class(spec: ModelSpec) -> Any:
    """Return the class that a model's table entry names."""
    module, _, name = spec.adapter.partition(":")
    return getattr(importlib.import_module(module), name)


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of everything in ``folder`` into its `CHECKSUMS`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    lines = [f"{file_hash(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines))


def published_checksums(folder: Path) -> dict[Path, str]:
    """Return the SHA-256 of a model's files by its `CHECKSUMS`; nothing without. Raises DamagedError."""
    sums, found = folder / CHECKSUMS, {}
    if not sums.is_file():
        return {}
    for line in sums.read_text(errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        if len(expected) != 64 or not name:
            raise DamagedError(f"{sums} is damaged", _restore(sums))
        found[folder / name] = expected
    unlisted = {path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json")} - found.keys()
    if unlisted:  # a list that was cut short vouches for nothing
        raise DamagedError(f"{min(unlisted)} is not in {CHECKSUMS}", _restore(sums))
    return found


def check_checksums(folder: Path) -> None:
    """Hold a model's files against its `CHECKSUMS`, where it has them.

    Safetensors with a flipped bit load without a word. Raises MissingError or DamagedError.
    """
    for path, expected in published_checksums(folder).items():
        if not path.is_file():
            raise MissingError(f"there is no {path.relative_to(folder)} in {folder}", _restore(path))
        if file_hash(path) != expected:
            raise DamagedError(f"{path} is damaged: its SHA-256 is not the published one", _restore(path))


def read_component(load: Callable[[Path], Loaded], folder: Path) -> Loaded:
    """Return ``load(folder)``, turning whatever a library says into MissingError or DamagedError."""
    if not folder.exists():
        raise MissingError(f"there is no {folder.name} in {folder.parent}", _restore(folder))
    try:
        return load(folder)
    except Exception as error:  # the libraries raise everything from KeyError to their own
        if lacks_memory(error):  # which says nothing of the folder
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DamagedError(f"{folder} cannot be read: {reason}", _restore(folder)) from error


def _restore(folder: Path) -> str:
    if MINI_WEIGHTS in (folder, *folder.parents):
        return f"Restore {folder}: {origin.again(folder)}"
    return f"Restore {folder}; the embedded model's: {origin.again(folder)}; a hub's: storyreel pull MODEL"


def load_component(load: Callable[..., object], folder: Path, wanted: type[Loaded]) -> Loaded:
    """Load one component from safetensors, refusing anything missing, unexpected or damaged.

    ``load`` is its ``from_pretrained``. A checkpoint with missing keys would otherwise load
    with random weights and without an exception.
    """
    remedy = _restore(folder)
    safely = partial(load, use_safetensors=True, local_files_only=True, output_loading_info=True)
    model, info = cast("tuple[object, dict[str, object]]", read_component(safely, folder))
    wrong = [key for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(key)]
    if wrong:
        raise DamagedError(f"the weights in {folder} do not fit: {', '.join(wrong)}", remedy)
    if not isinstance(model, wanted):
        raise DamagedError(f"{folder} holds a {type(model).__name__}, not a {wanted.__name__}", remedy)
    return model


def pick_device(name: str) -> torch.device:
    """Return the device called ``auto``, ``cpu`` or ``cuda``. Raises MissingError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise MissingError("no CUDA device is at hand", "Use --device cpu, or check nvidia-smi.")
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())  # as tensors there call it
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise MissingError(f"there is no {name}: this machine has {count}", "Count from cuda:0.")
    return device
