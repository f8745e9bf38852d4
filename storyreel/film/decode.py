"""From latents to the segments' files: segments are decoded one by one, and their frames mixed as planned."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from storyreel.files import replacing, writing
from storyreel.film import writer
from storyreel.film.dissolve import Frame, Part, Plain, film_frames, lead_pictures
from storyreel.film.own_sound import own_samples, raw_sound
from storyreel.method.blending import dissolve
from storyreel.models.base import Adapter
from storyreel.story.plan import Plan, Segment


class FilmStream:
    """Decodes the segments of a film in their order and encodes those that are ``wanted``, by their index.

    A segment's last frames may show the next one too, and wait until it is decoded. ``path_of`` says where
    a segment's file goes; ``on_written`` is called with every segment whose file is complete, and the
    seconds that took. As a context it leaves no unfinished file. Raises OutputError or StoryreelError if a
    file cannot be written.
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
        self._segment: Segment | None = None  # the last one that was pushed
        self._pictures: dict[int, Tensor] = {}  # uint8 (T, H, W, 3), by the segment's index
        self._frames: deque[Frame] = deque()  # of that segment, still to be written
        self._stack = ExitStack()
        self._writer: writer.SegmentWriter | None = None
        self._seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def push(self, segment: Segment, latents: Tensor, sound: Tensor | None = None) -> None:
        """Add a segment, latents (1, C, lead + own, H, W), after those that came before.

        ``sound`` are the latents (1, C, S, 1, M) of what is heard in it, if the model makes sound.
        """
        if self._segment is not None and self._segment.index != segment.index - 1:
            self.finish()  # the segments in between are not needed
        began = time.monotonic()
        pictures = self._adapter.decode(latents[:, :, self._plan.undecoded(segment) :])
        planned = lead_pictures(self._plan, segment) + segment.frames
        if len(pictures) != planned:
            raise RuntimeError(f"scene {segment.number} has {len(pictures)} pictures, planned were {planned}")
        self._pictures[segment.index] = pictures
        heard = None
        if sound is not None and segment.index in self._wanted:
            heard = own_samples(self._plan, segment, self._adapter.decode_sound(sound))
        decoding = time.monotonic() - began
        self._close()
        began = time.monotonic()
        self._open(segment, heard)
        self._write()
        self._pictures = {segment.index: pictures}
        self._seconds = decoding + time.monotonic() - began

    def finish(self) -> None:
        """Complete the last segment's file: none follows that shows in it."""
        self._close()
        self._pictures.clear()

    def _open(self, segment: Segment, heard: Tensor | None) -> None:
        self._segment = segment
        if segment.index not in self._wanted:
            return
        spec, settings = self._plan.spec, self._plan.settings
        path = self._path_of(segment)
        self._stack.enter_context(writing(path))
        part = self._stack.enter_context(replacing(path))
        frames = film_frames(self._plan, segment)
        # So a neighbour that is taken again leaves all frames as they are that do not show it.
        mixed = [len(frame) > 1 for frame in frames]
        parts = [at for at in range(1, len(frames)) if mixed[at] != mixed[at - 1]]
        sound = {}
        if heard is not None:
            hidden = path.with_name(f".{path.name}.part.f32")
            sound["sound"] = self._stack.enter_context(raw_sound(hidden, heard))
        self._writer = self._stack.enter_context(
            writer.SegmentWriter(
                part, settings.width, settings.height, spec.fps, spec.upscale, parts, **sound
            )
        )
        self._frames.extend(frames)

    def _write(self) -> None:
        """Write the frames of which all pictures are there."""
        while self._frames and all(map(self._is_there, self._frames[0])):
            assert self._writer is not None
            self._writer.write(self._shown(self._frames.popleft()).numpy().tobytes())

    def _shown(self, frame: Frame) -> Tensor:
        """Return a frame, uint8 (1, H, W, 3)."""
        first, *second = map(self._picture, frame)
        return dissolve(first, second[0], torch.full((1, 1, 1, 1), frame[1].weight)) if second else first

    def _is_there(self, part: Part | Plain) -> bool:
        return isinstance(part, Plain) or part.segment in self._pictures

    def _picture(self, part: Part | Plain) -> Tensor:
        if isinstance(part, Plain):
            any_picture = next(iter(self._pictures.values()))[:1]
            return torch.full_like(any_picture, part.grey)
        return self._pictures[part.segment][part.picture][None]

    def _close(self) -> None:
        """Write what is left of the last segment and complete its file."""
        segment, self._segment = self._segment, None
        if segment is None or self._writer is None:
            return
        began = time.monotonic()
        self._write()
        if self._frames:
            raise RuntimeError(f"the frames of scene {segment.number} show a scene that was not decoded")
        self._writer = None
        self._stack.pop_all().__exit__(None, None, None)
        self._on_written(segment, self._seconds + time.monotonic() - began)
