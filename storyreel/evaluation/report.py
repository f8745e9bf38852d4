"""The report: one HTML file with everything in it, for whoever wants to know where a film is bad."""

from __future__ import annotations

import base64
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from storyreel.errors import printable
from storyreel.evaluation.metrics import Metric, known_metrics, with_values
from storyreel.evaluation.result import NOTE, Evaluation, Scored
from storyreel.evaluation.statistics import difference_cell, films_words, interval_words, spread_cell
from storyreel.pages import address, filled

TEMPLATE = Path(__file__).with_name("report.html.j2")
SHOWN = 3  # of the worst scenes, and of the worst seams
FAR = 99.0  # deviations: as far from the usual as anything is said to be
LONG_STRIP = 60  # scenes: beyond, the strip shows only those with findings
ARROWS = {"higher": "↑", "lower": "↓", None: ""}


def report_page(evaluation: Evaluation, place: Path | None = None) -> str:
    """Return the report; with the folder that it will lie in, ``place``, it leads to the films' pages."""
    heads, rows = _runs_table(evaluation)
    return filled(
        TEMPLATE,
        title=", ".join(scored.film.label for scored in evaluation.films)[:100],
        several=len(evaluation.comparison["summary"]) > 1,
        words=[
            *means_words(evaluation),
            *differences_words(evaluation),
            "Arrows point to what is better.",
        ],
        heads=heads,
        rows=rows,
        films=[_film(scored) | {"page": _page(scored, place)} for scored in evaluation.films],
        note=NOTE,
        metrics=[
            {
                "title": titled(metric),
                "kind": metric.status,
                "source": metric.source,
                "sampling": metric.sampling,
                "missing": evaluation.missing.get(metric.name, ""),
            }
            for metric in known_metrics().values()
        ],
    )


def is_report(path: Path) -> bool:
    """Tell whether a file was written as a report, by how it begins: only such a file is replaced."""
    with path.open("rb") as file:
        return b": storyreel eval</title>" in file.read(1000)


def _runs_table(evaluation: Evaluation) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the heads and rows of the runs side by side, the best marked."""
    summary, differences = evaluation.comparison["summary"], evaluation.comparison["differences"]
    heads = run_heads(summary)
    first = next(iter(heads.values()))
    less = {run: f"{heads[run]} − {first}" for run in differences}
    rows = []
    for metric in with_values(summary):
        best = best_runs(metric, evaluation.comparison)
        cells = [
            (heads[r], spread_cell(of[metric.name], metric.digits), r in best) for r, of in summary.items()
        ]
        cells += [
            (less[run], difference_cell(of[metric.name], metric.digits), False)
            for run, of in differences.items()
        ]
        shown = [{"head": head, "text": text, "best": is_best} for head, text, is_best in cells]
        rows.append({"title": titled(metric), "kind": metric.status, "cells": shown})
    return [*heads.values(), *less.values()], rows


def run_heads(runs: Collection[str]) -> dict[str, str]:
    """Return what columns of runs are headed: the runs, by their names alone where they lie side by side."""
    beside = len(runs) > 1 and len({Path(run).parent for run in runs}) == 1
    return {run: printable(Path(run).name if beside else run) for run in runs}


def means_words(evaluation: Evaluation) -> list[str]:
    """Say what the columns of means are, each sentence true of every column."""
    rates = sorted({scored.film.fps for scored in evaluation.films})
    summary = evaluation.comparison["summary"]
    return [f"{films_words(summary)}, looked at {rates[0]:g} times a second."] if rates else []


def differences_words(evaluation: Evaluation) -> list[str]:
    """Say what the columns of differences are, each sentence true of every column."""
    comparison = evaluation.comparison
    if not comparison["differences"]:
        return []
    first = next(iter(run_heads(comparison["summary"]).values()))
    over = interval_words(comparison["differences"])
    words = [f"Differences to {first} are paired by story and seed: {over}."]
    if not comparison["same_films"]:
        words.append("Runs differ in their films: only the differences compare like with like.")
    return words


def best_runs(metric: Metric, comparison: Mapping[str, Any]) -> set[str]:
    """Return the runs with a metric's best mean: none without a direction, or where not all films have it."""
    found = {run: of[metric.name] for run, of in comparison["summary"].items()}
    values = [value for value in found.values() if value is not None]
    counts = {value["count"] for value in values}
    if metric.better is None or len(found) < 2 or len(values) < len(found) or len(counts) > 1:
        return set()
    if not comparison["same_films"]:
        return set()
    best = (max if metric.better == "higher" else min)(value["mean"] for value in values)
    return {run for run, value in found.items() if value is not None and value["mean"] == best}


