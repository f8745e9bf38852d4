"""LoRAs of several kinds: read as diffusers reads them, merged into weights, refused where they do not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from storyreel.errors import DamagedError, MissingError
from storyreel.models.inventory import shapes_of
from storyreel.models.loading import load_adapter
from storyreel.models.lora import Lora, named_experts, parse_lora
from storyreel.models.lora_files import METADATA, UnfitError, changes_of, lora_problem
from storyreel.models.merging import merge
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.quantized import QuantizedLinear
from storyreel.models.specs import MODELS, ModelSpec
from tests.models.test_families import difference, latents, save
from tests.tiny import (
    CPU,
    FAMILIES,
    ltx_transformer,
    mochi_transformer,
    velocities,
    wan_transformer,
)

RANK = 3
Weights = dict[str, Tensor]

TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "wan": wan_transformer,
    "ltx": ltx_transformer,
    "mochi": mochi_transformer,
}
PIPELINES = {
    "wan": diffusers.WanPipeline,
    "ltx": diffusers.LTXPipeline,
    "mochi": diffusers.MochiPipeline,
}
NAMES = {
    "wan": MODELS["wan-14b"].authors_names,
    "ltx": MODELS["ltx-2b"].authors_names,
    "mochi": MODELS["mochi"].authors_names,
}


def linears(transformer: nn.Module, only: str = "") -> dict[str, nn.Linear]:
    found = {name: m for name, m in transformer.named_modules() if isinstance(m, nn.Linear)}
    return {name: layer for name, layer in found.items() if re.search(only, name)}


def low_rank(layers: Mapping[str, nn.Linear], ends: tuple[str, str], alpha: float | None = None) -> Weights:
    """Return matrices for some layers, with the ends that their keys have, and maybe an alpha each."""
    torch.manual_seed(11)
    file: Weights = {}
    for name, layer in layers.items():
        file[f"{name}.{ends[0]}.weight"] = torch.randn(RANK, layer.in_features)
        file[f"{name}.{ends[1]}.weight"] = torch.randn(layer.out_features, RANK)
        if alpha is not None:
            file[f"{name}.alpha"] = torch.tensor(alpha)
    return file


def of_wans_authors(transformer: nn.Module, only: str = "") -> dict[str, nn.Linear]:
    """Return layers by the names that Wan's authors gave them, written down independently of the table."""
    words = {
        r"attn1\.to_out\.0": "self_attn.o",
        r"attn1\.to_(.)": r"self_attn.\1",
        r"attn2\.to_out\.0": "cross_attn.o",
        r"attn2\.to_(.)": r"cross_attn.\1",
        r"ffn\.net\.0\.proj": "ffn.0",
        r"ffn\.net\.2": "ffn.2",
        r"condition_embedder\.(time|text)_embedder\.linear_1": r"\1_embedding.0",
        r"condition_embedder\.(time|text)_embedder\.linear_2": r"\1_embedding.2",
        r"condition_embedder\.time_proj": "time_projection.1",
        r"^proj_out": "head.head",
    }
    found = {}
    for name, layer in linears(transformer, only).items():
        for ours, theirs in words.items():
            name = re.sub(ours, theirs, name)
        found[name] = layer
    return found


def named(prefix: str, file: Weights) -> Weights:
    return {f"{prefix}{key}": value for key, value in file.items()}


def distilled() -> Weights:
    """Wan's few-step LoRAs: matrices, and beside them differences of biases, norms and modulations."""
    model, torch_seed = wan_transformer(), torch.manual_seed(12)
    file = low_rank(of_wans_authors(model, "blocks|time_|text_"), ("lora_down", "lora_up"))
    for name, layer in of_wans_authors(model, "blocks|time_|text_").items():
        file[f"{name}.diff_b"] = torch.randn(layer.out_features, generator=torch_seed)
    return named("diffusion_model.", file)


