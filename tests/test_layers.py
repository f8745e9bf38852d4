"""Imports point down only (STYLE rule 5), and torch stays out of what must answer at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "storyreel"
# From the top down; a module may import only from layers below its own.
LAYERS: list[set[str]] = [
    {"storyreel.__main__"},
    {"storyreel.cli.app"},
    {"storyreel.film.status", "storyreel.cli.options"}
    | {"storyreel.cli.display", "storyreel.mini.train", "storyreel.mini.evaluate", "storyreel.models.hub"},
    {"storyreel.benchmark.calculate"},
    {
        "storyreel.evaluation.ablation",
        "storyreel.benchmark.run",
        "storyreel.evaluation.evaluator",
        "storyreel.film.verify",
    }
    | {"storyreel.slurm"},
    {"storyreel.render", "storyreel.mini.training"} | {"storyreel.evaluation.report"},
    {"storyreel.making"},
    {
        "storyreel.denoise.state",
        "storyreel.film.decode",
        "storyreel.evaluation.result",
        "storyreel.evaluation.score",
    }
    | {"storyreel.film.inventory"},
    {"storyreel.denoise.loop", "storyreel.film.page", "storyreel.film.keys", "storyreel.mini.nets"}
    | {"storyreel.mini.lessons"}
    | {"storyreel.mini.verdicts", "storyreel.evaluation.look", "storyreel.evaluation.findings"},
    {
        "storyreel.denoise.prompts",
        "storyreel.denoise.anchors",
        "storyreel.models.workers",
        "storyreel.mini.judge",
    }
    | {"storyreel.evaluation.encoders", "storyreel.evaluation.films"},
    {"storyreel.story.plan", "storyreel.models.mochi", "storyreel.models.wan", "storyreel.models.ltx"}
    | {"storyreel.mini.known", "storyreel.mini.codec", "storyreel.mini.plots"},
    {"storyreel.models.pipeline", "storyreel.models.mochi_attention", "storyreel.models.ltx_decoder"}
    | {"storyreel.models.scorer", "storyreel.mini.world"},
    {"storyreel.models.attention", "storyreel.models.quantized"},
    {"storyreel.models.base"},
    {"storyreel.models.inventory"},
    {"storyreel.models.specs", "storyreel.film.clean"},
    {"storyreel.film.store", "storyreel.film.hashes", "storyreel.film.differences"},
    {"storyreel.story.schema", "storyreel.film.video", "storyreel.film.folder"}
    | {"storyreel.evaluation.clips", "storyreel.evaluation.seams", "storyreel.evaluation.statistics"}
    | {"storyreel.evaluation.rates"}
    | {"storyreel.evaluation.verdicts", "storyreel.evaluation.pictures", "storyreel.evaluation.registry"},
    {
        "storyreel.story.yaml_source",
        "storyreel.method.settings",
        "storyreel.method.step_skipping",
        "storyreel.stopping",
    }
    | {"storyreel.method.blending", "storyreel.method.memory"}
    | {"storyreel.method.similarity", "storyreel.method.weighting"},
    {"storyreel.film.recipe", "storyreel.models.device_errors"},
    {
        "storyreel.errors",
        "storyreel.story.quoting",
        "storyreel.story.tokens",
        "storyreel.film.lock",
        "storyreel.origin",
        "storyreel.benchmark.meter",
        "storyreel.cli.streams",
        "storyreel",
    },
]
FIRST = {"annotated_doc", "annotated_types", "click", "cython_runtime", "pydantic", "pydantic_core", "rich"}
FIRST |= {"shellingham", "tokenizers", "typer", "typing_extensions", "typing_inspection", "yaml"}
WHOLE = ("storyreel.mini.world", "storyreel.mini.training")  # packages that count as one module


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(name: str) -> int:
    while True:
        for depth, layer in enumerate(LAYERS):
            if name in layer and (name != "storyreel" or depth == len(LAYERS) - 1):
                return depth
        name = name.rpartition(".")[0]


def imports(path: Path) -> set[str]:
    here = module_name(path)
    package = here if path.name == "__init__.py" else here.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {n if (ROOT / (n.replace(".", "/") + ".py")).exists() else base for n in names}
    return {name for name in found if name.split(".")[0] == "storyreel"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_imports_point_down(path: Path) -> None:
    here = module_name(path)
    for name in imports(path):
        one_package = any(here.startswith(p) and name.startswith(p) for p in WHOLE)
        assert one_package or layer_of(name) > layer_of(here), f"{here} imports {name}"


def test_every_module_has_a_layer_of_its_own() -> None:
    named = set().union(*LAYERS)
    for path in PACKAGE.rglob("*.py"):
        name = module_name(path)
        empty = path.name == "__init__.py" and not imports(path)
        assert name in named or empty or name.startswith(WHOLE), name


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
    for path in (PACKAGE / "method").glob("*.py"):
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
