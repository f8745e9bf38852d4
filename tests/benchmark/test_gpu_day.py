"""The measurements of a lent hour: their whole flow on a CPU, and what needs a GPU left out by name."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from storyreel.benchmark import folders, gpu_day, steps
from storyreel.benchmark import run as bench
from storyreel.benchmark.report import day_table, targets
from storyreel.benchmark.steps import KINDS, STEPS, Bed, Step
from storyreel.cli.app import run
from storyreel.errors import MissingError, OutputError
from storyreel.models.loading import TextEncoder, adapter_class
from storyreel.models.specs import MODELS
from tests.tiny import CPU

Work = Callable[[Path, str, float], int]


class Process:
    """A process that has ended, after doing its work here."""

    def __init__(self, code: int | None) -> None:
        self.returncode = code
        self.killed = False

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.killed = True
        self.returncode = -9

    def wait(self) -> int:
        assert self.returncode is not None
        return self.returncode


def measured(
    folder: Path, chosen: Sequence[Step], work: Work | None = None, minutes: float = 60.0
) -> dict[str, dict[str, Any]]:
    """Return the outcomes of steps by their names, done in this process."""
    done = work or (lambda folder, device, deadline: gpu_day.work(folder, device, deadline, chosen))
    report = gpu_day.gpu_day(
        folder, "cpu", minutes, lambda _: None, chosen, lambda *given: Process(done(*given))
    )
    json.dumps(report, allow_nan=False)
    assert [outcome["step"] for outcome in report["steps"]] == [step.name for step in chosen]
    return {outcome["step"]: outcome for outcome in report["steps"]}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A kind "count" that fails for steps called bad; the names of those that were begun."""
    begun: list[str] = []

    def count(bed: Bed, step: Step) -> dict[str, Any]:
        begun.append(step.name)
        if step.name.startswith("bad"):
            raise RuntimeError("CUDA error: an illegal | memory access\nwas encountered")
        return {"many": len(begun)}

    monkeypatch.setitem(KINDS, "count", count)
    monkeypatch.setattr(gpu_day, "POLL", 0.0)
    return begun


def counting(*names: str, minutes: float = 0.0) -> list[Step]:
    return [Step(name, "count", None, minutes, gpu=False) for name in names]


# The flow


def test_a_failure_is_kept_and_the_rest_goes_on_in_a_new_process(counted: list[str], tmp_path: Path) -> None:
    chosen, processes = counting("one", "bad", "two"), []

    def work(folder: Path, device: str, deadline: float) -> int:
        processes.append(gpu_day.work(folder, device, deadline, chosen))
        return processes[-1]

    found = measured(tmp_path, chosen, work)
    assert {name: outcome["state"] for name, outcome in found.items()} == {
        "one": "done",
        "bad": "failed",
        "two": "done",
    }
    assert processes == [1, 0]
    assert "illegal" in found["bad"]["error"]
    assert "in count" in found["bad"]["trace"]
    table = (tmp_path / "README.md").read_text()
    assert "| bad | failed | RuntimeError: CUDA error: an illegal ¦ memory access was encountered |" in table


def test_a_second_run_does_what_is_missing(counted: list[str], tmp_path: Path) -> None:
    measured(tmp_path, counting("one", "bad"))
    first = (tmp_path / "one.json").read_bytes()
    found = measured(tmp_path, counting("one", "bad", "two"))
    assert counted == ["one", "bad", "bad", "two"]
    assert (tmp_path / "one.json").read_bytes() == first
    assert found["two"]["state"] == "done"


def test_what_was_cut_off_or_is_no_json_is_done_again(counted: list[str], tmp_path: Path) -> None:
    chosen = counting("one", "two", "three")
    measured(tmp_path, chosen)
    gpu_day.write_outcome(
        tmp_path, chosen[0], "running", began=0.0
    )  # as a machine that is taken away leaves it
    (tmp_path / "two.json").write_text('{"step": "two", "sta')
    measured(tmp_path, chosen)
    assert counted == ["one", "two", "three", "one", "two"]


