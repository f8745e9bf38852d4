"""Imports point down only, and torch stays out of what must answer at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from tests.conftest import ROOT

FIRST = {"annotated_doc", "annotated_types", "click", "cython_runtime", "pydantic", "pydantic_core", "rich"}
FIRST |= {"shellingham", "tokenizers", "typer", "typing_extensions", "typing_inspection", "yaml"}


def test_imports_point_down() -> None:
    """The layers are in pyproject.toml; a chain that breaks one is printed."""
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None) == EXIT_STATUS_SUCCESS


COMMANDS = [
    ["--help"],
    ["validate", "stories/nyc.yaml"],
    ["schema"],
    ["models"],
    ["models", "mini"],
    ["render", "stories/nyc.yaml", "--dry-run"],
    ["ablate", "--help"],
    ["batch", "stories/nyc.yaml", "--status"],
    ["batch", "stories/nyc.yaml", "--slurm", "--dry-run"],
    ["clean", "stories"],
]
FIRST_ANSWERS = 2  # of `COMMANDS`


@pytest.fixture(scope="module")
def loaded() -> list[set[str]]:
    """The packages that are loaded once each command has run, one after the other in a fresh process."""
    code = (
        "import json, sys; from storyreel.cli.app import run\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try: run(words)\n"
        "    except SystemExit: pass\n"
        "    print(json.dumps(list(sys.modules)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, json.dumps(COMMANDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    lines = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert len(lines) == len(COMMANDS), done.stderr
    return [{name.split(".")[0] for name in json.loads(line)} for line in lines]


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=lambda number: " ".join(COMMANDS[number]))
def test_answers_without_torch(loaded: list[set[str]], number: int) -> None:
    assert "typer" in loaded[number]
    assert not loaded[number] & {"torch", "diffusers", "transformers", "numpy", "PIL"}


@pytest.mark.parametrize("number", range(FIRST_ANSWERS), ids=lambda number: " ".join(COMMANDS[number]))
def test_the_first_answers_load_little(loaded: list[set[str]], number: int) -> None:
    """They come within half a second, which is a matter of what is imported: no clock can fail here."""
    names = {name for name in loaded[number] if not name.startswith(("_", "sitecustomize"))}
    foreign = names - sys.stdlib_module_names - {"storyreel"}
    assert foreign <= FIRST, foreign - FIRST
