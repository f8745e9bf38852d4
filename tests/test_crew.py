"""Two processes make the same film as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def rendered(folder: Path, launcher: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    stories = [folder / "story.yaml", folder / "fp8.yaml"]
    for story, text in zip(stories, (STORY, IN_FP8), strict=True):
        story.write_text(text)
    command = [sys.executable, *launcher, "-m", "storyreel", "render", *map(str, stories), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, "--out", str(folder / "out"), "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=folder,
    )


def test_two_processes_make_the_same_film_as_one(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    films = []
    for name, launcher in (("one", []), ("two", torchrun)):
        folder = tmp_path / name
        folder.mkdir()
        done = rendered(folder, launcher, "--method", "memory=0.2")
        assert done.returncode == 0, done.stderr
        films.append([(folder / "out" / name / f"{name}.mp4").read_bytes() for name in ("story", "fp8")])
    assert films[0] == films[1]
    again = rendered(tmp_path / "two", torchrun, "--method", "memory=0.2")
    assert again.returncode == 0
    assert "0 of 3 scenes rendered" in again.stderr