def test_a_process_that_dies_costs_the_step_that_it_was_at(counted: list[str], tmp_path: Path) -> None:
    chosen = counting("one", "two", "three")

    def work(folder: Path, device: str, deadline: float) -> int:
        if (folder / "two.json").exists():
            return gpu_day.work(folder, device, deadline, chosen)
        gpu_day.work(folder, device, deadline, chosen[:1])
        gpu_day.write_outcome(folder, chosen[1], "running", began=time.time())
        return -11

    found = measured(tmp_path, chosen, work)
    assert [outcome["state"] for outcome in found.values()] == ["done", "failed", "done"]
    assert "-11" in found["two"]["error"]


def test_a_process_that_never_begins_is_not_started_for_ever(counted: list[str], tmp_path: Path) -> None:
    found = measured(tmp_path, counting("one", "two"), lambda *_: 1)
    assert [outcome["state"] for outcome in found.values()] == ["failed", "failed"]


def test_a_step_that_hangs_is_ended(
    counted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = counting("one", "two")
    processes: list[Process] = []

    def start(folder: Path, device: str, deadline: float) -> Process:
        if processes:
            processes.append(Process(gpu_day.work(folder, device, deadline, chosen)))
        else:
            gpu_day.write_outcome(folder, chosen[0], "running", began=time.time() - 2 * gpu_day.PATIENCE)
            processes.append(Process(None))
        return processes[-1]

    report = gpu_day.gpu_day(tmp_path, "cpu", 60, lambda _: None, chosen, start)
    assert processes[0].killed
    assert [outcome["state"] for outcome in report["steps"]] == ["failed", "done"]
    assert "it was ended after" in report["steps"][0]["error"]


def test_a_signal_ends_the_process_too(counted: list[str], tmp_path: Path) -> None:
    chosen, process = counting("one", "two"), Process(None)

    def start(folder: Path, *_: Any) -> Process:
        gpu_day.write_outcome(folder, chosen[0], "done", result={})
        return process

    def interrupt(said: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu_day.gpu_day(tmp_path, "cpu", 60, interrupt, chosen, start)
    assert process.killed


def test_a_process_is_killed_with_what_it_has_started() -> None:
    code = (
        "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    )
    with gpu_day.Group([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) != process.pid
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert process.stdout.read() == b""  # the pipe ends with the last process that holds it


def test_what_does_not_fit_is_left_out_and_shorter_ones_are_done(counted: list[str], tmp_path: Path) -> None:
    chosen = [*counting("long", minutes=10), *counting("short", minutes=0.5)]
    found = measured(tmp_path, chosen, minutes=2)
    assert found["long"]["state"] == "skipped"
    assert "it takes about 10 minutes, and 2.0 are left" in found["long"]["reason"]
    assert found["short"]["state"] == "done"
    assert "| long | skipped | it takes about 10 minutes" in (tmp_path / "README.md").read_text()
    assert measured(tmp_path, chosen, minutes=20)["long"]["state"] == "done"


def test_the_table_is_there_before_all_is_done(counted: list[str], tmp_path: Path) -> None:
    tables = []

    def look(bed: Bed, step: Step) -> dict[str, Any]:
        tables.append((tmp_path / "README.md").read_text())
        return {}

    KINDS["look"] = look
    try:
        measured(tmp_path, [*counting("bad"), Step("look", "look", None, 0, gpu=False)])
    finally:
        del KINDS["look"]
    assert "| bad | failed |" in tables[0]
    assert "Still to come: look." in tables[0]


def test_what_cannot_begin_is_refused(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(MissingError, match="no CUDA device"):
            gpu_day.gpu_day(tmp_path, "cuda", 1, print)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        gpu_day.gpu_day(tmp_path / "file" / "day", "cpu", 1, print)


# The steps


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.MATRIX, "cpu", 32)
    monkeypatch.setattr(steps, "HEADS", ((2, 16),))


@pytest.mark.parametrize("spec_name", ["wan"], indirect=True)
def test_every_kind_of_step_measures_a_tiny_model_or_says_why_not(
    spec_name: str, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = MODELS[spec_name]
    family = adapter_class(spec)
    layout = folders.LAYOUTS["WanAdapter"]
    monkeypatch.setitem(folders.LAYOUTS, "WanAdapter", replace(layout, pieces=800, extra=10))
    (encoder,) = family.reads_with
    sizes = {**encoder.sizes, "vocab_size": 810}
    monkeypatch.setattr(family, "reads_with", (TextEncoder(encoder.kind, sizes, encoder.thin),))

    commands: list[Sequence[str]] = []

    def run_here(words: Sequence[str], patience: float) -> tuple[int, float, str, str]:
        commands.append(words)
        weights = Path(words[words.index("--weights") + 1])
        assert (weights / "text_encoder" / "model.safetensors").exists()
        return 0, 1000.0, json.dumps({"three": {"state": "done", "film": "three.mp4"}}), ""

    monkeypatch.setattr(steps, "run_command", run_here)
    few = {"steps": 2, "rounds": 1}
    chosen = [
        Step("machine", "machine", None, 0, gpu=False),
        Step("attention", "attention", None, 0, gpu=False),
        Step("x compiled", "variants", spec_name, 0, few, gpu=False),
        Step(
            "x presets", "variants", spec_name, 0, few | {"variants": ("stock", "fast"), "scenes": 1}, False
        ),
        Step("x memory", "memory", spec_name, 0, {"steps": 1}, gpu=False),
        Step("x decode", "decode", spec_name, 0, gpu=False),
        Step("x film", "film", spec_name, 0, {"steps": 2}, gpu=False),
        Step("x waits", "waits", spec_name, 0),
        Step("x out of memory", "out of memory", spec_name, 0),
    ]
    found = measured(tmp_path, chosen)
    states = {name: (o["state"], o.get("error", o.get("reason"))) for name, o in found.items()}
    needed = ("skipped", "it needs a CUDA device")
    assert states == {
        **{step.name: ("done", None) for step in chosen},
        "x waits": needed,
        "x out of memory": needed,
    }
    assert found["machine"]["result"]["matrices_tflops"]["bfloat16"]["value"] > 0
    kernels = found["attention"]["result"]["rows"]
    assert any(row.get("tflops", 0) > 0 for row in kernels if row["library"] == "torch")
    assert any("error" in row for row in kernels)  # of what a CPU has not
    assert [row["variant"] for row in found["x compiled"]["result"]["variants"]] == ["stock", "plain", "full"]
    assert found["x presets"]["result"]["segments"] == 1
    assert [row["mode"] for row in found["x memory"]["result"]["rows"]] == ["high", "balanced", "low"]
    assert min(row["denoising_s"] for row in found["x memory"]["result"]["rows"]) > 0
    for row in found["x decode"]["result"]["rows"]:
        assert row["pictures"] == 4 * (row["latents"] - 1) + 1
        assert row["largest_piece"] == 1
    assert [words[words.index("--memory") + 1] for words in commands] == ["auto", "low"]
    assert not (tmp_path / f"weights-{spec_name}").exists()  # which is large
    table = (tmp_path / "README.md").read_text()
    for step in chosen[:-2]:
        assert f"## {step.name}" in table
    assert "| x waits | skipped | it needs a CUDA device |" in table


@pytest.mark.parametrize("spec_name", ["wan"], indirect=True)
def test_where_stock_fails_the_others_are_measured(
    spec_name: str, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a graph that breaks")

    monkeypatch.setattr(bench, "stock_latents", broken)
    step = Step("x", "variants", spec_name, 0, {"steps": 1, "rounds": 1, "scenes": 1}, gpu=False)
    result = steps.variants(Bed(CPU, tmp_path, 0.0), step)
    assert [row["variant"] for row in result["variants"]] == ["plain", "full"]
    assert "a graph that breaks" in result["stock_error"]


def test_a_command_has_its_exit_code_its_peak_and_its_words() -> None:
    code, peak, out, err = steps.run_command(["schema", "--of", "nothing"], 600)
    assert (code, out) == (2, "")
    assert "prints no JSON" in err
    assert 10 < peak < 1000
    assert steps.run_command(["schema"], 0)[0] == -9


def test_the_steps_are_whole() -> None:
    """Every target has a step that measures it, for each of the three models, and files do not collide."""
    assert len({gpu_day.path_of(Path(), step) for step in STEPS}) == len(STEPS)
    assert {step.kind for step in STEPS} == set(KINDS)
    for step in STEPS:
        assert step.gpu or step.kind == "machine"
        assert step.model is None or MODELS[step.model].hub
    names = {step.name: step for step in STEPS}
    for model in ("mochi", "wan-1.3b", "ltx-2b"):
        assert names[f"{model} compiled"].options["compiled"]
        assert {"stock", "fast"} <= set(names[f"{model} presets"].options["variants"])
        for kind in ("eager", "memory", "decode", "waits", "fp8"):
            assert f"{model} {kind}" in names


# The table


def outcome(step: str, seconds: dict[str, float], of_peak: float = 0.6) -> dict[str, Any]:
    rows = [
        {"variant": name, "seconds": value, "of_peak": of_peak, "peak_mb": 9000.0 + 2000 * (name == "full")}
        for name, value in seconds.items()
    ]
    model = step.split()[0]
    return {"step": step, "kind": "variants", "model": model, "state": "done", "result": {"variants": rows}}


def test_targets_are_met_missed_or_not_measured() -> None:
    compiled = outcome("a compiled", {"stock": 10.0, "plain": 10.5, "full": 11.0})
    found = {words: (value, said) for _, words, value, said in targets([compiled])}
    assert found == {
        "full / plain ≤ 1.05": ("1.048", "met"),
        "plain / stock ≤ 1, compiled both": ("1.050", "missed"),
        "fast / stock ≤ 0.5": ("–", "not measured"),
        "peak of full - plain ≤ 1.5 GB": ("2.000", "missed"),
        "full ≥ 0.55 of the measured matrix peak": ("0.600", "met"),
    }
    presets = outcome("a presets", {"stock": 10.0, "fast": 5.1})
    lacking = outcome("a compiled", {"plain": 1.0, "full": 1.06}, 0.5)  # stock failed
    for row in lacking["result"]["variants"]:
        row["peak_mb"] = None  # as on a CPU
    said = {words: said for _, words, _, said in targets([presets, lacking])}
    assert list(said.values()) == ["missed", "not measured", "missed", "not measured", "missed"]


def test_an_empty_table_claims_nothing() -> None:
    text = day_table([{"step": step.name, "state": "missing"} for step in STEPS])
    assert "Nothing is measured yet." in text
    assert " met" not in text


def test_the_command_prints_the_table(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_day, "_start", lambda *given: Process(gpu_day.work(*given)))
    command = ["bench", "--gpu-day", str(tmp_path), "--device", "cpu", "--minutes", "1"]
    assert run([*command, "--json"]) == 0
    printed = capsys.readouterr()
    states = [step["state"] for step in json.loads(printed.out)["steps"]]
    assert states == ["done", *["skipped"] * (len(STEPS) - 1)]
    assert "machine: done" in printed.err
    assert run(command) == 0
    assert capsys.readouterr().out == (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_the_process_of_its_own_measures_too(tmp_path: Path) -> None:
    report = gpu_day.gpu_day(tmp_path, "cpu", 5, print)
    assert report["steps"][0]["state"] == "done", (tmp_path / "log.txt").read_text()
    assert report["steps"][0]["result"]["device"].endswith("CPU threads")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_does_the_smallest_steps(tmp_path: Path) -> None:
    chosen = [
        step for step in STEPS if step.name in ("machine", "attention", "ltx-2b waits", "ltx-2b decode")
    ]
    report = gpu_day.gpu_day(tmp_path, "cuda", 10, print, chosen)
    assert [step["state"] for step in report["steps"]] == ["done"] * len(chosen), report
