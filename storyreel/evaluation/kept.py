"""What prompts leave open and a film should keep: how everybody looks, and the light and set of a place.

Each is compared with what the prompts state, else with what the film showed first. What nobody can see is not
kept. A film that always shows the same keeps everything, also where it shows nothing of its story: none of
these numbers is to be read without the right characters and places beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

Look = Mapping[
    str, str
]  # of somebody: what is seen, or stated, of every attribute, as in {"colour": "black"}


@dataclass(frozen=True)
class SceneSeen:
    """What a judge sees of a scene that its prompts may leave open.

    ``stated`` has everybody who should be there, and what the prompts say of their looks, "" of what they
    leave open; ``looks`` those who are there. ``place`` and ``stated_light`` are what the prompts say,
    ``light`` and ``arrangement`` what is seen; None where nobody can tell.
    """

    stated: Mapping[str, Look]
    looks: Mapping[str, Look]
    place: str
    stated_light: str = ""
    light: str | None = None
    arrangement: int | None = None


def looks_kept(scenes: Sequence[SceneSeen]) -> list[dict[str, float]]:
    """Return for every scene the percentage of its characters that look as they should, by metric.

    ``ATTRIBUTE_kept`` is of one attribute, ``look_kept`` of all together, ``look_kept_absent`` is that of
    those who were not in the scene before. Who is seen for the first time, with a look that was left open,
    keeps nothing yet and is left out.
    """
    known: dict[str, dict[str, str]] = {}
    before: Mapping[str, Look] = {}
    found = []
    for scene in scenes:
        kept: dict[str, list[bool]] = {}
        for who, stated in scene.stated.items():
            wanted, seen = known.setdefault(who, {}), scene.looks.get(who)
            met = bool(wanted)
            wanted |= {attribute: value for attribute, value in stated.items() if value}
            right = {
                attribute: seen is not None and seen.get(attribute) == wanted[attribute]
                for attribute in stated
                if attribute in wanted
            }
            if seen is not None:
                known[who] = {**seen, **wanted}
            for attribute, value in right.items():
                kept.setdefault(f"{attribute}_kept", []).append(value)
            if right:
                kept.setdefault("look_kept", []).append(all(right.values()))
            if right and met and who not in before:
                kept.setdefault("look_kept_absent", []).append(all(right.values()))
        before = scene.stated
        found.append({name: 100 * fmean(values) for name, values in kept.items()})
    return found


def looks_by_distance(scenes: Sequence[SceneSeen]) -> list[dict[str, Any]]:
    """Return how often, in percent, two scenes some ``distance`` apart show somebody alike.

    By attribute, and of all of them in ``look``. A pair counts if somebody who should be in both is seen in
    the earlier; who is absent in between is no less the same. ``pairs`` is how many there are.
    """
    same: dict[int, list[dict[str, bool]]] = {}
    for i, earlier in enumerate(scenes):
        for j, later in enumerate(scenes[i + 1 :], i + 1):
            for who in earlier.stated.keys() & later.stated.keys() & earlier.looks.keys():
                look, other = earlier.looks[who], later.looks.get(who, {})
                alike = {name: other.get(name) == value for name, value in look.items()}
                same.setdefault(j - i, []).append(alike | {"look": all(alike.values())})
    return [
        {"distance": distance, "pairs": len(pairs)}
        | {name: 100 * fmean(pair[name] for pair in pairs) for name in pairs[0]}
        for distance, pairs in sorted(same.items())
    ]


def places_kept(scenes: Sequence[SceneSeen]) -> list[dict[str, float]]:
    """Return for every scene, in percent, whether light and set are as they were where its place stays.

    ``light_kept`` and ``arrangement_kept`` compare with the first of the scenes in this place in a row (the
    light with a stated one, if there is one), ``light_same`` and ``arrangement_same`` with the scene right
    before.
    """
    found: list[dict[str, float]] = []
    first: dict[str, Any] = {}
    before: SceneSeen | None = None
    for scene in scenes:
        stays = before is not None and before.place == scene.place
        relit = before is not None and scene.stated_light not in ("", before.stated_light)
        first = first if stays else {}
        if scene.stated_light:
            first = first | {"light": scene.stated_light}
        seen = {"light": scene.light, "arrangement": scene.arrangement}
        values = {f"{name}_kept": 100.0 * (seen[name] == wanted) for name, wanted in first.items()}
        if stays and before is not None:
            pairs = {"light": before.light, "arrangement": before.arrangement}
            values |= {
                f"{name}_same": 100.0 * (seen[name] == value)
                for name, value in pairs.items()
                if value is not None and not (name == "light" and relit)
            }
        first = {name: value for name, value in seen.items() if value is not None} | first
        found.append(values)
        before = scene
    return found
