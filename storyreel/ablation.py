"""What each part of the method is worth: the same stories and seeds with it and without, scored.

Films are kept as `render` leaves them and their scores beside them, so a second run of the same
command renders, loads and decodes nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from storyreel import video
from storyreel.checkpoint import digest, file_hash, write_atomically, writing
from storyreel.errors import StoryreelError, UsageError, counted
from storyreel.models.specs import ModelSpec
from storyreel.plan import Overrides, Plan, make_plan
from storyreel.render import Engine, Progress, render
from storyreel.story import Story

if TYPE_CHECKING:
    from torch import Tensor

    from storyreel.evaluation.verdicts import FilmVerdict

SCORING = 1  # raise it when the same film comes to have other scores
SCORES = "scores.json"
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Variant:
    """The method without some of its parts; all others are on, also those that a model does without."""

    name: str
    without: frozenset[str]

    @property
    def slug(self) -> str:
        """Its name as a folder's, and for a shell."""
        return self.name.replace(" ", "-")


VARIANTS = (
    Variant("full", frozenset()),
    Variant("without dipw", frozenset({"dipw"})),
    Variant("without twb", frozenset({"twb"})),
    Variant("without sar", frozenset({"sar"})),
    Variant("without all", frozenset({"all"})),
)
FULL = VARIANTS[0]
ALL_PARTS = "weighting=true"


@dataclass(frozen=True)
class Metric:
    """A number a film has, as people read it."""

    key: str
    title: str
    digits: int


METRICS = (
    Metric("characters", "right characters, % of scenes", 1),
    Metric("place", "right place, % of scenes", 1),
    Metric("action", "right action, % of scenes", 1),
    Metric("transition_characters", "right characters, % of transitions", 1),
    Metric("seam_ratio_same_place", "seam ratio, place stays", 2),
    Metric("seam_ratio", "seam ratio, all seams", 2),
    Metric("largest_step_place_change", "largest step, place changes", 2),
    Metric("largest_step", "largest step, all seams", 2),
    Metric("largest_step_max", "largest step, worst seam", 2),
    Metric("motion", "motion, 0 to 255 a frame", 2),
    Metric("scene_fit", "scene fit, model's own encoder", 3),
    Metric("action_fit", "action fit, model's own encoder", 3),
    Metric("latents", "latent frames denoised", 0),
    Metric("forwards", "transformer forwards", 0),
    Metric("seconds", "seconds of rendering", 1),
)
# In the table the second stands for the first where a judge knows whether the place changes.
SPLIT = {"seam_ratio": "seam_ratio_same_place", "largest_step": "largest_step_place_change"}


@dataclass(frozen=True)
class Film:
    """One story with one seed in one variant, to be rendered and scored."""

    story: str
    seed: int
    variant: Variant
    plan: Plan

    @property
    def label(self) -> str:
        """What people are told it is."""
        return f"{self.story}, {self.variant.name}, seed {self.seed}"


def pick_variants(names: str) -> tuple[Variant, ...]:
    """Return the variants of a comma list, each once, in our order; "" means all. Raises UsageError."""
    asked = {" ".join(name.replace("-", " ").split()) for name in names.split(",")} - {""}
    if unknown := asked - {variant.name for variant in VARIANTS}:
        known = ", ".join(variant.slug for variant in VARIANTS)
        raise UsageError(f"there is no variant {min(unknown)!r}", f"Known variants: {known}")
    return tuple(variant for variant in VARIANTS if not asked or variant.name in asked)


def plan_films(
    story: Story, name: str, seeds: int, variants: Sequence[Variant], overrides: Overrides
) -> list[Film]:
    """Plan a story in every variant, each with the same seeds: the plan's own and those after it."""
    overrides = replace(overrides, method=(ALL_PARTS, *overrides.method))
    first = make_plan(story, name, overrides).settings.seed
    if first + seeds - 1 > MAX_SEED:
        raise UsageError(f"{seeds} seeds from {first} are more than there are", "Use a smaller --seed.")
    return [
        Film(
            name,
            seed,
            variant,
            make_plan(story, name, replace(overrides, seed=seed, without=variant.without)),
        )
        for seed in range(first, first + seeds)
        for variant in variants
    ]


