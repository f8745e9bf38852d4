"""The latents of a film's segments: read from disk, or denoised, and saved with all it takes to go on.

Model, scorer, prompts and anchors are put together here: the recipe of latents begins with this module.
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
from storyreel.film.inventory import Inventory
from storyreel.film.store import Decided, DecidedSeam, Record, Store
from storyreel.models.base import Adapter
from storyreel.story.plan import Plan, Segment


class Segments:
    """The segments of a film that is being rendered. What is saved is added to the inventory.

    ``plan`` is the inventory's, settled. ``device`` is what computes, as records name it.
    """

    def __init__(
        self, inventory: Inventory, store: Store, adapter: Adapter, scorer: Scorer | None, device: str
    ) -> None:
        self.plan: Plan = inventory.plan.settled(similarities(inventory.plan, adapter, scorer))
        self._inventory, self._store, self._adapter, self._device = inventory, store, adapter, device
        self._writer = PromptWriter(adapter, self.plan.settings, scorer)
        self._anchors = Anchors(adapter, self.plan, self.latents)
        self._saved = time.monotonic()

    @property
    def unsaved_seconds(self) -> float:
        """Seconds of denoising since latents or a window were saved."""
        return time.monotonic() - self._saved

    def latents(self, index: int) -> Tensor:
        """Return the latents (1, C, lead + own, H, W) of a finished segment, on the model's device.

        Raises StoryreelError if the file holds no latents.
        """
        return self._stored(self._inventory.latents[index]).latents(self._adapter.device)

    def denoise(
        self, run: Sequence[Segment], first: Segment, on_forward: Callable[[State], None]
    ) -> Iterator[tuple[SegmentState, State]]:
        """Yield the segments of a run from ``first`` on as they are finished, each with the state after it.

        What was saved of them is not computed again. ``on_forward`` is called after every model evaluation,
        with the state at the beginning of the step. Raises NumericsError for NaN or infinity.
        """
        record = self._inventory.resume(run, first)
        state = State(None, [])
        if record is not None:
            state = self._stored(record).state(self.plan, self._adapter, self._writer, self._anchors)
        waiting = run[first.index + len(state.window) - run[0].index :]
        after = partial(on_forward, state)
        return denoise(self._adapter, self.plan, waiting, self._writer, self._anchors, state, after)

    def save(self, finished: SegmentState, state: State, seconds: float) -> None:
        """Save a finished segment's latents, with the state of those after it. Raises OutputError.

        ``seconds`` is how long it took.
        """
        segment, seam = finished.segment, self.plan.seam(finished.segment)
        key = self._inventory.keys.latents[segment.index]
        Stored(self._store.path("latents", segment.number, key)).save(state)
        decided: Decided = {
            "lead": segment.lead,
            "seam": cast("DecidedSeam", asdict(seam)) if seam else None,
            "prompt_weights": finished.prompts.decided() or [EQUAL] * self.plan.settings.steps,
        }
        self._inventory.latents[segment.index] = self._store.keep(
            "latents", segment.number, key, self._device, seconds, _begun(state), decided
        )
        self._store.drop("window", segment.number, key)
        self._inventory.windows.pop(segment.index, None)
        self._saved = time.monotonic()

    def save_window(self, state: State) -> None:
        """Save the state of the segments that are being denoised. Raises OutputError."""
        first = state.window[0].segment
        key = self._inventory.keys.latents[first.index]
        Stored(self._store.path("window", first.number, key)).save(state)
        self._inventory.windows[first.index] = self._store.keep(
            "window", first.number, key, self._device, begun=_begun(state)
        )
        self._saved = time.monotonic()

    def video_path(self, segment: Segment) -> Path:
        """Return where a segment's video goes."""
        return self._store.path("video", segment.number, self._inventory.keys.video[segment.index])

    def record_video(self, segment: Segment, seconds: float) -> None:
        """Record a segment's video, which is complete and took some seconds. Raises OutputError."""
        key = self._inventory.keys.video[segment.index]
        record = self._store.keep("video", segment.number, key, self._device, seconds)
        self._inventory.video[segment.index] = record

    def _stored(self, record: Record) -> Stored:
        return Stored(self._store.folder / record.file)


def _begun(state: State) -> tuple[int, ...]:
    """Return how many steps are done of the segments in a state."""
    return tuple(segment.step for segment in state.window)
