"""How far apart the two sides of a seam are, before any dissolve: measured while both are decoded anyway.

A segment's lead shows what the segment before shows at its end. Where the two were denoised as one shot, both
show the same there; else a dissolve hides that they are different pictures. No picture depends on this.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from torch import Tensor

from storyreel.film.decode import FilmStream
from storyreel.film.dissolve import lead_pictures
from storyreel.models.base import Adapter
from storyreel.story.plan import Plan, Segment


class MeasuringStream(FilmStream):
    """A `FilmStream` that compares the two sides of seams, where both are decoded one after the other.

    ``apart`` has the mean absolute difference, 0 to 255, of the two sides of the seam before a segment, by
    the segment's index, from when the segment is pushed. A cut that the story wants has no two sides.
    """

    def __init__(
        self,
        plan: Plan,
        adapter: Adapter,
        wanted: Collection[int],
        path_of: Callable[[Segment], Path],
        on_written: Callable[[Segment, float], None],
    ) -> None:
        super().__init__(plan, adapter, wanted, path_of, on_written)
        self.apart: dict[int, float] = {}
        self._end: dict[int, Tensor] = {}  # the last pictures of the segment before, by its index

    def push(self, segment: Segment, latents: Tensor) -> None:
        """Add a segment, as `FilmStream` does, and measure the seam before it."""
        super().push(segment, latents)
        pictures = self._pictures[segment.index]
        if (earlier := self._end.pop(segment.index - 1, None)) is not None:
            behind = lead_pictures(self._plan, segment)
            later = pictures[behind - len(earlier) : behind]
            self.apart[segment.index] = float((earlier.int() - later).abs().float().mean())
        self._end.clear()
        for following in self._plan.segments[segment.index + 1 : segment.index + 2]:
            if is_smooth(self._plan, following):
                count = min(seam_pictures(self._plan, following), segment.frames)
                self._end[segment.index] = pictures[-count:].clone()


def is_smooth(plan: Plan, segment: Segment) -> bool:
    """Tell whether the story wants a segment to grow out of the one before, also if nothing is blended."""
    scenes: list[dict[str, str]] = plan.story["scenes"]
    return segment.index > 0 and scenes[segment.index]["transition"] == "blend"


def seam_pictures(plan: Plan, segment: Segment) -> int:
    """Return how many pictures right before a segment's start both sides show: those of the overlap.

    Without an overlap it is one, that of the lead, which is not shown.
    """
    seam = plan.seam(segment)
    latents = max(1, seam.overlap if seam else 0)
    return min(1 + plan.spec.frames_per_latent * (latents - 1), lead_pictures(plan, segment))
