"""The report: one HTML file with everything in it, for whoever wants to know where a film is bad."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from storyreel.errors import printable
from storyreel.evaluation.registry import METRICS, Metric
from storyreel.evaluation.result import NOTE, Evaluation, Scored
from storyreel.evaluation.statistics import difference_cell, films_words, interval_words, spread_cell

SHOWN = 3  # of the worst scenes, and of the worst seams
FAR = 99.0  # deviations: as far from the usual as anything is said to be
LONG_STRIP = 60  # scenes: beyond, the strip shows only those with findings
ARROWS = {"higher": "↑", "lower": "↓", None: ""}

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif;
  --bad: light-dark(#b3261e, #ff8a80); --bar: light-dark(#7a93b8, #6f8ab0); --line: light-dark(#ddd, #444); }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
section { margin: 3rem 0; border-top: 1px solid var(--line); }
.wrong { padding-left: 1.2rem; } .wrong li { margin: .25rem 0; } .wrong b { color: var(--bad); }
.strip, .worst { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .75rem; }
.worst { grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); }
figure { margin: 0; } figcaption { font-size: .8rem; line-height: 1.3; }
img { width: 100%; border-radius: .3rem; display: block; } .pair { display: flex; gap: 2px; }
.pair img { width: 50%; }
.bad img { outline: 3px solid var(--bad); } .flag { color: var(--bad); font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.25rem; }
.charts svg { width: 100%; height: 5rem; } rect { fill: var(--bar); }
rect.low { fill: light-dark(#2f4a72, #b9d0f5); } rect.wrong { fill: var(--bad); }
.charts h4 { margin: 0; font-size: .9rem; } .charts small, small { opacity: .75; }
svg line { stroke: currentColor; opacity: .4; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; font-weight: normal; }
.wide { overflow-x: auto; } .runs td small { display: none; }
@media (max-width: 40rem) { /* every number below its metric, with its run's name: nothing lies outside */
  .runs, .runs tbody, .runs tr, .runs th, .runs td { display: block; text-align: left; white-space: normal; }
  .runs tr:first-child { display: none; } .runs td { border: 0; } .runs td small { display: inline; }
  .runs th, .runs td { overflow-wrap: anywhere; } }
"""


def report_page(evaluation: Evaluation) -> str:
    """Return the report. Prompts and names come from outside and are escaped."""
    films, runs = [*map(_film, evaluation.films)], _runs_table(evaluation)
    several = len(evaluation.comparison["summary"]) > 1
    parts = [runs, *films] if several else [*films, f"<section><h2>In numbers</h2>{runs}</section>"]
    parts.append(_about(evaluation))
    names = ", ".join(scored.film.label for scored in evaluation.films)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<title>{escape(names[:100])}: storyreel eval</title>
<style>{_STYLE}</style>
<h1>What the films are like, and where they are bad</h1>
{chr(10).join(parts)}
</html>
"""


def _runs_table(evaluation: Evaluation) -> str:
    """Show the runs side by side, the best in bold; on a narrow screen one below the other."""
    summary, differences = evaluation.comparison["summary"], evaluation.comparison["differences"]
    first = next(iter(summary))
    heads = {run: escape(printable(run)) for run in summary}
    less = {run: f"{heads[run]} − {heads[first]}" for run in differences}
    rows = []
    for metric in METRICS.values():
        if all(of[metric.name] is None for of in summary.values()):
            continue
        best = best_runs(metric, evaluation.comparison)
        cells = [
            (heads[run], spread_cell(of[metric.name], metric.digits), run in best)
            for run, of in summary.items()
        ]
        cells += [
            (less[run], difference_cell(d[metric.name], metric.digits), False)
            for run, d in differences.items()
        ]
        shown = "".join(
            f"<td><small>{head}</small> {'<b>' if bold else ''}{cell}{'</b>' if bold else ''}</td>"
            for head, cell, bold in cells
        )
        rows.append(f"<tr><th>{_title(metric)} <small>{escape(metric.status)}</small></th>{shown}</tr>")
    columns = "".join(f"<th>{head}</th>" for head in (*heads.values(), *less.values()))
    told = "".join(
        f"<p>{escape(line)}</p>" for line in (*table_words(evaluation), "Arrows point to what is better.")
    )
    table = f'<table class="runs"><tr><th></th>{columns}</tr>{"".join(rows)}</table>'
    return f'{told}<div class="wide">{table}</div>'


def table_words(evaluation: Evaluation) -> list[str]:
    """Say what the columns of the table of runs are, each of them true of every column."""
    summary, differences = evaluation.comparison["summary"], evaluation.comparison["differences"]
    rates = sorted({scored.film.fps for scored in evaluation.films})
    words = [f"{films_words(summary)}, looked at {rates[0]:g} times a second."] if rates else []
    if differences:
        words.append(f"Differences are paired by story and seed: {interval_words(differences)}.")
        if not evaluation.comparison["same_films"]:
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


def _film(scored: Scored) -> str:
    film, scores = scored.film, scored.scores
    count = len(film.spans)
    notes = "".join(f'<p class="flag">Note: {escape(printable(note))}.</p>' for note in scored.notes)
    return f"""<section>
