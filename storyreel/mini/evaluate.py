"""How well the embedded model draws what it is told, and how well the judge judges: the card's figures.

    python -m storyreel.mini.evaluate --out scores                # everything: hours on a CPU
    python -m storyreel.mini.evaluate --out scores --part pairs   # a part, once more from where it stopped
    python -m storyreel.mini.evaluate --out scores --summary      # only what is there already

Every clip is sampled plainly, one prompt and no neighbours, with the default settings. The judge
says what it sees, and `nearest` how far that is from what the world draws. ``scores/PART.jsonl`` gets a line
for every clip as soon as it is judged, ``scores/PART`` its pictures; at the end a table says which bars
are met, and ``scores/worst.png`` shows the clips that the judge finds least like their prompts. No table
holds figures of two weights, judges, samplings or methods.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from storyreel.denoise.loop import begin, denoise, denoised
from storyreel.denoise.prompts import PromptWriter
from storyreel.errors import DamagedError, MissingError, StoryreelError, UsageError
from storyreel.files import file_hash
from storyreel.models.base import Request
from storyreel.models.checksums import CHECKSUMS, how_to_restore
from storyreel.models.loading import load_adapter
from storyreel.models.mochi import MochiAdapter
from storyreel.models.scorer import Scorer
from storyreel.models.specs import MODELS
from storyreel.story.plan import Plan, derived_seed, joined_prompt
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import Story

from .judge import ACTIONS, CASTS, PLACES, STRIDE, WEIGHTS, Judge, Opinion, load_judge, truth
from .lessons import (
    FPS,
    HEIGHT,
    PAIRS,
    WIDTH,
    Example,
    crossed_clip,
    crossed_example,
    held_out_example,
    story_example,
)
from .nearest import Scene, nearest_true
from .plots import PLOTS, STORIES, words
from .spoiling import filmed, spoilt
from .verdicts import names_in
from .world import (
    COLOURS,
    DOOR_ACTIONS,
    Action,
    CaptionKind,
    Character,
    Clip,
    Light,
    Look,
    Place,
    caption,
    draw_clip,
    look_name,
    plain_telling,
    stage_clip,
    wear_of,
)

MINI = MODELS["mini"]
SEED = 9_000_011  # of true clips and random prompts: neither the model's nor the judge's
FRAMES = 25
RANKED = 20
WRONG_WORDINGS = 3
STORY_SHARE = 0.6  # of true clips
STRIP = 6  # pictures of a clip that are kept
FAR, NEAR = 17.0, 21.0  # dB to the nearest true picture: of what is no true picture, and of what is one
ASKED = ("characters", "place", "action", "looks", "light")

Row = dict[str, Any]  # what is kept of a clip, as data: see `row_of`


@dataclass(frozen=True)
class Trial:
    """A prompt and what a clip of it must show; None where the prompt leaves it open.

    ``looks`` holds what is stated of each character, "" what is not; with ``exact``, "" is nothing to wear.
    ``scene`` is what the world draws for it, where the distance to that is asked for; ``story`` is the
    shipped one that it is a scene of. ``told`` are its scene and its action prompt, where it has both.
    """

    prompt: str
    characters: frozenset[Character] | None
    place: Place | None
    action: Action | None
    looks: Mapping[Character, Look] = field(default_factory=dict)
    light: Light | None = None
    scene: Scene | None = None
    story: str = ""
    exact: bool = False
    told: tuple[str, str] | None = None


@dataclass(frozen=True)
class Result:
    """What the judge saw: each of the five right, wrong, or not asked; nothing where nobody can tell.

    ``distance`` is the median PSNR in dB to the nearest true picture, inside the actors (`nearest`).
    """

    trial: Trial
    opinion: Opinion
    right: tuple[bool | None, bool | None, bool | None, bool | None, bool | None]
    distance: float | None
    likelihood: float  # log-probability of what was asked for
    frames: Tensor

    @property
    def seen(self) -> str:
        """The judge's verdict in words."""
        v = self.opinion.verdict
        who = " and ".join(look_name(c, v.looks[c]) for c in sorted(v.characters))
        told = f"{who}, {v.place} by {v.light}, {v.action}"
        return told if self.opinion.readable else f"unreadable ({told})"


def story_trials() -> list[Trial]:
    """Both prompts of every scene of every shipped story."""
    trials = []
    for story, (plot, cast) in STORIES.items():
        for lesson in PLOTS[plot]:
            who = lesson.who(cast)
            told = words(lesson.scene, cast), words(lesson.action, cast)
            trials.append(
                Trial(
                    joined_prompt(*told),
                    frozenset(who),
                    lesson.place,
                    lesson.shows,
                    scene=Scene(lesson.place, who, lesson.shows, lesson.ball),
                    story=story,
                    told=told,
                )
            )
    return trials


