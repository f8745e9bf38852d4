"""Constants, types and small functions shared by the cartoon world's modules."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

VIEW_HEIGHT = 64.0
SUPERSAMPLING = 2
BALL_TAG = 255
PART_BITS = 4  # of a tag: the lower ones say which part of an actor it is
BALL_RADIUS = 4.0
PAN_SECONDS = 6.0  # the painted backdrop is wide enough for this much panning
PERSON_HEIGHT = 1.25  # a person's body unit relative to an animal's
STAIR_SLOPE = 0.45  # rise over run
TEMPO = 0.65  # world seconds per film second: slow enough for three frames in one latent
TURN = 2.0 * math.pi

Colour = tuple[int, int, int]
Point = tuple[float, float]
ByteArray = NDArray[np.uint8]

WHITE: Colour = (255, 255, 255)
INK: Colour = (35, 26, 26)
BALL_RED: Colour = (220, 22, 30)


def clamp(red: float, green: float, blue: float) -> Colour:
    """Return a colour with every channel limited to 0-255."""
    return (
        int(max(0.0, min(255.0, red))),
        int(max(0.0, min(255.0, green))),
        int(max(0.0, min(255.0, blue))),
    )


def shade(colour: Colour, factor: float) -> Colour:
    """Return ``colour`` darkened (< 1) or lightened (> 1)."""
    return clamp(colour[0] * factor, colour[1] * factor, colour[2] * factor)


def mix(first: float, second: float, amount: float) -> float:
    """Blend linearly from ``first`` (amount 0) to ``second`` (amount 1)."""
    return first + (second - first) * amount


def ease(value: float) -> float:
    """Smooth step from 0 to 1 for ``value`` from 0 to 1."""
    value = max(0.0, min(1.0, value))
    return value * value * (3 - 2 * value)


def wave(t: float, hertz: float, phase: float = 0.0) -> float:
    """Return a sine of ``hertz`` cycles per second; ``phase`` is in cycles."""
    return math.sin(TURN * (hertz * t + phase))


def owners_of(tags: ByteArray) -> ByteArray:
    """Return who owns each pixel: 0 the background, 1, 2, ... the actors, ``BALL_TAG`` the ball."""
    return np.where(tags == BALL_TAG, BALL_TAG, tags >> PART_BITS).astype(np.uint8)
