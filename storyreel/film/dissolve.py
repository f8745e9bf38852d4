"""What every frame of a film shows, as data: pictures of one segment, of two that dissolve, a plain colour.

A segment is decoded by itself, its lead first, whose pictures are never shown, but for one that the scene
begins with; its last picture is not shown then. Where the shot goes on,
nothing is mixed: the lead is what the segment before ends with. Where the place changes, the film dissolves
from one to the other, `HELD` on either side of the seam, where one of the two stands still. A fade passes
through black and a dip through white, which neither waits for a neighbour nor holds a picture. Planned from
numbers alone; `decode.py` follows it.
"""

from __future__ import annotations

from typing import NamedTuple

from storyreel.story.plan import Plan, Segment

HELD = 1 / 6  # seconds of a dissolve before the seam, and as many behind it
EDITED = 1 / 2  # of an editor's crossfade
FADED = 2 / 5  # of a fade or a dip: within what evaluation/seams.py leaves to a transition
GREY = {"fade": 0, "dip": 255}  # the colour that a transition passes through


class Part(NamedTuple):
    """What a frame shows of one segment.

    ``segment`` is its index, ``picture`` counts its decoded pictures from 0, its lead's first. ``weight`` is
    its share of the frame, above 0; those of a frame add up to 1.
    """

    segment: int
    picture: int
    weight: float


class Plain(NamedTuple):
    """What a frame shows of a plain colour: one ``grey`` of 0 to 255, with its ``weight`` as of a `Part`."""

    grey: int
    weight: float


Frame = tuple[Part | Plain, ...]  # one part, or two: first what is earlier, then what is later


def lead_pictures(plan: Plan, segment: Segment) -> int:
    """Return how many pictures a segment's lead is decoded to: the first latent frame is one picture."""
    return 1 + plan.spec.frames_per_latent * (segment.lead - plan.undecoded(segment) - 1)


def film_frames(plan: Plan, segment: Segment) -> list[Frame]:
    """Return what the frames of the film from a segment's start to its end show, in a settled plan."""
    lead = plan.unseen(segment)
    frames: list[Frame] = [(Part(segment.index, lead + i, 1.0),) for i in range(segment.frames)]
    before, mixed = _mixed(plan, segment)
    frames[: len(mixed) - before] = mixed[before:]
    for following in plan.segments[segment.index + 1 : segment.index + 2]:
        before, mixed = _mixed(plan, following)
        frames[len(frames) - before :] = mixed[:before]
    return frames


def reach(
    transition: str, strength: float, blending: str, fps: int, earlier: int, later: int
) -> tuple[int, int]:
    """Return how many frames before a seam, and how many behind it, a transition changes.

    ``earlier`` and ``later`` are the frames of the two segments: it takes at most half of either, so that two
    transitions never meet. ``strength`` and ``blending`` are the method's; fades do not ask for them.
    """
    if transition in GREY:
        seconds = FADED
    elif transition == "dissolve" and strength:
        seconds = EDITED if blending == "crossfade" else HELD
    else:
        return 0, 0
    held = max(1, round(seconds * fps))
    return min(held, earlier // 2), min(held, later // 2)


def begins_with(plan: Plan, segment: Segment) -> str:
    """Return the transition that a segment begins with; of the first, what the story says of it."""
    seam = plan.seam(segment)
    return str(plan.story["scenes"][0]["transition"]) if seam is None else seam.transition


def _mixed(plan: Plan, later: Segment) -> tuple[int, list[Frame]]:
    """Return the frames that the transition before a segment changes, and how many are before the seam."""
    transition, seam = begins_with(plan, later), plan.seam(later)
    if seam is None:  # only a fade can begin with nothing before it
        _, behind = reach(transition, 0.0, "", plan.spec.fps, 0, later.frames)
        return 0, _faded(plan, None, later, GREY.get(transition, 0), 0, behind)
    earlier = plan.segments[later.index - 1]
    before, behind = reach(
        transition, seam.strength, plan.settings.method.blending, plan.spec.fps, earlier.frames, later.frames
    )
    if transition == "dissolve" and plan.has_card_before(later):
        return 0, []  # it shows neither of the two
    if transition in GREY:
        return before, _faded(plan, earlier, later, GREY[transition], before, behind)
    return before, _dissolved(plan, earlier, later, before, behind)


def _dissolved(plan: Plan, earlier: Segment, later: Segment, before: int, behind: int) -> list[Frame]:
    count = before + behind
    last, first = plan.unseen(earlier) + earlier.frames - 1, plan.unseen(later)
    weights = [(i + 0.5) / count for i in range(count)]  # of the later one
    return [
        (
            Part(earlier.index, min(last - before + 1 + i, last), 1 - weight),
            Part(later.index, first + max(0, i - before), weight),
        )
        for i, weight in enumerate(weights)
    ]


def _faded(
    plan: Plan, earlier: Segment | None, later: Segment, grey: int, before: int, behind: int
) -> list[Frame]:
    """Return the frames of a fade; the last one before the seam is the plain colour alone."""
    frames: list[Frame] = []
    for i in range(before if earlier else 0):
        assert earlier is not None
        picture, weight = plan.unseen(earlier) + earlier.frames - before + i, (i + 1) / before
        shown = (Part(earlier.index, picture, 1 - weight),) if i + 1 < before else ()
        frames.append((*shown, Plain(grey, weight)))
    for i in range(behind):
        weight = (i + 1) / (behind + 1)  # of the later one
        frames.append((Plain(grey, 1 - weight), Part(later.index, plan.unseen(later) + i, weight)))
    return frames
