"""Commands about stories: a story to start from, whether stories are valid, and what formats look like."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from storyreel.cli.options import CheckOptions, Json, option
from storyreel.cli.reading import raise_all, read, shown, stories_in, warn
from storyreel.cli.results import Validated, faults_of, print_json, result_schema
from storyreel.cli.telling import complain
from storyreel.errors import OutputError, ScriptError, StoryreelError, UsageError, counted, printable
from storyreel.story.plan import Plan
from storyreel.story.planning import notes_of
from storyreel.story.schema import story_schema

STARTER = """\
title: A fox in the park
cast:
  first: {name: a fox, possessive: its}
scenes:
  # Each scene is a pair: where we are, and what the character does there.
  - ["{first} is inside of the subway train", "{first} is sitting"]
  - ["{first} has arrived at Central Park", "{first} is sniffing the ground"]
  - scene: "{first} sees a red ball in Central Park"
    action: "{first} is looking up at the sky"
    seconds: 3
    transition: blend # or cut
render:
  model: mini
  seed: 7
"""


def new(story: Annotated[Path, typer.Argument(help="The file to write.", metavar="STORY")]) -> None:
    """Write a story to start from."""
    try:
        with story.open("x", encoding="utf-8") as file:
            file.write(STARTER)
    except FileExistsError:
        raise UsageError(f"{story} is there already", "Choose another name.") from None
    except OSError as error:
        raise OutputError(f"cannot write {story}: {error.strerror}", "Choose another place.") from None
    print(story)


def validate(
    stories: Annotated[
        list[Path],
        typer.Argument(
            help="YAML stories, or folders of them; - is standard input.", metavar="STORY…", is_eager=True
        ),
    ],
    options: CheckOptions,
    as_json: Json = False,
) -> None:
    """Check stories without loading a model; print every fault with its place.

    The options are those of render: a length or size that a model cannot do is a fault too. What it cannot
    draw, where that is known, is a warning.
    """
    warned: dict[str, ScriptError] = {}
    plan_of = partial(options.plan, warned=warned)
    casts = options.cast_files()
    plans, errors = read(list(stories_in(stories)), plan_of, shown, False, options.casting(), casts)
    if as_json:
        results = {path: _valid(plan, warned.get(path)) for path, plan in plans.items()}
        print_json(results | {path: _invalid(error) for path, error in errors.items()})
    for path, plan in plans.items() if not as_json else ():
        print(printable(f"{path}: {counted(len(plan.segments), 'scene')}, {plan.seconds:g} s of film"))
        for note in notes_of(plan):
            complain(printable(f"{path}: {note}"))
    warn(warned)
    raise_all(errors.values())


def _valid(plan: Plan, warned: ScriptError | None) -> Validated:
    return {
        "valid": True,
        "scenes": len(plan.segments),
        "seconds": plan.seconds,
        "faults": [],
        "warnings": faults_of(warned),
        "error": "",
        "notes": list(notes_of(plan)),
    }


def _invalid(error: StoryreelError) -> Validated:
    return {
        "valid": False,
        "scenes": None,
        "seconds": None,
        "faults": faults_of(error),
        "warnings": [],
        "error": error.message,
        "notes": [],
    }


def schema(
    of: Annotated[str, option("COMMAND", "Instead, of what a command prints with --json.")] = "",
) -> None:
    """Print the JSON Schema of the story format, for editors."""
    print_json(result_schema(of) if of else story_schema())
