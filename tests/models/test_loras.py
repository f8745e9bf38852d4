"""LoRAs of several kinds: read as diffusers reads them, merged into weights, refused if they do not fit."""

from __future__ import annotations

import json
import re
import shutil
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
from storyreel.models.lora_files import METADATA, UnfitError, changes_of, is_fit_known, lora_problem
from storyreel.models.merging import merge
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
    "diffusers, all of LTX's": (
        "ltx",
        lambda: named("transformer.", low_rank(linears(ltx_transformer()), A_B)),
    ),
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
        lambda: named(
            "diffusion_model.", low_rank(of_wans_authors(wan_transformer(), "blocks"), DOWN_UP, 1.5)
        ),
    ),
    "ComfyUI, one block and the head": (
        "wan",
        lambda: named(
            "diffusion_model.", low_rank(of_wans_authors(wan_transformer(), "blocks.1|proj_out"), A_B)
        ),
    ),
    "ComfyUI, LTX": (
        "ltx",
        lambda: named("diffusion_model.", low_rank(linears(ltx_transformer(), "blocks"), A_B)),
    ),
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


DIFFERENCES = {
    "blocks.0.norm3.diff": "blocks.0.norm2.weight",
    "blocks.0.norm3.diff_b": "blocks.0.norm2.bias",
    "blocks.1.self_attn.norm_q.diff": "blocks.1.attn1.norm_q.weight",
    "blocks.1.cross_attn.o.diff_b": "blocks.1.attn2.to_out.0.bias",
    "blocks.1.ffn.2.diff": "blocks.1.ffn.net.2.weight",
    "blocks.0.diff_m": "blocks.0.scale_shift_table",
    "head.diff_m": "scale_shift_table",
    "head.head.diff": "proj_out.weight",
    "patch_embedding.diff": "patch_embedding.weight",
    "time_projection.1.diff_b": "condition_embedder.time_proj.bias",
    "text_embedding.2.diff_b": "condition_embedder.text_embedder.linear_2.bias",
}


def test_differences_are_added_as_they_are(tmp_path: Path) -> None:
    """Also those of norms, modulations and biases, which diffusers leaves out without a word."""
    before, model = dict(wan_transformer().named_parameters()), wan_transformer()
    torch.manual_seed(3)
    file = {key: torch.randn(before[target].shape) for key, target in DIFFERENCES.items()}
    save_file(named("diffusion_model.", file), tmp_path / "lora.safetensors")
    merge(model, [Lora(tmp_path / "lora.safetensors", 0.5)], NAMES["wan"])
    for key, target in DIFFERENCES.items():
        assert torch.equal(model.get_parameter(target), before[target] + 0.5 * file[key]), key
    others = {*before} - {*DIFFERENCES.values()}
    assert all(torch.equal(model.get_parameter(name), before[name]) for name in others)


