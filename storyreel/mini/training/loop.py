"""What every part's training has in common: steps, time, checkpoints, averages, sheets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return the context of a training's forward pass: bf16 where the hardware computes in it, else fp32.

    A CPU without AVX512-BF16 or AMX emulates bf16, up to 32 times slower than fp32.
    """
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    bf16 = native or device.type == "cuda"
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


@dataclass
class Run:
    """The frame of a training: steps, time, checkpoints, log."""

    part: str
    folder: Path
    steps: int
    minutes: float
    save_every: int = 500

    @property
    def checkpoint(self) -> Path:
        """Where this part keeps its state."""
        return self.folder / f"{self.part}.pt"

    def fresh_seed(self, seed: int) -> int:
        """Return a seed that differs after every resume, so that no data come twice."""
        if self.checkpoint.exists():
            seed += 1009 * int(torch.load(self.checkpoint, weights_only=True)["step"])
        return seed

    def loop(
        self,
        state: dict[str, Any],
        step_fn: Callable[[int, float], float],
        sheet_fn: Callable[[Path], None],
    ) -> None:
        """Call ``step_fn(step, progress)`` until done; ``state`` holds what a checkpoint saves."""
        path = self.checkpoint
        step, before = 0, 0.0
        if path.exists():
            saved = torch.load(path, weights_only=True)
            step, before = saved.pop("step"), saved.pop("seconds")
            for name, item in state.items():
                item.load_state_dict(saved[name])
        start, mean = time.monotonic() - before, math.nan
        with (self.folder / f"{self.part}.log").open("a") as log:
            while True:
                seconds = time.monotonic() - start
                progress = max(step / self.steps, seconds / 60 / self.minutes)
                done = progress >= 1
                if done or (step and step % self.save_every == 0):
                    saved = {name: item.state_dict() for name, item in state.items()}
                    torch.save(saved | {"step": step, "seconds": seconds}, path.with_suffix(".new"))
                    path.with_suffix(".new").replace(path)
                    sheet_fn(path.with_suffix(".png"))
                if done:
                    return
                loss = step_fn(step, progress)
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
