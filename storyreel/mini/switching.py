"""When does the model decide what is being done? The fact `decides` of its entry in `specs.py`.

    python -m storyreel.mini.switching --clips 20

A clip is denoised with one action until some step, and with another one from there on; the judge says which
of the two it shows. Where the first action wins instead of the second, the model has decided.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from storyreel.denoise.loop import begin, denoise
from storyreel.denoise.prompts import Prompts, PromptWriter
from storyreel.models.specs import MINI_WEIGHTS
from storyreel.story.plan import derived_seed, joined_prompt

from .evaluate import Studio
from .lessons import crossed_clip
from .world import Action, Character, Clip, caption, plain_telling, stage_clip

SEED = 9_100_003
CLIPS = 20


class Switching(PromptWriter):
    """Tells one text until ``at`` steps are done, then another."""

    at = 0
    later: Prompts

    def weigh(
        self, prompts: Prompts, estimate: Tensor, sigma: float, lower: float, step: int, ending: Tensor | None
    ) -> None:
        """Change the text, instead of its weights."""
        if step == self.at:
            prompts.text = self.later.text


def switched(studio: Studio, first: str, second: str, seed: int, at: int) -> Tensor:
    """Return a clip's pictures that was told ``first`` for ``at`` steps, then ``second``."""
    plan, adapter = studio.plan, studio.adapter
    segment = replace(plan.segments[0], seed=derived_seed(seed, 0))
    writer = Switching(adapter, plan, None)
    writer.at, writer.later = at, Prompts(adapter.encode(second))
    begun = begin(adapter, plan, segment, Prompts(adapter.encode(first if at else second)))
    (done,) = denoise(adapter, plan.settings, [segment], writer, lambda _: begun, lambda _: None)
    return adapter.decode(done.x)


def two_clips(rng: Random) -> tuple[Clip, Clip]:
    """Draw one character at one place, doing two things."""
    clip = crossed_clip(rng, (rng.choice(tuple(Character)),))
    while True:
        other = crossed_clip(rng, clip.cast)
        if other.action is not clip.action and other.ball == clip.ball:
            break
    looks = [actor.look for actor in clip.actors]
    try:
        return clip, stage_clip(rng, clip.place, clip.cast, other.action, other.ball, looks)
    except ValueError:  # that cannot be done there
        return two_clips(rng)


def told(rng: Random, clip: Clip) -> str:
    """Return a clip's joined prompt, looks and light left open."""
    telling = plain_telling(clip)
    return joined_prompt(*(caption(rng, clip, kind, telling) for kind in ("scene", "action")))


def main() -> None:
    """Print who wins, by the step of the change."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=MINI_WEIGHTS)
    parser.add_argument("--clips", type=int, default=CLIPS)
    options = parser.parse_args()
    studio, rng = Studio(options.weights, torch.device("cpu")), Random(SEED)
    steps = studio.plan.settings.steps
    sigmas = studio.adapter.sigmas(steps, (1, 1, 2, 2, 2))
    changes = [0, *range(2, steps - 2, 1), steps]
    won: dict[int, Counter[str]] = {at: Counter() for at in changes}
    for index in range(options.clips):
        first, second = two_clips(rng)
        prompts = told(rng, first), told(rng, second)
        seen = {at: action_of(studio, prompts, SEED + index, at) for at in (0, steps)}
        if (seen[steps], seen[0]) != (first.action, second.action):
            continue  # one of the two is beyond the model: nothing can be said
        for at in changes:
            action = seen.get(at) or action_of(studio, prompts, SEED + index, at)
            won[at][
                "first" if action is first.action else "second" if action is second.action else "other"
            ] += 1
        print(f"{index + 1} of {options.clips}: {table(won, sigmas)}", flush=True)


def action_of(studio: Studio, prompts: tuple[str, str], seed: int, at: int) -> Action:
    """Return what the judge sees somebody doing."""
    return studio.judge.judge(switched(studio, *prompts, seed, at)).verdict.action


def table(won: dict[int, Counter[str]], sigmas: Sequence[float]) -> str:
    """Return who wins at each noise level."""
    return "; ".join(
        f"σ {sigmas[at]:.2f}: {counts['first']} first, {counts['second']} second, {counts['other']} other"
        for at, counts in won.items()
    )


if __name__ == "__main__":
    main()
