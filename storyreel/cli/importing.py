"""The command that makes a story of a file of another program."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from storyreel.cli.options import Json, Model, flag, option
from storyreel.cli.reading import shown
from storyreel.cli.results import Imported, faults_of, print_json
from storyreel.cli.telling import complain, is_quiet, note
from storyreel.errors import ScriptError, UsageError, counted, printable
from storyreel.models.specs import find_model
from storyreel.story.planning import DEFAULT_MODEL
from storyreel.story.schema import STDIN

if TYPE_CHECKING:
    from storyreel.story.importing import Imported as Converted

FormatName = Literal[
    "storymem",
    "vistory",
    "vimax",
    "holocine",
    "travel",
    "prompts",
    "framepack",
    "relay",
    "fountain",
    "text",
    "lines",
    "paragraphs",
]
MAX_SAID = 12  # of a kind


def import_story(
    file: Annotated[Path, typer.Argument(help="The file; - is standard input.", metavar="FILE")],
    to: Annotated[Path | None, option("STORY", "The story to write. Default: it is printed.")] = None,
    of: Annotated[
        FormatName | None,
        typer.Option(
            "--from",
            metavar="FORMAT",
            help=f"What the file is, if it is not recognised: {', '.join(get_args(FormatName))}.",
        ),
    ] = None,
    model: Model = None,
    fps: Annotated[
        float | None,
        option(
            "N", "Frames a second of a file that counts frames. Default: its own, or 8.", min=0.1, max=999
        ),
    ] = None,
    overwrite: Annotated[bool, flag("--overwrite", "Write over a story that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Make a story of prompts, of a benchmark's JSON or of a screenplay.

    What was guessed, and what a story has no place for, is said on stderr and in the story's comments.
    Lengths of scenes become those that the model can have. A Python file is read, and never run.
    """
    from storyreel.story.importing import convert

    if overwrite and to is None:
        raise UsageError("--overwrite is for --to", "Name the story to write: --to STORY.yaml")
    if to is not None and not overwrite and (to.exists() or to.is_symlink()):
        raise UsageError(f"{to} is there already", "Choose another name, or add --overwrite.")
    spec = find_model(model or DEFAULT_MODEL)
    made = convert(shown(file), _read(file), spec, of or "", fps)
    if to is not None:
        from storyreel.files import write_atomically, writing

        with writing(to, "choose another --to", ""):
            write_atomically(to, made.text)
    _tell(shown(file), made)
    if as_json:
        result: Imported = {
            "format": made.format.name,
            "file": None if to is None else str(to),
            "story": made.text,
            "scenes": len(made.story.scenes),
            "cast": list(made.story.cast),
            "guessed": made.guessed,
            "left_out": made.left_out,
            "changed": made.changed,
            "problems": faults_of(ScriptError("story", made.problems)),
        }
        print_json(result)
    elif to is not None:
        print(to)
    else:
        print(made.text, end="")


def _tell(path: str, made: Converted) -> None:
    note(printable(f"{path}: {made.format.what}, {counted(len(made.story.scenes), 'scene')}"))
    for kind, lines in (("guessed", made.guessed), ("changed", made.changed), ("left out", made.left_out)):
        for line in lines[:MAX_SAID]:
            note(printable(f"{path}: {kind}: {line}"))
        if len(lines) > MAX_SAID:
            note(printable(f"{path}: {kind}: {len(lines) - MAX_SAID} more, all of them with --json"))
    if made.problems and not is_quiet():
        model = made.story.render.model or DEFAULT_MODEL
        first, more = made.problems[0], len(made.problems) - 1
        also = f", and {counted(more, 'more fault')}" if more else ""
        complain(
            printable(
                f"{path}: warning: {model} cannot render the story as it is: {first.message}{also}\n"
                "storyreel validate says where; another --model may have room for it."
            )
        )


def _read(file: Path) -> bytes:
    from storyreel.story.importing.source import MAX_BYTES

    if file == STDIN:
        return sys.stdin.buffer.read(MAX_BYTES + 1) if sys.stdin else b""
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise UsageError(f"{file} is a folder", "Name a file.") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", "Check the name.") from None
