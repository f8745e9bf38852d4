"""Drawing clips: frames, and masks of what every pixel belongs to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from .basics import (
    BALL_RADIUS,
    BALL_RED,
    BALL_TAG,
    PAN_SECONDS,
    STAIR_SLOPE,
    SUPERSAMPLING,
    TEMPO,
    TURN,
    VIEW_HEIGHT,
    WHITE,
    ByteArray,
    Point,
    mix,
    shade,
)
from .canvas import Canvas
from .characters import draw_animal, draw_person
from .model import (
    DOOR_ACTIONS,
    LEAVER,
    PEOPLE,
    Actor,
    Anchors,
    Clip,
    Light,
    Part,
    Place,
    Pose,
    View,
    tag_of,
)
from .motions import Shown, ball_position, door_opening, door_progress, shown_at
from .places import PLACE_STYLES, door_centre, draw_door

_IS_OWNED = [0] + 255 * [255]  # from tags to coverage

# What light multiplies the colours of the scenery and of the actors by.
LIGHTS: dict[Light, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    Light.DAY: ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    Light.DUSK: ((1.0, 0.72, 0.52), (1.0, 0.88, 0.74)),
    Light.NIGHT: ((0.33, 0.4, 0.63), (0.72, 0.76, 0.92)),
}


class Stage:
    """Draws the frames of one clip at one size; the scenery is painted only once."""

    def __init__(self, clip: Clip, width: int, height: int) -> None:
        self.clip = clip
        self.width = width
        self.height = height
        self._scale = height * SUPERSAMPLING / VIEW_HEIGHT
        self._style = PLACE_STYLES[clip.place]
        self.view = _view_of(clip, width / height * VIEW_HEIGHT)
        reach = clip.pan * PAN_SECONDS
        self._origin = min(0.0, reach)
        columns = round((self.view.width + abs(reach)) * self._scale)
        image = Image.new("RGBX", (max(columns, width * SUPERSAMPLING), height * SUPERSAMPLING))
        scenery = Canvas(image, self._scale, self._origin)
        self._style.paint(scenery, clip.backdrop, self.view.width)
        self._scenery = image

    def frame(self, t: float, empty: bool = False) -> tuple[ByteArray, ByteArray]:
        """Return the image (H, W, 3) and the tags (H, W) ``t`` seconds into the clip; ``empty`` of actors."""
        t *= TEMPO
        canvas = self._window(t)
        clip, view = self.clip, self.view
        pan = canvas.origin
        if self._style.animate:
            self._style.animate(canvas, clip.backdrop, t, view.width)
        canvas.origin = 0.0
        shown, leaving = shown_at(clip, t, view, self._style.bench)
        if empty:
            leaving = []
        for one in () if empty else (*shown, *leaving):
            if one.pose.shadow:
                self._draw_shadow(canvas, one.pose)
        for one in leaving:
            draw_actor(canvas, one.actor, one.pose, tag_of(LEAVER, Part.BODY))
        anchors = {}
        for index in () if empty else sorted(range(len(shown)), key=lambda i: clip.actors[i].depth):
            actor, pose, *_ = shown[index]
            anchors[index] = draw_actor(canvas, actor, pose, tag_of(index + 1, Part.BODY))
        ball = None if empty else self._ball(shown[0], anchors[0], t)
        if ball:
            with canvas.owned(BALL_TAG):
                draw_ball(canvas, *ball)
        if clip.backdrop.door:
            progress = door_progress(shown[0].actor, shown[0].clock, clip.place is Place.SUBWAY_TRAIN)
            opening = door_opening(progress) if clip.action in DOOR_ACTIONS else 0.0
            draw_door(canvas, clip.backdrop, view.width, opening)
        if self._style.overlay:
            canvas.origin = pan
            self._style.overlay(canvas, clip.backdrop, t, view.width)
        return self._finish(canvas.image)

    def settled(self, t: float) -> tuple[Clip, float]:
        """Return what the clip is ``t`` seconds into it, without a former one, and at which world second."""
        shown, _ = shown_at(self.clip, t * TEMPO, self.view, self._style.bench)
        return replace(self.clip, former=None, actors=tuple(one.actor for one in shown)), shown[0].clock

    def _ball(self, first: Shown, anchors: Anchors, t: float) -> Point | None:
        """Return where the ball is, if there is one; after a former clip, it rolls in or out."""
        clip, view, own = self.clip, self.view, None
        if clip.ball:
            own = ball_position(first.actor, first.pose, anchors, first.clock, view)
        if first.own == 1.0 or clip.former is None or not (clip.ball or clip.former.ball):
            return own
        aside = (view.width + 2 * BALL_RADIUS, view.ground - BALL_RADIUS + 1)
        x, y = aside
        if clip.former.ball:
            x, y = ball_position(clip.former.actors[0], first.pose, anchors, clip.began + t, view)
        to_x, to_y = own or aside
        return mix(x, to_x, first.own), mix(y, to_y, first.own)

    def _window(self, t: float) -> Canvas:
        """Return a canvas holding the part of the scenery that the camera sees."""
        offset = self.clip.pan * max(0.0, min(PAN_SECONDS, t))
        column = round((offset - self._origin) * self._scale)
        pixels = (self.width * SUPERSAMPLING, self.height * SUPERSAMPLING)
        column = max(0, min(column, self._scenery.width - pixels[0]))
        window = self._scenery.crop((column, 0, column + pixels[0], pixels[1]))
        return Canvas(window, self._scale, column / self._scale + self._origin)

    def _draw_shadow(self, canvas: Canvas, pose: Pose) -> None:
        wide = 0.5 if pose.stance == "lie" else 0.38
        width = wide * pose.size * (1 - 0.02 * pose.hop)
        canvas.slope, canvas.pivot = pose.slope, pose.x
        canvas.ellipse(pose.x, pose.y + 0.2, width, 1.7, self._style.shadow)
        canvas.slope = 0.0
        if pose.dust:
            back = -1 if pose.facing > 0 else 1
            for puff in range(2):
                grow = (pose.stride or 0.0) / TURN * 2 % 1.0 + puff
                x = pose.x + back * (0.42 * pose.size + 4.5 * grow)
                tone = shade(self._style.shadow, 1.42)
                canvas.ellipse(x, pose.y - 1 - 1.6 * grow, 2.6 - 0.7 * grow, 1.9 - 0.5 * grow, tone)

    def _finish(self, image: Image.Image) -> tuple[ByteArray, ByteArray]:
        """Average the colours, light them, and pick the tags of the pixels' centres."""
        small = np.asarray(image.reduce(SUPERSAMPLING))[..., :3]
        tags = np.ascontiguousarray(np.asarray(image)[..., 3][1::SUPERSAMPLING, 1::SUPERSAMPLING])
        if self.clip.backdrop.light is not Light.DAY:
            scenery, actors = LIGHTS[self.clip.backdrop.light]
            covered = image.getchannel("X").point(_IS_OWNED).reduce(SUPERSAMPLING)
            share = np.asarray(covered, np.float32)[..., None] / 255
            light = np.array(scenery, np.float32) * (1 - share) + np.array(actors, np.float32) * share
            small = (small * light).astype(np.uint8)
        return np.ascontiguousarray(small), tags


