"""What each part of the method is worth: the same stories and seeds are rendered with it and without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from storyreel import plugins
from storyreel.errors import StoryreelError, UsageError, counted
from storyreel.evaluation.films import Film, collect, rendered_film
from storyreel.film.hearing import hear
from storyreel.method.settings import BLENDINGS
from storyreel.rendering import Engine, Progress, render
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import Story

MAX_SEED = 2**63 - 1


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
ALL_PARTS = "weighting=true"


@dataclass(frozen=True)
class PlannedFilm:
    """One story with one seed in one variant, to be rendered."""

    story: str
    seed: int
    variant: Variant
    plan: Plan

    @property
    def label(self) -> str:
        """What people are told it is."""
        return f"{self.story}, {self.variant.name}, seed {self.seed}"

    @property
    def name(self) -> str:
        """Its name in the run of its variant, as `storyreel eval` has it."""
        return f"seed-{self.seed}/{self.story}"


def pick_variants(names: str) -> tuple[Variant, ...]:
    """Return the variants of a comma list, each once, in our order; "" means all that are in the table.

    A plugin's blending is a variant too, by its name: the whole method with its formula. Raises UsageError.
    """
    asked = {_spaced(name) for name in names.split(",")} - {""}
    formulas = plugins.offered("blendings", BLENDINGS)
    known = (*VARIANTS, *(Variant(name, method=(f"blending={name}",)) for name in formulas))
    if unknown := asked - {_spaced(variant.name) for variant in known}:
        words = ", ".join(variant.slug for variant in known)
        raise UsageError(f"unknown variant {min(unknown)!r}", f"Known variants: {words}")
    return tuple(variant for variant in known if _spaced(variant.name) in asked) if asked else VARIANTS


def _spaced(name: str) -> str:
    return " ".join(name.replace("-", " ").split())


def plan_films(
    story: Story, name: str, seeds: int, variants: Sequence[Variant], overrides: Overrides
) -> list[PlannedFilm]:
    """Plan a story in every variant, each with the same seeds: the plan's own and those after it."""
    overrides = replace(overrides, method=(ALL_PARTS, *overrides.method))
    heard = hear(story)
    first = make_plan(story, name, overrides, heard).settings.seed
    if first + seeds - 1 > MAX_SEED:
        raise UsageError(f"{seeds} seeds from {first} are more than there are", "Use a smaller --seed.")
    return [
        PlannedFilm(
            name,
            seed,
            variant,
            make_plan(
                story,
                name,
                replace(
                    overrides,
                    seed=seed,
                    without=variant.without,
                    method=(*overrides.method, *variant.method),
                ),
                heard,
            ),
        )
        for seed in range(first, first + seeds)
        for variant in variants
    ]


def render_films(
    planned: Sequence[PlannedFilm],
    out: Path,
    engine: Engine,
    show: Callable[[str], AbstractContextManager[Progress]],
    say: Callable[[str], None],
) -> tuple[list[Film], list[StoryreelError]]:
    """Render what is missing; return the films as runs to be scored, one of each variant, and what is wrong.

    ``show`` gives the progress of a film by its label, ``say`` tells people what was done.
    """
    for film in planned:
        with show(film.label) as progress:
            folder = out / film.variant.slug / f"seed-{film.seed}"
            done = render(film.plan, film.story, folder, engine, progress)
        scenes = f"{done.rendered} of {counted(done.segments, 'scene')}"
        say(f"{film.label}: {scenes} rendered in {done.seconds:.1f} s")
    variants = list(dict.fromkeys(film.variant for film in planned))
    ordered = sorted(planned, key=lambda film: (variants.index(film.variant), film.name.split("/")))
    runs = [(str(out / film.variant.slug), film.name, film.story) for film in ordered]
    return collect((), [partial(rendered_film, *run, Path(run[0], run[1])) for run in runs])
