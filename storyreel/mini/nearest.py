"""How near a film of mini is to what it should show, measured without any network.

A generated picture is compared, inside the actors, with every picture that the world can draw for its
scene: other positions and phases, other moments. What the prompts leave open (looks, light, the set) is
taken as the picture has it. The judge can be fooled by what it was trained on; this cannot: a crossbreed,
a ghost or a smear is far from every true picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .lessons import FPS, HEIGHT, WIDTH
from .world import ARRANGEMENTS, LOOKS, Action, ByteArray, Character, Light, Look, Place, Stage, stage_clip

CLIPS = 24  # true ones that a scene is compared with
SEED = 77
SEEN = 500  # pixels: a true picture with less of its actors is near to anything, and no measure
GROWN = 5  # pixels: the window that widens a mask, so that what sticks out of an actor counts too

FloatArray = NDArray[np.float32]


class Scene:
    """What a scene shows, as far as its prompts say; ``looks`` holds None where they leave it open."""

    def __init__(
        self,
        place: Place,
        cast: Sequence[Character],
        action: Action,
        ball: bool = False,
        looks: Sequence[Look | None] = (),
        light: Light | None = None,
        arrangement: int | None = None,
    ) -> None:
        self.place, self.cast, self.action, self.ball = place, tuple(cast), action, ball
        self.looks: tuple[Look | None, ...] = (*looks, *(None,) * (len(self.cast) - len(looks)))
        self.light, self.arrangement = light, arrangement

    def stage(self, seed: int) -> Stage:
        """Return one true clip of the scene."""
        clip = stage_clip(
            Random(f"{SEED} {seed}"),
            self.place,
            self.cast,
            self.action,
            self.ball,
            self.looks,
            self.light,
            self.arrangement,
        )
        return Stage(clip, WIDTH, HEIGHT)

    def but(self, **changes: Any) -> Scene:
        """Return the scene with something more decided."""
        facts = vars(self) | changes
        return Scene(**facts)


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.filter(ImageFilter.MaxFilter(GROWN))) > 0


def _error(frame: ByteArray, other: ByteArray, where: NDArray[np.bool_]) -> float:
    difference = frame[where].astype(np.float32) - other[where]
    return float(np.square(difference).mean()) if difference.size else 0.0


def completed(scene: Scene, frames: ByteArray) -> Scene:
    """Decide what a scene leaves open as the pictures (T, H, W, 3) have it: set and light, then looks."""
    moments = list(range(0, len(frames), max(1, len(frames) // 4)))

    def cost(candidate: Scene, inside: bool) -> float:
        stage, total = candidate.stage(0), 0.0
        for index in moments:
            picture, tags = stage.frame(index / FPS)
            where = _grown(tags > 0)
            total += _error(frames[index], picture, where if inside else ~where)
        return total

    lights = [scene.light] if scene.light else list(Light)
    sets = [scene.arrangement] if scene.arrangement is not None else list(range(ARRANGEMENTS))
    backdrops = [scene.but(light=light, arrangement=a) for light, a in product(lights, sets)]
    scene = min(backdrops, key=lambda s: cost(s, inside=False))
    for index, who in enumerate(scene.cast):
        if scene.looks[index] is None:
            options = [
                scene.but(looks=(*scene.looks[:index], look, *scene.looks[index + 1 :]))
                for look in LOOKS[who]
            ]
            scene = min(options, key=lambda s: cost(s, inside=True))
    return scene


def nearest_true(scene: Scene, frames: ByteArray, clips: int = CLIPS) -> list[float]:
    """Return each picture's PSNR in dB, inside the actors, against the nearest true picture of its scene.

    ``frames`` are uint8 (T, H, W, 3) at 12 a second. The nearest is taken over ``clips`` true clips
    and all of their moments, but for those in which the actors are hidden, as behind a closing door.
    """
    scene = completed(scene, frames)
    shown = frames.reshape(len(frames), -1).astype(np.float32) / 255
    squares = np.square(shown)
    best = np.full(len(frames), np.inf, np.float32)
    for seed in range(1, clips + 1):
        stage = scene.stage(seed)
        drawn = [stage.frame(index / FPS) for index in range(len(frames))]
        true = np.stack([picture.reshape(-1) for picture, _ in drawn]).astype(np.float32) / 255
        inside = np.stack([np.repeat(_grown(tags > 0).ravel(), 3) for _, tags in drawn]).astype(np.float32)
        # (shown - true)² over the inside of every true picture at once, as three products of matrices.
        errors = squares @ inside.T - 2 * shown @ (inside * true).T + (inside * np.square(true)).sum(1)
        area = inside.sum(1)
        seen = area >= 3 * SEEN
        best = np.minimum(best, (errors[:, seen] / area[seen]).min(1, initial=np.inf))
    return [-10 * math.log10(max(float(error), 1e-6)) for error in best]
