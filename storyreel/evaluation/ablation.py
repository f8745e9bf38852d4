"""What each part of the method is worth: the same stories and seeds with it and without, scored.

Films are kept as `render` leaves them and their scores beside them, so a second run of the same
command renders, loads and decodes nothing.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from storyreel.errors import UsageError, counted
from storyreel.evaluation import registry
from storyreel.evaluation.films import looked_at, rendered_film
from storyreel.evaluation.statistics import Row
from storyreel.evaluation.statistics import compare as compare_rows
from storyreel.files import digest, file_hash, write_atomically, writing
from storyreel.film import reader
from storyreel.models.specs import ModelSpec
from storyreel.render import Engine, Progress, render
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import Story

if TYPE_CHECKING:
    from torch import Tensor

    from storyreel.evaluation.verdicts import FilmVerdict

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


def _of_eval(name: str) -> Metric:
    """Return a number that `storyreel eval` gives too: what has one name is one thing."""
    metric = registry.METRICS[name]
    return Metric(name, metric.title, metric.digits)


METRICS = (
    Metric("characters", "right characters, % of scenes", 1),
    Metric("place", "right place, % of scenes", 1),
    Metric("action", "right action, % of scenes", 1),
    Metric("transition_characters", "right characters, % of transitions", 1),
    Metric("seam_ratio_same_place", "seam ratio, place stays", 2),
    _of_eval("seam_ratio"),
    Metric("largest_step_place_change", "largest step near the seam, place changes", 2),
    _of_eval("largest_step"),
    Metric("largest_step_max", "largest step near the worst seam", 2),
    _of_eval("motion"),
    _of_eval("scene_fit"),
    _of_eval("action_fit"),
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
                "scenes": scores["scenes"],
                "seams": scores["seams"],
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
            return {part: kept[part] for part in ("film", "scenes", "seams")}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # none, or not ours: score it again
        pass
    scores = score(plan, film, engine)
    with writing(path):
        write_atomically(path, json.dumps({"key": key, **scores}, indent=2, allow_nan=False) + "\n")
    return scores


def scores_key(spec: ModelSpec, manifest: Mapping[str, Any]) -> str:
    """Return what covers all that shapes a film's scores, the code that makes them too.

    The film holds its story's hash, so its bytes cover prompts and transitions too.
    """
    weights = manifest["model"]["weights"]
    scorer = {name: value for name, value in weights.items() if name.startswith("scorer/")}
    package = Path(__file__).parent.parent
    code = [package / name for name in ("film/reader.py", "models/scorer.py")]
    code += sorted((package / "evaluation").rglob("*.py"))
    return digest([_hashes(package, code), manifest["film"]["sha256"], scorer, _judge_hashes(spec)])


def _hashes(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in files}


def _judge_hashes(spec: ModelSpec) -> dict[str, str]:
    """Return the SHA-256 of a model's judge, code and weights; nothing is loaded."""
    if spec.judge is None:
        return {}
    found = importlib.util.find_spec(spec.judge.partition(":")[0])
    if found is None or found.origin is None:
        raise ImportError(f"there is no judge {spec.judge}")
    folder = Path(found.origin).parent
    return _hashes(folder, [*sorted(folder.glob("*.safetensors")), *sorted(folder.rglob("*.py"))])


def score(plan: Plan, film: Path, engine: Engine) -> dict[str, Any]:
    """Look at a film as `storyreel eval` does, and ask the model's judge; return what both say.

    These are the film's own numbers and those of every scene and border, by the names that `eval` has, but
    for metrics that need further weights.
    """
    from storyreel.evaluation.encoders import Encoders
    from storyreel.evaluation.look import look_at
    from storyreel.evaluation.score import film_scores
    from storyreel.evaluation.verdicts import asked
    from storyreel.models.devices import pick_device

    folder = film.parent
    looked = looked_at(rendered_film(str(folder.parent), folder.name, folder.name, folder), plan.spec.fps)
    own: Any = engine.scorer(plan.spec)
    encoders = Encoders(pick_device(engine.device))
    strangeness = asked(plan.spec.strangeness) if own is not None else None
    look = look_at(looked, encoders, set(), own, strangeness, lambda frames: None)
    scores = film_scores(looked, look, {registry.OWN: own} if own is not None else {})
    seams = [seam["after"] for seam in scores["seams"] if seam["blended"]]
    verdict = _verdict(plan, seams, film)
    nothing = dict.fromkeys(("characters", "place", "action"))
    for index, scene in enumerate(scores["scenes"]):
        scene |= asdict(verdict.scenes[index]) if verdict else nothing
    judged = {seam.after: seam for seam in verdict.seams} if verdict else {}
    for seam in scores["seams"]:
        said = judged.get(seam["after"])
        seam |= {"characters": said and said.characters, "same_place": said and said.same_place}
    return {part: scores[part] for part in ("film", "scenes", "seams")}


def _frames(plan: Plan, film: Path) -> Iterator[Tensor]:
    """Yield a film's frames as the model made them, uint8 (T, H, W, 3), some at a time."""
    import torch

    width, height = plan.settings.width, plan.settings.height
    for data in reader.read_frames(film, width, height):
        yield torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, height, width, 3)


def _verdict(plan: Plan, seams: Sequence[int], film: Path) -> FilmVerdict | None:
    """Ask the model's judge; None if it has none, or the story's truth is not known."""
    from storyreel.evaluation.verdicts import asked

    judge_film = asked(plan.spec.judge)
    return judge_film and judge_film(plan.segments, seams, _frames(plan, film))


def film_metrics(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """Return a film's numbers: those of `eval`, and the judge's: shares in percent, seams by the place."""

    def values(part: str, name: str, **where: object) -> list[float]:
        rows = (row for row in scores[part] if all(row[key] is value for key, value in where.items()))
        return [float(row[name]) for row in rows if row[name] is not None]

    def share(part: str, name: str) -> float | None:
        found = values(part, name)
        return 100 * fmean(found) if found else None

    def middle(name: str, same_place: bool) -> float | None:
        found = values("seams", name, blended=True, same_place=same_place)
        return median(found) if found else None

    return {
        **scores["film"],
        **{name: share("scenes", name) for name in ("characters", "place", "action")},
        "transition_characters": share("seams", "characters"),
        "seam_ratio_same_place": middle("seam_ratio", same_place=True),
        "largest_step_place_change": middle("largest_step", same_place=False),
        "largest_step_max": max(values("seams", "largest_step", blended=True), default=None),
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

    Films are paired by story and seed.
    """
    rows = [Row(f["variant"], (f["story"], f["seed"]), f["story"], f["metrics"]) for f in films]
    names = dict.fromkeys(name for row in rows for name in row.values)
    return compare_rows(rows, names, FULL.name)


def table_metrics(films: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """Return the rows of the table: seams by whether the place stays, where that is known of every film."""
    seams = [seam for film in films for seam in film["seams"] if seam["blended"]]
    known = bool(seams) and all(seam["same_place"] is not None for seam in seams)
    hidden = {*(SPLIT if known else SPLIT.values()), "largest_step_max"}
    return [metric for metric in METRICS if metric.key not in hidden]
