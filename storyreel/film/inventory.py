"""What of a film is there, what is missing, and what is to be done about it. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from storyreel.film.keys import Keys, film_keys
from storyreel.film.store import Kind, Record
from storyreel.method.step_skipping import SPEEDS
from storyreel.story.plan import Plan, Segment, forwards_left


@dataclass
class Inventory:
    """A film that is wanted, and the records of its segments' files that are there, by the segments' index.

    ``facts`` say what the film is made from (`keys.film_facts`); ``keys`` follow from them. ``windows`` are
    the states of segments that were being denoised, by the first of them. A render adds what it saves.
    """

    plan: Plan
    facts: dict[str, Any]
    latents: dict[int, Record] = field(default_factory=dict)
    video: dict[int, Record] = field(default_factory=dict)
    windows: dict[int, Record] = field(default_factory=dict)
    keys: Keys = field(init=False)

    def __post_init__(self) -> None:
        self.keys = film_keys(self.plan, self.facts)

    @property
    def missing(self) -> set[int]:
        """The segments that lack their latents or their video."""
        return self._missing(self.plan.segments)

    def _missing(self, segments: Sequence[Segment]) -> set[int]:
        return {s.index for s in segments if s.index not in self.video or s.index not in self.latents}

    def stretches(self, run: Sequence[Segment]) -> list[tuple[Segment, int]]:
        """Return what there is to do for a run, in order: segments to denoise, and those to decode only.

        (first, n) stands for n neighbouring segments without latents, (segment, 0) for one that has its
        latents, and whose pictures show in a video that is missing: its own or a neighbour's.
        """
        shown = {index + shift for index in self._missing(run) for shift in (-1, 0, 1)}
        found: list[tuple[Segment, int]] = []
        for segment in run:
            first, count = found[-1] if found else (segment, 0)
            if segment.index in self.latents:
                if segment.index in shown:
                    found.append((segment, 0))
            elif count and first.index + count == segment.index:
                found[-1] = first, count + 1
            else:
                found.append((segment, 1))
        return found

    def resume(self, run: Sequence[Segment], first: Segment) -> Record | None:
        """Return the record of the state from which a segment is denoised; None for the run's beginning."""
        if first.index in self.windows:
            return self.windows[first.index]
        return None if first.index == run[0].index else self.latents[first.index - 1]

    def forwards(self) -> int:
        """Return how many model evaluations are to come."""
        steps, window = self.plan.settings.steps, self.plan.settings.method.window
        speed, evaluations = SPEEDS[self.plan.settings.speed], 0
        for run in self.plan.runs():
            for first, count in self.stretches(run):
                if count:
                    stored = self.resume(run, first)
                    begun = stored.begun if stored else ()
                    following = run[-1].index + 1 - first.index - len(begun)
                    evaluations += forwards_left(begun, count, following, window, steps, speed)
        return evaluations


def take_inventory(
    plan: Plan, facts: dict[str, Any], find: Callable[[Kind, str, str], Record | None]
) -> Inventory:
    """Return what of a plan is there, by what ``find`` has of a kind, a segment's number and a key.

    ``find`` is `Store.find`, which reads every file, or `Store.record`, which trusts the records.
    """
    inventory = Inventory(plan, facts)
    keys = inventory.keys
    for segment, key, video_key in zip(plan.segments, keys.latents, keys.video, strict=True):
        parts: list[tuple[Kind, str, dict[int, Record]]] = [
            ("latents", key, inventory.latents),
            ("video", video_key, inventory.video),
            ("window", key, inventory.windows),
        ]
        for kind, wanted, records in parts:
            if kind == "window" and segment.index in inventory.latents:
                continue  # what comes after a finished segment is resumed from its file
            if (record := find(kind, segment.number, wanted)) is not None:
                records[segment.index] = record
    return inventory
