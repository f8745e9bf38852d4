"""A model's folder as its hub has it, with random weights: to try what a download would be needed for.

Names of files, their distribution over shards, configurations and shapes are those of the repository, and so
are the sizes of tokenizers; what they say is noise. A film from it is noise too, and takes the time and the
memory of a real one.
"""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Any

import torch
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor, nn

from storyreel.errors import OutputError, UsageError
from storyreel.files import writing
from storyreel.models.loading import adapter_class, names
from storyreel.models.specs import ModelSpec

SHARD = 5 * 1000**3  # bytes of weights in fp32: where the repositories begin another file
PRIME = 4_194_301  # random numbers that are made of each size: making billions takes a quarter of an hour
SPARE = 1 << 30  # bytes that stay free on the disk
CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()-{}/"


@dataclass(frozen=True)
class Layout:
    """What a family's repository has beside weights: its pipeline's name, tokenizer and scheduler.

    ``pieces`` are those of the sentencepiece model, ``extra`` the tokens behind them; ``converted`` says
    whether there is a tokenizer.json too. ``options`` stand in model_index.json.
    """

    pipeline: str
    tokenizer: str
    pieces: int
    extra: int
    converted: bool
    scheduler: Mapping[str, Any]
    options: Mapping[str, Any]


EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
LTX = {
    **EULER,
    "base_image_seq_len": 1024,
    "base_shift": 0.95,
    "max_image_seq_len": 4096,
    "max_shift": 2.05,
    "shift_terminal": 0.1,
    "use_dynamic_shifting": True,
}
UNIPC = {
    "_class_name": "UniPCMultistepScheduler",
    "flow_shift": 3.0,
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
}
T5: dict[str, Any] = {"tokenizer": "T5Tokenizer", "pieces": 32_000, "extra": 100, "converted": False}
UMT5: dict[str, Any] = {"tokenizer": "T5TokenizerFast", "pieces": 256_000, "extra": 300, "converted": True}
ZEROS = {"force_zeros_for_empty_prompt": True}
LAYOUTS = {  # by the name of the adapter's class
    "MochiAdapter": Layout("MochiPipeline", **T5, scheduler={**EULER, "invert_sigmas": True}, options=ZEROS),
    "WanAdapter": Layout("WanPipeline", **UMT5, scheduler=UNIPC, options={}),
    "LTXAdapter": Layout("LTXPipeline", **T5, scheduler=LTX, options={}),
    "LaterLTXAdapter": Layout("LTXConditionPipeline", **T5, scheduler=EULER, options={}),
}


def make_folder(spec: ModelSpec, folder: Path, dtype: str, tell: Callable[[str], None]) -> Path:
    """Write a model's folder with random weights in ``dtype``, and return it.

    Raises UsageError where no layout is known or the folder is not empty, OutputError for a full disk.
    """
    layout = LAYOUTS.get(spec.adapter.partition(":")[2])
    if spec.hub is None or layout is None:
        raise UsageError(f"no layout of {spec.name} is known", "Choose another model: storyreel models")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty", "Name a folder that is not there yet.")
    family, kept = adapter_class(spec), DTYPES[dtype]
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {"vae": family.vae_class(**spec.vae_architecture)}
        for name in names("transformer", 1 if spec.boundary_ratio is None else 2):
            parts[name] = family.transformer_class(**spec.architecture)
        for encoder, name in zip(
            family.reads_with, names("text_encoder", len(family.reads_with)), strict=True
        ):
            parts[name] = encoder.kind(encoder.kind.config_class(**encoder.sizes))
    weights = {name: _weights(part) for name, part in parts.items()}
    size = sum(value.numel() for part in weights.values() for value in part.values()) * kept.itemsize
    with writing(folder, "name another folder", ""):
        folder.mkdir(parents=True, exist_ok=True)
        if size + SPARE > (free := shutil.disk_usage(folder).free):
            words = f"{size / 1e9:.1f} GB are to be written, {free / 1e9:.1f} GB are free in {folder}"
            raise OutputError(words, "Name a folder on a larger disk.")
        index = {"_class_name": layout.pipeline, "_diffusers_version": "0.33.0", **layout.options}
        if spec.boundary_ratio is not None:
            index["boundary_ratio"] = spec.boundary_ratio
        _json(folder / "scheduler" / "scheduler_config.json", layout.scheduler)
        index["scheduler"] = ["diffusers", layout.scheduler["_class_name"]]
        for name in names("tokenizer", len(family.reads_with)):
            write_tokenizer(folder / name, layout)
            index[name] = ["transformers", layout.tokenizer]
        for name, part in parts.items():
            library, stem = ("transformers", "model") if name.startswith("text") else ("diffusers", STEM)
            config: Any = part.config
            _json(
                folder / name / "config.json",
                config.to_dict() if library == "transformers" else _settings(part),
            )
            write_weights(folder / name, stem, weights[name], kept, spec.variant)
            index[name] = [library, type(part).__name__]
            tell(f"{name}: {sum(v.numel() for v in weights[name].values()) * kept.itemsize / 1e9:.1f} GB")
        _json(folder / "model_index.json", index)  # at last: without it, nothing is loaded
    return folder


STEM = "diffusion_pytorch_model"


