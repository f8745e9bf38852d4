"""The actions: how poses and the ball move over time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from .basics import (
    BALL_RADIUS,
    TURN,
    Colour,
    Point,
    ease,
    mix,
    wave,
)
from .model import (
    DOOR_ACTIONS,
    PEOPLE,
    Action,
    Actor,
    Anchors,
    Clip,
    Pose,
    View,
)


def _patrol(actor: Actor, t: float, view: View) -> tuple[float, int]:
    """Walk to and fro between the frame's edges; return x and the direction."""
    margin = 0.7 * actor.size
    span = max(1.0, view.width - 2 * margin)
    start = max(0.0, min(span, actor.x * view.width - margin))
    if actor.speed == 0.0:
        return margin + start, actor.facing
    travel = (start if actor.facing > 0 else 2 * span - start) + actor.speed * t
    travel %= 2 * span
    return (margin + travel, 1) if travel < span else (margin + 2 * span - travel, -1)


def _step(pose: Pose, t: float, actor: Actor, hertz: float, reach: float) -> None:
    """Make the legs and arms swing."""
    pose.stride = TURN * (hertz * t + actor.phase)
    pose.reach = reach
    pose.bob = 1.4 * math.cos(2 * pose.stride)
    swing = 4.2 * reach * math.sin(pose.stride)
    pose.arms = ((swing, 0.25), (-swing, 0.25))


def _stand(pose: Pose, actor: Actor, t: float, view: View) -> None:
    pose.bob = 0.6 * wave(t, 0.9, actor.phase)


def _sit(pose: Pose, actor: Actor, t: float, view: View) -> None:
    pose.stance = "sit"
    pose.bob = wave(t, 0.9, actor.phase)
    pose.arms = ((0.5, 0.7), (0.5, 0.7))


def _walk(pose: Pose, actor: Actor, t: float, view: View) -> None:
    _step(pose, t, actor, 1.5, 0.15)
    pose.x, pose.facing = _patrol(actor, t, view)
    pose.yaw = 0.6 * pose.facing
    pose.tail = 0.35 * wave(t, 1.5, actor.phase)


def _run(pose: Pose, actor: Actor, t: float, view: View) -> None:
    _walk(pose, actor, t, view)
    _gallop(pose, actor, t)


def _gallop(pose: Pose, actor: Actor, t: float) -> None:
    """Turn a walk into a run: long, fast strides, bent arms, hops and dust."""
    _step(pose, t, actor, 1.8, 0.25)
    pose.hop = 3.6 * abs(wave(t, 0.9, actor.phase))
    pose.lean = 0.25
    swing = 1.1 * wave(t, 1.8, actor.phase)
    pose.arms = ((swing, 1.4), (-swing, 1.4))
    pose.tail = 0.2 + 0.3 * wave(t, 1.8, actor.phase)
    pose.dust = True


def _look_around(pose: Pose, actor: Actor, t: float, view: View) -> None:
    _stand(pose, actor, t, view)
    if actor.noise[0] < 0.35:
        _sit(pose, actor, t, view)
    pose.yaw = 1.1 * actor.facing * math.tanh(2.6 * wave(t, 0.75, actor.phase))
    pose.x += 1.6 * pose.yaw


def _look_out(pose: Pose, actor: Actor, t: float, view: View) -> None:
    _stand(pose, actor, t, view)
    if actor.noise[0] < 0.5 and actor.character not in PEOPLE:
        _sit(pose, actor, t, view)
    pose.pitch = 0.95 + 0.1 * wave(t, 0.8, actor.phase)
    pose.yaw = actor.facing * (0.75 + 0.25 * wave(t, 0.6, actor.phase))
    pose.tilt = -0.35 * actor.facing
    pose.arms = ((2.0, 1.25), (-0.15, 0.2))


def _tilt(pose: Pose, actor: Actor, t: float, view: View) -> None:
    _stand(pose, actor, t, view)
    if actor.noise[0] < 0.5 and actor.character not in PEOPLE:
        _sit(pose, actor, t, view)
    pose.yaw = 0.25 * actor.facing
    pose.tilt = 0.75 * math.tanh(2.2 * wave(t, 0.8, actor.phase))


