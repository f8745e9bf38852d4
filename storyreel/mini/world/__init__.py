"""A procedural cartoon world: labelled video clips for training a tiny text-to-video model.

Everything is drawn in *view units*: a frame is always ``VIEW_HEIGHT`` (64) units high and
``64 * width / height`` units wide, whatever its size in pixels. ``x`` grows to the right and
``y`` grows downwards. Lengths inside a character are in *body units* (multiples of the
actor's size). Angles are in radians and times in seconds.

Typical use::

    rng = random.Random(7)
    clip = sample_clip(rng, place=Place.CENTRAL_PARK)
    frames, masks = draw_clip(clip, frames=13, fps=12, width=96, height=64)
    text = caption(rng, clip, kind="both")
"""

from .basics import BALL_TAG, TEMPO, ByteArray, owners_of
from .captions import CaptionKind, Telling, caption, lit, look_name, plain_telling, sample_telling
from .drawing import Stage, draw_clip, draw_frame
from .model import (
    ARRANGEMENTS,
    BALL_ACTIONS,
    COLOURS,
    DOOR_ACTIONS,
    DUET_ACTIONS,
    LEAVER,
    LOOKS,
    PEOPLE,
    Action,
    Actor,
    Backdrop,
    Character,
    Clip,
    Light,
    Look,
    Part,
    Place,
    allowed_actions,
    tag_of,
    wear_of,
)
from .motions import comes_in
from .sampling import sample_clip, stage_clip

__all__ = [
    "ARRANGEMENTS",
    "BALL_ACTIONS",
    "BALL_TAG",
    "COLOURS",
    "DOOR_ACTIONS",
    "DUET_ACTIONS",
    "LEAVER",
    "LOOKS",
    "PEOPLE",
    "TEMPO",
    "Action",
    "Actor",
    "Backdrop",
    "ByteArray",
    "CaptionKind",
    "Character",
    "Clip",
    "Light",
    "Look",
    "Part",
    "Place",
    "Stage",
    "Telling",
    "allowed_actions",
    "caption",
    "comes_in",
    "draw_clip",
    "draw_frame",
    "lit",
    "look_name",
    "owners_of",
    "plain_telling",
    "sample_clip",
    "sample_telling",
    "stage_clip",
    "tag_of",
    "wear_of",
]
