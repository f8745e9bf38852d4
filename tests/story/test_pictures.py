"""Pictures that scenes begin with: what a story may ask for, what a plan makes of it, what the keys cover."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from storyreel.cli.app import run
from storyreel.errors import ScriptError
from storyreel.film.keys import Keys, film_facts, film_keys
from storyreel.film.manifest import Manifest
from storyreel.film.reasons import looked_up, reasons
from storyreel.film.recorded import recorded_plan
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.rendering import render
from storyreel.story.casting import read_casting, read_casts
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import load_story
from tests.conftest import FAKE_SIZE, FakeEngine, Silent
from tests.film.test_differences import MADE_OF

HEAD = "render: {model: fake}\n"
FOX = "{scene: a fox in the park, action: a fox walks"
MADE = {**MADE_OF, "versions": {**MADE_OF["versions"], "ffmpeg": "7"}}


@pytest.fixture(autouse=True)
def folder(fake_model: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pictures, and a fake model that can begin with one."""
    monkeypatch.setitem(MODELS, "fake", replace(fake_model, pictures=True))
    stories = tmp_path / "stories"
    stories.mkdir()
    for name, grey in (("dark", 40), ("light", 200)):
        Image.new("RGB", FAKE_SIZE, (grey,) * 3).save(stories / f"{name}.png")
    return stories


def planned(folder: Path, text: str, cast: str = "", **overrides: Any) -> Plan:
    path = folder / "story.yaml"
    path.write_text(f"{HEAD if 'model' not in overrides else ''}{text}")
    return make_plan(load_story(path, read_casting([cast] if cast else [])), "story", Overrides(**overrides))


def faults(folder: Path, text: str, **overrides: Any) -> list[str]:
    with pytest.raises(ScriptError) as caught:
        planned(folder, text, **overrides)
    return [f"{fault.line}:{fault.column}: {fault.message}" for fault in caught.value.faults]


def keys(plan: Plan) -> Keys:
    return film_keys(plan, film_facts(plan, MADE, "cpu"))


def scenes(*more: str) -> str:
    lines = [
        f"  - {{scene: a fox in place {n}, action: a fox walks{extra}}}\n" for n, extra in enumerate(more)
    ]
    return "scenes:\n" + "".join(lines)


def test_a_picture_is_found_beside_the_story_and_stands_in_the_first_frame(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    plan = planned(folder, scenes("", ", picture: dark.png"))
    bare, pictured = plan.segments
    assert bare.picture is None
    assert pictured.picture is not None
    assert plan.pictures[pictured.picture] == folder / "dark.png"
    (given,) = plan.given(pictured)
    assert (given.source, given.at, given.count, given.strength, given.anew) == (1, 0, 1, 1.0, True)
    assert plan.sources(pictured) == ()
    assert pictured.lead == 1
    assert plan.seams[0].transition == "dissolve"


def test_where_the_place_stays_a_picture_begins_another_shot(folder: Path) -> None:
    text = f"scenes:\n  - {FOX}}}\n  - {FOX}, picture: dark.png}}\n"
    assert planned(folder, text).seams[0].transition == "dissolve"
    always = planned(folder, text, method=("blending=continuation",))
    assert (always.seams[0].transition, always.seams[0].overlap) == ("dissolve", 0)


def test_every_fault_is_said_at_its_place_before_anything_is_rendered(folder: Path) -> None:
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("CMYK", FAKE_SIZE).save(folder / "print.tiff")
    Image.new("RGB", (64, 96)).save(folder / "upright.png")
    names = ("missing.png", "dot.png", "print.tiff", "upright.png")
    found = faults(folder, scenes(*(f", picture: {name}" for name in names)))
    remedies = (
        "missing.png is not there; a relative name begins at the folder of the file that has it",
        "dot.png is 1x1, too small for a film of 96x64; give one of at least 24x16",
        "print.tiff is stored as CMYK; save it as RGB with 8 bits",
        "upright.png is 64x96, of which a film of 96x64 would show 44%; cut it to the film's shape, or write "
        "a render.size of the picture's shape",
    )
    assert [line.split(": ", 1)[1] for line in found] == list(remedies)
    assert [line.split(":")[0] for line in found] == ["3", "4", "5", "6"]
    (found_one,) = faults(folder, scenes("", ", transition: continue, picture: dark.png"))
    assert "begins with its last picture; take out one of the two" in found_one
    for text in (
        scenes(", picture: {file: a.png}"),
        "cast: {f: {name: f, picture: {file: a.png}}}\nscenes: [a]",
    ):
        assert "write the file's name alone, as in picture: fox.png" in faults(folder, text)[0]


@pytest.mark.parametrize("text", ["cast: {f: {name: a fox, picture: dark.png}}\nscenes: ['{f}']", None])
def test_a_model_that_cannot_says_which_can(folder: Path, text: str | None) -> None:
    (found,) = faults(folder, text or scenes(", picture: missing.png"), model="mini")
    assert "model mini cannot begin a scene with a picture; models that can: wan-2.2-5b, fake" in found


CAST = "cast: {fox: {name: a fox, picture: dark.png}, dog: {name: a dog}}\nscenes:\n"


def test_a_members_picture_begins_the_first_scene_that_names_it(folder: Path) -> None:
    text = CAST + "  - ['{dog} at home', '{dog} sleeps']\n"
    text += "  - {scene: at sea, action: '{fox} swims', transition: cut}\n"
    text += "  - {scene: '{fox} at home', transition: cut}\n"
    plan = planned(folder, text)
    assert [segment.picture is not None for segment in plan.segments] == [False, True, False]
    (portrait,) = plan.given(plan.segments[2])  # later ones know the member as that scene shows it
    assert (portrait.source, portrait.name, portrait.anew) == (1, "a fox", False)
    first = planned(folder, CAST + "  - '{fox} at home'\n")
    assert first.segments[0].picture is not None


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("  - '{dog} at home'\n", "no scene names this member"),
        (
            "  - '{dog}'\n  - '{fox}'\n",
            "scene 2, the first that names this member, does not begin with a cut",
        ),
        ("  - {scene: '{fox}', picture: light.png}\n", "begins with another picture"),
    ],
)
def test_a_members_picture_that_nothing_can_begin_with_is_refused(
    folder: Path, lines: str, words: str
) -> None:
    (found,) = faults(folder, CAST + lines)
    assert words in found
    assert found.startswith("2:36: ")


