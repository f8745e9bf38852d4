"""Ablations with a fake model: which films are made, what is scored, and what a second run leaves alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from storyreel.cli.app import run
from storyreel.errors import StoryreelError, UsageError
from storyreel.evaluation import ablation, registry
from storyreel.evaluation.ablation import (
    METRICS,
    VARIANTS,
    Film,
    ablate,
    compare,
    film_metrics,
    pick_variants,
    plan_films,
    score,
    table_metrics,
)
from storyreel.evaluation.encoders import Encoders
from storyreel.files import file_hash
from storyreel.film import reader
from storyreel.film.reader import Facts
from storyreel.models.scorer import Scorer
from storyreel.models.specs import MINI_WEIGHTS, MODELS, ModelSpec
from storyreel.render import Engine
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import load_story, parse_story
from tests.conftest import ROOT, FakeAdapter, FakeEngine, FakeScorer, Silent
from tests.mini.test_verdicts import drawn

TEXT = """\
render: {model: fake, seed: 5}
scenes:
  - ["a park", "a fox sits"]
  - ["a street", "it walks"]
  - {scene: "a bus", action: "it looks", transition: cut}
"""
Shows = Callable[[Plan, Tensor], Path]


class Shown(Silent):
    """A progress that can be entered."""

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def planned(seeds: int = 2, names: str = "", text: str = TEXT, **options: Any) -> list[Film]:
    story = parse_story("foxes.yaml", text.encode())
    return plan_films(story, "foxes", seeds, pick_variants(names), Overrides(**options))


def made(films: list[Film], out: Path, engine: Engine) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    return ablate(films, out, engine, lambda label: Shown(), said.append), said


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every film that is read."""
    films: list[Path] = []
    read = reader.read_frames

    def remembered(path: Path, *options: Any) -> Iterator[bytes]:
        films.append(path)
        return read(path, *options)

    monkeypatch.setattr(reader, "read_frames", remembered)
    return films


@pytest.fixture
def shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Plan, Tensor], Path]:
    """Return a film that a plan's render might have left, and make it show given frames in odd chunks."""

    def show(plan: Plan, frames: Tensor) -> Path:
        chunks = [chunk.contiguous().numpy().tobytes() for chunk in frames.split(7)]
        monkeypatch.setattr(reader, "read_frames", lambda *options: iter(chunks))
        height, width = frames.shape[1:3]
        facts = Facts(width, height, plan.spec.fps, {}, ())
        monkeypatch.setattr(reader, "probe", lambda path: facts)
        film = tmp_path / "shown" / "shown.mp4"
        film.parent.mkdir(exist_ok=True)
        film.write_bytes(b"film")
        manifest = {
            "title": plan.title,
            "story": plan.story,
            "model": {"name": plan.spec.name},
            "settings": {"fps": plan.spec.fps},
            "segments": [{"start": s.start, "frames": s.frames} for s in plan.segments],
            "film": {"file": film.name, "sha256": hashlib.sha256(b"film").hexdigest()},
        }
        film.with_name("manifest.json").write_text(json.dumps(manifest))
        return film

    return show


@pytest.mark.usefixtures("fake_model")
class TestPlanning:
    def test_every_variant_has_the_same_seeds_and_its_own_method(self) -> None:
        films = planned(seeds=2)
        assert [(f.seed, f.variant.name) for f in films] == [(s, v.name) for s in (5, 6) for v in VARIANTS]
        assert all(f.plan.settings.seed == f.seed for f in films)
        methods = [film.plan.settings.method for film in films[:5]]
        assert [m.weighting for m in methods] == [True, False, True, True, False]
        assert [m.blending for m in methods] == ["joint", "joint", "none", "joint", "none"]
        assert [m.similarity for m in methods] == [True, True, True, False, False]

    def test_the_command_line_wins_over_the_storys_seed(self) -> None:
        assert {f.seed for f in planned(seeds=2, seed=0)} == {0, 1}
        unseeded = TEXT.replace(", seed: 5", "")
        assert {f.seed for f in planned(seeds=3, text=unseeded)} == {0, 1, 2}
        with pytest.raises(UsageError, match="more than there are"):
            planned(seeds=2, seed=2**63 - 1)

    def test_options_hold_in_every_variant(self) -> None:
        films = planned(seeds=1, steps=2, method=("window=1",))
        assert {f.plan.settings.steps for f in films} == {2}
        assert {f.plan.settings.method.window for f in films} == {1}


def test_variants_are_picked_by_name_in_our_order() -> None:
    assert pick_variants("") == VARIANTS
    assert [v.name for v in pick_variants("without all, full,without-all")] == ["full", "without all"]
    with pytest.raises(UsageError, match="without clip") as caught:
        pick_variants("full,without clip")
    assert "full, without-dipw, without-twb, without-sar, without-all" in caught.value.remedy
    assert caught.value.exit_code == 2


