"""Reads all of a film back: what is whole, and what is not. Nothing is written, not even a lock."""

from __future__ import annotations

from pathlib import Path

from storyreel import video
from storyreel.checkpoint import FilmFolder, matches
from storyreel.differences import differences
from storyreel.errors import StoryreelError
from storyreel.inventory import look
from storyreel.keys import about_film, film_key, film_keys, ingredients, weight_hashes
from storyreel.models.specs import ModelSpec
from storyreel.plan import Plan
from storyreel.render import DEVICES, film_page_of, wanted_film
from storyreel.store import Record, Store

DAMAGED, MISSING = "is damaged", "is missing"


def verify(plan: Plan, name: str, out: Path) -> dict[str, str]:
    """Read back all of a film in ``out/name``, and its model; return what is wrong with each file, or "".

    Hashes are compared and films decoded. Raises StoryreelError if that cannot be done.
    """
    found = {str(path): fault for path, fault in weight_faults(plan.spec).items()}
    folder = FilmFolder(out / name, name)
    if not (folder.manifest_path.exists() or folder.unfinished_path.exists()):
        return found | {str(folder.path): "not rendered"}
    if folder.is_in_use():
        raise folder.locked()
    folder.refuse_strange_files()
    folder.load()
    return found | {str(path): fault for path, fault in film_faults(plan, folder).items()}


def film_faults(plan: Plan, folder: FilmFolder) -> dict[Path, str]:
    """Return what is wrong with each file of a film, or ""."""
    store, recorded_as = Store(folder.segments), folder.present or folder.unfinished
    device = recorded_as.about.get("device") if recorded_as else None
    about = about_film(plan, ingredients(plan.spec), device if device in DEVICES else DEVICES[0])
    there = look(plan, film_keys(plan, about), store.record)
    wanted = wanted_film(about, there)
    changed = "; ".join(differences(recorded_as, wanted)) if recorded_as else ""
    absent = f"is not rendered: what is there differs ({changed})" if changed else "is not rendered yet"
    other = f"is of another film ({changed})" if changed else DAMAGED
    found: dict[Path, str] = {}

    def check(path: Path, record: Record | None, frames: int | None = None) -> None:
        """Hold a segment's file against its record; it decodes to so many frames, if it is pictures."""
        if record is None:
            found[path] = f"{DAMAGED}, or its record is" if path.exists() else absent
        elif not store.is_whole(record):
            found[path] = DAMAGED if path.exists() else MISSING
        else:
            found[path] = "" if frames is None else _length_fault(path, frames)

    for segment, key, video_key in zip(plan.segments, there.keys.latents, there.keys.video, strict=True):
        check(store.path("latents", segment.number, key), there.latents.get(segment.index))
        path = store.path("video", segment.number, video_key)
        check(path, there.video.get(segment.index), segment.frames)
    around = folder.film_path, folder.page_path, folder.manifest_path
    if there.without_video:  # so that nobody knows what they should be
        unknown = other if changed else "cannot be checked: records of scenes are missing"
        return found | {path: unknown if path.exists() else MISSING for path in around}
    film = folder.present.film if folder.present else {}
    key = film_key(plan, about, [there.video[segment.index].sha256 for segment in plan.segments])
    page, manifest = film_page_of(folder.name, film, there), wanted_film(about, there, film).text()
    whole = folder.film_is_complete(key), folder.holds(around[1], page), folder.holds(around[2], manifest)
    if folder.present is None:
        other = "cannot be checked: there is no manifest of it, or a damaged one"
    found |= {
        path: "" if is_whole else other if path.exists() else MISSING
        for path, is_whole in zip(around, whole, strict=True)
    }
    if whole[0]:
        found[folder.film_path] = _length_fault(folder.film_path, plan.frames)
    return found


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
