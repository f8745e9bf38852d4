"""What each part of the method is worth: the same stories and seeds are rendered with it and without."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from storyreel import plugins
from storyreel.errors import StoppedError, StoryreelError, UsageError, counted
from storyreel.evaluation.films import Film, collect, foreign_film, rendered_film
from storyreel.evaluation.frame_rates import SLACK, common_rate
from storyreel.evaluation.variants import ALL_PARTS, VARIANTS, Variant
from storyreel.film.hearing import hear
from storyreel.method.settings import BLENDINGS
from storyreel.rendering import Engine, Progress, render
from storyreel.story.naming import check_film_name, film_name
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import STDIN, Casting, Story

MAX_SEED = 2**63 - 1
VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")


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


def pick_variants(
    names: str, known: Sequence[Variant] = VARIANTS, usual: Sequence[Variant] | None = None
) -> tuple[Variant, ...]:
    """Return the ``known`` variants of a comma list, each once, in our order. Raises UsageError.

    "" means the ``usual`` ones, or all. A plugin's blending is a variant too, by its name: the whole method
    with its formula.
    """
    asked = {_spaced(name) for name in names.split(",")} - {""}
    if not asked:
        return tuple(known if usual is None else usual)
    formulas = plugins.offered("blendings", BLENDINGS)
    all_known = (*known, *(Variant(name, method=(f"blending={name}",)) for name in formulas))
    if unknown := asked - {_spaced(variant.name) for variant in all_known}:
        words = ", ".join(variant.slug for variant in all_known)
        raise UsageError(f"unknown variant {min(unknown)!r}", f"Known variants: {words}")
    return tuple(variant for variant in all_known if _spaced(variant.name) in asked)


def _spaced(name: str) -> str:
    return " ".join(name.replace("-", " ").split())


def own_rows(rows: Sequence[str], taken: Collection[str]) -> tuple[Variant, ...]:
    """Return variants of the user's own, each NAME:KEY=VALUE,… of the method. Raises UsageError."""
    found: list[Variant] = []
    for row in rows:
        name, colon, settings = row.partition(":")
        method = tuple(setting.strip() for setting in settings.split(",") if setting.strip())
        if not colon or not method:
            raise UsageError(
                f"--row {row!r} makes no sense", "Write it as in --row mine:overlap=4,strength=0.5"
            )
        _check_row(name, {*taken, *(variant.slug for variant in found)})
        found.append(Variant(name, method=method))
    return tuple(found)


def _check_row(name: str, taken: Collection[str]) -> None:
    check_film_name(name)
    if name.casefold() in {other.casefold() for other in taken}:
        raise UsageError(f"there is a row {name!r} already", "Choose another name.")


def find_videos(
    videos: Sequence[str], stories: Collection[str], taken: Collection[str]
) -> dict[str, dict[str, Path]]:
    """Return the files of films that something else made, by the row's name and the story's.

    Each of ``videos`` is NAME=FOLDER, with one file a story in the folder, called as the story is. Some may
    be missing. Raises UsageError.
    """
    found: dict[str, dict[str, Path]] = {}
    for video in videos:
        name, equals, place = video.partition("=")
        folder = Path(place)
        if not equals or not place or not folder.is_dir():
            what = f"{place} is not a folder" if place else f"--video {video!r} makes no sense"
            raise UsageError(
                what, "Write --video NAME=FOLDER, with one film a story in it, called as the story is."
            )
        _check_row(name, {*taken, *found})
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEOS and path.is_file())
        of_story: dict[str, Path] = {}
        for path in files:
            story = film_name(path)
            if story in stories and of_story.setdefault(story, path) != path:
                raise UsageError(f"{folder} has two films of {story}", "Leave one of them there.")
        if not of_story:
            names = ", ".join(sorted(stories))
            raise UsageError(
                f"{folder} has no film of any story", f"Name the files as the stories are: {names}"
            )
        found[name] = of_story
    return found


def foreign_films(
    found: Mapping[str, Mapping[str, Path]],
    stories: Mapping[str, Path],
    planned: Sequence[PlannedFilm],
    out: Path,
    segments: str,
    casting: Casting,
    fps: float | None,
) -> tuple[list[Film], list[StoryreelError]]:
    """Return films that something else made of ``stories``, and what is wrong with the others.

    It is asked of them what is asked of those that are ``planned``: they belong to the same model, and to
    runs beside theirs in ``out``. Raises UsageError if they cannot all be looked at ``fps`` times a second.
    """
    if found and STDIN in stories.values():
        raise UsageError("--video wants stories that are files", "Write the story into a file first.")
    models = {film.story: film.plan.spec for film in planned}
    films: list[Film] = []
    errors: list[StoryreelError] = []
    for name, files in found.items():
        for story, path in files.items():
            try:
                film = foreign_film(stories[story], path, segments, casting)
            except StoryreelError as error:
                errors.append(error)
            else:
                model = models[story].name
                films.append(replace(film, run=str(out / name), name=story, story=story, model=model))
    rates = [*(spec.fps for spec in models.values()), *(film.fps for film in films)]
    usual = common_rate(rates) if rates else 1.0
    if usual is None and fps is None:
        shown = ", ".join(f"{rate:g}" for rate in sorted({*rates}))
        remedy = f"Name one: --fps {min(rates):g}"
        raise UsageError(f"films of {shown} frames a second have no time base in common", remedy)
    if fps is not None and rates and fps > min(rates) * (1 + SLACK):
        raise UsageError(
            f"a film of {min(rates):g} frames a second cannot be looked at {fps:g} times",
            f"Give --fps {min(rates):g}, or less.",
        )
    return films, errors


def plan_films(
    story: Story, name: str, seeds: int, variants: Sequence[Variant], overrides: Overrides
) -> list[PlannedFilm]:
    """Plan a story in every variant, each with the same seeds: the plan's own and those after it."""
    if story.render.method.weighting in (None, False):  # else the story's own is what is left out
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
    foreign: Sequence[Film] = (),
    fps: float | None = None,
) -> tuple[list[Film], list[StoryreelError]]:
    """Render what is missing; return the films as runs to be scored, one of each variant, and what is wrong.

    A film that fails leaves the others alone.
    ``show`` gives the progress of a film by its label, ``say`` tells people what was done. ``foreign`` films
    come last. All are looked at ``fps`` times a second.
    """
    made, wrong = list[PlannedFilm](), list[StoryreelError]()
    for film in planned:
        folder = out / film.variant.slug / f"seed-{film.seed}"
        try:
            with show(film.label) as progress:
                done = render(film.plan, film.story, folder, engine, progress)
        except StoppedError:
            raise
        except StoryreelError as error:
            say(f"{film.label}: {error}")
            wrong.append(error)
            continue
        made.append(film)
        scenes = f"{done.rendered} of {counted(done.segments, 'scene')}"
        say(f"{film.label}: {scenes} rendered in {done.seconds:.1f} s")
    order = list(dict.fromkeys(film.variant for film in planned))
    ordered = sorted(made, key=lambda film: (order.index(film.variant), film.name.split("/")))
    runs = [(str(out / film.variant.slug), film.name, film.story) for film in ordered]
    rendered = [partial(rendered_film, *run, Path(run[0], run[1])) for run in runs]
    films, unread = collect((), [*rendered, *(partial(lambda film: film, film) for film in foreign)], fps)
    return films, [*wrong, *unread]
