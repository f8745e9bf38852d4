"""Clips spoilt on purpose, as models ruin pictures: what a judge must call unreadable.

Every way of spoiling takes true pictures of a clip and makes its actors, or one of them, such that
nobody can tell who that is or what it does. The scenery stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .lessons import HEIGHT, WIDTH
from .world import BALL_TAG, ByteArray, Clip, Part, Stage, owners_of

FloatArray = NDArray[np.float32]
Mask = NDArray[np.bool_]
Box = tuple[slice, slice]


@dataclass(frozen=True)
class Footage:
    """Pictures uint8 (T, H, W, 3) of a clip, the tags (T, H, W), and the scenery without actors."""

    clip: Clip
    pictures: ByteArray
    tags: ByteArray
    scenery: ByteArray


def filmed(clip: Clip, times: Sequence[float]) -> Footage:
    """Draw a clip at some times, in seconds."""
    stage = Stage(clip, WIDTH, HEIGHT)
    drawn = [stage.frame(t) for t in times]
    return Footage(
        clip,
        np.stack([picture for picture, _ in drawn]),
        np.stack([tags for _, tags in drawn]),
        np.stack([stage.frame(t, empty=True)[0] for t in times]),
    )


def _victim(rng: Random, footage: Footage) -> Mask:
    """Return where one of the actors is, or all of them: (T, H, W)."""
    owners = owners_of(footage.tags)
    count = len(footage.clip.actors)
    if count > 1 and rng.random() < 0.6:
        chosen: Mask = owners == rng.randrange(count) + 1
        return chosen
    everybody: Mask = (owners > 0) & (owners != BALL_TAG)
    return everybody


def _box(mask: Mask, grown: int = 4) -> Box:
    """Return the rectangle round a mask (H, W); all of the picture where there is nothing."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return slice(0, HEIGHT), slice(0, WIDTH)
    top, left = max(0, rows.min() - grown), max(0, columns.min() - grown)
    bottom, right = min(HEIGHT, rows.max() + grown + 1), min(WIDTH, columns.max() + grown + 1)
    return slice(top, bottom), slice(left, right)


def _ever(mask: Mask) -> Mask:
    """Return where a mask (T, H, W) is at any time."""
    return np.logical_or.reduce(mask, 0)  # type: ignore[no-any-return]


def _blended(first: ByteArray, second: ByteArray, share: float | NDArray[np.floating[Any]]) -> ByteArray:
    mixed = first.astype(np.float32) * (1 - share) + second.astype(np.float32) * share
    return mixed.astype(np.uint8)


def ghost(rng: Random, footage: Footage, other: Footage) -> ByteArray:
    """Mix the actors with those of another clip, half and half."""
    theirs = _victim(rng, other)[..., None]
    ours = _victim(rng, footage)[..., None]
    pasted = np.where(theirs, other.pictures, footage.scenery)
    mixed = _blended(footage.pictures, pasted, rng.uniform(0.4, 0.6))
    return np.where(ours | theirs, mixed, footage.pictures)


