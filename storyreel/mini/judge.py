"""The judge: who is in a clip, where, and doing what, for measuring the embedded model.

A small convolutional network, trained on true clips of the cartoon world alone. It has no part
in rendering, and no weights of the model are chosen by it: what it says of a film is an outside
opinion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .known import strangeness
from .world import DUET_ACTIONS, Action, Actor, Character, Clip, Place

CHARACTERS, PLACES = tuple(Character), tuple(Place)
ACTIONS = tuple(a for a in Action if a not in (Action.FLEE, Action.CAUGHT))  # others' replies
WEIGHTS = Path(__file__).with_name("judge.safetensors")  # not among the model's: no part of it
STRIDE = 2  # of the clip's frames at 12 per second, the judge looks at every second one
LONGEST = 16  # frames that it looks at, at most
WIDTHS = (24, 48, 80, 112)
CASTS = tuple(frozenset(cast) for count in (1, 2) for cast in combinations(CHARACTERS, count))
CASTS_MATRIX = torch.tensor([[float(c in cast) for c in CHARACTERS] for cast in CASTS])


@dataclass(frozen=True)
class Verdict:
    """What a clip shows: everybody in it, the place, and what the first character does.

    Of a clip that shows nothing of the cartoon world: nobody, and None.
    """

    characters: frozenset[Character]
    place: Place | None
    action: Action | None


NOTHING = Verdict(frozenset(), None, None)


@dataclass(frozen=True)
class Opinion:
    """Log-probabilities of every cast, place and action, if the clip is ``known`` to be of their world."""

    casts: Tensor
    places: Tensor
    actions: Tensor
    known: bool = True

    @property
    def verdict(self) -> Verdict:
        """The likeliest of each; of a clip that is of another world, none of them."""
        if not self.known:
            return NOTHING
        return Verdict(
            CASTS[int(self.casts.argmax())],
            PLACES[int(self.places.argmax())],
            ACTIONS[int(self.actions.argmax())],
        )


def truth(clip: Clip) -> Verdict:
    """Return the right verdict on a true clip."""
    return Verdict(frozenset(actor.character for actor in clip.actors), clip.place, clip.action)


class Judge(nn.Module):
    """Four convolutions in space and time, then the mean and the maximum over all of them."""

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
        self.head = nn.Linear(2 * 128, len(CHARACTERS) + len(PLACES) + len(ACTIONS))

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of characters, place and action for videos (B, 3, T, H, W) in [-1, 1]."""
        features = self.body(video).flatten(2)
        scores = self.head(torch.cat([features.mean(2), features.amax(2)], 1))
        characters, places, actions = scores.split([len(CHARACTERS), len(PLACES), len(ACTIONS)], 1)
        return characters, places, actions

    @torch.inference_mode()
    def judge(self, clip: Tensor) -> Opinion:
        """Judge a clip, uint8 (T, H, W, 3) at 12 frames per second."""
        looked_at = clip[::STRIDE][:LONGEST]
        video = looked_at.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        characters, places, actions = (scores[0].float() for scores in self(video))
        # A scene has one or two characters: scores of such casts only.
        return Opinion(
            (CASTS_MATRIX @ characters).log_softmax(0),
            places.log_softmax(0),
            actions.log_softmax(0),
            strangeness(looked_at) <= 1,
        )


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
