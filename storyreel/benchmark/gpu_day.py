"""One hour on a lent GPU: everything that wants measuring, in one command that needs nobody beside it.

`STEPS` says what is measured, the most valuable first. Each step's result is a file of its own as soon as it
is there, and then the table of all is renewed: nothing is lost with the machine, and a second run does what
is missing. Steps run in a process of their own, which is begun anew after one that failed: what has gone
wrong on a GPU stays wrong in that process. What would take longer than is left is left out, and listed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from storyreel.benchmark.report import day_table
from storyreel.benchmark.steps import KINDS, STEPS, Bed, Step
from storyreel.errors import StoryreelError
from storyreel.files import read_json, write_atomically, writing
from storyreel.models.devices import pick_device

TABLE = "README.md"
DONE, FAILED, SKIPPED, RUNNING = "done", "failed", "skipped", "running"
POLL = 0.2  # seconds between looks at the process that measures
PATIENCE = 180.0  # seconds that any step may take, however short it was thought to be
LATER = 60.0  # seconds after the whole time is up, for what is about to end

Outcome = dict[str, Any]


class Process(Protocol):
    """What `subprocess.Popen` has of this."""

    returncode: int | None

    def poll(self) -> int | None:
        """Return the exit code of a process that has ended, else None."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def wait(self) -> int:
        """Wait for its end."""
        ...


def gpu_day(
    folder: Path,
    device: str,
    minutes: float,
    tell: Callable[[str], None],
    steps: Sequence[Step] = STEPS,
    start: Callable[[Path, str, float], Process] | None = None,
) -> dict[str, Any]:
    """Measure what is not yet measured in ``folder``, in at most ``minutes``, and return all outcomes.

    ``start`` begins the process that measures (`work`), given folder, device and when time is up. Raises
    MissingError for a device that is not there, OutputError where the folder cannot be written.
    """
    pick_device(device)
    with writing(folder, "name another folder", ""):
        folder.mkdir(parents=True, exist_ok=True)
        for step in steps:  # of a run before: what is not done is tried again
            if read_outcome(folder, step)["state"] != DONE:
                path_of(folder, step).unlink(missing_ok=True)
        _write_table(folder, steps)
    deadline = time.time() + 60 * minutes
    told: set[str] = set()
    while missing := [step for step in steps if read_outcome(folder, step)["state"] not in ENDED]:
        process = (start or _start)(folder, device, deadline)
        try:
            _watch(process, folder, missing, deadline, lambda: _tell_news(folder, steps, told, tell))
        finally:
            if process.poll() is None:  # a signal has asked this one to stop
                process.kill()
                process.wait()
        under_way = [step for step in missing if read_outcome(folder, step)["state"] == RUNNING]
        for step in under_way:
            reason = f"its process ended with {process.returncode}, as a lack of memory does"
            write_outcome(folder, step, FAILED, error=reason)
        if not under_way and all(read_outcome(folder, s)["state"] == "missing" for s in missing):
            write_outcome(folder, missing[0], FAILED, error="its process ended before it began")
        _write_table(folder, steps)
    _tell_news(folder, steps, told, tell)
    _write_table(folder, steps)
    return {"folder": str(folder), "steps": [read_outcome(folder, step) for step in steps]}


ENDED = (DONE, FAILED, SKIPPED)


