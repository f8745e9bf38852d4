"""Stop real renders at random moments: ``python -m tests.signals --count 200 --signal TERM``.

Half of the signals come at any moment after the start of the process, half while the model loads. The same
command then goes on, until the film is there: it must be that of a render that nobody disturbed. A second
Ctrl-C follows every other one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from storyreel.errors import InterruptError, StoppedError
from storyreel.stopping import SAME, SIGNALS

ROOT = Path(__file__).parent.parent
PAIRS = [("a park", "a corgi dog is sitting"), ("a street", "a corgi dog is walking")]
STORY = "render: {steps: 4, seconds: 0.25}\nscenes:\n" + "".join(f"  - [{s}, {a}]\n" for s, a in PAIRS * 2)
LONGEST = 300  # seconds for a render
RIGHT = "as it must be"
# What says nothing of storyreel: Python itself was still starting, or there was nothing left to stop.
EXEMPT = {"before it listened", "finished first", "finished all the same"}


def code_of(number: signal.Signals) -> int:
    """Return the exit code of what a signal has stopped."""
    return InterruptError.exit_code if number == signal.SIGINT else StoppedError.exit_code


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start storyreel, listening as from a shell, whatever this process ignores."""

    def listen() -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "storyreel", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=listen,
    )


def listens(process: subprocess.Popen[str]) -> bool:
    """Tell whether Python has come as far as to storyreel's first lines; before, a signal is its own end."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    masks = [
        int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigCgt", "SigIgn"))
    ]
    return any(mask >> (SIGNALS[-1] - 1) & 1 for mask in masks)


def strike(
    process: subprocess.Popen[str], number: signal.Signals, moment: Callable[[], bool], again: bool = False
) -> tuple[str, str]:
    """Send a signal once it is the ``moment``; return what came of it in a word or two, and its stderr.

    That is what must be, or one of `EXEMPT`, or a traceback or an exit code.
    """
    while process.poll() is None and not moment():
        time.sleep(0.002)
    early, running = False, process.poll() is None
    if running:
        early = not listens(process)
        process.send_signal(number)
        if again:
            time.sleep(2 * SAME)
            process.send_signal(number)
    words = process.communicate(timeout=LONGEST)[1]
    code = process.returncode
    if "Traceback" in words or "Exception ignored" in words:
        return "before it listened" if early else "traceback", words
    if code == 0:
        return "finished all the same" if running else "finished first", words
    if early and code in (-number, code_of(number)):
        return "before it listened", words
    return (RIGHT if code == code_of(number) else f"exit code {code}"), words


class Sweep:
    """One story, stopped again and again, and what came of it."""

    def __init__(self, folder: Path, number: signal.Signals, seed: int) -> None:
        self.figures: Counter[str] = Counter()
        self._number, self._random = number, random.Random(seed)
        self._story, self._out = folder / "short.yaml", folder / "torn"
        self._story.write_text(STORY)
        reference = folder / "reference"
        begun, kept = reference / "short" / "events.jsonl", reference / "short" / "segments"
        began = time.monotonic()
        process = self._render(reference)
        wait_for(partial(begun.exists))
        load = time.monotonic()
        wait_for(lambda: any(kept.glob("[0-9]*.safetensors")))
        self._loading = time.monotonic() - load
        assert process.wait(LONGEST) == 0
        self._whole = time.monotonic() - began
        self._film = film_hash(reference)

    def _render(self, out: Path) -> subprocess.Popen[str]:
        return start("render", str(self._story), "--out", str(out), "--device", "cpu")

    def run(self, count: int) -> None:
        """Send so many signals that count, and finish the film."""
        while self.figures["signals"] < count:
            loading = self.figures["signals"] % 2 == 1
            before = size(self._out / "short" / "events.jsonl")
            process = self._render(self._out)
            moment = self._while_loading(before) if loading else self._any_time()
            again = self._number == signal.SIGINT and self._random.random() < 0.5
            came, words = strike(process, self._number, moment, again)
            self.figures[came] += 1
            self.figures["signals"] += came not in EXEMPT
            self.figures["of these while the model loads"] += loading and came == RIGHT
            if came not in {RIGHT, *EXEMPT}:
                print(f"{came}, {'while loading' if loading else 'at any time'}:\n{words}", file=sys.stderr)
            if came.startswith("finished"):
                self._compare()
        process = self._render(self._out)
        assert process.wait(LONGEST) == 0
        self._compare()

    def _compare(self) -> None:
        self.figures["films"] += 1
        self.figures["identical films"] += film_hash(self._out) == self._film
        shutil.rmtree(self._out)

    def _any_time(self) -> Callable[[], bool]:
        at = time.monotonic() + self._random.random() * self._whole
        return lambda: time.monotonic() >= at

    def _while_loading(self, before: int) -> Callable[[], bool]:
        """Return what becomes true a while after this run has said that it begins."""
        after, begun = self._random.random() * self._loading, 0.0

        def is_there() -> bool:
            nonlocal begun
            if not begun and size(self._out / "short" / "events.jsonl") > before:
                begun = time.monotonic()
            return begun > 0 and time.monotonic() >= begun + after

        return is_there


def size(path: Path) -> int:
    """Return a file's size, 0 without one."""
    return path.stat().st_size if path.exists() else 0


def wait_for(what: Callable[[], bool]) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + LONGEST
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def film_hash(out: Path) -> str:
    """Return what the film of the story is."""
    return hashlib.sha256((out / "short" / "short.mp4").read_bytes()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 if a signal had another end than it must have, or a film is another."""
    parser = argparse.ArgumentParser(description="Stop real renders at random moments.")
    parser.add_argument("--count", type=int, default=20, help="signals that arrive")
    parser.add_argument("--signal", default="TERM", choices=[n.name.removeprefix("SIG") for n in SIGNALS])
    parser.add_argument("--seed", type=int, default=0, help="of when")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(Path(folder), getattr(signal, f"SIG{options.signal}"), options.seed)
        sweep.run(options.count)
    figures = {**sweep.figures, "seconds": round(time.monotonic() - began)}
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        print("\n".join(f"{count:6d} {name}" for name, count in figures.items()))
    right = figures.get(RIGHT) == options.count
    return int(not right or figures["films"] != figures["identical films"])


if __name__ == "__main__":
    sys.exit(main())
