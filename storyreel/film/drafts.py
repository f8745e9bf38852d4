"""The latents of drafts, each under a key that covers all that shaped it, and the picture that each shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from storyreel.denoise.loop import SegmentState, denoise
from storyreel.denoise.state import Stored
from storyreel.film.segments import Segments
from storyreel.story.plan import Segment


class Drafts(Segments):
    """The segments of a draft, and others that differ from one of them in its noise alone."""

    def drafted(
        self, segment: Segment, key: str, on_forward: Callable[[Sequence[SegmentState]], None]
    ) -> Tensor:
        """Return the latents of a segment, which may have another seed than the plan's, by its key.

        What is kept is not computed again. The plan's own segments are finished. Raises OutputError if new
        latents cannot be saved.
        """
        if (record := self._store.find("latents", segment.number, key)) is not None:
            return self._latents(record, segment)
        began = time.monotonic()
        settings = self.plan.settings
        (finished,) = denoise(self._adapter, settings, [segment], self._writer, self._start, on_forward)
        Stored(self._store.path("latents", segment.number, key)).save_latents(finished)
        self._store.keep("latents", segment.number, key, self._device(), time.monotonic() - began)
        return finished.x

    def picture(self, segment: Segment, latents: Tensor) -> Tensor:
        """Return the picture uint8 (H, W, 3) that stands for a segment; its latents are (1, C, F, H, W)."""
        first = segment.middle if self.plan.spec.first_alike else 0  # decoding what is before it takes long
        return self._adapter.decode(latents[:, :, first : segment.middle + 1])[-1]