def _wag(pose: Pose, actor: Actor, t: float, view: View) -> None:
    _stand(pose, actor, t, view)
    pose.tail = 0.25 + 1.0 * wave(t, 1.6, actor.phase)
    pose.bob = 1.3 * wave(t, 1.6, actor.phase)
    pose.x += 1.6 * wave(t, 1.6, actor.phase)
    pose.smile = 0.5


def _wave_hand(pose: Pose, actor: Actor, t: float, view: View) -> None:
    _stand(pose, actor, t, view)
    pose.arms = (
        (2.35 + 0.2 * wave(t, 1.5, actor.phase), 0.5 + 0.8 * wave(t, 1.5, actor.phase)),
        (-0.12, 0.15),
    )
    pose.smile = 0.55
    pose.yaw *= 0.5


def _sniff(pose: Pose, actor: Actor, t: float, view: View) -> None:
    _step(pose, t, actor, 0.9, 0.06)
    pose.pitch = -0.95 + 0.13 * wave(t, 1.5, actor.phase)
    pose.x += actor.facing * 3.5 * wave(t, 0.45, actor.phase)
    pose.yaw = 0.75 * actor.facing
    pose.tail = 0.4 * wave(t, 1.5, actor.phase)


def _see_ball(pose: Pose, actor: Actor, t: float, view: View) -> None:
    _stand(pose, actor, t, view)
    pose.pitch = -0.45 if actor.character not in PEOPLE else -0.8
    pose.lean = 0.2
    pose.yaw = 0.8 * actor.facing
    pose.tail = 0.7 * wave(t, 1.5, actor.phase)
    pose.smile = 0.3


def _watch_ball(pose: Pose, actor: Actor, t: float, view: View) -> None:
    _stand(pose, actor, t, view)
    height = math.sin(math.pi * _flight(actor, t))
    pose.pitch = mix(-0.1, 1.0, height)
    pose.yaw = 0.85 * actor.facing


def _bite(pose: Pose, actor: Actor, t: float, view: View) -> None:
    _stand(pose, actor, t, view)
    s = t + 0.5 * actor.phase
    pose.pitch = -0.95 * (1 - ease((s - 0.3) / 0.3))
    shake = ease((s - 0.55) / 0.15)
    pose.yaw = actor.facing * 0.6 + 0.3 * shake * wave(t, 1.4)
    pose.tilt = 0.22 * shake * wave(t, 1.4)
    pose.tail = 0.6 * wave(t, 1.4, actor.phase)


def _grip(pose: Pose, actor: Actor, t: float, view: View) -> None:
    _stand(pose, actor, t, view)
    lift = 0.25 * wave(t, 1.2, actor.phase)
    pose.arms = ((1.35 + lift, 0.35), (0.6, 0.9))
    pose.smile = 0.4
    pose.pitch = -0.3


def _pick_up(pose: Pose, actor: Actor, t: float, view: View) -> None:
    s = t + 0.2 * actor.phase
    bend = ease(s / 0.4) if s < 0.5 else 1 - ease((s - 0.5) / 0.4)
    pose.lean = 1.2 * bend
    pose.crouch = bend
    pose.arms = ((mix(1.3 if s > 0.5 else 0.1, 0.1, bend), 0.1), (-0.2 * bend, 0.2))
    pose.pitch = -0.5 * bend


def _kick(pose: Pose, actor: Actor, t: float, view: View) -> None:
    since = t - _release_time(actor)
    pose.kick = max(0.0, 1 - abs(since) / 0.22)
    if since < -0.15:
        pose.kick = -0.5 * ease((since + 0.4) / 0.2)
    pose.yaw = 0.8 * actor.facing
    pose.pitch = -0.2
    pose.lean = -0.2 * max(0.0, pose.kick)
    pose.arms = ((-0.7 * pose.kick, 0.2), (0.7 * pose.kick, 0.2))
    pose.tail = 0.4 * wave(t, 1.4, actor.phase)


def _throw(pose: Pose, actor: Actor, t: float, view: View) -> None:
    since = t - _release_time(actor)
    wind = ease((since + 0.42) / 0.3)
    angle = mix(1.0, 3.7, wind) if since < -0.1 else mix(3.7, 0.9, ease((since + 0.1) / 0.2))
    pose.arms = ((angle, 0.1), (0.5, 0.3))
    pose.lean = -0.2 * wind if since < -0.1 else 0.25 * (1 - ease((since - 0.2) / 0.3))
    pose.yaw = 0.8 * actor.facing
    pose.pitch = 0.3


