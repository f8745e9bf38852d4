"""The paper's Tables 2 and 3: methods as rows, each number with its spread over stories and its difference.

What a table holds is here, its text in each format in `table_formats.py`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from storyreel.errors import counted
from storyreel.evaluation.metrics import known_metrics
from storyreel.evaluation.report import ARROWS
from storyreel.evaluation.statistics import POWER, Row, compare, least_p, spread
from storyreel.evaluation.weights import JUDGE, OWN, WEIGHTS

PUBLISHED = Path(__file__).with_name("published.json")
READING = {"blip": "blip_itm_double"}  # whose column the paper's is
TITLES = {
    "full": "full",
    "without-dipw": "without DIPW",
    "without-twb": "without TWB",
    "without-identity": "without identity",
    "without-sar": "without SAR",
    "without-all": "without all: joined text, hard joins",
    "crossfade": "an editor's crossfade",
    "continuation": "continuation",
    "published": "the published form",
    "scene-alone": "the scene prompt alone, hard joins",
    "stock": "stock: diffusers' own pipeline",
}
SHARES = ("shown", "clip_shown")  # of scenes that are no ruins: what stands beside them is of those alone
LEVEL = 0.05
STAR = "*"


@dataclass(frozen=True)
class Column:
    """A number of every row: of what ``digits``, and which end is ``better``."""

    key: str
    title: str
    digits: int
    better: str | None = None
    unit: str = ""

    @property
    def head(self) -> str:
        """Its title with an arrow to what is better."""
        unit = f", {self.unit}" if self.unit else ""
        return f"{self.title}{unit} {ARROWS[self.better]}".strip()


@dataclass(frozen=True)
class Panel:
    """Columns that stand side by side: a page is not as wide as all of them."""

    title: str
    columns: tuple[Column, ...]


def columns_of(panels: Iterable[Panel]) -> list[Column]:
    """Return the columns of some panels, each once."""
    return list(dict.fromkeys(column for panel in panels for column in panel.columns))


@dataclass(frozen=True)
class Cell:
    """A number of a row: over ``count`` stories, None of a published one; ``why`` says why it has none.

    ``difference`` is that to the first row, as `statistics.Difference` has it.
    """

    mean: float | None = None
    std: float | None = None
    count: int | None = None
    difference: Mapping[str, Any] | None = None
    why: str = ""


@dataclass(frozen=True)
class Line:
    """A row: a method, measured, or as it ``is_published``."""

    name: str
    title: str
    cells: Mapping[str, Cell]
    is_published: bool = False


@dataclass(frozen=True)
class Table:
    """One of the paper's tables, made anew."""

    number: int
    title: str
    panels: tuple[Panel, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    @property
    def columns(self) -> list[Column]:
        """All columns of all panels, each once."""
        return columns_of(self.panels)

    @property
    def measured(self) -> list[Line]:
        """The rows that were measured here, the reference first."""
        return [line for line in self.lines if not line.is_published]

    def plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "number": self.number,
            "title": self.title,
            "panels": [
                {"title": panel.title, "columns": [vars(column) for column in panel.columns]}
                for panel in self.panels
            ],
            "rows": [
                {
                    "name": line.name,
                    "title": line.title,
                    "published": line.is_published,
                    "cells": {key: vars(cell) for key, cell in line.cells.items()},
                }
                for line in self.lines
            ],
            "notes": list(self.notes),
        }


def _of_metric(name: str, title: str, digits: int | None = None, unit: str = "") -> Column:
    metric = known_metrics()[name]
    return Column(name, title, metric.digits if digits is None else digits, metric.better, unit)


QUALITY = (
    Panel(
        "The paper's measures",
        tuple(
            _of_metric(name, title, 4)
            for name, title in (
                ("clip_add", "CLIP-add"),
                ("clip_combined", "CLIP-combined"),
                ("blip_itm_double", "BLIP"),
                ("dino", "DINO"),
                ("lpips", "LPIPS"),
            )
        ),
    ),
    Panel(
        "What scenes show, by the judge of the film's model",
        (
            _of_metric("characters", "character", unit="%"),
            _of_metric("place", "place", unit="%"),
            _of_metric("action", "action", unit="%"),
            _of_metric("look_kept", "same look", unit="%"),
        ),
    ),
    Panel(
        "Identity by the model's encoder, seams, and how much moves",
        (
            _of_metric("identity", "identity"),
            _of_metric("shown", "recognised"),
            _of_metric("double_exposure", "double exposure", unit="%"),
            _of_metric("sides", "sides apart", 2),
            _of_metric("motion", "motion"),
        ),
    ),
)
COST = (
    Panel(
        "Memory and time of a film",
        (
            Column("memory_gb", "memory", 4, "lower", "GB"),
            Column("seconds", "seconds", 1, "lower"),
            Column("forwards", "model evaluations", 0, "lower"),
            Column("latents", "latent frames", 0, "lower"),
        ),
    ),
)


