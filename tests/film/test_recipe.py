"""The recipe: an edited formula is another one by itself, and words, layout and other modules are not."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from storyreel.errors import MissingError
from storyreel.evaluation import ablation
from storyreel.film import keys
from storyreel.film.recipe import NO_PART, Recipe, closure, fingerprint, recipe_of, source
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.story.planning import Overrides
from storyreel.story.schema import parse_story
from tests.conftest import ROOT, FakeEngine, Silent
from tests.test_rendering import make

MINI, WAN = MODELS["mini"].adapter, MODELS["wan-14b"].adapter

TEXT = '''
"""A module."""
import math

class Speed:
    """A class."""
    every: int = 1
    name: str = f"{1!r:>{2}}" "b"

    async def go(self, x, *rest, y=1.5, **more) -> int | None:
        """A method."""
        async with x as z: return [a for a in rest if a] or {**more}
        "a text in between"
        lambda: (yield)

def step(x: float, σ: float = 0x10, /, *, b=b"\\x00", c=...) -> float:
    match x:
        case [1, *_] | {"k": None}: x += 1
        case Speed(every=e) if e: raise ValueError("no") from None
    return x if σ else -x @ σ  # and a comment
'''


def of(text: str) -> str:
    return fingerprint(ast.parse(text))


@pytest.mark.parametrize(
    "change",
    [
        ("A module.", "Another docstring."),
        ('    """A class."""\n', ""),
        ("A method.", "m"),
        ("  # and a comment", ""),
        ("a text in between", "another"),
        ("x += 1", "x+=1 # one"),
        ("\ndef step", "\n\n\n# a comment\n\ndef step"),
        ("0x10", "16"),
        ('"b"\n', "'b'\n"),
        ('"k"', 'u"k"'),
    ],
    ids=str,
)
def test_words_and_layout_are_no_part(change: tuple[str, str]) -> None:
    assert change[0] in TEXT
    assert of(TEXT.replace(*change)) == of(TEXT)


EDITS = [("y=1.5", "y=1.6"), ("-x @ σ", "x @ σ"), ("-x @ σ", "-x * σ"), ("x += 1", "x -= 1")]
EDITS += [("every=e", "other=e"), ('"b"\n', '"c"\n'), ("16", "17"), ("math", "cmath"), ("if σ", "if not σ")]
EDITS += [("async with", "with"), ("yield", "await x"), ("1!r", "1!s"), ("from None", "")]


@pytest.mark.parametrize("change", EDITS, ids=str)
def test_whatever_is_computed_is(change: tuple[str, str]) -> None:
    text = TEXT.replace("0x10", "16")
    assert change[0] in text
    assert of(text.replace(*change)) != of(text)


def test_it_is_the_same_in_every_version_of_python() -> None:
    """This runs with whatever Python runs the tests; some write more fields into their trees than others."""
    assert of(TEXT) == "658502fc2b674ba6"


def test_what_shapes_pictures_is_known() -> None:
    """A module that comes to this list, or leaves it, is to be thought about once: is that so?"""
    found = recipe_of(MINI)
    assert list(found.latents) == [
        *("denoise/lead.py", "denoise/loop.py", "denoise/prompts.py", "denoise/state.py"),
        "film/segments.py",
        *("method/blending.py", "method/noise_levels.py", "method/settings.py", "method/similarity.py"),
        *("method/step_skipping.py", "method/weighting.py", "models/attention.py", "models/base.py"),
        *("models/compilation.py", "models/kernels.py", "models/loading.py"),
        *("models/lora.py", "models/lora_files.py", "models/merging.py", "models/mochi.py"),
        *(
            "models/mochi_attention.py",
            "models/offload.py",
            "models/pictures.py",
            "models/pipeline.py",
            "models/quantized.py",
            "models/scorer.py",
        ),
        *("models/streaming.py", "story/plan.py"),
    ]
    files = ("decode", "dissolve", "mp4", "own_sound", "writer")
    assert list(found.pictures) == [f"film/{name}.py" for name in files]
    mini, wan = set(found.latents), set(recipe_of(WAN).latents)
    assert wan - mini == {"models/wan.py", "models/wan_decoder.py"}
    assert mini - wan == {"models/mochi.py", "models/mochi_attention.py"}


def test_every_module_of_a_render_shapes_pictures_or_is_known_not_to() -> None:
    """Also those that only `render` itself imports."""
    reached = closure(["storyreel.rendering", MINI.partition(":")[0]], set(), source)
    counted = recipe_of(MINI)
    files = {f"{name.removeprefix('storyreel.').replace('.', '/')}.py": name for name in reached}
    assert {files[name] for name in files.keys() - {*counted.latents, *counted.pictures}} == set(NO_PART)


def edited(module: str, edit: Callable[[str], str]) -> Callable[[str], str | None]:
    """Read a package in which one module has been edited."""

    def read(name: str) -> str | None:
        text = source(name)
        if name != module:
            return text
        assert text is not None
        assert edit(text) != text
        return edit(text)

    return read


FORMULAS = {
    "storyreel.method.blending": ("latents", lambda text: text.replace("2 * gamma", "3 * gamma", 1)),
    "storyreel.method.weighting": ("latents", lambda text: text.replace("softmax(", "softmax(-")),
    "storyreel.denoise.loop": ("latents", lambda text: text.replace("(lower - sigma)", "(sigma - lower)")),
    "storyreel.denoise.prompts": (
        "latents",
        lambda text: text.replace("SCORED_EVERY = 2", "SCORED_EVERY = 3"),
    ),
    "storyreel.models.mochi": ("latents", lambda text: text.replace("0.025", "0.03")),
    "storyreel.models.pipeline": (
        "latents",
        lambda text: text.replace("mask[:, :count].float()", "mask[:, :count].double()"),
    ),
    "storyreel.story.plan": ("latents", lambda text: text.replace("storyreel noise", "noise")),
    "storyreel.film.dissolve": ("pictures", lambda text: text.replace("HELD = 1 / 6", "HELD = 1 / 4")),
    "storyreel.film.decode": ("pictures", lambda text: text.replace("[None]", "[[None]]")),
    "storyreel.film.writer": ("pictures", lambda text: text.replace('"-crf", "17"', '"-crf", "18"')),
}


@pytest.mark.parametrize("module", FORMULAS)
def test_an_edited_formula_is_another_recipe(module: str) -> None:
    part, edit = FORMULAS[module]
    before, after = recipe_of(MINI), recipe_of(MINI, edited(module, edit))
    assert getattr(before, part) != getattr(after, part)
    other = "pictures" if part == "latents" else "latents"
    assert getattr(before, other) == getattr(after, other)  # latents outlive another encoder


@pytest.mark.parametrize(
    ("module", "edit"),
    [
        ("storyreel.method.blending", lambda text: text.replace('"""', '"""Edited. ', 1) + "\n# edited\n"),
        ("storyreel.denoise.loop", lambda text: text.replace('"""Step from', '"""Go from')),
        ("storyreel", lambda text: text.replace('"0.', '"9.')),
        ("storyreel.errors", lambda text: text.replace("exit_code = 1", "exit_code = 3")),
        ("storyreel.cli.app", lambda text: text + "\nprint()\n"),
        ("storyreel.cli.display", lambda text: text + "\nprint()\n"),
        ("storyreel.film.reader", lambda text: text.replace("flags=area", "flags=bicubic")),
        ("storyreel.film.ffmpeg", lambda text: text.replace('"-nostdin", ', "")),
        ("storyreel.story.planning", lambda text: text + "\nprint()\n"),
        ("storyreel.models.wan", lambda text: text.replace("3.0", "5.0")),
        ("storyreel.story.vocabulary", lambda text: text.replace("MAX_WORDS = 25", "MAX_WORDS = 30")),
        ("storyreel.models.specs", lambda text: text.replace("steps=64", "steps=60")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_other_edit_is(module: str, edit: Callable[[str], str]) -> None:
    assert recipe_of(MINI, edited(module, edit)) == recipe_of(MINI)


def test_modules_are_found_however_they_are_imported() -> None:
    package = {
        "p.root": "import p.whole\nfrom p import part, name\nfrom p.sub import deep\nfrom .near import x",
        "p": "",
        "p.whole": "def f():\n    if True:\n        try: pass\n        except E: from p import lazily",
        "p.part": "import os\nif TYPE_CHECKING:\n    from p import typed\nelse:\n    import p.untyped",
        "p.sub": "",
        "p.sub.deep": "from ..far import y\nx = lambda: 0",
        "p.near": "x = 1 if 2 else 3",
        "p.lazily": "match 1:\n    case 1: import p.matched",
        "p.matched": "import q.other",
        "p.typed": "",
        "p.untyped": "from p import left_out",
        "p.left_out": "import p.behind",
        "p.behind": "",
        "p.far": "",
        "q.other": "",
    }
    found = closure(["p.root"], {"p.left_out"}, package.get)
    assert set(found) == set(package) - {"p.typed", "p.left_out", "p.behind", "q.other"}


def test_an_adapter_of_ones_own_counts_with_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "ownvideo"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "adapter.py").write_text("from ownvideo import attention\nclass Own: pass\n")
    (package / "attention.py").write_text("scale = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = recipe_of("ownvideo.adapter:Own")
    assert {"ownvideo/adapter.py", "ownvideo/attention.py"} <= before.latents.keys()
    (package / "attention.py").write_text("scale = 2\n")
    assert recipe_of("ownvideo.adapter:Own") != before
    assert "ownvideo" not in sys.modules or not hasattr(sys.modules["ownvideo"], "adapter")
    with pytest.raises(MissingError, match=r"nosuch\.thing"):
        recipe_of("nosuch.thing:Own")


def test_an_edited_copy_of_the_package(tmp_path: Path) -> None:
    """The real thing: files on disk, read by a Python of their own."""
    ignored = shutil.ignore_patterns("weights", "__pycache__", "training")
    shutil.copytree(ROOT / "storyreel", tmp_path / "storyreel", ignore=ignored)

    def read() -> Recipe:
        code = "import sys, json; sys.path.insert(0, sys.argv[1])\n"
        code += "from dataclasses import asdict; from storyreel.film.recipe import recipe_of, __file__\n"
        code += f"assert __file__.startswith(sys.argv[1]); print(json.dumps(asdict(recipe_of({MINI!r}))))\n"
        code += "assert 'torch' not in sys.modules"
        command = [sys.executable, "-I", "-B", "-c", code, str(tmp_path)]
        return Recipe(**json.loads(subprocess.run(command, capture_output=True, check=True).stdout))

    def edit(name: str, old: str, new: str) -> None:
        path = tmp_path / "storyreel" / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    before = read()
    assert before == recipe_of(MINI)
    edit("cli/app.py", '"""The command line', '# edited\n"""The command line')
    assert read() == before
    edit("method/blending.py", "2 * gamma", "3 * gamma")
    after = read()
    changed = {name for name in after.latents if after.latents[name] != before.latents.get(name)}
    assert changed == {"method/blending.py"}


