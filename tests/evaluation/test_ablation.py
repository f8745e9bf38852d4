"""Ablations with a fake model: which films are made, and that they are scored as `storyreel eval` does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor

from storyreel.benchmark.whole_films import Cost
from storyreel.cli.app import run
from storyreel.cli.results import result_schema
from storyreel.errors import MissingError, NumericsError, UsageError
from storyreel.evaluation.ablation import PlannedFilm, pick_variants, plan_films
from storyreel.evaluation.encoders import Encoders
from storyreel.evaluation.variants import VARIANTS
from storyreel.method.settings import PARTS
from storyreel.models.specs import MINI_WEIGHTS, MODELS, ModelSpec
from storyreel.rendering import render
from storyreel.stopping import Stop
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides
from storyreel.story.schema import parse_story
from tests.conftest import FakeAdapter, FakeEngine

TEXT = """\
render: {model: fake, seed: 5}
scenes:
  - ["a park", "a fox sits"]
  - ["a park", "it walks"]
  - {scene: "a bus", action: "it looks", transition: cut}
"""


def planned(seeds: int = 2, names: str = "", text: str = TEXT, **options: Any) -> list[PlannedFilm]:
    story = parse_story("foxes.yaml", text.encode())
    return plan_films(story, "foxes", seeds, pick_variants(names), Overrides(**options))


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a fresh install."""
    monkeypatch.setattr(Encoders, "folder", lambda self, name: None)


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "foxes.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def engine(fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    engine = FakeEngine()
    monkeypatch.setattr("storyreel.rendering.Engine", lambda device, stop: engine)
    return engine


