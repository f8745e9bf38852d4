"""--cast and --name, wherever a story is read."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.cli.test_commands import Place, place, typed
from tests.conftest import FakeEngine

__all__ = ["place"]

PLOT = "render: {model: fake}\nscenes:\n" + '  - ["{first} in a park", "{first} sits"]\n' * 2
FOX, DOG = ("--cast", "first=a fox"), ("--cast", "first=a dog")


def manifest(name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(Path("out", name, "manifest.json").read_text())
    return found


@pytest.fixture
def plot(place: Place) -> Place:
    Path("plot.yaml").write_text(PLOT)
    return place


def test_one_plot_and_two_casts_are_two_films(plot: Place, fake_engine: FakeEngine) -> None:
    assert plot.said("render", "plot.yaml", *FOX, "--name", "fox")[0] == "out/fox/fox.mp4\n"
    plot.said("render", "plot.yaml", *DOG, "--name", "dog")
    fox, dog = manifest("fox"), manifest("dog")
    assert fox["story"]["cast"] == {"first": {"name": "a fox", "possessive": "its", "noun": None}}  # type: ignore[index]
    assert fox["story_sha256"] != dog["story_sha256"]
    (first, _), (other, _) = fox["segments"], dog["segments"]  # type: ignore[misc]
    assert (first["scene"], other["scene"]) == ("a fox in a park", "a dog in a park")  # type: ignore[has-type]
    assert first["key"] != other["key"]  # type: ignore[has-type]
    # The same film as of a story that has this cast itself, and nothing is rendered again.
    Path("own.yaml").write_text("cast: {first: {name: a fox}}\n" + PLOT)
    asked = fake_engine.asked
    plot.said("render", "own.yaml", "--name", "fox")
    assert fake_engine.asked == asked
    assert plot.json("status", "plot.yaml", *FOX, "--name", "fox")["fox"]["state"] == "done"
    plot.said("verify", "out/fox")
    plot.said("render", "plot.yaml", "--verify", *FOX, "--name", "fox")
    assert "whole" in plot.said("render", "plot.yaml", "--verify", *DOG, "--name", "dog")[0]


def test_every_command_that_reads_a_story_takes_a_cast(plot: Place) -> None:
    for words in (
        ("validate", "plot.yaml"),
        ("render", "plot.yaml", "--dry-run"),
        ("batch", "plot.yaml", "--dry-run"),
        ("submit", "plot.yaml", "--dry-run"),
        ("ablate", "plot.yaml", "--dry-run"),
        ("status", "plot.yaml"),
    ):
        assert "unknown placeholder {first}" in plot.said(*words, code=65)[1]
        plot.said(*words, *FOX)
        assert "It knows first" in plot.said(*words, *FOX, "--cast", "second=a dog", code=2)[1]
        assert "cannot be read" in plot.said(*words, "--cast", "nowhere.yaml", code=2)[1]
    plan = plot.json("render", "plot.yaml", "--dry-run", *DOG)
    assert plan["plot"]["segments"][0]["action"] == "a dog sits"


def test_a_film_that_something_else_made_is_scored_by_its_cast(plot: Place) -> None:
    plot.said("render", "plot.yaml", *FOX)
    film = ("--story", "plot.yaml", "--video", "out/plot/plot.mp4")
    assert "unknown placeholder {first}" in plot.said("eval", *film, code=65)[1]
    assert "no such member" in plot.said("eval", *film, "--cast", "x=a", code=2)[1]
    assert "--cast is for --story" in plot.said("eval", "out/plot", *FOX, code=2)[1]


def test_a_job_of_slurm_has_the_cast_and_the_name(plot: Place) -> None:
    Path("cast.yaml").write_text("cast: {first: {name: a fox}}\n")
    words = ("--cast", "cast.yaml", "--cast", "first.noun=red fox", "--name", "fox")
    script = plot.said("submit", "plot.yaml", "--dry-run", *words)[0]
    (command,) = [line for line in script.splitlines() if line.startswith("command=(")]
    told = shlex.split(command.removeprefix("command=(").removesuffix(")"))
    assert [word for word in told if word.startswith(("--cast", "--name"))] == [
        f"--cast={Path('cast.yaml').absolute()}",
        "--cast=first.noun=red fox",
        "--name=fox",
    ]


def test_a_member_whom_no_prompt_mentions_is_said(plot: Place) -> None:
    Path("own.yaml").write_text("cast: {first: {name: a}, second: {name: b}}\n" + PLOT)
    said = plot.said("validate", "own.yaml", "--cast", "second=a dog")[1]
    assert "own.yaml: no prompt mentions {second}, whom --cast names" in said
    assert "mentions" not in plot.said("validate", "own.yaml", "--cast", "second=a dog", "-q")[1]
    assert "mentions" not in plot.said("validate", "own.yaml", *FOX)[1]


def test_a_lost_possessive_is_said(plot: Place) -> None:
    text = 'cast: {first: {name: a man, possessive: his}}\nscenes: [["{first}", "{first.possessive} hat"]]\n'
    Path("own.yaml").write_text("render: {model: fake}\n" + text)
    said = plot.said("validate", "own.yaml", *FOX)[1]
    assert "{first.possessive} is 'its' for a fox: --cast first.possessive=… says otherwise" in said
    for words in ((*FOX, "--cast", "first.possessive=her"), ("--cast", "first.noun=x")):
        assert "says otherwise" not in plot.said("validate", "own.yaml", *words)[1]


def test_a_name_is_for_one_film(plot: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--name is for one story" in plot.said("render", "fox.yaml", "wolf.yaml", "--name", "a", code=2)[1]
    assert "cannot be a film's name" in plot.said("render", "fox.yaml", "--name", "../a", code=2)[1]
    typed(monkeypatch, PLOT)
    assert plot.said("render", "-", *FOX, "--name", "typed")[0] == "out/typed/typed.mp4\n"
