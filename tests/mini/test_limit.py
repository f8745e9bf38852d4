"""The judge's limit is where one true clip in two hundred is called unreadable."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import save_file

from storyreel.mini.judge import UNREADABLE, WEIGHTS, Judge, load_judge
from storyreel.mini.training import limit
from storyreel.mini.training.limit import ruins, set_limit

GREY = torch.full((9, 128, 192, 3), 127, dtype=torch.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file(Judge().state_dict(), tmp_path / WEIGHTS.name)
    return tmp_path


def test_the_weights_move_to_the_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    true, ruined = torch.linspace(-9, 1, 1001), torch.tensor([-3.0, 0.94, 0.96, 4.0])
    asked = []

    def found(judge: Judge, rng: Random, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(count)
        return true, ruined

    monkeypatch.setattr(limit, "ruins", found)
    before = load_judge(folder / WEIGHTS.name).judge(GREY)
    set_limit(Namespace(out=str(folder), seed=0, pool=4000))
    after = load_judge(folder / WEIGHTS.name).judge(GREY)
    assert after.ruin == pytest.approx(before.ruin + UNREADABLE - 0.95, abs=1e-4)
    assert torch.equal(after.casts, before.casts)
    assert torch.equal(after.actions, before.actions)
    assert asked == [1000]
    assert "0.95 is the limit now; above it are 0.5 % of 1001 true clips and 50.0 % of 4" in (
        capsys.readouterr().out
    )


def test_true_clips_are_scored_and_half_as_many_spoilt_ones(folder: Path) -> None:
    judge = load_judge(folder / WEIGHTS.name)
    true, ruined = ruins(judge, Random(1), 2)
    assert (true.shape, ruined.shape) == ((2,), (1,))
    assert len({*true.tolist(), *ruined.tolist()}) == 3
    assert torch.equal(ruins(judge, Random(1), 2)[0], true)