def kohyas(layers: Mapping[str, nn.Linear], alpha: float) -> Weights:
    file = low_rank(layers, ("lora_down", "lora_up"), alpha)
    split = (re.match(r"(.*?)(\.(?:lora_\w+\.weight|alpha))$", key) for key in file)
    names = [f"{match[1].replace('.', '_')}{match[2]}" for match in split if match]
    return named("lora_unet_", dict(zip(names, file.values(), strict=True)))


A_B, DOWN_UP = ("lora_A", "lora_B"), ("lora_down", "lora_up")
KINDS: dict[str, tuple[str, Callable[[], Weights]]] = {
    "diffusers, all of Wan's layers": (
        "wan",
        lambda: named("transformer.", low_rank(linears(wan_transformer()), A_B)),
    ),
    "diffusers, all of LTX's": ("ltx", lambda: named("transformer.", low_rank(linears(ltx_transformer()), A_B))),
    "diffusers, Mochi's attention": (
        "mochi",
        lambda: named("transformer.", low_rank(linears(mochi_transformer(), "attn1"), A_B)),
    ),
    "ComfyUI, Wan's blocks": (
        "wan",
        lambda: named("diffusion_model.", low_rank(of_wans_authors(wan_transformer(), "blocks"), A_B)),
    ),
    "ComfyUI, with alphas": (
        "wan",
        lambda: named("diffusion_model.", low_rank(of_wans_authors(wan_transformer(), "blocks"), DOWN_UP, 1.5)),
    ),
    "ComfyUI, one block and the head": (
        "wan",
        lambda: named("diffusion_model.", low_rank(of_wans_authors(wan_transformer(), "blocks.1|proj_out"), A_B)),
    ),
    "ComfyUI, LTX": ("ltx", lambda: named("diffusion_model.", low_rank(linears(ltx_transformer(), "blocks"), A_B))),
    "kohya, Wan": ("wan", lambda: kohyas(of_wans_authors(wan_transformer(), "blocks"), 2.0)),
    "LightX2V": ("wan", distilled),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [1.0, -0.4])
def test_merged_is_what_diffusers_own_reading_gives(kind: str, weight: float, tmp_path: Path) -> None:
    """Its loader brings a file to matrices A and B, whose scale is 1, and biases of B."""
    family, make = KINDS[kind]
    save_file(make(), tmp_path / "lora.safetensors")
    theirs = PIPELINES[family].lora_state_dict(tmp_path / "lora.safetensors")
    expected = dict(TRANSFORMERS[family]().named_parameters())
    for key, value in theirs.items():
        name = key.removeprefix("transformer.")
        if name.endswith("lora_A.weight"):
            target = name.replace("lora_A.", "")
            up = theirs[key.replace("lora_A", "lora_B")]
            expected[target] = expected[target] + weight * (up @ value)
        elif name.endswith("lora_B.bias"):
            target = name.replace("lora_B.", "")
            expected[target] = expected[target] + weight * value
    ours = TRANSFORMERS[family]()
    merge(ours, [Lora(tmp_path / "lora.safetensors", weight)], NAMES[family])
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-5)
    assert not equal(ours, TRANSFORMERS[family]())


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_what_peft_merges(kind: str, tmp_path: Path) -> None:
    """Where peft is installed, which nothing else here needs."""
    pytest.importorskip("peft")
    family, make = KINDS[kind]
    save_file(make(), tmp_path / "lora.safetensors")
    theirs: Any = TRANSFORMERS[family]()
    state = PIPELINES[family].lora_state_dict(tmp_path / "lora.safetensors")
    PIPELINES[family].load_lora_into_transformer(state, transformer=theirs)
    theirs.fuse_lora(lora_scale=0.7)
    theirs.unload_lora()
    ours = TRANSFORMERS[family]()
    merge(ours, [Lora(tmp_path / "lora.safetensors", 0.7)], NAMES[family])
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-5)
