"""The state of films, from what is on disk: no model, no torch, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storyreel import slurm
from storyreel.errors import StoryreelError
from storyreel.files import digest
from storyreel.film.folder import FilmFolder, film_folders
from storyreel.film.keys import plan_facts, scene_facts
from storyreel.film.manifest import Manifest
from storyreel.film.sound import track_facts
from storyreel.film.store import RECORD, file_name
from storyreel.story.plan import Plan

# Reasons of a stop after which the same command goes on.
STOPPED = {"StoppedError", "KeyboardInterrupt"}
GIVEN = ("loras", "picture")  # to a scene, beside what the story says
EARLIER = "an earlier film is there, complete"


@dataclass(frozen=True)
class FilmStatus:
    """A film's ``state``, done, running, stopped, failed or waiting, and how many ``scenes`` are finished.

    ``total`` is None if the film was never planned. ``reason`` says why it is in this state, or is "".
    """

    state: str
    scenes: int
    total: int | None
    reason: str = ""


def film_status(out: Path, name: str, plan: Plan | None = None) -> FilmStatus:
    """Return the state of a film; with a ``plan``, only a film that is as planned counts as done.

    Changed weights and versions are not noticed: that takes reading the weights.
    """
    folder = FilmFolder(out / name, Path(name).name)
    in_use = folder.is_in_use()  # first: a render that ends meanwhile counts as running, not as stopped
    folder.load()
    folder.take_recorded_name()
    last = (folder.events() or [{}])[-1]
    manifests = [manifest for manifest in (folder.present, folder.unfinished) if manifest is not None]
    # Beside a film there may be an unfinished one: the plan says which of them counts, else the last event.
    if plan:
        manifests = [manifest for manifest in manifests if _is_as_planned(manifest, plan)]
    elif last.get("event") != "finished":
        manifests.reverse()
    scenes = _finished(folder, manifests[0]) if manifests else 0
    total = len(plan.segments) if plan else len(manifests[0].segments) if manifests else None
    if in_use:
        rendered = folder.unfinished or folder.present
        return FilmStatus("running", _finished(folder, rendered) if rendered else 0, total)
    if not manifests and (folder.present or folder.unfinished):
        return FilmStatus("waiting", 0, total, "it was rendered from another story or with other settings")
    is_complete = folder.film_is_complete()
    begun = bool(manifests) and manifests[0] is folder.unfinished
    if manifests and not begun and is_complete and (plan is None or folder.name == Path(name).name):
        return FilmStatus("done", scenes, total)
    state, reason = _ended(folder, last, begun, is_complete)
    if begun and is_complete:
        reason = f"{reason}; {EARLIER}" if reason else EARLIER
    return FilmStatus(state, scenes, total, reason)


def _ended(folder: FilmFolder, last: Mapping[str, Any], begun: bool, is_complete: bool) -> tuple[str, str]:
    """Return the state, and its reason, of a film that is neither done nor running: by the ``last`` event.

    ``begun`` says that it is the unfinished one, ``is_complete`` that a complete one is there.
    """
    match last.get("event"):
        case None:
            return "waiting", ""
        case "stopped" if last.get("reason") not in STOPPED:
            return "failed", str(last.get("message") or last.get("reason"))
        case "finished" if not begun:
            if folder.present is None and folder.manifest_path.exists():
                return "stopped", "its manifest is damaged, or of an earlier version"
            if is_complete:
                return "stopped", f"its film is still called {folder.film_path.name}"
            return "stopped", "its film is damaged or has been removed"
        case "parts":
            return "stopped", "only some of its scenes were asked for"
        case "stopped" | "finished":
            return "stopped", ""
        case _:
            return "stopped", "it ended unexpectedly; it may have been killed"


def _finished(folder: FilmFolder, manifest: Manifest) -> int:
    """Count the scenes of a film whose videos are recorded."""
    try:
        names = {path.name for path in folder.segments.iterdir()}
    except OSError:
        return 0
    keys = ((segment.get("number"), segment.get("video_key")) for segment in manifest.segments)
    return sum(f"{file_name('video', str(number), str(key))}{RECORD}" in names for number, key in keys)


def all_films(
    out: Path, plans: Mapping[str, Plan | None], tell: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Return the state of the films of ``plans``, else of the last submission, else of all in ``out``.

    By their names, or paths from ``out``, as plain data; of submitted ones with the ``job`` and its state in
    ``slurm``. If Slurm does not answer, ``tell`` is called with the reason.
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
    for name in plans or elements or [str(path.relative_to(out)) for path in film_folders(out)]:
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


def _is_as_planned(manifest: Manifest, plan: Plan) -> bool:
    facts, wanted = manifest.facts, plan_facts(plan)
    model, sound = facts.get("model"), facts.get("sound")
    heard = {k: v for k, v in sound.items() if k != "recipe"} if isinstance(sound, dict) else sound
    given = [[scene.get(name) for name in GIVEN] for scene in manifest.segments]
    return (
        isinstance(model, dict)
        and model.get("name") == plan.spec.name
        and digest({key: facts.get(key) for key in wanted}) == digest(wanted)
        and digest(heard) == digest(track_facts(plan.sound) if plan.sound else None)
        and digest(given) == digest([[scene.get(name) for name in GIVEN] for scene in scene_facts(plan)])
    )
