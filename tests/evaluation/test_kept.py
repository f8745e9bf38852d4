"""What stays the same from scene to scene: worked by hand, and of films that only seem to keep something."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean

import pytest

from storyreel.evaluation.kept import Look, SceneSeen, looks_by_distance, looks_kept, places_kept

COLOURS, WEAR = ("orange", "black", "grey", "brown"), ("", "red scarf", "blue collar", "yellow bandana")
OPEN = {"colour": "", "wear": ""}


def look(colour: str, wear: str = "") -> dict[str, str]:
    return {"colour": colour, "wear": wear}


def of(*looks: Look | None, stated: Look | None = None) -> list[SceneSeen]:
    """A corgi alone, seen so; None is nobody."""
    told = {"corgi": stated or OPEN}
    return [SceneSeen(told, {} if seen is None else {"corgi": seen}, "park") for seen in looks]


def kept(scenes: Sequence[SceneSeen], name: str) -> list[float | None]:
    return [values.get(name) for values in looks_kept(scenes)]


def test_what_is_first_shown_counts_from_then_on() -> None:
    scenes = of(look("black", "red scarf"), look("black"), look("grey", "red scarf"), None)
    assert kept(scenes, "colour_kept") == [None, 100, 0, 0]
    assert kept(scenes, "wear_kept") == [None, 0, 100, 0]
    assert kept(scenes, "look_kept") == [None, 0, 0, 0]


def test_what_is_stated_counts_from_the_first_scene_on_and_the_rest_is_open() -> None:
    stated = {"colour": "black", "wear": ""}
    scenes = of(look("grey"), look("black"), look("black", "red scarf"), stated=stated)
    assert kept(scenes, "colour_kept") == [0, 100, 100]
    assert kept(scenes, "wear_kept") == [None, 100, 0]
    assert kept(scenes, "look_kept") == [0, 100, 0]


def test_who_has_never_been_seen_has_no_look_yet() -> None:
    """The first scene that shows them sets it; until then nothing is kept or lost."""
    scenes = of(None, look("black"), look("black"))
    assert kept(scenes, "colour_kept") == [None, None, 100]
    assert looks_kept(of(None, None)) == [{}, {}]


def test_two_are_measured_each_by_itself() -> None:
    told = {"corgi": OPEN, "cat": OPEN}
    first = SceneSeen(told, {"corgi": look("black"), "cat": look("grey")}, "park")
    swapped = SceneSeen(told, {"corgi": look("grey"), "cat": look("grey")}, "park")
    assert looks_kept([first, swapped])[1] == {"colour_kept": 50, "wear_kept": 100, "look_kept": 50}


def test_who_comes_back_is_measured_apart() -> None:
    alone = SceneSeen({"cat": OPEN}, {"cat": look("grey")}, "park")
    scenes = [*of(look("black")), alone, *of(look("black")), alone, *of(look("grey")), *of(look("black"))]
    found = [values.get("look_kept_absent") for values in looks_kept(scenes)]
    assert found == [None, None, 100, 100, 0, None]  # the cat comes back too; the last is no return
    distances = {entry["distance"]: entry for entry in looks_by_distance(scenes)}
    two_apart = {"distance": 2, "pairs": 3, "colour": 200 / 3, "wear": 100, "look": 200 / 3}
    assert distances[2] == pytest.approx(two_apart)


def test_the_curve_falls_where_a_look_drifts() -> None:
    """Two scenes of every colour: neighbours are alike half of the time, others never."""
    scenes = of(*(look(colour) for colour in COLOURS for _ in range(2)))
    curve = looks_by_distance(scenes)
    assert [entry["distance"] for entry in curve] == list(range(1, 8))
    assert curve[0]["colour"] == pytest.approx(400 / 7)
    assert {entry["colour"] for entry in curve[1:]} == {0}
    assert {entry["wear"] for entry in curve} == {100}


def film_value(scenes: Sequence[SceneSeen], name: str) -> float:
    return fmean(value for value in kept(scenes, name) if value is not None)


def test_looks_by_chance_are_at_chance() -> None:
    """Hard joins: every scene draws its own; a crossfade, and frames in any order, change none of it."""
    rng = random.Random(0)
    scenes = of(*(look(rng.choice(COLOURS), rng.choice(WEAR)) for _ in range(4000)))
    assert film_value(scenes, "colour_kept") == pytest.approx(25, abs=3)
    assert film_value(scenes, "wear_kept") == pytest.approx(25, abs=3)
    assert film_value(scenes, "look_kept") == pytest.approx(6.25, abs=2)
    curve = looks_by_distance(scenes[:300])
    near = [entry for entry in curve if entry["distance"] < 100]
    assert fmean(entry["colour"] for entry in near) == pytest.approx(25, abs=2)


def test_who_always_looks_the_same_keeps_it_and_nobody_keeps_nothing() -> None:
    """So a model that knows one dog alone has 100: no proof that a method keeps anything."""
    assert film_value(of(*[look("black")] * 12), "look_kept") == 100
    assert film_value(of(look("black"), *[None] * 11), "look_kept") == 0


def at(*lights: tuple[str, str | None, int | None], stated: Sequence[str] = ()) -> list[SceneSeen]:
    told = [*stated, *[""] * (len(lights) - len(stated))]
    return [
        SceneSeen({}, {}, place, said, light, arrangement)
        for (place, light, arrangement), said in zip(lights, told, strict=True)
    ]


def places(scenes: Sequence[SceneSeen], name: str) -> list[float | None]:
    return [values.get(name) for values in places_kept(scenes)]


def test_light_and_set_are_the_first_ones_while_the_place_stays() -> None:
    row = ("park", "day", 0), ("park", "night", 0), ("park", "night", 1)
    scenes = at(*row, ("bus", "dusk", 1), ("park", "night", 1))
    assert places(scenes, "light_kept") == [None, 0, 0, None, None]
    assert places(scenes, "arrangement_kept") == [None, 100, 0, None, None]
    assert places(scenes, "light_same") == [None, 0, 100, None, None]
    assert places(scenes, "arrangement_same") == [None, 100, 0, None, None]


def test_what_cannot_be_told_is_not_kept_and_sets_nothing() -> None:
    scenes = at(("park", None, None), ("park", "day", 1), ("park", None, None), ("park", "day", 1))
    assert places(scenes, "light_kept") == [None, None, 0, 100]
    assert places(scenes, "light_same") == [None, None, 0, None]


def test_a_stated_light_is_the_one_to_be_kept() -> None:
    scenes = at(*[("park", "day", 0)] * 3, stated=["night"])
    assert places(scenes, "light_kept") == [0, 0, 0]
    assert places(scenes, "arrangement_kept") == [None, 100, 100]
    relit = at(("park", "day", 0), ("park", "night", 0), ("park", "night", 0), stated=["", "night"])
    assert places(relit, "light_kept") == [None, 100, 100]
    assert places(relit, "light_same") == [None, None, 100]  # the second is told to be another


def test_places_by_chance_are_at_chance() -> None:
    rng = random.Random(0)
    scenes = at(*(("park", rng.choice(("day", "dusk", "night")), rng.randrange(2)) for _ in range(4000)))
    for name, chance in (("light_same", 100 / 3), ("arrangement_same", 50), ("light_kept", 100 / 3)):
        assert fmean(v for v in places(scenes, name) if v is not None) == pytest.approx(chance, abs=3)
