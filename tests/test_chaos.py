"""The short form of `tests.chaos`: real renders, killed and damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow  # some thirty real renders
@pytest.mark.skipif(sys.platform != "linux", reason="forks, signals and /proc")
def test_films_survive_kills_and_flipped_bits() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--kills", "8", "--flips", "6", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert figures["kills"] >= 8
    assert figures["identical films"] == figures["stories"] >= 2
    assert figures["ways back for nothing"] == figures["ways back"]
    assert figures["flips found and mended"] == figures["flips"] == 6
    assert figures["torn files"] == figures["films gone"] == figures["orphans"] == 0
