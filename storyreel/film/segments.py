"""The latents of a film's segments: read from disk, or denoised, and saved with all it takes to go on.

Model, scorer, prompts and leads are put together here: the recipe of latents begins with this module.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

from torch import Tensor

from storyreel.denoise.lead import Leads
from storyreel.denoise.loop import SegmentState, begin, denoise, latents_shape, sound_shape
from storyreel.denoise.prompts import EQUAL, PromptWriter, Scorer, similarities
from storyreel.denoise.state import Stored
from storyreel.film.inventory import Inventory
from storyreel.film.store import Decided, DecidedSeam, Record, Sides, Store
from storyreel.models.base import Adapter
from storyreel.story.plan import Plan, Segment


class Segments:
    """The segments of a film that is being rendered. What is saved is added to the inventory.

    ``plan`` is the inventory's, settled. ``device`` returns what computes at the time, as records name it.
    """

    def __init__(
        self,
        inventory: Inventory,
        store: Store,
        adapter: Adapter,
        scorer: Scorer | None,
        device: Callable[[], str],
    ) -> None:
        self.plan: Plan = inventory.plan.settled(similarities(inventory.plan, adapter, scorer))
        self._inventory, self._store, self._adapter, self._device = inventory, store, adapter, device
        self._writer = PromptWriter(adapter, self.plan, scorer)
        self._leads = Leads(adapter, self.plan, self._first_take, self._first_sound)
        self._saved = time.monotonic()

    @property
    def unsaved_seconds(self) -> float:
        """Seconds of denoising since anything was saved."""
        return time.monotonic() - self._saved

    def latents(self, segment: Segment) -> Tensor:
        """Return the latents (1, C, lead + own, H, W) of a finished segment, on the model's device.

        Raises StoryreelError if the file holds no latents.
        """
        return self._latents(self._inventory.latents[segment.slot], segment)

    def _latents(self, record: Record, segment: Segment) -> Tensor:
        return self._stored(record).latents(self._adapter.device, latents_shape(self.plan, segment))

    def sound(self, segment: Segment) -> Tensor:
        """Return the latents (1, C, S, 1, M) of the sound of a finished segment, of a model that makes some.

        They are on the model's device. Raises StoryreelError if the file holds none.
        """
        stored = self._stored(self._inventory.latents[segment.slot])
        return stored.sound(self._adapter.device, sound_shape(self.plan, segment))

    def _first_take(self, index: int) -> Tensor:
        return self.latents(self.plan.first_takes[index])

    def _first_sound(self, index: int) -> Tensor:
        return self.sound(self.plan.first_takes[index])

    def denoise(
        self, segments: Sequence[Segment], on_forward: Callable[[Sequence[SegmentState]], None]
    ) -> Iterator[SegmentState]:
        """Yield segments as they are finished; each is to be saved before the next is asked for.

        What was saved of them is not computed again. ``on_forward`` is called after every model evaluation,
        with the segments as they were at the beginning of the step. Raises NumericsError for NaN or infinity.
        """
        settled = {segment.slot: segment for segment in self.plan.takes}
        wanted = [settled[segment.slot] for segment in segments]
        return denoise(self._adapter, self.plan.settings, wanted, self._writer, self._start, on_forward)

    def _start(self, segment: Segment) -> SegmentState | None:
        """Begin a segment, or take it up where it was left; None while one that it needs is not finished."""
        plan, finished, sources = self.plan, self._inventory.latents, self.plan.sources(segment)
        if not all(plan.first_takes[source].slot in finished for source in sources):
            return None
        before = ending = None
        prompts, lead = self._writer.prompts(segment), self._leads.of(segment)
        if plan.pulled(segment):  # of others, all that counts of the one before is in the lead
            before = self._first_take(segment.index - 1)
        # Another shot may be a source too, of its characters: how it ends is nothing to this one.
        if prompts.wanted is not None and plan.goes_on(segment):
            stored = self._stored(finished[plan.first_takes[segment.index - 1].slot])
            ending = stored.ending(self._adapter.device, prompts.wanted.shape[1])
        begun = begin(self._adapter, plan, segment, prompts, lead, before, ending)
        if (record := self._inventory.states.get(segment.slot)) is not None:
            self._stored(record).restore(begun, record.step)
        return begun

    def save(self, finished: SegmentState, seconds: float) -> None:
        """Save a finished segment's latents, which took some seconds. Raises OutputError."""
        segment, seam = finished.segment, self.plan.seam(finished.segment)
        key = self._inventory.keys.of(segment)
        Stored(self._store.path("latents", segment.number, key)).save_latents(finished)
        decided: Decided = {
            "lead": segment.lead,
            "seam": cast("DecidedSeam", asdict(seam)) if seam else None,
            "prompt_weights": finished.prompts.decided() or [EQUAL] * self.plan.settings.steps,
        }
        self._inventory.latents[segment.slot] = self._store.keep(
            "latents", segment.number, key, self._device(), seconds, decided=decided
        )
        self._store.drop("state", segment.number, key)
        self._inventory.states.pop(segment.slot, None)
        self._saved = time.monotonic()

    def save_states(self, window: Sequence[SegmentState]) -> None:
        """Save the segments that are being denoised. Raises OutputError."""
        for begun in window:
            segment = begun.segment
            key = self._inventory.keys.of(segment)
            Stored(self._store.path("state", segment.number, key)).save_state(begun)
            self._inventory.states[segment.slot] = self._store.keep(
                "state", segment.number, key, self._device(), step=begun.step
            )
        self._saved = time.monotonic()

    def video_path(self, segment: Segment) -> Path:
        """Return where a segment's video goes."""
        return self._store.path("video", segment.number, self._inventory.keys.video[segment.index])

    def record_video(self, segment: Segment, seconds: float, apart: float | None) -> None:
        """Record a segment's video, which is complete and took some seconds.

        ``apart`` is how far the two sides of the seam before it are apart; None if nobody knows. Raises
        OutputError.
        """
        keys, index = self._inventory.keys, segment.index
        decided: Decided = {}
        if apart is not None:
            decided["sides"] = {"before": keys.latents[index - 1], "apart": round(apart, 3)}
        self._inventory.video[index] = self._store.keep(
            "video", segment.number, keys.video[index], self._device(), seconds, decided=decided
        )

    def record_sides(self, index: int, apart: float) -> None:
        """Record anew how far the two sides of a seam are apart: the scene before it is another one now.

        Of a scene whose own video is there and stays as it is. Raises OutputError.
        """
        video = self._inventory.video[index]
        sides: Sides = {"before": self._inventory.keys.latents[index - 1], "apart": round(apart, 3)}
        if video.decided.get("sides") != sides:
            self._inventory.video[index] = self._store.keep(
                "video",
                video.number,
                video.key,
                video.device,
                video.seconds,
                decided={**video.decided, "sides": sides},
            )

    def _stored(self, record: Record) -> Stored:
        return Stored(self._store.folder / record.file)
