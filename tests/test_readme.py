"""The READMEs say what is true: links, commands, stories, settings, codes, and the drawing of imports.

What is in a block of ``sh`` is run where it is quick and needs no model, and else read by the program that
it is for. The two commands of the project's README are run by `.ci/run`. Blocks of ``yaml`` are stories.
Blocks of ``python`` run, one after the other, with a model that costs nothing.
"""

from __future__ import annotations

import argparse
import ast
import glob
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer.main
import yaml

from storyreel import errors
from storyreel.cli.app import app, run
from storyreel.film import writer
from storyreel.method.settings import Method
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.story.planning import make_plan
from storyreel.story.schema import parse_story
from tests.conftest import ROOT, FakeEngine

PACKAGE = ROOT / "storyreel"
BESIDE = [ROOT / name / "README.md" for name in ("stories", "tests")]
PATHS = [ROOT / "README.md", *sorted(PACKAGE.rglob("*.md")), *BESIDE]
READMES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PATHS}
FRONT = READMES["README.md"]
MOST = 8192  # bytes: what is longer is no front door
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)
QUICK = {"new", "schema", "validate", "models", "clean", "status", "info"}
GROUP = typer.main.get_group(app)
each_readme = pytest.mark.parametrize("name", READMES)


def blocks(name: str, language: str) -> list[str]:
    """Return a README's blocks of a language."""
    return [block for kind, block in FENCE.findall(READMES[name]) if kind == language]


def prose(name: str) -> str:
    """Return a README without its blocks."""
    return FENCE.sub("", READMES[name])


def inline_code(name: str) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(name))]


def anchors(name: str) -> set[str]:
    """Return the anchors of a README's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(name), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def lines(name: str) -> list[list[str]]:
    """Return what a shell is told in a README's blocks, in words."""
    text = "\n".join(blocks(name, "sh")).replace("\\\n", " ")
    found = [shlex.split(line, comments=True) for line in text.splitlines() if not line.startswith("$(")]
    return [words for words in found if words]


def commands(name: str) -> Iterator[list[str]]:
    """Yield all commands of a README, those in a sentence too; with an ellipsis it is a form, no command."""
    yield from (words for words in lines(name) if words[:3] != ["python3", "-m", "venv"])
    for code in inline_code(name):
        if re.match(r"(storyreel|python -m|pytest|torchrun|/usr/bin/time) ", code) and "…" not in code:
            yield shlex.split(code)


@each_readme
def test_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", prose(name))
    assert all(link.startswith("https://") for link in links if ":" in link)
    for link in (link for link in links if ":" not in link):
        path, _, anchor = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target.relative_to(ROOT).as_posix()), link


@each_readme
def test_files_that_are_named_are_there(name: str) -> None:
    for code in inline_code(name):
        if re.fullmatch(r"[\w./]+\.py", code) and "NAME" not in code:
            assert any((base / code).exists() for base in ((ROOT / name).parent, ROOT, PACKAGE)), code


@each_readme
def test_nothing_is_left_open(name: str) -> None:
    assert not re.search(r"\b(FIGURES|SCORES|DRAWING|TODO|TBD|XXX|[A-Z]+_TRAINING)\b", READMES[name])
    assert not re.search(r"\| (TRANSFORMER|TEXT|CODEC) \|", READMES[name])
    assert {kind for kind, _ in FENCE.findall(READMES[name])} <= {"sh", "yaml", "text", "python"}
    assert READMES[name].count("```") % 2 == 0


def test_the_front_door_is_short_and_leads_to_every_other_readme() -> None:
    assert len(FRONT.encode()) <= MOST
    seen: set[str] = set()
    found = {"README.md"}
    while found - seen:
        name = (found - seen).pop()
        seen.add(name)
        for link in re.findall(r"\]\(([^):#]*\.md)", READMES[name]):
            found.add(((ROOT / name).parent / link).resolve().relative_to(ROOT).as_posix())
    assert seen == set(READMES)


def test_ci_runs_the_two_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    patterns = re.findall(r"from_readme '([^']+)'", script)
    assert len(patterns) == 2
    for pattern in patterns:
        assert len(re.findall(f"^python3 .*{pattern}", FRONT, re.M)) == 1


class _ReadError(Exception):
    """A program has read its options, and would begin."""


@each_readme
def test_commands_are_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse_args = argparse.ArgumentParser.parse_args

    def read(parser: argparse.ArgumentParser, *given: list[str]) -> None:
        parse_args(parser, *given)
        raise _ReadError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read)
    for words in commands(name):
        told = words
        if told[0] == "/usr/bin/time":
            told = told[2:]
        if told[0] == "torchrun":
            told = told[told.index("-m") + 1 :]
        match told:
            case [program, *rest] if program.removeprefix(".venv/bin/") == "storyreel":
                rest = rest[: rest.index(">")] if ">" in rest else rest
                rest = ["1" if word in ("SCENE", "TAKE") else word for word in rest]
                if len(rest) > 1:  # else a sentence speaks of the command
                    GROUP.commands[rest[0]].make_context(rest[0], rest[1:])
                else:
                    assert rest[0] in GROUP.commands
            case ["python", "-m", "tests.crossfade", *rest]:
                assert importlib.util.find_spec("tests.crossfade")
                assert not any(word.startswith("-") for word in rest)
            case ["python", "-m", module, *rest]:
                monkeypatch.setattr(sys, "argv", [module, *rest])
                with pytest.raises(_ReadError):
                    importlib.import_module(module).main()
            case ["pytest", "-m", mark, *rest]:
                assert f'"{mark}: ' in (ROOT / "pyproject.toml").read_text()
                assert all((ROOT / word).exists() for word in rest), rest
            case ["pytest", *rest]:
                assert all((ROOT / word).exists() for word in rest), rest
            case _:
                raise AssertionError(f"nobody has tried {shlex.join(words)}")


