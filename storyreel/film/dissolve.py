"""What every frame of a film shows, as data: pictures of one segment, or of two where they dissolve.

A segment is decoded by itself, its lead first, whose pictures are never shown. Where the shot goes on,
nothing is mixed: the lead is what the segment before ends with. Where the place changes, the film dissolves
from one to the other, `HELD` on either side of the seam, where one of the two stands still. Planned from
numbers alone; `decode.py` follows it.
"""

from __future__ import annotations

from typing import NamedTuple

from storyreel.story.plan import Plan, Segment

HELD = 1 / 6  # seconds of a dissolve before the seam, and as many behind it
EDITED = 1 / 2  # of an editor's crossfade


class Part(NamedTuple):
    """What a frame shows of one segment.

    ``segment`` is its index, ``picture`` counts its decoded pictures from 0, its lead's first. ``weight`` is
    its share of the frame, above 0; those of a frame add up to 1.
    """

    segment: int
    picture: int
    weight: float


Frame = tuple[Part, ...]  # one part, or two: of the earlier segment and of the later


def lead_pictures(plan: Plan, segment: Segment) -> int:
    """Return how many pictures a segment's lead is decoded to: the first latent frame is one picture."""
    return 1 + plan.spec.frames_per_latent * (segment.lead - 1)


def film_frames(plan: Plan, segment: Segment) -> list[Frame]:
    """Return what the frames of the film from a segment's start to its end show, in a settled plan."""
    lead = lead_pictures(plan, segment)
    frames: list[Frame] = [(Part(segment.index, lead + i, 1.0),) for i in range(segment.frames)]
    before, mixed = _dissolve(plan, segment)
    frames[: len(mixed) - before] = mixed[before:]
    for following in plan.segments[segment.index + 1 : segment.index + 2]:
        before, mixed = _dissolve(plan, following)
        frames[len(frames) - before :] = mixed[:before]
    return frames


def _dissolve(plan: Plan, later: Segment) -> tuple[int, list[Frame]]:
    """Return the dissolve at the seam before a segment, and how many of its frames come before the seam.

    It takes at most half of either segment, so that two dissolves never meet.
    """
    seam = plan.seam(later)
    if seam is None or seam.transition != "dissolve" or seam.strength == 0:
        return 0, []
    earlier = plan.segments[later.index - 1]
    seconds = EDITED if plan.settings.method.blending == "crossfade" else HELD
    held = max(1, round(seconds * plan.spec.fps))
    before, behind = min(held, earlier.frames // 2), min(held, later.frames // 2)
    count = before + behind
    last, first = lead_pictures(plan, earlier) + earlier.frames - 1, lead_pictures(plan, later)
    weights = [(i + 0.5) / count for i in range(count)]  # of the later one
    return before, [
        (
            Part(earlier.index, min(last - before + 1 + i, last), 1 - weight),
            Part(later.index, first + max(0, i - before), weight),
        )
        for i, weight in enumerate(weights)
    ]