def test_every_layer_of_wan_has_its_authors_name() -> None:
    """diffusers' own converter of checkpoints, the other way round, gives back every name that is here."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    parameters = dict(wan_transformer().named_parameters())
    theirs = {}
    for name in parameters:
        authors = name
        for ours, word in NAMES["wan"]:
            authors = authors.replace(ours, word)
        theirs[authors] = name
    assert len(theirs) == len(parameters)
    converted = convert_wan_transformer_to_diffusers(dict(theirs))
    assert converted == {name: name for name in parameters}


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 1.0),
        ({"r": 3, "lora_alpha": 6}, 2.0),
        ({"r": 3, "lora_alpha": 6, "use_rslora": True}, 6 / 3**0.5),
        ({"r": 3, "lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 1.5}}, 0.5),
        ({"r": 3, "lora_alpha": 6, "alpha_pattern": {"1.attn1.to_q": 1.5}}, 2.0),
    ],
)
def test_pefts_configuration_in_a_file_says_the_scale(
    config: dict[str, Any], scale: float, tmp_path: Path
) -> None:
    layers = linears(wan_transformer(), r"blocks\.0\.attn1\.to_q")
    assert len(layers) == 1
    file, ((target, layer),) = low_rank(layers, A_B), layers.items()
    text = json.dumps({f"transformer.{name}": value for name, value in config.items()})
    save_file(named("transformer.", file), tmp_path / "lora.safetensors", {METADATA: text})
    model = wan_transformer()
    merge(model, [Lora(tmp_path / "lora.safetensors")])
    product = file[f"{target}.lora_B.weight"] @ file[f"{target}.lora_A.weight"]
    torch.testing.assert_close(model.get_parameter(f"{target}.weight"), layer.weight + scale * product)


def test_several_are_summed_in_fp32_and_rounded_once(tmp_path: Path) -> None:
    exact, model = wan_transformer(), wan_transformer().bfloat16()
    names = (tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    for index, path in enumerate(names):
        file = {k: v / 50 + index / 100 for k, v in low_rank(linears(exact), A_B).items()}
        save_file({k: v.bfloat16() for k, v in named("transformer.", file).items()}, path)
    loras = [Lora(names[0], 0.3), Lora(names[1], -0.7)]
    exact.load_state_dict(model.state_dict())
    merge(exact, loras)
    merge(model, loras)
    assert all(
        torch.equal(a, b.bfloat16()) for a, b in zip(model.parameters(), exact.parameters(), strict=True)
    )


def matrices(name: str = "transformer.blocks.0.attn1.to_q") -> Weights:
    return {f"{name}.lora_A.weight": torch.zeros(3, 24), f"{name}.lora_B.weight": torch.zeros(24, 3)}


UNFIT: dict[str, tuple[Callable[[], Weights], str]] = {
    "nothing": (dict, "it is empty"),
    "other weights": (lambda: {"conv.weight": torch.zeros(2)}, "no LoRA: it has conv.weight"),
    "a layer that is not there": (
        lambda: matrices("transformer.blocks.0.attn1.to_z"),
        r"nothing by the names of transformer\.blocks\.0\.attn1\.to_z\.lora_A\.weight",
    ),
    "many layers that are not there": (
        lambda: {
            k: v for i in range(9) for k, v in matrices(f"transformer.blocks.{i + 2}.attn1.to_q").items()
        },
        "and 15 more",
    ),
    "another model": (
        lambda: matrices("lora_unet_double_blocks_0_img_attn_qkv"),
        "nothing by the names of lora_u",
    ),
    "a text encoder's": (lambda: matrices() | matrices("text_encoder.layers.0.q"), "text_encoder.layers.0.q"),
    "a text encoder's alone": (
        lambda: matrices("lora_te1_text_model_encoder_layers_0_mlp_fc1"),
        "a text encoder, which is not done",
    ),
    "whole numbers": (
        lambda: {key: value.to(torch.int8) for key, value in matrices().items()},
        "its numbers are I8, not floating point",
    ),
    "keys of no kind": (lambda: matrices() | {"extra": torch.zeros(1)}, "nothing by the names of extra"),
    "another size": (
        lambda: {
            "transformer.blocks.0.attn1.to_q.lora_A.weight": torch.zeros(3, 48),
            "transformer.blocks.0.attn1.to_q.lora_B.weight": torch.zeros(48, 3),
        },
        r"sizes differ: blocks\.0\.attn1\.to_q\.weight is 24x24, in the file 48x48",
    ),
    "two ranks": (
        lambda: matrices() | {"transformer.blocks.0.attn1.to_q.lora_B.weight": torch.zeros(24, 4)},
        "the ranks of .*24x4.*3x24, differ",
    ),
    "a number as a matrix": (
        lambda: matrices() | {"transformer.blocks.0.attn1.to_q.lora_B.weight": torch.zeros(())},
        "ranks",
    ),
    "one matrix": (
        lambda: {"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.zeros(3, 24)},
        "without its other one",
    ),
    "an alpha alone": (lambda: {"transformer.blocks.0.attn1.to_q.alpha": torch.ones(())}, "not there"),
    "an alpha of many": (
        lambda: matrices() | {"transformer.blocks.0.attn1.to_q.alpha": torch.ones(2)},
        "no single number",
    ),
    "a difference of another size": (
        lambda: {"diffusion_model.blocks.0.norm3.diff": torch.zeros(23)},
        "norm2.weight is 24, in the file 23",
    ),
    "DoRA": (lambda: matrices() | {"transformer.x.dora_scale": torch.ones(1)}, "a DoRA"),
    "LoKr": (lambda: {"diffusion_model.blocks.0.ffn.0.lokr_w1": torch.ones(1)}, "a LoKr"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_refused_by_headers_alone_with_the_first_names(
    case: str, tmp_path: Path
) -> None:
    make, words = UNFIT[case]
    path = tmp_path / "lora.safetensors"
    save_file(make(), path)
    shapes = {name: tuple(p.shape) for name, p in wan_transformer().named_parameters()}
    with pytest.raises(UnfitError, match=words) as caught:
        changes_of(path, shapes, NAMES["wan"])
    assert len(str(caught.value)) < 500
    model = wan_transformer()
    with pytest.raises(DamagedError, match=words):
        merge(model, [Lora(path)], NAMES["wan"])
    assert equal(model, wan_transformer())


OF_THE_FILE = (
    *(
        "nothing",
        "other weights",
        "a text encoder's",
        "a text encoder's alone",
        "two ranks",
        "a number as a matrix",
    ),
    *("one matrix", "an alpha alone", "an alpha of many", "whole numbers", "DoRA", "LoKr"),
)


@pytest.mark.parametrize("case", OF_THE_FILE)
def test_what_is_wrong_in_the_file_itself_is_found_without_the_model(case: str, tmp_path: Path) -> None:
    make, words = UNFIT[case]
    save_file(make(), tmp_path / "lora.safetensors")
    elsewhere = replace(MODELS["wan-1.3b"], weights=tmp_path / "nowhere")
    assert re.search(words, str(lora_problem(Lora(tmp_path / "lora.safetensors"), elsewhere)))


NOT_FINITE = {
    "a matrix": lambda: {
        **matrices(),
        "transformer.blocks.0.attn1.to_q.lora_B.weight": torch.full((24, 3), torch.inf),
    },
    "an alpha": lambda: {**matrices(), "transformer.blocks.0.attn1.to_q.alpha": torch.tensor(torch.nan)},
    "a difference": lambda: {
        **matrices(),
        "transformer.blocks.0.attn1.to_q.diff_b": torch.full((24,), torch.nan),
    },
}


@pytest.mark.parametrize("case", NOT_FINITE)
def test_numbers_that_are_not_finite_are_refused_before_a_weight_is_changed(
    case: str, tmp_path: Path
) -> None:
    path, model = tmp_path / "lora.safetensors", wan_transformer()
    save_file(NOT_FINITE[case](), path)
    with pytest.raises(DamagedError, match=r"lora\.safetensors is damaged: .*not finite"):
        merge(model, [Lora(path)], NAMES["wan"])
    assert equal(model, wan_transformer())


@pytest.mark.parametrize("raw", [b"", b"no LoRA", b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.", bytes(2000)])
def test_what_is_no_file_of_safetensors_is_refused(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(raw)
    with pytest.raises(UnfitError, match="cannot be read as safetensors"):
        changes_of(path, {})


def test_a_configuration_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    for text in (
        "[]",
        "{",
        '{"lora_alpha": "x"}',
        '{"alpha_pattern": 3}',
        '{"use_dora": true}',
        '{"lora_alpha": NaN}',
    ):
        save_file(matrices(), tmp_path / "lora.safetensors", {METADATA: text})
        with pytest.raises(UnfitError, match=r"makes no sense|DoRA|no finite"):
            changes_of(tmp_path / "lora.safetensors", {"blocks.0.attn1.to_q.weight": (24, 24)})


# A model that is read from a folder


def read(spec: ModelSpec, mode: Any = "high") -> Any:
    return load_adapter(spec, CPU, mode)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    specs = {}
    for name in ("mochi", "wan", "wan of two experts"):
        folder, adapter = tmp_path_factory.mktemp("weights"), FAMILIES[name]()
        save(adapter, folder)
        two = adapter.parts.options.get("boundary_ratio")
        names = NAMES["wan" if "wan" in name else name]
        specs[name] = replace(adapter.spec, weights=folder, boundary_ratio=two, authors_names=names)
    return specs


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A LoRA for each of them."""
    made = {}
    for family in ("mochi", "wan"):
        file = {k: v / 4 for k, v in low_rank(linears(TRANSFORMERS[family](), "attn1"), A_B).items()}
        made[family] = made[f"{family} of two experts"] = (
            tmp_path_factory.mktemp("loras") / f"{family}.safetensors"
        )
        save_file(named("transformer.", file), made[family])
    return made


