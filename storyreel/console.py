"""What a user sees while a film is rendered. Only this and the command line know rich."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from storyreel.plan import Plan, Segment

PLAIN_EVERY = 30.0  # seconds between lines where there is no terminal

stderr = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


class RenderDisplay:
    """Bars for scenes and steps with the time left; in a log, a plain line now and then."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._total = self._forwards = self._done = self._scenes = 0
        self._began = self._spoke = time.monotonic()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> RenderDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def started(self, plan: Plan, done: int, forwards: int) -> None:
        """Rendering begins; ``done`` segments are there, ``forwards`` passes are to come."""
        self._scenes, self._done, self._total = len(plan.segments), done, forwards
        self._began = self._spoke = time.monotonic()
        if done:
            stderr.print(f"{self._name}: {done} of {self._scenes} scenes are there already")
        if done == self._scenes:
            return
        if stderr.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=stderr,
            )
            self._tasks["steps"] = self._bars.add_task(f"{self._name} steps", total=self._total)
            self._tasks["scenes"] = self._bars.add_task(
                f"{self._name} scenes", total=self._scenes, completed=done
            )
            self._bars.start()
        else:
            stderr.print(f"{self._name}: rendering {self._scenes - done} scenes with {plan.spec.name}")

    def forward(self) -> None:
        """One forward pass of the transformer is over."""
        self._forwards += 1
        if self._bars is not None:
            self._bars.advance(self._tasks["steps"])
        elif time.monotonic() - self._spoke >= PLAIN_EVERY:
            self._speak()

    def segment_finished(self, segment: Segment) -> None:
        """A segment is on disk."""
        self._done = min(self._scenes, self._done + 1)
        if self._bars is not None:
            self._bars.advance(self._tasks["scenes"])
        elif time.monotonic() - self._spoke >= PLAIN_EVERY:
            self._speak()

    def _speak(self) -> None:
        self._spoke = time.monotonic()
        spent = self._spoke - self._began
        forwards = max(1, self._forwards)
        left = max(0.0, spent / forwards * (self._total - forwards))
        stderr.print(
            f"{self._name}: step {self._forwards} of {self._total}, scene {self._done} of {self._scenes}, "
            f"{spent:.0f} s so far, about {left:.0f} s left"
        )