def _spin(pose: Pose, actor: Actor, t: float, view: View) -> None:
    angle = TURN * (0.85 * t + actor.phase)
    pose.facing = math.cos(angle)
    pose.front = math.sin(angle)
    pose.yaw = 0.6 * pose.facing
    pose.hop = 2.5 * abs(math.sin(2 * angle))
    pose.smile = 0.7
    pose.tail = 0.5
    pose.arms = ((1.45, 0.1), (-1.45, -0.1))


def _smile(pose: Pose, actor: Actor, t: float, view: View) -> None:
    _stand(pose, actor, t, view)
    if actor.noise[0] < 0.5 and actor.character not in PEOPLE:
        _sit(pose, actor, t, view)
    pose.smile = 0.72 + 0.28 * wave(t, 0.9, actor.phase)
    pose.happy_eyes = pose.smile > 0.8
    pose.yaw = 0.25 * actor.facing
    pose.size *= 1.14
    pose.tilt = 0.08 * wave(t, 0.9, actor.phase)


def _catch_breath(pose: Pose, actor: Actor, t: float, view: View) -> None:
    pant = wave(t, 1.5, actor.phase)
    pose.smile = 0.75 + 0.25 * pant
    pose.bob = 2.2 * pant
    pose.lean = 0.5 + 0.06 * pant
    pose.crouch = 0.25
    pose.arms = ((0.15, 0.1), (0.2, 0.1))
    pose.yaw = 0.4 * actor.facing
    pose.pitch = 0.12 * pant


def _lie(pose: Pose, actor: Actor, t: float, view: View) -> None:
    pose.stance = "lie"
    pose.bob = wave(t, 0.8, actor.phase)
    pose.tail = 0.35 * wave(t, 0.9, actor.phase)
    pose.lean = -1.47
    pose.arms = ((1.35, 0.3), (-2.4, 0.6))
    pose.yaw = 0.45 * actor.facing + 0.25 * wave(t, 0.5, actor.phase)
    if actor.character in PEOPLE:
        pose.yaw = 0.3 * wave(t, 0.5, actor.phase)


def _sleep(pose: Pose, actor: Actor, t: float, view: View) -> None:
    _lie(pose, actor, t, view)
    pose.bob = 2.0 * wave(t, 0.6, actor.phase)
    pose.tail = -0.2
    pose.yaw = 0.25 * actor.facing
    pose.pitch = -1.0 if actor.character not in PEOPLE else -0.2
    pose.eyes_closed = True
    pose.arms = ((1.35, 0.3), (1.2, 0.4))
    pose.snore = t * 0.7 + actor.phase


def door_progress(actor: Actor, t: float, inside: bool) -> float:
    """Return progress through a door: 0 outside and open, 0.55 at it, 1.1 gone and shut."""
    leaving = not comes_in(actor.action, inside)
    progress = t * 0.72 + 0.12 * actor.phase
    return progress if leaving else 1.12 - progress


def comes_in(action: Action, inside: bool) -> bool:
    """Tell whether a door action brings somebody into the picture."""
    return (action is Action.GET_OFF) != inside


def door_opening(progress: float) -> float:
    """Return how far the door is open (0 to 1) at a passenger's ``progress``."""
    return 1 - ease((progress - 0.82) / 0.22)


def _through_door(pose: Pose, actor: Actor, t: float, view: View) -> None:
    """Walk sideways to the door, turn and step in (or the reverse)."""
    door_x = view.door_x if view.door_x is not None else view.width / 2
    inside = view.door_floor > view.ground - 9
    progress = door_progress(actor, t, inside)
    leaving = not comes_in(actor.action, inside)
    start = actor.x * view.width
    towards = 1 if door_x > start else -1
    _step(pose, t, actor, 1.6, 0.15)
    pose.x = mix(start, door_x, max(-0.6, min(1.0, progress / 0.5)))
    pose.facing = towards if leaving else -towards
    pose.yaw = 0.6 * pose.facing
    if progress > 0.5:
        step_in = ease((progress - 0.5) / 0.3)
        pose.facing *= 0.3
        pose.front = -1.0 if leaving else 1.0
        pose.yaw = 0.0
        pose.size *= mix(1.0, 0.8, step_in)
        pose.y = mix(view.ground, view.door_floor, step_in)
        pose.shadow = step_in < 0.7


