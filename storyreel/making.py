"""From a plan and a loaded model to the segments of a film: the loop that makes latents and pictures.

A segment's latents are kept when it leaves the denoising window, with the state of those behind it;
its pictures when the segment after it has begun to show through them. Before it leaves, the window's
state is kept now and then, and when a signal stops the render.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import cast

from torch import Tensor

from storyreel.denoise.anchors import Anchors
from storyreel.denoise.loop import SegmentState, State, denoise
from storyreel.denoise.prompts import EQUAL, PromptWriter, Scorer, similarities
from storyreel.denoise.state import Stored
from storyreel.film.decode import FilmStream
from storyreel.film.inventory import Inventory
from storyreel.film.store import Decided, DecidedSeam, Record, Store
from storyreel.models.base import Adapter
from storyreel.stopping import Stop
from storyreel.story.plan import Segment


class Making:
    """The making of what an inventory lacks, which it adds there.

    ``device`` is what computes it, in words. ``on_forward`` is called after every forward pass,
    ``on_video`` with every segment whose pictures are on disk, and how many seconds they took; the state
    inside the window is kept every ``keep_every`` seconds.
    """

    def __init__(
        self,
        inventory: Inventory,
        store: Store,
        adapter: Adapter,
        scorer: Scorer | None,
        device: str,
        stop: Stop,
        on_forward: Callable[[], None],
        on_video: Callable[[Segment, float], None],
        keep_every: float,
    ) -> None:
        self._there, self._store, self._adapter = inventory, store, adapter
        self._plan = inventory.plan.settled(similarities(inventory.plan, adapter, scorer))
        self._writer = PromptWriter(adapter, self._plan.settings, scorer)
        self._anchors = Anchors(adapter, self._plan, self._recall)
        self._device, self._stop, self._keep_every = device, stop, keep_every
        self._on_forward, self._on_video = on_forward, on_video
        self._kept = time.monotonic()

    def run(self) -> None:
        """Make everything that is missing, segment by segment."""
        wanted = self._there.without_video
        with FilmStream(self._plan, self._adapter, wanted, self._video_path, self._keep_video) as stream:
            for run in self._plan.runs():
                for segment, latents in self._latents(run, wanted):
                    stream.push(segment, latents)
                stream.finish()

    def _latents(self, run: Sequence[Segment], wanted: set[int]) -> Iterator[tuple[Segment, Tensor]]:
        """Yield the latents that any missing pictures need, from disk or newly denoised."""
        gaps = {first.index: count for first, count in self._there.gaps(run)}
        index = run[0].index
        while index <= run[-1].index:
            count = gaps.get(index, 0)
            if not count:
                if wanted & {index - 1, index, index + 1}:
                    yield self._plan.segments[index], self._recall(index)
                index += 1
                continue
            state = self._state(run, self._plan.segments[index])
            waiting = run[index + len(state.window) - run[0].index :]
            on_forward = partial(self._after_forward, state)
            takes = denoise(
                self._adapter, self._plan, waiting, self._writer, self._anchors, state, on_forward
            )
            for _ in range(count):
                began = time.monotonic()
                with self._stop.held():
                    take, after = next(takes)
                    self._keep_latents(take, after, time.monotonic() - began)
                yield take.segment, take.x
            index += count

    def _state(self, run: Sequence[Segment], first: Segment) -> State:
        """Return the state from which a segment is denoised as the first."""
        record = self._there.resume(run, first)
        if record is None:
            return State(None, [])
        return self._stored(record).state(self._plan, self._adapter, self._writer, self._anchors)

    def _stored(self, record: Record) -> Stored:
        return Stored(self._store.folder / record.file)

    def _recall(self, index: int) -> Tensor:
        """Return the latents (1, C, lead + own, H, W) of a finished segment."""
        return self._stored(self._there.latents[index]).latents(self._adapter.device)

    def _keep_latents(self, take: SegmentState, after: State, seconds: float) -> None:
        """Put a segment's latents on disk, with the state of those behind it."""
        segment, seam = take.segment, self._plan.seam(take.segment)
        key = self._there.keys.latents[segment.index]
        Stored(self._store.path("latents", segment.number, key)).save(after)
        decided: Decided = {
            "lead": segment.lead,
            "seam": cast("DecidedSeam", asdict(seam)) if seam else None,
            "prompt_weights": take.prompts.decided() or [EQUAL] * self._plan.settings.steps,
        }
        self._there.latents[segment.index] = self._store.keep(
            "latents", segment.number, key, self._device, seconds, _begun(after), decided
        )
        self._store.drop("window", segment.number, key)
        self._there.windows.pop(segment.index, None)
        self._kept = time.monotonic()

    def _video_path(self, segment: Segment) -> Path:
        return self._store.path("video", segment.number, self._there.keys.video[segment.index])

    def _keep_video(self, segment: Segment, seconds: float) -> None:
        """Record a segment's pictures, which are on disk."""
        self._there.video[segment.index] = self._store.keep(
            "video", segment.number, self._there.keys.video[segment.index], self._device, seconds
        )
        self._on_video(segment, seconds)

    def _after_forward(self, state: State) -> None:
        """Put the state of the segments under way on disk, if it is time to or the last chance."""
        self._on_forward()
        if self._stop.asked or time.monotonic() - self._kept >= self._keep_every:
            first = state.window[0].segment
            key = self._there.keys.latents[first.index]
            Stored(self._store.path("window", first.number, key)).save(state)
            self._there.windows[first.index] = self._store.keep(
                "window", first.number, key, self._device, begun=_begun(state)
            )
            self._kept = time.monotonic()
        self._stop.check()


def _begun(state: State) -> tuple[int, ...]:
    return tuple(take.step for take in state.window)