def test_an_ablation_leaves_films_and_scores(tmp_path: Path, fake_model: ModelSpec) -> None:
    report, said = made(planned(), tmp_path, FakeEngine())
    folders = {v.slug for v in VARIANTS}
    assert {p.name for p in tmp_path.iterdir()} == folders | {"fake-weights"}
    assert len(report["films"]) == len(said) == 2 * 5
    for film in report["films"]:
        path = tmp_path / film["variant"].replace(" ", "-") / f"seed-{film['seed']}" / "foxes" / "foxes.mp4"
        assert film["film"] == str(path)
        assert path.is_file()
        assert path.with_name("scores.json").is_file()
        assert set(film["metrics"]) == {m.key for m in METRICS} | set(registry.METRICS)
        assert len(film["scenes"]) == 3
        # The cut is nobody's seam; the other is one even where nothing blends.
        assert [(s["after"], s["blended"]) for s in film["seams"]] == [(1, True), (2, False)]
        assert film["metrics"]["forwards"] == 3 * 3
        manifest = json.loads(path.with_name("manifest.json").read_text())
        leads = [s["decided"]["lead"] for s in manifest["segments"]]
        assert film["metrics"]["latents"] == sum(leads) + 3 * 2
        assert film["metrics"]["seconds"] == sum(s["seconds"] for s in manifest["segments"])
        assert film["metrics"]["scene_fit"] is film["metrics"]["characters"] is None
    latents = {name: report["summary"][name]["latents"]["mean"] for name in report["summary"]}
    assert latents["without all"] == latents["without twb"] == 9 < latents["without sar"]
    assert report["summary"]["full"]["latents"]["count"] == 2
    assert set(report["differences"]) == {v.name for v in VARIANTS[1:]}
    assert report["differences"]["without all"]["latents"]["pairs"] == 2
    json.dumps(report, allow_nan=False)


def test_a_second_run_renders_and_decodes_nothing(
    tmp_path: Path, fake_model: ModelSpec, decoded: list[Path]
) -> None:
    before, _ = made(planned(), tmp_path, FakeEngine())
    assert len(set(decoded)) == 10
    decoded.clear()
    engine = FakeEngine()
    engine.scorer = lambda spec: pytest.fail("a scorer is asked for")  # type: ignore[method-assign]
    after, said = made(planned(), tmp_path, engine)
    assert (engine.asked, decoded) == (0, [])
    assert after == before
    assert all("0 of 3 scenes rendered" in words for words in said)


