"""Stories as one Slurm array job: the script, its submission, and what Slurm says of it later.

Slurm schedules, ends and repeats; a render that stops with 75 goes on where it was when it is
run again, and so an element only has to put itself back into the queue.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from pydantic import TypeAdapter

from storyreel.errors import MissingError, OutputError, SlurmError, UsageError
from storyreel.files import read_json, write_atomically, writing

FOLDER = "slurm"  # of scripts, records and logs, in the films' folder
PATIENCE = 30.0  # seconds for Slurm to say how its jobs are
OVER = {"BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}  # badly

# A job's log is beside its script: the working directory is that of sbatch.
_DIRECTIVES = (
    "--job-name=storyreel",
    "--output=%A_%a.log",
    "--open-mode=append",
    "--requeue",
    "--signal=B:USR1@180",  # seconds: one evaluation of the largest clips may take more than a minute
)
_BODY = """\
stop() {
    stopping=1 again=1
    [ -z "$child" ] || kill -USR1 "$child" 2>/dev/null
}
trap stop USR1 TERM # the time is nearly up, others need the node, or the job is cancelled

"${command[@]}"OWN -- "${stories[SLURM_ARRAY_TASK_ID]}" &
child=$!
[ -z "$stopping" ] || stop # it came too early to be passed on

again=1
while [ "$again" ]; do # a signal ends this wait, not the render
    again=
    wait "$child"
    code=$?
done

if [ "$stopping" ] && [ "$code" != 0 ]; then # whatever ends a render that was told to stop, it is to go on
    element="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    # What Slurm has ended itself, it puts back into the queue itself, or does not want there.
    if ! command -v scontrol >/dev/null; then
        echo "there is no scontrol on this node: the story is not queued again; submit it again" >&2
    elif [[ "$(scontrol show job "$element")" == *JobState=RUNNING* ]]; then
        scontrol requeue "$element"
    fi
fi
exit "$code"
"""


@dataclass(frozen=True)
class Submission:
    """An array job: ``films`` holds the path of each element's story by the film's name, in order."""

    job: str
    submitted: str
    films: dict[str, str]


_SUBMISSION = TypeAdapter(Submission)


def job_script(
    stories: Iterable[Path],
    arguments: Iterable[str],
    directives: Iterable[str],
    environment: Mapping[str, str] | None = None,
    casts: Mapping[str, Path] | None = None,
) -> str:
    """Return the bash script of an array job that renders one of ``stories`` in each element.

    ``arguments`` are render's, ``directives`` what follows ``#SBATCH``; ``environment`` are variables that
    a cluster may keep from a job. Where elements have casts of their own, ``casts`` are the cast's files by
    the film's name, in the order of the stories. Raises UsageError for control characters, which no shell,
    log or table could show.
    """
    variables = [f"{name}={value}" for name, value in (environment or {}).items()]
    command = [sys.executable, "-m", "storyreel", "render", *arguments]
    command = ["env", *variables, *command] if variables else command
    paths = [str(path.absolute()) for path in stories]
    arrays = {"stories": paths}
    if casts:
        arrays |= {"names": [*casts], "casts": [str(path.absolute()) for path in casts.values()]}
    directives = [*_DIRECTIVES, *directives]
    here = str(Path.cwd())
    for text in (*command, *chain(*arrays.values()), *directives, here):
        if any(unicodedata.category(char) == "Cc" for char in text):
            raise UsageError(f"{text!r} holds control characters", "Rename it, or leave it out.")
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {directive}" for directive in directives),
        "",
        *(line for name, texts in arrays.items() for line in _array(name, texts)),
        f"command=({shlex.join(command)})",
        f"cd -- {shlex.quote(here)} || exit",
        "stopping= child=",
        "",
    ]
    own = ' "--name=${names[SLURM_ARRAY_TASK_ID]}" "--cast=${casts[SLURM_ARRAY_TASK_ID]}"'
    return "\n".join(lines) + _BODY.replace("OWN", own if casts else "")


def _array(name: str, texts: Iterable[str]) -> list[str]:
    """Return the lines that make an array of bash."""
    return [f"{name}=(", *(f"    {shlex.quote(text)}" for text in texts), ")"]


def check_log_folder(out: Path) -> None:
    """Raise UsageError if Slurm would write logs elsewhere than into the films' folder ``out``."""
    if set(str(out.absolute())) & set("%\\"):
        remedy = "Choose another --out: in the path of a log, Slurm reads % and \\ as signs of its own."
        raise UsageError(f"Slurm cannot write logs into {out}", remedy)