@torch.no_grad()
def answers(adapter: Any, sigma: float = 0.5) -> Tensor:
    x = latents(adapter)
    return torch.cat(velocities(adapter, x, sigma, [adapter.encode(""), adapter.encode("a fox in the park")]))


@pytest.mark.parametrize(
    ("family", "mode", "quantize"),
    [("mochi", "high", "none"), ("wan", "balanced", "none"), ("wan", "low", "fp8")],
)
def test_loras_come_and_go_without_a_trace(
    folders: dict[str, ModelSpec], one: dict[str, Path], family: str, mode: Any, quantize: str
) -> None:
    """Whatever the memory mode is, and however the weights are stored."""
    spec, lora = replace(folders[family], quantize=quantize), Lora(one[family], 0.8)
    adapter = read(spec, mode)
    without = answers(adapter)
    adapter.merge_loras([lora])
    merged = answers(adapter)
    assert difference(merged, without) > 1e-3
    adapter.merge_loras([replace(lora, weight=-2.0)])
    assert difference(answers(adapter), merged) > 1e-3
    adapter.merge_loras([])
    assert torch.equal(answers(adapter), without)
    adapter.merge_loras([lora])
    assert torch.equal(answers(adapter), merged)
    assert torch.equal(answers(read(replace(spec, loras=(lora,)), mode)), merged)


