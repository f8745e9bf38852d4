"""How well the embedded model draws what it is told: the figures of the model card.

    python -m storyreel.mini.evaluate --out scores

Every clip is sampled plainly, one prompt and no neighbours, with the default settings. The judge
says what it sees, and `nearest` how far that is from what the world draws; `scores/scores.json` holds
the wrong ones, `scores/worst.png` the clips that the judge finds least like their prompts.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import median

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from storyreel.denoise.loop import denoised, sample
from storyreel.errors import StoryreelError
from storyreel.models.base import Request
from storyreel.models.loading import load_adapter
from storyreel.models.mochi import MochiAdapter
from storyreel.models.scorer import Scorer
from storyreel.models.specs import MODELS
from storyreel.story.plan import Plan, derived_seed, joined_prompt
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import Story

from .judge import ACTIONS, CASTS, PLACES, Judge, Opinion, load_judge, truth
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

SEED = 9_000_011  # of true clips and random prompts: neither the model's nor the judge's
FRAMES = 25
RANKED = 20
WRONG_WORDINGS = 3
STORY_SHARE = 0.6  # of true clips


@dataclass(frozen=True)
class Trial:
    """A prompt and what a clip of it must show; None where the prompt leaves it open.

    ``looks`` holds what is stated of each character, "" what is not. ``scene`` is what the world draws
    for it, where that is certain.
    """

    prompt: str
    characters: frozenset[Character] | None
    place: Place | None
    action: Action | None
    looks: Mapping[Character, Look] = field(default_factory=dict)
    light: Light | None = None
    scene: Scene | None = None


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
    for plot, cast in STORIES.values():
        for lesson in PLOTS[plot]:
            who = (cast.first, cast.second) if lesson.pair else (cast.first,)
            prompt = joined_prompt(words(lesson.scene, cast), words(lesson.action, cast))
            scene = Scene(lesson.place, who, lesson.shows, lesson.ball)
            trials.append(Trial(prompt, frozenset(who), lesson.place, lesson.shows, scene=scene))
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
        Scene(clip.place, clip.cast, clip.action, clip.ball),
    )


def pair_example(rng: Random) -> Example:
    """Draw a crossed lesson with two characters."""
    while len((example := crossed_example(rng)).clip.actors) < 2:
        pass
    return example


def open_trials(count: int, seed: int) -> list[Trial]:
    """Return prompts that state no look, as many of each character."""
    rng, trials = Random(seed), []
    characters = tuple(Character)
    for index in range(count):
        clip = crossed_clip(rng, (characters[index % len(characters)],))
        telling = plain_telling(clip)
        scene, action = (caption(rng, clip, kind, telling) for kind in ("scene", "action"))
        trials.append(Trial(joined_prompt(scene, action), frozenset(clip.cast), clip.place, clip.action))
    return trials


class Studio:
    """Samples single clips from the model, and lets the judge see them."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.spec = replace(MODELS["mini"], weights=weights)
        adapter = load_adapter(self.spec, device)
        assert isinstance(adapter, MochiAdapter)
        self.adapter = adapter
        self.judge: Judge = load_judge()
        self.plan: Plan = make_plan(
            Story.model_validate({"scenes": [["a scene", "an action"]]}),
            "trial",
            Overrides(without=frozenset({"all"})),
        )

    def sample(self, prompt: str, seed: int, steps: int | None = None) -> Tensor:
        """Return a clip of a prompt, uint8 (T, H, W, 3)."""
        return self.adapter.decode(self.latents(prompt, seed, self.adapter, steps))

    def latents(self, prompt: str, seed: int, adapter: MochiAdapter, steps: int | None = None) -> Tensor:
        """Denoise one prompt by itself."""
        plan = self.plan
        if steps is not None:
            plan = replace(plan, settings=replace(plan.settings, steps=steps))
        segment = replace(plan.segments[0], blended=False, seed=derived_seed(seed, 0))
        text = adapter.encode(prompt)
        return sample(adapter, plan, segment, text)

    def try_all(self, trials: Sequence[Trial], seed: int, note: str) -> list[Result]:
        """Sample and judge every trial."""
        results = []
        for index, trial in enumerate(trials):
            results.append(judged(self.judge, trial, self.sample(trial.prompt, seed + index)))
            if (index + 1) % 20 == 0:
                print(f"{note}: {index + 1} of {len(trials)}", flush=True)
        return results


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
        if getattr(look, part)
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
            clip = crossed_example(rng).clip
        images, tags = draw_clip(clip, FRAMES, FPS, WIDTH, HEIGHT)
        yield clip, torch.from_numpy(images), torch.from_numpy(tags)


def of_clip(clip: Clip) -> Trial:
    """Return the trial whose right answers are what a true clip shows."""
    true = truth(clip)
    return Trial("", true.characters, clip.place, clip.action, true.looks, true.light)


def judge_results(judge: Judge, count: int) -> list[Result]:
    """Judge true clips: what the judge itself is worth."""
    return [judged(judge, of_clip(clip), images) for clip, images, _ in true_clips(count, SEED)]


@torch.inference_mode()
def codec_results(studio: Studio, count: int) -> tuple[list[Result], dict[str, float]]:
    """Judge true clips that went through the codec; also PSNR, whole and inside the actors."""
    results, errors, inside = [], [], []
    for clip, images, tags in true_clips(count, SEED):
        frames = studio.adapter.decode(studio.adapter.encode_pictures(images))
        results.append(judged(studio.judge, of_clip(clip), frames))
        error = (frames.float() - images.float()).square().mean(-1) / 255**2
        errors.append(error.mean())
        inside.append(error[tags > 0])
    whole, actors = (
        -10 * math.log10(float(e)) for e in (torch.stack(errors).mean(), torch.cat(inside).mean())
    )
    return results, {"psnr": whole, "psnr_inside_actors": actors}


