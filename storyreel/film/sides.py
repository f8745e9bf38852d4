"""How far apart the two sides of a seam are, before any dissolve: measured while both are decoded anyway.

Where the shot goes on, the later segment's lead shows the last moment of the earlier one too, and the two
pictures of it are compared. Elsewhere no moment is in both, and the last picture of the earlier one is
compared with the first of the later one. No picture depends on this.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from torch import Tensor

from storyreel.film.decode import FilmStream
from storyreel.models.base import Adapter
from storyreel.story.plan import Plan, Segment
from storyreel.story.schema import APART


class MeasuringStream(FilmStream):
    """A `FilmStream` that compares the two sides of seams, where both are decoded one after the other.

    ``apart`` has the mean absolute difference, 0 to 255, of the two sides of the seam before a segment, by
    the segment's index, from when the segment is pushed. A cut or a fade that the story wants has none.
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

    def push(self, segment: Segment, latents: Tensor, sound: Tensor | None = None) -> None:
        """Add a segment, as `FilmStream` does, and measure the seam before it."""
        earlier = self._pictures.get(segment.index - 1)
        super().push(segment, latents, sound)
        if earlier is not None and is_smooth(self._plan, segment):
            seam, own = self._plan.seam(segment), self._plan.unseen(segment)
            meets = own - 1 if seam and seam.overlap else own
            later, before = self._pictures[segment.index][meets], self._plan.segments[segment.index - 1]
            last = earlier[self._plan.unseen(before) + before.frames - 1]
            self.apart[segment.index] = float((last.int() - later).abs().float().mean())


def is_smooth(plan: Plan, segment: Segment) -> bool:
    """Tell whether the story wants a segment to grow out of the one before, also if nothing is blended."""
    scenes: list[dict[str, str]] = plan.story["scenes"]
    return segment.index > 0 and scenes[segment.index]["transition"] not in APART
