"""What every training has in common: steps, time, checkpoints, averages, Muon, precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from storyreel.errors import NumericsError
from storyreel.mini.training.loop import (
    Average,
    AverageState,
    Muon,
    Run,
    autocast,
    cosine,
    in_bf16,
    save_sheet,
)

CPU = torch.device("cpu")


def countdown(net: nn.Linear) -> Callable[[int, float], float]:
    """A step that adds one to every weight, and is as wrong as the step's number."""

    def step(number: int, progress: float) -> float:
        with torch.no_grad():
            net.weight += 1
        return float(number)

    return step


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    sheets: list[Path] = []
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    Run("part", tmp_path, 3, math.inf).loop({"net": net}, countdown(net), sheets.append)
    assert sheets == [tmp_path / "part.png"]
    other, seen = nn.Linear(1, 1, bias=False), list[tuple[int, float]]()

    def step(number: int, progress: float) -> float:
        seen.append((number, progress))
        return countdown(other)(number, progress)

    Run("part", tmp_path, 5, math.inf).loop({"net": other}, step, sheets.append)
    assert seen == [(3, 0.6), (4, 0.8)]
    assert other.weight.item() == 5
    assert torch.load(tmp_path / "part.pt", weights_only=True)["step"] == 5
    assert not (tmp_path / "part.new").exists()


def test_no_data_come_twice(tmp_path: Path) -> None:
    run = Run("part", tmp_path, 2, math.inf)
    net = nn.Linear(1, 1, bias=False)
    assert run.fresh_seed(7) == 7
    run.loop({"net": net}, countdown(net), lambda path: None)
    assert run.fresh_seed(7) == 7 + 2 * 1009


def test_time_ends_a_schedule_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = [0.0], list[float]()
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def step(number: int, progress: float) -> float:
        seen.append(progress)
        clock[0] += 30
        return 0.0

    Run("part", tmp_path, 1000, 1.0).loop({}, step, lambda path: None)
    assert seen == [0.0, 0.5]
    Run("part", tmp_path, 1000, 2.0).loop({}, step, lambda path: None)
    assert seen == [0.0, 0.5, 0.5, 0.75]  # the first minute counts


def test_the_log_holds_the_mean_loss(tmp_path: Path) -> None:
    Run("part", tmp_path, 25, math.inf).loop({}, lambda step, progress: 2.0, lambda path: None)
    assert (tmp_path / "part.log").read_text() == "25 0.0 min, loss 2.0000\n"


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_it_and_spoils_no_checkpoint(tmp_path: Path, spoilt: float) -> None:
    net = nn.Linear(1, 1, bias=False)
    Run("part", tmp_path, 2, math.inf).loop({"net": net}, countdown(net), lambda path: None)

    def step(number: int, progress: float) -> float:
        net.weight.data.fill_(spoilt)
        return spoilt

    with pytest.raises(NumericsError, match=r"the loss of step 2 is (nan|inf)"):
        Run("part", tmp_path, 9, math.inf, save_minutes=0.0).loop({"net": net}, step, lambda path: None)
    saved = torch.load(tmp_path / "part.pt", weights_only=True)
    assert saved["step"] == 2
    assert saved["net"]["weight"].isfinite().all()


def test_averages_follow_and_are_exchanged() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    average = Average([parameter])
    with torch.no_grad():
        parameter.add_(1)
    average.update(0, 0.9)  # early on a tenth of the old is kept
    assert torch.allclose(average.values[0], torch.full((3,), 0.9))
    average.update(10_000, 0.75)
    assert torch.allclose(average.values[0], torch.full((3,), 0.925))
    average.swap()
    assert torch.allclose(parameter, torch.full((3,), 0.925))
    average.swap()
    assert torch.equal(parameter, torch.ones(3))
    again = Average([nn.Parameter(torch.zeros(3))])
    AverageState(again).load_state_dict(AverageState(average).state_dict())
    assert torch.equal(again.values[0], average.values[0])


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (16, 4, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("bf16", [False, True])
def test_muon_moves_along_the_nearest_orthogonal_matrix(shape: tuple[int, ...], bf16: bool) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.randn(shape)
    muon = Muon([parameter], lr=0.5, bf16=bf16)
    muon.step()
    moved = -parameter.detach().flatten(1) / (0.2 * 0.5 * math.sqrt(max(parameter.flatten(1).shape)))
    u, _, v = torch.linalg.svd(parameter.grad.flatten(1), full_matrices=False)
    spectrum = torch.diag(u.T @ moved @ v.T)
    assert spectrum.min() > 0.6
    assert spectrum.max() < 1.3
    assert (moved - u @ torch.diag(spectrum) @ v).norm() / moved.norm() < (0.1 if bf16 else 0.01)


def test_muon_decays_weights_and_keeps_its_momentum() -> None:
    idle, pushed = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    muon = Muon([idle, pushed], lr=0.1, weight_decay=0.5)
    pushed.grad = torch.zeros(4, 4)
    muon.step()
    assert torch.equal(idle, torch.ones(4, 4))  # without a gradient
    assert torch.allclose(pushed, torch.full((4, 4), 0.95))
    pushed.grad = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    muon.step()
    pushed.grad = torch.zeros(4, 4)
    before = pushed.detach().clone()
    muon.step()
    assert not torch.allclose(pushed, 0.95 * before)  # it still moves


def test_precision_is_the_machines_or_what_is_asked_for() -> None:
    assert in_bf16(CPU, "bf16")
    assert not in_bf16(CPU, "fp32")
    assert in_bf16(torch.device("cuda"))
    assert isinstance(autocast(CPU, "fp32"), nullcontext)
    with autocast(CPU, "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_the_rate_falls_to_a_hundredth() -> None:
    assert cosine(0) == pytest.approx(1.01)
    assert cosine(0.5) == pytest.approx(0.51)
    assert cosine(1) == pytest.approx(0.01)


def test_a_sheet_shows_frames_side_by_side(tmp_path: Path) -> None:
    clip = torch.linspace(-1, 1, 7)[None, :, None, None].expand(3, -1, 4, 5)
    save_sheet([clip, -clip], tmp_path / "sheet.png", columns=3)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * 5 * 2, 2 * 4 * 2)
        row = [sheet.getpixel((x, 2)) for x in (2, 14, 26)]
    assert row == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]
