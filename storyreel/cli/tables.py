"""The paper's tables at the command line: which one, in which format, and where it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from storyreel.cli.options import exclude, flag, option
from storyreel.cli.reading import check_written
from storyreel.cli.results import print_json
from storyreel.errors import UsageError

if TYPE_CHECKING:
    from storyreel.evaluation.tables import Table

TABLES = "The paper's tables"  # a group of options
Number = Literal["2", "3"]
Format = Literal["text", "csv", "markdown", "latex"]
ENDINGS = {".csv": "csv", ".json": "json", ".md": "markdown", ".tex": "latex"}


@dataclass(frozen=True)
class TableOptions:
    """Which of the paper's tables is made, and in which formats."""

    table: Annotated[
        Number | None,
        option(
            Number,
            "Print the paper's table with this number: 3 is quality; 2 is memory and seconds, of films that "
            "are rendered for it in processes of their own, stock among them.",
            TABLES,
        ),
    ] = None
    published: Annotated[
        bool, flag("--published", "The figures that the paper published, as further rows.", TABLES)
    ] = False
    columns: Annotated[
        str, option("METRICS", "Further columns of table 3, by their names in the JSON, with commas.", TABLES)
    ] = ""
    format: Annotated[Format, option(Format, "What the table is printed as.", TABLES)] = "text"
    to: Annotated[
        list[Path] | None,
        option("FILE", "Write the table too: .csv, .json, .md or .tex; may be repeated.", TABLES),
    ] = None

    def check(self, as_json: bool) -> None:
        """Raise UsageError or OutputError for what can be known to be wrong before there is a table."""
        exclude("--json", as_json, {"--format": self.format != "text"})
        if self.table is None:
            given = {"--published": self.published, "--columns": bool(self.columns), "--to": bool(self.to)}
            given["--format"] = self.format != "text"
            for name in (name for name, is_given in given.items() if is_given):
                raise UsageError(f"{name} is of a table", "Add --table 3 or --table 2, or leave it out.")
        if self.columns and self.table == "2":
            raise UsageError("--columns is of --table 3", "Leave it out.")
        for path in self.to or ():
            _check_file(path)
        self.further()

    def further(self) -> list[str]:
        """Return the names of further columns. Raises UsageError for what is no metric."""
        names = [name for name in (part.strip() for part in self.columns.split(",")) if name]
        if names:
            from storyreel.evaluation.metrics import known_metrics

            if unknown := sorted({*names} - {*known_metrics()}):
                raise UsageError(f"unknown metric {unknown[0]!r}", f"Known: {', '.join(known_metrics())}")
        return list(dict.fromkeys(names))

    def show(self, table: Table, result: Mapping[str, Any], as_json: bool) -> None:
        """Print a table, and write it; as JSON it is within all of the ``result``."""
        from storyreel.cli.display import print_paper_table, say
        from storyreel.evaluation.table_formats import TEXTS, json_text
        from storyreel.files import write_atomically, writing

        if as_json:
            print_json(result)
        elif self.format == "text":
            print_paper_table(table)
        else:
            print(TEXTS[self.format](table), end="")
        for path in self.to or ():
            kind = ENDINGS[path.suffix]
            text = json_text(result) if kind == "json" else TEXTS[kind](table)
            with writing(path, "name another file: --to FILE", ""):
                write_atomically(path, text)
            say(f"table: {path}")


def _check_file(path: Path) -> None:
    """Raise UsageError for a file that no table can be, or that holds something else already."""
    if path.suffix not in ENDINGS:
        raise UsageError(f"{path} ends in no format of a table", f"Use one of {', '.join(ENDINGS)}.")
    from storyreel.evaluation.table_formats import is_table

    check_written(path, "--to", "table", is_table)
