"""The table of a lent hour: what was measured, which targets that meets, and what is still open."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from storyreel.errors import counted

Outcome = Mapping[str, Any]
Row = Mapping[str, Any]

# Of compiled variants, where nothing else is said. Each is (words, what is measured, whether that is enough).
TARGETS: Sequence[tuple[str, str, Callable[[Mapping[str, Row], Row], float], Callable[[float], bool]]] = (
    (
        "full / plain ≤ 1.05",
        "compiled",
        lambda rows, report: rows["full"]["seconds"] / rows["plain"]["seconds"],
        lambda value: value <= 1.05,
    ),
    (
        "plain / stock ≤ 1, compiled both",
        "compiled",
        lambda rows, report: rows["plain"]["seconds"] / rows["stock"]["seconds"],
        lambda value: value <= 1,
    ),
    (
        "fast / stock ≤ 0.5",
        "presets",
        lambda rows, report: rows["fast"]["seconds"] / rows["stock"]["seconds"],
        lambda value: value <= 0.5,
    ),
    (
        "peak of full - plain ≤ 1.5 GB",
        "compiled",
        lambda rows, report: (rows["full"]["peak_mb"] - rows["plain"]["peak_mb"]) / 1000,
        lambda value: value <= 1.5,
    ),
    (
        "full ≥ 0.55 of the measured matrix peak",
        "compiled",
        lambda rows, report: rows["full"]["of_peak"],
        lambda value: value >= 0.55,
    ),
)


def day_table(outcomes: Sequence[Outcome]) -> str:
    """Return the Markdown of all that is finished: the device, the targets, a table a step, what is open."""
    done = [outcome for outcome in outcomes if outcome["state"] == "done"]
    parts = ["# What was measured", "", *_machine(done), "", "## Targets", "", *_targets(done)]
    for outcome in done:
        drawn = TABLES.get(outcome.get("kind", ""))
        if drawn is not None:
            parts += ["", f"## {outcome['step']}", "", *drawn(outcome["result"])]
            parts += ["", f"It took {outcome.get('seconds', 0):.0f} s."]
    open_ones = [outcome for outcome in outcomes if outcome["state"] not in ("done", "missing", "running")]
    if open_ones:
        parts += ["", "## Left out or failed", ""]
        rows = [(o["step"], o["state"], _line(o.get("error") or o.get("reason") or "")) for o in open_ones]
        parts += _table(("step", "", "why"), rows)
    waiting = [str(outcome["step"]) for outcome in outcomes if outcome["state"] in ("missing", "running")]
    if waiting:
        parts += ["", f"Still to come: {', '.join(waiting)}."]
    return "\n".join(parts) + "\n"


def targets(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str, str, str]]:
    """Yield the model, the target, the number, and met, missed or not measured, for every model."""
    names = dict.fromkeys(str(o["model"]) for o in outcomes if o.get("kind") == "variants")
    for model in names:
        for words, which, measure, enough in TARGETS:
            report = _result(outcomes, f"{model} {which}")
            try:
                rows = {row["variant"]: row for row in report["variants"]}
                value = measure(rows, report)
            except (KeyError, TypeError, ZeroDivisionError):
                yield model, words, "–", "not measured"
            else:
                yield model, words, f"{value:.3f}", "met" if enough(value) else "missed"


def _result(outcomes: Sequence[Outcome], name: str) -> Row:
    found = [outcome["result"] for outcome in outcomes if outcome["step"] == name]
    return found[0] if found else {}


def _machine(outcomes: Sequence[Outcome]) -> list[str]:
    found = _result(outcomes, "machine")
    if not found:
        return ["The machine is not known yet."]
    words = [str(found["device"]), f"torch {found['torch']}", f"diffusers {found['diffusers']}"]
    words += [
        f"{name} {found[name]}" for name in ("cuda", "cudnn", "driver", "capability") if found.get(name)
    ]
    return [f"{', '.join(words)}; {found['when']}. Weights are random ones."]


def _targets(outcomes: Sequence[Outcome]) -> list[str]:
    return _table(("model", "target", "measured", ""), list(targets(outcomes))) or [
        "Nothing is measured yet."
    ]


def _table(headings: Iterable[str], rows: Sequence[Iterable[str]]) -> list[str]:
    if not rows:
        return []
    heads = list(headings)
    return [_cells(heads), _cells(["---"] * len(heads)), *map(_cells, rows)]


def _cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _line(text: str) -> str:
    """Return text as it can stand in a cell."""
    return " ".join(text.replace("|", "¦").split())[:200]


def _number(value: Any, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _tried(found: Any) -> str:
    """Return what `steps.tried` found."""
    if not isinstance(found, Mapping):
        return _number(found)
    return _number(found["value"]) if "value" in found else _line(str(found.get("error", "")))


def _of_machine(result: Row) -> list[str]:
    rows = [(name, _tried(result[name])) for name in ("fp8_tflops", "copy_gb_s", "from_pinned_gb_s")]
    for group in ("matrices_tflops", "conv3d_ms"):
        rows += [(f"{group}, {name}", _tried(found)) for name, found in result[group].items()]
    return _table(("", "measured"), rows)


def _of_attention(result: Row) -> list[str]:
    rows = [
        (
            row["library"],
            row["name"],
            str(row["channels"]),
            "yes" if row["mask"] else "no",
            _number(row.get("tflops")),
            _line(row.get("error", "")),
        )
        for row in result["rows"]
    ]
    return _table(("", "kernel", "channels a head", "mask", "TFLOP/s", "why not"), rows)


def _of_variants(result: Row) -> list[str]:
    first = result["variants"][0]
    rows = [
        (
            row["variant"],
            _number(row["seconds"]),
            f"{row['seconds'] / first['seconds']:.3f}",
            str(row["forwards"]),
            _number(row["tflops"]),
            f"{100 * row['of_peak']:.0f} %",
            _number(row["peak_mb"], 5),
            _number(row["decode_seconds"]),
            _number(row["decode_peak_mb"], 5),
        )
        for row in result["variants"]
    ]
    heads = ("", "s a segment", f"of {first['variant']}", "evaluations", "TFLOP/s", "of peak", "peak MB")
    stored = "" if result["quantize"] == "none" else f", {result['quantize']}"
    words = f"{result['size']}, {result['frames']} frames, {result['steps']} steps"
    words += f", {counted(result['segments'], 'segment')}"
    compiled = "compiled" if result["compiled"] else "eager"
    lines = [f"{words}, {compiled}{stored}.", "", *_table((*heads, "s decoding", "decoding MB"), rows)]
    if "stock_error" in result:
        lines += ["", f"Stock failed: {_line(result['stock_error'])}"]
    return lines


def _of_rows(result: Row) -> list[str]:
    """Draw rows whose columns are their own keys."""
    names = list(dict.fromkeys(name for row in result["rows"] for name in row if name != "film"))
    rows = [[_line(_number(row.get(name), 5)) for name in names] for row in result["rows"]]
    return _table(names, rows)


def _of_facts(result: Row) -> list[str]:
    return _table(("", "measured"), [(name, _line(_number(value))) for name, value in result.items()])


TABLES: Mapping[str, Callable[[Row], list[str]]] = {
    "machine": _of_machine,
    "attention": _of_attention,
    "variants": _of_variants,
    "memory": _of_rows,
    "decode": _of_rows,
    "film": _of_rows,
    "out of memory": _of_facts,
    "waits": _of_facts,
}
