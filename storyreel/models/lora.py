"""Low-rank changes of a transformer's weights (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Experts = Literal["all", "high", "low"]
STRONGEST = 10.0  # the largest weight, either way


@dataclass(frozen=True)
class Lora:
    """A file with low-rank changes, and how strongly it counts.

    ``experts`` names those of a model with two that it changes: that for high noise levels, that for low
    ones, or all.
    """

    path: Path
    weight: float = 1.0
    experts: Experts = "all"

    def changes(self, expert: int) -> bool:
        """Tell whether it changes a model's transformer, by its index."""
        return self.experts == "all" or self.experts == ("high", "low")[expert]

    @property
    def state(self) -> tuple[int, ...]:
        """Numbers that change whenever its file does; none of a file that cannot be read."""
        try:
            facts = self.path.stat()
        except OSError:
            return ()
        return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino

    @property
    def facts(self) -> dict[str, Any]:
        """What records say of it, as plain data: no folder, which is a machine's own."""
        return {"file": self.path.name, "weight": self.weight, "experts": self.experts}

    def __str__(self) -> str:
        expert = "" if self.experts == "all" else f" at {self.experts} noise levels"
        return f"{self.path.name}={self.weight:g}{expert}"


def named_experts(path: Path) -> Experts:
    """Return which of two experts a file is for, by its name, as those of Wan 2.2 are called."""
    name = path.name.lower().replace("-", "_")
    high, low = ("high_noise" in name, "low_noise" in name)
    return "all" if high == low else "high" if high else "low"


def parse_lora(text: str) -> tuple[Path, float]:
    """Read FILE or FILE=WEIGHT. Raises ValueError, saying what is wrong."""
    name, equals, number = text.rpartition("=")
    if text in ("", ".") or (equals and not name):  # the command line makes a path of what is empty
        raise ValueError("it names no file; write FILE=WEIGHT, as in style.safetensors=0.8")
    if not equals or Path(text).is_file():  # a name may have that sign
        return Path(text), 1.0
    try:
        weight = float(number)
    except ValueError:
        raise ValueError(
            f"{number!r:.40} is no weight; write FILE=WEIGHT, as in style.safetensors=0.8"
        ) from None
    if not (math.isfinite(weight) and abs(weight) <= STRONGEST):
        raise ValueError(f"weight {number} is not valid; use a number from -{STRONGEST:g} to {STRONGEST:g}")
    return Path(name), weight
