"""How much of the picture near a seam is two pictures at once: fitted block by block, without any network.

A block is a double exposure where a weighted mean of what the two scenes show there is much nearer to it than
either scene alone, moved as it may have been, and where that can be seen. So neither a cut nor a pan counts,
no actor who walks from the one to the other, no flash and no fade from or to one colour. What has changed too
much since the clean pictures, a second or half a second away, fits nothing, and does not count either: the
number is rather too low, of actors who move more than of places.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTH = 96  # pixels of the longer side that pictures are compared at
BLOCK = 8  # pixels of a block's side
REACH = 2, 10  # pixels that a block may have moved, down and across, since the clean pictures
NEAR = 1.0, 0.5  # seconds on either side of a seam, at most half a scene: for long dissolves and short ones
LOOKS = 12  # pictures a second that are looked at, at most
CLEAN = 2  # pictures beyond those on either side that show one scene each
SHORTEST = 6  # looks of a scene beside a seam that is measured
TRIED = 6  # places of a block that are tried in a mixture, of either scene
WEIGHTS = 0.15, 0.85  # of the later scene: beyond, nobody sees two pictures
VISIBLE = 4.0  # of 255, root mean square: what both the mixture's parts and its advantage must come to
BETTER = 0.5  # of the error that one scene leaves: more than that is no mixture
ORDERLY, SLACK = 0.9, 0.05  # share of a block's pictures that are in order, and the weight that makes no odds
FADES = 0.6  # share of the blocks in question that a change of the whole picture's brightness explains


def double_exposure(clip: Tensor) -> float:
    """Return the share, 0 to 1, of area and pictures of a clip that is two pictures at once.

    ``clip`` is (T, 3, H, W), 0 to 255; its first and last `CLEAN` pictures each show one scene alone, and do
    not count themselves.
    """
    blocks = _blocks(clip[CLEAN:-CLEAN])
    before, after = _Scene(clip[:CLEAN], blocks), _Scene(clip[-CLEAN:], blocks)
    one, two = before.errors.amin(2), after.errors.amin(2)
    alone = torch.minimum(one, two)
    doubtful = alone > VISIBLE**2
    doubtful &= ~before.fades(doubtful) & ~after.fades(doubtful)
    if not doubtful.any():
        return 0.0
    where, when = doubtful.nonzero(as_tuple=True)
    seen = blocks[where, when]
    first, second = before.likeliest(where, when), after.likeliest(where, when)
    mixed = _mixture(seen, first, second)
    moved = torch.minimum(_mixture(seen, first, first).error, _mixture(seen, second, second).error)
    other = torch.minimum(moved, alone[where, when])
    low, high = WEIGHTS
    found = (mixed.weight > low) & (mixed.weight < high) & (mixed.faint > VISIBLE**2)
    found &= (mixed.error < BETTER**2 * other) & (other > VISIBLE**2)
    # How far every block has passed over to the later scene, where that can be told.
    passed = torch.full_like(alone, torch.nan)
    passed[one < BETTER**2 * two] = 0.0
    passed[two < BETTER**2 * one] = 1.0
    passed[doubtful] = torch.nan
    passed[where[found], when[found]] = mixed.weight[found]
    return float(_onwards(passed)[where[found], when[found]].sum()) / passed.numel()


def _onwards(passed: Tensor) -> Tensor:
    """Return where (blocks, T) nearly all before has passed over less, and nearly all behind more.

    A dissolve goes on from the one scene to the other; what blinks or turns to and fro does not. NaN is what
    nobody can tell.
    """
    when = torch.arange(passed.shape[1], device=passed.device)
    apart = (passed[:, None] - passed[:, :, None]) * (when - when[:, None]).sign()  # (blocks, T, of others)
    known = ~apart.isnan() & (when != when[:, None])
    return ((apart > -SLACK) & known).sum(2) >= ORDERLY * known.sum(2)


def _blocks(pictures: Tensor) -> Tensor:
    """Return the blocks (blocks, T, values) of pictures (T, 3, H, W)."""
    return F.unfold(pictures, BLOCK, stride=BLOCK).permute(2, 0, 1)


def _places(pictures: Tensor) -> Tensor:
    """Return what every block may have shown before it moved: (blocks, places, values), of all pictures."""
    count, channels, height, width = pictures.shape
    down, across = REACH
    padded = F.pad(pictures, (across, across, down, down), mode="replicate")
    picture, channel, row, column = padded.stride()
    sizes = height // BLOCK, width // BLOCK, count, 2 * down + 1, 2 * across + 1, channels, BLOCK, BLOCK
    steps = BLOCK * row, BLOCK * column, picture, row, column, channel, row, column
    return padded.as_strided(sizes, steps).flatten(5).flatten(2, 4).flatten(0, 1)


class _Scene:
    """One of the two scenes: its clean pictures, moved, beside the ``blocks`` (blocks, T, values) of a clip.

    ``errors`` are their mean squared differences (blocks, T, places).
    """

    def __init__(self, clean: Tensor, blocks: Tensor) -> None:
        self._blocks, self._places = blocks, _places(clean)
        self._products = blocks @ self._places.transpose(1, 2)
        self._squares = self._places.square().sum(2)[:, None]
        each = self._places.shape[1] // CLEAN
        self._still = torch.arange(CLEAN, device=clean.device) * each + each // 2  # what has not moved
        squares = blocks.square().sum(2)[:, :, None] + self._squares
        self.errors = ((squares - 2 * self._products) / blocks.shape[2]).clamp(min=0)

    def fades(self, doubtful: Tensor) -> Tensor:
        """Return which pictures (1, T) are this scene but for their contrast and tint, where ``doubtful``.

        As in a fade to black or a flash. It is the whole picture that changes, by least squares.
        """
        clean = self._places[:, self._still[0]].unflatten(1, (3, -1))[:, None]  # (blocks, 1, 3, values)
        seen = self._blocks.unflatten(2, (3, -1))  # (blocks, T, 3, values)
        sums = self._places.unflatten(2, (3, -1)).sum(3)
        fits = torch.ones_like(doubtful)
        for _ in range(2):  # the second time without whoever has moved
            weight = (fits / fits.sum(0))[:, :, None, None]
            mean, seen_mean = ((weight * x).sum(0).mean(2) for x in (clean, seen))  # (T, 3)
            apart, seen_apart = clean - mean[:, :, None], seen - seen_mean[:, :, None]
            contrast = (weight * seen_apart * apart).sum((0, 2, 3))
            contrast = contrast / (weight * apart.square()).sum((0, 2, 3)).clamp(min=1e-3)
            tint = seen_mean - contrast[:, None] * mean
            # The squared difference of a block and contrast * place + tint, in products that are there.
            undone = (seen - tint[:, :, None]).square().sum((2, 3))[:, :, None]
            products = self._products - torch.einsum("tc,bpc->btp", tint, sums)
            errors = undone - 2 * contrast[:, None] * products + contrast.square()[:, None] * self._squares
            best = errors.amin(2)
            fits = best <= best.median(0).values
        explained = best / self._blocks.shape[2] < VISIBLE**2
        fading: Tensor = (explained & doubtful).sum(0) > FADES * doubtful.sum(0)
        return fading[None]

    def likeliest(self, where: Tensor, when: Tensor) -> Tensor:
        """Return the places (n, tried, values) whose structure some blocks show most of, in any strength."""
        mean = self._places.mean(2)
        sums = self._blocks.sum(2)[:, :, None]
        norms = (self._squares[:, 0] - self._places.shape[2] * mean.square()).clamp(min=1.0).sqrt()
        likeness = (self._products - sums * mean[:, None]) / norms[:, None]
        best = likeness[where, when].topk(TRIED, dim=1).indices
        return self._places[where[:, None], torch.cat([best, self._still.expand(len(best), -1)], 1)]


class _Mixture(NamedTuple):
    """The best mixtures of some blocks (n,): the second's weight, their mean squared errors.

    ``faint`` is what the weaker of the two changes in the picture, as a mean square.
    """

    weight: Tensor
    error: Tensor
    faint: Tensor


def _mixture(seen: Tensor, first: Tensor, second: Tensor) -> _Mixture:
    """Fit blocks (n, values) by means of one of ``first`` and one of ``second``, (n, tried, values)."""
    size = seen.shape[1]
    products = first @ second.transpose(1, 2)
    ones, twos = first.square().sum(2), second.square().sum(2)
    with_one, with_two = (first @ seen[:, :, None])[..., 0], (second @ seen[:, :, None])[..., 0]
    apart = (ones[:, :, None] + twos[:, None] - 2 * products).clamp(min=0)
    towards = with_two[:, None] - with_one[:, :, None] - products + ones[:, :, None]
    weights = (towards / apart.clamp(min=1.0)).clamp(0, 1)
    from_one = seen.square().sum(1)[:, None] + ones - 2 * with_one
    errors = (from_one[:, :, None] - 2 * weights * towards + weights.square() * apart).clamp(min=0) / size
    best = errors.flatten(1).argmin(1, keepdim=True)
    weight, error, distance = (x.flatten(1).gather(1, best)[:, 0] for x in (weights, errors, apart / size))
    return _Mixture(weight, error, torch.minimum(weight, 1 - weight).square() * distance)


class Doubles:
    """Measures every seam of a film as its frames go by.

    ``starts`` are the scenes' first frames, ``stop`` is the film's end. What is kept are small pictures of
    the seams that are not over yet. ``shares`` are None where a scene is too short.
    """

    def __init__(self, starts: Sequence[int], stop: int, fps: float) -> None:
        self._stride = max(1, round(fps / LOOKS))
        looks = [-(-start // self._stride) for start in (*starts, stop)]
        lengths = [b - a for a, b in pairwise(looks)]
        self._clips: list[list[tuple[int, int]]] = []  # of every seam the largest first
        for seam, (before, after) in zip(looks[1:], pairwise(lengths), strict=False):
            found = []
            for near in NEAR if min(before, after) >= SHORTEST else ():
                reach = max(SHORTEST // 2, round(near * fps / self._stride))
                first, last = seam - min(reach, before // 2), seam + min(reach, after // 2)
                found.append((first - CLEAN + 1, last + CLEAN - 1))
            self._clips.append(list(dict.fromkeys(found)))
        self._position, self._first = 0, 0  # of frames that went by; of looks that are kept
        self._kept: list[Tensor] = []
        self.shares: list[float | None] = []

    def see(self, frames: Tensor) -> None:
        """Take in the next frames, uint8 (T, H, W, 3)."""
        chosen = frames[-self._position % self._stride :: self._stride]
        self._position += len(frames)
        self._kept += list(small(chosen)) if len(chosen) else []
        while len(self.shares) < len(self._clips):
            clips = self._clips[len(self.shares)]
            if not clips:
                self.shares.append(None)
                continue
            start, stop = clips[0]
            if stop > self._first + len(self._kept):
                self._drop(start)
                return
            # What one of them finds is there; the other lacks clean pictures, or has them too far away.
            whole = stop - start - 2 * CLEAN
            pictures = torch.stack(self._kept[start - self._first : stop - self._first])
            parts = [(double_exposure(pictures[a - start : b - start]), b - a - 2 * CLEAN) for a, b in clips]
            self.shares.append(max(share * count / whole for share, count in parts))
        self._drop(self._first + len(self._kept))

    def _drop(self, before: int) -> None:
        over = min(max(0, before - self._first), len(self._kept))
        self._kept, self._first = self._kept[over:], self._first + over


def small(frames: Tensor) -> Tensor:
    """Return frames uint8 (T, H, W, 3) as they are compared: (T, 3, h, w), in whole blocks."""
    height, width = frames.shape[1:3]
    scale = WIDTH / max(height, width)
    size = [max(1, round(side * scale / BLOCK)) * BLOCK for side in (height, width)]
    return F.interpolate(frames.permute(0, 3, 1, 2).float(), size, mode="area")
