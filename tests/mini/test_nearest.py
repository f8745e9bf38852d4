"""The distance to the nearest true picture: small for true clips, large for what is not the scene."""

from __future__ import annotations

from random import Random
from statistics import median

import numpy as np
import pytest

from storyreel.mini.lessons import FPS
from storyreel.mini.nearest import Scene, completed, nearest_true
from storyreel.mini.spoiling import faint, filmed
from storyreel.mini.world import Action, ByteArray, Character, Light, Look, Part, Place

FRAMES, CLIPS = 2, 3
LIT = {"light": Light.DAY, "arrangement": 0}
OPEN = Scene(Place.CENTRAL_PARK, (Character.CORGI,), Action.SIT)
CORGI = OPEN.but(looks=(Look("orange"),), **LIT)


def film(scene: Scene, seed: int = 1000, frames: int = FRAMES) -> ByteArray:
    """Draw a true clip of a scene that is none of those compared with."""
    stage = scene.stage(seed)
    return np.stack([stage.frame(index / FPS)[0] for index in range(frames)])


def distance(scene: Scene, frames: ByteArray) -> float:
    return median(nearest_true(scene, frames, CLIPS))


@pytest.fixture(scope="module")
def true() -> ByteArray:
    return film(CORGI)


@pytest.fixture(scope="module")
def own(true: ByteArray) -> float:
    return distance(CORGI, true)


def test_a_true_clip_is_near(true: ByteArray, own: float) -> None:
    found = nearest_true(CORGI, true, CLIPS)
    assert len(found) == FRAMES
    assert own > 22


@pytest.mark.parametrize(
    ("wrong", "at_most"),
    [
        (OPEN.but(cast=(Character.PANDA,), **LIT), 16.0),
        (CORGI.but(action=Action.LIE), 16.0),
        (OPEN.but(cast=(Character.CORGI, Character.CAT), looks=(None, None), **LIT), 16.0),
    ],
    ids=["another character", "another action", "two instead of one"],
)
def test_another_scene_is_far(wrong: Scene, at_most: float, own: float) -> None:
    assert distance(CORGI, film(wrong)) < min(at_most, own - 6)


def test_a_shifted_or_faint_actor_is_far(true: ByteArray, own: float) -> None:
    assert distance(CORGI, np.roll(true, 24, 2)) < own - 6
    footage = filmed(CORGI.stage(1000).clip, [index / FPS for index in range(FRAMES)])
    assert np.array_equal(footage.pictures, true)
    assert distance(CORGI, faint(Random(0), footage, footage)) < own - 6


def test_what_sticks_out_of_an_actor_counts(true: ByteArray) -> None:
    footage = filmed(CORGI.stage(1000).clip, [index / FPS for index in range(FRAMES)])
    inside = footage.tags > 0
    near = inside.copy()
    for axis in (1, 2):
        near |= np.roll(near, 1, axis) | np.roll(near, -1, axis)
    frames = true.copy()
    frames[near & ~inside] = (255, 0, 255)
    assert distance(CORGI, frames) < 18


def test_what_prompts_leave_open_is_taken_as_the_picture_has_it() -> None:
    looks = (Look("grey", "yellow bandana"),)
    shown = OPEN.but(looks=looks, light=Light.NIGHT, arrangement=1)
    found = completed(OPEN, film(shown))
    assert (found.light, found.arrangement, found.looks) == (Light.NIGHT, 1, looks)
    assert (found.place, found.cast, found.action) == (OPEN.place, OPEN.cast, OPEN.action)
    assert OPEN.looks == (None,)  # the question has not changed


def test_what_prompts_state_is_held_against_the_picture() -> None:
    frames = film(CORGI.but(looks=(Look("black"),)))
    assert completed(CORGI, frames).looks == CORGI.looks
    assert distance(CORGI, frames) < 16


def test_everybody_of_two_gets_a_look() -> None:
    looks = (Look("brown", "blue collar"), Look("grey"))
    cast = (Character.CORGI, Character.CAT)
    scene = Scene(Place.CAPITOL, cast, Action.STAND, light=Light.DUSK, arrangement=1)
    frames = film(scene.but(looks=looks), frames=1)
    assert completed(scene, frames).looks == looks
    half = Scene(scene.place, scene.cast, scene.action, looks=looks[:1])
    assert half.looks == (looks[0], None)


def test_moments_in_which_the_actors_are_hidden_are_near_to_nothing() -> None:
    """Behind a door that has closed, a few pixels of a tail are left: like almost any picture."""
    scene = Scene(Place.SUBWAY_TRAIN, (Character.CORGI,), Action.GET_OFF)
    scene = scene.but(looks=(Look("orange"),), light=Light.DAY, arrangement=0)
    picture, tags = scene.stage(1).frame(33 / FPS)
    left = tags > 0
    assert 0 < left.sum() < 60
    assert not (tags & 15 == Part.HEAD).any()
    rows, columns = np.nonzero(left)
    there = (slice(rows.min() - 3, rows.max() + 4), slice(columns.min() - 3, columns.max() + 4))
    frames = np.full((36, *picture.shape), 128, np.uint8)
    frames[:, *there] = picture[there]
    found = nearest_true(scene, frames, 1)
    assert np.isfinite(found).all()
    assert max(found) < 17