<h2>{escape(film.title)} <small>{escape(film.label)}</small></h2>
<p>{count} scenes, {film.frames / film.fps:.3g} s, looked at {film.fps:g} times a second.</p>{notes}
<h3>What is wrong</h3>
{_wrong(scored)}
<h3>The scenes furthest from the usual</h3>
<p>Each with the number that says so; that need not be wrong.</p>
<div class="worst">{"".join(_worst_scenes(scored))}</div>
<h3>The seams furthest from the usual</h3>
<p>The last frame before, and the first behind.</p>
<div class="worst">{"".join(_worst_seams(scored)) or "<p>It has no blended seams.</p>"}</div>
<h3>Every scene</h3>
<p>With its scene prompt and, smaller, its action prompt. Red is what is listed above as wrong.</p>
<div class="strip">{"".join(_strip(scored))}</div>
<h3>Scene by scene</h3>
<p>One bar a scene, from left to right. Dark is the worst, red what is listed above as wrong.</p>
<div class="charts">{"".join(_charts("scene", scored, scores["scenes"]))}</div>
<h3>Seam by seam</h3>
<div class="charts">{"".join(_charts("seam", scored, scores["seams"]))}</div>
</section>"""


def _wrong(scored: Scored) -> str:
    if not scored.found:
        return "<p>Nothing stands out.</p>"
    rows = (
        f"<li><b>{clock(finding.seconds)}</b> {escape(finding.words)} "
        f"<small>{escape(METRICS[finding.metric].title)}</small></li>"
        for finding in scored.found
    )
    return f'<ul class="wrong">{"".join(rows)}</ul>'


def _worst_scenes(scored: Scored) -> Iterator[str]:
    scenes = scored.scores["scenes"]
    for index, metric in worst_places("scene", scenes):
        span, look = scored.film.spans[index], scored.look.scenes[index]
        when = clock(span.start / scored.film.fps)
        yield (
            f"<figure>{_image(look.picture, f'scene {index + 1}')}<figcaption>"
            f"<b>Scene {index + 1}</b>, {when}: {_beside(metric, scenes, index)}<br>"
            f"{escape(span.scene)}<br><small>{escape(span.action)}</small></figcaption></figure>"
        )


def _worst_seams(scored: Scored) -> Iterator[str]:
    seams = scored.scores["seams"]
    for index, metric in worst_places("seam", seams):
        before, after = scored.look.scenes[index : index + 2]
        when = clock(scored.film.spans[index + 1].start / scored.film.fps)
        yield (
            f'<figure><div class="pair">{_image(before.last, "last frame before")}'
            f"{_image(after.first, 'first frame behind')}</div><figcaption>"
            f"<b>Scenes {index + 1} and {index + 2}</b>, {when}: {_beside(metric, seams, index)}"
            "</figcaption></figure>"
        )


def worst_places(scope: str, entries: Sequence[Mapping[str, Any]]) -> list[tuple[int, Metric]]:
    """Return the scenes or seams that are furthest from the film's usual, each with the metric that says so.

    Far is counted in median absolute deviations, towards the worse end. Cuts that are meant are no seams.
    """
    found: dict[int, tuple[float, Metric]] = {}
    for metric in METRICS.values():
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


def _beside(metric: Metric, entries: Sequence[Mapping[str, Any]], index: int) -> str:
    """Return a metric's value at a place beside what is usual in the film."""
    values = [e[metric.name] for e in entries if e.get(metric.name) is not None and e.get("blended", True)]
    value, usual = entries[index][metric.name], median(values)
    return (
        f"{escape(metric.title)} <b>{value:.{metric.digits}f}</b> {escape(metric.unit)} "
        f"(usually {usual:.{metric.digits}f})"
    )


