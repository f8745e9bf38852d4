"""Spoilt clips are spoilt, each in its way, where the actors are and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random

import numpy as np
import pytest

from storyreel.mini.lessons import HEIGHT, WIDTH
from storyreel.mini.spoiling import WAYS, Footage, faint, filmed, foreign, headless, shuffled, spoilt
from storyreel.mini.world import (
    Action,
    ByteArray,
    Character,
    Look,
    Part,
    Place,
    owners_of,
    sample_clip,
    stage_clip,
)

TIMES = (0.0, 0.3)
Way = Callable[[Random, Footage, Footage], ByteArray]


@pytest.fixture(scope="module")
def corgi() -> Footage:
    look = Look("orange", "red scarf")
    return filmed(stage_clip(Random(0), Place.CAPITOL, (Character.CORGI,), Action.SIT, looks=(look,)), TIMES)


@pytest.fixture(scope="module")
def woman() -> Footage:
    return filmed(stage_clip(Random(1), Place.TIDAL_BASIN, (Character.WOMAN,), Action.STAND), TIMES)


def change(before: ByteArray, after: ByteArray) -> ByteArray:
    """How far each pixel moved, 0 to 255: (T, H, W)."""
    moved: ByteArray = np.abs(before.astype(int) - after).max(-1).astype(np.uint8)
    return moved


def test_footage_has_pictures_with_and_without_the_actors(corgi: Footage) -> None:
    assert corgi.pictures.shape == corgi.scenery.shape == (2, HEIGHT, WIDTH, 3)
    inside = owners_of(corgi.tags) == 1
    assert change(corgi.pictures, corgi.scenery)[inside].mean() > 40
    assert change(corgi.pictures, corgi.scenery)[~inside].mean() < 1


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_ruins_the_actor_and_leaves_the_rest(way: Way, corgi: Footage, woman: Footage) -> None:
    kept = corgi.pictures.copy()
    found = way(Random(3), corgi, woman)
    assert found.shape == kept.shape
    assert found.dtype == np.uint8
    assert np.array_equal(corgi.pictures, kept)  # nothing was spoilt in place
    assert np.array_equal(found, way(Random(3), corgi, woman))
    moved = change(kept, found) > 12
    ours, theirs = (owners_of(footage.tags) == 1 for footage in (corgi, woman))
    assert moved[ours].mean() > 0.2
    rows, columns = np.nonzero((ours | theirs).any(0))
    far = np.ones((HEIGHT, WIDTH), bool)  # 16 pixels: the widest blur's and the furthest push's edge
    far[max(0, rows.min() - 16) : rows.max() + 17, max(0, columns.min() - 16) : columns.max() + 17] = False
    assert far.sum() > 1000
    assert not moved[:, far].any()


def test_the_headless_have_no_head(corgi: Footage, woman: Footage) -> None:
    found = headless(Random(0), corgi, woman)
    head = (corgi.tags & 15) == Part.HEAD
    assert change(corgi.scenery, found)[head].mean() < 25 < change(corgi.scenery, corgi.pictures)[head].mean()


def test_the_faint_are_hardly_there(corgi: Footage, woman: Footage) -> None:
    inside = owners_of(corgi.tags) == 1
    found = faint(Random(0), corgi, woman)
    left = change(corgi.scenery, found)[inside].mean() / change(corgi.scenery, corgi.pictures)[inside].mean()
    assert 0.08 < left < 0.27


@pytest.mark.parametrize("x", [0.02, 0.98])
def test_actors_at_the_edge_can_be_shuffled(x: float, woman: Footage) -> None:
    """Squares that the edge cuts off fit no other place."""
    clip = stage_clip(Random(0), Place.BUS_WINDOW, (Character.PANDA,), Action.SIT)
    moved = type(clip)(
        type(clip.backdrop)(**(vars(clip.backdrop) | {"ground": 64.0})),
        (type(clip.actors[0])(**(vars(clip.actors[0]) | {"x": x})),),
    )
    edge = filmed(moved, TIMES)
    for seed in range(6):
        found = shuffled(Random(seed), edge, woman)
        # Squares are exchanged: every colour of the picture is there as often as before.
        for mine, yours in zip(found, edge.pictures, strict=True):
            assert np.array_equal(np.sort(mine.reshape(-1, 3), 0), np.sort(yours.reshape(-1, 3), 0))


def test_whatever_clip_is_spoilt_is_spoilt() -> None:
    rng = Random(4)
    footages = [filmed(sample_clip(rng), (0.2, 0.5)) for _ in range(16)]
    for footage, other in pairwise(footages):
        found = spoilt(rng, footage, other)
        owners = owners_of(footage.tags)
        inside = (owners > 0) & (owners < 255)
        assert (change(footage.pictures, found)[inside] > 12).mean() > 0.1


def test_foreign_pictures_are_of_many_kinds() -> None:
    kinds = set()
    for seed in range(24):
        found = foreign(Random(seed), 3)
        assert found.shape == (3, HEIGHT, WIDTH, 3)
        assert found.dtype == np.uint8
        assert np.array_equal(found, foreign(Random(seed), 3))
        rough = float(np.abs(np.diff(found.astype(int), axis=2)).mean())
        moves = bool((found[0] != found[1]).any())
        kinds.add(("plain" if rough == 0 else "noise" if rough > 60 else "something", moves))
    assert {("plain", False), ("noise", True), ("something", False), ("something", True)} <= kinds
