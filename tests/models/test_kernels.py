"""Which attention backends can be chosen, by an option or a variable, and what is said of others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from storyreel import engine as engines
from storyreel.cli.app import run
from storyreel.engine import ATTENTION_VARIABLE, Engine
from storyreel.errors import MissingError, UsageError
from storyreel.models import kernels, loading
from storyreel.models.kernels import check_backend, lse_kernel
from storyreel.models.specs import MODELS
from tests.conftest import ROOT, FakeAdapter
from tests.tiny import CPU

UNUSABLE = {
    "fast": "unknown attention backend 'fast'",
    "flash_hub": "fetch its kernel",
    "sage": "does not work on cpu in float32",
    "_native_cudnn": "does not work on cpu in float32",
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_backend_that_cannot_be_used_is_refused_with_a_reason(name: str) -> None:
    with pytest.raises((UsageError, MissingError), match=UNUSABLE[name]) as refused:
        check_backend(name, CPU, torch.float32)
    assert refused.value.remedy


def test_a_kernel_of_the_hub_is_tried_where_nothing_can_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError, match="flash_hub does not work on cpu"):  # it is not there
        check_backend("flash_hub", CPU, torch.float32)


def test_a_backend_that_returns_no_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "dispatch_attention_fn", lambda *_: torch.full((1,), torch.nan))
    with pytest.raises(MissingError, match="no numbers"):
        check_backend("native", CPU, torch.float32)


def test_devices_without_a_kernel_that_returns_sums_have_none() -> None:
    assert lse_kernel(None, torch.device("mps"), torch.bfloat16, 128) is None
    assert lse_kernel(None, CPU, torch.bfloat16, 128) is not None


@pytest.mark.parametrize("by", ["option", "variable"])
def test_an_engine_refuses_it_before_anything_is_read(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "load_adapter", read)
    monkeypatch.setattr(engines, "ingredients", read)
    if by == "variable":
        monkeypatch.setenv(ATTENTION_VARIABLE, "flash")
    engine = Engine("cpu", attention="flash" if by == "option" else None)
    with pytest.raises(MissingError, match="attention backend flash does not work on cpu"):
        engine.ingredients(MODELS["mini"], lambda _: None)
    with pytest.raises(MissingError, match="attention backend flash does not work on cpu"):
        engine.adapter(MODELS["mini"])


def test_an_option_counts_before_the_variable_and_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = FakeAdapter(MODELS["mini"])
    chosen: list[str] = []
    monkeypatch.setattr(loading, "load_adapter", lambda *_: adapter)
    monkeypatch.setattr(adapter, "attend_by", chosen.append, raising=False)
    plain = Engine("cpu")
    assert plain.device_words(plain.adapter(MODELS["mini"])).endswith(f"={torch.get_num_threads()}")
    assert chosen == []
    monkeypatch.setenv(ATTENTION_VARIABLE, "native")
    engine = Engine("cpu", attention="_native_math")
    assert engine.device_words(engine.adapter(MODELS["mini"])).endswith(", attention _native_math")
    assert Engine("cpu").device_words(adapter).endswith(", attention native")
    assert chosen == ["_native_math"]


@pytest.mark.parametrize("command", ["render", "bench"])
def test_a_command_says_so_in_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "story.yaml").write_text("scenes:\n  - [a corgi dog in a park, it runs]\n")
    words = ["render", str(tmp_path / "story.yaml"), "--out", str(tmp_path / "out")]
    words = words if command == "render" else ["bench"]
    assert run([*words, "--device", "cpu", "--attention", "fast"]) == 2
    shown = capsys.readouterr()
    assert "unknown attention backend 'fast'" in shown.err
    assert "_native_flash" in shown.err
    assert not shown.out


@pytest.mark.slow
def test_a_variable_that_keeps_diffusers_from_loading_is_named() -> None:
    """It raises as soon as it is imported, so that this takes a process of its own."""
    command = [sys.executable, "-m", "storyreel", "bench", "--device", "cpu"]
    environment = {**os.environ, ATTENTION_VARIABLE: "fast"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 2
    assert f"{ATTENTION_VARIABLE}: 'fast'" in done.stderr
    assert "Traceback" not in done.stderr
