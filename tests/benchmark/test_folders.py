"""Folders with random weights: laid out as the hub's, and good for a film."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from storyreel.benchmark import folders
from storyreel.benchmark.folders import LAYOUTS, in_shards, make_folder, write_tokenizer
from storyreel.cli.app import run
from storyreel.errors import OutputError, UsageError
from storyreel.models.inventory import check_inventory
from storyreel.models.loading import TextEncoder, adapter_class, load_adapter
from storyreel.models.specs import MODELS, ModelSpec
from tests.tiny import CPU, velocities


@pytest.fixture
def small(spec_name: str, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A tiny model whose tokenizer is small too."""
    spec = MODELS[spec_name]
    family = adapter_class(spec)
    name = spec.adapter.partition(":")[2]
    monkeypatch.setitem(LAYOUTS, name, replace(LAYOUTS[name], pieces=800, extra=10))
    (encoder,) = family.reads_with
    sizes = {**encoder.sizes, "vocab_size": 810}
    monkeypatch.setattr(family, "reads_with", (TextEncoder(encoder.kind, sizes, encoder.thin),))
    return spec


def test_a_folder_is_loaded_as_a_pulled_one(
    small: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "SHARD", 20_000)
    said: list[str] = []
    spec = replace(small, weights=make_folder(small, tmp_path / "made", "float32", said.append))
    check_inventory(spec)
    adapter: Any = load_adapter(spec, CPU)
    assert [line.partition(":")[0] for line in said][-1] == "text_encoder"
    for part in ("transformer", "text_encoder"):
        shards = sorted(path.name for path in (spec.weights / part).glob("*.safetensors"))
        assert len(shards) > 1
        assert shards[0].endswith(f"-00001-of-{len(shards):05d}.safetensors")
    texts = [adapter.encode("a fox walks"), adapter.encode("")]
    assert texts[0].mean().isfinite().all()
    x = torch.randn(1, spec.latent_channels, 2, 4, 4)
    for velocity in velocities(adapter, x, 0.7, texts):
        assert velocity.isfinite().all()
        assert 0 < velocity.std() < 100
    assert adapter.decode(x).float().std() > 0


@pytest.mark.parametrize("spec_name", ["wan of two experts"], indirect=True)
def test_what_stands_in_a_folder(small: ModelSpec, tmp_path: Path) -> None:
    spec = replace(small, variant="bf16")
    folder = make_folder(spec, tmp_path / "made", "bfloat16", lambda _: None)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "WanPipeline"
    assert index["boundary_ratio"] == 0.875
    assert index["text_encoder"] == ["transformers", "UMT5EncoderModel"]
    assert index["transformer_2"] == ["diffusers", "WanTransformer3DModel"]
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert "transformer_2/diffusion_pytorch_model.bf16.safetensors" in names
    assert {"tokenizer/spiece.model", "tokenizer/tokenizer.json", "vae/config.json"} <= names
    weights = load_file(folder / "transformer" / "diffusion_pytorch_model.bf16.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert not weights["blocks.0.attn1.to_q.bias"].any()
    assert (weights["blocks.0.attn1.norm_q.weight"] == 1).all()
    matrix = weights["blocks.0.ffn.net.0.proj.weight"].float()
    assert matrix.std() == pytest.approx(matrix.shape[1] ** -0.5, rel=0.1)
    assert not torch.equal(matrix[0], matrix[1])
    assert not torch.equal(matrix, weights["blocks.1.ffn.net.0.proj.weight"].float())


class Published(NamedTuple):
    """The sizes of a repository's files in bytes, at the commit of the table, as manifests have them."""

    text_encoder: list[int]
    transformer: list[int]
    vae: list[int]


WAN = Published(
    [4_972_389_712, 4_899_225_672, 4_966_309_504, 4_999_880_704, 2_885_866_152],
    [4_998_781_576, 677_289_072],
    [507_591_892],
)


def test_true_sizes_are_those_of_the_published_files() -> None:
    """To 100 kB, which is what files say of their tensors."""
    spec = MODELS["wan-1.3b"]
    family = adapter_class(spec)
    (encoder,) = family.reads_with
    with torch.device("meta"):
        made = Published(
            encoder.kind(encoder.kind.config_class(**encoder.sizes)),
            family.transformer_class(**spec.architecture),
            family.vae_class(**spec.vae_architecture),
        )
    for part, published in zip(made, WAN, strict=True):
        tensors = folders._weights(part)  # type: ignore[arg-type]
        sizes = [sum(4 * tensors[name].numel() for name in shard) for shard in in_shards(tensors)]
        assert sizes == pytest.approx(published, abs=100_000)


def test_a_tokenizer_has_its_true_size_and_loses_nothing(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path, LAYOUTS["LTXAdapter"])
    read: Any = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert len(read) == 32_100
    text = 'A corgi, 3 years old: "Where\'s Central Park?"'
    ids = read(text).input_ids
    assert read.unk_token_id not in ids
    assert read.decode(ids, skip_special_tokens=True) == text
    assert read("").input_ids == [read.eos_token_id]
    assert read.is_fast  # it says where tokens stand


@pytest.mark.parametrize("spec_name", ["ltx"], indirect=True)
def test_what_cannot_be_made_is_refused(
    small: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="no layout of mini"):
        make_folder(MODELS["mini"], tmp_path / "new", "float32", print)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "film.mp4").touch()
    with pytest.raises(UsageError, match="not empty"):
        make_folder(small, tmp_path / "there", "float32", print)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=folders.SPARE))
    with pytest.raises(OutputError, match="are to be written"):
        make_folder(small, tmp_path / "full", "float32", print)
    assert not any((tmp_path / "full").iterdir())


@pytest.mark.parametrize("spec_name", ["ltx"], indirect=True)
def test_the_command_makes_one(small: ModelSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "made"
    assert run(["bench", "--model", small.name, "--make-folder", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": small.name, "folder": str(folder)}
    assert run(["bench", "--model", small.name, "--make-folder", str(folder)]) == 2
    assert "not empty" in capsys.readouterr().err