def _meet(pose: Pose, actor: Actor, t: float, view: View) -> None:
    """Come up to the other one, who stands still, and greet."""
    arriving = actor.noise[0] < 0.5
    gap = (1 - ease((t + 0.1) / 0.6)) * 24 if arriving else 0.0
    if gap > 1:
        _step(pose, t, actor, 1.6, 0.16)
    else:
        _stand(pose, actor, t, view)
    pose.x -= actor.facing * gap
    pose.yaw = 0.85 * actor.facing
    pose.tilt = 0.18 * actor.facing * wave(t, 1.3, actor.phase)
    pose.tail = 0.7 * wave(t, 1.4, actor.phase)
    pose.smile = 0.35


def _chase(pose: Pose, actor: Actor, t: float, view: View) -> None:
    """Run across the frame, or on the spot when the camera follows."""
    _gallop(pose, actor, t)
    pose.x += actor.facing * actor.speed * t + 2.5 * wave(t, 0.8, actor.phase)
    if actor.speed:
        pose.x = (pose.x + 30) % (view.width + 60) - 30
    pose.yaw = 0.75 * actor.facing


def _catch(pose: Pose, actor: Actor, t: float, view: View) -> None:
    """Close in, pounce and hold."""
    done = ease(t / 0.6)
    if done < 1:
        _gallop(pose, actor, t)
        if t > 0.25 and actor.character not in PEOPLE:
            pose.hop += 10 * math.sin(math.pi * (t - 0.25) / 0.35)
    else:
        _stand(pose, actor, t, view)
        pose.tail = 0.9 * wave(t, 1.5, actor.phase)
        pose.smile = 0.6
        pose.pitch = -0.35
        pose.arms = ((1.4, 0.2), (1.2, 0.2))
    pose.x -= actor.facing * (1 - done) * 30


def _caught(pose: Pose, actor: Actor, t: float, view: View) -> None:
    """Run until caught, then (animals) lie down or (people) stand still and laugh."""
    if t < 0.5:
        _gallop(pose, actor, t)
        pose.x -= actor.facing * 6 * (1 - t / 0.5)
    elif actor.character in PEOPLE:
        _catch_breath(pose, actor, t, view)
    else:
        _lie(pose, actor, t, view)


MotionFunction = Callable[[Pose, Actor, float, View], None]

MOTIONS: dict[Action, MotionFunction] = {
    Action.SIT: _sit,
    Action.STAND: _stand,
    Action.WALK: _walk,
    Action.RUN: _run,
    Action.LOOK_AROUND: _look_around,
    Action.LOOK_OUT: _look_out,
    Action.TILT: _tilt,
    Action.WAG: _wag,
    Action.WAVE: _wave_hand,
    Action.SNIFF: _sniff,
    Action.SEE_BALL: _see_ball,
    Action.WATCH_BALL: _watch_ball,
    Action.BITE: _bite,
    Action.GRIP: _grip,
    Action.PICK_UP: _pick_up,
    Action.KICK: _kick,
    Action.THROW: _throw,
    Action.SPIN: _spin,
    Action.SMILE: _smile,
    Action.CATCH_BREATH: _catch_breath,
    Action.LIE: _lie,
    Action.SLEEP: _sleep,
    Action.GET_ON: _through_door,
    Action.GET_OFF: _through_door,
    Action.MEET: _meet,
    Action.CHASE: _chase,
    Action.FLEE: _chase,
    Action.CATCH: _catch,
    Action.CAUGHT: _caught,
}


PASSING = 0.25  # world seconds in which one pose becomes another
HURRY = 90.0  # view units a world second: how fast somebody runs to another mark
NEAR = 12.0  # view units that nobody runs for
STAYS = 0.25, 0.7  # between which parts of the picture's width somebody alone stays where it is
STARTS_BY = {Action.WALK: 0.5, Action.RUN: 0.42}  # part of the width from which there is some way to go
# Somebody who is there already need not come: world seconds that such actions take to begin with.
_ARRIVED = {Action.MEET: 0.6, Action.CATCH: 0.6, Action.CAUGHT: 0.5}
# What of a pose goes over smoothly; the rest changes half-way.
_SMOOTH = (
    *("x", "y", "size", "facing", "front", "slope", "reach", "bob", "hop", "yaw", "pitch", "tilt"),
    *("tail", "smile", "kick", "lean", "crouch"),
)


