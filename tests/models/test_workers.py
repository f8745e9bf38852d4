"""Two processes make the same film as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

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


def started(folder: Path, launcher: list[str], *options: str) -> subprocess.Popen[str]:
    stories = [folder / "story.yaml", folder / "fp8.yaml"]
    for story, text in zip(stories, (STORY, IN_FP8), strict=True):
        story.write_text(text)
    command = [sys.executable, *launcher, "-m", "storyreel", "render", *map(str, stories), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
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


@pytest.mark.slow  # torchrun, four times
def test_two_processes_make_the_same_film_as_one(tmp_path: Path) -> None:
    """Those of the two are stopped once on the way."""
    films = []
    for name, launcher in (("one", []), ("two", TORCHRUN)):
        folder = tmp_path / name
        folder.mkdir()
        if launcher:
            stop(folder)
        code, words = rendered(folder, launcher, "--method", "memory=0.2")
        assert code == 0, words
        films.append([(folder / "out" / name / f"{name}.mp4").read_bytes() for name in ("story", "fp8")])
    assert films[0] == films[1]
    code, words = rendered(tmp_path / "two", TORCHRUN, "--method", "memory=0.2")
    assert code == 0
    assert "0 of 3 scenes rendered" in words


def stop(folder: Path) -> None:
    """Interrupt torchrun when the first segment is there: it passes that on, and the first process saves."""
    with started(folder, TORCHRUN, "--method", "memory=0.2") as process:
        segments = folder / "out" / "story" / "segments"
        while process.poll() is None and not any(segments.glob("01-*.safetensors")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        words = process.communicate(timeout=60)[1]
    assert process.returncode == 1  # torchrun's own
    assert "interrupted\nWhat is finished is kept." in words
    events = (folder / "out" / "story" / "events.jsonl").read_text().splitlines()
    assert '"reason": "StoppedError"' in events[-1]
