"""How films differ, in words; what stands in a manifest may be anything."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from storyreel.errors import printable
from storyreel.film.differences import MOST_TOLD, differences
from storyreel.film.inventory import Inventory
from storyreel.film.keys import film_facts
from storyreel.film.manifest import Manifest, film_manifest
from storyreel.story.plan import Plan
from tests import fuzz
from tests.conftest import plan_of

pytestmark = pytest.mark.usefixtures("fake_model")

PAIRS = [("a park", "a fox sits"), ("a street", "it walks"), ("a bus", "it looks"), ("a home", "it sleeps")]
CHANGED = "the recipe has changed:"
MADE_OF: dict[str, Any] = {
    "model": {
        "name": "fake",
        "facts": {"overlap": 2},
        "weights": {"a.safetensors": "0", "b.safetensors": "1"},
    },
    "versions": {"storyreel": "0.1", "torch": "2.13.0", "transformers": "5.24.0"},
    "recipe": {"latents": {"method/blending.py": "0", "sampling.py": "1"}, "pictures": {"video.py": "2"}},
}


def story(pairs: list[tuple[str, str]] = PAIRS, more: str = "") -> str:
    scenes = "".join(f"  - [{scene}, {action}]\n" for scene, action in pairs)
    return f"title: Foxes\nrender: {{model: fake}}\n{more}scenes:\n{scenes}"


def wanted(plan: Plan, made_of: dict[str, Any] = MADE_OF, device: str = "cpu") -> Manifest:
    return film_manifest(Inventory(plan, film_facts(plan, made_of, device)))


def read_back(manifest: Manifest) -> Manifest:
    """As it comes from disk: tuples are lists there."""
    return Manifest(json.loads(json.dumps(manifest.facts)), json.loads(json.dumps(manifest.segments)), {})


def told(text: str | None = None, **options: Any) -> list[str]:
    """What is said where the usual film is there."""
    return differences(read_back(wanted(plan_of(story()))), wanted(plan_of(text or story(), **options)))


def test_the_same_film_is_the_same() -> None:
    assert told() == []
    assert told(seed=0, steps=3, method=("lead_noise=0.2",)) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 1}, ["seed 0 -> 1"]),
        ({"steps": 12}, ["steps 3 -> 12"]),
        ({"guidance": 2.5}, ["guidance 3.0 -> 2.5"]),
        ({"speed": "fast"}, ["speed exact -> fast"]),
        ({"quantize": "fp8"}, ["quantize none -> fp8"]),
        ({"method": ("overlap=1", "lead_noise=0.4")}, ["lead noise 0.2 -> 0.4", "overlap none -> 1"]),
        ({"seconds": 0.25}, [f"scene {n}'s length" for n in (1, 2, 3, 4)]),
        ({"seed": 5, "steps": 2}, ["seed 0 -> 5", "steps 3 -> 2"]),
    ],
    ids=str,
)
def test_a_changed_setting_is_said(options: dict[str, Any], words: list[str]) -> None:
    assert told(**options) == words


SCENES: list[tuple[str, Callable[[list[tuple[str, str]]], list[tuple[str, str]]], list[str]]] = [
    ("an action", lambda p: [*p[:1], ("a street", "it runs"), *p[2:]], ["scene 2's action prompt"]),
    ("a scene", lambda p: [("a lake", "a fox sits"), *p[1:]], ["scene 1's scene prompt"]),
    (
        "two",
        lambda p: [("a", "a fox sits"), *p[1:3], ("a home", "b")],
        ["scene 1's scene prompt", "scene 4's action prompt"],
    ),
    ("a new one", lambda p: [*p[:2], ("a", "b"), *p[2:]], ["scene 3 new"]),
    ("new ones at the end", lambda p: [*p, ("a", "b"), ("c", "d")], ["scenes 5 to 6 new"]),
    ("a new first one", lambda p: [("a", "b"), *p], ["scene 1 new"]),
    ("one gone", lambda p: [*p[:1], *p[2:]], ["scene 2 of before gone"]),
    ("two gone", lambda p: p[2:], ["scenes 1 to 2 of before gone"]),
]


@pytest.mark.parametrize(("change", "words"), [row[1:] for row in SCENES], ids=[row[0] for row in SCENES])
def test_a_changed_scene_is_said(
    change: Callable[[list[tuple[str, str]]], list[tuple[str, str]]], words: list[str]
) -> None:
    assert told(story(change(PAIRS))) == words


def test_a_cut_a_length_and_a_title_are_said() -> None:
    cut = story().replace(
        "[a bus, it looks]", "{scene: a bus, action: it looks, transition: cut, seconds: 1}"
    )
    assert told(cut) == ["scene 3's length", "scene 3's transition"]
    assert told(story().replace("Foxes", "Vixens")) == ["title Foxes -> Vixens"]


@pytest.mark.parametrize(
    ("part", "name", "value", "words"),
    [
        ("versions", "transformers", "5.24.1", ["transformers 5.24.0 -> 5.24.1"]),
        ("versions", "storyreel", "0.2", []),
        (
            "recipe",
            "latents",
            {"method/blending.py": "9", "sampling.py": "1"},
            [f"{CHANGED} method/blending.py"],
        ),
        ("recipe", "pictures", {"video.py": "9"}, [f"{CHANGED} video.py"]),
        ("recipe", "latents", {"sampling.py": "1"}, [f"{CHANGED} method/blending.py"]),
        ("model", "name", "other", ["model fake -> other"]),
        ("model", "facts", {"overlap": 3}, ["the model's overlap 2 -> 3"]),
        (
            "model",
            "weights",
            {"a.safetensors": "9", "b.safetensors": "1"},
            ["the model's weights: a.safetensors"],
        ),
        ("model", "weights", {str(n): "9" for n in range(9)}, ["the model's weights: 0, 1, 2, 8 more"]),
    ],
    ids=str,
)
def test_what_a_film_is_made_from_is_said(part: str, name: str, value: object, words: list[str]) -> None:
    made_of = {**MADE_OF, part: {**MADE_OF[part], name: value}}
    assert differences(read_back(wanted(plan_of(story()))), wanted(plan_of(story()), made_of)) == words


def test_another_kind_of_device_is_said() -> None:
    plan = plan_of(story())
    assert differences(wanted(plan, device="cuda"), wanted(plan)) == ["device cuda -> cpu"]


def test_many_differences_are_counted() -> None:
    found = told(story([(f"place {n}", f"action {n}") for n in range(4)]), seed=3, steps=2)
    assert len(found) == MOST_TOLD + 1
    assert found[-1] == "and 2 more"


def test_anything_can_stand_in_a_manifest() -> None:
    after = wanted(plan_of(story()))
    for number in range(300):
        draw = random.Random(number)
        before = json.loads(json.dumps({"facts": after.facts, "segments": after.segments}))
        for _ in range(draw.randint(1, 5)):
            fuzz._spoil(draw, before)
        facts, segments = before.get("facts"), before.get("segments")
        if not isinstance(facts, dict) or not isinstance(segments, list):
            continue  # which `Manifest.read` refuses
        if not all(isinstance(segment, dict) for segment in segments):
            continue
        for words in differences(Manifest(facts, segments, {}), after):
            assert words == printable(words)  # no terminal is commanded
            assert "\n" not in words
            assert len(words) < 400
