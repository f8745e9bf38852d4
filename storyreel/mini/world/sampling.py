"""Random clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from .basics import (
    Colour,
)
from .model import (
    ARRANGEMENTS,
    BALL_ACTIONS,
    DOOR_ACTIONS,
    DUET_ACTIONS,
    LANDMARK_PLACES,
    LOOKS,
    REPLY_ACTIONS,
    SOLO_ACTIONS,
    Action,
    Actor,
    Backdrop,
    Character,
    Clip,
    Light,
    Look,
    Place,
    allowed_actions,
)


def _tint(rng: Random, amount: int) -> Colour:
    return (
        rng.randint(-amount, amount),
        rng.randint(-amount, amount),
        rng.randint(-amount, amount),
    )


def _sample_backdrop(rng: Random, place: Place, door: bool) -> Backdrop:
    low, high = {
        Place.SUBWAY_STAIRS: (46.0, 50.0),
        Place.BUS_WINDOW: (59.0, 61.5),
    }.get(place, (57.0, 60.5))
    return Backdrop(
        place=place,
        tint=_tint(rng, 10),
        noise=tuple(rng.random() for _ in range(16)),
        ground=rng.uniform(low, high),
        direction=rng.choice((-1, 1)),
        shift=rng.uniform(-0.5, 0.5),
        door=door,
        arrangement=rng.randrange(ARRANGEMENTS),
        light=rng.choice(tuple(Light)),
    )


def _sample_actor(rng: Random, character: Character, action: Action, backdrop: Backdrop) -> Actor:
    stairs = backdrop.place is Place.SUBWAY_STAIRS
    facing = rng.choice((-1, 1))
    x = rng.uniform(0.4, 0.6)
    speed = 0.0
    if action in (Action.WALK, Action.RUN):
        speed = rng.uniform(18, 26) if action is Action.WALK else rng.uniform(34, 44)
        x = 0.5 - facing * rng.uniform(0.1, 0.2) * (1 if action is Action.WALK else 1.6)
        if stairs:
            facing, speed = backdrop.direction, rng.uniform(14, 20)
            x = 0.5 - facing * rng.uniform(0.08, 0.18)
    elif action in BALL_ACTIONS and action not in (Action.BITE, Action.GRIP):
        x = 0.5 - facing * rng.uniform(0.08, 0.18)
    elif action in DOOR_ACTIONS:
        x = 0.5 + rng.choice((-1, 1)) * rng.uniform(0.26, 0.32)
    elif backdrop.place in LANDMARK_PLACES:
        x -= 0.1 * backdrop.direction  # beside the landmark
    return Actor(
        character=character,
        action=action,
        x=x,
        size=rng.uniform(27, 30) if stairs else rng.uniform(31, 36),
        facing=facing,
        phase=rng.random(),
        speed=speed,
        look=rng.choice(LOOKS[character]),
        tint=_tint(rng, 12),
        noise=(rng.random(), rng.random(), rng.random()),
    )


def _sample_duet(
    rng: Random, cast: Sequence[Character], action: Action, backdrop: Backdrop
) -> tuple[Actor, ...]:
    """Place two actors side by side, face to face or one behind the other."""
    facing = backdrop.direction if backdrop.place is Place.SUBWAY_STAIRS else rng.choice((-1, 1))
    first = _sample_actor(rng, cast[0], action, backdrop)
    second = _sample_actor(rng, cast[1], REPLY_ACTIONS.get(action, action), backdrop)
    size = rng.uniform(25, 28)
    gap = 0.4
    turned = facing
    if action is Action.MEET:
        gap, turned = 0.38, -facing
    elif action is Action.CATCH:
        gap = 0.3
    elif action in (Action.WALK, Action.RUN, Action.CHASE, Action.LIE, Action.SLEEP):
        gap = 0.42
    elif rng.random() < 0.5:
        turned = -facing
    middle = 0.5 + rng.uniform(-0.03, 0.03)
    speed = first.speed if action in (Action.WALK, Action.RUN) else 0.0
    middle -= facing * 0.1 if speed else 0.0
    waits = 0.8 if action is Action.MEET else 0.2  # the first of a meeting arrives
    first = replace(
        first,
        x=middle - facing * gap / 2,
        size=size,
        facing=facing,
        speed=speed,
        depth=1.0,
        noise=(0.2, *first.noise[1:]),
    )
    second = replace(
        second,
        x=middle + facing * gap / 2,
        size=size * rng.uniform(0.94, 1.04),
        facing=turned,
        speed=speed,
        noise=(waits, *second.noise[1:]),
    )
    return first, second


def _sample_cast(rng: Random, place: Place, action: Action | None) -> tuple[Character, ...]:
    """Choose one or two different characters who can do ``action``."""
    pool = [
        character
        for character in Character
        if action is None or action in DUET_ACTIONS or action in allowed_actions(character, place)
    ]
    solo = action in SOLO_ACTIONS or place is Place.SUBWAY_STAIRS
    count = 2 if action in DUET_ACTIONS else 1 if solo or rng.random() < 0.72 else 2
    return tuple(rng.sample(pool, min(count, len(pool))))


def _sample_action(rng: Random, cast: Sequence[Character], place: Place) -> Action:
    """Choose an action that everybody in ``cast`` can do at ``place``."""
    options = [
        action
        for action in allowed_actions(cast[0], place)
        if all(action in allowed_actions(other, place) for other in cast[1:])
    ]
    if len(cast) > 1:
        options = [a for a in options if a not in SOLO_ACTIONS]
        if place is not Place.SUBWAY_STAIRS:
            options += sorted(DUET_ACTIONS)
    return rng.choice(options)


def sample_clip(
    rng: Random,
    place: Place | None = None,
    cast: Sequence[Character] | None = None,
    action: Action | None = None,
) -> Clip:
    """Draw the parameters of a random clip; whatever is given is kept.

    ``cast`` holds one or two characters; for MEET, CHASE and CATCH the first one acts.
    Ball and door actions are for one character. Raises ValueError for an empty or too large
    cast and if somebody in ``cast`` cannot do ``action`` at ``place``.
    """
    if cast is not None and len(cast) not in (1, 2):
        raise ValueError(f"a clip has one or two characters, not {len(cast)}")
    if place is None:
        places = [p for p in Place if action is None or _possible(p, cast, action)]
        if not places:
            raise ValueError(f"{' and '.join(cast or ())} cannot {action} anywhere")
        place = rng.choice(places)
    if cast is None:
        cast = _sample_cast(rng, place, action)
    if action is None:
        action = _sample_action(rng, cast, place)
    if not _possible(place, cast, action):
        raise ValueError(f"{' and '.join(cast)} cannot {action} at the {place}")
    backdrop = _sample_backdrop(rng, place, door=action in DOOR_ACTIONS)
    if len(cast) > 1:
        actors = _sample_duet(rng, cast, action, backdrop)
    else:
        actors = (_sample_actor(rng, cast[0], action, backdrop),)
    pan, actors = _sample_camera(rng, place, action, actors)
    return Clip(backdrop, actors, ball=action in BALL_ACTIONS, pan=pan)


def _possible(place: Place, cast: Sequence[Character] | None, action: Action) -> bool:
    """Tell whether ``cast`` (anybody if None) can do ``action`` at ``place``."""
    if action in DUET_ACTIONS:
        return place is not Place.SUBWAY_STAIRS and (cast is None or len(cast) == 2)
    if cast is None:
        return any(action in allowed_actions(character, place) for character in Character)
    if len(cast) > 1 and action in SOLO_ACTIONS:
        return False
    return all(action in allowed_actions(character, place) for character in cast)


def _sample_camera(
    rng: Random, place: Place, action: Action, actors: tuple[Actor, ...]
) -> tuple[float, tuple[Actor, ...]]:
    """Choose the camera's pan; a following camera keeps walkers and runners on the spot."""
    if place is Place.SUBWAY_STAIRS or action in DOOR_ACTIONS:
        return 0.0, actors
    facing = actors[0].facing
    if action in (Action.WALK, Action.RUN, Action.CHASE) and rng.random() < 0.6:
        speed = rng.uniform(10, 14) if action is Action.WALK else rng.uniform(20, 28)
        still = tuple(replace(actor, speed=0.0) for actor in actors)
        return facing * speed, still
    if action is Action.CHASE:
        speed = rng.uniform(17, 24)
        moved = (replace(a, speed=speed, x=a.x - 0.12 * facing) for a in actors)
        return 0.0, tuple(moved)
    return (rng.uniform(-4, 4) if rng.random() < 0.3 else 0.0), actors


