"""What a user sees while a film is rendered. Only this and the command line know rich."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

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
from rich.table import Table
from rich.text import Text

from storyreel.cli.telling import is_quiet, stamp
from storyreel.errors import counted, printable
from storyreel.evaluation.metrics import with_values
from storyreel.evaluation.statistics import difference_cell, spread_cell
from storyreel.story.plan import Plan, Segment

if TYPE_CHECKING:
    from storyreel.evaluation.result import Evaluation
    from storyreel.evaluation.tables import Table as PaperTable

PLAIN_EVERY = 30.0  # seconds between lines where there is no terminal
PLAIN_WIDTH = 140  # of tables there, in cells: all five variants side by side

stderr = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def say(text: str) -> None:
    """Say on stderr what is good to know, unless that is not wanted."""
    if not is_quiet():
        stderr.print(f"{stamp()}{text}")


def has_cursor(console: Console) -> bool:
    """Tell whether bars can be drawn: in a log FORCE_COLOR asks for colours, not for what moves a cursor."""
    return console.is_terminal and console.file.isatty() and not console.is_dumb_terminal


class RenderDisplay:
    """Bars for scenes and steps with the time left; in a log, or on a dumb terminal, plain lines."""

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

    def started(self, plan: Plan, scenes: int, done: int, forwards: int) -> None:
        """Rendering begins; of ``scenes``, ``done`` are there, and ``forwards`` passes are to come."""
        self._scenes, self._done, self._total = scenes, done, forwards
        self._began = self._spoke = time.monotonic()
        if done:
            are = "is" if self._scenes == 1 else "are"
            say(f"{self._name}: {done} of {counted(self._scenes, 'scene')} {are} there already")
        if done == self._scenes or is_quiet():
            return
        if has_cursor(stderr):
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
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
            say(f"{self._name}: rendering {counted(self._scenes - done, 'scene')} with {plan.spec.name}")

    def forward(self) -> None:
        """One forward pass of the transformer is over."""
        self._forwards += 1
        if self._bars is not None:
            self._bars.advance(self._tasks["steps"])
        elif time.monotonic() - self._spoke >= PLAIN_EVERY:
            self._speak()

    def said(self, text: str) -> None:
        """Something has happened that the user should know."""
        say(f"{self._name}: {text}")

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
        say(
            f"{self._name}: step {self._forwards} of {self._total}, scene {self._done} of {self._scenes}, "
            f"{spent:.0f} s so far, about {left:.0f} s left"
        )


def results() -> Console:
    """Return what tables are printed on: stdout, of one width where it is no terminal."""
    stdout = Console(highlight=False, markup=False)
    return stdout if stdout.file.isatty() else Console(highlight=False, markup=False, width=PLAIN_WIDTH)


def print_table(
    title: str, headings: Sequence[str | Text], rows: Iterable[Sequence[str | Text]], words: int = 1
) -> None:
    """Print a table on stdout: its first columns hold ``words``, all others numbers."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < words else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    results().print(table)


def print_bench(report: Mapping[str, Any]) -> None:
    """Print what every variant takes on stdout, the first of them as the measure of the others."""
    stored = "" if report["quantize"] == "none" else f" in {report['quantize']}"
    title = (
        f"{report['model']} ({report['weights']} weights{stored}), {report['size']}, "
        f"{report['frames']} frames, {report['steps']} steps, {report['device']}, "
        f"median of {report['rounds']}"
    )
    rows = report["variants"]
    of_first = f"of {rows[0]['variant']}"
    headings = ["", "s a segment", of_first, "s decoding", "evaluations", "TFLOP/s", "of peak", "peak MB"]
    lines = (
        [
            row["variant"],
            f"{row['seconds']:.2f}",
            f"{row['seconds'] / rows[0]['seconds']:.3f}",
            "–" if row["decode_seconds"] is None else f"{row['decode_seconds']:.2f}",
            str(row["forwards"]),
            f"{row['tflops']:.3g}",
            f"{100 * row['of_peak']:.0f} %",
            *("–" if row[key] is None else f"{row[key]:.0f}" for key in ("peak_mb", "decode_peak_mb")),
        ]
        for row in rows
    )
    print_table(title, [*headings, "decoding"], lines)


