"""From latents to the segments' films: decoded one by one, dissolved where they meet."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from storyreel.files import replacing, writing
from storyreel.film import video
from storyreel.method.blending import dissolve, dissolve_weights
from storyreel.models.base import Adapter
from storyreel.story.plan import Plan, Segment

HELD = 1 / 3  # seconds of still pictures that lengthen a dissolve on either side


class FilmStream:
    """Decodes the segments of a film in their order and encodes those that are wanted.

    Every segment is decoded by itself, its lead first. The lead's pictures show what the segment
    before shows at its end: there the film passes over from one to the other, a little earlier
    and later too, where one of them stands still while it is faint. So the last pictures of a
    segment wait for the segment after it.
    """

    def __init__(
        self,
        plan: Plan,
        adapter: Adapter,
        wanted: Collection[int],
        path_of: Callable[[Segment], Path],
        on_written: Callable[[Segment, float], None],
    ) -> None:
        self._plan, self._adapter = plan, adapter
        self._wanted, self._path_of, self._on_written = wanted, path_of, on_written
        self._segment: Segment | None = None
        self._pending = torch.empty(0)
        self._stack = ExitStack()
        self._writer: video.SegmentWriter | None = None
        self._count = 0
        self._seconds = 0.0

    def __enter__(self) -> FilmStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def push(self, segment: Segment, latents: Tensor) -> None:
        """Add a segment, latents (1, C, lead + own, H, W), behind those that came before."""
        if self._segment is not None and self._segment.index != segment.index - 1:
            self.finish()  # nobody needs what lies between
        began = time.monotonic()
        pictures = self._adapter.decode(latents)
        shown = 1 + self._plan.spec.frames_per_latent * (segment.lead - 1)
        lead, own = pictures[:shown], pictures[shown:]
        before, after = self._reach(segment)
        if before and len(self._pending):
            held = lead[:1].expand(max(0, before - shown), -1, -1, -1)
            earlier = torch.cat([self._pending[-before:], self._pending[-1:].expand(after, -1, -1, -1)])
            later = torch.cat([held, lead, own])[max(0, shown - before) :][: before + after]
            mixed = dissolve(earlier, later, dissolve_weights(before + after))
            self._pending = torch.cat([self._pending[:-before], mixed[:before]])
            own = torch.cat([mixed[before:], own[after:]])
        decoding = time.monotonic() - began
        self.finish()
        began = time.monotonic()
        self._open(segment)
        self._pending = own
        following = self._plan.segments[segment.index + 1 : segment.index + 2]
        self._write(len(own) - (self._reach(following[0])[0] if following else 0))
        self._seconds = decoding + time.monotonic() - began

    def finish(self) -> None:
        """Write the last segment's last pictures and close its film."""
        if self._segment is None:
            return
        began = time.monotonic()
        segment, self._segment = self._segment, None
        self._write(len(self._pending))
        self._pending = torch.empty(0)
        if self._writer is None:
            return
        self._writer = None
        self._stack.pop_all().__exit__(None, None, None)
        if self._count != segment.frames:
            raise RuntimeError(
                f"scene {segment.number} has {self._count} frames, planned were {segment.frames}"
            )
        self._on_written(segment, self._seconds + time.monotonic() - began)

    def _reach(self, segment: Segment) -> tuple[int, int]:
        """Return how many pictures before and after its seam a segment passes over from the last."""
        seam = self._plan.seam(segment)
        if seam is None or not seam.overlap:
            return 0, 0
        spec = self._plan.spec
        held = round(HELD * spec.fps)
        before = 1 + spec.frames_per_latent * (seam.overlap - 1) + held
        earlier = self._plan.segments[segment.index - 1]
        return min(before, earlier.frames // 2), min(held, segment.frames // 2)

    def _open(self, segment: Segment) -> None:
        self._segment, self._count = segment, 0
        if segment.index not in self._wanted:
            return
        spec, settings = self._plan.spec, self._plan.settings
        path = self._path_of(segment)
        self._stack.enter_context(writing(path))
        part = self._stack.enter_context(replacing(path))
        self._writer = self._stack.enter_context(
            video.SegmentWriter(part, settings.width, settings.height, spec.fps, spec.upscale)
        )

    def _write(self, count: int) -> None:
        """Write the first ``count`` of the pictures that wait."""
        if count <= 0:
            return
        if self._writer is not None:
            self._writer.write(self._pending[:count].numpy().tobytes())
            self._count += count
        self._pending = self._pending[count:]