def ablate(
    films: Sequence[Film],
    out: Path,
    engine: Engine,
    show: Callable[[str], AbstractContextManager[Progress]],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Render and score what is missing of ``films``; return everything as plain data.

    ``show`` gives the progress of a film by its label, ``say`` tells people what was done.
    """
    scored = []
    for film in films:
        folder = out / film.variant.slug / f"seed-{film.seed}"
        with show(film.label) as progress:
            rendered = render(film.plan, film.story, folder, engine, progress)
        began = time.monotonic()
        scores = film_scores(film.plan, rendered.film, engine)
        scored.append(
            {
                "story": film.story,
                "seed": film.seed,
                "variant": film.variant.name,
                "film": str(rendered.film),
                "metrics": film_metrics(scores) | film_cost(film.plan, rendered.film),
                **scores,
            }
        )
        say(
            f"{film.label}: {rendered.rendered} of {counted(rendered.segments, 'scene')} rendered in "
            f"{rendered.seconds:.1f} s, scored in {time.monotonic() - began:.1f} s"
        )
    return {"films": scored, **compare(scored)}


def film_scores(plan: Plan, film: Path, engine: Engine) -> dict[str, Any]:
    """Return a film's scores, from the file beside it if they are of this very film."""
    path = film.with_name(SCORES)
    key = scores_key(plan.spec, _manifest(film))
    try:
        kept: dict[str, Any] = json.loads(path.read_bytes())
        if kept["key"] == key:
            return {part: kept[part] for part in ("motion", "segments", "seams")}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # none, or not ours: score it again
        pass
    scores = score(plan, film, engine)
    with writing(path):
        write_atomically(path, json.dumps({"key": key, **scores}, indent=2, allow_nan=False) + "\n")
    return scores


def scores_key(spec: ModelSpec, manifest: Mapping[str, Any]) -> str:
    """Return what covers all that shapes a film's scores.

    The film holds its story's hash, so its bytes cover prompts and transitions too.
    """
    weights = manifest["model"]["weights"]
    scorer = {name: value for name, value in weights.items() if name.startswith("scorer/")}
    return digest([SCORING, manifest["film"]["sha256"], scorer, _judge_hashes(spec)])


def _judge_hashes(spec: ModelSpec) -> dict[str, str]:
    """Return the SHA-256 of the weights that lie beside a model's judge; nothing is loaded."""
    if spec.judge is None:
        return {}
    found = importlib.util.find_spec(spec.judge.partition(":")[0])
    if found is None or found.origin is None:
        raise ImportError(f"there is no judge {spec.judge}")
    return {path.name: file_hash(path) for path in sorted(Path(found.origin).parent.glob("*.safetensors"))}


def score(plan: Plan, film: Path, engine: Engine) -> dict[str, Any]:
    """Look at a film and return what it shows: motion, and values of every segment and smooth seam.

    Each measure reads the film anew, which costs little and holds only a few frames at a time.
    """
    from storyreel.evaluation.seams import frame_steps, smoothness

    # The seams that the story wants smooth are measured in every variant, also where nothing blends.
    scenes = plan.story["scenes"]
    seams = [s.index for s in plan.segments[1:] if scenes[s.index]["transition"] == "blend"]
    steps = frame_steps(_frames(plan, film))
    if len(steps) != plan.frames - 1:
        raise StoryreelError(
            f"{film} has {len(steps) + 1} frames, planned were {plan.frames}", "Delete it and run again."
        )
    smooth = smoothness(steps, [s.start for s in plan.segments], seams, plan.spec.fps)
    verdict = _verdict(plan, seams, film)
    fits = _fits(plan, film, engine)
    nothing = {"characters": None, "place": None, "action": None}
    segments = [
        {
            "number": segment.number,
            **(asdict(verdict.scenes[segment.index]) if verdict else nothing),
            "scene_fit": fits[segment.index][0] if fits else None,
            "action_fit": fits[segment.index][1] if fits else None,
        }
        for segment in plan.segments
    ]
    borders = [
        {
            "into": plan.segments[seam.after].number,
            "ratio": seam.ratio,
            "largest_step": seam.largest,
            "characters": verdict.seams[i].characters if verdict else None,
            "same_place": verdict.seams[i].same_place if verdict else None,
        }
        for i, seam in enumerate(smooth.seams)
    ]
    return {"motion": smooth.motion, "segments": segments, "seams": borders}


def _frames(plan: Plan, film: Path) -> Iterator[Tensor]:
    """Yield a film's frames as the model made them, uint8 (T, H, W, 3), some at a time."""
    import torch

    width, height = plan.settings.width, plan.settings.height
    for data in video.read_frames(film, width, height):
        yield torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, height, width, 3)