def alone_trials(side: str) -> list[Trial]:
    """Return the ``scene`` or the ``action`` prompts of the shipped stories by themselves, each once."""
    trials = {}
    for plot, cast in STORIES.values():
        for lesson in PLOTS[plot]:
            template = lesson.scene if side == "scene" else lesson.action
            both = "{second" in template
            who = frozenset((cast.first, cast.second) if both else (cast.first,))
            text = words(template, cast)
            place = lesson.place if side == "scene" and _names_place(template) else None
            trials[text] = Trial(text, who, place, lesson.alone if side == "action" else None)
    return list(trials.values())


def _names_place(scene: str) -> bool:
    return "cherry blossoms together" not in scene or "Basin" in scene


def random_trials(draw: Callable[[Random], Example], count: int, seed: int) -> list[Trial]:
    """Return random prompts in the captions' wordings."""
    rng = Random(seed)
    return [_trial_of(draw(rng)) for _ in range(count)]


def _trial_of(example: Example) -> Trial:
    clip, telling = example.clip, example.telling
    assert telling is not None
    stated = dict(zip(clip.cast, telling.stated, strict=True))
    return Trial(
        joined_prompt(example.scene, example.action),
        frozenset(clip.cast),
        clip.place,
        clip.action,
        stated,
        clip.backdrop.light if telling.light else None,
        told=(example.scene, example.action),
    )


def pair_example(rng: Random) -> Example:
    """Draw a crossed lesson with two characters."""
    while len((example := any_example(rng)).clip.actors) < 2:
        pass
    return example


def any_example(rng: Random) -> Example:
    """Draw a crossed lesson; three in ten have two characters, whatever a training's have."""
    return crossed_example(rng, pairs=0.3)


def stated_example(rng: Random) -> Example:
    """Draw a crossed lesson that states a look or the light."""
    while True:
        example = any_example(rng)
        telling = example.telling
        assert telling is not None
        if telling.light or any(look != Look("") for look in telling.stated):
            return example


def open_trials(count: int, seed: int) -> list[Trial]:
    """Return prompts that state no look, as many of each character."""
    rng, trials = Random(seed), []
    characters = tuple(Character)
    for index in range(count):
        clip = crossed_clip(rng, (characters[index % len(characters)],))
        telling = plain_telling(clip)
        told = caption(rng, clip, "scene", telling), caption(rng, clip, "action", telling)
        prompt = joined_prompt(*told)
        trials.append(Trial(prompt, frozenset(clip.cast), clip.place, clip.action, told=told))
    return trials


class Studio:
    """Samples single clips from the model, and lets the judge see them.

    ``method`` are settings KEY=VALUE of how prompts are weighted: without any, they are not.
    """

    def __init__(self, weights: Path, device: torch.device, method: Sequence[str] = ()) -> None:
        self.spec = replace(MINI, weights=weights)
        adapter = load_adapter(self.spec, device)
        assert isinstance(adapter, MochiAdapter)
        self.adapter = adapter
        self.judge: Judge = load_judge()
        self.plan: Plan = make_plan(
            Story.model_validate({"scenes": [["a scene", "an action"]]}),
            "trial",
            Overrides(
                without=frozenset({"twb", "identity", "sar"}), method=tuple(method) or ("weighting=false",)
            ),
        )

    def sample(
        self, prompt: str, seed: int, steps: int | None = None, told: tuple[str, str] | None = None
    ) -> Tensor:
        """Return a clip of a prompt, uint8 (T, H, W, 3); ``told`` are its scene and its action prompt."""
        return self.adapter.decode(self.latents(prompt, seed, self.adapter, steps, told))

    def latents(
        self,
        prompt: str,
        seed: int,
        adapter: MochiAdapter,
        steps: int | None = None,
        told: tuple[str, str] | None = None,
    ) -> Tensor:
        """Denoise one prompt by itself."""
        plan = self.plan
        if steps is not None:
            plan = replace(plan, settings=replace(plan.settings, steps=steps))
        scene, action = told or (prompt, prompt)
        segment = replace(plan.segments[0], scene=scene, action=action, cast=names_in(prompt))
        segment = replace(segment, seed=derived_seed(seed, 0))
        writer = PromptWriter(adapter, plan, None)
        begun = begin(adapter, plan, segment, writer.prompts(segment))
        (done,) = denoise(adapter, plan.settings, [segment], writer, lambda _: begun, lambda _: None)
        return done.x


