"""From a folder, as diffusers lays out a pipeline, to a model's components; or the same with random weights.

Everything is checked on the CPU, before a device is touched.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import diffusers.utils.logging
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase

from storyreel.errors import DamagedError, MissingError
from storyreel.files import read_json
from storyreel.models.base import Adapter
from storyreel.models.checksums import check_checksums, how_to_restore
from storyreel.models.device_errors import lacks_memory
from storyreel.models.inventory import PREVIEW, shapes_of
from storyreel.models.memory import MemoryMode
from storyreel.models.offload import Component
from storyreel.models.quantized import quantize
from storyreel.models.specs import ModelSpec

if TYPE_CHECKING:
    from storyreel.models.pipeline import PipelineAdapter

Loaded = TypeVar("Loaded")
CONNECTORS = "connectors"  # their folder
IN_FP32 = (
    "vocoder",
)  # folders: its many convolutions, one after the other, add up the errors of bf16 to noise
NAMED = 3  # of what does not fit, so many are named


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder of a family: its class in transformers, and the true sizes for its configuration.

    ``thin`` are those in which a model with random weights has fewer on a device: texts are encoded once in
    a film. A tokenizer goes with each. Where a chat template stands around prompts, its first ``template``
    tokens are always the same, and what is made of them is not kept. ``longest`` are the most tokens of a
    prompt, where they are not the model's ``text_length``. What connects text encoders to a transformer, in a
    class of diffusers, is described likewise.
    """

    kind: type[Any]
    sizes: dict[str, Any]
    thin: dict[str, Any]
    template: int = 0
    longest: int | None = None

    def most(self, spec: ModelSpec) -> int:
        """Return the most tokens of a prompt that a model reads with it."""
        return self.longest or spec.text_length


@dataclass
class Parts:
    """The components of a model. ``experts`` are its transformers, that for most noise first.

    They and the text encoders may be networks, or components that are read when they are used. A model of
    even noise levels needs no ``scheduler``. ``options`` are the pipeline's own settings, ``preview`` is a
    linear map from latents to pictures. ``connectors`` make what the transformer reads of the text
    encoders' states, ``sound`` decodes a model's sound; by the names of their folders.
    """

    experts: Sequence[nn.Module | Component]
    vae: nn.Module
    text_encoders: Sequence[nn.Module | Component]
    tokenizers: Sequence[PreTrainedTokenizerBase]
    scheduler: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    preview: dict[str, Tensor] = field(default_factory=dict)
    connectors: nn.Module | Component | None = None
    sound: dict[str, nn.Module] = field(default_factory=dict)

    def by_name(self) -> dict[str, Any]:
        """Return the components by their folders' names."""
        several = {
            "transformer": self.experts,
            "text_encoder": self.text_encoders,
            "tokenizer": self.tokenizers,
        }
        numbered = {
            name: part
            for kind, parts in several.items()
            for name, part in zip(names(kind, len(parts)), parts, strict=True)
        }
        connectors = {} if self.connectors is None else {CONNECTORS: self.connectors}
        return {**numbered, **connectors, **self.sound, "vae": self.vae, "scheduler": self.scheduler}


def names(kind: str, count: int) -> list[str]:
    """Return what diffusers calls the folders of several components of a kind: NAME, NAME_2 and so on."""
    return [kind, *(f"{kind}_{number}" for number in range(2, count + 1))]


def load_adapter(spec: ModelSpec, device: torch.device, memory: MemoryMode = "auto") -> Adapter:
    """Load a model. Raises MissingError or DamagedError, saying what to do."""
    transformers.utils.logging.disable_progress_bar()  # ours is enough
    diffusers.utils.logging.disable_progress_bar()  # of shards, which tiny models have none of
    if not spec.weights.is_dir():
        raise MissingError(f"the weights of model {spec.name} are not here", spec.remedy)
    check_checksums(spec.weights)
    return cast(Adapter, adapter_class(spec).load(spec, device, memory))


def adapter_class(spec: ModelSpec) -> Any:
    """Return the class that a model's table entry names."""
    module, _, name = spec.adapter.partition(":")
    return getattr(importlib.import_module(module), name)


def codec_dtype(spec: ModelSpec, device: torch.device) -> torch.dtype:
    """Return what a model's VAE computes in on a device.

    On a CPU that is fp32: most have no bfloat16, and torch's convolutions in three dimensions are a hundred
    times slower in it there.
    """
    dtype: torch.dtype = getattr(torch, "float32" if device.type == "cpu" else spec.vae_dtype)
    return dtype


