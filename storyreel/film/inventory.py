"""What of a film is there, what is missing, and what is to be done about it. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from storyreel.film.keys import Keys, film_keys
from storyreel.film.store import Kind, Record
from storyreel.method.step_skipping import SPEEDS
from storyreel.story.plan import Plan, Segment


@dataclass
class Inventory:
    """A film that is wanted, and the records of its segments' files that are there, by the segments' index.

    ``facts`` say what the film is made from (`keys.film_facts`); ``keys`` follow from them. ``states`` are
    those of segments that were being denoised. A render adds what it saves.
    """

    plan: Plan
    facts: dict[str, Any]
    latents: dict[int, Record] = field(default_factory=dict)
    video: dict[int, Record] = field(default_factory=dict)
    states: dict[int, Record] = field(default_factory=dict)
    keys: Keys = field(init=False)

    def __post_init__(self) -> None:
        self.keys = film_keys(self.plan, self.facts)

    @property
    def missing(self) -> set[int]:
        """The segments that lack their latents or their video."""
        segments = self.plan.segments
        return {s.index for s in segments if s.index not in self.video or s.index not in self.latents}

    @property
    def undone(self) -> list[Segment]:
        """The segments that are to be denoised, in order."""
        return [segment for segment in self.plan.segments if segment.index not in self.latents]

    @property
    def shown(self) -> list[Segment]:
        """The segments whose pictures show in a video that is missing: its own or a neighbour's, in order."""
        wanted = {index + shift for index in self.missing for shift in (-1, 0, 1)}
        return [segment for segment in self.plan.segments if segment.index in wanted]

    def forwards(self) -> int:
        """Return how many model evaluations of the denoising are to come."""
        steps, speed = self.plan.settings.steps, SPEEDS[self.plan.settings.speed]
        begun = {index: record.step for index, record in self.states.items()}
        return sum(
            speed.computes(step, steps)
            for segment in self.undone
            for step in range(begun.get(segment.index, 0), steps)
        )


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
            ("state", key, inventory.states),
        ]
        for kind, wanted, records in parts:
            if kind == "state" and segment.index in inventory.latents:
                continue
            if (record := find(kind, segment.number, wanted)) is not None:
                records[segment.index] = record
    return inventory
