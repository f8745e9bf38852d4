"""What has become of films, seen from outside: no model, no torch, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storyreel import slurm
from storyreel.errors import StoryreelError
from storyreel.files import digest
from storyreel.film.folder import FilmFolder
from storyreel.film.keys import about_plan
from storyreel.film.manifest import Manifest
from storyreel.film.store import RECORD, file_name
from storyreel.story.plan import Plan

# How a render ends that only has to be run again.
STOPPED = {"StoppedError", "KeyboardInterrupt"}


@dataclass(frozen=True)
class FilmStatus:
    """One of the states done, running, stopped, failed and waiting, and how many ``scenes`` are finished.

    ``total`` is None while nobody has planned the film. ``reason`` says why it is so, where that helps.
    """

    state: str
    scenes: int
    total: int | None
    reason: str = ""


def film_status(out: Path, name: str, plan: Plan | None = None) -> FilmStatus:
    """Look at a film's folder; with a ``plan``, done is only a film that is as planned.

    Other weights or versions than the film's own are not seen: they take a whole render's reading.
    """
    folder = FilmFolder(out / name, name)
    in_use = folder.is_in_use()  # before the rest: what is done meanwhile counts as running, not as stopped
    folder.load()
    last = (folder.events() or [{}])[-1]
    there = [manifest for manifest in (folder.present, folder.unfinished) if manifest is not None]
    # Beside a film there may be a render that was not finished: which of them counts is a question of the
    # plan, else of what happened last.
    if plan:
        there = [manifest for manifest in there if _is_as_planned(manifest, plan)]
    elif last.get("event") != "finished":
        there.reverse()
    scenes = _finished(folder, there[0]) if there else 0
    total = len(plan.segments) if plan else len(there[0].segments) if there else None
    if in_use:
        of = folder.unfinished or folder.present
        return FilmStatus("running", _finished(folder, of) if of else 0, total)
    if not there and (folder.present or folder.unfinished):
        return FilmStatus("waiting", 0, total, "it was rendered from another story or with other settings")
    if there and there[0] is folder.present and folder.film_is_complete():
        return FilmStatus("done", scenes, total)
    begun = bool(there) and there[0] is folder.unfinished
    match last.get("event"):
        case None:
            return FilmStatus("waiting", scenes, total)
        case "stopped" if last.get("reason") not in STOPPED:
            return FilmStatus("failed", scenes, total, str(last.get("message") or last.get("reason")))
        case "finished" if not begun:
            lost = "its manifest is damaged, or of an earlier version"
            damaged = "its film is damaged or has been removed"
            unread = folder.present is None and folder.manifest_path.exists()
            return FilmStatus("stopped", scenes, total, lost if unread else damaged)
        case "stopped" | "finished":
            return FilmStatus("stopped", scenes, total)
        case _:
            return FilmStatus("stopped", scenes, total, "it ended without a word")


def _finished(folder: FilmFolder, manifest: Manifest) -> int:
    """Count the scenes of a film whose pictures are recorded."""
    try:
        names = {path.name for path in folder.segments.iterdir()}
    except OSError:
        return 0
    keys = ((segment.get("number"), segment.get("video_key")) for segment in manifest.segments)
    return sum(f"{file_name('video', str(number), str(key))}{RECORD}" in names for number, key in keys)


def all_films(out: Path, plans: Mapping[str, Plan], tell: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Return how the films of ``plans`` are, else those of the last submission, else all in ``out``.

    By their names, as plain data; of submitted ones with the ``job`` and what ``slurm`` says of it. If
    Slurm does not answer, ``tell`` is told why.
    """
    submission = slurm.last_submission(out)
    elements: dict[str, int] = {}
    states: dict[int, str] = {}
    if submission:
        elements = {name: element for element, name in enumerate(submission.films)}
        try:
            states = slurm.element_states(submission.job)
        except StoryreelError as error:
            tell(f"job {submission.job}: {error.message}")
    rows = {}
    for name in plans or elements or films_in(out):
        row = asdict(film_status(out, name, plans.get(name)))
        if submission and name in elements:
            element = elements[name]
            state = states.get(element)
            row |= {"job": f"{submission.job}_{element}", "slurm": state}
            if row["state"] != "done" and state == "RUNNING":
                row["state"] = "running"  # on another machine, whose locks need not show here
            elif row["state"] in ("waiting", "stopped") and state in slurm.OVER:
                log = slurm.log_of(out, submission.job, element)
                row |= {"state": "failed", "reason": f"Slurm says {state}; see {log}"}
        rows[name] = row
    return rows


def films_in(out: Path) -> Iterator[str]:
    """Yield the names of all films that were begun in ``out``."""
    for path in sorted(out.glob("*/events.jsonl")):
        yield path.parent.name


def _is_as_planned(manifest: Manifest, plan: Plan) -> bool:
    wanted, model = about_plan(plan), manifest.about.get("model")
    same_model = isinstance(model, dict) and model.get("name") == plan.spec.name
    return same_model and digest({key: manifest.about.get(key) for key in wanted}) == digest(wanted)
