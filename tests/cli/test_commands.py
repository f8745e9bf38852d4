"""What each command takes: films, folders, stories, standard input; and the shape of its JSON."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from storyreel.cli import machine
from storyreel.cli.app import app, run
from storyreel.cli.results import SHAPES, result_schema
from storyreel.errors import NumericsError
from storyreel.film.folder import FilmFolder
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.story.planning import seconds_problem
from storyreel.story.schema import load_story
from tests.conftest import FakeEngine
from tests.test_batch import NONSENSE

STORY = "render: {model: fake}\nscenes:\n" + '  - ["a park", "a fox sits"]\n' * 2


class Place:
    """A folder with two stories, and what a command prints in it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys

    def said(self, *words: str, code: int = 0) -> tuple[str, str]:
        self._capsys.readouterr()
        got = run(words)
        printed = self._capsys.readouterr()
        assert got == code, (words, printed.err)
        return printed.out, printed.err

    def json(self, *words: str, code: int = 0) -> Any:
        """Return what a command prints, held against the schema that it publishes."""
        result = json.loads(self.said(*words, "--json", code=code)[0])
        jsonschema.Draft202012Validator(result_schema(words[0])).validate(result)
        return result


@pytest.fixture
def place(
    tmp_path: Path,
    fake_engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Place:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("fox", "wolf"):
        (folder / f"{name}.yaml").write_text(STORY)
    return Place(folder, capsys)


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Type something into standard input."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))


def test_a_dry_run_of_everything_again_has_all_to_render(place: Place) -> None:
    place.said("render", "fox.yaml")
    assert place.json("render", "fox.yaml", "--dry-run")["fox"]["missing"] == {}
    again = place.json("render", "fox.yaml", "--dry-run", "--overwrite")["fox"]["missing"]
    assert set(again.values()) == {"--overwrite makes it again"}
    assert len(again) == 2
    some = place.json("render", "fox.yaml", "--dry-run", "--overwrite", "--scenes", "2")["fox"]["missing"]
    assert list(some) == ["2"]


def test_a_film_is_verified_without_its_story_and_its_model(
    place: Place, fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "--seed",
        "3",
        "--method",
        "lead_noise=1",
        "--negative",
        "a dull day",
        "--guidance",
        "2",
        "--seconds",
        "1",
        "--without",
        "sar",
    ]
    (place.folder / "fox.yaml").write_text(
        "title: A fox\ncast: {first: {name: a fox}}\nrender: {model: fake}\nscenes:\n"
        '  - {scene: a park, action: "{first} sits", seconds: 0.5}\n'
        '  - {scene: a street, action: "{first} runs", transition: cut}\n'
    )
    place.said("render", "fox.yaml", "wolf.yaml", *words)
    shutil.rmtree(fake_model.weights)
    for name in ("fox.yaml", "wolf.yaml"):
        (place.folder / name).unlink()
    (place.folder / "out").rename("archive")
    (place.folder / "archive" / "wolf").rename(place.folder / "archive" / "wolf of 2026")
    before = {path: path.stat().st_mtime_ns for path in place.folder.rglob("*")}
    assert place.said("verify", "archive")[0] == (
        "archive/fox: 7 of 7 files are whole\narchive/wolf of 2026: 7 of 7 files are whole\n"
    )
    assert place.json("verify", "archive/fox/fox.mp4") == {
        "archive/fox": {"whole": True, "files": 7, "wrong": {}}
    }
    assert {path: path.stat().st_mtime_ns for path in place.folder.rglob("*")} == before
    (spoilt,) = Path("archive/fox/segments").glob("01-*.safetensors")
    spoilt.write_bytes(spoilt.read_bytes()[:-1] + b"x")
    Path("archive/wolf of 2026/index.html").write_text("another page")
    out, err = place.said("verify", "archive/fox", "archive", code=1)
    assert f"{spoilt} is damaged" in out
    assert "archive/wolf of 2026/index.html is damaged" in out
    assert out.count("6 of 7 files are whole") == 2
    assert "not whole: archive/fox, archive/wolf of 2026" in err
    assert place.json("verify", "archive", code=1)["archive/fox"]["wrong"] == {
        str(spoilt): "is damaged: it is not what was recorded"
    }
    manifest = Path("archive/fox/manifest.json")
    whole = manifest.read_text()
    changes = ("", "x"), ('"seed": 3', '"seed": 4'), ("{first} sits", "{first} walks"), ("0.5", "[]")
    for old, new in changes:
        manifest.write_text(whole.replace(old, new, 1))
        assert "manifest.json is damaged" in place.said("verify", "archive/fox", code=1)[0]
    manifest.unlink()
    out = place.said("verify", "archive/fox", code=1)[0]
    assert "manifest.json is missing" in out
    assert "0 of 1 file is whole" in out
    for nothing in ("nowhere", "here.mp4", "."):
        shutil.rmtree(place.folder / "archive", ignore_errors=True)
        assert "Name a film" in place.said("verify", nothing, code=2)[1]


def test_nonsense_in_a_manifest_is_no_traceback(place: Place) -> None:
    place.said("render", "fox.yaml")
    path = Path("out/fox/manifest.json")
    whole = path.read_text()
    for where, value in [*NONSENSE, (("film", "file"), '"a\\u0000.mp4"'), (("settings", "fps"), "0")]:
        manifest = inner = json.loads(whole)
        for part in where[:-1]:
            inner = inner[part]
        inner[where[-1]] = "PLACE"
        path.write_text(json.dumps(manifest).replace('"PLACE"', value))
        out = place.said("verify", "out", code=1)[0]
        assert "damaged" in out or "cannot be read" in out, where


def test_a_film_that_is_being_rendered_is_not_verified_and_the_others_are(place: Place) -> None:
    place.said("render", "fox.yaml", "wolf.yaml")
    with FilmFolder(place.folder / "out" / "fox", "fox"):
        result = place.json("verify", "out", code=74)
    assert result["out/fox"]["exit_code"] == 74
    assert result["out/wolf"]["whole"]


def test_the_status_of_films_folders_and_stories(place: Place) -> None:
    place.said("render", "fox.yaml")
    done, waiting = "fox: done, 2 of 2 scenes\n", "wolf: waiting, 0 of 2 scenes\n"
    for words in ((), ("out",), ("out/fox",), ("out/fox/fox.mp4",), ("fox.yaml",)):
        assert place.said("status", *words)[0] == done, words
    assert place.said("status", "fox.yaml", "wolf.yaml")[0] == done + waiting
    assert place.said("status", "wolf.yaml", "out/fox")[0] == done + waiting
    assert place.said("status", "fox.yaml", "--seed", "9")[0].startswith("fox: waiting")
    assert place.json("status", "out")["fox"] == {"state": "done", "scenes": 2, "total": 2, "reason": ""}
    assert "neither a film" in place.said("status", "nowhere", code=2)[1]
    assert place.json("batch", "--status") == place.json("status")


def test_a_failed_attempt_leaves_the_finished_film_in_sight(
    place: Place, fake_engine: FakeEngine, fake_model: ModelSpec
) -> None:
    place.said("render", "fox.yaml")

    def fail(count: int) -> None:
        raise NumericsError("no picture")

    fake_engine.adapter(fake_model).on_predict = fail
    place.said("render", "fox.yaml", "--seed", "1", code=1)
    failed = "fox: failed, 0 of 2 scenes: no picture; an earlier film is there, complete\n"
    assert place.said("status")[0] == failed
    assert place.said("status", "fox.yaml", "--seed", "1")[0] == failed
    assert place.said("status", "fox.yaml")[0] == "fox: done, 2 of 2 scenes\n"
    Path("out/fox/fox.mp4").unlink()
    assert place.said("status")[0] == "fox: failed, 0 of 2 scenes: no picture\n"


def test_a_film_whose_folder_was_renamed_is_whole(place: Place) -> None:
    for name in ("fox.yaml", "wolf.yaml"):
        Path(name).write_text("title: A fox\n" + STORY)
    place.said("render", "fox.yaml")
    Path("out/fox").rename("out/wolf")
    assert place.said("status")[0] == "wolf: done, 2 of 2 scenes\n"
    # As planned it would lie elsewhere: a second run writes it there.
    assert place.said("status", "wolf.yaml")[0] == (
        "wolf: stopped, 2 of 2 scenes: its film is still called fox.mp4\n"
    )
    place.said("render", "wolf.yaml")
    Path("out/wolf/0.mp4").write_bytes(b"a stranger")
    assert place.said("status", "wolf.yaml")[0] == "wolf: done, 2 of 2 scenes\n"


def test_a_film_may_have_the_name_of_a_folder_of_ours(place: Place) -> None:
    place.said("render", "fox.yaml", "--out", "out/segments")
    place.said("render", "fox.yaml")
    Path("out/segments/fox").rename("moved")
    Path("out/segments").rmdir()
    Path("moved").rename("out/segments")
    Path("out/slurm").mkdir()
    assert place.said("status", "out")[0] == "fox: done, 2 of 2 scenes\nsegments: done, 2 of 2 scenes\n"
    assert list(place.json("verify", "out")) == ["out/fox", "out/segments"]
    place.said("render", "fox.yaml", "--seed", "1")
    assert [row["folder"] for row in place.json("clean", "out") if row["files"]] == ["out/fox"]
    Path("empty/segments").mkdir(parents=True)
    assert "no film of storyreel" in place.said("verify", "empty", code=2)[1]
    for sign in ("manifest.json", "events.jsonl"):  # any of several is enough
        Path("out/segments", sign).unlink()
        assert "manifest.json" in place.said("verify", "out/segments", code=1)[0]


def test_where_no_films_are_status_says_so_and_elsewhere_it_finds_all(place: Place) -> None:
    Path("empty").mkdir()
    for words in ((), ("empty",), (".",), ("--out", "nofolder")):
        out, err = place.said("status", *words)
        assert (out, err.startswith("no films in ")) == ("", True), words
    assert place.json("status") == {}
    assert "neither a film" in place.said("status", "--out", "fox.yaml", code=2)[1]
    place.said("render", "fox.yaml", "--out", "out/deep")
    assert place.said("status") == ("deep/fox: done, 2 of 2 scenes\n", "")
    os.chdir("out/deep/fox")
    assert place.said("status", ".")[0] == "fox: done, 2 of 2 scenes\n"


def test_a_faulty_story_hides_no_other(place: Place) -> None:
    (place.folder / "bad.yaml").write_text("scenes: 1\n")
    words = ("bad.yaml", "fox.yaml")
    planned = place.json("render", *words, "--keep-going", "--dry-run", code=65)
    assert planned["bad.yaml"]["exit_code"] == 65
    assert planned["fox"]["steps"] == place.json("batch", *words, "--dry-run", code=65)["fox"]["steps"]
    assert place.said("render", *words, "--dry-run", code=65)[0] == ""
    place.said("render", "fox.yaml", "wolf.yaml")
    assert place.json("status", *words, code=65)["fox"]["state"] == "done"
    out, err = place.said("status", *words, code=65)
    assert (out, err.count("bad.yaml")) == ("fox: done, 2 of 2 scenes\n", 1)
    both = (*words, "wolf.yaml", "--keep-going", "--verify")
    found = place.json("render", *both, code=65)
    assert (found["fox"]["whole"], found["bad.yaml"]["exit_code"]) == (True, 65)
    with FilmFolder(place.folder / "out" / "fox", "fox"):
        found = place.json("render", "fox.yaml", "wolf.yaml", "--verify", code=74)
    assert (found["fox"]["exit_code"], found["wolf"]["whole"]) == (74, True)
    Path("out/fox/fox.mp4").unlink()
    assert "not whole: fox" in place.said("render", *both, code=65)[1]


def test_a_folder_of_weights_that_is_not_there_is_told_before_the_plan(place: Place) -> None:
    for command in ("render", "ablate"):
        out, err = place.said(command, "fox.yaml", "--dry-run", "--weights", "nowhere", code=2)
        assert (out, "nowhere is not a folder" in err) == ("", True)


def test_standard_input_is_a_story(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (["validate", "-"], ["render", "-"], ["status", "-"], ["ablate", "-", "--help"]):
        typed(monkeypatch, STORY)
        place.said(*command)
    assert (place.folder / "out" / "stdin" / "stdin.mp4").exists()
    typed(monkeypatch, "scenes: 1\n")
    assert "stdin:1:9: error: expected a list" in place.said("validate", "-", code=65)[1]
    typed(monkeypatch, STORY)
    assert "cannot read standard input" in place.said("submit", "-", "--dry-run", code=2)[1]
    monkeypatch.setattr(sys, "stdin", None)  # closed
    assert place.said("validate", "-", code=65)[0] == ""
    typed(monkeypatch, STORY)
    assert load_story(Path("-")).scenes


def test_a_folder_of_stories_is_validated(place: Place) -> None:
    (place.folder / "notes.txt").write_text("no story")
    (place.folder / "more.yml").write_text("scenes: 1\n")
    assert place.said("validate", "fox.yaml", ".", code=65)[0].count("2 scenes") == 2
    (place.folder / "more.yml").unlink()
    assert place.json("validate", ".")["wolf.yaml"]["scenes"] == 2
    (place.folder / "empty").mkdir()
    assert "no story in empty" in place.said("validate", "empty", code=2)[1]
    # What the model cannot do is a fault of the options too.
    assert "nearest it can" in place.said("validate", "fox.yaml", "--size", "97x64", code=2)[1]


def test_faults_are_data(place: Place) -> None:
    (place.folder / "bad.yaml").write_text("scenes:\n  - [a, b]\nrende: 1\n")
    result = place.json("validate", "fox.yaml", "bad.yaml", "nowhere.yaml", code=65)
    assert result["fox.yaml"]["valid"]
    assert result["bad.yaml"]["faults"] == [
        {"line": 3, "column": 1, "message": result["bad.yaml"]["faults"][0]["message"]}
    ]
    assert "rende" in result["bad.yaml"]["faults"][0]["message"]
    assert "cannot be read" in result["nowhere.yaml"]["error"]


@pytest.mark.usefixtures("ffmpeg")
def test_a_film_or_its_folder_is_inspected_cleaned_and_scored(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.said("render", "fox.yaml")
    Path("out/fox/0.mp4").write_bytes(b"a stranger")
    says = place.json("inspect", "out/fox")
    assert says["storyreel_seed"] == "0"
    assert not says.keys() & {"major_brand", "minor_version", "compatible_brands", "encoder"}
    Path("out/fox/0.mp4").unlink()
    assert place.said("inspect", "out/fox/fox.mp4") == place.said("inspect", "out/fox")
    assert "not a file" in place.said("inspect", "out", code=2)[1]
    place.said("render", "fox.yaml", "--seed", "1")
    (row,) = place.json("clean", "out/fox/fox.mp4")
    assert (row["folder"], row["removed"]) == ("out/fox", False)
    assert row["files"]
    folders: list[list[Path]] = []

    def collect(found: list[Path], *_: object) -> tuple[list[object], list[object]]:
        folders.append(found)
        return [], []

    monkeypatch.setattr("storyreel.evaluation.films.collect", collect)
    for name in ("out/fox/fox.mp4", "out/fox"):
        place.said("eval", name)
    assert folders == [[Path("out/fox")]] * 2
    shutil.copy("out/fox/fox.mp4", "copy.mp4")
    assert "storyreel eval --story FILE --video copy.mp4" in place.said("eval", "copy.mp4", code=2)[1]


def test_keep_going_is_batch(place: Place) -> None:
    (place.folder / "bad.yaml").write_text("scenes: 1\n")
    words = ("fox.yaml", "bad.yaml", "wolf.yaml")
    assert place.said("render", *words, code=65)[0] == ""  # nothing was begun
    one = place.json("render", "--keep-going", *words, code=65)
    other = place.json("batch", *words, "--out", "other", code=65)
    assert {name: row["state"] for name, row in one.items()} == {
        name: row["state"] for name, row in other.items()
    }
    assert (one["wolf"]["state"], one["bad.yaml"]["exit_code"]) == ("done", 65)
    err = place.said("render", "--keep-going", *words, code=65)[1]
    assert "2 of 3 films done" in err
    assert "failed with 65: bad.yaml" in err


def test_without_it_the_first_failure_is_the_end(
    place: Place, fake_engine: FakeEngine, fake_model: ModelSpec
) -> None:
    failing = [10]  # passes of the model: the second film's

    def fail(count: int) -> None:
        if count == failing[0]:
            failing[0] = -1
            raise NumericsError("no picture")

    fake_engine.adapter(fake_model).on_predict = fail
    (place.folder / "wolf.yaml").write_text(STORY.replace("fox", "wolf"))
    (place.folder / "zebra.yaml").write_text(STORY.replace("fox", "zebra"))
    words = ("fox.yaml", "wolf.yaml", "zebra.yaml")
    result = place.json("render", *words, code=1)
    assert {name: row["state"] for name, row in result.items()} == {"fox": "done", "wolf": "failed"}
    fake_engine.adapter(fake_model).predicted.clear()
    failing[0] = 0
    assert place.json("render", "--keep-going", *words, code=1)["zebra"]["state"] == "done"


def test_quiet_says_results_and_errors_alone(place: Place) -> None:
    assert place.said("render", "fox.yaml", "-q") == ("out/fox/fox.mp4\n", "")
    assert place.said("render", "fox.yaml")[1] != ""
    assert place.said("render", "nowhere.yaml", "--quiet", code=2)[1].startswith("error: ")
    err = place.said("render", "fox.yaml", "--verbose")[1]
    assert all(line[2] == ":" and line[5] == ":" for line in err.splitlines())


def test_a_job_is_submitted_as_it_was_by_batch(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["fox.yaml", "wolf.yaml", "--time", "1:00:00", "--seed", "3"]
    script = place.said("submit", *words, "--dry-run")[0]
    assert script == place.said("batch", *words, "--slurm", "--dry-run")[0]
    for command in (["submit"], ["batch", "--slurm"]):
        dry = place.json(*command, *words, "--dry-run")
        assert (dry["script"], list(dry["films"])) == (script, ["fox", "wolf"])
    assert "not --slurm" in place.said("batch", "fox.yaml", "--gpus", "1", code=2)[1]
    assert "#SBATCH --array=0-1\n#SBATCH --gpus=1\n#SBATCH --time=1:00:00\n" in script
    tools = place.folder / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text("#!/bin/sh\ncat > /dev/null; echo 42\n")
    (tools / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    result = place.json("submit", *words)
    assert (result["job"], list(result["films"])) == ("42", ["fox", "wolf"])
    rows = place.json("status")
    assert {name: row["job"] for name, row in rows.items()} == {"fox": "42_0", "wolf": "42_1"}


@pytest.mark.usefixtures("ffmpeg")
def test_info_is_one_answer_after_the_other_whatever_is_broken(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = place.json("info")
    assert place.said("doctor")[0].startswith(f"storyreel: {found['storyreel']['found']}\n")
    assert found["storyreel"]["ok"]
    assert found["models"]["found"].startswith("mini")
    tools = place.folder / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text('#!/bin/sh\necho "NVIDIA X100, 81559 MiB, 9.0"\n')
    (tools / "nvidia-smi").chmod(0o755)
    (tools / "sbatch").symlink_to("nvidia-smi")
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(machine, "_torch_cuda", lambda: "12.8")
    found = place.json("info")
    assert "NVIDIA X100, 81559 MiB; torch for CUDA 12.8" in found["device"]["found"]
    assert found["attention"] == {"ok": True, "found": "torch's flash kernel", "remedy": ""}
    with monkeypatch.context() as patch:
        patch.setattr(machine, "_gpus", lambda: [("NVIDIA X100", "memory unknown", 0.0)])
        assert place.json("info")["attention"]["found"].startswith("not known")
    assert not found["slurm"]["ok"]
    monkeypatch.setenv("STORYREEL_MODLE", "mini")
    assert place.json("info")["defaults"]["remedy"] == "Perhaps STORYREEL_MODEL?"
    monkeypatch.setattr(machine, "_torch_cuda", lambda: "")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere")
    monkeypatch.setenv("HF_HOME", "/dev/null/x")
    (tools / "nvidia-smi").write_text('#!/bin/sh\necho "NVIDIA P100, 16384 MiB, 6.0"\n')
    found = place.json("info")
    for name in ("device", "attention", "ffmpeg"):
        assert not found[name]["ok"]
        assert found[name]["remedy"], name
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho nonsense\n")
    monkeypatch.setattr(machine, "_models", lambda: [][0])
    broken = place.json("info")
    assert broken["models"] == {
        "ok": False,
        "found": "cannot be found out: IndexError: list index out of range",
        "remedy": "",
    }
    assert not broken["device"]["ok"]


def test_what_has_answered_late_is_told_as_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*words: object, **options: Any) -> None:
        assert options["timeout"] < 1  # the whole command takes less than a second
        raise subprocess.TimeoutExpired("nvidia-smi", 0.5)

    monkeypatch.setattr(subprocess, "run", late)
    assert machine._gpus() == []


def test_other_json(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.json("render", "fox.yaml", "--dry-run")["fox"]["steps"] == 3
    assert place.json("batch", "fox.yaml", "--dry-run")["fox"]["steps"] == 3
    assert set(place.json("models")) == set(MODELS)
    monkeypatch.setattr("storyreel.models.hub.find", lambda *_: [])
    monkeypatch.setattr("storyreel.models.hub.take", lambda spec, *_: f"folder of {spec.name}")
    assert place.json("pull", "mochi") == {"mochi": {"folder": "folder of mochi"}}
    report = {"model": "mini", "size": "96x64", "frames": 24, "steps": 4, "variants": []}
    monkeypatch.setattr("storyreel.benchmark.run.bench", lambda *_: report)
    assert place.json("bench") == report
    (label, *_) = place.json("ablate", "fox.yaml", "--dry-run")
    assert label == "fox, full, seed 0"


@pytest.mark.parametrize(
    ("words", "answers", "accepted"),
    [
        ([], None, False),
        (["--accept-licence"], None, True),
        (["--accept-license"], None, True),
        ([], True, True),
        ([], False, False),
        (["--json"], True, False),  # whose output a program reads
    ],
)
def test_a_licence_is_asked_for_on_a_terminal_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch, words: list[str], answers: bool | None, accepted: bool
) -> None:
    """``answers`` is what somebody types there, None where there is no terminal."""
    found: list[bool] = []
    asked: list[str] = []

    def agree(spec: ModelSpec, *options: Any) -> None:
        found.append(options[-1]("Some Community License"))

    def confirm(question: str, err: bool) -> bool:
        asked.append(question)
        assert err
        assert answers is not None
        return answers

    monkeypatch.setattr("storyreel.models.hub.agree", agree)
    monkeypatch.setattr("storyreel.models.hub.find", lambda *_: [])
    monkeypatch.setattr("typer.confirm", confirm)
    if answers is not None:
        terminal = SimpleNamespace(isatty=lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    place.said("pull", "ltx-2b", *words)
    assert found == [accepted]
    if "--json" in words or answers is None:
        assert asked == []
    else:
        assert asked == ["Do you accept the licence? Some Community License"]


@pytest.mark.parametrize("models", [("hunyuan-1.5",), ("ltx-2.5",), ("mochi", "ltx-2b")])
def test_a_licence_that_is_not_accepted_is_said_and_77_before_any_contact(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: tuple[str, ...]
) -> None:
    """Also if it is that of the last of several."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("storyreel.models.hub.listing", lambda *_: pytest.fail("the hub is contacted"))
    out, err = place.said("pull", *models, code=77)
    last = MODELS[models[-1]]
    assert out == ""
    assert f"\n{last.name}: licence {last.licence}" in f"\n{err}"
    assert f"error: the licence of {last.name} is not accepted: {last.licence}" in err
    assert last.territory in err
    assert f"storyreel pull {last.name} --accept-licence" in err


def test_the_longest_scene_that_is_listed_is_one_that_a_render_takes(place: Place) -> None:
    listed = re.findall(
        r"^(\S+): .*\n(?:  .*\n)*?  .*scenes of up to (\S+) s,", place.said("models")[0], re.M
    )
    assert [name for name, _ in listed] == [name for name, spec in MODELS.items() if name == spec.base]
    for name, seconds in listed:
        spec = MODELS[name]
        assert seconds_problem(spec, float(seconds)) is None
        assert seconds_problem(spec, float(seconds) + spec.frames_per_latent / spec.fps) is not None


def test_what_fits_a_card_is_listed_by_the_highest_mode(place: Place) -> None:
    out, err = place.said("models", "--fits", "24")
    listed = re.findall(r"^(\S+): ", out, re.MULTILINE)
    assert [name for name in MODELS if name in listed] == listed  # variants under their model
    assert {"mini", "wan-14b", "wan-14b:4-step", "ltx-2b"} <= set(listed)
    assert "  --memory low: 9 GB of the GPU's memory, 29.1 GB of the machine's\n" in out
    assert "  --memory balanced --quantize fp8: 21.7 GB" in out
    assert "  needs no GPU\n  16 steps; a scene takes about 3.7 s on two CPU cores\n" in out
    assert "4 steps; time not measured yet" in out
    assert "calculated" in err
    small, left = place.said("models", "--fits", "2")
    assert re.findall(r"^(\S+): ", small, re.MULTILINE)[:1] == ["mini"]
    assert "wan-14b" not in small
    assert re.search(r"too large for 2 GB: .*wan-14b, wan-14b:4-step", left)
    one, _ = place.said("models", "wan-14b", "--fits", "48")
    assert re.findall(r"^(\S+): ", one, re.MULTILINE) == ["wan-14b", "wan-14b:4-step"]
    assert "--memory high: 47.6 GB" in one


@pytest.mark.parametrize("given", ["0", "-3", "nan", "inf", "much", "24GB", ""])
def test_a_card_of_no_size_is_refused(place: Place, given: str) -> None:
    out, err = place.said("models", f"--fits={given}", code=2)
    words = f"error: --fits {given!r} is no size of a memory\nWrite a card's gigabytes: --fits 24\n"
    assert (out, err) == ("", words)


def test_what_fits_is_json_too(place: Place) -> None:
    found = place.json("models", "--fits", "24")
    fits = found["wan-14b"]["fits"]
    assert fits["storage"]["none"] == {"mode": "low", "gpu_gb": 9.0, "machine_gb": 29.1}
    assert fits["storage"]["fp8"]["mode"] == "balanced"
    assert (fits["seconds_per_scene"], fits["measured_on"]) == (None, None)
    assert found["mini"]["fits"]["storage"] == {}
    assert found["mini"]["fits"]["seconds_per_scene"] == pytest.approx(16 * 0.23)
    assert set(place.json("models", "--fits", "2")) < set(found)


def test_variants_are_listed_under_their_model(place: Place) -> None:
    out, _ = place.said("models")
    assert re.search(r"^wan-14b: .*(\n  .*)+\n  wan-14b:4-step: .*pull wan-14b:4-step", out, re.MULTILINE)
    assert set(place.json("models", "wan-14b")) == {"wan-14b", "wan-14b:4-step"}
    assert set(place.json("models", "wan-14b:4-step")) == {"wan-14b:4-step"}
    assert place.said("models", "wan-14b:4-step")[0].startswith("wan-14b:4-step: ")


def test_a_speed_that_changes_nothing_is_said(place: Place) -> None:
    (place.folder / "wan.yaml").write_text(STORY.replace("fake", "'wan-14b:4-step'"))
    words = "wan: speed fast changes nothing: model wan-14b:4-step takes 4 steps"
    assert words in place.said("render", "wan.yaml", "--dry-run", "--speed", "fast")[1]
    (noted,) = place.json("validate", "wan.yaml", "--speed", "fast")["wan.yaml"]["notes"]
    assert noted in place.said("validate", "wan.yaml", "--speed", "fast")[1]


@pytest.mark.parametrize(
    ("render", "words", "noted"),
    [
        ("", (), ()),
        ("", ("--guidance", "5"), ("made for guidance 1: with guidance 5 each step costs twice",)),
        (", guidance: 3", (), ("made for guidance 1: with guidance 3 each step costs twice",)),
        ("", ("--negative", "blurry"), ("the negative prompt changes nothing",)),
        (", negative: blurry", (), ("the negative prompt changes nothing",)),
        ("", ("--negative", ""), ()),
        ("", ("--method", "weighting=true"), ("weighting true changes nothing: with emphasis 1",)),
        (
            "",
            ("--method", "weighting=true", "--method", "emphasis=3"),
            ("weighting true changes nothing: where model wan-14b:4-step decides",),
        ),
        ("", ("--method", "weighting=texts"), ()),
        (", negative: blurry", ("--guidance", "5"), ("each step costs twice",)),
        ("", ("--model", "wan-14b", "--guidance", "4", "--negative", "blurry"), ()),
        (
            "",
            ("--model", "wan-14b", "--guidance", "1", "--negative", "blurry"),
            ("the negative prompt changes",),
        ),
    ],
)
def test_a_guidance_that_weights_were_not_made_for_and_a_lost_negative_prompt_are_said(
    place: Place, render: str, words: tuple[str, ...], noted: tuple[str, ...]
) -> None:
    (place.folder / "wan.yaml").write_text(STORY.replace("model: fake", f"model: 'wan-14b:4-step'{render}"))
    found = place.json("validate", "wan.yaml", *words)["wan.yaml"]["notes"]
    assert len(found) == len(noted)
    assert all(some in note for some, note in zip(noted, found, strict=True))


@pytest.mark.parametrize("there", [False, True])
def test_a_dry_run_says_whether_the_weights_are_there(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    words = ("render", "fox.yaml", "--dry-run", "--model", "mini" if there else "ltx-2.5")
    out = place.said(*words)[0]
    assert ("  weights not there (Run: storyreel pull ltx-2.5)\n" in out) is not there
    assert place.json(*words)["fox"]["weights_there"] is there


def test_a_variant_renders_the_same_film_at_every_speed(
    place: Place, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = (1.0, 0.757, 0.522)
    few = replace(MODELS["fake"], name="fake:few", sigmas=levels, renoises=True, guidance=1.0)
    monkeypatch.setitem(MODELS, "fake:few", few)
    words = ("render", "fox.yaml", "--model", "fake:few")
    said = place.said(*words, "--speed", "fast")[1]
    assert "fox: speed fast changes nothing: model fake:few takes 3 steps" in said
    assert "2 of 2 scenes rendered" in said
    again = place.said(*words)[1]
    assert "changes nothing" not in again
    assert "0 of 2 scenes rendered" in again
    facts = json.loads((place.folder / "out" / "fox" / "manifest.json").read_text())["model"]["facts"]
    assert (facts["sigmas"], facts["renoises"]) == (list(levels), True)


def test_every_command_that_prints_json_publishes_its_shape(place: Place) -> None:
    with_json = {
        command.name for command in app.registered_commands if "as_json" in command.callback.__annotations__
    }
    assert with_json == set(SHAPES)
    for name in SHAPES:
        schema = json.loads(place.said("schema", "--of", name)[0])
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$id"].endswith(f"/{name}.result.schema.json")
    assert "prints no JSON" in place.said("schema", "--of", "new", code=2)[1]


@pytest.mark.usefixtures("fresh_install")
def test_scores_have_the_published_shape(place: Place) -> None:
    place.said("render", "fox.yaml")
    result = place.json("eval", "out/fox/fox.mp4", "--no-own", "--fps", "4", "--device", "cpu")
    (film,) = result["films"]
    assert film["name"] == "fox"
    assert film["scores"]
    assert result["missing"]
    assert (place.folder / "out" / "fox" / "eval.html").exists()
