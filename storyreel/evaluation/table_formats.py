"""A table as text: CSV for programs, Markdown and LaTeX for papers."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from storyreel import __version__
from storyreel.evaluation.tables import Cell, Table, blocks

# What LaTeX reads as a command, and letters of ours that pdflatex does not know.
LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "×": r"$\times$",
    "σ": r"$\sigma$",
    "Δ": r"$\Delta$",
    "’": "'",
}
OF_DIFFERENCES = {
    "difference": "mean",
    "low": "low",
    "high": "high",
    "g": "effect",
    "p": "p",
    "p_holm": "p_holm",
    "detectable": "detectable",
}


BEGINNINGS = {
    ".csv": "row,title,source,",
    ".md": "<!-- made by storyreel",
    ".tex": "% made by storyreel",
    ".json": '{\n  "command": [',
}


def is_table(path: Path) -> bool:
    """Tell whether a file was written as a table, by how it begins: only such a file is replaced."""
    beginning = BEGINNINGS[path.suffix]
    with path.open("rb") as file:
        return file.read(len(beginning.encode())) == beginning.encode()


def csv_text(table: Table) -> str:
    """Return a row a method: of every column the mean by its name, and all that is known of it beside."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    parts = ("", "_std", "_stories", *(f"_{part}" for part in OF_DIFFERENCES))
    writer.writerow(["row", "title", "source", *(f"{c.key}{part}" for c in table.columns for part in parts)])
    for line in table.lines:
        cells = [value for column in table.columns for value in _values(line.cells[column.key])]
        writer.writerow([line.name, line.title, "published" if line.is_published else "measured", *cells])
    return out.getvalue()


def _values(cell: Cell) -> list[Any]:
    of = cell.difference or {}
    return [cell.mean, cell.std, cell.count, *(of.get(key) for key in OF_DIFFERENCES.values())]


def markdown_text(table: Table) -> str:
    """Return tables of GitHub's Markdown, one a block, and the notes below."""
    parts = [f"<!-- made by storyreel {__version__} -->", f"**Table {table.number}. {table.title}**"]
    for block in blocks(table):
        rows = [block.heads, ("---", *["---:"] * (len(block.heads) - 1)), *block.measured, *block.published]
        lines = [f"| {' | '.join(row if i == 1 else map(_in_markdown, row))} |" for i, row in enumerate(rows)]
        parts += [f"{_in_markdown(block.title)}:", "\n".join(lines)]
    parts += ["\n".join(f"- {_in_markdown(note)}" for note in table.notes)]
    return "\n\n".join(parts) + "\n"


def _in_markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<\[\]])", r"\\\1", text)


def latex_text(table: Table) -> str:
    r"""Return a floating table of booktabs, to be read by \input; the notes are below it."""
    parts = [
        f"% made by storyreel {__version__}; needs \\usepackage{{booktabs}}",
        r"\begin{table*}[tp]",
        r"  \centering\footnotesize",
        f"  \\caption{{{in_latex(table.title)}.}}",
        f"  \\label{{tab:storyreel-{table.number}}}",
    ]
    for number, block in enumerate(blocks(table)):
        parts += [r"  \par\medskip"] if number else []
        parts += [
            f"  {in_latex(block.title)}\\\\[2pt]",
            f"  \\begin{{tabular}}{{l{'r' * (len(block.heads) - 1)}}}",
            r"    \toprule",
            _latex_row(block.heads),
            r"    \midrule",
            *map(_latex_row, block.measured),
            *([r"    \midrule", *map(_latex_row, block.published)] if block.published else []),
            r"    \bottomrule",
            r"  \end{tabular}",
        ]
    parts += [r"  \par\medskip\raggedright\scriptsize", *(f"  {in_latex(note)}" for note in table.notes)]
    return "\n".join([*parts, r"\end{table*}"]) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return f"    {' & '.join(map(in_latex, cells))} \\\\"


def in_latex(text: str) -> str:
    """Return text for LaTeX: nothing in it is a command, whatever it was called."""
    # A bracket that begins a cell would be read as an option of the line's end before it.
    found = "".join(LATEX.get(char, char) for char in text)
    return f"{{}}{found}" if found.startswith(("[", "*")) else found


def json_text(result: object) -> str:
    """Return a result as `--json` prints it."""
    return json.dumps(result, indent=2, allow_nan=False, default=os.fspath) + "\n"


TEXTS: dict[str, Callable[[Table], str]] = {
    "csv": csv_text,
    "markdown": markdown_text,
    "latex": latex_text,
}