def quality_table(
    rows: Sequence[Row],
    titles: Mapping[str, str],
    missing: Collection[str],
    published: bool = False,
    further: Sequence[str] = (),
) -> Table:
    """Return Table 3 of films' rows; ``titles`` names their runs, ``missing`` metrics that lack weights.

    The first row's run is what all others are compared with. ``further`` are metrics of
    further columns.
    """
    there = {column.key: column for column in columns_of(QUALITY)}
    known = known_metrics()
    new = [name for name in further if name not in there]
    wanted = dict.fromkeys(one for name in new for one in (name, known[name].beside) if one is not None)
    asked = tuple(
        there.get(name) or _of_metric(name, known[name].title)
        for name in wanted
        if name not in there or name in SHARES  # which stand in every panel that they are needed in
    )
    panels = (*QUALITY, Panel("As asked for", asked)) if asked else QUALITY
    why = dict.fromkeys(missing, "no weights")
    for column in columns_of(panels):
        why.setdefault(column.key, _absent(known[column.key].needs))
    notes = [
        "The paper's measures are made anew, and are not comparable with its table digit by digit. BLIP is "
        "ITM with the softmax taken twice, the likeliest of three readings; the others are in the JSON.",
        "What embeddings say is to be read beside motion: a still is consistent.",
        *_ruins_words(columns_of(panels)),
    ]
    return _table(3, "Quality", panels, rows, titles, why, notes, published)


def _absent(needs: str | None) -> str:
    """Say in two words why nobody has a number."""
    words = {JUDGE: "no judge", OWN: "no encoder"} | dict.fromkeys(WEIGHTS, "no weights")
    return words.get(needs or "", "–")


def _ruins_words(columns: Sequence[Column]) -> Iterator[str]:
    """Say which columns leave ruins out, and which one says how many scenes are left."""
    known = known_metrics()
    for share in (column for column in columns if column.key in SHARES):
        if found := [column.title for column in columns if known[column.key].beside == share.key]:
            yield (
                f"Means over such scenes alone as can be recognised: {', '.join(found)}. Ruins are left out, "
                f"so a method that ruins scenes may come out ahead; {share.title} is the share of scenes "
                "that is left."
            )


def cost_table(
    rows: Sequence[Row], titles: Mapping[str, str], notes: Sequence[str], published: bool = False
) -> Table:
    """Return Table 2 of what films took; ``notes`` say on what."""
    return _table(2, "Memory and time", COST, rows, titles, {}, notes, published)


def _table(
    number: int,
    title: str,
    panels: tuple[Panel, ...],
    rows: Sequence[Row],
    titles: Mapping[str, str],
    why: Mapping[str, str],
    notes: Sequence[str],
    published: bool,
) -> Table:
    names = [column.key for column in columns_of(panels)]
    runs = list(dict.fromkeys(row.run for row in rows))
    differences = compare(rows, names, runs[0] if runs else None)["differences"]
    over_stories = {run: {name: stories_of(rows, run, name) for name in names} for run in runs}
    lines = [
        Line(
            Path(run).name,
            titles.get(run, Path(run).name),
            {
                name: _cell(over_stories[run][name], differences.get(run, {}).get(name), why.get(name, "–"))
                for name in names
            },
        )
        for run in runs
    ]
    if published:
        told = json.loads(PUBLISHED.read_text("utf-8"))
        lines += _published(told["tables"][str(number)]["rows"], names)
        notes = [*notes, f"Published rows: {told['source']}; {told['tables'][str(number)]['note']}."]
    stories = max((len(of[name]) for of in over_stories.values() for name in names), default=0)
    seeds = {len(seeds) for of in over_stories.values() for name in names for seeds in of[name].values()}
    return Table(
        number,
        title,
        panels,
        tuple(lines),
        (_over_words(stories, seeds), *_statistics_words(panels, lines, stories), *notes),
    )


