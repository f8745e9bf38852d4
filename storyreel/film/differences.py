"""How the film that is wanted differs from one that is there, in words.

Manifests are read from disk: nothing is assumed of what is in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from storyreel.errors import printable
from storyreel.film.manifest import Manifest

MOST_TOLD = 8  # differences that are listed
LONGEST = 40  # characters of a value
IRRELEVANT = {"storyreel"}  # versions that no picture depends on


def differences(before: Manifest, after: Manifest) -> list[str]:
    """Return what differs, the most interesting first; [] if nothing does."""
    old, new = before.facts, json.loads(json.dumps(after.facts))
    found = [
        *_values(old, new, ("title",)),
        *_scenes(before.segments, json.loads(json.dumps(after.segments)), _seed(old) == _seed(new)),
        *(["the cards"] if any(old.get(name) != new.get(name) for name in ("cards", "drawn_by")) else []),
        *_model(_part(old, "model"), _part(new, "model")),
        *_settings(_part(old, "settings"), _part(new, "settings")),
        *_loras(_part(old, "loras"), _part(new, "loras")),
        *_sounds(_part(old, "sound"), _part(new, "sound")),
        *_values(old, new, ("device",)),
        *_values(_part(old, "versions"), _part(new, "versions")),
        *_recipe(_part(old, "recipe"), _part(new, "recipe")),
        *(f"the plugin {name}" for name in _changed(_part(old, "plugins"), _part(new, "plugins"))),
    ]
    if len(found) > MOST_TOLD:
        found[MOST_TOLD:] = [f"and {len(found) - MOST_TOLD} more"]
    return [printable(" ".join(words.split())) for words in found]


def setting_differences(before: Manifest, facts: Mapping[str, Any]) -> list[str]:
    """Return which settings, model and kind of device a film was made with instead of others."""
    old, new = before.facts, json.loads(json.dumps(facts))
    found = [
        *_model(_part(old, "model"), _part(new, "model")),
        *_settings(_part(old, "settings"), _part(new, "settings")),
        *_values(old, new, ("device",)),
    ]
    return [printable(words) for words in found]


def _part(facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = facts.get(name)
    return part if isinstance(part, dict) else {}


def _seed(facts: Mapping[str, Any]) -> object:
    return _part(facts, "settings").get("seed")


def _said(value: object) -> str:
    text = value if isinstance(value, str) else "none" if value is None else json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _values(
    old: Mapping[str, Any], new: Mapping[str, Any], names: tuple[str, ...] = (), prefix: str = ""
) -> Iterator[str]:
    """Yield the values that differ, with their names, as in "seed 0 -> 1"."""
    for name in names or sorted({*old, *new} - IRRELEVANT):
        if old.get(name) != new.get(name):
            yield f"{prefix}{name.replace('_', ' ')} {_said(old.get(name))} -> {_said(new.get(name))}"


def _settings(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    old, new = ({**settings, **_part(settings, "method")} for settings in (old, new))
    for settings in (old, new):
        settings.pop("method", None)
        settings["size"] = f"{settings.pop('width', '?')}x{settings.pop('height', '?')}"
    first = [name for name in ("seed", "size", "steps", "guidance") if name in new]
    yield from _values(old, new, tuple(dict.fromkeys([*first, *sorted({*old, *new})])))


def _model(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    if old.get("name") != new.get("name"):
        yield from _values({"model": old.get("name")}, {"model": new.get("name")})
        return
    yield from _values(_part(old, "facts"), _part(new, "facts"), prefix="the model's ")
    if changed := _changed(_part(old, "weights"), _part(new, "weights")):
        yield f"the model's weights: {_listed(changed)}"


def _loras(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    if changed := _changed(old, new):
        yield f"LoRAs: {_listed(changed)}"


def _recipe(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    parts = {*_changed(_part(old, "latents"), _part(new, "latents"))}
    parts |= {*_changed(_part(old, "pictures"), _part(new, "pictures"))}
    if parts:
        yield f"the recipe has changed: {_listed(sorted(parts))}"


def _sounds(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Yield what is heard otherwise: the music, or in which scenes."""
    heard = []
    for facts in (old, new):
        sounds = facts.get("sounds")
        found = [sound for sound in sounds if isinstance(sound, dict)] if isinstance(sounds, list) else []
        heard.append({(str(sound.get("scene")), str(sound.get("kind"))): sound for sound in found})
    changed = {place for place in {*heard[0], *heard[1]} if heard[0].get(place) != heard[1].get(place)}
    if ("None", "music") in changed:
        yield "the music"
    if scenes := sorted({int(scene) + 1 for scene, _ in changed if scene.isdecimal()}):
        yield f"the sound of {_listed([f'scene {number}' for number in scenes])}"
    if old.get("voice") != new.get("voice"):
        yield "the voice"
    if old.get("recipe") != new.get("recipe"):
        yield "how sound is mixed"


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*old, *new} if old.get(name) != new.get(name))


def _listed(names: list[str]) -> str:
    shown = names if len(names) <= 4 else [*names[:3], f"{len(names) - 3} more"]
    return ", ".join(shown)


def _scenes(old: list[dict[str, Any]], new: list[dict[str, Any]], same_seed: bool) -> Iterator[str]:
    """Yield the scenes that differ, each by its number in the film that is wanted.

    ``same_seed`` says whether the film's seed is the same. Equal scenes at the beginning and at the end are
    matched; those between them are compared in their order.
    """
    texts = [[(s.get("scene"), s.get("action")) for s in scenes] for scenes in (old, new)]
    shorter = min(len(old), len(new))
    first = next((i for i in range(shorter) if texts[0][i] != texts[1][i]), shorter)
    last = next((i for i in range(shorter - first) if texts[0][~i] != texts[1][~i]), shorter - first)
    same = shorter - last  # so many can be compared one by one, from the beginning
    for i in range(same):
        yield from _scene(i + 1, old[i], new[i], same_seed)
    if len(new) > len(old):
        yield f"{_numbers(same + 1, len(new) - last)} new"
    elif len(old) > len(new):
        yield f"{_numbers(same + 1, len(old) - last)} of before gone"
    for i in range(-last, 0):
        yield from _scene(len(new) + i + 1, old[i], new[i], same_seed)


def _numbers(first: int, last: int) -> str:
    return f"scene {first}" if first == last else f"scenes {first} to {last}"


def _scene(number: int, old: dict[str, Any], new: dict[str, Any], same_seed: bool) -> Iterator[str]:
    for part in ("scene", "action"):
        if old.get(part) != new.get(part):
            yield f"scene {number}'s {part} prompt"
    if old.get("take") != new.get("take"):
        yield f"scene {number}'s take {_said(old.get('take'))} -> {_said(new.get('take'))}"
    elif same_seed and old.get("scene") == new.get("scene") and old.get("seed") != new.get("seed"):
        yield f"scene {number}'s seed"
    if old.get("frames") != new.get("frames"):
        yield f"scene {number}'s length"
    if old.get("loras") != new.get("loras"):
        yield f"scene {number}'s LoRAs"
    # The transition of a film's first scene means nothing.
    if old.get("index") and new.get("index") and old.get("blended") != new.get("blended"):
        yield f"scene {number}'s transition"
