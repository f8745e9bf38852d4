"""--cast and --name, wherever a story is read."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
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


@pytest.fixture
def casts(plot: Place) -> Place:
    """Three casts, of which two are for plot.yaml, and one for all."""
    Path("casts").mkdir()
    Path("casts", "fox.yaml").write_text("cast: {first: {name: a fox}}\n")
    Path("casts", "dog.yaml").write_text("cast: {first: {name: a dog}}\nstories: [pl*]\n")
    Path("casts", "cat.yaml").write_text("cast: {first: {name: a cat}}\nstories: [other]\n")
    return plot


CASTS = ("--casts", "casts")


def test_every_cast_that_is_for_a_story_makes_a_film_of_it(casts: Place, fake_engine: FakeEngine) -> None:
    out = casts.said("render", "plot.yaml", *CASTS)[0]
    assert out == "out/plot-dog/plot-dog.mp4\nout/plot-fox/plot-fox.mp4\n"
    assert [manifest(f"plot-{who}")["segments"][0]["scene"] for who in ("dog", "fox")] == [  # type: ignore[index]
        "a dog in a park",
        "a fox in a park",
    ]
    # Each is the film of its cast alone.
    asked = fake_engine.asked
    casts.said("render", "plot.yaml", *DOG, "--name", "plot-dog")
    assert fake_engine.asked == asked
    assert casts.json("batch", "plot.yaml", *CASTS, "--status").keys() == {"plot-dog", "plot-fox"}


def test_every_command_that_takes_many_stories_takes_casts(casts: Place) -> None:
    names = {"plot-dog", "plot-fox"}
    found = casts.json("validate", "plot.yaml", *CASTS)
    assert found.keys() == {"plot.yaml with dog", "plot.yaml with fox"}
    for command in ("render", "batch"):
        assert casts.json(command, "plot.yaml", *CASTS, "--dry-run").keys() == names
    films = casts.json("ablate", "plot.yaml", *CASTS, "--dry-run", "--seeds", "1", "--variants", "full")
    assert {label.partition(",")[0] for label in films} == names
    for words in (("retake", "plot.yaml", "1"), ("sheet", "plot.yaml"), ("status", "plot.yaml")):
        assert "No such option" in casts.said(*words, *CASTS, code=2)[1]


def test_each_element_of_a_job_has_its_cast(casts: Place) -> None:
    made = casts.json("submit", "plot.yaml", *CASTS, "--dry-run")
    assert made["films"] == dict.fromkeys(("plot-dog", "plot-fox"), str(Path("plot.yaml").absolute()))
    script = made["script"]
    # The element 1 says what it would run.
    script = (
        script[: script.index("\ncd -- ")]
        + "\n"
        + next(line.removesuffix(" &") for line in script.splitlines() if line.startswith('"${command'))
    )
    script = script.replace('"${command[@]}"', 'printf "%s\\n"')
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("a shell's arrays")
    environment = {"SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run([bash, "-c", script], env=environment, capture_output=True, text=True, check=True)
    here = Path().absolute()
    assert done.stdout.split() == [
        "--name=plot-fox",
        f"--cast={here}/casts/fox.yaml",
        "--",
        f"{here}/plot.yaml",
    ]
    assert "--casts" not in made["script"]
    assert "names=" not in casts.said("submit", "plot.yaml", *FOX, "--dry-run")[0]


def test_a_story_for_which_there_is_no_cast_is_left_out(casts: Place) -> None:
    Path("casts", "fox.yaml").unlink()
    text = PLOT.replace("{first}", "a wolf")
    Path("alone.yaml").write_text(text)
    out, said = casts.said("validate", "plot.yaml", "alone.yaml", *CASTS)
    assert out.count("\n") == 1
    assert "alone.yaml: left out, no cast is for it" in said
    assert "left out" not in casts.said("validate", "plot.yaml", "alone.yaml", *CASTS, "-q")[1]
    assert (
        "none of the casts is for any of the stories" in casts.said("render", "alone.yaml", *CASTS, code=2)[1]
    )


OWN = "cast: {first: {name: a cat}}\n" + PLOT


def test_a_cast_that_is_for_no_story_is_said(casts: Place) -> None:
    said = casts.said("validate", "plot.yaml", *CASTS)[1]
    assert "cat.yaml: left out, it is for none of the stories" in said
    assert said.count("left out") == 1


@pytest.mark.parametrize("cast", ["{frist: {name: a dog}}", "{}"])
def test_a_cast_that_changes_nobody_makes_no_film_of_its_name(casts: Place, cast: str) -> None:
    Path("plot.yaml").write_text(OWN)
    Path("casts", "dog.yaml").write_text(f"cast: {cast}\n")
    said = casts.said("render", "plot.yaml", *CASTS, code=2)[1]
    assert "dog.yaml changes nobody in plot.yaml" in said
    assert ("left out of the cast that is given: frist; the story knows first" in said) is ("frist" in cast)
    assert not Path("out").exists()
    out = casts.said("render", "plot.yaml", *CASTS, "--keep-going", code=2)[0]
    assert out == "out/plot-fox/plot-fox.mp4\n"


@pytest.mark.parametrize(
    ("members", "strangers"),
    [
        ("frist: {name: a dog}", "frist"),
        ("first: {name: a dog}, secnd: {name: a fox}, x: {name: y}", "secnd, x"),
        ("first: {name: a dog}", None),
    ],
)
def test_members_of_a_file_whom_a_story_does_not_know_are_said(
    plot: Place, members: str, strangers: str | None
) -> None:
    Path("plot.yaml").write_text(OWN)
    Path("cast.yaml").write_text(f"cast: {{{members}}}\n")
    said = plot.said("validate", "plot.yaml", "--cast", "cast.yaml")[1]
    words = f"plot.yaml: left out of the cast that is given: {strangers}; the story knows first\n"
    assert (words in said) if strangers else ("left out" not in said)


def test_what_is_wrong_with_casts_is_said_before_anything_is_rendered(
    casts: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*words: str, code: int = 2) -> str:
        return casts.said("render", "plot.yaml", *words, code=code)[1]

    assert "--casts and --cast exclude each other" in refused(*CASTS, *FOX)
    assert "--casts and --name exclude each other" in refused(*CASTS, "--name", "x")
    assert "it is not a folder" in refused("--casts", "casts/fox.yaml")
    assert "it is not a folder" in refused("--casts", "nowhere")
    Path("empty").mkdir()
    assert "there is no cast in it" in refused("--casts", "empty")
    typed(monkeypatch, PLOT)
    assert "cannot be with standard input" in casts.said("render", "-", *CASTS, code=2)[1]
    fox = Path("casts", "fox.yaml")
    for text, words in {
        "cast: {first: {name: a fox}}\nstory: [plot]\n": "fox.yaml:2:1: error: unknown key 'story'",
        "cast: {first: {name: a fox}}\nstories: plot\n": "fox.yaml:2:10: error: a list of names of stories",
        "cast: {first: {name: a fox}}\nstories: [1]\n": "a list of names of stories",
        "cast: {first: {name: a fox}}\nstories: []\n": "a list of names of stories",
        "stories: [plot]\n": "there is no cast in it",
        "cast: {first: {nam: a fox}}\n": "unknown key 'nam'",
        "- fox\n": "there is no cast in it",
    }.items():
        fox.write_text(text)
        assert words in refused(*CASTS, code=65), text
    # A cast that lacks somebody is a fault of that film alone.
    fox.write_text("cast: {second: {name: a fox}}\n")
    assert "unknown placeholder {first}" in refused(*CASTS, code=65)
    assert not Path("out").exists()
    out = casts.said("render", "plot.yaml", *CASTS, "--keep-going", code=65)[0]
    assert out == "out/plot-dog/plot-dog.mp4\n"


def test_a_story_may_be_a_cast_and_plays_everywhere(casts: Place) -> None:
    Path("casts", "fox.yaml").write_text("title: t\ncast: {first: {name: a wolf}}\n" + PLOT)
    assert casts.json("validate", "plot.yaml", *CASTS)["plot.yaml with fox"]["valid"]