def print_calculation(report: Mapping[str, Any]) -> None:
    """Print what every variant would take on stdout, and how much memory that needs."""
    rows = report["variants"]
    title = (
        f"{report['model']}, {report['size']}, {report['frames']} frames, {report['steps']} steps, calculated"
    )
    of_first, cards = f"of {rows[0]['variant']}", list(rows[0]["bound_s"])
    headings = ["", "PFLOP", of_first, "TB moved", of_first, *(f"s, {card}" for card in cards)]
    lines = (
        [
            row["variant"],
            f"{row['pflop']:.3g}",
            f"{row['pflop'] / rows[0]['pflop']:.3f}",
            f"{row['terabytes']:.3g}",
            f"{row['terabytes'] / rows[0]['terabytes']:.3f}",
            *(f"{row['bound_s'][card]:.0f}" for card in cards),
            str(row["forwards"]),
            f"{row['latents']:.1f}",
        ]
        for row in rows
    )
    print_table(title, [*headings, "evaluations", "latents"], lines)
    results().print(
        "All numbers are for one segment. Seconds are calculated, not measured: a lower bound, at the card's "
        "full rate and without compilation."
    )
    needs = ", ".join(f"{mode} {size:.1f}" for mode, size in report["memory_gb"].items())
    results().print(f"GB of the device's memory, by --memory: {needs}")


class FilmBar:
    """How far the scoring of a film has come; nothing where there is no terminal."""

    def __init__(self, label: str, frames: int) -> None:
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=stderr,
            disable=is_quiet() or not has_cursor(stderr),
            transient=True,
        )
        self._task = self._bar.add_task(label, total=frames)

    def __enter__(self) -> Callable[[int], None]:
        self._bar.start()
        return lambda frames: self._bar.advance(self._task, frames)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def print_comparison(evaluation: Evaluation) -> None:
    """Print runs side by side on stdout, and how far each is from the first; on stderr, what has no value."""
    from storyreel.evaluation.report import best_runs, differences_words, means_words, run_heads, titled

    summary, differences = evaluation.comparison["summary"], evaluation.comparison["differences"]
    heads = run_heads(summary)
    means: list[list[str | Text]] = []
    less: list[list[str | Text]] = []
    for metric in with_values(summary):
        best = best_runs(metric, evaluation.comparison)
        cells = [
            Text(spread_cell(of[metric.name], metric.digits), style="bold" if run in best else "")
            for run, of in summary.items()
        ]
        means.append([titled(metric), metric.status, *cells])
        less.append(
            [
                titled(metric),
                *(difference_cell(of[metric.name], metric.digits) for of in differences.values()),
            ]
        )
    if summary:
        columns = ["", "kind", *(heads[run] for run in summary)]
        print_table(" ".join(means_words(evaluation)), columns, means, words=2)
    if differences:
        columns = ["", *(heads[run] for run in differences)]
        print_table(" ".join(differences_words(evaluation)), columns, less)
    if evaluation.missing:
        say("without a value, since weights are missing:")
        for why in dict.fromkeys(evaluation.missing.values()):
            names = ", ".join(name for name, reason in evaluation.missing.items() if reason == why)
            say(f"  {names}: {why}")


def print_paper_table(table: PaperTable) -> None:
    """Print one of the paper's tables on stdout, block by block, and its notes."""
    from storyreel.evaluation.tables import blocks

    for block in blocks(table):
        title = f"Table {table.number}. {table.title}: {block.title}"
        print_table(title, block.heads, [*block.measured, *block.published])
    for note in table.notes:
        results().print(note)


def print_findings(evaluation: Evaluation) -> None:
    """Print what is wrong with each film on stdout."""
    from storyreel.evaluation.report import clock

    for scored in evaluation.films:
        lines = [f"{scored.film.label}: " + ("" if scored.found else "nothing stands out")]
        lines += [f"  {clock(finding.seconds)}  {finding.words}" for finding in scored.found]
        lines += [printable(f"  note: {note}") for note in scored.notes]
        results().print("\n".join(lines), soft_wrap=True)  # a line is a line, also for grep
