"""Where an option's value comes from: the command line, the story, the environment, the file, the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from storyreel.cli.app import run
from storyreel.cli.defaults import KEYS, PREFIX

pytestmark = pytest.mark.usefixtures("fake_model")

STORY = "scenes:\n" + '  - ["a park", "a fox sits"]\n' * 2


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a story that says nothing of its rendering, and no variables."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for key in KEYS:
        monkeypatch.delenv(f"{PREFIX}{key.upper()}", raising=False)
    (folder / "fox.yaml").write_text(STORY)
    return folder


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["render", "--dry-run", "--json", *(words or ("fox.yaml",))]) == 0
    facts: dict[str, Any]
    (facts,) = json.loads(capsys.readouterr().out).values()
    return facts


def test_the_command_line_then_the_story_then_the_environment_then_the_file(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planned(capsys)["model"] == "mini"
    (place / "storyreel.toml").write_text('model = "fake"\nsteps = 5\nseed = 1\nguidance = 2.5\n')
    facts = planned(capsys)
    assert (facts["model"], facts["steps"], facts["seed"], facts["guidance"]) == ("fake", 5, 1, 2.5)
    monkeypatch.setenv("STORYREEL_STEPS", "6")
    monkeypatch.setenv("STORYREEL_SEED", "2")
    facts = planned(capsys)
    assert (facts["model"], facts["steps"], facts["seed"]) == ("fake", 6, 2)
    (place / "fox.yaml").write_text("render: {steps: 7, model: mini}\n" + STORY)
    facts = planned(capsys)
    assert (facts["model"], facts["steps"], facts["seed"]) == ("mini", 7, 2)
    facts = planned(capsys, "fox.yaml", "--steps", "8", "--model", "fake")
    assert (facts["model"], facts["steps"], facts["seed"]) == ("fake", 8, 2)


def test_the_file_is_that_of_the_stories(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "storyreel.toml").write_text('steps = 5\nout = "films"\n')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert planned(capsys, "../here/fox.yaml")["steps"] == 5
    assert planned(capsys, "--seed", "3", "--", str(place / "fox.yaml"))["steps"] == 5
    Path("wolf.yaml").write_text(STORY)
    assert planned(capsys, "wolf.yaml")["steps"] != 5
    assert run(["render", "--dry-run", "wolf.yaml", "../here/fox.yaml"]) == 2
    err = capsys.readouterr().err
    assert "several folders" in err
    assert "once for each folder (., ../here)" in err  # what is named is there
    assert run(["submit", "../here/fox.yaml", "--dry-run"]) == 0
    assert "--out=" not in capsys.readouterr().out.replace("--output=", "")  # the job reads the file, too


@pytest.mark.usefixtures("fake_engine")
def test_paths_in_the_file_are_read_from_its_folder(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "storyreel.toml").write_text('model = "fake"\nout = "films"\n')
    monkeypatch.chdir(tmp_path)
    assert run(["render", str(place / "fox.yaml"), "-q"]) == 0
    monkeypatch.chdir(place)
    capsys.readouterr()
    assert (place / "films" / "fox" / "fox.mp4").exists()
    assert run(["status"]) == 0
    assert run(["status", str(place / "fox.yaml")]) == 0
    assert capsys.readouterr().out == "fox: done, 2 of 2 scenes\n" * 2
    assert run(["status", str(place / "fox.yaml"), str(place / "films")]) == 0
    (place / "storyreel.toml").write_text('model = "fake"\nsize = "97x64"\n')
    monkeypatch.chdir(tmp_path)
    assert run(["validate", str(place)]) == 2  # by the file in the folder of stories
    assert "nearest it can is 96x64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('modle = "mini"', "unknown key 'modle' Did you mean 'model'?"),
        ("overwrite = true", "unknown key 'overwrite' Known keys: model, seed"),
        ("steps = [1]", "steps must be text or a number"),
        ("seed = true", "seed must be text or a number"),
        ("steps = ", "Invalid value (at"),
        ('steps = "many"', "storyreel.toml: steps: Input should be a valid integer"),
        ("steps = 0", "storyreel.toml: steps: Input should be greater than or equal to 1"),
        ('memory = "huge"', "storyreel.toml: memory: 'huge' is not one of 'auto', 'high'"),
        ('device = "tpu"', "unknown device 'tpu'"),
        ('out = "~nobody-of-that-name/films"', "storyreel.toml: out: there is no home for '~nobody-of"),
        ("\udcff", "can't decode"),
        ("a = " + "[" * 9000, "storyreel.toml: "),
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_faults_of_the_file_are_told(
    place: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "storyreel.toml").write_bytes(text.encode(errors="surrogateescape"))
    assert run(["render", "fox.yaml", "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in " ".join(printed.err.split())
    for command in (["render", "--help"], ["info"]):  # these need no defaults
        assert run(command) == 0


def test_a_variable_counts_as_the_option_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("STEPS", "x"), ("SPEED", "warp"), ("DEVICE", "tpu"), ("MEMORY", "all")):
        with monkeypatch.context() as patch:
            patch.setenv(f"{PREFIX}{name}", value)
            assert run(["render", "fox.yaml", "--dry-run"]) == 2
        err = capsys.readouterr().err
        assert f"error: {PREFIX}{name}: {name.lower()}: " in err or "unknown device" in err


def test_info_tells_what_render_would_refuse(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def checked() -> dict[str, Any]:
        capsys.readouterr()
        assert run(["info", "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)["defaults"]
        return found

    wrong = ("STEPS", "abc"), ("DEVICE", "banana"), ("SIZE", "97x64"), ("MODEL", "nano"), ("WEIGHTS", "/no")
    assert checked()["ok"]
    for key, value in wrong:
        with monkeypatch.context() as patch:
            patch.setenv(f"{PREFIX}{key}", value)
            assert not checked()["ok"], key
            assert run(["render", "fox.yaml", "--dry-run"]) == 2
        (place / "storyreel.toml").write_text(f'{key.lower()} = "{value}"\n')
        assert not checked()["ok"], key
        (place / "storyreel.toml").unlink()
    (place / "storyreel.toml").write_text("stepz = 2\n")
    assert "stepz" in checked()["found"]
    (place / "storyreel.toml").write_text('steps = 2\nmodel = "fake"\n')
    assert checked() == {"ok": True, "found": "storyreel.toml", "remedy": ""}


def test_a_variable_that_is_none_of_ours_is_noted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STORYREEL_STEP", "3")
    assert run(["render", "fox.yaml", "--dry-run"]) == 0
    assert "STORYREEL_STEP is no variable of storyreel. Perhaps STORYREEL_STEPS?" in capsys.readouterr().err
    assert run(["render", "fox.yaml", "--dry-run", "-q"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("fake_engine")
def test_the_folder_of_films_is_the_same_for_all_commands(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said() -> list[str]:
        capsys.readouterr()
        for command in ("clean", "info"):
            assert run([command, "--json"]) == 0
        cleaned, checked = capsys.readouterr().out.split("]\n{", 1)
        return [json.loads(f"{cleaned}]")[0]["folder"], json.loads(f"{{{checked}")["films"]["found"]]

    for name in ("films", "others"):
        assert run(["render", "fox.yaml", "--model", "fake", "--out", name]) == 0
    (place / "storyreel.toml").write_text('out = "films"\n')
    folder, found = said()
    assert (folder, found.startswith("films: ")) == ("films/fox", True)
    monkeypatch.setenv("STORYREEL_OUT", "others")
    folder, found = said()
    assert (folder, found.startswith("others: ")) == ("others/fox", True)
    (place / "storyreel.toml").write_text("out = \n")
    assert run(["info"]) == 0


def test_verbose_says_which_defaults_count(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "storyreel.toml").write_text("steps = 5\n")
    monkeypatch.setenv("STORYREEL_SEED", "2")
    assert run(["render", "fox.yaml", "--dry-run", "-v"]) == 0
    err = capsys.readouterr().err
    assert "seed: 2, from STORYREEL_SEED" in err
    assert "steps: 5, from storyreel.toml" in err
    assert run(["render", "fox.yaml", "--dry-run", "-q", "-v"]) == 2


def test_a_job_has_the_variables_and_the_story_still_wins(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STORYREEL_MODEL", "fake")
    monkeypatch.setenv("STORYREEL_DEVICE", "cpu")
    assert run(["submit", "fox.yaml", "--dry-run", "--device", "auto", "--seed", "4"]) == 0
    script = capsys.readouterr().out
    assert "command=(env STORYREEL_MODEL=fake " in script
    assert "--seed=4 --device=auto" in script
    assert "--model" not in script
