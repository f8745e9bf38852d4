"""What `bench` compares: the variants of a model's render, and the story that all of them tell."""

from __future__ import annotations

from dataclasses import replace

from storyreel.models.specs import ModelSpec
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import Story

SCENES = (
    ("a corgi dog is inside of the subway train", "a corgi dog is sitting"),
    ("a corgi dog is looking out of the subway train", "a corgi dog is looking around"),  # the shot goes on
    ("a corgi dog is in Central Park", "a corgi dog is running"),
)
STOCK = "stock"
VARIANTS = {
    "plain": Overrides(without=frozenset({"all"})),
    "full": Overrides(),
    "without-dipw": Overrides(without=frozenset({"dipw"})),
    "without-twb": Overrides(without=frozenset({"twb"})),
    "without-sar": Overrides(without=frozenset({"sar"})),
    "balanced": Overrides(speed="balanced"),
    "fast": Overrides(speed="fast"),
}


def planned(spec: ModelSpec, overrides: Overrides, variant: str, scenes: int | None = None) -> Plan:
    """Return the plan of a variant, of the first ``scenes`` or of all; stock is plain, by the pipeline."""
    special = VARIANTS["plain" if variant == STOCK else variant]
    story = Story.model_validate({"scenes": [list(pair) for pair in SCENES[:scenes]]})
    every_part = ("weighting=true",)  # also those that a model does without
    wanted = replace(
        overrides, model=spec.name, method=every_part, without=special.without, speed=special.speed
    )
    return make_plan(story, "bench", wanted)
