"""What the world knows for certain of a clip, as a lesson's second target.

A head on a middle layer of the transformer predicts it from the noisy latents and the text; it is
thrown away after training. Aligning a middle layer with what a picture means shortens the training
of diffusion transformers several times (Yu et al. 2025, "REPA"). There a large vision model says what
it means; here the drawing program does, exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from storyreel.mini import codec
from storyreel.mini.world import (
    ARRANGEMENTS,
    BALL_TAG,
    COLOURS,
    Action,
    Character,
    Clip,
    Light,
    Part,
    Place,
    tag_of,
    wear_of,
)

PATCH = 2  # latents on a side of a token
FINE = 8  # pixels on a side of a cell of the layout
CELLS = (PATCH * codec.PIXELS_PER_LATENT // FINE) ** 2  # of a token
ACTORS = 2
TAGS = (*(tag_of(actor + 1, part) for actor in range(ACTORS) for part in Part), BALL_TAG)
LOOKS = len(Character) + 4 + 4  # character, colour and wear of an actor, each as one of so many
CHANNELS = len(TAGS) * CELLS + ACTORS * LOOKS  # of a token's layout
LOOKS_SHARE = 0.15  # of the loss of looks, where their owners are
KINDS = (len(Action), len(Place), len(Light), ARRANGEMENTS)


Layout = Tensor  # uint8 (L, tokens, CHANNELS): shares of each token's cells, and of the token, in 255ths
Facts = Tensor  # (4,): action, place, light and arrangement as numbers


def facts_of(clip: Clip) -> Facts:
    """Return what is true of a whole clip."""
    backdrop = clip.backdrop
    return torch.tensor(
        [
            tuple(Action).index(clip.action),
            tuple(Place).index(clip.place),
            tuple(Light).index(backdrop.light),
            backdrop.arrangement,
        ]
    )


_NUMBERS = np.full(256, len(TAGS))
_NUMBERS[list(TAGS)] = np.arange(len(TAGS))


def _cell_shares(tags: Tensor) -> Tensor:
    """Return which share of each fine cell bears each tag: (T, H, W) to (L, H/8, W/8, tags).

    Frames of one latent are averaged; the first latent is the first frame alone.
    """
    frames, height, width = tags.shape
    rows, columns, kinds = height // FINE, width // FINE, len(TAGS) + 1
    latent = (np.arange(frames) + codec.FRAMES_PER_LATENT - 1) // codec.FRAMES_PER_LATENT
    cell = np.arange(height)[:, None] // FINE * columns + np.arange(width) // FINE
    index = (latent[:, None, None] * rows * columns + cell) * kinds + _NUMBERS[tags.numpy()]
    length = int(latent[-1]) + 1
    counts = np.bincount(index.ravel(), minlength=length * rows * columns * kinds)
    shares = torch.from_numpy(counts).view(length, rows, columns, kinds)[..., :-1].float()
    return shares / (torch.from_numpy(np.bincount(latent))[:, None, None, None] * FINE**2)


def layout_of(tags: Tensor, clip: Clip) -> Layout:
    """Return which parts of which actor cover each token: of ``tags`` (T, H, W)."""
    cells = _cell_shares(tags)
    side = PATCH * codec.PIXELS_PER_LATENT // FINE
    frames, rows, columns, parts = cells.shape
    split = cells.view(frames, rows // side, side, columns // side, side, parts).permute(0, 1, 3, 5, 2, 4)
    tokens = split.reshape(frames, -1, parts, CELLS)
    shown = [tokens.flatten(2)]
    for index in range(ACTORS):
        looks = torch.zeros(LOOKS)
        if index < len(clip.actors):
            actor = clip.actors[index]
            looks[tuple(Character).index(actor.character)] = 1
            looks[len(Character) + COLOURS[actor.character].index(actor.look.colour)] = 1
            looks[len(Character) + 4 + wear_of(actor.character).index(actor.look.wear)] = 1
        own = tokens[:, :, index * len(Part) : (index + 1) * len(Part)].sum(2).mean(2)
        shown.append((3 * own).clamp_max(1)[..., None] * looks)
    return (torch.cat(shown, 2) * 255).round().to(torch.uint8)


class Predicted(NamedTuple):
    """What the head says: logits of the layout (B, L·tokens, CHANNELS) and of each of the facts."""

    layout: Tensor
    facts: tuple[Tensor, ...]


class LayoutHead(nn.Module):
    """Predicts a clip's layout from each token of a layer, and its facts from all of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, CHANNELS)
        )
        self.clip = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, sum(KINDS))
        )

    def forward(self, hidden: Tensor) -> Predicted:
        """Read a layer's tokens (B, N, D)."""
        return Predicted(self.tokens(hidden), self.clip(hidden.mean(1)).split(KINDS, 1))


def layout_loss(predicted: Predicted, layout: Tensor, facts: Tensor) -> Tensor:
    """Compare with layouts uint8 (B, L, tokens, CHANNELS) and facts (B, 4)."""
    target = layout.flatten(1, 2).float() / 255
    loss: Tensor = F.binary_cross_entropy_with_logits(predicted.layout, target)
    # A look is few channels of few tokens: there it counts by itself.
    looks, said = (
        part[..., len(TAGS) * CELLS :].unflatten(-1, (ACTORS, -1)) for part in (target, predicted.layout)
    )
    there = looks.amax(-1, keepdim=True)
    wrong = F.binary_cross_entropy_with_logits(said.float(), looks, reduction="none").mean(-1, keepdim=True)
    loss = loss + LOOKS_SHARE * (there * wrong).sum() / there.sum().clamp_min(1)
    for logits, right in zip(predicted.facts, facts.unbind(1), strict=True):
        loss = loss + 0.02 * F.cross_entropy(logits, right)
    return loss
