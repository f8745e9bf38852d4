"""Reads all of a film back and says what is wrong with each file. Writes nothing and takes no lock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storyreel import __version__
from storyreel.errors import StoryreelError
from storyreel.files import matches
from storyreel.film import reader
from storyreel.film.differences import differences
from storyreel.film.folder import FilmFolder
from storyreel.film.inventory import take_inventory
from storyreel.film.keys import DEVICES, film_facts, film_key, ingredients, weight_hashes
from storyreel.film.manifest import film_manifest
from storyreel.film.page import film_page
from storyreel.film.recorded import recorded_plan
from storyreel.film.store import RECORD, Record, Store
from storyreel.models.specs import ModelSpec
from storyreel.story.plan import Plan

MISSING = "is missing"
DAMAGED = "is damaged: it is not what was recorded"
UNFINISHED = "is not finished"
UNRECORDED = "has no record, or a damaged one"
EARLIER = "is damaged, or of an earlier version"
UNKNOWN = "cannot be checked: the manifest, or the record of a scene, is damaged or missing"


def verify(plan: Plan, name: str, out: Path) -> dict[str, str]:
    """Read back all of a film in ``out/name``, and its model's weights.

    Return what is wrong with each file, by its path; "" if nothing is. Hashes are compared and films
    decoded. Raises StoryreelError if that cannot be done, LockedError while a process renders into the
    folder.
    """
    found = {str(path): fault for path, fault in weight_faults(plan.spec).items()}
    folder = _opened(out / name, name)
    if not folder.segments.is_dir():
        return found | {str(folder.path): "not rendered"}
    recorded = folder.present or folder.unfinished
    device = recorded.facts.get("device") if recorded else None
    facts = film_facts(plan, ingredients(plan.spec), device if device in DEVICES else DEVICES[0])
    return found | {str(path): fault for path, fault in film_faults(plan, folder, facts).items()}


def verify_folder(path: Path) -> dict[str, str]:
    """Read back all of the film in a folder by its own manifest; return what is wrong with each file, or "".

    Neither its story nor its model is needed. Raises as `verify` does.
    """
    folder = _opened(path, path.resolve().name)
    recorded = folder.present or folder.unfinished
    folder.take_recorded_name()
    manifest = folder.manifest_path if folder.present or not folder.unfinished else folder.unfinished_path
    if recorded is None:
        return {str(manifest): EARLIER if manifest.exists() else MISSING}
    if (plan := recorded_plan(recorded, folder.name)) is None:
        return {str(manifest): EARLIER}
    return {str(path): fault for path, fault in film_faults(plan, folder, recorded.facts).items()}


def _opened(path: Path, name: str) -> FilmFolder:
    """Return a film's folder, read. Raises LockedError while somebody renders into it, OutputError."""
    folder = FilmFolder(path, name)
    folder.refuse_strange_files()
    if folder.segments.is_dir() and folder.is_in_use():
        raise folder.locked()
    folder.load()
    return folder


def film_faults(plan: Plan, folder: FilmFolder, facts: dict[str, Any]) -> dict[Path, str]:
    """Return what is wrong with each file of a film that is made from ``facts``, or ""."""
    store, recorded = Store(folder.segments), folder.present or folder.unfinished
    inventory = take_inventory(plan, facts, store.record)
    changed = "; ".join(differences(recorded, film_manifest(inventory))) if recorded else ""
    other = f"belongs to another film ({changed})" if changed else ""
    found: dict[Path, str] = {}

    def check(path: Path, record: Record | None, frames: int | None = None) -> None:
        """Compare a segment's file with its record, and a video's number of frames with ``frames``."""
        if record is not None and store.is_whole(record):
            found[path] = "" if frames is None else _length_fault(path, frames)
        elif path.exists():
            found[path] = DAMAGED if record else UNRECORDED
        else:
            recorded = record or path.with_name(f"{path.name}{RECORD}").exists()
            found[path] = MISSING if recorded else other or UNFINISHED

    keys = inventory.keys
    for segment, key, video_key in zip(plan.segments, keys.latents, keys.video, strict=True):
        check(store.path("latents", segment.number, key), inventory.latents.get(segment.slot))
        path = store.path("video", segment.number, video_key)
        check(path, inventory.video.get(segment.index), segment.frames)
    for sound in plan.sound.sounds if plan.sound else ():
        if sound.text is not None:
            path = store.folder / Path(sound.file).name
            there = matches(path, sound.sha256)
            found[path] = "" if there else DAMAGED if path.exists() else MISSING
    around = folder.film_path, folder.page_path, folder.manifest_path
    if folder.present is None and not folder.manifest_path.exists():
        return found | dict.fromkeys(around, UNFINISHED)
    if folder.present is None:
        why = [UNKNOWN, UNKNOWN, EARLIER]
    elif inventory.missing:
        why = [other or UNKNOWN] * 3
    else:
        film = folder.present.film
        key = film_key(plan, facts, [inventory.video[segment.index].sha256 for segment in plan.segments])
        texts = film_page(folder, inventory, film), film_manifest(inventory, film).text()
        whole = [folder.film_is_complete(key), *map(folder.holds, around[1:], texts)]
        if film.get("storyreel") != __version__:
            whole[1] = (
                folder.page_path.is_file()
            )  # no hash of it is recorded, and it may be laid out otherwise
        other = "" if whole[0] else other  # the film is the one that is wanted: its manifest is damaged
        why = ["" if is_whole else other or DAMAGED for is_whole in whole]
        if not whole[0] and folder.film_is_complete():  # as it was recorded, under another key
            why[0] = other or EARLIER
        why[0] = why[0] or _length_fault(folder.film_path, plan.frames)
    found |= {path: words if path.exists() else MISSING for path, words in zip(around, why, strict=True)}
    return found


def _length_fault(path: Path, frames: int) -> str:
    """Return what is wrong with a film's frames, or ""."""
    try:
        count = reader.count_frames(path)
    except StoryreelError as error:
        return error.message
    return "" if count == frames else f"has {count} frames instead of {frames}"


def weight_faults(spec: ModelSpec) -> dict[Path, str]:
    """Read a model's weights; return what is wrong with each file, or ""."""
    from storyreel.models.checksums import published_checksums

    known = {spec.weights / name: value for name, value in weight_hashes(spec).items()}
    known |= published_checksums(spec.weights)
    return {path: "" if matches(path, value) else "is damaged or missing" for path, value in known.items()}