def test_fewer_bits_are_made_of_the_merged_weights(
    folders: dict[str, ModelSpec], one: dict[str, Path]
) -> None:
    lora = Lora(one["wan"], 3.0)
    model = wan_transformer()
    merge(model, [lora])
    adapter = read(replace(folders["wan"], quantize="fp8"))
    adapter.merge_loras([lora])
    stored = adapter.experts[0].get_submodule("blocks.0.attn1.to_q")
    expected = QuantizedLinear(model.get_submodule("blocks.0.attn1.to_q"))
    assert torch.equal(stored.scale, expected.scale)
    assert torch.equal(stored.weight.float(), expected.weight.float())


def test_a_file_that_has_changed_is_merged_anew(
    folders: dict[str, ModelSpec], one: dict[str, Path], tmp_path: Path
) -> None:
    """As between two films of one process, while a training goes on."""
    lora = Lora(tmp_path / "style.safetensors")
    shutil.copy(one["wan"], lora.path)
    adapter = read(folders["wan"])
    adapter.merge_loras([lora])
    before = adapter.experts[0].state_dict()
    save_file({name: 2 * value for name, value in load_file(one["wan"]).items()}, lora.path)
    adapter.merge_loras([lora])
    after = adapter.experts[0].state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_the_same_again_reads_nothing(folders: dict[str, ModelSpec], one: dict[str, Path]) -> None:
    adapter = read(folders["wan"])
    adapter.merge_loras([Lora(one["wan"])])
    transformer = adapter.experts[0]
    adapter.merge_loras([Lora(one["wan"])])
    assert adapter.experts[0] is transformer
    adapter.merge_loras([])
    assert adapter.experts[0] is not transformer


@pytest.mark.parametrize("experts", ["high", "low", "all"])
def test_each_expert_has_those_that_are_for_it(
    folders: dict[str, ModelSpec], one: dict[str, Path], experts: Any
) -> None:
    adapter = read(folders["wan of two experts"])
    before = [answers(adapter, sigma) for sigma in (0.95, 0.5)]
    adapter.merge_loras([Lora(one["wan"], 1.0, experts)])
    after = [answers(adapter, sigma) for sigma in (0.95, 0.5)]
    changes = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changes == [experts in ("high", "all"), experts in ("low", "all")]