def test_only_what_changed_is_scored_again(
    tmp_path: Path, fake_model: ModelSpec, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    films = planned(seeds=1, names="full,without all")
    before, _ = made(films, tmp_path, FakeEngine())
    full, plain = (Path(film["film"]) for film in before["films"])

    def scored_again() -> set[Path]:
        decoded.clear()
        assert made(films, tmp_path, FakeEngine())[0]["films"] == before["films"]
        return set(decoded)

    for damage in (b"{", b"[]", b'{"key": 1}', b""):
        full.with_name("scores.json").write_bytes(damage)
        assert scored_again() == {full}
    full.with_name("scores.json").write_bytes(plain.with_name("scores.json").read_bytes())
    assert scored_again() == {full}  # the scores of another film
    for changed in ("evaluation/seams.py", "film/reader.py", "models/scorer.py"):  # how films are looked at
        edited = ROOT / "storyreel" / changed

        def hashed(path: Path, edited: Path = edited) -> str:
            return "another" if path == edited else file_hash(path)

        monkeypatch.setattr(ablation, "file_hash", hashed)
        assert scored_again() == {full, plain}
    monkeypatch.setattr(ablation, "_judge_hashes", lambda spec: {"judge.safetensors": "other"})
    assert scored_again() == {full, plain}
    assert scored_again() == set()


def test_the_judges_code_and_weights_are_part_of_the_key(fake_model: ModelSpec) -> None:
    assert {"judge.safetensors", "judge.py", "world/places.py"} <= set(ablation._judge_hashes(fake_model))


def greys(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 64, 96, 3)


def test_scores_worked_by_hand(fake_model: ModelSpec, shows: Shows) -> None:
    """Segments of 6 frames of grey: rising by 2, a seam of 9, rising by 4, a cut, still.

    All of it is near a border, so all of it counts as inside: the median step is 3.
    """
    (film,) = planned(seeds=1, names="full")
    first, second = [10, 12, 14, 16, 18, 20], [29, 33, 37, 41, 45, 49]
    path = shows(film.plan, greys([*first, *second, *[255] * 6]))
    engine = FakeEngine()
    engine.fake_scorer = FakeScorer("a bus")
    scores = score(film.plan, path, engine)
    assert [scene["motion"] for scene in scores["scenes"]] == [2, 4, 0]
    assert scores["film"]["motion"] == 2
    seam, cut = scores["seams"]
    assert seam == {
        "after": 1,
        "blended": True,
        "seam_ratio": 3,
        "largest_step": 3,
        "characters": None,
        "same_place": None,
    }
    assert cut["seam_ratio"] == pytest.approx(206 / 3)
    assert scores["film"]["seam_ratio"] == 3  # of the seam alone
    bus = scores["scenes"][2]  # white pictures: all that its scene prompt wants, nothing of its action
    assert (bus["scene_fit"], bus["action_fit"]) == (pytest.approx(1), pytest.approx(0, abs=1e-6))
    assert scores["scenes"][0]["scene_fit"] > 0.9  # dark ones
    assert bus["shown"] == 0  # which are none of the cartoon world's


def test_a_film_that_ends_early_is_refused(fake_model: ModelSpec, shows: Shows) -> None:
    (film,) = planned(seeds=1, names="full")
    path = shows(film.plan, greys([0] * 17))
    with pytest.raises(StoryreelError, match="ends after 17 of 18 looks"):
        score(film.plan, path, FakeEngine())


def part_of_dc() -> Plan:
    story = load_story(ROOT / "stories" / "dc.yaml")
    return make_plan(story.model_copy(update={"scenes": story.scenes[2:5]}), "dc")


def test_a_known_world_is_judged(shows: Shows) -> None:
    plan = part_of_dc()
    scores = score(plan, shows(plan, torch.cat([drawn(2), drawn(3), drawn(6)])), FakeEngine())
    assert [s["characters"] for s in scores["scenes"]] == [True, True, False]
    assert [s["place"] for s in scores["scenes"]] == [True] * 3
    assert [s["same_place"] for s in scores["seams"]] == [False, True]
    metrics = film_metrics(scores)
    assert metrics["characters"] == pytest.approx(200 / 3)
    ratio = metrics["seam_ratio_same_place"]
    assert ratio == scores["seams"][1]["seam_ratio"] != metrics["seam_ratio"]
    assert metrics["largest_step_place_change"] == scores["seams"][0]["largest_step"]
    titles = [metric.title for metric in table_metrics([scores])]
    assert "seam ratio, place stays" in titles
    assert "seam ratio" not in titles


def test_nothing_is_nobody(shows: Shows) -> None:
    """Grey noise is right in no scene, though a judge would find somebody in it."""
    plan = part_of_dc()
    noise = torch.randint(90, 160, (72, 64, 96, 3), generator=torch.Generator().manual_seed(0))
    scores = score(plan, shows(plan, noise.to(torch.uint8)), FakeEngine())
    assert [(s["characters"], s["place"], s["action"]) for s in scores["scenes"]] == [(False,) * 3] * 3
    assert [s["characters"] for s in scores["seams"]] == [False, False]


def test_metrics_by_hand() -> None:
    scene = {"place": True, "action": None}
    seam = {"characters": None, "blended": True}
    own = {"seam_ratio": 2.0, "motion": 1.5, "scene_fit": None}
    scores = {
        "film": own,
        "scenes": [scene | {"characters": right} for right in (True, False, True, True)],
        "seams": [
            seam | {"seam_ratio": 1.0, "largest_step": 3.0, "same_place": True},
            seam | {"seam_ratio": 5.0, "largest_step": 4.0, "same_place": False},
            seam | {"seam_ratio": 2.0, "largest_step": 9.0, "same_place": True},
            seam | {"seam_ratio": None, "largest_step": None, "same_place": True},
            seam | {"seam_ratio": 70.0, "largest_step": 70.0, "same_place": None, "blended": False},
        ],
    }
    assert film_metrics(scores) == own | {
        "characters": 75,
        "place": 100,
        "action": None,
        "transition_characters": None,
        "seam_ratio_same_place": 1.5,
        "largest_step_place_change": 4,
        "largest_step_max": 9,
    }


def entry(story: str, seed: int, variant: str, motion: float | None) -> dict[str, Any]:
    metrics: dict[str, float | None] = {m.key: None for m in METRICS}
    return {"story": story, "seed": seed, "variant": variant, "metrics": metrics | {"motion": motion}}


def test_films_are_paired_by_story_and_seed() -> None:
    films = [entry("a", 0, "full", 1), entry("a", 1, "full", 2), entry("b", 0, "full", None)]
    # In another order, one without its pair, one whose pair has no value.
    films += [entry("a", 1, "without all", 12), entry("a", 0, "without all", 21)]
    films += [entry("b", 0, "without all", 100), entry("c", 0, "without all", 100)]
    films += [entry("d", 0, "full", 0), entry("d", 0, "without all", 5)]
    found = compare(films)
    assert found["summary"]["full"]["motion"] == {"mean": 1, "std": 1, "count": 3}
    assert found["summary"]["full"]["place"] is None
    difference = {"mean": 35 / 3, "low": 5, "high": 15, "pairs": 3, "stories": 2}
    assert found["differences"] == {
        "without all": {m.key: None for m in METRICS} | {"motion": pytest.approx(difference)}
    }
    films = [film for film in films if film["variant"] != "full"]
    assert compare(films)["differences"] == {}  # nothing to compare with


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "foxes.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def engine(fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    engine = FakeEngine()
    monkeypatch.setattr("storyreel.render.Engine", lambda device, stop: engine)
    return engine


def test_the_command_prints_a_table_or_json_and_nothing_else_on_stdout(
    story: Path, tmp_path: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ablate", str(story), "--seeds", "2", "--out", str(tmp_path / "out")]
    command += ["--variants", "full,without-twb"]
    assert run(command) == 0
    printed = capsys.readouterr()
    assert "Mean ± standard deviation of 2 films a column" in printed.out
    assert "Difference to full, 95 % interval over 2 seeds of one story" in printed.out
    rows = [line for line in printed.out.splitlines() if "right place" in line]
    assert [row.count("–") for row in rows] == [2, 1]  # unknown: of two variants, of one difference
    assert "│ seam ratio " in printed.out
    assert "foxes, without twb, seed 6: 3 of 3 scenes rendered" in printed.err
    assert "rendered" not in printed.out
    assert run([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"films", "summary", "differences", "same_films"} == set(report)
    assert [film["seed"] for film in report["films"]] == [5, 5, 6, 6]


def test_eval_and_ablate_give_the_same_numbers(
    story: Path,
    tmp_path: Path,
    engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every number of the same name, of the same film: `eval OUT` compares the variants as runs."""
    story.write_text("cast: {first: {name: a fox, possessive: its}}\n" + TEXT.replace("a fox", "{first}"))
    decode = FakeAdapter.decode

    def moving(adapter: FakeAdapter, latents: Tensor) -> Tensor:
        frames = decode(adapter, latents)
        return frames // 2 + 3 * torch.arange(len(frames), dtype=torch.uint8).view(-1, 1, 1, 1)

    monkeypatch.setattr(FakeAdapter, "decode", moving)
    spec = replace(MODELS["fake"], strangeness=None)  # or nobody would be told apart in greys
    monkeypatch.setitem(MODELS, "fake", spec)
    (spec.weights / "scorer").symlink_to(MINI_WEIGHTS / "scorer")
    monkeypatch.setattr(
        engine, "scorer", lambda spec: Scorer.load(spec.weights / "scorer", torch.device("cpu"))
    )
    monkeypatch.setattr(Encoders, "folder", lambda self, name: None)
    out = tmp_path / "out"
    variants = ["--seeds", "1", "--variants", "full,without-all"]
    assert run(["ablate", str(story), *variants, "--out", str(out), "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)
    page = str(tmp_path / "page.html")
    assert run(["eval", str(out), "--report", page, "--json"]) == 0
    theirs = json.loads(capsys.readouterr().out)
    by_file = {film["file"]: film["scores"] for film in theirs["films"]}
    assert len(by_file) == 2
    for film in ours["films"]:
        scores = by_file[film["film"]]
        assert {name: film["metrics"][name] for name in scores["film"]} == scores["film"]
        assert film["scenes"] == [
            s | dict.fromkeys(("characters", "place", "action")) for s in scores["scenes"]
        ]
        assert film["seams"] == [s | dict.fromkeys(("characters", "same_place")) for s in scores["seams"]]
        assert min(scores["film"][name] for name in ("seam_ratio", "largest_step", "motion")) > 0
        assert None not in (scores["film"]["scene_fit"], scores["film"]["told_apart"])
    full, plain = str(out / "full"), str(out / "without-all")
    assert list(theirs["summary"]) == [full, plain]
    for name, difference in theirs["differences"][plain].items():
        assert ours["differences"]["without all"][name] == difference


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--variants", "full,plain"], 2, "without-sar"),
        (["--seeds", "0"], 2, "seeds"),
        (["--device", "tpu"], 2, "no device"),
        (["--seconds", "99"], 2, "nearest it can"),
        (["--method", "bogus=1"], 2, "KEY=VALUE"),
        (["bad.yaml"], 65, "bad.yaml:1"),
        (["elsewhere/foxes.yaml"], 2, "Rename one"),
        (["--out", "foxes.yaml"], 73, "not a folder"),
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
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "foxes.yaml").write_text(TEXT)
    assert run(["ablate", "foxes.yaml", *more]) == code
    assert words in capsys.readouterr().err
    assert engine.asked == 0
    assert not (tmp_path / "out").exists()
