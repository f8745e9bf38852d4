"""Help on a terminal of 80 columns, and what a shell completes."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest
import typer.main

from storyreel.cli import options
from storyreel.cli.app import app, run
from storyreel.cli.defaults import KEYS, PREFIX
from storyreel.method.step_skipping import SPEEDS
from storyreel.models import base
from storyreel.story.schema import RenderSettings

GROUP: typing.Any = typer.main.get_group(app)
COMMANDS: dict[str, typing.Any] = GROUP.commands


def help_of(*words: str) -> str:
    """Return a command's help as it is on 80 columns."""
    context = GROUP.make_context("storyreel", [], resilient_parsing=True, terminal_width=80)
    if not words:
        return str(GROUP.get_help(context))
    command = COMMANDS[words[0]]
    return str(command.get_help(command.context_class(command, info_name=words[0], parent=context)))


@pytest.mark.parametrize("name", [(), *[(name,) for name in COMMANDS]], ids=" ".join)
def test_help_is_whole_and_plain_on_80_columns(name: tuple[str, ...]) -> None:
    text = help_of(*name)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "..." not in text
    assert not re.search(r"<\w|\w>|\[OPTIONS\]|\[ARGS\]|list\[|\d<=|x>=|\.\.( |$)|[{}]", text)
    assert lines[0].startswith(f"Usage: storyreel {name[0] if name else 'COMMAND'} ")
    words = " ".join(text.split())
    for command in [COMMANDS[name[0]]] if name else COMMANDS.values():
        if name or not command.hidden:
            paragraphs = re.sub(r"\n\s*", " ", command.help.replace("\n\n", "\0")).split("\0")
            for paragraph in paragraphs if name else paragraphs[:1]:
                assert " ".join(paragraph.split()) in words
        for param in command.params if name else ():
            assert " ".join(param.help.split()) in words, param.name
            if param.param_type_name == "option" and not param.is_flag:
                assert param.metavar, param.name


def test_every_line_of_a_list_has_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    groups = re.findall(r"^(\S.*):$", help_of("render"), re.MULTILINE)
    assert groups == ["Arguments", "Film", "Where and how", "Output"]
    assert re.findall(r"^(\S.*):$", help_of("submit"), re.MULTILINE)[-2:] == ["Slurm", "Output"]
    assert run(["--help"]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^  (\w+)  ", printed, re.MULTILINE) == [
        name for name, command in COMMANDS.items() if not command.hidden
    ]


def test_choices_are_those_that_there_are() -> None:
    assert typing.get_args(options.Speed) == tuple(SPEEDS)
    assert set(typing.get_args(options.MemoryMode)) == set(typing.get_args(base.MemoryMode))
    for name, choices in (("speed", options.Speed), ("quantize", options.Quantized)):
        of_stories = RenderSettings.model_fields[name].annotation
        assert choices in typing.get_args(of_stories) or set(typing.get_args(choices)) <= {
            value for part in typing.get_args(of_stories) for value in typing.get_args(part)
        }
    text = help_of("render")
    for words in ("--memory auto|high|balanced|low", "--speed exact|balanced|fast", "--quantize none|fp8"):
        assert words in text


def test_help_names_the_variable_of_every_default() -> None:
    variables = set(re.findall(rf"\[{PREFIX}(\w+)\]", help_of("render")))
    assert variables == {key.upper() for key in KEYS}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("storyreel ren", ["render"]),
        ("storyreel render --memory ", ["auto", "high", "balanced", "low"]),
        ("storyreel render --speed f", ["fast"]),
        ("storyreel bench --model mi", ["mini"]),
        ("storyreel pull ev", ["eval"]),
        ("storyreel eval --device c", ["cpu", "cuda"]),
        ("storyreel submit --part", ["--partition"]),
    ],
)
def test_a_shell_completes_commands_options_and_choices(
    typed: str, offered: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_STORYREEL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" ")) - 1))
    assert run([]) == 0  # it comes back, so that what could not be written is told
    assert capsys.readouterr().out.split() == offered


def test_completion_is_printed_and_writes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("_STORYREEL_COMPLETE", "source_bash")
    assert run([]) == 0
    assert "complete -o default -F" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())