def _page(scored: Scored, place: Path | None) -> str:
    """Return the address of a film's own page as seen from a folder; "" if it has none."""
    page = scored.film.folder / "index.html" if scored.film.folder else None
    return address(os.path.relpath(page, place)) if place and page and page.is_file() else ""


def _film(scored: Scored) -> dict[str, Any]:
    """Return what the report shows of a film."""
    film, scores = scored.film, scored.scores
    return {
        "title": film.title,
        "label": film.label,
        "sha256": film.sha256,
        "size": f"{len(film.spans)} scenes, {film.frames / film.fps:.3g} s, "
        f"looked at {film.fps:g} times a second.",
        "notes": [printable(note) for note in scored.notes],
        "findings": [
            {"when": clock(f.seconds), "words": f.words, "metric": known_metrics()[f.metric].title}
            for f in scored.found
        ],
        "worst_scenes": [
            {
                **_scene(scored, index),
                **_beside(metric, scores["scenes"], index),
            }
            for index, metric in worst_places("scene", scores["scenes"])
        ],
        "worst_seams": [
            {
                "number": index + 1,
                "when": clock(film.time_of(film.spans[index + 1].start / film.fps)),
                "before": _encoded(scored.pictures[index].last),
                "behind": _encoded(scored.pictures[index + 1].first),
                **_beside(metric, scores["seams"], index),
            }
            for index, metric in worst_places("seam", scores["seams"])
        ],
        "strip": _strip(scored),
        "scene_charts": _charts("scene", scored, scores["scenes"]),
        "distance_charts": _distance_charts(scores.get("looks_by_distance", [])),
        "similarity_charts": _distance_charts(scores.get("similarity_by_distance", []), SIMILARITY),
        "seam_charts": _charts("seam", scored, scores["seams"]),
    }


def _scene(scored: Scored, index: int) -> dict[str, Any]:
    span = scored.film.spans[index]
    return {
        "number": index + 1,
        "when": clock(scored.film.time_of(span.start / scored.film.fps)),
        "picture": _encoded(scored.pictures[index].middle),
        "scene": span.scene,
        "action": "" if span.action == span.scene else span.action,
    }


def worst_places(scope: str, entries: Sequence[Mapping[str, Any]]) -> list[tuple[int, Metric]]:
    """Return the scenes or seams that are furthest from the film's usual, each with the metric that says so.

    Far is counted in median absolute deviations, towards the worse end. Cuts that are meant are no seams.
    """
    found: dict[int, tuple[float, Metric]] = {}
    for metric in known_metrics().values():
        if metric.scope != scope or metric.better is None:
            continue
        values = {
            index: entry[metric.name]
            for index, entry in enumerate(entries)
            if entry.get(metric.name) is not None and entry.get("blended", True)
        }
        if len(values) < 2:
            continue
        usual = median(values.values())
        spread = 1.4826 * median(abs(value - usual) for value in values.values())
        sign = 1 if metric.better == "lower" else -1
        for index, value in values.items():
            away = sign * (value - usual)
            far = min(FAR, away / spread) if spread > 0 else FAR if away > 1e-6 else 0.0
            if far > found.get(index, (0.0, metric))[0]:
                found[index] = far, metric
    ranked = sorted(found.items(), key=lambda item: -item[1][0])
    return [(index, metric) for index, (_, metric) in ranked[:SHOWN]]


def _beside(metric: Metric, entries: Sequence[Mapping[str, Any]], index: int) -> dict[str, str]:
    """Return a metric's value at a place, and what is usual in the film."""
    values = [e[metric.name] for e in entries if e.get(metric.name) is not None and e.get("blended", True)]
    return {
        "metric": metric.title,
        "value": f"{entries[index][metric.name]:.{metric.digits}f}",
        "usual": f"{metric.unit} (usually {median(values):.{metric.digits}f})",
    }