def test_a_file_that_is_gone_is_said(folders: dict[str, ModelSpec], tmp_path: Path) -> None:
    adapter = read(folders["wan"])
    adapter.merge_loras([Lora(tmp_path / "gone.safetensors")])
    with pytest.raises(MissingError, match=r"gone\.safetensors"):
        _ = adapter.experts


def test_networks_that_were_given_take_no_loras(one: dict[str, Path]) -> None:
    with pytest.raises(RuntimeError, match="given"):
        FAMILIES["wan"]().merge_loras([Lora(one["wan"])])


def test_what_fits_is_seen_without_the_weights_data(
    folders: dict[str, ModelSpec], one: dict[str, Path], tmp_path: Path
) -> None:
    wan, two = folders["wan"], folders["wan of two experts"]
    assert lora_problem(Lora(one["wan"]), wan) is None
    assert lora_problem(Lora(one["wan"], 1.0, "low"), two) is None
    assert "one transformer" in str(lora_problem(Lora(one["wan"], 1.0, "low"), wan))
    assert "does not fit model tiny-wan" in str(lora_problem(Lora(one["mochi"]), wan))
    assert "no LoRA" in str(lora_problem(Lora(tmp_path / "x.safetensors"), wan))
    assert "cannot be read" in str(lora_problem(Lora(tmp_path), wan))
    # Where the model is not here, only the file itself can be wrong.
    elsewhere = replace(wan, weights=tmp_path / "nowhere")
    assert lora_problem(Lora(one["mochi"]), elsewhere) is None
    assert [is_fit_known(Lora(one["mochi"]), spec) for spec in (wan, two, elsewhere)] == [True, True, False]
    (tmp_path / "x.safetensors").write_bytes(b"x")
    assert "safetensors" in str(lora_problem(Lora(tmp_path / "x.safetensors"), elsewhere))


def test_shards_and_variants_are_looked_into(tmp_path: Path) -> None:
    model: Any = wan_transformer()
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    model.save_pretrained(tmp_path / "variant", variant="bf16")
    assert shapes_of(tmp_path / "sharded") == shapes_of(tmp_path / "variant", "bf16") == expected
    assert shapes_of(tmp_path / "sharded", "bf16") == expected
    next((tmp_path / "sharded").glob("*.safetensors")).unlink()
    assert shapes_of(tmp_path / "sharded") == {}


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("x/a=b.safetensors=0.5", "x/a=b.safetensors", 0.5),
        ("a=-1e-1", "a", -0.1),
    ],
)
def test_a_file_may_have_a_weight(text: str, name: str, weight: float) -> None:
    assert parse_lora(text) == (Path(name), weight)


def test_a_file_whose_name_has_the_sign_is_one(tmp_path: Path) -> None:
    path = tmp_path / "a=0.5"
    assert parse_lora(str(path)) == (tmp_path / "a", 0.5)
    path.touch()
    assert parse_lora(str(path)) == (path, 1.0)


@pytest.mark.parametrize("text", ["", ".", "=0.5"])
def test_no_file_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="names no file; write FILE=WEIGHT"):
        parse_lora(text)


@pytest.mark.parametrize("weight", ["", "x", "nan", "inf", "11", "0,5", "1 2"])
def test_a_weight_that_is_none_is_refused(weight: str) -> None:
    with pytest.raises(ValueError, match="weight"):
        parse_lora(f"a.safetensors={weight}")


@pytest.mark.parametrize(
    ("name", "experts"),
    [
        ("wan2.2_t2v_high_noise_lora.safetensors", "high"),
        ("Wan22-LOW-NOISE-4step.safetensors", "low"),
        ("style.safetensors", "all"),
        ("high_noise_and_low_noise.safetensors", "all"),
    ],
)
def test_names_say_which_expert_a_file_is_for(name: str, experts: str) -> None:
    assert named_experts(Path(name)) == experts
