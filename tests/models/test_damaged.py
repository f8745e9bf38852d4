"""Weights that were cut short, changed or made up: exit code 69 with a reason, never a film."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from storyreel.cli.app import run
from storyreel.errors import MissingError
from storyreel.models.checksums import CHECKSUMS, write_checksums
from storyreel.models.loading import load_adapter
from storyreel.models.scorer import Scorer
from storyreel.models.specs import MINI_WEIGHTS, MODELS, ModelSpec
from tests.models.test_families import save
from tests.tiny import CPU, FAMILIES


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = tmp_path_factory.mktemp("weights")
    wan = FAMILIES["wan"]()
    save(wan, folder)
    return replace(wan.spec, weights=folder)


@pytest.fixture
def spec(saved: ModelSpec, tmp_path: Path) -> ModelSpec:
    return replace(saved, weights=Path(shutil.copytree(saved.weights, tmp_path / "weights")))


def edited(raw: bytes, edit: Callable[[dict[str, Any], list[str]], object]) -> bytes:
    """Return a safetensors file with a changed header; ``edit`` gets it and the tensors' names."""
    (size,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + size])
    edit(header, [name for name in header if name != "__metadata__"])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + raw[8 + size :]


FILES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "cut short": lambda raw: raw[:-1],
    "bytes behind its end": lambda raw: raw + b"x",
    "a header of 2^63 bytes": lambda raw: struct.pack("<Q", 2**63) + raw[8:],
    "a header of 2^40 bytes": lambda raw: struct.pack("<Q", 2**40) + raw[8:],
    "a header of 0 bytes": lambda raw: bytes(8) + raw[8:],
    "overlapping tensors": lambda raw: edited(
        raw, lambda h, n: h[n[0]].update(data_offsets=h[n[1]]["data_offsets"])
    ),
    "a shape beyond all memory": lambda raw: edited(raw, lambda h, n: h[n[0]].update(shape=[2**62, 4])),
    "another shape": lambda raw: edited(raw, lambda h, n: h[n[0]]["shape"].insert(0, 1)),
    "a tensor by another name": lambda raw: edited(raw, lambda h, n: h.update(other=h.pop(n[0]))),
    "an unknown type": lambda raw: edited(raw, lambda h, n: h[n[0]].update(dtype="F31")),
    "a pickle": lambda raw: b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.",
}


@pytest.mark.parametrize("damage", FILES)
@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_damaged_weight_file_is_refused_by_name(spec: ModelSpec, part: str, damage: str) -> None:
    (path,) = (spec.weights / part).glob("*.safetensors")
    path.write_bytes(FILES[damage](path.read_bytes()))
    with pytest.raises(MissingError, match=part) as caught:
        load_adapter(spec, CPU)
    assert caught.value.exit_code == 69
    assert caught.value.remedy


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_weights_in_a_pickle_are_not_read(spec: ModelSpec, part: str) -> None:
    """However well they would fit."""
    (path,) = (spec.weights / part).glob("*.safetensors")
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save(load_file(path), path.with_name(name))
    path.unlink()
    with pytest.raises(MissingError, match=part):
        load_adapter(spec, CPU)


CONFIGS = ["transformer/config.json", "vae/config.json", "text_encoder/config.json", "model_index.json"]
CONFIGS += ["tokenizer/tokenizer.json", "scheduler/scheduler_config.json"]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "text", ["", "[]", "null", "3", "[" * 100_000, "\0\1", "{"], ids=lambda t: repr(t[:4])
)
def test_a_configuration_that_is_none_is_refused_by_name(spec: ModelSpec, name: str, text: str) -> None:
    (spec.weights / name).write_text(text)
    with pytest.raises(MissingError, match=name.split("/")[0]):
        load_adapter(spec, CPU)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("vae/config.json", "latents_mean", []),
        ("vae/config.json", "latents_std", None),
        ("scheduler/scheduler_config.json", "shift_terminal", "x"),
        ("scheduler/scheduler_config.json", "_class_name", "os.system"),
        ("tokenizer/tokenizer_config.json", "pad_token", None),
    ],
)
def test_a_configuration_of_no_use_is_said_at_once(
    spec: ModelSpec, name: str, key: str, value: object
) -> None:
    path = spec.weights / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(MissingError, match=name.split("/")[0]):
        load_adapter(spec, CPU)


def test_code_beside_the_weights_is_never_run(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever a configuration asks for."""
    asked: dict[str, object] = {"auto_map": {"AutoTokenizer": ["evil.Evil", None], "AutoModel": "evil.Evil"}}
    asked |= {"trust_remote_code": True, "custom_pipeline": "evil"}
    for name in (*CONFIGS, "tokenizer/tokenizer_config.json"):
        if name != "tokenizer/tokenizer.json":
            path = spec.weights / name
            path.write_text(json.dumps(json.loads(path.read_text()) | asked))
            code = f"open({str(tmp_path / 'owned')!r}, 'w')\nclass Evil: pass\n"
            path.with_name("evil.py").write_text(code)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    load_adapter(spec, CPU)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("spoil", ["", "0" * 64 + "  vae/config.json\n", "not a list\n", "a" * 200_000])
def test_a_spoilt_list_of_checksums_is_no_way_round_it(spec: ModelSpec, spoil: str) -> None:
    write_checksums(spec.weights)
    load_adapter(spec, CPU)
    (spec.weights / CHECKSUMS).write_text(spoil)
    with pytest.raises(MissingError):
        load_adapter(spec, CPU)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("preprocessor_config.json", "image_mean", None),
        ("preprocessor_config.json", "image_std", []),
        ("tokenizer_config.json", "pad_token", None),
    ],
)
def test_a_scorer_of_no_use_is_said_at_once(tmp_path: Path, name: str, key: str, value: object) -> None:
    folder = Path(shutil.copytree(MINI_WEIGHTS / "scorer", tmp_path / "scorer"))
    Scorer.load(folder, CPU)
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(MissingError, match="scorer"):
        Scorer.load(folder, CPU)


def test_damaged_weights_leave_no_film(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MODELS, spec.name, spec)
    story = tmp_path / "fox.yaml"
    story.write_text("scenes:\n  - [a fox sleeps, a fox]\n")
    (path,) = (spec.weights / "transformer").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    command = ["render", str(story), "--model", spec.name, "--weights", str(spec.weights)]
    assert run([*command, "--device", "cpu", "--out", str(tmp_path / "out")]) == 69
    out, err = capsys.readouterr()
    assert out == ""
    assert "transformer" in err
    assert "Traceback" not in err
    assert not list((tmp_path / "out").rglob("*.mp4"))