def shares(results: Sequence[Result]) -> dict[str, float | int]:
    """Return the percentages of right characters, places, actions, looks and light, and the distances.

    Distances to the nearest true picture are in dB: the median over the clips, and the worst.
    """
    row: dict[str, float | int] = {"clips": len(results)}
    for index, name in enumerate(("characters", "place", "action", "looks", "light")):
        asked = [r.right[index] for r in results if r.right[index] is not None]
        if asked:
            row[name] = round(100 * sum(map(bool, asked)) / len(asked), 1)
    row["unreadable"] = round(100 * sum(not r.opinion.readable for r in results) / max(1, len(results)), 1)
    if distances := [r.distance for r in results if r.distance is not None]:
        row["nearest_db"], row["worst_db"] = round(median(distances), 2), round(min(distances), 2)
    return row


def drawn_looks(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Return how often, in percent, each look was drawn that the prompts left open."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("light", "set", "wear", "colour")}
    for result in results:
        verdict = result.opinion.verdict
        counts["light"][verdict.light] += 1
        counts["set"][str(verdict.arrangement)] += 1
        for who, look in verdict.looks.items():
            counts["wear"][str(wear_of(who).index(look.wear))] += 1
            counts["colour"][str(COLOURS[who].index(look.colour))] += 1
    return {
        name: {key: round(100 * n / count.total(), 1) for key, n in sorted(count.items())}
        for name, count in counts.items()
    }


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


def worst_sheet(results: Sequence[Result], path: Path, count: int = 20, columns: int = 6) -> None:
    """Write the clips that the judge finds least like their prompts, with prompt and verdict."""
    worst = sorted(results, key=lambda r: r.likelihood)[:count]
    text_height = 26
    width, height = columns * WIDTH, HEIGHT + text_height
    page = Image.new("RGB", (width, height * len(worst)), "white")
    pen = ImageDraw.Draw(page)
    for row, result in enumerate(worst):
        pen.text((4, row * height + 1), result.trial.prompt, "black")
        pen.text((4, row * height + 13), f"seen: {result.seen}", "red")
        for column, t in enumerate(torch.linspace(0, len(result.frames) - 1, columns).round().long()):
            frame = Image.fromarray(result.frames[t].numpy())
            page.paste(frame, (column * WIDTH, row * height + text_height))
    page.save(path)


PARTS = (
    "judge",
    "codec",
    "scorer",
    "rising",
    "stories",
    "random",
    "pairs",
    "unseen",
    "open",
    "scene",
    "action",
)


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
    parser.add_argument("parts", nargs="*", help=f"some of: {', '.join(PARTS)}; without, all")
    parser.add_argument("--weights", type=Path, default=MODELS["mini"].weights)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    clips = "true clips for judge and scorer; the codec gets a quarter"
    parser.add_argument("--clips", type=int, default=400, help=clips)
    parser.add_argument("--prompts", type=int, default=100, help="random and unseen prompts, each")
    parser.add_argument("--seeds", type=int, default=1, help="clips of each prompt")
    parser.add_argument("--out", type=Path, default=Path("scores"))
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate the weights, print a row a part, and keep everything."""
    parts = options.parts or list(PARTS)
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    studio = Studio(options.weights, device)
    scorer = Scorer.load(options.weights / "scorer", device) if {"scorer", "rising"} & set(parts) else None
    table: dict[str, object] = {}
    sampled: list[Result] = []
    trials: dict[str, Callable[[], list[Trial]]] = {
        "stories": story_trials,
        "random": lambda: random_trials(crossed_example, options.prompts, SEED),
        "pairs": lambda: random_trials(pair_example, options.prompts, SEED),
        "unseen": lambda: random_trials(held_out_example, options.prompts, SEED),
        "open": lambda: open_trials(options.prompts, SEED),
        "scene": lambda: alone_trials("scene"),
        "action": lambda: alone_trials("action"),
    }
    for part in parts:
        if part == "judge":
            table[part] = shares(judge_results(studio.judge, options.clips))
        elif part == "codec":
            results, psnr = codec_results(studio, max(1, options.clips // 4))
            table[part] = shares(results) | {key: round(value, 2) for key, value in psnr.items()}
        elif part == "scorer":
            assert scorer is not None
            table[part] = ranking(scorer, options.clips, SEED)
        elif part == "rising":
            assert scorer is not None
            table[part] = rising_scores(studio, scorer, story_trials()[:12])
        else:
            results = [
                result
                for index in range(options.seeds)
                for result in studio.try_all(trials[part](), SEED + 1000 * index, part)
            ]
            table[part] = shares(results)
            if part == "open":
                table["drawn"] = drawn_looks(results)
                print("drawn", json.dumps(table["drawn"]), flush=True)
            sampled += results
            wrong = [r for r in results if False in r.right]
            table[f"{part}_wrong"] = [
                {"prompt": r.trial.prompt, "seen": r.seen, "right": r.right, "nearest_db": r.distance}
                for r in wrong
            ]
        if part in table:
            print(part, json.dumps(table[part]), flush=True)
        (options.out / "scores.json").write_text(json.dumps(table, indent=2) + "\n")
    if sampled:
        worst_sheet(sampled, options.out / "worst.png")


if __name__ == "__main__":
    main()
