"""The commands of "Reproduce, compare, extend" in evaluation/README.md, on a story of two short scenes."""

from __future__ import annotations

import glob
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from storyreel.benchmark.whole_films import Cost
from storyreel.cli.app import run
from storyreel.evaluation.films import Film, rendered_film
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.story.plan import Plan
from storyreel.story.schema import Casting
from tests.conftest import ROOT, FakeEngine

README = (ROOT / "storyreel" / "evaluation" / "README.md").read_text()
SECTION = README.partition("## Reproduce, compare, extend\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", SECTION, re.M | re.S)
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("storyreel ablate stories/")
]
STORY = """\
title: In the subway
cast: {first: {name: a corgi dog, possessive: its}}
scenes:
  - ["{first} is inside of the subway train", "{first} is sitting"]
  - ["{first} is looking out the subway window", "{first} now stands out"]
render: {seconds: 0.5, steps: 2}
"""


def in_small(words: list[str]) -> list[str]:
    """Return a command with what its shell would make of it, and one seed."""
    told = shlex.join(words).replace("--seeds 3", "--seeds 1")
    return [
        path for word in shlex.split(told) for path in sorted(glob.glob(word)) or [word] * ("*" not in word)
    ]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories" / "nyc.yaml").write_text(STORY)
    (tmp_path / "films" / "vlogger").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_files(place: Path) -> None:
    """Both tables are there in the formats that the commands name."""
    for number in (2, 3):
        result = json.loads((place / f"table{number}.json").read_text())
        assert result["table"]["number"] == number
        assert r"\toprule" in (place / f"table{number}.tex").read_text()
        assert f"**Table {number}." in (place / f"table{number}.md").read_text()
        assert (place / f"table{number}.csv").read_text().startswith("row,title,source,")


def test_there_are_commands_for_all_three() -> None:
    told = " ".join(map(shlex.join, COMMANDS))
    for option in ("--table 3", "--table 2", "--published", "--video", "--row", "--columns", "--format"):
        assert option in told


@pytest.mark.usefixtures("fresh_install")
def test_they_run_with_a_model_that_costs_nothing(
    place: Path,
    fake_model: ModelSpec,
    fake_engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MODELS, "mini", replace(fake_model, name="mini"))

    def measured(plan: Plan, stock: bool, *others: object) -> Cost:
        return Cost(1.0, 0.5, 0.5, plan.forwards, plan.latents, "a card")

    def foreign(story: Path, path: Path, segments: str, casting: Casting) -> Film:
        folder = place / "out" / "ablation" / "full" / "seed-0" / story.stem
        return replace(rendered_film("", "", "", folder), folder=None)

    monkeypatch.setattr("storyreel.benchmark.whole_films.measured", measured)
    monkeypatch.setattr("storyreel.evaluation.ablation.foreign_film", foreign)
    (place / "films" / "vlogger" / "nyc.mp4").touch()
    for words in COMMANDS:
        assert run(in_small(words)) == 0, capsys.readouterr().err
        assert capsys.readouterr().out
    check_files(place)


@pytest.mark.slow
def test_they_run_with_mini(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, words in enumerate(COMMANDS):
        assert run(in_small(words)) == 0, capsys.readouterr().err
        if not number:  # the film of a row stands for one that something else made
            film = place / "out" / "ablation" / "crossfade" / "seed-0" / "nyc" / "nyc.mp4"
            shutil.copy(film, place / "films" / "vlogger")
    check_files(place)
    rows = json.loads((place / "table2.json").read_text())["table"]["rows"]
    memory = {row["name"]: row["cells"]["memory_gb"]["mean"] for row in rows if not row["published"]}
    assert {"full", "without-all", "stock"} <= {*memory}
    assert all(0.3 < value < 2 for value in memory.values())