def _verdict(plan: Plan, seams: Sequence[int], film: Path) -> FilmVerdict | None:
    """Ask the model's judge; None if it has none, or the story's truth is not known."""
    if plan.spec.judge is None:
        return None
    module, _, name = plan.spec.judge.partition(":")
    judge_film: Callable[..., FilmVerdict | None] = getattr(importlib.import_module(module), name)
    return judge_film(plan.segments, seams, _frames(plan, film))


def _fits(plan: Plan, film: Path, engine: Engine) -> list[tuple[float, float]] | None:
    """Ask the text-image encoder that lies with the model's weights; None if none does."""
    scorer = engine.scorer(plan.spec)
    if scorer is None:
        return None
    from storyreel.evaluation.fit import text_fit
    from storyreel.models.base import pick_device

    return text_fit(scorer, pick_device(engine.device), plan.segments, _frames(plan, film))


def film_metrics(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """Return a film's numbers: shares in percent of what was judged, medians over seams, mean fits."""

    def values(part: str, name: str, **where: object) -> list[float]:
        rows = (row for row in scores[part] if all(row[key] is value for key, value in where.items()))
        return [float(row[name]) for row in rows if row[name] is not None]

    def share(part: str, name: str) -> float | None:
        found = values(part, name)
        return 100 * fmean(found) if found else None

    def middle(found: Sequence[float]) -> float | None:
        return median(found) if found else None

    fits = {name: values("segments", name) for name in ("scene_fit", "action_fit")}
    return {
        **{name: share("segments", name) for name in ("characters", "place", "action")},
        "transition_characters": share("seams", "characters"),
        "seam_ratio": middle(values("seams", "ratio")),
        "seam_ratio_same_place": middle(values("seams", "ratio", same_place=True)),
        "largest_step": middle(values("seams", "largest_step")),
        "largest_step_place_change": middle(values("seams", "largest_step", same_place=False)),
        "largest_step_max": max(values("seams", "largest_step"), default=None),
        "motion": scores["motion"],
        **{name: fmean(found) if found else None for name, found in fits.items()},
    }


def film_cost(plan: Plan, film: Path) -> dict[str, float]:
    """Return what a film cost, as its manifest says: similar actions share shorter overlaps.

    A forward with guidance counts once. Seconds are those that were spent, on whatever else
    the machine had to do.
    """
    segments = _manifest(film)["segments"]
    return {
        "latents": sum(segment["decided"]["lead"] + segment["latents"] for segment in segments),
        "forwards": plan.forwards,
        "seconds": sum(segment["seconds"] for segment in segments),
    }


def _manifest(film: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(film.with_name("manifest.json").read_bytes())
    return manifest


def compare(films: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and spread of every metric by variant, and each variant's differences to full.

    Films are paired by story and seed; a number that one of a pair lacks leaves the pair out.
    """
    import numpy as np

    from storyreel.evaluation.statistics import paired_difference, spread

    by_variant: dict[str, dict[tuple[str, int], Mapping[str, float | None]]] = {}
    for film in films:
        by_variant.setdefault(film["variant"], {})[film["story"], film["seed"]] = film["metrics"]
    full = by_variant.get(FULL.name, {})

    def numbers(name: str, key: str) -> list[float]:
        return [value for metrics in by_variant[name].values() if (value := metrics[key]) is not None]

    def beyond_full(name: str, key: str) -> list[float]:
        pairs = ((m[key], full[film][key]) for film, m in by_variant[name].items() if film in full)
        return [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]

    summary = {
        name: {m.key: asdict(s) if (s := spread(numbers(name, m.key))) else None for m in METRICS}
        for name in by_variant
    }
    differences = {}
    for name in by_variant:
        if name != FULL.name and full:
            # The same resamples for every number, so that no row depends on those above it.
            found = {
                m.key: paired_difference(beyond_full(name, m.key), np.random.default_rng(0)) for m in METRICS
            }
            differences[name] = {key: asdict(value) if value else None for key, value in found.items()}
    return {"summary": summary, "differences": differences}


def table_metrics(films: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """Return the rows of the table: seams by whether the place stays, where that is known of every film."""
    known = all(seam["same_place"] is not None for film in films for seam in film["seams"])
    seams = any(film["seams"] for film in films)
    hidden = {*(SPLIT if known and seams else SPLIT.values()), "largest_step_max"}
    return [metric for metric in METRICS if metric.key not in hidden]
