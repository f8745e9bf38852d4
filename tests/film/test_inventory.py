"""What of a film is there, what is missing, and what that takes: no file is read, no model loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from storyreel.film.inventory import Inventory, take_inventory
from storyreel.film.keys import film_facts
from storyreel.film.store import Kind, Record
from tests.conftest import plan_of
from tests.film.test_keys import WITH_ENCODER
from tests.test_rendering import story

pytestmark = pytest.mark.usefixtures("fake_model")


def record(index: int, *begun: int) -> Record:
    return Record("latents", f"{index + 1:02d}", "k", "s", "cpu", 1.0, begun)


def taken(text: str | None = None, **options: Any) -> Inventory:
    plan = plan_of(text or story(), **options)
    return Inventory(plan, film_facts(plan, WITH_ENCODER, "cpu"))


Change = Callable[[Inventory], object]


@pytest.mark.parametrize(
    ("change", "forwards"),
    [
        (lambda inventory: None, 6 * 3),
        (lambda inventory: inventory.latents.update({0: record(0, 2, 1)}), 15 - 3),
        (lambda inventory: inventory.latents.update({0: record(0, 2, 1), 1: record(1, 2, 1)}), 12 - 3),
        (lambda inventory: inventory.windows.update({0: record(0, 2, 1)}), 18 - 3),
        (lambda inventory: inventory.latents.update({i: record(i) for i in range(6)}), 0),
        (lambda inventory: inventory.latents.update({i: record(i, 2, 1) for i in (0, 1, 2, 4, 5)}), 3),
        (lambda inventory: inventory.latents.update({i: record(i, 2, 1) for i in range(1, 6)}), 3 + 2 + 1),
    ],
)
def test_forwards_to_come_are_counted_from_what_is_there(change: Change, forwards: int) -> None:
    inventory = taken()
    change(inventory)
    assert inventory.forwards() == forwards


def stretches(inventory: Inventory) -> list[list[tuple[int, int]]]:
    runs = inventory.plan.runs()
    return [[(first.index, count) for first, count in inventory.stretches(run)] for run in runs]


def test_segments_without_latents_are_denoised_together_up_to_a_cut() -> None:
    inventory = taken(story(cut=3))
    assert stretches(inventory) == [[(0, 3)], [(3, 3)]]
    inventory.latents.update({0: record(0, 2), 4: record(4)})
    assert stretches(inventory) == [[(0, 0), (1, 2)], [(3, 1), (4, 0), (5, 1)]]


def test_latents_are_decoded_where_they_show_in_a_video_that_is_missing() -> None:
    """That is the segment's own, or a neighbour's across a blend."""
    inventory = taken(story(cut=4))
    inventory.latents.update({i: record(i) for i in range(6)})
    inventory.video.update({i: record(i) for i in (0, 2, 3, 5)})
    assert inventory.missing == {1, 4}
    assert stretches(inventory) == [[(0, 0), (1, 0), (2, 0)], [(4, 0), (5, 0)]]
    inventory.video.update({i: record(i) for i in range(6)})
    assert stretches(inventory) == [[], []]


def test_a_state_is_resumed_from_a_window_or_from_the_segment_before() -> None:
    inventory = taken(story(cut=3))
    inventory.latents.update({0: record(0, 2), 4: record(4)})
    runs, segments = list(inventory.plan.runs()), inventory.plan.segments
    assert inventory.resume(runs[0], segments[1]) == record(0, 2)
    assert inventory.resume(runs[1], segments[3]) is None
    inventory.windows[3] = record(3, 1)
    assert inventory.resume(runs[1], segments[3]) == record(3, 1)
    assert inventory.resume(runs[1], segments[5]) == record(4)


def test_a_video_without_its_latents_is_made_again() -> None:
    inventory = taken()
    inventory.video.update({i: record(i) for i in range(6)})
    inventory.latents.update({i: record(i) for i in (0, 1, 2, 4, 5)})
    assert inventory.missing == {3}
    assert stretches(inventory) == [[(2, 0), (3, 1), (4, 0)]]


@pytest.mark.parametrize("trusted", [True, False])
def test_what_is_found_is_taken_and_a_window_only_of_what_is_not_finished(trusted: bool) -> None:
    """``find`` is asked for every file by its key; records of other keys are nobody's."""
    plan = plan_of(story())
    facts = film_facts(plan, WITH_ENCODER, "cpu")
    keys = Inventory(plan, facts).keys
    present = {("latents", "01", keys.latents[0]), ("video", "01", keys.video[0])}
    present |= {("window", "01", keys.latents[0]), ("window", "02", keys.latents[1])}
    present |= {("video", "03", keys.video[2] if trusted else "another key")}

    def find(kind: Kind, number: str, key: str) -> Record | None:
        return Record(kind, number, key, "s", "cpu", 1.0) if (kind, number, key) in present else None

    found = take_inventory(plan, facts, find)
    assert (set(found.latents), set(found.windows)) == ({0}, {1})
    assert set(found.video) == ({0, 2} if trusted else {0})
