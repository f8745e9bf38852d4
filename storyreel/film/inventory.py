"""What of a film is there, what is missing, and how much work that is. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from storyreel.film.keys import Keys
from storyreel.film.store import Kind, Record
from storyreel.method.step_skipping import SPEEDS
from storyreel.story.plan import Plan, Segment, forwards_left


@dataclass
class Inventory:
    """The records of a plan's segments, by their index, whose files are whole.

    ``windows`` are states of segments under way, by the first of them. Whoever makes more adds to it.
    """

    plan: Plan
    keys: Keys
    latents: dict[int, Record] = field(default_factory=dict)
    video: dict[int, Record] = field(default_factory=dict)
    windows: dict[int, Record] = field(default_factory=dict)

    @property
    def without_video(self) -> set[int]:
        """The segments whose pictures are to be made, be it that their latents are missing."""
        whole = self.video.keys() & self.latents.keys()
        return {segment.index for segment in self.plan.segments} - whole

    def gaps(self, run: Sequence[Segment]) -> Iterator[tuple[Segment, int]]:
        """Yield the first of neighbouring segments without latents, and how many they are."""
        length = 0
        for segment in (*run, None):
            if segment is not None and segment.index not in self.latents:
                length += 1
            elif length:
                after = run[-1].index + 1 if segment is None else segment.index
                yield self.plan.segments[after - length], length
                length = 0

    def resume(self, run: Sequence[Segment], first: Segment) -> Record | None:
        """Return what holds the state in which a segment comes first; None if it is as at the beginning."""
        if first.index in self.windows:
            return self.windows[first.index]
        return None if first.index == run[0].index else self.latents[first.index - 1]

    def forwards(self) -> int:
        """Return how many forward passes of the transformer are to come."""
        steps, window = self.plan.settings.steps, self.plan.settings.method.window
        speed, count = SPEEDS[self.plan.settings.speed], 0
        for run in self.plan.runs():
            for first, wanted in self.gaps(run):
                stored = self.resume(run, first)
                begun = stored.begun if stored else ()
                following = run[-1].index + 1 - first.index - len(begun)
                count += forwards_left(begun, wanted, following, window, steps, speed)
        return count


def look(plan: Plan, keys: Keys, find: Callable[[Kind, str, str], Record | None]) -> Inventory:
    """Return what of a plan is there, by what ``find`` has of a kind, a segment's number and a key.

    That is `Store.find`, which reads every file, or `Store.record`, which believes what is recorded.
    """
    found = Inventory(plan, keys)
    for segment, key, video_key in zip(plan.segments, keys.latents, keys.video, strict=True):
        parts: list[tuple[Kind, str, dict[int, Record]]] = [
            ("latents", key, found.latents),
            ("video", video_key, found.video),
            ("window", key, found.windows),
        ]
        for kind, wanted, records in parts:
            if kind == "window" and segment.index in found.latents:
                continue  # it is behind that already
            if (record := find(kind, segment.number, wanted)) is not None:
                records[segment.index] = record
    return found