def judged(judge: Judge, trial: Trial, frames: Tensor) -> Result:
    """Let the judge, and the nearest true picture, say how a clip is what was asked for."""
    opinion = judge.judge(frames)
    v, readable = opinion.verdict, opinion.readable

    def right(asked: bool, fits: bool) -> bool | None:
        return readable and fits if asked else None

    stated = [
        (getattr(look, part), getattr(v.looks.get(who, Look("")), part))
        for who, look in trial.looks.items()
        for part in ("colour", "wear")
        if trial.exact or getattr(look, part)
    ]
    verdict = (
        right(trial.characters is not None, v.characters == trial.characters),
        right(trial.place is not None, v.place is trial.place),
        right(trial.action is not None, v.action is trial.action),
        right(bool(stated), all(asked == seen for asked, seen in stated)),
        right(trial.light is not None, v.light is trial.light),
    )
    distance = None
    if trial.scene is not None:
        distance = float(median(nearest_true(trial.scene, frames.numpy())))
    return Result(trial, opinion, verdict, distance, likelihood(opinion, trial), frames)


def likelihood(opinion: Opinion, trial: Trial) -> float:
    """Return the judge's log-probability of everything that a trial asks for."""
    total = 0.0
    if trial.characters is not None:
        total += float(opinion.casts[CASTS.index(trial.characters)])
    if trial.place is not None:
        total += float(opinion.places[PLACES.index(trial.place)])
    if trial.action is not None:
        total += float(opinion.actions[ACTIONS.index(trial.action)])
    return total


def true_clips(count: int, seed: int) -> Iterator[tuple[Clip, Tensor, Tensor]]:
    """Yield unseen clips of the world: parameters, pictures uint8 (T, H, W, 3), tags (T, H, W).

    Six tenths are scenes of the shipped stories, the rest crosses everything: always the same mixture,
    whatever the training's lessons are made of, so that figures can be compared between trainings.
    """
    rng = Random(seed)
    for _ in range(count):
        if rng.random() < STORY_SHARE:
            plot, cast = rng.choice(tuple(STORIES.values()))
            clip = story_example(rng, rng.choice(PLOTS[plot]), cast).clip
        else:
            clip = any_example(rng).clip
        images, tags = draw_clip(clip, FRAMES, FPS, WIDTH, HEIGHT)
        yield clip, torch.from_numpy(images), torch.from_numpy(tags)


def of_clip(clip: Clip) -> Trial:
    """Return the trial whose right answers are what a true clip shows."""
    true = truth(clip)
    return Trial("", true.characters, clip.place, clip.action, true.looks, true.light, exact=True)


def true_rows(judge: Judge, count: int, skip: int) -> Iterator[tuple[Row, Tensor]]:
    """Judge true clips, and after every second one a clip that is spoilt: what the judge itself is worth."""
    other: Clip | None = None
    number = 0
    for index, (clip, images, _) in enumerate(true_clips(count, SEED)):
        if number >= skip:
            yield row_of(number, judged(judge, of_clip(clip), images)) | {"kind": "true"}, images
        number += 1
        if other is not None and index % 2:
            if number >= skip:
                yield spoilt_row(number, judge, clip, other)
            number += 1
        other = clip


