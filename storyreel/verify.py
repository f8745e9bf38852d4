"""Reads all of a film back: what is whole, what is not, and why. It writes nothing and takes no lock."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from storyreel import video
from storyreel.checkpoint import FilmFolder, matches
from storyreel.errors import StoryreelError
from storyreel.models.specs import ModelSpec
from storyreel.plan import Plan
from storyreel.render import (
    Work,
    about_film,
    about_scenes,
    film_key,
    film_page_of,
    segment_keys,
    weight_hashes,
)

MISSING = "is missing"
DAMAGED = "is damaged: it is not what was recorded"
UNFINISHED = "is not finished"
UNRECORDED = "has a damaged record in the manifest"


def verify(plan: Plan, name: str, out: Path) -> dict[str, str]:
    """Read back all of a film in ``out/name``, and its model; return what is wrong with each file, or "".

    Hashes are compared and films decoded. Raises StoryreelError if that cannot be done, LockedError while
    somebody renders into the folder.
    """
    found = {str(path): fault for path, fault in weight_faults(plan.spec).items()}
    folder = FilmFolder(out / name, name)
    folder.refuse_strange_files()
    if not folder.manifest_path.exists():
        return found | {str(folder.path): "not rendered"}
    if folder.is_in_use():
        raise folder.locked()
    folder.load()
    about = about_film(plan)
    work = Work(plan, about, segment_keys(plan, about), folder, "auto", overwrite=False)
    other = f"belongs to {difference(folder.about, about) or 'another story'}"
    for segment in plan.segments:
        number, index = segment.number, segment.index
        record = folder.records.get(number)
        latents, film = folder.latents(number), folder.video(number)
        if record is None:
            why = DAMAGED if not folder.about else UNRECORDED if number in folder.damaged else UNFINISHED
            found |= {str(path): why if path.exists() else MISSING for path in (latents, film)}
            continue
        for path, made, key in (
            (latents, record.key, work.keys[index]),
            (film, record.video_key, work.video_key(index)),
        ):
            fault = UNFINISHED if not made else other if made != key else _fault(path, record.files)
            found[str(path)] = fault or (_length_fault(path, segment.frames) if path == film else "")
    complete = {segment.number for segment in plan.segments} <= folder.records.keys()
    found[str(folder.film_path)] = (
        _film_fault(folder, film_key(plan, folder), other, plan.frames) if complete else UNFINISHED
    )
    texts = {folder.manifest_path: folder.manifest(about, about_scenes(plan))}
    if complete:
        texts[folder.page_path] = film_page_of(plan, folder)
    for path, text in texts.items():
        why = other if folder.about and difference(folder.about, about) else DAMAGED
        found[str(path)] = "" if folder.holds(path, text) else why if path.exists() else MISSING
    return found


def _fault(path: Path, files: Mapping[str, str]) -> str:
    """Return what is wrong with a file's bytes, by what is recorded of it."""
    if not path.exists():
        return MISSING
    return "" if matches(path, files.get(path.name, "")) else DAMAGED


def _film_fault(folder: FilmFolder, key: str, other: str, frames: int) -> str:
    path, film = folder.film_path, folder.film
    if not film:
        return UNFINISHED
    if film.get("key") != key:
        return other
    return _fault(path, {path.name: film.get("sha256", "")}) or _length_fault(path, frames)


def difference(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say in what a film differs from what is wanted, both as `about_film` has them; "" if in nothing.

    What is recorded comes first: "another seed (0, not 1)".
    """
    wanted = json.loads(json.dumps(wanted))  # as it would have been recorded
    parts = list(_differences(recorded, wanted))
    return ", ".join(dict.fromkeys(parts))


def _differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    was, now = _flat(recorded.get("model")), _flat(wanted.get("model"))
    if was.get("name") != now.get("name"):
        yield f"another model ({was.get('name')}, not {now.get('name')})"
    elif was != now:
        yield f"other weights of {now.get('name')}"
    for part, words in (("settings", "other settings"), ("versions", "other versions")):
        was, now = _flat(recorded.get(part)), _flat(wanted.get(part))
        keys = [key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
        if keys:
            yield f"{words} ({'; '.join(f'{key} {was.get(key)}, not {now.get(key)}' for key in keys)})"
    if recorded.get("recipe") != wanted.get("recipe"):
        yield "another version's recipe"
    if recorded.get("story") != wanted.get("story"):
        yield "another story, or an earlier form of it"
    elif recorded.get("title") != wanted.get("title"):
        yield "another title"


def _flat(value: object) -> dict[str, object]:
    """Return a mapping without mappings in it: of those, keys are joined by dots."""
    if not isinstance(value, dict):
        return {}
    flat: dict[str, object] = {}
    for key, inner in value.items():
        flat |= (
            {f"{key}.{k}": v for k, v in _flat(inner).items()} if isinstance(inner, dict) else {key: inner}
        )
    return flat


def _length_fault(path: Path, frames: int) -> str:
    """Return what is wrong with a film's frames, or ""."""
    try:
        count = video.count_frames(path)
    except StoryreelError as error:
        return error.message
    return "" if count == frames else f"has {count} frames instead of {frames}"


def weight_faults(spec: ModelSpec) -> dict[Path, str]:
    """Read a model's weights; return what is wrong with each file, or ""."""
    from storyreel.models.base import published_checksums

    known = {spec.weights / name: value for name, value in weight_hashes(spec).items()}
    known |= published_checksums(spec.weights)
    return {path: "" if matches(path, value) else "is damaged or missing" for path, value in known.items()}