def load_parts(family: type[PipelineAdapter], spec: ModelSpec, device: torch.device) -> Parts:
    """Load the components that a family names. Raises MissingError or DamagedError.

    All are on the CPU. Transformers and text encoders are only checked, and read when they are used.
    """
    folder, dtype = spec.weights, getattr(torch, spec.dtype)

    def component(kind: type[Any], name: str, **options: Any) -> Any:
        if variant := _variant(spec, folder / name):
            options["variant"] = variant
        return load_component(partial(kind.from_pretrained, **options), folder / name, kind, spec.unread)

    def later(kind: type[Any], name: str, **options: Any) -> Component:
        skeleton = read_component(partial(_skeleton, kind, dtype), folder / name)
        if not _fits(skeleton, folder / name, _variant(spec, folder / name), spec.unread):
            component(kind, name, **options)  # the library says what is wrong, or takes it all the same
        return Component(partial(component, kind, name, **options), skeleton)

    options = read_component(_read_settings, folder / "model_index.json")
    experts = names("transformer", 1 if options.get("boundary_ratio") is None else 2)
    encoders = names("text_encoder", len(family.reads_with))
    tokenizer = partial(AutoTokenizer.from_pretrained, local_files_only=True)
    preview = read_component(load_file, folder / PREVIEW) if (folder / PREVIEW).exists() else {}
    decoding = codec_dtype(spec, device)
    connectors = family.connects_with
    return Parts(
        experts=[later(family.transformer_class, name, torch_dtype=dtype) for name in experts],
        vae=component(family.vae_class, "vae", torch_dtype=decoding),
        text_encoders=[
            later(encoder.kind, name, dtype=dtype)
            for encoder, name in zip(family.reads_with, encoders, strict=True)
        ],
        tokenizers=[read_component(tokenizer, folder / name) for name in names("tokenizer", len(encoders))],
        scheduler=read_component(partial(load_scheduler, family.schedulers), folder / "scheduler"),
        options=options,
        preview={key: value.float() for key, value in preview.items()},
        connectors=None if connectors is None else later(connectors.kind, CONNECTORS, torch_dtype=dtype),
        sound={
            name: component(kind, name, torch_dtype=torch.float32 if name in IN_FP32 else decoding)
            for name, kind in family.sounds_with.items()
        },
    )


def _variant(spec: ModelSpec, folder: Path) -> str | None:
    """Return the variant of a component's files that is read; None for the usual one."""
    there = spec.variant and any(folder.glob(f"*.{spec.variant}*.safetensors"))
    return spec.variant if there else None


def _skeleton(kind: type[Any], dtype: torch.dtype, folder: Path) -> nn.Module:
    """Return the network that a folder's configuration describes, without data."""
    with torch.device("meta"), default_dtype(dtype):
        if hasattr(kind, "config_class"):  # transformers'
            made: nn.Module = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
        else:
            made = kind.from_config(kind.load_config(folder, local_files_only=True))
    return made


def _fits(skeleton: nn.Module, folder: Path, variant: str | None, unread: Sequence[str]) -> bool:
    """Tell whether the weights in a folder are those of a network, by the headers of its files alone.

    Those with a part of ``unread`` in their names may be there.
    """
    found = shapes_of(folder, variant)
    shapes = {name: shape for name, shape in found.items() if not _is_unread(name, unread)}
    tensors = skeleton.state_dict(keep_vars=True)
    shared: dict[int, set[str]] = {}
    for name, tensor in tensors.items():  # of tied weights, files have some or all
        shared.setdefault(id(tensor), set()).add(name)
    known = all(name in tensors and tensors[name].shape == shape for name, shape in shapes.items())
    return known and all(names & shapes.keys() for names in shared.values())


