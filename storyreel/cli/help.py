"""How help looks, and where an option's default may come from besides the command line.

Words to type on the left, what they do on the right, in groups; it fits 80 columns and nothing is cut off.
"""

from __future__ import annotations

import inspect
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from storyreel.cli.defaults import FileDefaults, source_of
from storyreel.errors import UsageError

LEFT = 24  # columns for what is typed; what is longer has a line of its own
LAST = "Output"  # the group of options that every command has


class Command(TyperCommand):
    """A command whose options may have their defaults in a file, and whose help is in groups."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; what it leaves open is looked up in the environment, then in the file."""
        keys = {param.name for param in self.params if getattr(param, "envvar", None)}
        ctx.default_map = FileDefaults(ctx.params, keys)
        ctx.obj = [ctx.command_path, *args]
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # pydantic's
            name = getattr(error.param, "name", "") or ""
            if source := source_of(ctx, name):
                raise UsageError(f"{source}: {name}: {error.message}", "Correct it there.") from None
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the line that shows how it is used."""
        arguments = [param for param in self.params if param.param_type_name == "argument"]
        forms = [str(param.metavar) if param.required else f"[{param.metavar}]" for param in arguments]
        return [*forms, "[options]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options, each group under its name."""
        _write_options(self, ctx, formatter)


class Group(TyperGroup):
    """All commands."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the line that shows how it is used."""
        return ["COMMAND", "[options]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, each group under its name, then the options that need none."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            if not command.hidden:
                summary = inspect.cleandoc(command.help or "").partition("\n\n")[0].replace("\n", " ")
                panels.setdefault(getattr(command, "rich_help_panel", ""), []).append((name, summary))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)
        _write_options(self, ctx, formatter)


def _write_options(command: Any, ctx: Any, formatter: Any) -> None:
    panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for param in command.get_params(ctx):
        if getattr(param, "hidden", False):
            continue
        usual = "Arguments" if param.param_type_name == "argument" else "Options"
        panel = getattr(param, "rich_help_panel", None) or (LAST if param.name == "help" else usual)
        panels.setdefault(panel, []).append((_typed(param), _words(param)))
    last = panels.pop(LAST, [])
    for panel, rows in [*panels.items(), (LAST, last)]:
        if rows:
            with formatter.section(panel):
                formatter.write_dl(rows, col_max=LEFT)


def _typed(param: Any) -> str:
    """Return what is typed for an argument or an option."""
    if param.param_type_name == "argument":
        return str(param.metavar)
    names = ", ".join(sorted([*param.opts, *param.secondary_opts], key=lambda name: name.startswith("--")))
    return names if param.is_flag or not param.metavar else f"{names} {param.metavar}"


def _words(param: Any) -> str:
    """Return what an argument or an option does, its default, and the variable that can hold one."""
    words = [param.help or ""]
    if param.default not in (None, "", False, True) and param.show_default:
        words.append(f"Default: {param.default}.")
    if param.envvar:
        words.append(f"[{param.envvar}]")
    return " ".join(words)
