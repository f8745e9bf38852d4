"""`storyreel import`: where the story goes, what is said of it, and that it is valid."""

from __future__ import annotations

import json
import os
import typing
from pathlib import Path

import pytest

from storyreel.cli.importing import FormatName
from storyreel.story.importing import FORMATS
from storyreel.story.schema import parse_story
from tests.cli.test_commands import Place, place, typed
from tests.story.importing.test_formats import FOUNTAIN, LINES, LISTS, STORYMEM, TRAVEL, VISTORY

__all__ = ["place"]

FILES = {
    "lines.txt": LINES,
    "prompts.json": LISTS["prompts.json"],
    "ditctrl.yaml": LISTS["deep.yaml"],
    "run.py": LISTS["run.py"],
    "storymem.json": json.dumps(STORYMEM),
    "vistory.json": json.dumps(VISTORY),
    "travel.json": json.dumps(TRAVEL),
    "scene.fountain": FOUNTAIN,
}


def test_the_options_name_every_format() -> None:
    assert typing.get_args(FormatName) == tuple(FORMATS)


@pytest.mark.parametrize("name", FILES)
def test_what_is_imported_can_be_rendered(place: Place, name: str) -> None:
    Path(name).write_text(FILES[name])
    printed, said = place.said("import", name)
    parse_story("printed", printed.encode())
    assert f"{name}: guessed: " in said
    assert place.said("import", name, "--to", "made.yaml") == ("made.yaml\n", said)
    assert Path("made.yaml").read_text() == printed
    place.said("validate", "made.yaml")
    place.said("render", "made.yaml", "--dry-run")


def test_a_story_that_is_there_is_kept(place: Place) -> None:
    Path("a.txt").write_text("a fox sits\n")
    Path("film.yaml").write_text("mine")
    out, err = place.said("import", "a.txt", "--to", "film.yaml", code=2)
    assert (out, Path("film.yaml").read_text()) == ("", "mine")
    assert "is there already" in err
    assert "--overwrite" in err
    place.said("import", "a.txt", "--to", "film.yaml", "--overwrite")
    assert "a fox sits" in Path("film.yaml").read_text()
    Path("dead.yaml").symlink_to("nowhere")
    place.said("import", "a.txt", "--to", "dead.yaml", code=2)
    assert "--to STORY.yaml" in place.said("import", "a.txt", "--overwrite", code=2)[1]
    Path("empty.txt").write_text("")
    place.said("import", "empty.txt", "--to", "film.yaml", "--overwrite", code=65)
    assert "a fox sits" in Path("film.yaml").read_text()
    assert "cannot write" in place.said("import", "a.txt", "--to", "no/where.yaml", code=73)[1]


def test_json_has_all_that_is_said(place: Place) -> None:
    Path("travel.json").write_text(json.dumps(TRAVEL))
    found = place.json("import", "travel.json")
    assert (found["format"], found["file"], found["scenes"], found["cast"]) == ("travel", None, 3, [])
    assert found["story"] == place.said("import", "travel.json")[0]
    assert len(found["changed"]) == 2
    assert "the setting n_prompt" in found["left_out"]
    said = place.said("import", "travel.json")[1]
    for kind, lines in (("guessed", "guessed"), ("changed", "changed"), ("left out", "left_out")):
        assert all(f"travel.json: {kind}: {line}\n" in said for line in found[lines])
    assert place.json("import", "travel.json", "--to", "a.yaml")["file"] == "a.yaml"
    Path("long.txt").write_text("quixotic " * 90)
    (problem,) = place.json("import", "long.txt")["problems"]
    assert "tokens" in problem["message"]
    assert "warning: mini cannot render the story as it is" in place.said("import", "long.txt")[1]
    assert place.said("import", "long.txt", "-q")[1] == ""


def test_a_long_list_of_losses_is_cut_on_the_terminal_alone(place: Place) -> None:
    Path("many.json").write_text(json.dumps({"prompts": ["a fox"], **{f"key{n}": n for n in range(40)}}))
    said = place.said("import", "many.json")[1]
    assert said.count("left out: the setting") == 12
    assert "left out: 28 more, all of them with --json" in said
    found = place.json("import", "many.json")
    assert len(found["left_out"]) == 40
    assert found["story"].count("# Left out: ") == 13


def test_standard_input_and_what_is_no_file(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "a fox sits\na fox runs\n")
    assert "- a fox sits\n  - a fox runs\n" in place.said("import", "-")[0]
    assert "No such file" in place.said("import", "nowhere.txt", code=2)[1]
    assert "is a folder" in place.said("import", ".", code=2)[1]
    typed(monkeypatch, "")
    assert "stdin is empty" in place.said("import", "-", code=65)[1]
    Path("fox.txt").write_text("a fox")
    assert "unknown model" in place.said("import", "fox.txt", "--model", "sora", code=2)[1]
    assert "--from" in place.said("import", "fox.txt", "--from", "fdx", code=2)[1]
    if os.geteuid():
        Path("fox.txt").chmod(0)
        assert "cannot be read" in place.said("import", "fox.txt", code=2)[1]