def random_parts(family: type[PipelineAdapter], spec: ModelSpec, device: torch.device) -> Parts:
    """Return the components of a model in their true sizes, with random weights.

    Text encoders are thin ones of the true width; on the device "meta", where nothing has any data, the
    true ones.
    """
    torch.manual_seed(0)
    dtype = getattr(torch, spec.dtype)
    tokenizers = [_bytes(encoder.template) for encoder in family.reads_with]
    options: dict[str, Any] = {} if spec.boundary_ratio is None else {"boundary_ratio": spec.boundary_ratio}
    experts = []
    for _ in range(1 + len(options)):
        with device, default_dtype(dtype):
            expert = in_fp32_where_loaded_so(family.transformer_class(**spec.architecture))
        experts.append(stored(spec, family.blocks(expert), expert))
    text_encoders = []
    for encoder in family.reads_with:
        thin = {} if device.type == "meta" else {**encoder.thin, "vocab_size": len(ByT5Tokenizer())}
        with device, default_dtype(dtype):
            text_encoders.append(encoder.kind(encoder.kind.config_class(**{**encoder.sizes, **thin})))
    with device, default_dtype(codec_dtype(spec, device)):
        vae = in_fp32_where_loaded_so(family.vae_class(**spec.vae_architecture))
        sound = {
            name: kind().float() if name in IN_FP32 else kind() for name, kind in family.sounds_with.items()
        }
    connectors = None
    if (connector := family.connects_with) is not None:
        thin = {} if device.type == "meta" else connector.thin
        with device, default_dtype(dtype):
            connectors = connector.kind(**{**connector.sizes, **thin})
    scheduler = family.schedulers[0](**family.schedule)
    if spec.pictures:
        options["expand_timesteps"] = True
    return Parts(
        experts, vae, text_encoders, tokenizers, scheduler, options, connectors=connectors, sound=sound
    )


def _bytes(template: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer that needs no files, with a stand-in for a chat template of so many tokens."""
    tokenizer: PreTrainedTokenizerBase = ByT5Tokenizer()
    if template:
        tokenizer.chat_template = f"{{{{ 'x' * {template} }}}}{{{{ messages[-1].content }}}}"
    return tokenizer


def in_fp32_where_loaded_so(model: Any) -> Any:
    """Return a model of diffusers with those parameters in fp32 that its `from_pretrained` keeps so."""
    kept = set(model._keep_in_fp32_modules or ())
    for name, parameter in model.named_parameters():
        if kept.intersection(name.split(".")):
            parameter.data = parameter.data.float()
    return model


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make modules in a dtype, so that ten billion weights are never there in fp32."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def stored(spec: ModelSpec, blocks: Sequence[nn.Module], transformer: nn.Module) -> nn.Module:
    """Return a transformer with its blocks' weights stored as the spec says, one block after the other."""
    if spec.quantize == "fp8":
        for block in blocks:
            quantize(block)
    return transformer


def read_component(load: Callable[[Path], Loaded], folder: Path) -> Loaded:
    """Return ``load(folder)``, turning whatever a library says into MissingError or DamagedError."""
    if not folder.exists():
        raise MissingError(f"there is no {folder.name} in {folder.parent}", how_to_restore(folder))
    try:
        return load(folder)
    except Exception as error:  # the libraries raise everything from KeyError to their own
        if lacks_memory(error):  # which says nothing of the folder
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DamagedError(f"{folder} cannot be read: {reason}", how_to_restore(folder)) from error


def _is_unread(name: str, unread: Sequence[str]) -> bool:
    return any(part in name for part in unread)


def load_component(
    load: Callable[..., object], folder: Path, wanted: type[Loaded], unread: Sequence[str] = ()
) -> Loaded:
    """Load one component from safetensors, refusing anything missing, unexpected or damaged.

    Unexpected weights with a part of ``unread`` in their names are left out.
    ``load`` is its ``from_pretrained``. A checkpoint with missing keys would otherwise load
    with random weights and without an exception.
    """
    remedy = how_to_restore(folder)
    safely = partial(load, use_safetensors=True, local_files_only=True, output_loading_info=True)
    model, info = cast("tuple[object, dict[str, object]]", read_component(safely, folder))
    unexpected = cast("Iterable[str]", info.get("unexpected_keys") or ())
    info["unexpected_keys"] = [name for name in unexpected if not _is_unread(name, unread)]
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    wrong = [f"{kind} {_named(info[kind])}" for kind in kinds if info.get(kind)]
    if wrong:
        raise DamagedError(f"the weights in {folder} do not fit: {'; '.join(wrong)}", remedy)
    if not isinstance(model, wanted):
        raise DamagedError(f"{folder} holds a {type(model).__name__}, not a {wanted.__name__}", remedy)
    return model


def _named(keys: Any) -> str:
    """Return the first of several keys, as a library reports them: names, or names with two shapes."""
    names = sorted(str(key) if isinstance(key, str) else str(key[0]) for key in keys)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def load_scheduler(kinds: Sequence[type[Any]], folder: Path) -> Any:
    """Return the scheduler of a folder, one of a family's. Raises ValueError for another."""
    config = _read_settings(folder / "scheduler_config.json")
    by_name = {kind.__name__: kind for kind in kinds}
    if (name := config.get("_class_name")) not in by_name:
        raise ValueError(f"this family has no noise levels of {name}: {', '.join(by_name)}")
    return by_name[name].from_config(config)


def _read_settings(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no settings")
    return content
