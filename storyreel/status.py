"""What has become of films, seen from outside: no model, no torch, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storyreel import slurm
from storyreel.checkpoint import FilmFolder, digest
from storyreel.errors import StoryreelError
from storyreel.plan import Plan
from storyreel.render import about_plan

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
    scenes = sum(bool(record.video_key) for record in folder.records.values())
    total = len(plan.segments) if plan else folder.planned or None
    if in_use:
        return FilmStatus("running", scenes, total)
    if plan and folder.about and not _is_as_planned(folder, plan):
        return FilmStatus("waiting", 0, total, "it was rendered from another story or with other settings")
    if folder.film_is_complete():
        return FilmStatus("done", scenes, total)
    events = folder.events()
    if not events:
        return FilmStatus("waiting", scenes, total)
    last = events[-1]
    match last.get("event"):
        case "stopped" if last.get("reason") not in STOPPED:
            return FilmStatus("failed", scenes, total, str(last.get("message") or last.get("reason")))
        case "finished":
            return FilmStatus("stopped", scenes, total, "its film is damaged or has been removed")
        case "stopped":
            return FilmStatus("stopped", scenes, total)
        case _:
            return FilmStatus("stopped", scenes, total, "it ended without a word")


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


def _is_as_planned(folder: FilmFolder, plan: Plan) -> bool:
    wanted, model = about_plan(plan), folder.about.get("model")
    same_model = isinstance(model, dict) and model.get("name") == plan.spec.name
    return same_model and digest({key: folder.about.get(key) for key in wanted}) == digest(wanted)
