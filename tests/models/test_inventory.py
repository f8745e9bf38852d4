"""Whether a model's parts are there is known before anything is loaded."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from storyreel.errors import DamagedError, MissingError
from storyreel.film.keys import weight_hashes
from storyreel.models.inventory import check_inventory, weight_files
from storyreel.models.specs import MODELS, Addition, ModelSpec


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    """A model with two experts, one of them in two files, in a folder as a hub has it."""
    parts = {name: ["diffusers", "X"] for name in ("scheduler", "tokenizer", "text_encoder", "vae")}
    index = parts | {"transformer": ["diffusers", "X"], "transformer_2": ["diffusers", "X"]}
    index |= {"image_encoder": ["transformers", "Y"]}
    (tmp_path / "model_index.json").write_text(
        json.dumps(index | {"boundary_ratio": 0.9, "_class_name": "Z"})
    )
    for name in index:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    for name in ("text_encoder", "vae", "transformer"):
        (tmp_path / name / "model.safetensors").write_bytes(b"")
    shards = {"a": "m-00001-of-2.safetensors", "b": "m-00002-of-2.safetensors"}
    for shard in shards.values():
        (tmp_path / "transformer_2" / shard).write_bytes(b"")
    path = tmp_path / "transformer_2" / "m.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": shards}))
    shutil.rmtree(tmp_path / "image_encoder")  # which no film needs
    return replace(MODELS["mochi"], weights=tmp_path)


def test_what_is_whole_is_taken(spec: ModelSpec) -> None:
    check_inventory(spec)
    check_inventory(MODELS["mini"])
    (spec.weights / "model_index.json").unlink()  # what it names is not known then; loading says it
    check_inventory(spec)


def test_what_else_lies_in_the_folder_is_no_part_of_a_model(spec: ModelSpec) -> None:
    """As what another tool fetches into the same cache: other precisions, licences, other formats."""
    before = weight_files(spec)
    for name in ("LICENSE.txt", "all-in-one.safetensors", "vae/model.fp16.safetensors", "vae/deep/a.json"):
        (spec.weights / name).parent.mkdir(exist_ok=True)
        (spec.weights / name).write_bytes(b"")
    (spec.weights / "image_encoder").mkdir()
    (spec.weights / "image_encoder" / "config.json").write_text("{}")
    assert weight_files(spec) == before
    for name in ("preview.safetensors", "scorer/config.json", "vae/model.bf16.safetensors"):
        (spec.weights / name).parent.mkdir(exist_ok=True)
        (spec.weights / name).write_bytes(b"")
    added = {path.relative_to(spec.weights).as_posix() for path in {*weight_files(spec)} - {*before}}
    assert added == {"preview.safetensors", "scorer/config.json", "vae/model.bf16.safetensors"}


def test_what_is_added_to_a_model_must_be_there_too(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    added = Addition("someone/few-steps", "few.safetensors", None)
    spec = replace(spec, name="mochi:few", added=(added,))
    assert not spec.is_there
    with pytest.raises(MissingError, match=r"few\.safetensors, which makes mochi:few of mochi") as caught:
        check_inventory(spec)
    assert caught.value.remedy == "Run: storyreel pull mochi:few"
    added.lora.path.parent.mkdir(parents=True)
    added.lora.path.write_bytes(b"")
    check_inventory(spec)
    assert spec.is_there


SHARD = "transformer_2/m-00002-of-2.safetensors"


@pytest.mark.parametrize(
    "name", ["vae", "scheduler", "tokenizer", "transformer_2", "vae/model.safetensors", SHARD]
)
def test_what_is_missing_is_named(spec: ModelSpec, name: str) -> None:
    path = spec.weights / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    missing = "weights in .*vae" if name.startswith("vae/") else Path(name).name
    with pytest.raises(MissingError, match=f"there (is|are) no {missing}"):
        check_inventory(spec)


def test_a_part_that_a_model_does_not_have_is_not_missed(spec: ModelSpec) -> None:
    path = spec.weights / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"transformer_2": [None, None]}))
    shutil.rmtree(spec.weights / "transformer_2")
    check_inventory(spec)


def test_the_index_of_another_precision_is_not_read(spec: ModelSpec) -> None:
    index = spec.weights / "transformer" / "model.safetensors.index.bf16.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.bf16-1.safetensors"}}))
    check_inventory(replace(spec, variant=None))
    (spec.weights / "transformer" / "model.bf16-2.safetensors").write_bytes(b"")
    with pytest.raises(MissingError, match=r"model\.bf16-1\.safetensors"):
        check_inventory(replace(spec, variant="bf16"))


def test_a_scorer_is_whole_or_not_there(spec: ModelSpec) -> None:
    (spec.weights / "scorer").mkdir()
    with pytest.raises(MissingError, match="no scorer"):
        check_inventory(spec)
    (spec.weights / "scorer" / "config.json").write_text("{}")
    with pytest.raises(MissingError, match=r"no weights in .*scorer"):
        check_inventory(spec)
    (spec.weights / "scorer" / "model.safetensors").write_bytes(b"")
    check_inventory(spec)


@pytest.mark.parametrize("text", ["", "[]", "7", '{"a": NaN}', "[" * 100_000, "\udcff"], ids=ascii)
def test_nonsense_is_damage(spec: ModelSpec, text: str) -> None:
    (spec.weights / "model_index.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DamagedError, match=r"model_index\.json"):
        check_inventory(spec)


@pytest.mark.parametrize("kind", ["link to nothing", "folder", "pipe"])
def test_what_is_no_file_is_damage_and_unread(spec: ModelSpec, kind: str) -> None:
    for path in (spec.weights / "model_index.json", spec.weights / "vae" / "x.json"):
        path.unlink(missing_ok=True)
        match kind:
            case "link to nothing":
                path.symlink_to("nothing")
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
        for look in (check_inventory, weight_hashes):
            with pytest.raises(DamagedError, match=f"{path} is no file"):
                look(spec)
        path.rmdir() if kind == "folder" else path.unlink()


def test_a_folder_without_weights_is_none(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere", Path(__file__)):
        with pytest.raises(MissingError, match="not here") as caught:
            check_inventory(replace(MODELS["mochi"], weights=folder))
        assert "--weights DIR" in caught.value.remedy
    with pytest.raises(MissingError) as caught:
        check_inventory(replace(MODELS["mini"], hub="someone/nothing", weights=tmp_path))
    assert "storyreel pull" not in caught.value.remedy
