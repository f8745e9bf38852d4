"""What of a film is there, what is missing, and what that takes: no file is read, no model loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from storyreel.film.inventory import Inventory, take_inventory
from storyreel.film.keys import film_facts
from storyreel.film.store import Kind, Record
from storyreel.story.plan import Segment
from tests.conftest import plan_of
from tests.film.test_keys import WITH_ENCODER
from tests.test_rendering import story

pytestmark = pytest.mark.usefixtures("fake_model")


def record(index: int, step: int = 0) -> Record:
    return Record("state" if step else "latents", f"{index + 1:02d}", "k", "s", "cpu", 1.0, step)


def taken(text: str | None = None, **options: Any) -> Inventory:
    plan = plan_of(text or story(), **options)
    return Inventory(plan, film_facts(plan, WITH_ENCODER, "cpu"))


Change = Callable[[Inventory], object]


@pytest.mark.parametrize(
    ("change", "forwards"),
    [
        (lambda inventory: None, 6 * 3),
        (lambda inventory: inventory.latents.update({(0, 1): record(0)}), 5 * 3),
        (lambda inventory: inventory.states.update({(0, 1): record(0, 2)}), 1 + 5 * 3),
        (
            lambda inventory: inventory.states.update({(1, 1): record(1, 1), (4, 1): record(4, 3)}),
            2 + 0 + 4 * 3,
        ),
        (lambda inventory: inventory.latents.update({(i, 1): record(i) for i in range(6)}), 0),
        (lambda inventory: inventory.latents.update({(i, 1): record(i) for i in (0, 1, 2, 4, 5)}), 3),
    ],
)
def test_forwards_to_come_are_counted_from_what_is_there(change: Change, forwards: int) -> None:
    inventory = taken()
    change(inventory)
    assert inventory.forwards() == forwards


def test_of_skipped_steps_only_those_are_counted_that_are_computed() -> None:
    inventory = taken(steps=8, speed="fast")
    whole = inventory.forwards()
    assert whole == inventory.plan.forwards < 6 * 8
    inventory.states[0, 1] = record(0, 7)
    assert inventory.forwards() == whole - whole // 6 + inventory.plan.pace.computed[7]


def numbers(segments: list[Segment]) -> list[int]:
    return [segment.index for segment in segments]


def test_what_has_no_latents_is_denoised() -> None:
    inventory = taken()
    assert numbers(inventory.undone) == numbers(inventory.shown) == [0, 1, 2, 3, 4, 5]
    inventory.latents.update({(0, 1): record(0), (4, 1): record(4)})
    assert numbers(inventory.undone) == [1, 2, 3, 5]
    assert numbers(inventory.shown) == [0, 1, 2, 3, 4, 5]  # there is no video yet


def test_latents_are_decoded_where_they_show_in_a_video_that_is_missing() -> None:
    """That is the segment's own, or a neighbour's."""
    inventory = taken()
    inventory.latents.update({(i, 1): record(i) for i in range(6)})
    inventory.video.update({i: record(i) for i in (0, 1, 2, 3, 4)})
    assert inventory.missing == {5}
    assert numbers(inventory.shown) == [4, 5]
    inventory.video.update({5: record(5)})
    del inventory.video[0]
    assert numbers(inventory.shown) == [0, 1]
    inventory.video.update({0: record(0)})
    assert (numbers(inventory.shown), numbers(inventory.undone)) == ([], [])


@pytest.mark.parametrize("card", ["", "card: Later, "], ids=["", "card"])
def test_a_neighbour_behind_a_card_shows_in_no_scene(card: str) -> None:
    """A dissolve needs both sides; with a card between them, a scene that is asked for is rendered alone."""
    later = f"  - {{{card}scene: at sea, action: a fox swims, transition: dissolve}}\n"
    plan = plan_of(f"render: {{model: fake}}\nscenes:\n  - [in the park, a dog sits]\n{later}")
    assert plan.seams[0].strength > 0
    for asked in (0, 1):
        inventory = Inventory(plan, film_facts(plan, WITH_ENCODER, "cpu"), only=frozenset({asked}))
        wanted = [asked] if card else [0, 1]
        assert numbers(inventory.undone) == numbers(inventory.shown) == wanted


def test_a_video_without_its_latents_is_made_again() -> None:
    inventory = taken()
    inventory.video.update({i: record(i) for i in range(6)})
    inventory.latents.update({(i, 1): record(i) for i in (0, 1, 2, 4, 5)})
    assert inventory.missing == {3}
    assert numbers(inventory.undone) == [3]
    assert numbers(inventory.shown) == [2, 3, 4]


@pytest.mark.parametrize("trusted", [True, False])
def test_what_is_found_is_taken_and_a_state_only_of_what_is_not_finished(trusted: bool) -> None:
    """``find`` is asked for every file by its key; records of other keys are nobody's."""
    plan = plan_of(story())
    facts = film_facts(plan, WITH_ENCODER, "cpu")
    keys = Inventory(plan, facts).keys
    present = {("latents", "01", keys.latents[0]), ("video", "01", keys.video[0])}
    present |= {("state", "01", keys.latents[0]), ("state", "02", keys.latents[1])}
    present |= {("video", "03", keys.video[2] if trusted else "another key")}

    def find(kind: Kind, number: str, key: str) -> Record | None:
        return Record(kind, number, key, "s", "cpu", 1.0) if (kind, number, key) in present else None

    found = take_inventory(plan, facts, find)
    assert (set(found.latents), set(found.states)) == ({(0, 1)}, {(1, 1)})
    assert set(found.video) == ({0, 2} if trusted else {0})