def _settings(part: Any) -> dict[str, Any]:
    """Return a component's config.json as diffusers writes it."""
    settings = {key: value for key, value in part.config.items() if not key.startswith("_")}
    return {"_class_name": type(part).__name__, "_diffusers_version": "0.33.0", **settings}


def _json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def _weights(part: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that a component's files have, without data; of tied ones the first."""
    tensors: dict[str, Tensor] = part.state_dict()
    if "shared.weight" in tensors:
        tensors.pop("encoder.embed_tokens.weight", None)
    return tensors


def write_weights(
    folder: Path, stem: str, tensors: Mapping[str, Tensor], dtype: torch.dtype, variant: str | None
) -> None:
    """Write random weights of some shapes as one safetensors file, or as shards with their index."""
    shards = in_shards(tensors)
    special = f".{variant}" if variant else ""
    if len(shards) == 1:
        write_shard(folder / f"{stem}{special}.safetensors", tensors, dtype)
        return
    where: dict[str, str] = {}
    for number, held in enumerate(shards, 1):
        file = f"{stem}{special}-{number:05d}-of-{len(shards):05d}.safetensors"
        where |= dict.fromkeys(held, file)
        write_shard(folder / file, {name: tensors[name] for name in held}, dtype)
    total = sum(tensor.numel() for tensor in tensors.values()) * dtype.itemsize
    index = {"metadata": {"total_size": total}, "weight_map": where}
    _json(folder / f"{stem}.safetensors.index{special}.json", index)


def in_shards(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names of tensors by files, as transformers and diffusers distribute fp32 over them."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * 4
        if shards[-1] and filled + size > SHARD:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def write_shard(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write random tensors of some shapes as a safetensors file, a part of a tensor at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, tensor in tensors.items():
        end = place + tensor.numel() * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(written)) + written)
        for name, tensor in tensors.items():
            for part in elements(name, tensor.shape, dtype):
                file.write(part.view(torch.uint8).numpy().data)


def elements(name: str, shape: Sequence[int], dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield a tensor's elements, part by part, such that a model's activations keep their size.

    Those of a matrix or a convolution have the standard deviation 1/√inputs. What has a number a channel is 1
    if it scales and 0 if it is added.
    """
    count = prod(shape)
    if not shape or shape[0] == count:
        scales = name.rpartition(".")[2] in ("weight", "gamma", "latents_std")
        yield torch.full((count,), float(scales), dtype=dtype)
        return
    noise = _noise(prod(shape[1:]), dtype)
    begin = zlib.crc32(name.encode()) % len(noise)
    while count:
        part = noise[begin : begin + count]
        yield part
        count -= len(part)
        begin = 0


@lru_cache(maxsize=32)
def _noise(inputs: int, dtype: torch.dtype) -> Tensor:
    """Return noise that is long, and of a prime length, so that no rows of a matrix are alike."""
    bound = (3 / inputs) ** 0.5
    generator = torch.Generator().manual_seed(inputs)
    return torch.empty(PRIME).uniform_(-bound, bound, generator=generator).to(dtype)


def write_tokenizer(folder: Path, layout: Layout) -> None:
    """Write a sentencepiece model of a true vocabulary's size, and what lies beside it.

    Its words are letters in a row: a text becomes some more tokens than the real one makes of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    model.trainer_spec.vocab_size = layout.pieces
    model.trainer_spec.pad_id, model.trainer_spec.eos_id, model.trainer_spec.unk_id = 0, 1, 2
    model.trainer_spec.bos_id = -1
    special = model.SentencePiece
    for piece, kind in (("<pad>", special.CONTROL), ("</s>", special.CONTROL), ("<unk>", special.UNKNOWN)):
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for piece in islice(_pieces(), layout.pieces - 3):
        model.pieces.add(piece=piece, score=-10.0, type=special.NORMAL)
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    sentinels = [f"<extra_id_{number}>" for number in range(layout.extra)]
    named = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _json(folder / "special_tokens_map.json", {"additional_special_tokens": sentinels, **named})
    added = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {
        token: layout.pieces + layout.extra - 1 - number for number, token in enumerate(sentinels)
    }
    if not layout.converted:
        _json(folder / "added_tokens.json", {token: added[token] for token in sentinels})
    settings = {
        "add_prefix_space": True,
        "added_tokens_decoder": {
            str(place): {"content": token, "lstrip": False, "normalized": False, "special": True}
            | {"rstrip": False, "single_word": False}
            for token, place in added.items()
        },
        "additional_special_tokens": sentinels,
        "clean_up_tokenization_spaces": True,
        **named,
        "extra_ids": layout.extra,
        "legacy": True,
        "model_max_length": 512,
        "sp_model_kwargs": {},
        "tokenizer_class": layout.tokenizer.removesuffix("Fast"),
    }
    _json(folder / "tokenizer_config.json", settings)
    if layout.converted:
        from transformers import T5Tokenizer

        whole = T5Tokenizer.from_pretrained(folder, local_files_only=True)
        whole.backend_tokenizer.save(str(folder / "tokenizer.json"))


def _pieces() -> Iterator[str]:
    """Yield letters in a row, the short ones first, at a word's beginning and within it."""
    yield "▁"
    yield from SIGNS
    for length in range(1, 5):
        for letters in product(LETTERS, repeat=length):
            word = "".join(letters)
            yield f"▁{word}"
            yield word
