"""The judge: who is in a clip, how they look, where, in what light, and doing what; or that nobody can tell.

A small convolutional network, trained on true clips of the cartoon world and on clips spoilt on
purpose. It has no part in rendering, and no weights of the model are chosen by it: what it says of a
film is an outside opinion. `nearest` measures without any network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .world import (
    ARRANGEMENTS,
    COLOURS,
    DUET_ACTIONS,
    Action,
    Actor,
    Character,
    Clip,
    Light,
    Look,
    Place,
    wear_of,
)

CHARACTERS, PLACES, LIGHTS = tuple(Character), tuple(Place), tuple(Light)
ACTIONS = tuple(a for a in Action if a not in (Action.FLEE, Action.CAUGHT))  # others' replies
WEIGHTS = Path(__file__).with_name("judge.safetensors")  # not among the model's: no part of it
SIZE = (96, 64)  # pixels: what it looks at
STRIDE = 2  # of the clip's frames at 12 per second, the judge looks at every second one
LONGEST = 16  # frames that it looks at, at most
WIDTHS = (24, 48, 80, 112)
CASTS = tuple(frozenset(cast) for count in (1, 2) for cast in combinations(CHARACTERS, count))
CASTS_MATRIX = torch.tensor([[float(c in cast) for c in CHARACTERS] for cast in CASTS])
UNREADABLE = 0.0  # the score above which nobody can tell; set so that one true clip in two hundred is


@dataclass(frozen=True)
class Verdict:
    """What a clip shows: everybody in it and how they look, the place, its light and set, the action.

    ``action`` is what the first character does.
    """

    characters: frozenset[Character]
    place: Place
    action: Action
    looks: Mapping[Character, Look] = field(default_factory=dict)
    light: Light = Light.DAY
    arrangement: int = 0


@dataclass(frozen=True)
class Scores:
    """Logits for clips: (B, 6) characters, (B, 6, 4) colours and wear of each, and of the whole clip.

    ``ruin`` (B,) is above `UNREADABLE` where nobody can tell what the clip shows.
    """

    characters: Tensor
    colours: Tensor
    wear: Tensor
    places: Tensor
    actions: Tensor
    lights: Tensor
    arrangements: Tensor
    ruin: Tensor


@dataclass(frozen=True)
class Opinion:
    """Log-probabilities of every cast, place and action; the likeliest of everything as a verdict.

    Of a clip that is not ``readable`` the verdict means nothing: it shows none of them.
    """

    casts: Tensor
    places: Tensor
    actions: Tensor
    verdict: Verdict
    readable: bool
    ruin: float


def truth(clip: Clip) -> Verdict:
    """Return the right verdict on a true clip."""
    looks = {actor.character: actor.look for actor in clip.actors}
    backdrop = clip.backdrop
    return Verdict(frozenset(looks), clip.place, clip.action, looks, backdrop.light, backdrop.arrangement)


class Judge(nn.Module):
    """Four convolutions in space and time, then the mean and the maximum over all of them."""

    KINDS = (6, 24, 24, len(PLACES), len(ACTIONS), len(LIGHTS), ARRANGEMENTS, 1)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for index, width in enumerate(WIDTHS):
            kernel, stride = ((1, 5, 5), (1, 2, 2)) if index == 0 else ((3, 3, 3), (1 + index % 2, 2, 2))
            layers += [
                nn.Conv3d(
                    before,
                    width,
                    kernel,
                    stride,
                    (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2),
                    bias=False,
                ),
                nn.GroupNorm(8, width),
                nn.SiLU(),
            ]
            before = width
        layers.append(nn.Conv3d(before, 128, 3, padding=1))
        self.body = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(2 * 128, 192), nn.SiLU())
        self.head = nn.Linear(2 * 128 + 192, sum(self.KINDS))

    def forward(self, video: Tensor) -> Scores:
        """Return logits for videos (B, 3, T, H, W) in [-1, 1], of `SIZE`."""
        features = self.body(video).flatten(2)
        pooled = torch.cat([features.mean(2), features.amax(2)], 1)
        scores = self.head(torch.cat([pooled, self.hidden(pooled)], 1)).split(self.KINDS, 1)
        characters, colours, wear, places, actions, lights, arrangements, ruin = scores
        each = (len(CHARACTERS), 4)
        return Scores(
            characters,
            colours.unflatten(1, each),
            wear.unflatten(1, each),
            places,
            actions,
            lights,
            arrangements,
            ruin[:, 0],
        )

    @torch.inference_mode()
    def judge(self, clip: Tensor) -> Opinion:
        """Judge a clip, uint8 (T, H, W, 3) at 12 frames per second."""
        seen = self(as_seen(clip[::STRIDE][:LONGEST])[None])
        # A scene has one or two characters: scores of such casts only.
        casts = (CASTS_MATRIX @ seen.characters[0]).log_softmax(0)
        cast = CASTS[int(casts.argmax())]
        colours, wear = (part[0].argmax(1).tolist() for part in (seen.colours, seen.wear))
        looks = {
            who: Look(COLOURS[who][colours[i]], wear_of(who)[wear[i]])
            for i, who in enumerate(CHARACTERS)
            if who in cast
        }
        places, actions = seen.places[0].log_softmax(0), seen.actions[0].log_softmax(0)
        verdict = Verdict(
            cast,
            PLACES[int(places.argmax())],
            ACTIONS[int(actions.argmax())],
            looks,
            LIGHTS[int(seen.lights[0].argmax())],
            int(seen.arrangements[0].argmax()),
        )
        ruin = float(seen.ruin[0])
        return Opinion(casts, places, actions, verdict, ruin <= UNREADABLE, ruin)


def as_seen(frames: Tensor) -> Tensor:
    """Return pictures uint8 (T, H, W, 3) of any size as the judge looks at them: (3, T, h, w) in [-1, 1]."""
    pictures = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
    if pictures.shape[2:] != SIZE[::-1]:
        pictures = nn.functional.interpolate(pictures, SIZE[::-1], mode="area")
    return pictures.transpose(0, 1)


def load_judge(path: Path = WEIGHTS) -> Judge:
    """Load the judge's weights; fp16 in the file, fp32 in use."""
    judge = Judge()
    judge.load_state_dict(load_file(path))
    return judge.eval()


def loosened(rng: Random, clip: Clip) -> Clip:
    """Return a staged clip with a freer position, size, phase, ground and colours.

    The judge is to know a walking dog also where the model's own lessons never put one.
    """

    def free(actor: Actor) -> Actor:
        return replace(
            actor,
            x=actor.x + rng.uniform(-0.05, 0.05),
            size=actor.size * rng.uniform(0.93, 1.07),
            phase=rng.uniform(0.0, 1.0 if clip.action not in DUET_ACTIONS else 0.3),
            tint=(rng.randint(-9, 9), rng.randint(-9, 9), rng.randint(-9, 9)),
        )

    ground = clip.backdrop.ground + rng.uniform(-1.0, 0.8)
    actors = tuple(free(actor) for actor in clip.actors)
    return replace(clip, backdrop=replace(clip.backdrop, ground=ground), actors=actors)