def crossbreed(rng: Random, footage: Footage, other: Footage) -> ByteArray:
    """Exchange one half of an actor, left, right, upper or lower, for that of another clip's."""
    result, ours, theirs = footage.pictures.copy(), _victim(rng, footage), _victim(rng, other)
    side, share = rng.randrange(4), rng.uniform(0.4, 0.6)
    for picture, mask, scenery, guest, shape in zip(
        result, ours, footage.scenery, other.pictures, theirs, strict=True
    ):
        rows, columns = _box(mask, 0)
        size = (columns.stop - columns.start, rows.stop - rows.start)
        there = _box(shape, 0)
        pasted = np.asarray(Image.fromarray(guest[there]).resize(size))
        covers = np.asarray(
            Image.fromarray(shape[there].astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        )
        middle, centre = int(share * size[1]), int(share * size[0])
        half = (
            (slice(0, middle), slice(None)),
            (slice(middle, None), slice(None)),
            (slice(None), slice(0, centre)),
            (slice(None), slice(centre, None)),
        )[side]
        view = picture[rows, columns][half]
        view[:] = np.where(mask[rows, columns][half][..., None], scenery[rows, columns][half], view)
        view[:] = np.where(covers[half][..., None] > 0, pasted[half], view)
    return result


def shuffled(rng: Random, footage: Footage, other: Footage) -> ByteArray:
    """Exchange small squares of the actors among each other, the same in every picture."""
    result, size = footage.pictures.copy(), rng.choice((8, 12, 16))
    rows, columns = _box(_ever(_victim(rng, footage)))
    cells = [
        (slice(y, y + size), slice(x, x + size))
        for y in range(rows.start, rows.stop - size + 1, size)
        for x in range(columns.start, columns.stop - size + 1, size)
    ]
    moved = rng.sample(cells, len(cells))
    for here, there in zip(cells, moved, strict=True):
        result[:, *here] = footage.pictures[:, *there]
    return result


def _smooth_noise(generator: np.random.Generator, size: int) -> FloatArray:
    coarse = generator.normal(size=(HEIGHT // size, WIDTH // size)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def melted(rng: Random, footage: Footage, other: Footage) -> ByteArray:
    """Push the actors' pixels about, smoothly and far."""
    generator = np.random.default_rng(rng.getrandbits(32))
    size, reach = rng.choice((8, 12, 16)), rng.uniform(8, 14)
    dy, dx = (reach * _smooth_noise(generator, size) for _ in range(2))
    ys, xs = np.mgrid[0:HEIGHT, 0:WIDTH]
    ys = np.clip(ys + dy, 0, HEIGHT - 1).astype(int)
    xs = np.clip(xs + dx, 0, WIDTH - 1).astype(int)
    result = footage.pictures.copy()
    rows, columns = _box(_ever(_victim(rng, footage)), 8)
    result[:, rows, columns] = footage.pictures[:, ys[rows, columns], xs[rows, columns]]
    return result


def smeared(rng: Random, footage: Footage, other: Footage) -> ByteArray:
    """Blur the actors, and some of the scenery round them, beyond recognition."""
    mask, radius = _victim(rng, footage), rng.uniform(7, 11)
    result = []
    for picture, inside in zip(footage.pictures, mask, strict=True):
        blurred = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))
        shape = Image.fromarray(inside.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(9))
        share = np.asarray(shape.filter(ImageFilter.GaussianBlur(4)), np.float32)[..., None] / 255
        result.append(_blended(picture, blurred, share))
    return np.stack(result)


def headless(rng: Random, footage: Footage, other: Footage) -> ByteArray:
    """Take the heads away, and smear what is left a little."""
    ours = _victim(rng, footage)
    part = footage.tags & 15
    gone = ours & ((part == Part.HEAD) | (part == Part.WEAR) | ((part == Part.TAIL) & (rng.random() < 0.5)))
    pictures = np.where(gone[..., None], footage.scenery, footage.pictures)
    radius = rng.uniform(1.0, 3.0)
    soft = [
        np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius))) for picture in pictures
    ]
    return np.where(ours[..., None], np.stack(soft), pictures)


def faint(rng: Random, footage: Footage, other: Footage) -> ByteArray:
    """Let the scenery show through the actors until hardly anything is left of them."""
    ours = _victim(rng, footage)[..., None]
    return np.where(
        ours, _blended(footage.pictures, footage.scenery, rng.uniform(0.75, 0.9)), footage.pictures
    )


WAYS: tuple[Callable[[Random, Footage, Footage], ByteArray], ...] = (
    ghost,
    crossbreed,
    shuffled,
    melted,
    smeared,
    headless,
    faint,
)


def spoilt(rng: Random, footage: Footage, other: Footage) -> ByteArray:
    """Spoil a clip in one of the ways, or in two; ``other`` is another clip of as many pictures."""
    way = rng.choice(WAYS)
    pictures = way(rng, footage, other)
    if rng.random() < 0.3:
        again = Footage(footage.clip, pictures, footage.tags, footage.scenery)
        pictures = rng.choice(WAYS)(rng, again, other)
    return pictures


def foreign(rng: Random, count: int) -> ByteArray:
    """Return ``count`` pictures that are not of the cartoon world at all: test cards, noise, blots, plain."""
    generator = np.random.default_rng(rng.getrandbits(32))
    shape = (count, HEIGHT, WIDTH, 3)
    kind = rng.randrange(6)
    if kind == 0:
        return generator.integers(0, 256, shape, np.uint8)
    if kind == 1:  # plain, or black
        colour = generator.integers(0, 256, 3) * (rng.random() < 0.7)
        return np.broadcast_to(colour.astype(np.uint8), shape).copy()
    if kind == 2:  # a test card
        bars = generator.integers(0, 256, (rng.randint(3, 12), 3))
        columns = np.arange(WIDTH) * len(bars) // WIDTH
        return np.broadcast_to(bars[columns].astype(np.uint8), shape).copy()
    if kind == 3:  # a gradient that may move
        ramp = (
            np.linspace(0, 1, WIDTH)[None, None, :] + rng.uniform(0, 0.05) * np.arange(count)[:, None, None]
        )
        ends = generator.integers(0, 256, (2, 3))
        mixed = ends[0] + (ramp % 1)[..., None] * (ends[1] - ends[0])
        return np.broadcast_to(mixed, shape).astype(np.uint8)
    # Blots of many sizes, as clouds, walls or crowds look from afar; one for each colour.
    sizes = (4, 8, 16, 32)
    blots = sum(
        size * np.stack([_smooth_noise(generator, size) for _ in range(3)], -1) for size in sizes
    ) / sum(sizes)
    still = 128 + rng.uniform(40, 160) * blots + generator.integers(-60, 60, 3)
    drift = rng.choice((0, 1, 3))
    pictures = np.stack([np.roll(still, drift * index, 1) for index in range(count)])
    clipped: ByteArray = np.clip(pictures, 0, 255).astype(np.uint8)
    return clipped
