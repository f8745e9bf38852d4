"""Every number that `storyreel eval` and `storyreel ablate` give: the table is in metrics.toml.

Definitions marked as the paper's come from its authors' earlier public code, since the paper's own
metric section gives none: a reimplementation, not comparable with the published table digit by digit.
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from storyreel import plugins
from storyreel.errors import UsageError

SAMPLES = 16  # pictures of a scene that encoders look at


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class Metric:
    """A number of a film. ``better`` is the direction; None where neither end is good by itself.

    A film's value is the mean over its scenes, and the median over the borders that its story wants smooth,
    or the mean, as ``over_seams`` says, however the film was made; where the story wants none, over all
    borders. A metric of the scope ``film`` is made of those, or of what the film's manifest says.
    ``sampling`` tells which frames are looked at, after what preprocessing; ``needs`` which weights it
    takes. ``chance`` is what a film has of it whose scenes have nothing to do with each other, if all that
    may be shown is shown equally often, ``still`` what one has that shows a single picture all the time:
    a measure that rewards that is to be read beside motion. ``beside`` is a metric that no table shows it
    without.
    """

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"] | None = None
    scope: Literal["scene", "seam", "film"]
    status: Literal["paper", "VBench-style", "yardstick", "no weights", "proxy", "judge", "cost", "plugin"]
    source: str
    sampling: str
    needs: str | None = None
    digits: int = 3
    over_seams: Literal["median", "mean"] = "median"
    chance: float | None = None
    still: float | None = None
    beside: str | None = None


def _read() -> dict[str, Metric]:
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    return {name: Metric(name=name, **facts) for name, facts in table.items()}


METRICS = _read()
# What a plugin's function is given, by the scope of its metric, and what that is.
GIVEN = {"scene": ("pictures", "scene", "action"), "seam": ("before", "behind")}
SAMPLING = {
    "scene": f"{SAMPLES} frames a scene, evenly spread; at most 384 pixels wide and high",
    "seam": f"the first frame, {SAMPLES} evenly spread and the last of both scenes; at most 384 pixels wide "
    "and high",
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Measure:
    """A metric of a plugin: its function, and what `Metric` says of it.

    Of the scope ``scene``, ``function(pictures, scene, action)`` is given a scene's pictures, uint8
    (n, H, W, 3), and its prompts; of the scope ``seam``, ``function(before, behind)`` the pictures of the
    scenes on either side, the first and the last among them. It returns a number, or None for no value.
    """

    function: Callable[..., float | None]
    title: str
    unit: str
    source: str
    better: Literal["higher", "lower"] | None = None
    scope: Literal["scene", "seam"] = "scene"
    digits: int = 3
    over_seams: Literal["median", "mean"] = "median"
    chance: float | None = None

    def metric(self, name: str) -> Metric:
        """Return what tables, reports and JSON say of it."""
        return Metric(
            name=name,
            title=self.title,
            unit=self.unit,
            better=self.better,
            scope=self.scope,
            status="plugin",
            source=self.source,
            sampling=SAMPLING[self.scope],
            digits=self.digits,
            over_seams=self.over_seams,
            chance=self.chance,
        )


def plugged_measures() -> dict[str, Measure]:
    """Return the metrics of plugins, loaded, by name. Raises as `plugged_measure` does."""
    return {name: plugged_measure(of) for name, of in plugins.offered("metrics", METRICS).items()}


def plugged_measure(plugin: plugins.Plugin) -> Measure:
    """Return a plugin's metric.

    Raises UsageError for what is no `Measure` or takes other arguments, MissingError for what does not load.
    """
    measure = plugin.load()
    if not isinstance(measure, Measure):
        words = f"{plugin.words} ({plugin.place}) is not a Measure"
        raise UsageError(words, "storyreel/README.md (Plugins) says what a metric is.")
    given = GIVEN[measure.scope]
    try:
        inspect.signature(measure.function).bind(*given)
    except (TypeError, ValueError) as error:
        words = f"{plugin.words}: its function is not one of ({', '.join(given)}): {error}"
        raise UsageError(words, "storyreel/README.md (Plugins) says what it is given.") from None
    return measure


def known_metrics() -> dict[str, Metric]:
    """Return all metrics, those of plugins last. Raises as `plugged_measures` does."""
    return METRICS | {name: measure.metric(name) for name, measure in plugged_measures().items()}


def with_values(summary: Mapping[str, Mapping[str, Any]]) -> list[Metric]:
    """Return the metrics that any run of a comparison's summary has a value of, in their order."""
    return [m for m in known_metrics().values() if any(of[m.name] is not None for of in summary.values())]
