"""Reads all of a film back: what is whole, and what is not."""

from __future__ import annotations

from pathlib import Path

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

UNFIT = "is damaged, missing or unfinished, or belongs to another story, model, setting or version"


def verify(plan: Plan, name: str, out: Path) -> dict[str, str]:
    """Read back all of a film in ``out/name``, and its model; return what is wrong with each file, or "".

    Hashes are compared and films decoded. Raises StoryreelError if that cannot be done.
    """
    found = {str(path): fault for path, fault in weight_faults(plan.spec).items()}
    if not (out / name / "manifest.json").exists():
        return found | {str(out / name): "not rendered"}
    about = about_film(plan)
    keys = segment_keys(plan, about)
    with FilmFolder(out / name, name) as folder:
        work = Work(plan, about, keys, folder, "auto", overwrite=False)
        for segment in plan.segments:
            path = folder.video(segment.number)
            is_whole = folder.has_video(segment.number, work.video_key(segment.index))
            found[str(folder.latents(segment.number))] = "" if segment.index in work.with_latents else UNFIT
            found[str(path)] = _length_fault(path, segment.frames) if is_whole else UNFIT
        complete = {segment.number for segment in plan.segments} <= folder.records.keys()
        is_whole = complete and folder.film_is_complete(film_key(plan, folder))
        found[str(folder.film_path)] = _length_fault(folder.film_path, plan.frames) if is_whole else UNFIT
        texts = {folder.manifest_path: folder.manifest(about, about_scenes(plan))}
        if complete:
            texts[folder.page_path] = film_page_of(plan, folder)
        found |= {str(path): "" if folder.holds(path, text) else UNFIT for path, text in texts.items()}
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
