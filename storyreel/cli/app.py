"""The command line: all commands, and the one place where errors become exit codes. No torch here."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from storyreel import __version__
from storyreel.cli import (
    films,
    importing,
    machine,
    models,
    rendering,
    scores,
    sheets,
    stories,
    streams,
    takes,
)
from storyreel.cli.help import Command, Group
from storyreel.cli.options import as_command
from storyreel.cli.process import give_large_blocks_back, let_segments_grow, rank
from storyreel.cli.telling import complain
from storyreel.errors import InterruptError, OutputError, StoryreelError, UsageError
from storyreel.models.device_errors import device_error
from storyreel.stopping import AGAIN, stopping

DEBUG = "STORYREEL_DEBUG"  # the variable that asks for tracebacks

COMMANDS: Mapping[str, Mapping[str, Callable[..., None]]] = {
    "Films": {
        "sheet": sheets.sheet,
        "render": rendering.render,
        "retake": takes.retake,
        "keep": takes.keep,
        "batch": rendering.batch,
        "submit": rendering.submit,
        "status": films.status,
        "verify": films.verify,
        "inspect": films.inspect,
        "export": films.export,
        "clean": films.clean,
    },
    "Stories": {
        "new": stories.new,
        "import": importing.import_story,
        "validate": stories.validate,
        "schema": stories.schema,
    },
    "How good films are": {"eval": scores.evaluate, "ablate": scores.ablate},
    "Models and this machine": {
        "models": models.models,
        "pull": models.pull,
        "bench": models.bench,
        "info": machine.info,
    },
}

app = typer.Typer(
    cls=Group,
    help="Make one coherent film from a story of scene pairs.",
    epilog="storyreel COMMAND --help says what each takes. Exit codes: 0 done; 1 failure; 2 usage; 65 a "
    "story with faults; 69 a model, weight, device or program is missing; 73 output cannot be written; "
    "74 another process holds the output; 75 stopped, run again to go on; 77 a licence is not accepted; "
    "130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _group, _commands in COMMANDS.items():
    for _name, _function in _commands.items():
        app.command(_name, cls=Command, rich_help_panel=_group)(as_command(_function))
app.command("doctor", cls=Command, hidden=True)(as_command(machine.info))


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"storyreel {__version__}")
        raise typer.Exit


def main() -> int:
    """Run the command line and return its exit code; the one place where errors become exit codes."""
    give_large_blocks_back()
    let_segments_grow()
    if rank():  # the first process speaks for all
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # for the rest of its life
    code = run(sys.argv[1:])
    if failure := streams.finish():
        complain(f"error: cannot write the result: {failure.strerror}")
        code = code or OutputError.exit_code
    return code


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        with stopping() as stop:
            _refuse_optimized()
            code: Any = app(list(arguments), prog_name="storyreel", standalone_mode=False)
            if code == InterruptError.exit_code:  # as some versions of typer have it for a KeyboardInterrupt
                raise stop.error()
    except StoryreelError as error:
        return _told(error)
    except SystemExit as done:  # as typer ends when it has printed the completion
        code = done.code
    except (KeyboardInterrupt, typer.Abort):  # by no signal
        return _told(InterruptError("interrupted", AGAIN))
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's own can show themselves
            error.show()
            return int(error.exit_code)
        if isinstance(error, OSError):
            return _told(_of_the_system(error))
        if (told := device_error(error)) is not None:
            return _told(told)
        raise  # anything else is a bug, and keeps its traceback
    return code if isinstance(code, int) else 0


def _refuse_optimized() -> None:
    """Raise UsageError where Python leaves docstrings out."""
    if sys.flags.optimize > 1:
        remedy = "Leave out -OO, or unset PYTHONOPTIMIZE; -O will do."
        raise UsageError(
            "Python leaves out docstrings (-OO), without which transformers does not load", remedy
        )


def _told(error: StoryreelError) -> int:
    """Tell an error, with where it came from if that is asked for; return its exit code."""
    if os.environ.get(DEBUG, "") not in ("", "0"):
        traceback.print_exc()
    complain(str(error))
    return error.exit_code


def _of_the_system(error: OSError) -> StoryreelError:
    """Return what the system refused where nobody had thought of it: what is known, and no advice."""
    words = error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
    names = [os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)]
    return StoryreelError(": ".join([*names, words]), f"{DEBUG}=1 shows where that happened.")