def spoilt_row(number: int, judge: Judge, clip: Clip, other: Clip) -> tuple[Row, Tensor]:
    """Judge a clip that is spoilt on purpose, of which nothing but that is asked."""
    times = [STRIDE * index / FPS for index in range((FRAMES + 1) // STRIDE)]
    pictures = spoilt(Random(SEED + number), filmed(clip, times), filmed(other, times))
    images = torch.from_numpy(pictures).repeat_interleave(STRIDE, 0)[:FRAMES]
    return row_of(number, judged(judge, Trial("", None, None, None), images)) | {"kind": "spoilt"}, images


@torch.inference_mode()
def codec_results(studio: Studio, count: int) -> tuple[list[Row], dict[str, float]]:
    """Judge true clips that went through the codec; also PSNR, whole and inside the actors."""
    rows, errors, inside = [], [], []
    for number, (clip, images, tags) in enumerate(true_clips(count, SEED)):
        frames = studio.adapter.decode(studio.adapter.encode_pictures(images))
        rows.append(row_of(number, judged(studio.judge, of_clip(clip), frames)))
        error = (frames.float() - images.float()).square().mean(-1) / 255**2
        errors.append(error.mean())
        inside.append(error[tags > 0])
    whole, actors = (
        -10 * math.log10(float(e)) for e in (torch.stack(errors).mean(), torch.cat(inside).mean())
    )
    return rows, {"psnr": whole, "psnr_inside_actors": actors}


# What is kept of every clip


def row_of(number: int, result: Result) -> Row:
    """Return what is kept of a clip: what was asked, what the judge says, and the distance."""
    trial, verdict = result.trial, result.opinion.verdict
    return {
        "number": number,
        "prompt": trial.prompt,
        "story": trial.story,
        "pair": trial.characters is not None and len(trial.characters) > 1,
        "right": dict(zip(ASKED, result.right, strict=True)),
        "readable": result.opinion.readable,
        "ruin": round(result.opinion.ruin, 3),
        "nearest_db": None if result.distance is None else round(result.distance, 2),
        "likelihood": round(result.likelihood, 3),
        "seen": result.seen,
        "shown": {
            "light": str(verdict.light),
            "set": str(verdict.arrangement),
            "looks": {who: [look.colour, look.wear] for who, look in sorted(verdict.looks.items())},
        },
    }


class Book:
    """The rows of one part: a line of a file for each clip, and its pictures beside it.

    ``made_of`` says with what they were measured; rows of anything else are no part of it. Raises UsageError
    if the file holds such.
    """

    def __init__(self, out: Path, part: str, made_of: Mapping[str, Any]) -> None:
        self.path, self.folder = out / f"{part}.jsonl", out / part
        self._head = json.dumps({"made_of": dict(made_of)})
        out.mkdir(parents=True, exist_ok=True)
        lines = _lines_of(self.path) or [self._head]
        if lines[0] != self._head:
            raise UsageError(
                f"{self.path} was measured with other weights, or with other numbers of clips",
                "Name another folder (--out), or delete that file.",
            )
        self.rows = rows_of(self.path)
        self.path.write_text("".join(f"{line}\n" for line in lines), "utf-8")

    def add(self, row: Row, frames: Tensor) -> None:
        """Keep a clip: pictures uint8 (T, H, W, 3), then the row."""
        self.folder.mkdir(exist_ok=True)
        strip_of(frames).save(self.folder / f"{row['number']:03d}.jpg", quality=85)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(row)}\n")
        self.rows.append(row)


def _lines_of(path: Path) -> list[str]:
    """Return the whole lines of a file; none if it is not there. Of the last, half may have been written."""
    text = path.read_text("utf-8") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def rows_of(path: Path) -> list[Row]:
    """Return the rows that a file of a part has so far. Raises DamagedError."""
    try:
        rows: list[Row] = [json.loads(line) for line in _lines_of(path)[1:]]
    except ValueError:
        raise DamagedError(f"{path} is damaged", "Delete it, and measure that part again.") from None
    return rows


def head_of(path: Path) -> dict[str, Any]:
    """Return with what the rows in a file of a part were measured. Raises DamagedError."""
    try:
        return dict(json.loads(_lines_of(path)[0])["made_of"])
    except (ValueError, LookupError, TypeError):
        raise DamagedError(f"{path} is damaged", "Delete it, and measure that part again.") from None


def heads_of(out: Path, kept: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return with what each part was measured that is there, as far as that is known. Raises DamagedError.

    ``kept`` is what ``scores.json`` holds: the figures of parts that have no rows, and their heads.
    """
    figures = {name: kept["made_of"][name] for name in FIGURES if name in kept.get("made_of", {})}
    return figures | {name: head_of(path) for name in PARTS if rows_of(path := out / f"{name}.jsonl")}


def check_alike(heads: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Raise UsageError where a part was measured with something else than most: no table holds both.

    How many clips there are is each part's own matter.
    """
    for fact, other in OTHER.items():
        # A part that samples says its method only where it has one; older rows do not say their sampling.
        found = {
            name: json.dumps(head.get(fact, []))
            for name, head in heads.items()
            if fact in head or (name in SAMPLING and fact in ("sampling", "method"))
        }
        usual = max(found, key=lambda name: [*found.values()].count(found[name]), default="")
        for name in (name for name, value in found.items() if value != found[usual]):
            file = out / (TABLE if name in FIGURES else f"{name}.jsonl")
            delete = f" (delete {file} first)" if name not in FIGURES and file.exists() else ""
            raise UsageError(
                f"{file}: {name} is of {other} than {usual}, and no table holds both",
                f"Measure {name} with the same {fact}{delete}, or name another folder (--out).",
            )


def strip_of(frames: Tensor) -> Image.Image:
    """Return some pictures of a clip, uint8 (T, H, W, 3), side by side."""
    moments = torch.linspace(0, len(frames) - 1, STRIP).round().long()
    return Image.fromarray(frames[moments].transpose(0, 1).flatten(1, 2).contiguous().numpy())


def percentage(rows: Sequence[Row], asked: str) -> float | None:
    """Return how many of the rows in which something was asked are right in it, in percent."""
    answers = [row["right"][asked] for row in rows if row["right"][asked] is not None]
    return 100 * sum(answers) / len(answers) if answers else None


def unreadable(rows: Sequence[Row]) -> float | None:
    """Return how many clips nobody can tell, in percent."""
    return 100 * sum(not row["readable"] for row in rows) / len(rows) if rows else None


def shares(rows: Sequence[Row]) -> dict[str, float | int]:
    """Return the percentages of right characters, places, actions, looks and light, and the distances.

    Distances to the nearest true picture are in dB: the median over the clips, and the worst.
    """
    table: dict[str, float | int] = {"clips": len(rows)}
    found = {name: percentage(rows, name) for name in ASKED} | {"unreadable": unreadable(rows)}
    table |= {name: round(share, 1) for name, share in found.items() if share is not None}
    if distances := [row["nearest_db"] for row in rows if row["nearest_db"] is not None]:
        table["nearest_db"], table["worst_db"] = round(median(distances), 2), min(distances)
    return table


def drawn_looks(rows: Sequence[Row], only: str | None = None) -> dict[str, dict[str, float]]:
    """Return how often, in percent, each look was drawn that the prompts left open, where anybody can tell.

    ``colour`` and ``wear`` are numbers in each character's own list; ``only`` counts one character.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in (row for row in rows if row["readable"]):
        shown = row["shown"]
        counts["light"][shown["light"]] += 1
        counts["set"][shown["set"]] += 1
        for name, (colour, wear) in shown["looks"].items():
            who = Character(name)
            if only in (None, name):
                counts["colour"][str(COLOURS[who].index(colour))] += 1
                counts["wear"][str(wear_of(who).index(wear))] += 1
    return {
        name: {key: round(100 * n / count.total(), 1) for key, n in sorted(count.items())}
        for name, count in counts.items()
    }


def disagreements(part: str, rows: Sequence[Row]) -> list[str]:
    """Return the clips of which the judge and the distance say opposite things: to be looked at."""
    return [
        f"{part}/{row['number']:03d}"
        for row in rows
        if row["nearest_db"] is not None
        and (row["nearest_db"] < FAR if row["readable"] else row["nearest_db"] >= NEAR)
    ]


# The bars


@dataclass(frozen=True)
class Figure:
    """A number that was measured and the bar that it is held against; None where nothing was asked."""

    part: str
    clips: int
    what: str
    value: float | None
    bar: float
    unit: str = "%"
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Whether it is as it must be."""
        if self.value is None:
            return False
        return self.value >= self.bar if self.at_least else self.value <= self.bar


Measure = Callable[[str, Sequence[Row]], list[Figure]]


def drawing_figures(part: str, rows: Sequence[Row], action: float = 92) -> list[Figure]:
    """Hold characters, place and action against their bars, of one character and of pairs each by itself.

    ``action`` is the bar of one character's.
    """
    found = []
    for name, pair, bars in (("one character", False, (98, action)), ("pairs", True, (95, 85))):
        if some := [row for row in rows if row["pair"] is pair]:
            for asked, bar in zip(("characters", "action"), bars, strict=True):
                share = percentage(some, asked)
                found.append(Figure(part, len(some), f"right {asked}, {name}", share, bar))
    return [*found, Figure(part, len(rows), "right place", percentage(rows, "place"), 98)]


def story_figures(part: str, rows: Sequence[Row]) -> list[Figure]:
    """Hold the shipped stories against their bars, the distances to the nearest true pictures among them."""
    of_story: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        of_story[row["story"]].append(row["nearest_db"])
    worst = min((found for some in of_story.values() for found in some), default=None)
    middle = min((median(some) for some in of_story.values()), default=None)
    return [
        *drawing_figures(part, rows),
        Figure(part, len(rows), "nearest true picture, median of the worst story", middle, NEAR, "dB"),
        Figure(part, len(rows), "nearest true picture, worst scene", worst, FAR, "dB"),
    ]


def stated_figures(part: str, rows: Sequence[Row]) -> list[Figure]:
    """Hold stated looks against their bars."""
    return [
        Figure(part, len(rows), f"stated {name} right", percentage(rows, name), 95)
        for name in ("looks", "light")
    ]


def open_figures(part: str, rows: Sequence[Row]) -> list[Figure]:
    """Hold the looks that were left open against their bars: none too seldom, none too often."""
    drawn, found = drawn_looks(rows), []
    for name in ("colour", "wear"):
        each = [drawn.get(name, {}).get(str(index), 0.0) for index in range(4)] if rows else []
        found += [
            Figure(part, len(rows), f"least drawn {name} of four", min(each, default=None), 15),
            Figure(part, len(rows), f"most drawn {name} of four", max(each, default=None), 40, "%", False),
        ]
    return found


def judge_figures(part: str, rows: Sequence[Row]) -> list[Figure]:
    """Hold the judge against its bars, on true clips and on spoilt ones."""
    true, ruined = ([row for row in rows if row["kind"] == kind] for kind in ("true", "spoilt"))
    return [
        *(
            Figure(part, len(true), f"true clips, {name}", percentage(true, name), bar)
            for name, bar in (("characters", 99), ("place", 99), ("action", 97), ("looks", 98))
        ),
        Figure(part, len(true), "true clips called unreadable", unreadable(true), 1, "%", False),
        Figure(part, len(ruined), "spoilt clips called unreadable", unreadable(ruined), 95),
    ]


def summary(figures: Sequence[Figure]) -> str:
    """Return the table of all figures, their bars, and whether each is met."""
    rows = [("part", "clips", "what", "figure", "bar", "met")]
    for one in figures:
        value = "-" if one.value is None else f"{one.value:.1f} {one.unit}"
        bar = f"{'>=' if one.at_least else '<='} {one.bar:g} {one.unit}"
        rows.append((one.part, str(one.clips), one.what, value, bar, "yes" if one.met else "NO"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def sorted_by_eye(path: Path, out: Path) -> str:
    """Compare the judge with a person: lines of ``path`` are "PART/NUMBER readable" or "... unreadable".

    Raises UsageError for a clip that nobody has measured, or a line that says something else.
    """
    rows = {
        f"{book.stem}/{row['number']:03d}": row
        for book in sorted(out.glob("*.jsonl"))
        for row in rows_of(book)
    }
    called: dict[str, list[bool]] = {"readable": [], "unreadable": []}
    for line in path.read_text("utf-8").splitlines():
        name, _, says = line.strip().partition(" ")
        if name and (name not in rows or says not in called):
            raise UsageError(
                f"{path}: {line!r} makes no sense", f"Lines are as in: stories/017 unreadable; of {out}."
            )
        if name:
            called[says].append(not rows[name]["readable"])
    return "; ".join(
        f"of {len(found)} that a person calls {says}, the judge calls {sum(found)} unreadable"
        for says, found in called.items()
    )


# The text-image encoder


def rivals(rng: Random, clip: Clip, attribute: str) -> list[str]:
    """Return up to 19 captions that are wrong of a clip in one thing only.

    Going through a door always names the vehicle, and so the place: among captions that leave
    the place open it would be no fair rival. Nor is seeing the ball, of a clip that has one.
    """
    who, place, action = tuple(a.character for a in clip.actors), clip.place, clip.action
    wrong: list[Clip] = []
    if attribute == "place":
        options = [(other, who, action) for other in Place if other is not place]
    elif attribute == "characters":
        casts = [(c,) for c in Character] if len(who) == 1 else [*PAIRS, *(p[::-1] for p in PAIRS)]
        options = [(place, cast, action) for cast in casts if set(cast) != set(who)]
    else:
        unfair = set() if action in DOOR_ACTIONS else set(DOOR_ACTIONS)
        unfair |= {Action.SEE_BALL} if clip.ball else set()
        options = [(place, who, other) for other in Action if other is not action and other not in unfair]
    for option in options:
        try:
            wrong.append(stage_clip(rng, *option))
        except (ValueError, KeyError):
            continue
    kind: CaptionKind = "action" if attribute == "action" else "scene"
    said = list(dict.fromkeys(caption(rng, w, kind) for w in wrong for _ in range(WRONG_WORDINGS)))
    return rng.sample(said, min(RANKED - 1, len(said)))


@torch.inference_mode()
def ranking(scorer: Scorer, count: int, seed: int) -> dict[str, float | int]:
    """Return how often the right caption of a true clip comes first among 20, per attribute."""
    rng = Random(seed)
    wins = {"characters": 0, "place": 0, "action": 0}
    for clip, images, _ in true_clips(count, seed):
        seen = scorer.embed_pictures(images[::3].permute(0, 3, 1, 2).float() / 127.5 - 1).mean(0)
        for attribute in wins:
            right = caption(rng, clip, "action" if attribute == "action" else "scene")
            scores = scorer.embed_texts([right, *rivals(rng, clip, attribute)]) @ seen
            wins[attribute] += int(scores.argmax() == 0)
    return {"clips": count} | {name: round(100 * won / count, 1) for name, won in wins.items()}


class Watched(MochiAdapter):
    """An adapter that keeps the guided estimates x̂0 of one clip's denoising."""

    def watch(self, guidance: float) -> None:
        """Begin to keep estimates."""
        self.guidance, self.estimates = guidance, list[Tensor]()

    def predict(self, requests: Sequence[Request]) -> Iterator[list[Tensor]]:
        """Predict as ever, and note what picture the guided velocity means."""
        for (x, sigma, *_), velocities in zip(requests, super().predict(requests), strict=True):
            without, with_text = velocities
            self.estimates.append(denoised(x, without + self.guidance * (with_text - without), sigma))
            yield velocities


@torch.inference_mode()
def rising_scores(
    studio: Studio, scorer: Scorer, trials: Sequence[Trial], every: int = 3, steps: int | None = None
) -> list[float]:
    """Return the mean score of x̂0 against its prompt at every third step, over some trials."""
    own = studio.adapter
    watched = Watched(studio.spec, own.device, own.parts)
    rows = []
    for index, trial in enumerate(trials):
        watched.watch(studio.plan.settings.guidance)
        studio.latents(trial.prompt, SEED + index, watched, steps)
        text = scorer.embed_texts([trial.prompt])[0]
        row = []
        for estimate in watched.estimates[::every]:
            frames = own.decode(estimate)[::4]
            seen = scorer.embed_pictures(frames.permute(0, 3, 1, 2).float() / 127.5 - 1)
            row.append(float((seen @ text).mean()))
        rows.append(row)
    return [round(float(mean), 4) for mean in torch.tensor(rows).mean(0)]


def worst_sheet(rows: Sequence[tuple[Path, Row]], path: Path, count: int = 20) -> None:
    """Write the clips that the judge finds least like their prompts, with prompt and verdict.

    ``rows`` have the file of each clip's pictures before them.
    """
    worst = sorted(rows, key=lambda found: found[1]["likelihood"])[:count]
    text_height = 26
    width, height = STRIP * WIDTH, HEIGHT + text_height
    page = Image.new("RGB", (width, height * len(worst)), "white")
    pen = ImageDraw.Draw(page)
    for index, (file, row) in enumerate(worst):
        top = index * height
        pen.text((4, top + 1), f"{file.parent.name}/{file.stem}: {row['prompt']}", "black")
        pen.text((4, top + 13), f"seen: {row['seen']}, nearest {row['nearest_db']} dB", "red")
        with Image.open(file) as strip:
            page.paste(strip, (0, top + text_height))
    page.save(path)


@dataclass(frozen=True)
class Part:
    """Prompts that are sampled, ``clips`` of them with so many ``seeds`` each, and what they are held to."""

    trials: Callable[[int], list[Trial]]
    clips: int
    figures: Measure | None = None
    seeds: int = 1


SAMPLED: dict[str, Part] = {
    "stories": Part(lambda count: story_trials()[:count], 101, story_figures, seeds=3),
    "crossed": Part(lambda count: random_trials(any_example, count, SEED), 200, drawing_figures),
    "pairs": Part(lambda count: random_trials(pair_example, count, SEED), 200, drawing_figures),
    "untaught": Part(
        lambda count: random_trials(held_out_example, count, SEED), 200, partial(drawing_figures, action=75)
    ),
    "open": Part(lambda count: open_trials(count, SEED), 400, open_figures),
    "stated": Part(lambda count: random_trials(stated_example, count, SEED), 200, stated_figures),
    "scene": Part(lambda count: alone_trials("scene")[:count], 101),
    "action": Part(lambda count: alone_trials("action")[:count], 101),
}
TRUE_CLIPS = {"judge": 400, "codec": 100, "scorer": 400, "rising": 12}
PARTS = (*TRUE_CLIPS, *SAMPLED)
SAMPLING = ("rising", *SAMPLED)
FIGURES = ("codec", "scorer", "rising")  # parts whose figures alone are kept, in `TABLE`
TABLE = "scores.json"
OTHER = {  # of what figures of one table must not be, in words
    "weights": "other weights",
    "judge": "another judge",
    "sampling": "another sampling",
    "method": "another method",
}
BARS: dict[str, Measure] = {"judge": judge_figures} | {
    name: part.figures for name, part in SAMPLED.items() if part.figures
}


def main() -> None:
    """Read the command line and evaluate; what is missing or damaged is said without a traceback."""
    try:
        evaluate(parse())
    except StoryreelError as error:
        raise SystemExit(str(error)) from None


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--part", action="append", choices=PARTS, dest="parts", help="this alone; may be given again"
    )
    parser.add_argument("--weights", type=Path, default=MINI.weights)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clips", type=int, help="of each part, instead of as many as its bars are for")
    parser.add_argument(
        "--method", action="append", default=[], metavar="KEY=VALUE", help="how prompts are weighted"
    )
    parser.add_argument("--summary", action="store_true", help="measure nothing; only say what is there")
    parser.add_argument("--sorted", type=Path, help="clips sorted by eye, to hold the judge against")
    parser.add_argument("--out", type=Path, default=Path("scores"), help="what is there goes on")
    return parser.parse_args()


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate the weights, part by part, and print which bars are met."""
    out: Path = options.out
    table = out / TABLE
    kept: dict[str, Any] = json.loads(table.read_text("utf-8")) if table.exists() else {}
    if not options.summary and options.sorted is None:
        out.mkdir(parents=True, exist_ok=True)
        _measure(options, out, kept)
    heads = heads_of(out, kept)
    check_alike(heads, out)
    books = {name: rows for name in PARTS if (rows := rows_of(out / f"{name}.jsonl"))}
    for name in {*PARTS, "drawn"} - {*FIGURES, *books}:
        kept.pop(name, None)  # of rows that somebody has deleted
    kept["made_of"] = heads
    for name, rows in books.items():
        kept[name] = shares([row for row in rows if row.get("kind") != "spoilt"])
        if name == "open":
            kept["drawn"] = {who: drawn_looks(rows, who) for who in Character} | {"all": drawn_looks(rows)}
    figures = [one for name, measure in BARS.items() for one in measure(name, books.get(name, []))]
    kept["bars"] = [vars(one) | {"met": one.met} for one in figures]
    kept["look_at"] = [clip for name, rows in books.items() for clip in disagreements(name, rows)]
    out.mkdir(parents=True, exist_ok=True)
    table.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
    drawn = [
        (out / name / f"{row['number']:03d}.jpg", row)
        for name in books.keys() & SAMPLED.keys()
        for row in books[name]
    ]
    if drawn:
        worst_sheet(drawn, out / "worst.png")
    for name in PARTS:
        if name in kept:
            print(f"{name}: {json.dumps(kept[name])}")
    if unknown := [name for name in FIGURES if name in kept and name not in heads]:
        print(f"with what {', '.join(unknown)} was measured is not known: measure it again")
    print(summary(figures))
    if kept["look_at"]:
        print(f"judge and distance disagree, so look: {', '.join(kept['look_at'])}")
    if options.sorted is not None:
        print(sorted_by_eye(options.sorted, out))


def _measure(options: argparse.Namespace, out: Path, kept: dict[str, Any]) -> None:
    """Measure what is asked for and not there yet; what no file of rows is kept of goes into ``kept``."""
    parts = options.parts or list(PARTS)
    for name in parts:
        kept.get("made_of", {}).pop(name, None)  # it is measured anew
    device, folder = torch.device(options.device), options.weights
    studio = cache(
        lambda: Studio(folder, device, options.method)
    )  # the judge can be measured before there are weights
    scorer = cache(lambda: Scorer.load(folder / "scorer", device))
    for name in parts:
        clips = options.clips or (SAMPLED[name].clips if name in SAMPLED else TRUE_CLIPS[name])
        made_of = _made_of(name, options, clips)
        check_alike({**heads_of(out, kept), name: made_of}, out)
        if name == "judge":
            judge = load_judge()
            book = Book(out, name, made_of)
            for row, images in true_rows(judge, clips, len(book.rows)):
                book.add(row, images)
        elif name == "codec":
            rows, psnr = codec_results(studio(), clips)
            kept[name] = shares(rows) | {key: round(value, 2) for key, value in psnr.items()}
        elif name == "scorer":
            kept[name] = ranking(scorer(), clips, SEED)
        elif name == "rising":
            kept[name] = rising_scores(studio(), scorer(), story_trials()[:clips])
        else:
            _draw(studio(), name, Book(out, name, made_of), clips)
        if name in FIGURES:
            kept.setdefault("made_of", {})[name] = made_of


def _made_of(name: str, options: argparse.Namespace, clips: int) -> dict[str, Any]:
    """Return with what a part is measured: all that its figures depend on. Raises MissingError."""
    made_of: dict[str, Any] = {}
    if name != "judge":  # which can be measured before there are weights
        sums = options.weights / CHECKSUMS
        if not sums.is_file():
            raise MissingError(f"weights with their {CHECKSUMS} are not here: {sums}", how_to_restore(sums))
        made_of["weights"] = file_hash(sums)
    if name not in ("scorer", "rising"):
        made_of["judge"] = file_hash(WEIGHTS)
    made_of["clips"] = clips
    if name in SAMPLING:
        made_of["sampling"] = [MINI.steps, MINI.guidance, MINI.renoises]
        made_of |= {"method": options.method} if options.method else {}
    return made_of


def _draw(studio: Studio, name: str, book: Book, clips: int) -> None:
    """Sample and judge every clip of a part that is not there yet."""
    part = SAMPLED[name]
    trials = part.trials(clips)
    for number in range(len(book.rows), part.seeds * len(trials)):
        seed, index = divmod(number, len(trials))
        trial = trials[index]
        frames = studio.sample(trial.prompt, SEED + 1000 * seed + index, told=trial.told)
        book.add(row_of(number, judged(studio.judge, trial, frames)), frames)
        if (number + 1) % 20 == 0:
            print(f"{name}: {number + 1} of {part.seeds * len(trials)}", flush=True)


if __name__ == "__main__":
    main()
