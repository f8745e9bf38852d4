"""Why scenes have to be rendered: by what is there, and by the manifest of the film before."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storyreel.film.folder import FilmFolder
from storyreel.film.inventory import Inventory, take_inventory
from storyreel.film.keys import DEVICES, film_facts, ingredients, own_facts
from storyreel.film.manifest import Manifest
from storyreel.film.store import Store
from storyreel.story.plan import Plan, Segment

# What of a scene's plan has changed, in the order in which it is said.
CHANGES = {
    "scene": "its scene prompt has changed",
    "action": "its action prompt has changed",
    "take": "another take is wanted",
    "frames": "its length has changed",
    "seed": "its seed has changed",
    "cast": "who is in it has changed",
    "picture": "the picture that it begins with has changed",
    "blended": "it begins otherwise",
    "loras": "its LoRAs have changed",
}
BEGINNINGS = "the words with which all actions begin have changed"
TEXTS = ("scene", "action")


def reasons(inventory: Inventory, before: Manifest | None) -> dict[int, str]:
    """Return why each scene that is missing is to be rendered, by its index."""
    return {index: _reason(inventory, before, index) for index in sorted(inventory.missing)}


def _reason(inventory: Inventory, before: Manifest | None, index: int) -> str:
    plan = inventory.plan
    segment = plan.segments[index]
    if segment.slot in inventory.latents:
        return "its pictures are made again"
    if segment.slot in inventory.states:
        return "it was begun"
    if before is None:
        return "it is not there yet"
    recorded = _recorded(before, segment, len(plan.segments))
    if recorded is None:
        return "it is new"
    facts = _plain(own_facts(segment))
    if changed := [words for name, words in CHANGES.items() if recorded.get(name) != facts.get(name)]:
        return BEGINNINGS if changed[0] == CHANGES["cast"] and not plan.story.get("cast") else changed[0]
    again = {
        source for source in plan.sources(segment) if plan.first_takes[source].slot not in inventory.latents
    }
    again.discard(index)  # of another take it is the first one
    if plan.goes_on(segment) and index - 1 in again:
        return f"it goes on from scene {index}, which is rendered again"
    if again:
        return f"it shows somebody as scene {min(again) + 1} does, which is rendered again"
    if segment.take > 1:
        return "what it is made to fit between has changed"
    if recorded.get("key") == inventory.keys.latents[index]:
        return "its file is missing or damaged"
    goes_on = plan.goes_on(segment)
    return "the scene before it is another one" if goes_on else "settings or versions have changed"


def _recorded(before: Manifest, segment: Segment, scenes: int) -> dict[str, Any] | None:
    """Return the scene of before that a segment of a film of so many ``scenes`` has come of; None for none.

    It has its texts, or it is at its place and has one of them.
    """
    facts = _plain(own_facts(segment))
    for scene in before.segments:
        if all(scene.get(name) == facts[name] for name in (*TEXTS, "take", "seed")):
            return scene
    same = (s for s in before.segments if all(s.get(name) == facts[name] for name in TEXTS))
    if (found := next(same, None)) is not None or len(before.segments) != scenes:
        return found  # where scenes were put in or taken out, a place says nothing
    at = before.segments[segment.index]
    return at if any(at.get(name) == facts[name] for name in TEXTS) else None


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def alone_messages(inventory: Inventory, before: Manifest) -> Iterator[str]:
    """Yield how a scene could be changed alone, where a change of its text makes others be rendered too."""
    shared = ("settings", "model", "recipe", "plugins")
    if any(before.facts.get(part) != inventory.facts.get(part) for part in shared):
        return  # all is rendered for other reasons
    why = reasons(inventory, before)
    if BEGINNINGS in why.values():
        yield (
            "the words with which all actions begin say who is in a story without a cast, and they are "
            "others now: all scenes with them are rendered. A cast says it whatever the actions are"
        )
    changed = [index for index, words in why.items() if words in (CHANGES["scene"], CHANGES["action"])]
    for index in changed:
        depending = [
            i for i in why if i != index and (why[i] == BEGINNINGS or index in _all_sources(inventory, i))
        ]
        if not depending:
            continue
        numbers = ", ".join(str(i + 1) for i in depending)
        part = "scene" if why[index] == CHANGES["scene"] else "action"
        text = shlex.quote(inventory.plan.story["scenes"][index][part])  # as the story writes it
        yield (
            f"scene {index + 1} has changed, and what depends on it is rendered too (scene {numbers}). "
            f"To change it alone, take its former text back and say: "
            f"storyreel retake STORY {index + 1} --{part} {text}"
        )


def _all_sources(inventory: Inventory, index: int) -> set[int]:
    """Return all scenes that a scene depends on, however far."""
    plan, found, waiting = inventory.plan, set[int](), [index]
    while waiting:
        for source in plan.sources(plan.first_takes[waiting.pop()]):
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found


def looked_up(
    plan: Plan, out: Path, name: str, only: frozenset[int] | None = None, device: str | None = None
) -> tuple[Inventory, Manifest | None]:
    """Return what is there of a planned film in ``out/name``, by the records alone, and its manifest.

    ``device`` is the kind that will compute it, of `DEVICES`, else that of the film that is there. Nothing is
    written. Raises MissingError without the model's weights.
    """
    folder = FilmFolder(out / name, name)
    folder.load()
    recorded = folder.present or folder.unfinished
    known = recorded.facts.get("device") if recorded else None
    facts = film_facts(plan, ingredients(plan.spec), device or (known if known in DEVICES else DEVICES[0]))
    return take_inventory(plan, facts, Store(folder.segments).anywhere, only), recorded
