"""What other packages add: the package tests/data/plugin, found by its entry points or named by --plugin."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from storyreel.cli.app import run
from storyreel.engine import PluggedScorer
from storyreel.errors import MissingError, ScriptError, UsageError
from storyreel.film.keys import film_facts, film_keys
from storyreel.models.specs import find_model, model_names
from storyreel.plugins import Plugin, offered, using
from storyreel.rendering import render
from storyreel.story.plan import Plan
from tests.conftest import ROOT, VERSIONS, FakeEngine, Silent, plan_of

PACKAGE = ROOT / "tests" / "data" / "plugin"
STORY = """\
render: {model: fake, seed: 5}
scenes:
  - ["a park", "a fox sits"]
  - ["a park", "it walks"]
"""
OF_MODEL: dict[str, Any] = {
    "model": {"name": "fake"},
    "versions": VERSIONS,
    "recipe": {"latents": {}, "pictures": {}},
}


@pytest.fixture(autouse=True)
def no_weights(fresh_install: None) -> None:
    """Nothing is scored but what needs no weights."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that modules are imported from, with nothing in it; what is imported is forgotten again."""
    place = tmp_path / "site"
    place.mkdir()
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield place
    for name in set(sys.modules) - before:
        if str(place) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def installed(folder: Path) -> Path:
    """The package, installed."""
    shutil.copytree(PACKAGE, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "foxes.yaml"
    path.write_text(STORY)
    return path


def install(folder: Path, code: str, points: str, name: str = "mine") -> None:
    """Write a package of one module with entry points, "kind: name = object"."""
    (folder / f"{name}.py").write_text(code)
    about = folder / f"{name}-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    kind, _, point = points.partition(": ")
    (about / "entry_points.txt").write_text(f"[storyreel.{kind}]\n{point}\n")


def facts_of(plan: Plan) -> dict[str, Any]:
    return film_facts(plan, OF_MODEL, "cpu")


def keys_of(*method: str) -> tuple[str, ...]:
    plan = plan_of(STORY, method=method)
    return film_keys(plan, facts_of(plan)).latents


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "foxes" / "manifest.json").read_text())
    return manifest


@pytest.mark.usefixtures("fake_model")
class TestKeys:
    def test_the_source_of_what_a_film_uses_is_in_its_keys(self, installed: Path) -> None:
        before = keys_of("blending=ramp")
        assert before[0] != keys_of()[0]
        init = installed / "ramps" / "__init__.py"
        text = init.read_text()
        init.write_text(text.replace('"""Put a lead', '"""Put another lead') + "# a comment")
        assert keys_of("blending=ramp") == before  # what is done is the same
        init.write_text(init.read_text().replace("1 / count, 1,", "0.5, 1,"))
        changed = keys_of("blending=ramp")
        assert changed[0] != before[0]
        curves = installed / "ramps" / "curves.py"  # which the module imports
        curves.write_text(curves.read_text().replace("share**2", "share**3"))
        assert keys_of("blending=ramp")[0] != changed[0]

    def test_films_that_use_none_are_what_they_were(self, installed: Path) -> None:
        here = keys_of()
        assert "plugins" not in facts_of(plan_of(STORY))
        shutil.rmtree(installed / "ramps-1.2.dist-info")
        sys.path.append(str(installed / "elsewhere"))  # so that it is looked up again
        try:
            assert not offered("blendings", ())
            assert keys_of() == here
        finally:
            sys.path.pop()
        assert not {"levels", "scorer"} & plan_of(STORY).settings.method.model_dump().keys()

    def test_facts_name_the_object_and_the_files(self, installed: Path) -> None:
        plan = plan_of(STORY, method=("blending=ramp", "levels=falling", "scorer=brightness"))
        plugins = facts_of(plan)["plugins"]
        assert {name: one["place"] for name, one in plugins.items()} == {
            "blendings.ramp": "ramps:ramp",
            "schedulers.falling": "ramps:falling",
            "scorers.brightness": "ramps:Brightness",
        }
        assert plugins["blendings.ramp"]["sources"].keys() == {"ramps.py", "ramps/curves.py"}


