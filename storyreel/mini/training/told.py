"""What a text tells for certain of its clip, as a second target of the text encoder.

A colour moves few pixels, and says nothing where noise hides all of them: by the velocity's error alone
the text encoder learned to tell one colour of eight from the others in 600,000 lessons. A head, thrown away
after training, reads from its states who is told, in which look, where, doing what and in which light.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from storyreel.mini.lessons import Example
from storyreel.mini.world import COLOURS, Action, Character, Light, Look, Place, wear_of

UNKNOWN = -100  # of a text that need not tell it: `cross_entropy` passes over it
# Of each character: whether it is told, its colour and what it wears, 0 if the text leaves it open.
OF_A_CHARACTER = (2, 5, 4)
KINDS = (*(OF_A_CHARACTER * len(Character)), len(Place), len(Action), 1 + len(Light))

Told = Tensor  # (len(KINDS),): each fact as a number, or `UNKNOWN`


def told_by(text: str, example: Example) -> Told:
    """Return what ``text``, drawn of ``example`` by `sample_text`, tells."""
    telling, clip = example.telling, example.clip
    if telling is None:
        raise ValueError("a lesson without its telling: nobody knows what its words state")
    named = {
        actor.character: stated
        for actor, noun, stated in zip(clip.actors, telling.nouns, telling.stated, strict=True)
        if f" {noun}" in text
    }
    found: list[int] = []
    for who in Character:
        if (look := named.get(who)) is None:
            found += (0, UNKNOWN, UNKNOWN)
        else:
            found += (1, _colour(who, look), _wear(who, look))
    place = UNKNOWN if text in ("", example.action) else tuple(Place).index(clip.place)
    action = UNKNOWN if text in ("", example.scene) else tuple(Action).index(clip.action)
    lit = telling.light and telling.light in text
    return torch.tensor([*found, place, action, 1 + tuple(Light).index(clip.backdrop.light) if lit else 0])


def _colour(who: Character, look: Look) -> int:
    return 1 + COLOURS[who].index(look.colour) if look.colour else 0


def _wear(who: Character, look: Look) -> int:
    return wear_of(who).index(look.wear) if look.wear else 0


class ToldHead(nn.Module):
    """Reads each fact from a text's states: of the mean over tokens that a query of its own weighs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Linear(width, len(KINDS), bias=False)
        self.facts = nn.ModuleList(nn.Linear(width, kinds) for kinds in KINDS)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Return logits (B, kinds) of each fact, from ``states`` (B, N, D) and which tokens count (B, N)."""
        scores = self.queries(states).float().masked_fill(~mask[..., None], float("-inf"))
        pooled = scores.softmax(1).to(states.dtype).transpose(1, 2) @ states
        return tuple(fact(pooled[:, index]) for index, fact in enumerate(self.facts))


def told_loss(predicted: tuple[Tensor, ...], told: Tensor) -> Tensor:
    """Return the cross entropies' sum, each the mean of the texts that tell its fact.

    ``predicted`` are `ToldHead`'s, ``told`` is (B, facts).
    """
    loss = predicted[0].new_zeros((), dtype=torch.float32)
    for logits, right in zip(predicted, told.unbind(1), strict=True):
        known = (right != UNKNOWN).sum().clamp_min(1)
        loss = loss + F.cross_entropy(logits.float(), right, ignore_index=UNKNOWN, reduction="sum") / known
    return loss