class Shown(NamedTuple):
    """An actor in a picture: its pose, the clock of its action, and how far that has begun, 0 to 1."""

    actor: Actor
    pose: Pose
    clock: float
    own: float = 1.0


def shown_at(clip: Clip, t: float, view: View, bench: Colour) -> tuple[list[Shown], list[Shown]]:
    """Return a clip's actors ``t`` world seconds into it, and who of its former clip is on the way out."""
    former = clip.former
    if former is None:
        return [Shown(actor, _pose(actor, t, view, bench), t) for actor in clip.actors], []
    earlier = {actor.character: actor for actor in former.actors}
    actors = [_passing(clip, earlier.get(actor.character), actor, t, view, bench) for actor in clip.actors]
    leaving = [
        _passing(clip, actor, None, t, view, bench)
        for actor in former.actors
        if actor.character not in clip.cast
    ]
    return actors, [one for one in leaving if one.own < 1.0]


def _aside(actor: Actor, x: float, view: View) -> Actor:
    """Return an actor where nobody sees it, beyond the edge that is nearer to ``x``."""
    out = 1.2 * actor.size / view.width
    return replace(actor, action=Action.STAND, x=1.0 + out if x > 0.5 else -out, speed=0.0)


def _passing(
    clip: Clip, former: Actor | None, actor: Actor | None, t: float, view: View, bench: Colour
) -> Shown:
    """Return an actor who goes over from what it did in the former clip to its own action.

    Who was not there comes in from the edge, and who has nothing more to do leaves.
    """
    if former is None:
        assert actor is not None
        former, back = _aside(actor, actor.x, view), False
    elif actor is None:
        last = _pose(former, clip.began + clip.turn, view, bench)
        actor, back = _aside(former, last.x / view.width, view), False
    else:
        back = True
    last = _pose(former, clip.began + clip.turn, view, bench)
    if back and len(clip.actors) == 1 and not clip.ball:
        actor = _where_it_is(actor, last.x / view.width, view)
    arrived = _ARRIVED.get(actor.action, 0.0)
    way = _pose(actor, arrived, view, bench).x - last.x
    lasts = PASSING + (abs(way) / HURRY if abs(way) > NEAR else 0.0)
    since = t - clip.turn
    clock = arrived + max(0.0, since - lasts + PASSING)
    done = ease(since / lasts)
    pose = _pose(actor, clock, view, bench)
    if done < 1.0:
        start = _pose(former, clip.began + min(t, clip.turn + PASSING), view, bench)
        pose = _between(start, pose, done)
        if abs(way) > NEAR:
            gait = _stepping(pose, actor, t) if back else _running(pose, actor, t, way)
            pose = _mixed(pose, gait, min(1.0, 4 * done, 4 - 4 * done))
    return Shown(actor, pose, clock, done)


def _where_it_is(actor: Actor, x: float, view: View) -> Actor:
    """Return an actor who begins alone what it has to do where it is, if that is not too near an edge.

    Who walks on, or to a door, must have some way to go.
    """
    if actor.action in STARTS_BY:
        return replace(actor, x=max(actor.x, min(x, STARTS_BY[actor.action])))
    if actor.action in DOOR_ACTIONS and view.door_x is not None:
        return replace(actor, x=max(actor.x, min(x, view.door_x / view.width - 0.12)))
    return replace(actor, x=max(STAYS[0], min(x, STAYS[1])))


def _stepping(pose: Pose, actor: Actor, t: float) -> Pose:
    """Return the pose as that of somebody who steps to another mark, without turning round."""
    stepping = replace(pose, stance="stand", front=0.4, crouch=0.0, snore=None, eyes_closed=False)
    _step(stepping, t, actor, 1.8, 0.15)
    return stepping


def _running(pose: Pose, actor: Actor, t: float, way: float) -> Pose:
    """Return the pose as that of somebody who runs to its mark."""
    side = math.copysign(1.0, way)
    running = replace(
        pose,
        stance="stand",
        facing=side,
        front=0.4,
        yaw=0.6 * side,
        crouch=0.0,
        snore=None,
        eyes_closed=False,
    )
    _gallop(running, actor, t)
    return running


