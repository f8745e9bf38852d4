"""Imports point down only, and torch stays out of what must answer at once."""

from __future__ import annotations

import ast
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


def loaded_by(*arguments: str) -> set[str]:
    code = (
        "import sys; from storyreel.cli.app import run\n"
        "try: run(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.split(".")[0] for name in done.stderr.splitlines()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["validate", "stories/nyc.yaml"],
        ["schema"],
        ["models"],
        ["render", "stories/nyc.yaml", "--dry-run"],
        ["ablate", "--help"],
        ["status", "stories/nyc.yaml"],
        ["submit", "stories/nyc.yaml", "--dry-run"],
        ["verify", "stories/nyc.yaml"],
        ["info", "--json"],
        ["eval", "--help"],
        ["batch", "stories/nyc.yaml", "--status"],
        ["batch", "stories/nyc.yaml", "--slurm", "--dry-run"],
        ["clean", "stories"],
    ],
    ids=" ".join,
)
def test_answers_without_torch(arguments: list[str]) -> None:
    loaded = loaded_by(*arguments)
    assert "typer" in loaded
    assert not loaded & {"torch", "diffusers", "transformers", "numpy", "PIL"}


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "stories/nyc.yaml"]], ids=" ".join)
def test_the_first_answers_load_little(arguments: list[str]) -> None:
    """They come within half a second, which is a matter of what is imported: no clock can fail here."""
    loaded = {name for name in loaded_by(*arguments) if not name.startswith(("_", "sitecustomize"))}
    foreign = loaded - sys.stdlib_module_names - {"storyreel"}
    assert foreign <= FIRST, foreign - FIRST


def test_the_method_is_pure() -> None:
    """No model, file or random state in the method's formulas."""
    for path in (ROOT / "storyreel" / "method").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                )
                allowed = {"__future__", "collections.abc", "dataclasses", "math", "re", "torch", "typing"}
                allowed |= {"storyreel.errors"} if path.stem == "step_skipping" else set()
                allowed |= {"pydantic", "pydantic_core"} if path.stem == "settings" else set()
                assert set(names) <= allowed, path.name
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("rand", "randn", "manual_seed", "cuda", "load", "open")
