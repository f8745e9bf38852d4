"""Low-rank changes of a transformer's weights (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Experts = Literal["all", "high", "low"]


@dataclass(frozen=True)
class Lora:
    """A file with low-rank changes, and how strongly it counts.

    ``experts`` names those of a model with two that it changes: that for high noise levels, that for low
    ones, or all.
    """

    path: Path
    weight: float = 1.0
    experts: Experts = "all"
