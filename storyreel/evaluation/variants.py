"""The variants of the method that are compared: with all of its parts, without each, and other ways."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """The method without some of its parts, or another one in its place, by its settings KEY=VALUE.

    All parts that are not named are on, also those that a model does without.
    """

    name: str
    without: frozenset[str] = frozenset()
    method: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """Its name as a folder's, and for a shell."""
        return self.name.replace(" ", "-")


VARIANTS = (
    Variant("full"),
    Variant("without dipw", frozenset({"dipw"})),
    Variant("without twb", frozenset({"twb"})),
    Variant("without identity", frozenset({"identity"})),
    Variant("without sar", frozenset({"sar"})),
    Variant("without all", frozenset({"all"})),  # the joined text, hard joins
    Variant("crossfade", method=("blending=crossfade", "weighting=false")),
    Variant("continuation", method=("blending=continuation", "identity=false", "weighting=false")),
    Variant("published", method=("blending=published", "weighting=texts", "temperature=0.5")),
    Variant("scene alone", frozenset({"all"}), ("prompt=scene",)),
)
STOCK = Variant("stock", frozenset({"all"}))  # by diffusers' own pipeline; of costs alone
COSTS = (*VARIANTS, STOCK)
COST_ROWS = (*VARIANTS[:6], STOCK)  # the paper's rows and ours beside them
ALL_PARTS = "weighting=true"