def _strip(scored: Scored) -> Iterator[str]:
    film = scored.film
    flags: dict[int, list[str]] = {}
    for finding in (f for f in scored.found if METRICS[f.metric].scope == "scene"):
        flags.setdefault(finding.scene, []).append(METRICS[finding.metric].title)
    for number, (span, look) in enumerate(zip(film.spans, scored.look.scenes, strict=True), 1):
        if len(film.spans) > LONG_STRIP and number not in flags:
            continue
        flag = f'<span class="flag">{escape("; ".join(flags[number]))}</span><br>' if number in flags else ""
        yield (
            f'<figure class="{"bad" if number in flags else ""}">{_image(look.picture, f"scene {number}")}'
            f"<figcaption><b>{number}</b> {clock(span.start / film.fps)} {flag}{escape(span.scene)}<br>"
            f"<small>{escape(span.action)}</small></figcaption></figure>"
        )


def _charts(scope: str, scored: Scored, entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Draw every metric that has values as one bar a scene or seam."""
    first = 1 if scope == "scene" else 2  # a seam is before its scene
    wrong = {(finding.metric, finding.scene - first) for finding in scored.found}
    for metric in METRICS.values():
        values = [entry.get(metric.name) for entry in entries]
        there = [value for value in values if value is not None]
        if metric.scope != scope or not there:
            continue
        names: Callable[[int], str] = (
            (lambda i: f"scene {i + 1}") if scope == "scene" else (lambda i: f"scenes {i + 1} and {i + 2}")
        )
        low, high = min(0.0, *there), max(0.0, *there)
        height = (high - low) or 1.0
        ends = {"higher": min(there), "lower": max(there), None: None}
        bars = []
        for index, value in enumerate(values):
            if value is None:
                continue
            top, bottom = (100 * (high - edge) / height for edge in (max(value, 0.0), min(value, 0.0)))
            is_worst = value == ends[metric.better] and len(set(there)) > 1
            bad = "wrong" if (metric.name, index) in wrong else "low" if is_worst else ""
            tall = max(bottom - top, 0.8)
            bars.append(
                f'<rect class="{bad}" x="{index + 0.1:g}" width=".8" y="{top:.1f}" height="{tall:.1f}">'
                f"<title>{names(index)}: {value:.{metric.digits}f}</title></rect>"
            )
        zero = 100 * high / height
        yield (
            f"<div><h4>{_title(metric)}</h4><small>{escape(metric.unit)}, {min(there):.{metric.digits}f} to "
            f"{max(there):.{metric.digits}f}</small>"
            f'<svg viewBox="0 0 {len(values)} 100" preserveAspectRatio="none" role="img" '
            f'aria-label="{escape(metric.title)}">{"".join(bars)}'
            f'<line x1="0" x2="{len(values)}" y1="{zero:.1f}" y2="{zero:.1f}" '
            'vector-effect="non-scaling-stroke"/></svg></div>'
        )


def _about(evaluation: Evaluation) -> str:
    """Say what every metric is, and which had no weights."""
    rows = "".join(
        f"<tr><td>{_title(m)}</td><td>{escape(m.status)}</td><td>{escape(m.source)}</td>"
        f"<td>{escape(m.sampling)}</td><td>{escape(evaluation.missing.get(m.name, ''))}</td></tr>"
        for m in METRICS.values()
    )
    return (
        f"<section><h2>What the numbers are</h2><p>{escape(NOTE)}</p><details><summary>Every metric</summary>"
        '<div class="wide"><table><tr><th>metric</th><th>kind</th><th>what</th><th>of which frames</th>'
        f"<th>missing</th></tr>{rows}</table></div></details></section>"
    )


def _title(metric: Metric) -> str:
    return f"{escape(metric.title)} {ARROWS[metric.better]}".strip()


def _image(data: bytes, words: str) -> str:
    return f'<img alt="{escape(words)}" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'


def clock(seconds: float) -> str:
    """Return minutes and seconds, as people read them."""
    return f"{int(seconds) // 60}:{seconds % 60:04.1f}"
