"""Several processes make the same film as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from storyreel.cli.app import run
from storyreel.models.base import Request
from storyreel.models.specs import MODELS
from storyreel.models.workers import Workers, _answer
from tests.conftest import ROOT, FakeAdapter

STORY = """\
scenes:
  - [a corgi dog is inside of the subway train, a corgi dog is sitting]
  - [a corgi dog is walking on the street of Times Square, a corgi dog is looking around]
  - {scene: a corgi dog is in Central Park, action: a corgi dog is running, seconds: 0.75}
render: {seconds: 0.5, steps: 4}
"""
IN_FP8 = """\
scenes:
  - [a corgi dog is inside of the subway train, a corgi dog is sitting]
  - [a corgi dog is in Central Park, a corgi dog is running]
render: {seconds: 0.5, steps: 2, quantize: fp8}
"""


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[FakeAdapter]:
    """The models of two more processes, which answer in this one."""
    adapters, waiting = [FakeAdapter(MODELS["mini"]) for _ in range(2)], dict[int, Any]()

    def send(message: Any, to: int) -> None:
        assert to not in waiting  # an answer that nothing has fetched
        waiting[to] = _answer(lambda name: adapters[to - 1], *message)

    monkeypatch.setattr("storyreel.models.workers._send", send)
    monkeypatch.setattr("storyreel.models.workers._receive", waiting.pop)
    monkeypatch.setenv("WORLD_SIZE", "3")
    return adapters


def requests(adapter: FakeAdapter, count: int = 5) -> list[Request]:
    x = torch.zeros(1, MODELS["mini"].latent_channels, 2, 8, 12)
    return [Request(x, 0.5, [adapter.encode(""), adapter.encode(f"scene {n}")]) for n in range(count)]


def test_requests_are_dealt_out_and_answered_in_order(others: list[FakeAdapter]) -> None:
    first, alone = FakeAdapter(MODELS["mini"]), FakeAdapter(MODELS["mini"])
    wanted = list(alone.predict(requests(alone)))
    for answer, expected in zip(Workers(first).predict(requests(alone)), wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(answer, expected, strict=True))
    assert [[words for _, words in a.predicted] for a in (first, *others)] == [
        ["scene 0", "scene 3"],
        ["scene 1", "scene 4"],
        ["scene 2"],
    ]


def test_as_many_segments_are_denoised_as_there_are_processes(others: list[FakeAdapter]) -> None:
    assert Workers(FakeAdapter(MODELS["mini"])).at_once == 1 + len(others)


def test_an_error_of_any_process_is_raised_and_no_answer_is_left_over(others: list[FakeAdapter]) -> None:
    first = FakeAdapter(MODELS["mini"])

    def fail(count: int) -> None:
        raise RuntimeError("CUDA error: out of memory")

    for failing in (first, others[0]):
        failing.on_predict = fail
        with pytest.raises(RuntimeError, match="out of memory"):
            list(Workers(first).predict(requests(first, 3)))
        failing.on_predict = lambda count: None
        assert len(list(Workers(first).predict(requests(first)))) == 5


def test_the_others_follow_the_first_process_to_a_lower_memory_mode(others: list[FakeAdapter]) -> None:
    first = FakeAdapter(MODELS["mini"])
    others[1].lower_memory_mode()
    shared = Workers(first)
    assert shared.lower_memory_mode() == "balanced" == shared.memory
    list(shared.predict(requests(first, 3)))
    assert [adapter.memory for adapter in others] == ["balanced", "balanced"]
    shared.lower_memory_mode()
    list(shared.predict(requests(first, 3)))
    assert [adapter.memory for adapter in others] == ["low", "low"]


def started(folder: Path, launcher: list[str], *options: str) -> subprocess.Popen[str]:
    stories = [folder / "story.yaml", folder / "fp8.yaml"]
    for story, text in zip(stories, (STORY, IN_FP8), strict=True):
        story.write_text(text)
    command = [sys.executable, *launcher, "-m", "storyreel", "render", *map(str, stories), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, "--out", str(folder / "out"), "--device", "cpu"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
    )


def rendered(folder: Path, launcher: list[str], *options: str) -> tuple[int, str]:
    """Render; return the exit code and stderr."""
    with started(folder, launcher, *options) as process:
        words = process.communicate(timeout=300)[1]
    return process.returncode, words


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow  # torchrun, three times
def test_two_processes_make_the_same_film_as_one(tmp_path: Path) -> None:
    """Those of the two are stopped once on the way; the one is this."""
    places = [tmp_path / name for name in ("two", "one")]
    for place in places:
        place.mkdir()
    stop(places[0])
    code, words = rendered(places[0], TORCHRUN)
    assert code == 0, words
    stories = [str(places[0] / name) for name in ("story.yaml", "fp8.yaml")]
    assert run(["render", *stories, "--out", str(places[1] / "out"), "--device", "cpu"]) == 0
    two, one = (
        [(place / "out" / name / f"{name}.mp4").read_bytes() for name in ("story", "fp8")] for place in places
    )
    assert one == two
    code, words = rendered(places[0], TORCHRUN)
    assert code == 0
    assert "0 of 3 scenes rendered" in words


def stop(folder: Path) -> None:
    """Interrupt torchrun when the first segment is there: it passes that on, and the first process saves."""
    with started(folder, TORCHRUN) as process:
        segments = folder / "out" / "story" / "segments"
        while process.poll() is None and not any(segments.glob("01-*.safetensors")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        words = process.communicate(timeout=60)[1]
    assert process.returncode == 1  # torchrun's own
    assert "interrupted\nWhat is finished is kept." in words
    events = (folder / "out" / "story" / "events.jsonl").read_text().splitlines()
    assert '"reason": "StoppedError"' in events[-1]