def _strip(scored: Scored) -> list[dict[str, Any]]:
    """Return every scene, or of a long film those with findings."""
    flags: dict[int, list[str]] = {}
    for finding in (f for f in scored.found if known_metrics()[f.metric].scope == "scene"):
        flags.setdefault(finding.scene, []).append(known_metrics()[finding.metric].title)
    count = len(scored.film.spans)
    shown = range(1, count + 1) if count <= LONG_STRIP else sorted(flags)
    return [{**_scene(scored, n - 1), "flags": "; ".join(flags.get(n, []))} for n in shown]


def _charts(scope: str, scored: Scored, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return every metric that has values as one bar a scene or seam."""
    first = 1 if scope == "scene" else 2  # a seam is before its scene
    wrong = {(finding.metric, finding.scene - first) for finding in scored.found}
    charts = []
    for metric in known_metrics().values():
        values = {
            i: entry[metric.name] for i, entry in enumerate(entries) if entry.get(metric.name) is not None
        }
        if metric.scope != scope or not values:
            continue
        lowest, highest = min(values.values()), max(values.values())
        low, high = min(0.0, lowest), max(0.0, highest)
        height = (high - low) or 1.0
        worst = {"higher": lowest, "lower": highest, None: None}[metric.better]
        bars = []
        for index, value in values.items():
            top, bottom = (100 * (high - edge) / height for edge in (max(value, 0.0), min(value, 0.0)))
            is_worst = value == worst and lowest < highest
            place = f"scene {index + 1}" if scope == "scene" else f"scenes {index + 1} and {index + 2}"
            bars.append(
                {
                    "kind": "wrong" if (metric.name, index) in wrong else "low" if is_worst else "",
                    "x": f"{index + 0.1:g}",
                    "y": f"{top:.1f}",
                    "height": f"{max(bottom - top, 0.8):.1f}",
                    "words": f"{place}: {value:.{metric.digits}f}",
                }
            )
        charts.append(
            {
                "title": titled(metric),
                "label": metric.title,
                "range": f"{metric.unit}, {lowest:.{metric.digits}f} to {highest:.{metric.digits}f}",
                "places": len(entries),
                "zero": f"{100 * high / height:.1f}",
                "bars": bars,
            }
        )
    return charts


class _Curve(NamedTuple):
    """How a number by distance is shown: ``whole`` is as much as there can be of it."""

    title: str
    unit: str
    whole: float
    digits: int


LOOKS = _Curve("same {}", "% of pairs", 100, 1)
SIMILARITY = _Curve("{}", "mean cosine of pairs", 1, 3)


def _distance_charts(by_distance: Sequence[Mapping[str, Any]], curve: _Curve = LOOKS) -> list[dict[str, Any]]:
    """Return how alike scenes are, one bar for every distance between them."""
    most = max((entry["distance"] for entry in by_distance), default=0)
    charts = []
    for name in (n for n in (by_distance[0] if by_distance else ()) if n not in ("distance", "pairs")):
        values = [entry[name] for entry in by_distance]
        bars = [
            {
                "kind": "",
                "x": f"{entry['distance'] - 0.9:g}",
                "y": f"{100 - height:.1f}",
                "height": f"{max(height, 0.8):.1f}",
                "words": f"{entry['distance']} scenes apart: {entry[name]:.{curve.digits}f} "
                f"of {entry['pairs']} pairs",
            }
            for entry in by_distance
            for height in [100 * max(0.0, entry[name]) / curve.whole]
        ]
        charts.append(
            {
                "title": curve.title.format(name),
                "label": f"{curve.title.format(name)} by distance",
                "range": f"{curve.unit}, {min(values):.{curve.digits}f} to {max(values):.{curve.digits}f}",
                "places": most,
                "zero": "100.0",
                "bars": bars,
            }
        )
    return charts


def titled(metric: Metric) -> str:
    """Return a metric's title with what chance and a still give, and an arrow to what is better."""
    chance = "" if metric.chance is None else f" (chance {metric.chance:g})"
    still = "" if metric.still is None else f" (a still: {metric.still:g})"
    return f"{metric.title}{chance}{still} {ARROWS[metric.better]}".strip()


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def clock(seconds: float) -> str:
    """Return minutes and seconds, as people read them."""
    return f"{int(seconds) // 60}:{seconds % 60:04.1f}"
