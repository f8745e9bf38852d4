"""What of a film is there, what is missing, and what is to be done about it. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from storyreel.film.keys import Keys, film_keys
from storyreel.film.store import Kind, Record
from storyreel.story.plan import Plan, Segment, Slot


@dataclass
class Inventory:
    """A film that is wanted, and the records of its segments' files that are there.

    ``facts`` say what the film is made from (`keys.film_facts`); ``keys`` follow from them. ``latents``, and
    ``states`` of segments that were being denoised, are by the segments' slots: of a scene that is taken
    again the first take may be needed too. ``video`` is by the segments' index. ``only`` are the scenes that
    are asked for, by index; None means all. A render adds what it saves.
    """

    plan: Plan
    facts: dict[str, Any]
    latents: dict[Slot, Record] = field(default_factory=dict)
    video: dict[int, Record] = field(default_factory=dict)
    states: dict[Slot, Record] = field(default_factory=dict)
    only: frozenset[int] | None = None
    keys: Keys = field(init=False)

    def __post_init__(self) -> None:
        self.keys = film_keys(self.plan, self.facts)

    def forget(self, scenes: Iterable[int] | None = None) -> None:
        """Take what is there of some scenes, by index, for missing: of all, if none are named."""
        for index in range(len(self.plan.segments)) if scenes is None else scenes:
            self.video.pop(index, None)
            slot = self.plan.segments[index].slot
            self.latents.pop(slot, None)
            self.states.pop(slot, None)
        if scenes is None:
            self.latents.clear()  # of first takes that are not shown, too
            self.states.clear()

    @property
    def missing(self) -> set[int]:
        """The scenes that are asked for and lack their latents or their video."""
        return {
            s.index
            for s in self.plan.segments
            if (self.only is None or s.index in self.only) and not self._is_there(s)
        }

    @property
    def is_complete(self) -> bool:
        """Whether all of the film is there, also what is not asked for."""
        return all(self._is_there(segment) for segment in self.plan.segments)

    def is_complete_at(self, index: int) -> bool:
        """Tell whether a scene has its latents and its video."""
        return self._is_there(self.plan.segments[index])

    def _is_there(self, segment: Segment) -> bool:
        return segment.index in self.video and segment.slot in self.latents

    @property
    def undone(self) -> list[Segment]:
        """The segments that are to be denoised, each after those that it depends on."""
        needed: set[Segment] = set()
        waiting = [segment for segment in self.shown if segment.slot not in self.latents]
        while waiting:
            segment = waiting.pop()
            if segment not in needed:
                needed.add(segment)
                sources = (self.plan.first_takes[source] for source in self.plan.sources(segment))
                waiting += [source for source in sources if source.slot not in self.latents]
        return sorted(needed, key=lambda segment: segment.slot)

    @property
    def shown(self) -> list[Segment]:
        """The segments to be decoded, in order: those whose pictures show in a video that is missing.

        Their neighbours too, if they are there, so that the two sides of every seam are compared.
        """
        missing = self.missing
        wanted = missing | {
            index + shift
            for index in missing
            for shift in (-1, 1)
            if 0 <= index + shift < len(self.plan.segments)
            and (self.plan.segments[index + shift].slot in self.latents or self._dissolves(index, shift))
        }
        return [segment for segment in self.plan.segments if segment.index in wanted]

    def _dissolves(self, index: int, shift: int) -> bool:
        """Tell whether a scene's video shows pictures of a neighbour: with no card between the two."""
        later = self.plan.segments[max(index, index + shift)]
        seam = self.plan.seams[later.index - 1]
        return seam.transition == "dissolve" and seam.strength > 0 and not self.plan.has_card_before(later)

    def forwards(self) -> int:
        """Return how many model evaluations of the denoising are to come, which progress counts."""
        computed = self.plan.pace.computed
        begun = {slot: record.step for slot, record in self.states.items()}
        return sum(sum(computed[begun.get(segment.slot, 0) :]) for segment in self.undone)

    def evaluations(self) -> int:
        """Return how many model evaluations are to come, with those that find characters."""
        return self.forwards() + self.plan.looks(self.undone)


def take_inventory(
    plan: Plan,
    facts: dict[str, Any],
    find: Callable[[Kind, str, str], Record | None],
    only: frozenset[int] | None = None,
) -> Inventory:
    """Return what of a plan is there, by what ``find`` has of a kind, a segment's number and a key.

    ``find`` is `Store.find`, which reads every file, or `Store.record`, which trusts the records. ``only``
    are the scenes that are asked for.
    """
    inventory = Inventory(plan, facts, only=only)
    keys = inventory.keys
    for segment in plan.takes:
        if (record := find("latents", segment.number, keys.of(segment))) is not None:
            inventory.latents[segment.slot] = record
        elif (record := find("state", segment.number, keys.of(segment))) is not None:
            inventory.states[segment.slot] = record
    for segment, key in zip(plan.segments, keys.video, strict=True):
        if (record := find("video", segment.number, key)) is not None:
            inventory.video[segment.index] = record
    return inventory