def submit(script: str, out: Path, films: Mapping[str, Path]) -> Submission:
    """Submit a script, and keep it beside a record of what it renders in ``out``.

    Raises MissingError without sbatch, SlurmError with its words if it refuses, OutputError.
    """
    if shutil.which("sbatch") is None:
        raise MissingError(
            "there is no sbatch here",
            "Submit where Slurm is installed; --dry-run prints the script; storyreel render renders the "
            "stories here.",
        )
    folder = out / FOLDER
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["sbatch", "--parsable"], input=os.fsencode(script), cwd=folder, capture_output=True
    )
    job = done.stdout.decode(errors="replace").strip().partition(";")[0]
    if done.returncode or not job.isdigit():
        words = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise SlurmError(f"sbatch rejected the job: {words}", "Correct what it reports, and run this again.")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    submission = Submission(job, now, {name: str(path.absolute()) for name, path in films.items()})
    try:
        write_atomically(folder / f"{job}.sh", os.fsencode(script))
        write_atomically(folder / f"{job}.json", json.dumps(asdict(submission), indent=2) + "\n")
    except OSError as error:
        message = f"job {job} is submitted, but its record cannot be written: {error.strerror}"
        raise OutputError(message, f"It renders if it can write. scancel {job} ends it.") from None
    return submission


def cannot_requeue() -> bool:
    """Tell whether this machine lacks what a job's node needs to put a story back into the queue."""
    return shutil.which("scontrol") is None


def last_submission(out: Path) -> Submission | None:
    """Return the latest of the submissions that are recorded in ``out``, None if there is none."""
    found = []
    for path in (out / FOLDER).glob("*.json"):
        try:
            record = _SUBMISSION.validate_python(read_json(path))
        except (OSError, ValueError):  # not ours, or gone
            continue
        # What names another folder is not ours either.
        if re.fullmatch("[0-9]{1,18}", record.job) and all(map(_is_name, record.films)):
            found.append(record)
    return max(found, key=lambda submission: (submission.submitted, int(submission.job)), default=None)


def _is_name(text: str) -> bool:
    return text not in ("", ".", "..") and not set(text) & set("/\\\0")


def log_of(out: Path, job: str, element: int) -> Path:
    """Return where an element's log is."""
    return out / FOLDER / f"{job}_{element}.log"


def element_states(job: str) -> dict[int, str]:
    """Return the states of a job's elements in Slurm's words, of those that Slurm still knows.

    Raises MissingError if there is no Slurm here, SlurmError if it does not answer.
    """
    listed = _ask("squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%F_%K|%T")
    if listed is None:
        raise MissingError("there is no squeue here", "Ask where Slurm is installed.")
    # Slurm forgets what is over after some minutes, its accounting, where there is one, does not.
    kept = _ask(
        "sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job}", "--format=JobID,State"
    )
    lines = re.findall(rf"^{job}_(\d+)\|([A-Z_]+)", f"{kept or ''}\n{listed}", re.MULTILINE)
    return {int(element): state for element, state in lines}


def _ask(*command: str) -> str | None:
    """Return what one of Slurm's commands prints, "" if it fails, None if it is not here."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE)
    except OSError:  # it is not here, or not for us
        return None
    except subprocess.TimeoutExpired:
        raise SlurmError("Slurm does not answer", "Ask again later.") from None
    return done.stdout if done.returncode == 0 else ""