@each_readme
def test_quick_commands_do_what_they_should(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other, in a folder that has the stories, and no films yet."""
    shutil.copytree(ROOT / "stories", tmp_path / "stories")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    for program, *words in lines(name):
        if program != "storyreel" or not (words[0] in QUICK or {"--dry-run", "--status"} & set(words)):
            continue
        told, _, target = (part.strip() for part in shlex.join(words).partition("'>'"))
        arguments = [path for word in shlex.split(told) for path in sorted(glob.glob(word)) or [word]]
        assert run(arguments) == 0, (words, capsys.readouterr().err)
        printed = capsys.readouterr().out
        assert printed or "status" in words[0] or "--status" in words  # of no films
        if target:
            Path(target).write_text(printed)
            assert json.loads(printed)


@each_readme
def test_examples_are_stories(name: str) -> None:
    for block in blocks(name, "yaml"):
        story = parse_story(name, block.encode())
        assert story.render.seed == 7
        assert make_plan(story, name, pictures={}).segments  # no files lie beside it


def test_every_command_is_in_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    table = READMES["storyreel/cli/README.md"]
    for command in app.registered_commands:
        if command.hidden:
            continue
        name = command.name or (command.callback.__name__ if command.callback else "")
        assert f"| `storyreel {name}" in FRONT
        assert f"`storyreel {name}" in table
    for row in re.findall(r"^\| `storyreel .*$", table, re.M):
        name = row.split()[2].strip("`")
        assert run([name, "--help"]) == 0
        help_text = capsys.readouterr().out
        for option in re.findall(r"`[^`]*?(--[a-z-]+)[^`]*`", row):
            assert option in help_text, (name, option)


def test_every_exit_code_is_in_the_table() -> None:
    classes = [
        c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.StoryreelError)
    ]
    for code in {c.exit_code for c in classes} | {0, 130}:
        assert f"| {code} |" in READMES["storyreel/cli/README.md"]


def test_every_setting_of_the_method_is_in_the_table_with_its_default() -> None:
    for name, field in Method.model_fields.items():
        default = "the model's" if field.default is None else json.dumps(field.default).strip('"')
        assert f"| `{name}` | {default} |" in READMES["storyreel/method/README.md"]


def test_the_tree_has_every_folder_and_module() -> None:
    tree = blocks("storyreel/README.md", "text")[0]
    there = {f"{path.name}/" if path.is_dir() else path.name for path in PACKAGE.iterdir()}
    there -= {"__init__.py", "__pycache__/", "README.md", "py.typed"}
    assert set(re.findall(r"^[├└]── (\S+)", tree, re.M)) == there


def test_the_drawing_is_that_of_the_imports() -> None:
    """Folder by folder, from the top down. Where it is another one now, the failure shows which."""
    drawing = blocks("storyreel/README.md", "text")[1]
    drawn = re.findall(r"^[├└]── (\w+) +→ (.*)$", drawing, re.M)
    floors = [name for name, _ in drawn]
    arrows: dict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        here, package = path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path.parent.relative_to(ROOT)
        for node in ast.walk(ast.parse(path.read_text())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                base = "." * node.level + (node.module or "")
                base = importlib.util.resolve_name(base, ".".join(package.parts))
                found = [f"{base}.{alias.name}" for alias in node.names]
            arrows[here] |= {name.split(".")[1] for name in found if name.startswith("storyreel.")}
    nodes = {name for name in arrows if name not in ("__init__", "errors")}
    true = {name: ", ".join(sorted(arrows[name] & nodes - {name})) for name in nodes}
    assert dict(drawn) == {name: words or "nothing" for name, words in true.items()}
    for name, words in drawn:
        assert not set(words.split(", ")) & set(floors[: floors.index(name)]), name


@pytest.mark.skipif(shutil.which("bash") is None, reason="a shell's command")
def test_the_picture_is_made_by_the_command_that_is_said_to(tmp_path: Path) -> None:
    """In an environment that is active and has no ffmpeg but the package's."""
    (block,) = (block for block in blocks("storyreel/film/README.md", "sh") if "imageio_ffmpeg" in block)
    for folder in ("out/nyc", "stories", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    with writer.SegmentWriter(tmp_path / "out" / "nyc" / "nyc.mp4", 96, 64, 12, 2) as encoder:
        encoder.write(bytes(48 * 96 * 64 * 3))
    environment = {"PATH": f"{tmp_path / 'bin'}", "PYTHONPATH": os.pathsep.join(sys.path)}
    bash = shutil.which("bash") or "bash"
    done = subprocess.run([bash, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "stories" / "nyc.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("ffmpeg", "fresh_install")
@pytest.mark.parametrize("name", [name for name in READMES if blocks(name, "python")])
def test_python_runs(
    name: str, tmp_path: Path, fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stories of the same names that have three scenes."""
    (tmp_path / "stories").mkdir()
    for path in (ROOT / "stories").glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        content["scenes"] = content["scenes"][:3]
        (tmp_path / "stories" / path.name).write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MODELS, "mini", replace(fake_model, name="mini", seconds=0.5))

    class Cheap(FakeEngine):
        def __init__(self, device: str) -> None:
            super().__init__()

    monkeypatch.setattr("storyreel.api.Engine", Cheap)
    monkeypatch.setattr("storyreel.engine.Engine", Cheap)
    for block in blocks(name, "python"):
        exec(compile(block, name, "exec"), {})  # noqa: S102  # our own README


def test_python_is_shown() -> None:
    assert [name for name in READMES if blocks(name, "python")]