STAGE_GROUND = {Place.SUBWAY_STAIRS: 48.0, Place.BUS_WINDOW: 60.0}
STAGE_SPEED = {Action.WALK: 14.0, Action.RUN: 20.0}  # nobody reaches the edge within three seconds
MIRRORED = LANDMARK_PLACES | {Place.BUS_STOP}  # their second set has everything on the other side


def stage_clip(
    rng: Random,
    place: Place,
    cast: Sequence[Character],
    action: Action,
    ball: bool = False,
    looks: Sequence[Look | None] = (),
    light: Light | None = None,
    arrangement: int | None = None,
) -> Clip:
    """Return a clip on one of the place's standing sets, as a cartoon series would shoot it.

    Whatever a small model need not learn is fixed: the two sets of a place, the ground line,
    sizes, the direction that everybody faces, and the camera. Looks, light and set are drawn at
    random where they are not given, and a little of the start position and of the phase of the
    motion; free phases came out as doubled legs. ``ball`` puts the red ball into actions that do
    without one. Raises ValueError like `sample_clip`.
    """
    clip = sample_clip(rng, place, cast, action)
    drawn = clip.backdrop
    arrangement = drawn.arrangement if arrangement is None else arrangement
    backdrop = replace(
        _sample_backdrop(Random(f"set {arrangement} of {place}"), place, drawn.door),
        tint=(0, 0, 0),
        ground=STAGE_GROUND.get(place, 59.0),
        direction=-1 if arrangement and place in MIRRORED else 1,
        shift=0.0,
        arrangement=arrangement,
        light=drawn.light if light is None else light,
    )
    clip = replace(clip, backdrop=backdrop, ball=ball or clip.ball, pan=0.0)
    single = 28.0 if place is Place.SUBWAY_STAIRS else 35.0
    shift, phase = rng.uniform(-0.004, 0.004), rng.uniform(0.0, 0.02)
    actors = tuple(
        replace(
            actor,
            x=_mark(clip, index) + shift,
            size=single if len(cast) == 1 else min(single, 31.0),
            facing=-1 if index and action is Action.MEET else 1,
            phase=phase,
            speed=STAGE_SPEED.get(action, 0.0) * (1.0 if len(cast) == 1 else 0.4),
            look=(looks[index] if index < len(looks) else None) or actor.look,
            tint=(0, 0, 0),
            noise=(actor.noise[0] if len(cast) > 1 else 0.9, 0.5, 0.5),
        )
        for index, actor in enumerate(clip.actors)
    )
    return replace(clip, actors=actors)


def _mark(clip: Clip, index: int) -> float:
    """Return where an actor of a staged clip stands, as a fraction of the view's width."""
    action = clip.action
    if len(clip.actors) > 1:
        if action in (Action.WALK, Action.RUN):  # side by side, not apart
            return 0.22 + 0.38 * index
        return 0.5 + (0.36 if action is Action.CATCH else 0.44) * (index - 0.5)
    if action in DOOR_ACTIONS:
        return 0.22
    if action in (Action.WALK, Action.RUN):
        return 0.34 if action is Action.WALK else 0.3
    if action is Action.BITE:
        return 0.46
    if action in BALL_ACTIONS or action is Action.SPIN:
        return 0.4
    if clip.place in LANDMARK_PLACES:  # beside the landmark
        return 0.5 - 0.08 * clip.backdrop.direction
    return 0.5
