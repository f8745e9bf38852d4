"""What every part's training has in common: steps, time, precision, Muon, checkpoints, averages, sheets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from storyreel.errors import NumericsError

PRECISIONS = ("auto", "fp32", "bf16")


def in_bf16(device: torch.device, precision: str = "auto") -> bool:
    """Tell whether to compute in bf16: by itself only where the hardware has it.

    A CPU without AVX512-BF16 or AMX emulates it, up to 32 times slower than fp32.
    """
    if precision == "auto":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return device.type == "cuda" or native
    return precision == "bf16"


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager[Any]:
    """Return the context that a forward pass of a training runs in."""
    return torch.autocast(device.type, torch.bfloat16) if in_bf16(device, precision) else nullcontext()


class Muon(torch.optim.Optimizer):
    """Muon for matrices, and for convolution kernels (out, in, ...) as matrices (out, in · ...).

    Momentum, then the nearest orthogonal matrix by five Newton-Schulz steps, scaled so that its elements
    move as AdamW's would at the same rate (Jordan 2024, Liu et al. 2025). torch's own works in bf16 alone,
    which makes a step take seconds on a CPU that emulates it, and takes no kernels.
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, weight_decay: float = 0.0, bf16: bool = False
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})
        self._dtype = torch.bfloat16 if bf16 else torch.float32

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            momentum, rate = group["momentum"], group["lr"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["average"] = torch.zeros_like(parameter)
                average = state["average"].lerp_(parameter.grad, 1 - momentum)
                update = self._orthogonal(parameter.grad.lerp(average, momentum).flatten(1))
                parameter.mul_(1 - rate * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-0.2 * rate * math.sqrt(max(update.shape)))

    def _orthogonal(self, matrix: Tensor) -> Tensor:
        a, b, c = self.COEFFICIENTS
        x = (matrix / (matrix.norm() + 1e-7)).to(self._dtype)
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        for _ in range(5):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        found: Tensor = (x.T if tall else x).to(matrix.dtype)
        return found


@dataclass
class Run:
    """The frame of a training: steps, time, checkpoints, log."""

    part: str
    folder: Path
    steps: int
    minutes: float
    save_minutes: float = 15.0

    @property
    def checkpoint(self) -> Path:
        """Where this part keeps its state."""
        return self.folder / f"{self.part}.pt"

    def fresh_seed(self, seed: int) -> int:
        """Return a seed that differs after every resume, so that no data come twice."""
        if self.checkpoint.exists():
            seed += 1009 * int(self._saved()["step"])
        return seed

    def _saved(self) -> dict[str, Any]:
        """Read the checkpoint, whatever device the machine that wrote it had."""
        saved: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        return saved

    def loop(
        self,
        state: dict[str, Any],
        step_fn: Callable[[int, float], float],
        sheet_fn: Callable[[Path], None],
    ) -> None:
        """Call ``step_fn(step, progress)`` until done; ``state`` holds what a checkpoint saves.

        Raises NumericsError at a loss of NaN or infinity: the checkpoint stays as it was before.
        """
        path = self.checkpoint
        step, before = 0, 0.0
        if path.exists():
            saved = self._saved()
            step, before = saved.pop("step"), saved.pop("seconds")
            for name, item in state.items():
                item.load_state_dict(saved[name])
        start, mean, kept = time.monotonic() - before, math.nan, before
        with (self.folder / f"{self.part}.log").open("a") as log:
            while True:
                seconds = time.monotonic() - start
                progress = max(step / self.steps, seconds / 60 / self.minutes)
                done = progress >= 1
                if done or seconds - kept > 60 * self.save_minutes:
                    kept = seconds
                    saved = {name: item.state_dict() for name, item in state.items()}
                    torch.save(saved | {"step": step, "seconds": seconds}, path.with_suffix(".new"))
                    path.with_suffix(".new").replace(path)
                    sheet_fn(path.with_suffix(".png"))
                if done:
                    return
                loss = step_fn(step, progress)
                if not math.isfinite(loss):
                    raise NumericsError(
                        f"the loss of step {step} is {loss}",
                        f"Start again: it goes on from {path.name}, with other lessons; with a lower --rate, "
                        "should it happen again.",
                    )
                mean = loss if math.isnan(mean) else 0.97 * mean + 0.03 * loss
                step += 1
                if step % 25 == 0:
                    line = f"{step} {seconds / 60:.1f} min, loss {mean:.4f}"
                    print(line, file=log, flush=True)


class Average:
    """An exponential moving average of parameters."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.values = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, step: int, decay: float) -> None:
        """Move towards the parameters; early on, faster."""
        decay = min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages with the parameters; a second call puts them back."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            kept = parameter.clone()
            parameter.copy_(value)
            value.copy_(kept)


class AverageState:
    """Lets an `Average` take part in a checkpoint."""

    def __init__(self, average: Average) -> None:
        self.average = average

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages."""
        return {str(i): v for i, v in enumerate(self.average.values)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the averages back."""
        for i, value in enumerate(self.average.values):
            value.copy_(state[str(i)])


def cosine(progress: float) -> float:
    """Return the factor of the learning rate: from 1 down to a hundredth."""
    return 0.5 * (1 + math.cos(math.pi * progress)) + 0.01


def save_sheet(rows: Sequence[Tensor], path: Path, columns: int = 6) -> None:
    """Write pictures (3, T, H, W) in [-1, 1] under each other, each as a row of its frames."""
    strips = []
    for row in rows:
        frames = row[:, torch.linspace(0, row.shape[1] - 1, columns).round().long()]
        strips.append(frames.permute(2, 1, 3, 0).flatten(1, 2))
    page = ((torch.cat(strips).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    image = Image.fromarray(page.cpu().numpy())
    image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST).save(path)
