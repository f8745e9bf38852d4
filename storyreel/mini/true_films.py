"""What the judge says of films that the world draws itself: a model that draws perfectly would have no more.

    python -m storyreel.mini.true_films stories/nyc.yaml stories/dc.yaml --seeds 3

Every story is drawn twice, with the lengths that it is rendered with. Kept: everybody looks alike throughout,
light and set stay as long as the place does, and there each scene goes on from the pose that the one before
ended with. Apart: every scene for itself, with looks, light and set by chance, as hard joins of a perfect
model would be. Where the place changes, both cut.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from storyreel.errors import StoryreelError, UsageError
from storyreel.evaluation.kept import looks_kept, places_kept
from storyreel.evaluation.verdicts import FilmVerdict
from storyreel.story.plan import Plan, Segment
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import load_story

from .codec import FRAMES_PER_LATENT
from .lessons import FPS, HEIGHT, TURN, WIDTH
from .plots import Cast, Lesson, scenes_by_words
from .verdicts import judge_film
from .world import (
    DOOR_ACTIONS,
    LOOKS,
    TEMPO,
    ByteArray,
    Character,
    Clip,
    Look,
    Place,
    Stage,
    comes_in,
    stage_clip,
)

ROWS = ("characters", "place", "action", "action_first", "action_last")
KEPT = ("colour_kept", "wear_kept", "look_kept", "light_kept", "arrangement_kept")


def lessons_of(segments: Sequence[Segment]) -> list[tuple[Lesson, Cast]]:
    """Return what each scene is in the shipped stories. Raises UsageError for one that is in none."""
    try:
        return [scenes_by_words()[one.scene, one.action] for one in segments]
    except KeyError as error:
        words_of = " / ".join(error.args[0])
        raise UsageError(f"no shipped story has {words_of!r}", "Name shipped stories alone.") from None


def true_film(plan: Plan, rng: Random, apart: bool = False) -> Iterator[ByteArray]:
    """Yield the pictures (T, H, W, 3) of every scene; ``apart``: each scene for itself."""
    looks: dict[Character, Look] = {}
    before: Stage | None = None
    end = 0.0  # seconds into what is before
    for segment, (lesson, cast) in zip(plan.segments, lessons_of(plan.segments), strict=True):
        who = lesson.who(cast)
        for one in who:
            if apart or one not in looks:
                looks[one] = rng.choice(LOOKS[one])
        goes_on = not apart and plan.goes_on(segment) and before is not None
        backdrop = before.clip.backdrop if goes_on and before else None
        clip = stage_clip(
            rng,
            lesson.place,
            who,
            lesson.shows,
            lesson.ball,
            [looks[one] for one in who],
            backdrop.light if backdrop else None,
            backdrop.arrangement if backdrop else None,
        )
        first = 0
        if goes_on and before and not comes_in_by_a_door(clip):
            clip, first = _after(rng, clip, before, end), FRAMES_PER_LATENT + 1
        before = Stage(clip, WIDTH, HEIGHT)
        times = [(first + frame) / FPS for frame in range(segment.frames)]
        yield np.stack([before.frame(time)[0] for time in times])
        end = times[-1]


def comes_in_by_a_door(clip: Clip) -> bool:
    """Tell whether somebody comes in who was nowhere before."""
    return clip.action in DOOR_ACTIONS and comes_in(clip.action, clip.place is Place.SUBWAY_TRAIN)


def _after(rng: Random, clip: Clip, before: Stage, end: float) -> Clip:
    """Return a clip as one that goes on from what another one shows ``end`` seconds into it.

    As in the lessons: of the former one a latent frame is shown, and then it turns.
    """
    former, clock = before.settled(end)
    return replace(
        clip, former=former, began=clock - FRAMES_PER_LATENT / FPS * TEMPO, turn=rng.uniform(*TURN)
    )


def verdict_on(plan: Plan, seed: int, apart: bool = False) -> FilmVerdict:
    """Draw a film, and judge it."""
    frames = true_film(plan, Random(f"{seed} {plan.title}"), apart)
    seams = [segment.index for segment in plan.segments if plan.goes_on(segment)]
    chunks: Iterator[Tensor] = map(torch.from_numpy, frames)
    verdict = judge_film(plan.segments, seams, chunks)
    assert verdict is not None  # of shipped stories
    return verdict


def shares(verdict: FilmVerdict) -> dict[str, float]:
    """Return the means over a film's scenes, in percent; of ``jump`` over its seams."""
    found: dict[str, list[float]] = {
        name: [100.0 * value for scene in verdict.scenes if (value := getattr(scene, name)) is not None]
        for name in ROWS
    }
    kept: list[Mapping[str, float]] = [*looks_kept(verdict.seen), *places_kept(verdict.seen)]
    found |= {name: [scene[name] for scene in kept if name in scene] for name in KEPT}
    found["jump"] = [seam.jump for seam in verdict.seams if seam.jump is not None]
    return {name: fmean(values) for name, values in found.items() if values}


def main() -> None:
    """Print a line for every measure: means over films."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stories", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    try:
        plans = [make_plan(load_story(path), path.stem, Overrides()) for path in options.stories]
        films = {
            name: [
                shares(verdict_on(plan, seed, name == "apart"))
                for plan in plans
                for seed in range(options.seeds)
            ]
            for name in ("kept", "apart")
        }
    except StoryreelError as error:
        raise SystemExit(str(error)) from None
    print(f"{'':18}" + "".join(f"{name:>8}" for name in films))
    for row in (*ROWS, *KEPT, "jump"):
        means = [
            fmean(values) if (values := [film[row] for film in those if row in film]) else float("nan")
            for those in films.values()
        ]
        print(f"{row:18}" + "".join(f"{mean:8.1f}" for mean in means))


if __name__ == "__main__":
    main()