def _view_of(clip: Clip, width: float) -> View:
    """Return the geometry of a clip in a view of ``width`` units."""
    backdrop = clip.backdrop
    slope = STAIR_SLOPE * backdrop.direction if clip.place is Place.SUBWAY_STAIRS else 0.0
    floor = backdrop.ground - (7 if clip.place is Place.SUBWAY_TRAIN else 10)
    door_x = door_centre(backdrop, width) if backdrop.door else None
    return View(width, backdrop.ground, slope, door_x, floor)


def draw_actor(canvas: Canvas, actor: Actor, pose: Pose, tag: int) -> Anchors:
    """Draw an actor under its tag."""
    with canvas.owned(tag, pose.slope, pose.x):
        if actor.character in PEOPLE:
            anchors = draw_person(canvas, actor, pose)
        else:
            anchors = draw_animal(canvas, actor, pose)
        if pose.snore is not None:
            _draw_snore(canvas, pose, anchors.mouth)
    return anchors


def _draw_snore(canvas: Canvas, pose: Pose, mouth: Point) -> None:
    """Draw two rising z's over a sleeper's head."""
    for index in range(2):
        rise = ((pose.snore or 0.0) + 0.5 * index) % 1.0
        x = mouth[0] + 2 + 7 * rise
        y = mouth[1] - 14 - 24 * rise
        size = 1.8 + 1.6 * rise
        points = [
            (x - size, y - size),
            (x + size, y - size),
            (x - size, y + size),
            (x + size, y + size),
        ]
        canvas.line(points, 2.6, (46, 52, 110))
        canvas.line(points, 1.3, WHITE)


def draw_frame(clip: Clip, t_seconds: float, width: int, height: int) -> tuple[ByteArray, ByteArray]:
    """Draw one frame of a clip.

    Returns the image, uint8 (height, width, 3), and the tags, uint8 (height, width): 0 for
    the background, `model.tag_of` an actor (1, 2, ..., ``LEAVER``) and its part, ``BALL_TAG`` for the ball.
    """
    return Stage(clip, width, height).frame(t_seconds)


def draw_clip(clip: Clip, frames: int, fps: float, width: int, height: int) -> tuple[ByteArray, ByteArray]:
    """Draw a whole clip: images (frames, height, width, 3) and tags (frames, height, width)."""
    stage = Stage(clip, width, height)
    images = np.empty((frames, height, width, 3), np.uint8)
    tags = np.empty((frames, height, width), np.uint8)
    for index in range(frames):
        images[index], tags[index] = stage.frame(index / fps)
    return images, tags


def draw_ball(canvas: Canvas, x: float, y: float) -> None:
    """Draw the shiny red ball centred at (x, y)."""
    canvas.ellipse(x, y, BALL_RADIUS, BALL_RADIUS, BALL_RED)
    canvas.ellipse(x - 1.2, y - 1.4, 1.2, 1.05, (255, 176, 176))