def blending(text: str) -> str:
    return text.replace("2 * gamma", "3 * gamma", 1)


def test_an_edited_formula_renders_again_and_an_edited_comment_does_not(
    tmp_path: Path, fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    cli = partial(recipe_of, read=edited("storyreel.cli.app", lambda text: text + "# edited\n"))
    monkeypatch.setattr(keys, "recipe_of", cli)
    assert make(tmp_path)[0].rendered == 0
    changed = edited("storyreel.method.blending", blending)
    monkeypatch.setattr(keys, "recipe_of", partial(recipe_of, read=changed))
    result, progress, _ = make(tmp_path)
    assert result.rendered == 6
    assert "the recipe has changed: method/blending.py;" in progress.heard[0]
    assert make(tmp_path)[0].rendered == 0


def test_an_edited_formula_is_ablated_anew(
    tmp_path: Path, fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'render: {model: fake}\nscenes:\n  - ["a park", "a fox sits"]\n  - ["a street", "it walks"]\n'
    films = ablation.plan_films(
        parse_story("foxes.yaml", text.encode()), "foxes", 1, ablation.pick_variants("full"), Overrides()
    )

    def ablated() -> str:
        said: list[str] = []
        ablation.render_films(films, tmp_path, FakeEngine(), lambda label: nullcontext(Silent()), said.append)
        return said[0]

    assert "2 of 2 scenes rendered" in ablated()
    assert "0 of 2 scenes rendered" in ablated()
    changed = edited("storyreel.method.blending", blending)
    monkeypatch.setattr(keys, "recipe_of", partial(recipe_of, read=changed))
    assert "2 of 2 scenes rendered" in ablated()
