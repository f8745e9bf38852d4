"""How much of its lead does the model take up? Of a look it should be all, of a pose little.

    python -m storyreel.mini.copying --clips 32

Two clips differ in the colour of whom they show alone, or in the pose that they begin with. The model sees
the first latent frame of either, as a segment sees its lead, and behind it both times the mean of the two,
with the same noise. So its two estimates differ by what they take of the lead. The same of a shot that begins
behind a portrait: the character's cells of a picture of it elsewhere, in the one or the other colour.
A still of the lead would take all of colour and pose: neither figure says anything without the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from storyreel.denoise.loop import denoised
from storyreel.models.base import Request
from storyreel.models.specs import MINI_WEIGHTS
from storyreel.story.plan import joined_prompt

from .codec import FRAMES_PER_LATENT, PIXELS_PER_LATENT
from .evaluate import Studio
from .lessons import FPS, HEIGHT, WIDTH, going_on, portrait, story_example
from .plots import PLOTS, STORIES
from .world import COLOURS, Clip, Look, draw_clip

SEED = 9_200_003
CLIPS = 32
FRAMES = 9  # latent frames, of which the first is the lead
LATER = 5  # from this one on the pose of the lead is over
LEVELS = (1.0, 0.94, 0.88, 0.81)  # in these a model that begins with noise settles what there is to see
THERE = 0.2  # of the largest square difference: cells that differ as much show the character


def scenes(rng: Random) -> Iterator[tuple[Clip, str]]:
    """Yield clips of one character that go on from another pose, with prompts that leave looks open."""
    while True:
        plot, cast = STORIES[rng.choice(sorted(STORIES))]
        example = story_example(rng, rng.choice(PLOTS[plot]), cast)
        clip, telling = going_on(rng, example.clip), example.telling
        states = telling is not None and any(look.colour or look.wear for look in telling.stated)
        if clip.former is not None and len(clip.actors) == len(clip.former.actors) == 1 and not states:
            yield clip, joined_prompt(example.scene, example.action)


def in_another_colour(rng: Random, clip: Clip) -> Clip:
    """Return a clip of one character, and what it goes on from, with another coat or top."""
    (actor,) = clip.actors
    colours = [colour for colour in COLOURS[actor.character] if colour != actor.look.colour]
    look = Look(rng.choice(colours), actor.look.wear)

    def dressed(clip: Clip) -> Clip:
        return replace(clip, actors=tuple(replace(actor, look=look) for actor in clip.actors))

    assert clip.former is not None
    return replace(dressed(clip), former=dressed(clip.former))


def from_another_pose(rng: Random, clip: Clip) -> Clip:
    """Return a clip of one character that goes on from another action of the same one."""
    assert clip.former is not None
    while True:
        other = going_on(rng, replace(clip, former=None)).former
        if other is not None and other.cast == clip.cast and other.action is not clip.former.action:
            return replace(clip, former=other)


def latents_of(studio: Studio, clip: Clip) -> Tensor:
    """Return a clip's latents (1, C, FRAMES, H, W), without the codec's first: no scene ends in one."""
    images, _ = draw_clip(clip, FRAMES_PER_LATENT * FRAMES + 1, FPS, WIDTH, HEIGHT)
    return studio.adapter.encode_pictures(torch.from_numpy(images))[:, :, 1:]


def where_apart(apart: Tensor) -> Tensor:
    """Return in which cells of every frame two clips differ: weights 0 or 1 (1, 1, F, H, W)."""
    squares = apart.square().sum(1, keepdim=True)
    return (squares > THERE * squares.amax((3, 4), keepdim=True)).to(apart)


def portraits_of(studio: Studio, seed: int, clip: Clip, other: Clip) -> tuple[Tensor, Tensor, Tensor]:
    """Return one picture, elsewhere, of whom two clips show in two looks, and the cells that show it.

    Two latent frames (1, C, 1, H, W), and weights 0 or 1 (1, 1, 1, H, W), with a rim of a cell.
    """
    pictures, there = [], []
    for one in (clip, other):
        shown = portrait(Random(seed), one)  # the same but for the look
        images, tags = draw_clip(shown, 1, FPS, WIDTH, HEIGHT)
        pictures.append(studio.adapter.encode_pictures(torch.from_numpy(images)))
        there.append(torch.from_numpy(tags > 0))
    cells = max_pool2d((there[0] | there[1]).float(), PIXELS_PER_LATENT)
    return pictures[0], pictures[1], max_pool2d(cells, 3, 1, 1)[None, None]


@torch.inference_mode()
def estimates_apart(
    studio: Studio,
    prompt: str,
    leads: tuple[Tensor, Tensor],
    cells: Tensor,
    behind: Tensor,
    sigma: float,
    seed: int,
    weights: Tensor | None = None,
) -> Tensor:
    """Return by what the estimates x̂0 at σ differ that see the one or the other lead.

    Of the ``leads`` (1, C, 1, H, W), what ``cells`` (1, 1, 1, H, W) show. ``behind`` (1, C, F, H, W) and in
    the other cells both see the same; that is the shape of what is returned too. ``weights`` (1, 1, 1, H, W)
    say how often cells of the lead count in the attention.
    """
    adapter, lead_noise = studio.adapter, studio.plan.settings.method.lead_noise
    text = adapter.encode(prompt)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(torch.cat([leads[0], behind], 2).shape, generator=generator)
    found = []
    for lead in leads:
        first = torch.lerp(lead, noise[:, :, :1], sigma * torch.where(cells > 0, lead_noise, 1.0))
        shown = torch.cat([first, torch.lerp(behind, noise[:, :, 1:], sigma)], 2)
        ((velocity,),) = adapter.predict([Request(shown, sigma, [text], counts=weights)])
        found.append(denoised(shown, velocity, sigma)[:, :, 1:])
    return found[0] - found[1]


def look_taken(estimated: Tensor, apart: Tensor) -> tuple[float, float]:
    """Return how much of two clips' difference in colour the estimates show, and how much there is.

    Of ``estimated`` (1, C, F - 1, H, W) and ``apart`` (1, C, F, H, W): both along the direction of the
    latter, summed over the picture, since no estimate knows yet where somebody will stand.
    """
    direction = (apart * where_apart(apart)).sum((2, 3, 4), keepdim=True)
    direction = direction / direction.norm()
    return float((estimated * direction).sum()), float((apart[:, :, 1:] * direction).sum())


def pose_taken(estimated: Tensor, apart: Tensor) -> tuple[float, float]:
    """Return the mean square of the estimates' difference in later frames, and of that of the leads."""
    return float(estimated[:, :, LATER - 1 :].square().mean()), float(apart[:, :, :1].square().mean())


