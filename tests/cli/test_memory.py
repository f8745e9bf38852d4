"""What is said of memory before anything is computed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from storyreel.cli import machine, process, rendering
from storyreel.cli.app import run
from storyreel.models.specs import MODELS

STORY = "scenes: [[a fox in the park, a fox walks]]\nrender: {{model: {}, size: {}, seconds: {}}}\n"
LARGE = [name for name, spec in MODELS.items() if spec.hub]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 32 GB with a card."""
    monkeypatch.setattr(rendering, "available_memory", lambda: 25.04e9)
    monkeypatch.setattr(rendering, "total_memory", lambda: 32.0e9)
    monkeypatch.setattr(machine, "_gpus", lambda: [("a card", "24564 MiB", 8.9)])


def planned(
    folder: Path, capsys: pytest.CaptureFixture[str], *of: object, options: tuple[str, ...] = ()
) -> str:
    (folder / "fox.yaml").write_text(STORY.format(*of))
    assert run(["render", str(folder / "fox.yaml"), "--dry-run", *options]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", LARGE)
def test_the_table_and_the_lines_agree(name: str) -> None:
    spec = MODELS[name]
    assert spec.needs is not None
    working = spec.needs.working(spec.size, spec.usual_latents)
    needed = spec.needs.weights("none").on_device(working)
    assert {mode: size / 1e9 for mode, size in needed.items()} == pytest.approx(
        spec.memory_gb, rel=0.015, abs=0.1
    )


def test_a_dry_run_says_what_is_needed_and_what_is_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = planned(tmp_path, capsys, "mochi", "848x480", 2.0)
    assert "GPU memory by --memory: high " in said
    assert "; here: a card, 24564 MiB\n" in said
    assert "the machine's own memory: high 20.1 GB, balanced 21 GB, low 21 GB, and some 2 GB more" in said
    assert "here 25.0 of 32.0 GB are free" in said
    assert "memory" not in planned(tmp_path, capsys, "mini", "192x128", 2.0)


def test_what_is_needed_is_the_films(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def needed(size: str, seconds: float, *options: str) -> dict[str, Any]:
        of: dict[str, Any] = json.loads(
            planned(tmp_path, capsys, "wan-14b", size, seconds, options=(*options, "--json"))
        )["fox"]
        return of

    usual, large, short = (needed(*of) for of in (("832x480", 4.5), ("1280x720", 4.5), ("1280x720", 1.0)))
    for mode in ("high", "balanced", "low"):
        assert usual["gpu_memory_gb"][mode] < large["gpu_memory_gb"][mode]
        assert short["gpu_memory_gb"][mode] <= large["gpu_memory_gb"][mode]
    assert large["machine_memory_gb"] == usual["machine_memory_gb"]
    assert large["machine_memory_free_gb"] == 25.0
    stored = needed("832x480", 4.5, "--quantize", "fp8")
    assert stored["gpu_memory_gb"]["balanced"] < 24 < usual["gpu_memory_gb"]["balanced"]


def test_a_driver_that_says_something_else_costs_no_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_gpus", lambda: [("a", "b", float("c"))])
    assert "does not describe" in planned(tmp_path, capsys, "mochi", "848x480", 2.0)


@pytest.mark.parametrize("name", ["", *process.ALLOCATORS])
def test_torchs_allocator_is_set_where_nobody_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in process.ALLOCATORS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    before = {name: "max_split_size_mb:64"} if name else {}
    for variable, value in before.items():
        monkeypatch.setenv(variable, value)
    process.let_segments_grow()
    wanted = before or {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert {v: os.environ[v] for v in process.ALLOCATORS if v in os.environ} == wanted
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setattr("sys.platform", "darwin")  # where torch knows no such segments
    process.let_segments_grow()
    assert "PYTORCH_ALLOC_CONF" not in os.environ
