"""Every number that `storyreel eval` and `storyreel ablate` give: the table is in metrics.toml.

Definitions marked as the paper's come from its authors' earlier public code, since the paper's own
metric section gives none: a reimplementation, not comparable with the published table digit by digit.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

SAMPLES = 16  # pictures of a scene that encoders look at


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class Metric:
    """A number of a film. ``better`` is the direction; None where neither end is good by itself.

    A film's value is the mean over its scenes, and the median over the borders that its story wants smooth,
    or the mean, as ``over_seams`` says, however the film was made; where the story wants none, over all
    borders. A metric of the scope ``film`` is made of those, or of what the film's manifest says.
    ``sampling`` tells which frames are looked at, after what preprocessing; ``needs`` which weights it
    takes. ``chance`` is what a film has of it whose scenes have nothing to do with each other, if all that
    may be shown is shown equally often.
    """

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"] | None = None
    scope: Literal["scene", "seam", "film"]
    status: Literal["paper", "VBench-style", "no weights", "proxy", "judge", "cost"]
    source: str
    sampling: str
    needs: str | None = None
    digits: int = 3
    over_seams: Literal["median", "mean"] = "median"
    chance: float | None = None


def _read() -> dict[str, Metric]:
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    return {name: Metric(name=name, **facts) for name, facts in table.items()}


METRICS = _read()


def with_values(summary: Mapping[str, Mapping[str, Any]]) -> list[Metric]:
    """Return the metrics that any run of a comparison's summary has a value of, in their order."""
    return [m for m in METRICS.values() if any(of[m.name] is not None for of in summary.values())]