def _pose(actor: Actor, t: float, view: View, bench: Colour) -> Pose:
    pose = Pose(
        x=actor.x * view.width,
        y=math.nan,
        size=actor.size,
        facing=actor.facing,
        yaw=0.6 * actor.facing,
        tail=0.15 * wave(t, 0.7, actor.phase),
        eyes_closed=(t + 1.2 + 2.3 * actor.phase) % 2.3 < 0.1,
        bench=bench,
    )
    MOTIONS[actor.action](pose, actor, t, view)
    if math.isnan(pose.y):
        pose.y = view.ground_at(pose.x)
    pose.y += actor.depth
    if pose.stance == "stand" and actor.character not in PEOPLE:
        pose.slope = view.slope
    return pose


def _between(former: Pose, pose: Pose, done: float) -> Pose:
    """Return the pose on the way from one to another; who sits down or gets up, hops."""
    there = _mixed(former, pose, done)
    if former.stance != pose.stance:
        there.hop += 3.0 * math.sin(math.pi * done)
    return there


def _mixed(former: Pose, pose: Pose, done: float) -> Pose:
    """Mix what of two poses is smooth; the rest changes half-way."""
    smooth: dict[str, float] = {
        name: mix(getattr(former, name), getattr(pose, name), done) for name in _SMOOTH
    }
    (a, b), (c, d) = (
        tuple(mix(one, other, done) for one, other in zip(arm, later, strict=True))
        for arm, later in zip(former.arms, pose.arms, strict=True)
    )
    return replace(pose if done >= 0.5 else former, **smooth, arms=((a, b), (c, d)))  # type: ignore[arg-type]


def _release_time(actor: Actor) -> float:
    """Seconds at which the ball leaves the foot or the hand."""
    return 0.3 + 0.15 * actor.phase


def _flight(actor: Actor, t: float) -> float:
    """Progress in [0, 1] of the ball that is being watched."""
    return ((t + 0.2 * actor.phase) / 1.3) % 1.0


def ball_position(actor: Actor, pose: Pose, anchors: Anchors, t: float, view: View) -> Point:
    """Return the centre of the ball for the first actor's action."""
    person = actor.character in PEOPLE
    forward = actor.facing
    home = actor.x * view.width
    reach = (0.42 if person else 0.66) * actor.size
    floor = view.ground_at(home) + actor.depth - BALL_RADIUS + 1
    edge = view.width - 5 if forward > 0 else 5.0
    action = actor.action
    since = t - _release_time(actor)
    if action is Action.SEE_BALL:
        return home + forward * (reach + 5 + 9 * (1 - ease(t / 0.9))), floor
    if action is Action.WATCH_BALL:
        progress = _flight(actor, t)
        x = mix(home + forward * (reach + 4), edge, progress)
        return x, floor - 40 * math.sin(math.pi * progress) - 4
    if action is Action.BITE:
        x = mix(home + forward * (reach + 2), anchors.mouth[0], ease((t + 0.5 * actor.phase) / 0.3))
        return x, min(floor, anchors.mouth[1] + 1.5)
    if action is Action.GRIP:
        return anchors.hand
    if action is Action.PICK_UP:
        if t + 0.2 * actor.phase < 0.45:
            return home + forward * 0.42 * actor.size, floor
        return anchors.hand
    if action in (Action.KICK, Action.SPIN):  # a spinner has just kicked it
        x = home + forward * reach
        if since < 0:
            return x, floor
        distance = abs(edge - x) * (1 - math.exp(-2.6 * since))
        bounce = abs(math.sin(7.0 * since)) * 17 * math.exp(-1.7 * since)
        return x + forward * distance, floor - bounce
    if action is not Action.THROW:
        return home + forward * (reach + 5), floor  # whatever else goes on, it lies in front
    if since < 0:
        return anchors.hand
    release_y = floor - 0.85 * actor.size
    x = home + forward * 0.45 * actor.size
    distance = abs(edge - x) * (1 - math.exp(-2.4 * since))
    return x + forward * distance, min(floor, release_y - 40 * since + 75 * since * since)