class TestFilms:
    def rendered(self, tmp_path: Path, engine: FakeEngine, *method: str) -> bytes:
        plan = plan_of(STORY, method=method)
        out = tmp_path / "_".join(["out", *method])
        return render(plan, "foxes", out, engine, Silent()).film.read_bytes()

    def test_a_formula_takes_the_place_of_the_lead(
        self, installed: Path, tmp_path: Path, fake_engine: FakeEngine
    ) -> None:
        latents = []
        for name in ("lead", "ramp"):
            self.rendered(tmp_path, fake_engine, f"blending={name}", "similarity=false")
            (path,) = (tmp_path / f"out_blending={name}_similarity=false").rglob("02*.safetensors")
            latents.append(load_file(path)["latents"])
        assert latents[0].shape == latents[1].shape
        assert not torch.equal(*latents)
        plan = plan_of(STORY, method=("blending=ramp",))
        assert [seam.transition for seam in plan.seams] == ["continue"]
        assert plan.given(plan.segments[1]) == plan_of(STORY).given(plan.segments[1]) != ()
        assert "blendings.ramp" in manifest_of(tmp_path / "out_blending=ramp_similarity=false")["plugins"]

    def test_noise_levels_are_those_that_are_stepped_through(
        self, installed: Path, tmp_path: Path, fake_engine: FakeEngine
    ) -> None:
        self.rendered(tmp_path, fake_engine, "levels=falling", "blending=none", "similarity=false")
        assert fake_engine.fake is not None
        seen = [sigma for sigma, _ in fake_engine.fake.predicted]
        assert seen == pytest.approx([1, 1 - 1 / 9, 1 - 4 / 9] * 2)

    def test_a_scorer_weighs_the_prompts(
        self, installed: Path, tmp_path: Path, fake_engine: FakeEngine
    ) -> None:
        asked = ("weighting=true", "temperature=1", "score_below=1")
        weights = []
        for method in (asked, (*asked, "scorer=brightness")):
            self.rendered(tmp_path, fake_engine, *method)
            manifest = manifest_of(tmp_path / "_".join(["out", *method]))
            weights.append(manifest["segments"][0]["decided"]["prompt_weights"])
        assert weights[0] != weights[1]

    def test_a_model_is_one_more_of_the_table(
        self,
        folder: Path,
        fake_engine: FakeEngine,
        story: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        code = "from dataclasses import replace\nfrom storyreel.models.specs import MODELS\n"
        code += "SPEC = replace(MODELS['fake'], name='own', title='my own', steps=2)\n"
        install(folder, code, "models: own = mine:SPEC")
        assert model_names()[-1] == "own"
        assert find_model("own").steps == 2
        assert run(["models", "own"]) == 0
        assert "own: my own" in capsys.readouterr().out
        assert run(["render", str(story), "--model", "own", "--out", str(tmp_path / "out")]) == 0
        manifest = manifest_of(tmp_path / "out")
        assert (manifest["model"]["name"], manifest["settings"]["steps"]) == ("own", 2)


class TestMetrics:
    def test_they_are_in_tables_and_json_under_their_names(
        self,
        installed: Path,
        story: Path,
        tmp_path: Path,
        fake_engine: FakeEngine,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out"
        init = installed / "ramps" / "__init__.py"
        init.write_text(
            init.read_text().replace("    return float(b", "    print('called')\n    return float(b")
        )
        ablate = ["ablate", str(story), "--seeds", "1", "--variants", "full,ramp", "--out", str(out)]
        assert run(ablate) == 0
        told = capsys.readouterr().out
        assert "ramp" in told
        assert "redness" in told
        assert "called" not in told
        assert run(["eval", str(out), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert list(report["summary"]) == [str(out / "full"), str(out / "ramp")]
        for film in report["films"]:
            scores = film["scores"]
            assert [scene["redness"] for scene in scores["scenes"]] == [0.0, 0.0]  # greys
            assert scores["film"]["redness"] == 0.0
            (seam,) = scores["seams"]
            assert scores["film"]["leap"] == seam["leap"]
        assert report["metrics"]["redness"]["status"] == "plugin"
        assert report["plugins"]["leap"]["place"] == "ramps:LEAP"

    def test_scores_are_kept_until_their_source_changes(
        self, installed: Path, story: Path, tmp_path: Path, fake_engine: FakeEngine
    ) -> None:
        assert run(["render", str(story), "--out", str(tmp_path / "out")]) == 0
        film = tmp_path / "out" / "foxes"
        kept = []
        for channel in (2, 2, 1):
            init = installed / "ramps" / "__init__.py"
            init.write_text(init.read_text().replace("[..., 2]", f"[..., {channel}]"))
            assert run(["eval", str(film)]) == 0
            kept.append(json.loads((film / "scores.json").read_text())["key"])
        assert kept[0] == kept[1] != kept[2]


class TestNamed:
    CODE = """\
def same(x, lead, weights, noise, sigma):
    print("called")
    return x

STORYREEL = {"blendings": {"same": same}}
"""

    @pytest.mark.parametrize("named", ["formulas", "FILE", "FILE that is found"])
    def test_a_module_or_a_file_counts_for_one_command(
        self, named: str, folder: Path, story: Path, tmp_path: Path, fake_engine: FakeEngine
    ) -> None:
        place = tmp_path / "anywhere" if named == "FILE" else folder  # as python -m has the present one
        place.mkdir(exist_ok=True)
        (place / "formulas.py").write_text(self.CODE)
        word = named if named == "formulas" else str(place / "formulas.py")
        asked = ["render", str(story), "--out", str(tmp_path / "out"), "--method", "blending=same"]
        try:
            assert run([*asked, "--plugin", word]) == 0
            assert run(asked) == 2
        finally:
            sys.modules.pop("formulas", None)
        (plugin,) = manifest_of(tmp_path / "out")["plugins"].values()
        assert (plugin["place"], [*plugin["sources"]]) == ("formulas:same", ["formulas.py"])

    def test_what_it_prints_is_no_result(
        self, folder: Path, story: Path, fake_model: object, capsys: pytest.CaptureFixture[str]
    ) -> None:
        install(folder, "print('one')\n" + self.CODE, "blendings: own = mine:same")
        (folder / "named.py").write_text("print('two')\n" + self.CODE)
        story.write_text(STORY.replace("seed: 5", "method: {blending: own}"))
        assert run(["validate", str(story), "--json", "--plugin", "named"]) == 0
        told = capsys.readouterr()
        assert json.loads(told.out)
        assert {"one", "two"} <= {*told.err.split()}
        offered("blendings", ())["own"].function()(0, 1, 2, 3, 4)
        assert capsys.readouterr() == ("", "called\n")

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            ("STORYREEL = {'blendings': {'r': 7}}\n", "is not a function of (x, lead"),
            ("STORYREEL = {'metrics': {'r': 7}}\n", "is not a Measure"),
            ("STORYREEL = {'models': {'r': 7}}\n", "is not a ModelSpec"),
            ("raise SystemExit(0)\n", "cannot be imported: SystemExit"),
        ],
    )
    def test_all_that_it_offers_is_looked_at_first(
        self,
        code: str,
        words: str,
        folder: Path,
        story: Path,
        fake_model: object,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (folder / "named.py").write_text(code)
        assert run(["validate", str(story), "--plugin", "named"]) in (2, 69)
        assert words in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["", "..", "./p.txt", "p.txt"])
    def test_what_is_neither_a_module_nor_a_file(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "p.txt").write_text(self.CODE)
        with pytest.raises(UsageError, match=r"nor a file that ends in \.py"), using([name]):
            pass

    def test_jobs_are_given_it(
        self,
        folder: Path,
        story: Path,
        tmp_path: Path,
        fake_model: object,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "my_formulas.py").write_text(self.CODE)
        try:
            assert run(["submit", str(story), "--plugin", "my_formulas.py", "--dry-run"]) == 0
        finally:
            sys.modules.pop("my_formulas", None)
        assert f"--plugin={tmp_path / 'my_formulas.py'}" in capsys.readouterr().out


FORMULA = "blendings: ramp = mine:ramp", "blending=ramp"
LEVELS = "schedulers: own = mine:own", "levels=own"
SCORER = "scorers: own = mine:own", "scorer=own"
SCORING = (
    "class own:\n"
    "    def __init__(self, device): ...\n"
    "    def embed_texts(self, prompts): return {}\n"
    "    def embed_pictures(self, pictures): ...\n"
)
WRONG = [
    (*FORMULA, "import nothing_like_this\n", "No module named"),
    (*FORMULA, "raise RuntimeError('first\\nsecond')\n", "RuntimeError: first"),
    (*FORMULA, "raise SystemExit(0)\n", "cannot be loaded (mine:ramp): SystemExit"),
    (*FORMULA, "def ramp(*given): raise SystemExit(0)\n", "fails: SystemExit"),
    (*FORMULA, "", "has no attribute 'ramp'"),
    (*FORMULA, "ramp = 3\n", "is not a function of (x, lead"),
    (*FORMULA, "def ramp(x): ...\n", "too many positional"),
    (*FORMULA, "def ramp(*given): return given[1]\n", "for latents (1, 48,"),
    (*FORMULA, "def ramp(*given): given.x\n", "fails: AttributeError"),
    ("blendings: lead = mine:ramp", "blending=lead", "", "the name of one of storyreel's own"),
    (*LEVELS, "def own(steps, tokens): return [1, 0]\n", "2 numbers: 1, 0"),
    (*LEVELS, "def own(steps, tokens): return [1, 1, 1, 0]\n", "fall from 1"),
    (*LEVELS, "def own(steps, tokens): return 1 / 0\n", "ZeroDivisionError"),
    (*LEVELS, "def own(steps, tokens): raise SystemExit(0)\n", "for 3 steps: SystemExit"),
    ("scorers: own = mine:own", "scorer=own", "def own(device): raise SystemExit(0)\n", "fails: SystemExit"),
    ("scorers: own = mine:own", "scorer=own", "def own(device): return 3\n", "a int without embed_texts"),
    (*SCORER, SCORING.format("1 / 0"), "scorer 'own' of package mine 1 fails: ZeroDivisionError"),
    (*SCORER, SCORING.format("exit(0)"), "fails: SystemExit"),
    (*SCORER, SCORING.format("[1.0]"), "embed_texts gives list, not vectors"),
    ("models: mini = mine:own", "beta=0", "own = 3\n", "the name of one of storyreel's own"),
]


@pytest.mark.parametrize(("points", "method", "code", "words"), WRONG)
def test_what_is_wrong_with_one_is_said_in_one_error(
    points: str,
    method: str,
    code: str,
    words: str,
    folder: Path,
    story: Path,
    tmp_path: Path,
    fake_engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(folder, code, points)
    asked = ["render", str(story), "--out", str(tmp_path / "out"), "--method", method]
    assert run(asked) in (2, 69)
    told = capsys.readouterr().err
    assert words in told
    assert told.count("error: ") == 1
    assert "Traceback" not in told
    assert not list(tmp_path.rglob("*.mp4"))


def test_what_a_scorer_prints_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    class Talking:
        def embed_texts(self, prompts: list[str]) -> torch.Tensor:
            print("at work")
            return torch.ones(len(prompts), 4)

    plugin = Plugin("scorers", "own", "mine", "mine:own", "a test", lambda: None)
    assert PluggedScorer(plugin, Talking()).embed_texts(["a fox", "a dog"]).shape == (2, 4)
    assert capsys.readouterr() == ("", "at work\n")


MEASURE = "from storyreel.evaluation.metrics import Measure\nOWN = Measure({}, 't', 'u', 's')\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("OWN = 3\n", "is not a Measure"),
        (MEASURE.format("lambda: 0.0"), "(pictures, scene, action)"),
        (MEASURE.format("3"), "cannot be loaded"),
    ],
)
def test_a_metric_that_is_none_is_refused_before_films_are_made(
    code: str,
    words: str,
    folder: Path,
    story: Path,
    tmp_path: Path,
    fake_engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(folder, code, "metrics: own = mine:OWN")
    assert run(["ablate", str(story), "--seeds", "1", "--out", str(tmp_path / "out")]) in (2, 69)
    assert words in capsys.readouterr().err
    assert fake_engine.fake is None


def test_a_storys_own_fault_has_its_place(folder: Path, fake_model: object) -> None:
    install(folder, "def ramp(x): ...\n", "blendings: ramp = mine:ramp")
    with pytest.raises(ScriptError, match=r":1:\d+: error: blending: blending 'ramp' of package mine 1 "):
        plan_of(STORY.replace("seed: 5", "method: {blending: ramp}"))
    with pytest.raises(ScriptError, match=r"blending must be one of lead, .*, ramp, not 'ram'"):
        plan_of(STORY.replace("seed: 5", "method: {blending: ram}"))


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (None, MissingError, "No module named 'named'"),
        ("import nothing_like_this\n", MissingError, "No module named 'nothing_like_this'"),
        ("", UsageError, "has no STORYREEL"),
        ("STORYREEL = {'blending': {'a': 3}}\n", UsageError, "unknown kind 'blending'"),
        ("STORYREEL = 3\n", UsageError, "STORYREEL is of type int"),
        ("STORYREEL = {}\n", UsageError, "STORYREEL is empty"),
        ("STORYREEL = {3: {}, 'metrics': {}}\n", UsageError, "unknown kind 3"),
        ("STORYREEL = {'metrics': 'x'}\n", UsageError, "of 'metrics' is of type str"),
        ("STORYREEL = {'metrics': {3: 'x'}}\n", UsageError, "3 among the names of 'metrics'"),
    ],
)
def test_what_is_named_and_is_no_plugin(
    code: str | None, error: type[Exception], words: str, folder: Path
) -> None:
    if code is not None:
        (folder / "named.py").write_text(code)
    with pytest.raises(error, match=words), using(["named"]):
        pass


def test_two_that_offer_one_name_are_refused(installed: Path) -> None:
    install(installed, "", "blendings: ramp = mine:ramp")
    with pytest.raises(UsageError, match=r"blending 'ramp' of package .* has the name of one of package"):
        offered("blendings", ())


def test_nothing_is_imported_that_is_not_used(
    folder: Path, story: Path, fake_model: object, capsys: pytest.CaptureFixture[str]
) -> None:
    install(folder, "raise RuntimeError('imported')\n", "blendings: ramp = mine:ramp")
    for words in (["--help"], ["render", "--help"], ["validate", str(story)], ["models"]):
        assert run(words) == 0
    assert "mine" not in sys.modules


def test_the_example_formula_is_the_lead_where_it_is_shown_next(installed: Path) -> None:
    formula = offered("blendings", ())["ramp"].function()
    x, lead = torch.zeros(1, 2, 4, 1, 1), torch.ones(1, 2, 2, 1, 1)
    found = formula(x, lead, torch.ones(1, 1, 2, 1, 1), torch.zeros_like(lead), 0.0)
    assert found[0, 0, :, 0, 0].tolist() == [0.5, 1.0, 0.0, 0.0]