def stories_of(rows: Iterable[Row], run: str, name: str) -> dict[str, list[float]]:
    """Return a run's values of a number by story, one for every seed."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.run == run and (value := row.values.get(name)) is not None:
            found.setdefault(row.story, []).append(value)
    return found


def _cell(stories: Mapping[str, Sequence[float]], difference: Mapping[str, Any] | None, why: str) -> Cell:
    """Return what a row has of a number: a story counts once, as the mean of its seeds."""
    if (of := spread([fmean(seeds) for seeds in stories.values()])) is None:
        return Cell(why=why)
    return Cell(of.mean, of.std, of.count, difference)


def _published(rows: Sequence[Mapping[str, Any]], names: Collection[str]) -> list[Line]:
    """Return the rows that the paper has; a figure without a spread is a number, else a pair."""
    lines = []
    for row in rows:
        cells = dict.fromkeys(names, Cell(why="–"))
        for key, value in row["values"].items():
            mean, std = value if isinstance(value, list) else (value, None)
            cells[READING.get(key, key)] = Cell(mean, std)
        lines.append(Line(row["name"], f"{row['title']} (published)", cells, is_published=True))
    return lines


def _over_words(stories: int, seeds: Collection[int]) -> str:
    """Say what the spread is over."""
    fewest, most = min(seeds, default=0), max(seeds, default=0)
    many = counted(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
    each = "" if most == 1 else f", each the mean of {many}"
    if stories < 2:
        return f"One story{each}: there is no spread over stories."
    return f"Mean ± sample standard deviation over {stories} stories{each}."


def _statistics_words(panels: Sequence[Panel], lines: Sequence[Line], stories: int) -> list[str]:
    """Say how differences were made, and what so few stories cannot show."""
    others = [line for line in lines[1:] if not line.is_published]
    if not others:
        return []
    first = lines[0].title
    if stories < 2:
        return [f"Differences to {first} are of one story: nothing can be said of others."]
    tests = max(
        sum(1 for line in others if _p(line, column.key) is not None)
        for panel in panels
        for column in panel.columns
    )
    words = [
        f"Differences to {first} are paired by story and seed: mean [95 % interval] (g). The interval is a "
        "percentile bootstrap of whole stories with all their seeds, g is Hedges' g of paired data, from "
        f"three stories on. {STAR} p < {LEVEL:g} by the two-sided sign-flip test over stories, after Holm's "
        f"correction for the {counted(tests, 'comparison')} of a column; columns are not corrected for each "
        "other."
    ]
    if (least := least_p(stories)) is not None and tests:
        reached = min(1.0, least * tests)
        hopeless = ": none can have a star, whatever it is" if reached >= LEVEL else ""
        corrected = f"after the correction {reached:.2g}{hopeless}"
        words.append(f"With {stories} stories that p is at least {least:.2g}, {corrected}.")
    limits = []
    for column in columns_of(panels):
        found = [
            line.cells[column.key].difference["detectable"]  # type: ignore[index]
            for line in others
            if (line.cells[column.key].difference or {}).get("detectable") is not None
        ]
        if found:
            limits.append(f"{column.title} {median(found):.{column.digits}f} {column.unit}".strip())
    if limits:
        words.append(
            f"With {stories} stories, differences below these cannot be seen (a paired t test at 5 %, not "
            f"corrected, finds them in {POWER:.0%} of cases, at the spread seen here; median of the rows): "
            f"{', '.join(limits)}."
        )
    return words


def _p(line: Line, key: str) -> float | None:
    difference = line.cells[key].difference
    return None if difference is None else difference["p"]


def mean_text(cell: Cell, digits: int) -> str:
    """Return "mean ± deviation", or why there is none."""
    if cell.mean is None:
        return cell.why
    std = "" if cell.std is None else f" ± {cell.std:.{digits}f}"
    return f"{cell.mean:.{digits}f}{std}"


def difference_text(cell: Cell, digits: int) -> str:
    """Return "difference [interval] (g)", with a star where it is more than chance."""
    of = cell.difference
    if of is None:
        return "–"
    star = STAR if of["p_holm"] is not None and of["p_holm"] < LEVEL else ""
    interval = "" if of["low"] is None else f" [{_signed(of['low'], digits)}, {_signed(of['high'], digits)}]"
    effect = "" if of["effect"] is None else f" ({_signed(of['effect'], 1)})"
    return f"{_signed(of['mean'], digits)}{star}{interval}{effect}"


def _signed(value: float, digits: int) -> str:
    """Return a number with its sign; what is rounded to nothing has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


@dataclass(frozen=True)
class Block:
    """A part of a table as text, the same for every format: a heading, then heads and rows of cells."""

    title: str
    heads: tuple[str, ...]
    measured: tuple[tuple[str, ...], ...]
    published: tuple[tuple[str, ...], ...] = ()


def blocks(table: Table) -> list[Block]:
    """Return every panel's means, then every panel's differences to the first row."""
    found = []
    for panel in table.panels:
        lines = [
            line
            for line in table.lines
            if not line.is_published or any(line.cells[c.key].mean is not None for c in panel.columns)
        ]
        texts = {
            published: tuple(
                (line.title, *(mean_text(line.cells[c.key], c.digits) for c in panel.columns))
                for line in lines
                if line.is_published is published
            )
            for published in (False, True)
        }
        heads = ("", *(column.head for column in panel.columns))
        found.append(Block(panel.title, heads, texts[False], texts[True]))
    for panel in table.panels if len(table.measured) > 1 else ():
        shown = [c for c in panel.columns if any(line.cells[c.key].difference for line in table.measured)]
        if not shown:
            continue
        rows = tuple(
            (line.title, *(difference_text(line.cells[c.key], c.digits) for c in shown))
            for line in table.measured[1:]
        )
        heads = ("", *(column.head for column in shown))
        found.append(Block(f"Differences to {table.measured[0].title}", heads, rows))
    return found