def ablated(story: Path, out: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert run(["ablate", str(story), "--out", str(out), "--json", *options]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    jsonschema.validate(report, result_schema("ablate"))
    return report


@pytest.mark.usefixtures("fake_model")
class TestPlanning:
    def test_every_variant_has_the_same_seeds_and_its_own_method(self) -> None:
        films = planned(seeds=2)
        assert [(f.seed, f.variant.name) for f in films] == [(s, v.name) for s in (5, 6) for v in VARIANTS]
        assert all(f.plan.settings.seed == f.seed for f in films)
        methods = {film.variant.name: film.plan.settings.method for film in films if film.seed == 5}
        full = methods["full"]
        assert (full.weighting, full.blending, full.similarity, full.identity) == (True, "lead", True, True)
        for name in ("dipw", "twb", "identity", "sar", "all"):
            assert methods[f"without {name}"] == full.without({name} if name != "all" else {*PARTS})
        ways = ("crossfade", "continuation", "published")
        assert [methods[way].blending for way in ways] == list(ways)
        alone = methods["scene alone"]
        assert alone == full.without({*PARTS}).model_copy(update={"prompt": "scene"})

    def test_the_command_line_wins_over_the_storys_seed(self) -> None:
        assert {f.seed for f in planned(seeds=2, seed=0)} == {0, 1}
        unseeded = TEXT.replace(", seed: 5", "")
        assert {f.seed for f in planned(seeds=3, text=unseeded)} == {0, 1, 2}
        with pytest.raises(UsageError, match="more than there are"):
            planned(seeds=2, seed=2**63 - 1)

    def test_options_hold_in_every_variant(self) -> None:
        films = planned(seeds=1, steps=2, method=("lead_noise=1",))
        assert {f.plan.settings.steps for f in films} == {2}
        assert {f.plan.settings.method.lead_noise for f in films} == {1}


def test_variants_are_picked_by_name_in_our_order() -> None:
    assert pick_variants("") == VARIANTS
    assert [v.name for v in pick_variants("without all, full,without-all")] == ["full", "without all"]
    with pytest.raises(UsageError, match="unknown variant 'without clip'") as caught:
        pick_variants("full,without clip")
    assert (
        "full, without-dipw, without-twb, without-identity, without-sar, without-all" in caught.value.remedy
    )
    assert caught.value.exit_code == 2


def test_an_ablation_leaves_a_run_of_films_for_every_variant(
    story: Path, tmp_path: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    report = ablated(story, out, capsys, "--seeds", "2")
    runs = [str(out / variant.slug) for variant in VARIANTS]
    assert list(report["summary"]) == runs
    assert [film["run"] for film in report["films"]] == [run for run in runs for _ in range(2)]
    for film in report["films"]:
        path = Path(film["run"]) / film["name"] / "foxes.mp4"
        assert film["file"] == str(path)
        assert path.is_file()
        # The cut is nobody's seam; the other is one even where nothing blends.
        scores = film["scores"]
        assert [(s["after"], s["blended"]) for s in scores["seams"]] == [(1, True), (2, False)]
        assert len(scores["scenes"]) == 3
        manifest = json.loads(path.with_name("manifest.json").read_text())
        leads = [s["decided"]["lead"] for s in manifest["segments"]]
        assert scores["film"]["forwards"] == 3 * 3
        assert scores["film"]["latents"] == sum(leads) + 3 * 2
        assert scores["film"]["render_seconds"] == sum(s["seconds"] for s in manifest["segments"])
        assert scores["film"]["scene_fit"] is scores["film"]["characters"] is None
    latents = {Path(run).name: report["summary"][run]["latents"]["mean"] for run in runs}
    assert latents["without-all"] == latents["without-twb"] == 9 < latents["without-sar"]
    assert report["summary"][runs[0]]["latents"]["count"] == 2
    assert list(report["differences"]) == runs[1:]
    assert report["differences"][runs[-1]]["latents"]["pairs"] == 2

    before = engine.asked
    assert ablated(story, out, capsys, "--seeds", "2") == report
    assert engine.asked == before


def test_the_command_prints_tables_or_json_and_nothing_else_on_stdout(
    story: Path, tmp_path: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ablate", str(story), "--seeds", "2", "--out", str(tmp_path / "out")]
    command += ["--variants", "full,without-twb"]
    assert run(command) == 0
    printed = capsys.readouterr()
    assert "Mean ± standard deviation of 2 films a column" in printed.out
    words = "Differences to full are paired by story and seed: 95 % interval over 2 seeds of one story."
    assert words in " ".join(printed.out.split())  # as wide as its table
    assert "│ motion  " in printed.out
    assert "right place" not in printed.out  # nobody knows
    heads = [line.replace("┃", " ").split() for line in printed.out.splitlines() if "without-twb" in line]
    assert heads == [["kind", "full", "without-twb"], ["without-twb"]]
    assert "clip-vit-base-patch32 is not here: storyreel pull eval" in printed.err
    assert "foxes, without twb, seed 6: 3 of 3 scenes rendered" in printed.err
    assert "rendered" not in printed.out


def test_a_film_that_fails_leaves_the_others_alone(
    story: Path,
    tmp_path: Path,
    engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(plan: Plan, name: str, folder: Path, *others: Any) -> Any:
        if folder.parent.name == "full" and folder.name == "seed-5":
            raise NumericsError("no picture")
        return render(plan, name, folder, *others)

    monkeypatch.setattr("storyreel.evaluation.ablation.render", failing)
    command = ["ablate", str(story), "--seeds", "2", "--out", str(tmp_path / "out"), "--json"]
    assert run([*command, "--variants", "full,without-twb"]) == NumericsError.exit_code
    printed = capsys.readouterr()
    films = [
        (Path(film["run"]).name, film["name"].split("/")[0]) for film in json.loads(printed.out)["films"]
    ]
    assert films == [("full", "seed-6"), ("without-twb", "seed-5"), ("without-twb", "seed-6")]
    assert "foxes, full, seed 5: error: no picture" in printed.err


def test_a_dry_run_says_what_would_be_rendered(
    story: Path, tmp_path: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = ablated(story, tmp_path / "out", capsys, "--seeds", "2", "--dry-run")
    assert list(plans) == [f"foxes, {v.name}, seed {seed}" for seed in (5, 6) for v in VARIANTS]
    assert {len(plan["segments"]) for plan in plans.values()} == {3}
    assert engine.asked == 0
    assert not (tmp_path / "out").exists()


def test_eval_and_ablate_give_the_same_numbers(
    story: Path,
    tmp_path: Path,
    engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`eval OUT` compares the variants as the same runs, also where it has to look at them itself."""
    story.write_text("cast: {first: {name: a fox, possessive: its}}\n" + TEXT.replace("a fox", "{first}"))
    decode = FakeAdapter.decode

    def moving(adapter: FakeAdapter, latents: Tensor) -> Tensor:
        frames = decode(adapter, latents)
        return frames // 2 + 3 * torch.arange(len(frames), dtype=torch.uint8).view(-1, 1, 1, 1)

    monkeypatch.setattr(FakeAdapter, "decode", moving)
    spec = replace(MODELS["fake"], strangeness=None)  # or nobody would be told apart in greys
    monkeypatch.setitem(MODELS, "fake", spec)
    shutil.copytree(MINI_WEIGHTS / "scorer", spec.weights / "scorer")
    out, page = tmp_path / "out", str(tmp_path / "page.html")
    ours = ablated(story, out, capsys, "--seeds", "1", "--variants", "full,without-all")
    for kept in out.rglob("scores.json"):
        kept.unlink()
    assert run(["eval", str(out), "--report", page, "--json"]) == 0
    theirs = json.loads(capsys.readouterr().out)
    assert ours.pop("command")[:2] == ["storyreel ablate", str(story)]
    assert theirs.pop("command") == ["storyreel eval", str(out), "--report", page, "--json"]
    assert ours == theirs
    numbers = ours["films"][0]["scores"]["film"]
    assert min(numbers[name] for name in ("seam_ratio", "largest_step", "motion")) > 0
    assert None not in (numbers["scene_fit"], numbers["told_apart"])


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--variants", "full,plain"], 2, "without-sar"),
        (["--seeds", "0"], 2, "seeds"),
        (["--device", "tpu"], 2, "unknown device"),
        (["--seconds", "99"], 2, "nearest it can"),
        (["--method", "bogus=1"], 2, "KEY=VALUE"),
        (["bad.yaml"], 65, "bad.yaml:1"),
        (["elsewhere/foxes.yaml"], 2, "Rename one"),
        (["--out", "foxes.yaml"], 73, "not a folder"),
        (["--published"], 2, "Add --table 3"),
        (["--format", "latex"], 2, "Add --table 3"),
        (["--table", "4"], 2, "'2', '3'"),
        (["--table", "3", "--format", "latex", "--json"], 2, "exclude each other"),
        (["--table", "3", "--columns", "motion,nope"], 2, "unknown metric 'nope'"),
        (["--table", "2", "--columns", "motion"], 2, "is of --table 3"),
        (["--table", "3", "--to", "table.doc"], 2, ".csv, .json, .md, .tex"),
        (["--table", "3", "--to", "nowhere/table.tex"], 2, "Make it"),
        (["--table", "3", "--to", "paper.tex"], 2, "no table of storyreel's"),
        (["--table", "2", "--video", "vlogger=elsewhere"], 2, "exclude each other"),
        (["--variants", "full,stock"], 2, "unknown variant 'stock'"),
        (["--row", "mine"], 2, "--row mine:overlap=4"),
        (["--row", "mine:bogus=1"], 2, "bogus"),
        (["--row", "full:overlap=1"], 2, "there is a row 'full' already"),
        (["--row", "a/b:overlap=1"], 2, "cannot be a film's name"),
        (["--video", "vlogger"], 2, "--video NAME=FOLDER"),
        (["--video", "vlogger=nowhere"], 2, "nowhere is not a folder"),
        (["--video", "full=elsewhere"], 2, "there is a row 'full' already"),
        (["--video", "vlogger=elsewhere"], 2, "Name the files as the stories are: foxes"),
        (["--weights-dir", "nowhere"], 2, "nowhere is not a folder"),
    ],
    ids=str,
)
def test_mistakes_cost_no_work(
    more: list[str],
    code: int,
    words: str,
    story: Path,
    tmp_path: Path,
    engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("scenes: 1\n")
    (tmp_path / "paper.tex").write_text("\\documentclass{article}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "foxes.yaml").write_text(TEXT)
    assert run(["ablate", "foxes.yaml", *more]) == code
    assert words in capsys.readouterr().err
    assert engine.asked == 0
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "paper.tex").read_text() == "\\documentclass{article}"


def test_table_3_is_printed_and_written_in_every_format(
    story: Path, tmp_path: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    again = story.with_name("dogs.yaml")
    again.write_text(TEXT.replace("fox", "dog"))
    out, files = tmp_path / "out", [tmp_path / f"table{end}" for end in (".csv", ".json", ".md", ".tex")]
    command = ["ablate", str(story), str(again), "--seeds", "1", "--out", str(out), "--table", "3"]
    command += ["--variants", "full,without-twb", "--row", "mine:blending=continuation,identity=false"]
    command += ["--published", "--columns", "latents"]
    assert run([*command, *(f"--to={path}" for path in files)]) == 0
    printed = capsys.readouterr()
    assert "Table 3. Quality: The paper's measures" in printed.out
    assert "Mean ± sample standard deviation over 2 stories." in printed.out
    for words in ("no weights", "no judge", "without TWB", "mine", "0.2889 ± 0.0133", "arXiv 2503.06310"):
        assert words in printed.out
    assert (out / "mine" / "seed-5" / "dogs" / "dogs.mp4").is_file()
    result = json.loads(files[1].read_text())
    assert result["command"] == ["storyreel ablate", *command[1:], *(f"--to={path}" for path in files)]
    assert {"storyreel", "versions", "device", "weights", "metrics", "summary", "films"} <= {*result}
    assert all(len(film["sha256"]) == len(film["story_sha256"]) == 64 for film in result["films"])
    cells = {row["name"]: row["cells"] for row in result["table"]["rows"] if not row["published"]}
    assert list(cells) == ["full", "without-twb", "mine"]
    for name, of in cells.items():
        summary, difference = result["summary"][str(out / name)], result["differences"].get(str(out / name))
        for key in ("motion", "latents", "double_exposure"):
            assert (of[key]["mean"], of[key]["std"]) == (summary[key]["mean"], summary[key]["std"])
            assert of[key]["difference"] == (difference and difference[key])
    assert cells["full"]["latents"]["mean"] > cells["without-twb"]["latents"]["mean"]
    texts = [path.read_text() for path in files]
    for kind, text in (("csv", texts[0]), ("markdown", texts[2]), ("latex", texts[3])):
        assert run([*command, "--format", kind]) == 0  # nothing is rendered anew
        assert capsys.readouterr().out == text
    assert run([*command, "--json", f"--to={files[3]}"]) == 0  # a table of ours is replaced
    assert json.loads(capsys.readouterr().out)["table"] == result["table"]


@pytest.mark.usefixtures("ffmpeg")
def test_films_that_something_else_made_stand_beside_ours(
    story: Path, tmp_path: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Our own film under another name has its numbers, but for what only a render measures."""
    out, folder = tmp_path / "out", tmp_path / "vlogger"
    variants = ["--seeds", "1", "--variants", "full"]
    ours = ablated(story, out, capsys, *variants)
    folder.mkdir()
    shutil.copy(out / "full" / "seed-5" / "foxes" / "foxes.mp4", folder / "foxes.mp4")
    (folder / "notes.txt").write_text("what else lies there")
    asked = engine.asked
    report = ablated(story, out, capsys, *variants, "--video", f"vlogger={folder}", "--table", "3")
    assert engine.asked == asked
    assert {run: report["summary"][run] for run in ours["summary"]} == ours["summary"]
    rows = {row["name"]: row["cells"] for row in report["table"]["rows"]}
    assert list(rows) == ["full", "vlogger"]
    for key in ("double_exposure", "motion"):
        assert rows["vlogger"][key]["mean"] == rows["full"][key]["mean"] is not None
        assert rows["vlogger"][key]["difference"]["pairs"] == 1
    assert rows["full"]["sides"]["mean"] is not None
    assert rows["vlogger"]["sides"]["mean"] is None

    (folder / "foxes.mp4").write_bytes(b"no film")
    assert run(["ablate", str(story), "--out", str(out / "new"), "--video", f"vlogger={folder}"]) != 0
    assert not (out / "new").exists()


def test_table_2_counts_every_film_of_every_row(
    story: Path,
    tmp_path: Path,
    fake_model: ModelSpec,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[tuple[bool, str, int]] = []

    def measured(plan: Plan, stock: bool, device: str, out: Path, stop: Stop) -> Cost:
        made.append((stock, device, plan.settings.seed))
        return Cost(10.0 - stock, 0.5, 0.5, plan.forwards, plan.latents, "a card")

    monkeypatch.setattr("storyreel.benchmark.whole_films.measured", measured)
    command = ["ablate", str(story), "--out", str(tmp_path / "out"), "--table", "2", "--device", "cpu"]
    assert run([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    jsonschema.validate(report, result_schema("ablate"))
    rows = {row["name"]: row["cells"] for row in report["table"]["rows"]}
    parts = ["full", "without-dipw", "without-twb", "without-identity", "without-sar", "without-all"]
    assert list(rows) == [*parts, "stock"]
    assert made == [(name == "stock", "cpu", 5) for name in rows]  # of one seed
    assert rows["stock"]["seconds"]["difference"]["mean"] == -1
    assert rows["full"]["latents"]["mean"] > rows["without-all"]["latents"]["mean"]
    assert report["command"] == ["storyreel ablate", *command[1:], "--json"]
    assert {"torch", "diffusers", "ffmpeg", "python"} <= {*report["versions"]}
    assert report["models"]["fake"]["weights"]
    assert [film["name"] for film in report["films"]] == ["seed-5/foxes"] * len(rows)

    made.clear()
    assert run([*command, "--seeds", "2", "--variants", "stock,full,crossfade", "--published"]) == 0
    printed = capsys.readouterr()
    assert [seed for _, _, seed in made] == [5, 5, 5, 6, 6, 6]
    assert "without SAR (published)" in printed.out
    assert "a card" in printed.out
    assert "foxes, stock, seed 6: 9.0 s, 0.500 GB" in printed.err


def test_table_2_keeps_what_was_measured_where_a_film_fails(
    story: Path,
    tmp_path: Path,
    fake_model: ModelSpec,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measured(plan: Plan, stock: bool, device: str, out: Path, stop: Stop) -> Cost:
        if stock or fails_all:
            raise MissingError("no memory left", "Take less.")
        return Cost(9.0, 0.5, 0.5, 4, 3, "a card")

    fails_all = False
    monkeypatch.setattr("storyreel.benchmark.whole_films.measured", measured)
    command = ["ablate", str(story), "--out", str(tmp_path / "out"), "--table", "2", "--device", "cpu"]
    command += ["--variants", "stock,full", "--json"]
    assert run(command) == MissingError.exit_code
    printed = capsys.readouterr()
    assert [film["run"] for film in json.loads(printed.out)["films"]] == ["full"]
    assert "foxes, stock, seed 5: not measured" in printed.err
    assert "no memory left" in printed.err
    fails_all = True
    assert run(command) == MissingError.exit_code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("no memory left") == 1
