"""Kill renders at random and flip bits in what they left: ``python -m tests.chaos --kills 1000 --flips 200``.

The embedded model is loaded once, then every render is a fork of this process, which is killed
after a random time. It is rendered again until it ends by itself; its film must be that of a
render that nobody disturbed. One interruption in five is a SIGTERM, which must end with 75. Every second
story is rendered where the film of another seed is: that must be whole after every kill, and
to go back to it must render nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from storyreel import rendering
from storyreel.denoise.prompts import all_prompts
from storyreel.errors import StoppedError
from storyreel.models.specs import MODELS
from storyreel.stopping import SIGNALS, stopping
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import parse_story

NAME = "short"
PAIRS = [("a park", "a corgi dog is sitting"), ("a street", "a corgi dog is walking")]
STORY = "scenes:\n" + "".join(f"  - [{scene}, {action}]\n" for scene, action in PAIRS * 2)
SEEDS = range(3)
KEEP_EVERY = 0.05  # seconds: so short a render would keep no window otherwise
ORPHANED = 1.0  # seconds in which an ffmpeg without a parent must have gone


class Silent:
    """A progress that shows nothing."""

    def started(self, plan: Plan, scenes: int, done: int, forwards: int) -> None:
        """Say nothing."""

    def forward(self) -> None:
        """Say nothing."""

    def segment_finished(self, segment: object) -> None:
        """Say nothing."""

    def said(self, text: str) -> None:
        """Say nothing."""


class Chaos:
    """Renders, interruptions and damage, and what came of them."""

    def __init__(self, out: Path, seed: int) -> None:
        self.figures: Counter[str] = Counter()
        self._out, self._random = out, random.Random(seed)
        torch.set_num_threads(1)  # a pool of threads would not survive the fork
        story = parse_story("short.yaml", STORY.encode())
        plans = [make_plan(story, NAME, Overrides(seed=s, steps=3, seconds=0.25)) for s in SEEDS]
        # Smaller than a picture can be good, and four times as quick.
        self._plans = [replace(p, settings=replace(p.settings, width=64, height=32)) for p in plans]
        self._engine = rendering.Engine("cpu")
        scorer = self._engine.scorer(MODELS["mini"])
        self._engine.adapter(MODELS["mini"]).prepare(all_prompts(self._plans[0], scorer is not None))
        began = time.monotonic()
        for index in SEEDS:
            assert self._wait(self._start(index, self.reference(index))) == 0
        self._typical = (time.monotonic() - began) / len(SEEDS)
        self._whole = [self._hashes(self.reference(index)) for index in SEEDS]

    def reference(self, index: int) -> Path:
        """Where an undisturbed render lies."""
        return self._out / f"reference-{index}"

    def _start(self, index: int, out: Path) -> int:
        """Fork a render; return its process id."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the child listens
        process = os.fork()
        if process:
            return process
        try:
            with stopping() as self._engine.stop:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
                rendering.render(self._plans[index], NAME, out, self._engine, Silent())
                os._exit(0)
        except StoppedError as error:
            os._exit(error.exit_code)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    @staticmethod
    def _wait(process: int) -> int:
        """Return a process's exit code, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    @staticmethod
    def _hashes(out: Path) -> dict[str, str]:
        """Return what every finished file of a folder holds: of records and manifest, all but times."""
        found = {}
        for path in sorted((out / NAME).rglob("*")):
            if path.name.startswith(".") or ".state." in path.name or not path.is_file():
                continue
            if path.suffix == ".json":
                found[path.name] = json.dumps(timeless(json.loads(path.read_text())))
            elif path.suffix in (".mp4", ".safetensors", ".html"):
                data = re.sub(rb'class="took">[^<]*', b"", path.read_bytes())  # how long its scenes took
                if b'class="growth"' not in data:  # the page of a film that is not complete
                    found[path.name] = hashlib.sha256(data).hexdigest()
        return found

    def _is_whole(self, index: int, out: Path) -> bool:
        """Tell whether all of a film is there, whatever lies beside it."""
        found = self._hashes(out)
        return {name: found.get(name) for name in self._whole[index]} == self._whole[index]

    def _torn(self, films: Sequence[int], out: Path) -> int:
        """Count files with a finished file's name that are not what they are in the end."""
        try:
            found = self._hashes(out)
        except ValueError:
            return 1
        wholes = [self._whole[index] for index in films]
        return sum(
            any(name in whole for whole in wholes) and not any(whole.get(name) == value for whole in wholes)
            for name, value in found.items()
        )

    def _orphans(self, out: Path) -> int:
        """Count the processes that still work on a killed render's files after `ORPHANED` seconds."""
        deadline = time.monotonic() + ORPHANED
        while (count := working_on(out)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return count

    def interrupt(self, kills: int) -> None:
        """Render two stories or more, killing each at random until it is finished, ``kills`` times in all."""
        while self.figures["kills"] < kills or self.figures["stories"] < 2:
            index, out = self.figures["stories"] % len(SEEDS), self._out / "torn"
            before = (index + 1) % len(SEEDS) if self.figures["stories"] % 2 else None
            films = [index] if before is None else [before, index]
            if before is not None:
                shutil.copytree(self.reference(before), out)
            while True:
                process = self._start(index, out)
                gentle = self._random.random() < 0.2
                # Mostly early, so that a story dies several times; sometimes not at all.
                if self._wait_for(process, self._random.random() ** 3 * 1.2 * self._typical):
                    break
                os.kill(process, signal.SIGTERM if gentle else signal.SIGKILL)
                code = self._wait(process)
                self.figures["stops" if gentle else "kills"] += 1
                self.figures["stops that did not end with 75"] += gentle and code not in (0, 75)
                kept = (out / NAME / "segments").glob("*.state.safetensors")
                self.figures["states kept"] += any(True for _ in kept)
                self.figures["torn files"] += self._torn(films, out)
                self.figures["films gone"] += before is not None and not (out / NAME / f"{NAME}.mp4").exists()
                self.figures["orphans"] += self._orphans(out)
            self.figures["stories"] += 1
            self.figures["identical films"] += self._is_whole(index, out)
            if before is not None:
                code = self._wait(self._start(before, out))
                events = (out / NAME / "events.jsonl").read_text().splitlines()
                free = json.loads(events[-1]).get("rendered") == 0
                self.figures["ways back"] += 1
                self.figures["ways back for nothing"] += free and code == 0 and self._is_whole(before, out)
            shutil.rmtree(out)

    def _wait_for(self, process: int, seconds: float) -> bool:
        """Tell whether a render ends by itself in this time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                assert os.waitstatus_to_exitcode(status) == 0
                return True
            time.sleep(0.002)
        return False

    def damage(self, flips: int) -> None:
        """Flip a bit in a finished film's folder and render again, ``flips`` times, kind by kind of file."""
        out = self._out / "damaged"
        shutil.copytree(self.reference(0), out)
        kinds: list[Callable[[], list[Path]]] = [
            lambda: [out / NAME / f"{NAME}.mp4"],
            lambda: sorted((out / NAME / "segments").glob("*.mp4")),
            lambda: sorted((out / NAME / "segments").glob("*.safetensors")),
            lambda: [out / NAME / "manifest.json"],
            lambda: [out / NAME / "index.html"],
            lambda: sorted((out / NAME / "segments").glob("*.json")),
        ]
        for count in range(flips):
            path = self._random.choice(kinds[count % len(kinds)]())
            before = path.read_bytes()
            data = bytearray(before)
            bit = self._random.randrange(8 * len(data))
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            self.figures["flips"] += 1
            code = self._wait(self._start(0, out))
            mended = code == 0 and path.read_bytes() != data and self._hashes(out) == self._whole[0]
            self.figures["flips found and mended"] += mended
            if not mended:
                around = bytes(data[max(0, bit // 8 - 30) : bit // 8 + 10])
                print(f"not mended: bit {bit} of {path}, {around!r}, exit code {code}", file=sys.stderr)
                shutil.rmtree(out)
                shutil.copytree(self.reference(0), out)
        shutil.rmtree(out)


def timeless(value: Any) -> Any:
    """Return a manifest or a record without what differs from one render to the next: times, and seals.

    Nor has it a video's small picture, which its record gets a moment later.
    """
    if isinstance(value, dict):
        own = "decided" in value and "device" in value  # of a segment, whose length in seconds is not meant
        kept = {k: v for k, v in value.items() if not (own and k in ("seconds", "seal")) and k != "still"}
        return {k: timeless(v) for k, v in kept.items()}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def working_on(out: Path) -> int:
    """Count the processes that name a folder in their command line."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:  # it has ended
            continue
        count += os.fsencode(out.resolve()) + b"/" in words and int(path.parent.name) != os.getpid()
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 if anything was torn, orphaned, lost or different."""
    parser = argparse.ArgumentParser(description="Kill renders at random, flip bits in what they left.")
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs")
    parser.add_argument("--flips", type=int, default=20, help="bits")
    parser.add_argument("--seed", type=int, default=0, help="of when and what")
    parser.add_argument("--out", type=Path, help="an empty folder for the films; default: a temporary one")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(arguments)
    rendering.KEEP_EVERY = KEEP_EVERY
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        chaos = Chaos(Path(folder), options.seed)
        chaos.interrupt(options.kills)
        chaos.damage(options.flips)
    figures = {**chaos.figures, "seconds": round(time.monotonic() - began)}
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        print("\n".join(f"{count:6d} {name}" for name, count in figures.items()))
    bad = ("torn files", "films gone", "orphans", "stops that did not end with 75")
    lost = figures["stories"] - figures["identical films"]
    lost += figures.get("ways back", 0) - figures.get("ways back for nothing", 0)
    lost += figures.get("flips", 0) - figures.get("flips found and mended", 0)
    return int(lost > 0 or any(figures.get(name) for name in bad))


if __name__ == "__main__":
    sys.exit(main())