class Taken(NamedTuple):
    """Shares of what leads show that estimates take: look and pose of a shot's end, a portrait's look."""

    look: float
    pose: float
    portrait: float


def copied(studio: Studio, count: int, counts: float = 1) -> dict[float, Taken]:
    """Return what is taken up, by noise level, over ``count`` clips.

    The cells of the lead that show the character count ``counts`` times in the attention.
    """
    rng = Random(SEED)
    sums = {sigma: torch.zeros(3, 2) for sigma in LEVELS}
    for index, (clip, prompt) in enumerate(islice(scenes(rng), count)):
        seed, dressed, here = SEED + index, in_another_colour(rng, clip), latents_of(studio, clip)
        others = latents_of(studio, dressed), latents_of(studio, from_another_pose(rng, clip))
        for at, measure, other in ((0, look_taken, others[0]), (1, pose_taken, others[1])):
            leads, behind = (here[:, :, :1], other[:, :, :1]), (here + other)[:, :, 1:] / 2
            apart, cells = here - other, torch.ones_like(here[:, :1, :1])
            weights = None if counts == 1 else 1 + (counts - 1) * where_apart(leads[0] - leads[1])
            for sigma in LEVELS:
                estimated = estimates_apart(studio, prompt, leads, cells, behind, sigma, seed, weights)
                sums[sigma][at] += torch.tensor(measure(estimated, apart))
        begun = [latents_of(studio, replace(one, former=None)) for one in (clip, dressed)]
        *pictures, cells = portraits_of(studio, seed, clip, dressed)
        behind, apart = (begun[0] + begun[1]) / 2, begun[0] - begun[1]
        first, second = (torch.where(cells > 0, picture, behind[:, :, :1]) for picture in pictures)
        apart = torch.cat([first - second, apart], 2)
        weights = None if counts == 1 else 1 + (counts - 1) * cells
        for sigma in LEVELS:
            estimated = estimates_apart(studio, prompt, (first, second), cells, behind, sigma, seed, weights)
            sums[sigma][2] += torch.tensor(look_taken(estimated, apart))
    shares = {sigma: (of[:, 0] / of[:, 1]).tolist() for sigma, of in sums.items()}
    return {sigma: Taken(look, pose**0.5, shown) for sigma, (look, pose, shown) in shares.items()}


def main() -> None:
    """Print a line for every noise level."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=MINI_WEIGHTS)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument(
        "--counts", type=float, default=1, help="how often the lead's cells count that show the character"
    )
    options = parser.parse_args()
    studio = Studio(options.weights, torch.device("cpu"))
    for sigma, taken in copied(studio, options.clips, options.counts).items():
        print(
            f"σ {sigma:.2f}: of the end of a shot {100 * taken.look:.0f} % of a colour and "
            f"{100 * taken.pose:.0f} % of a pose, of a portrait {100 * taken.portrait:.0f} % of a colour"
        )


if __name__ == "__main__":
    main()