def test_of_two_members_one_can_be_first(folder: Path) -> None:
    cast = "cast: {a: {name: a fox, picture: dark.png}, b: {name: a dog, picture: light.png}}\n"
    (found,) = faults(folder, cast + "scenes: ['{a} and {b}']")
    assert "begins with another picture" in found


def test_somebody_else_does_not_look_like_the_picture(folder: Path, tmp_path: Path) -> None:
    """Nor is a file's picture looked for beside the story."""
    text = CAST + "  - '{fox} at home'\n"
    assert planned(folder, text, cast="fox=a red panda").segments[0].picture is None
    others = tmp_path / "others"
    others.mkdir()
    (folder / "light.png").rename(others / "light.png")
    (others / "cast.yaml").write_text("cast: {fox: {name: a wolf, picture: light.png}}")
    plan = planned(folder, text, cast=str(others / "cast.yaml"))
    assert list(plan.pictures.values()) == [others / "light.png"]


@pytest.mark.parametrize("whole_folder", [True, False])
def test_a_fault_of_a_cast_files_picture_names_that_file_and_the_member(
    folder: Path, tmp_path: Path, whole_folder: bool
) -> None:
    file = tmp_path / "cast.yaml"
    file.write_text("cast: {fox: {name: a wolf, picture: none.png}}")
    casting = read_casts(tmp_path)[0].casting if whole_folder else read_casting([str(file)])
    (folder / "story.yaml").write_text(f"{HEAD}{CAST}  - '{{fox}} at home'\n")
    with pytest.raises(ScriptError) as caught:
        make_plan(load_story(folder / "story.yaml", casting), "story")
    said = caught.value.faults[0].message
    assert said.startswith(f"{file}, picture of fox: {tmp_path / 'none.png'} is not there")
    assert "the story's folder" not in said


def test_a_dry_run_shows_the_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "story.yaml").write_text(HEAD + scenes("", ", picture: dark.png"))
    assert run(["render", str(folder / "story.yaml"), "--dry-run"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines.count("picture: dark.png") == 1
    assert run(["render", str(folder / "story.yaml"), "--dry-run", "--json"]) == 0
    planned_film = json.loads(capsys.readouterr().out)["story"]
    assert planned_film["pictures"] == {planned_film["segments"][1]["picture"]: "dark.png"}


def test_another_picture_changes_its_scene_and_what_goes_on_from_it_alone(folder: Path) -> None:
    """By what is in the file: its name counts for nothing. Without one, a key is what it always was."""
    shot = "scenes:\n  - a fox at sea\n  - {scene: a fox in the park%s, transition: cut}\n"
    shot += "  - a fox in the park\n"
    shot += "  - {scene: a dog at home, transition: cut}\n"
    bare, dark, light = (
        keys(planned(folder, shot % more)) for more in ("", ", picture: dark.png", ", picture: light.png")
    )
    assert len({one.latents[1] for one in (bare, dark, light)}) == 3
    assert len({one.latents[2] for one in (bare, dark, light)}) == 3
    for index in (0, 3):
        assert len({one.latents[index] for one in (bare, dark, light)}) == 1
    (folder / "dark.png").rename(folder / "renamed.png")
    assert keys(planned(folder, shot % ", picture: renamed.png")) == dark


def test_the_film_shows_the_picture_and_says_so(folder: Path, tmp_path: Path) -> None:
    """Its first frame is the picture; the manifest has its hash, and the film is known by that alone."""
    out, text = tmp_path / "out", scenes("", ", transition: cut, picture: light.png")
    plan = planned(folder, text)
    made = render(plan, "foxes", out, FakeEngine(), Silent())
    width, height = FAKE_SIZE
    before = plan.segments[0].frames * width * height * 3
    assert made.film.read_bytes()[before] == 200
    manifest = Manifest.read(out / "foxes" / "manifest.json")
    assert manifest is not None
    assert [segment.get("picture") for segment in manifest.segments] == [None, plan.segments[1].picture]
    again = recorded_plan(manifest, "foxes")
    assert again is not None
    assert again.segments == plan.segments
    assert render(planned(folder, text), "foxes", out, FakeEngine(), Silent()).rendered == 0
    other = planned(folder, text.replace("light", "dark"))
    assert reasons(*looked_up(other, out, "foxes")) == {1: "the picture that it begins with has changed"}
    assert render(other, "foxes", out, FakeEngine(), Silent()).rendered == 1


def test_a_story_without_pictures_loads_nothing_for_them(folder: Path) -> None:
    (folder / "plain.yaml").write_text("scenes: [a fox]")
    code = (
        "import sys\nfrom pathlib import Path\nfrom storyreel.story.planning import make_plan\n"
        "from storyreel.story.schema import load_story\n"
        f"make_plan(load_story(Path({str(folder / 'plain.yaml')!r})), 'a')\nassert 'PIL' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