class Group(subprocess.Popen[bytes]):
    """A process that is killed with all that it has started, such as a render: that would hold the GPU."""

    def __init__(self, words: Sequence[str], **more: Any) -> None:
        super().__init__(words, process_group=0, **more)

    def kill(self) -> None:
        """End the process and those that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _start(folder: Path, device: str, deadline: float) -> Process:
    words = [sys.executable, "-m", "storyreel.benchmark.gpu_day", str(folder), device, str(deadline)]
    with (folder / "log.txt").open("ab") as log:
        return Group(words, stdout=log, stderr=subprocess.STDOUT)


def _watch(
    process: Process, folder: Path, steps: Sequence[Step], deadline: float, look: Callable[[], None]
) -> None:
    """Wait for the end of a process; end it where a step takes far longer than was thought."""
    while process.poll() is None:
        time.sleep(POLL)
        look()
        for step in steps:
            outcome = read_outcome(folder, step)
            if outcome["state"] == RUNNING:
                spent = time.time() - outcome["began"]
                longest = max(PATIENCE, 3 * 60 * step.minutes)
                if spent > longest or time.time() > deadline + LATER:
                    process.kill()
                    process.wait()
                    write_outcome(folder, step, FAILED, error=f"it was ended after {spent:.0f} s")
                    return
    process.wait()


def work(folder: Path, device: str, deadline: float, steps: Sequence[Step] = STEPS) -> int:
    """Do one step after the other; return 1 after one that failed, for a new process to go on, else 0."""
    bed = Bed(pick_device(device), folder, deadline)
    for step in steps:
        if read_outcome(folder, step)["state"] in ENDED:
            continue
        if reason := not_now(step, bed, deadline):
            write_outcome(folder, step, SKIPPED, reason=reason)
            continue
        began = time.time()
        write_outcome(folder, step, RUNNING, began=began)
        try:
            result = KINDS[step.kind](bed, step)
        except Exception as error:
            text = error.message if isinstance(error, StoryreelError) else f"{type(error).__name__}: {error}"
            trace = traceback.format_exc()[-4000:]
            write_outcome(folder, step, FAILED, error=text[:500], trace=trace, seconds=time.time() - began)
            return 1
        finally:
            bed.tidy()
        write_outcome(folder, step, DONE, result=result, seconds=time.time() - began)
    return 0


def not_now(step: Step, bed: Bed, deadline: float) -> str:
    """Return why a step cannot be done here, or not in the time that is left; "" if it can."""
    if step.gpu and bed.device.type != "cuda":
        return "it needs a CUDA device"
    left = (deadline - time.time()) / 60
    if step.minutes > left:
        return f"it takes about {step.minutes:g} minutes, and {max(0.0, left):.1f} are left"
    return ""


def path_of(folder: Path, step: Step) -> Path:
    """Return the file of a step's outcome."""
    return folder / f"{step.name.replace(' ', '-')}.json"


def read_outcome(folder: Path, step: Step) -> Outcome:
    """Return a step's outcome; its state is missing where there is none that can be read."""
    with suppress(OSError, ValueError):
        found = read_json(path_of(folder, step))
        if isinstance(found, dict) and found.get("step") == step.name:
            return found
    return {"step": step.name, "state": "missing"}


def write_outcome(folder: Path, step: Step, state: str, **more: Any) -> None:
    """Write a step's outcome, whole or not at all."""
    outcome = {"step": step.name, "kind": step.kind, "model": step.model, "state": state, **more}
    write_atomically(path_of(folder, step), json.dumps(outcome, indent=2, default=str) + "\n")


def _write_table(folder: Path, steps: Sequence[Step]) -> None:
    table = day_table([read_outcome(folder, step) for step in steps])
    write_atomically(folder / TABLE, table)


def _tell_news(folder: Path, steps: Sequence[Step], told: set[str], tell: Callable[[str], None]) -> None:
    """Say which steps have ended since the last time, and renew the table."""
    for step in steps:
        outcome = read_outcome(folder, step)
        if outcome["state"] in ENDED and step.name not in told:
            told.add(step.name)
            why = outcome.get("error") or outcome.get("reason") or f"{outcome.get('seconds', 0):.0f} s"
            tell(f"{step.name}: {outcome['state']}, {why}")
            _write_table(folder, steps)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, as the process that `gpu_day` begins."""
    parser = argparse.ArgumentParser(description="The process that `storyreel bench --gpu-day` begins.")
    for name, kind in (("folder", Path), ("device", str), ("deadline", float)):
        parser.add_argument(name, type=kind)
    given = parser.parse_args(words)
    return work(given.folder, given.device, given.deadline)


if __name__ == "__main__":
    sys.exit(main())
