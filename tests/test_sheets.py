"""Contact sheets: drafts are what the film begins with, each is made once, and the film is left alone."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from storyreel.cli.app import run
from storyreel.cli.results import result_schema
from storyreel.denoise.loop import segment_noise
from storyreel.errors import LockedError, OutputError, StoppedError
from storyreel.film import sheet
from storyreel.film.clean import remove_unused, unused
from storyreel.film.folder import FilmFolder
from storyreel.film.sheet import Shown, drawn
from storyreel.models.specs import ModelSpec
from storyreel.rendering import render
from storyreel.sheets import Drawn, draw_sheet
from storyreel.story.draft import LATENTS, STEPS, draft_of, with_seed
from storyreel.story.planning import make_plan
from storyreel.story.schema import parse_story
from tests.conftest import FakeEngine, Silent, plan_of
from tests.test_rendering import CAST, LOOKS, SCENES, story

pytestmark = pytest.mark.usefixtures("fake_model")
STORY = story().replace("model: fake", "model: fake, steps: 5")


def draw(
    out: Path, text: str = STORY, engine: FakeEngine | None = None, seeds: int = 1
) -> tuple[Drawn, FakeEngine]:
    engine = engine or FakeEngine()
    read = parse_story("s.yaml", text.encode())
    others = {seed: make_plan(with_seed(read, seed), "s") for seed in range(1, seeds + 1) if seeds > 1}
    return draw_sheet(make_plan(read, "s"), others, seeds, "foxes", out, engine, Silent()), engine


def cut_out(made: Drawn, number: int, seed: int | None = None) -> bytes:
    """The pixels of a scene's picture on a sheet."""
    boxes = {(one["number"], one["seed"]): one["box"] for one in made.sheet.content["pictures"]}
    with Image.open(made.sheet.picture) as picture:
        return picture.crop(boxes[number, seed]).tobytes()


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", ".lock.json")
    }


def test_a_draft_is_the_beginning_of_its_scenes() -> None:
    plan = plan_of(STORY.replace("steps: 5", "steps: 40, seconds: 3"))
    draft = draft_of(plan)
    assert [(s.latents, s.frames) for s in draft.segments] == [(LATENTS, 3 * LATENTS)] * 6
    assert draft.settings == replace(plan.settings, steps=10)
    assert draft_of(plan_of(STORY.replace("steps: 5", "steps: 9"))).settings.steps == STEPS
    assert draft_of(plan_of(STORY.replace("steps: 5", "steps: 2"))).settings.steps == 2
    few = replace(plan, spec=replace(plan.spec, sigmas=(1.0, 0.9, 0.8, 0.6, 0.3)))  # none can be left out
    assert draft_of(few).settings.steps == 40
    assert [(s.scene, s.action, s.seed) for s in draft.segments] == [
        (s.scene, s.action, s.seed) for s in plan.segments
    ]
    assert [seam.transition for seam in draft.seams] == [seam.transition for seam in plan.seams]
    for short, whole in zip(draft.segments, plan.segments, strict=True):
        noise, begins = segment_noise(draft, short), segment_noise(plan, whole)
        own = begins[:, :, whole.lead :][:, :, :LATENTS]
        assert torch.equal(noise[:, :, short.lead :], own)
    # What a lead takes from a draft is there.
    for segment in draft.segments:
        for part in draft.given(segment):
            source = draft.segments[part.source]
            assert part.first >= 0
            assert part.first + part.count <= source.lead + source.latents


def test_a_sheet_has_a_picture_of_every_scene_and_leaves_the_film_alone(tmp_path: Path) -> None:
    render(plan_of(STORY), "foxes", tmp_path, FakeEngine(), Silent())
    before = everything(tmp_path)
    made, engine = draw(tmp_path)
    assert engine.fake is not None
    assert made.forwards == len(engine.fake.predicted) == 6 * STEPS
    after = everything(tmp_path)
    new = {name for name in after if name not in before}
    assert {name: after[name] for name in before} == before
    assert {name for name in new if not name.startswith("foxes/drafts/")} == {
        "foxes/sheet.png",
        "foxes/sheet.json",
    }
    content = json.loads((tmp_path / "foxes" / "sheet.json").read_text())
    assert [(p["number"], p["scene"], p["action"], p["seed"], p["chosen"]) for p in content["pictures"]] == [
        (number, scene, action, None, True) for number, (scene, action) in enumerate(SCENES, 1)
    ]
    assert len({cut_out(made, number) for number in range(1, 7)}) > 2  # scenes have greys of their own


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    first, _ = draw(tmp_path)
    pictures = [cut_out(first, number) for number in range(1, 7)]
    written = everything(tmp_path)
    again, engine = draw(tmp_path)
    assert (again.forwards, engine.asked) == (0, 0)
    assert again.sheet == first.sheet
    assert everything(tmp_path) == written
    # Another text of the last shot's first scene: that scene, and the one that goes on from it.
    changed, _ = draw(tmp_path, STORY.replace("it swims", "it snores"))
    assert changed.forwards == 2 * STEPS
    assert [cut_out(changed, number) for number in range(1, 5)] == pictures[:4]
    assert cut_out(changed, 5) != pictures[4]
    back, _ = draw(tmp_path)
    assert back.forwards == 0
    assert back.sheet.content == first.sheet.content
    # Another seed of the film changes no text, and every draft.
    assert draw(tmp_path, STORY.replace("steps: 5", "steps: 5, seed: 3"))[0].forwards == 6 * STEPS
    # A title is drawn anew, and nothing is computed.
    titled, engine = draw(tmp_path, STORY.replace("Foxes", "Other foxes"))
    assert (titled.forwards, titled.sheet.content["title"]) == (0, "Other foxes")


def test_a_damaged_sheet_or_draft_is_made_again(tmp_path: Path) -> None:
    first, _ = draw(tmp_path)
    data = first.sheet.picture.read_bytes()
    first.sheet.picture.write_bytes(data[:-20])
    again, _ = draw(tmp_path)
    assert (again.forwards, again.sheet.picture.read_bytes()) == (0, data)
    for name in ("sheet.json", "sheet.png"):
        (tmp_path / "foxes" / name).write_bytes(b"[1]")
        assert draw(tmp_path)[0].sheet.content == first.sheet.content
    draft = next((tmp_path / "foxes" / "drafts").glob("01-*.safetensors"))
    draft.write_bytes(b"x")
    first.sheet.picture.unlink()
    again, _ = draw(tmp_path)
    assert (again.forwards, again.sheet.picture.read_bytes()) == (STEPS, data)


def test_of_several_seeds_the_chosen_one_is_what_the_story_then_shows(tmp_path: Path) -> None:
    several, _ = draw(tmp_path, seeds=3)
    assert several.forwards == 3 * 6 * STEPS
    pictures = several.sheet.content["pictures"]
    seen = {(p["number"], p["seed"]): cut_out(several, p["number"], p["seed"]) for p in pictures}
    assert [p["seed"] for p in pictures] == [None, 1, 2] * 6
    assert [p["chosen"] for p in pictures] == [True, False, False] * 6
    # Scene 5 begins a shot, scene 6 goes on in it.
    text = STORY.replace("scene: a lake", "scene: a lake, seed: 2")
    kept, _ = draw(tmp_path, text)
    assert kept.forwards == STEPS
    assert cut_out(kept, 5, 2) == seen[5, 2]
    drafts = list((tmp_path / "foxes" / "drafts").glob("05-*.safetensors"))
    assert len({path.read_bytes() for path in drafts}) == 3
    assert [cut_out(kept, n) for n in range(1, 5)] == [seen[n, None] for n in range(1, 5)]
    more, _ = draw(tmp_path, text, seeds=3)
    assert [p["seed"] for p in more.sheet.content["pictures"] if p["number"] == 5] == [2, 1, 3]
    film = make_plan(parse_story("s", text.encode()), "s")
    draft = draft_of(film)
    assert torch.equal(
        segment_noise(draft, draft.segments[4])[:, :, -1],
        segment_noise(film, film.segments[4])[:, :, film.segments[4].lead + draft.segments[4].latents - 1],
    )


def test_clean_keeps_the_drafts_that_the_sheet_shows(tmp_path: Path) -> None:
    render(plan_of(STORY), "foxes", tmp_path, FakeEngine(), Silent())
    draw(tmp_path, STORY.replace("it swims", "it snores"))
    draw(tmp_path)
    found = unused(tmp_path / "foxes")
    assert sorted(path.name[:3] for path in found.files) == ["05-", "05-", "06-", "06-"]
    assert {path.parent.name for path in found.files} == {"drafts"}
    remove_unused(tmp_path / "foxes")
    (tmp_path / "foxes" / "sheet.png").unlink()
    assert draw(tmp_path)[0].forwards == 0
    (tmp_path / "foxes" / "sheet.json").write_text('{"pictures": [1]}')
    assert len(unused(tmp_path / "foxes").files) == 12


def test_characters_are_led_as_in_the_film(tmp_path: Path) -> None:
    made, engine = draw(tmp_path, CAST)
    assert engine.fake is not None
    assert made.forwards == 5 * 3
    assert len(engine.fake.predicted) == made.forwards + LOOKS  # where the two are is looked up as in a film


def test_a_signal_stops_it_and_finished_drafts_stay(tmp_path: Path) -> None:
    engine = FakeEngine()

    def stop(count: int) -> None:
        if count == 2 * STEPS + 1:
            engine.stop.ask(signal.SIGTERM, None)

    engine.fake = engine.adapter(plan_of(STORY).spec)
    engine.fake.on_predict = stop
    with pytest.raises(StoppedError):
        draw(tmp_path, engine=engine)
    assert not (tmp_path / "foxes" / "sheet.png").exists()
    assert draw(tmp_path)[0].forwards == 4 * STEPS


def test_a_folder_that_is_in_use_or_strange_is_refused(tmp_path: Path) -> None:
    with FilmFolder(tmp_path / "foxes", "foxes"), pytest.raises(LockedError):
        draw(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for name in ("sheet.png", "drafts"):
        link = tmp_path / "foxes" / name
        link.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OutputError, match="is not a plain"):
            draw(tmp_path)
        link.unlink()


WORDS = st.text(alphabet="ab –狐é🦊\u0301 ", max_size=300).filter(lambda text: text.strip())


@settings(max_examples=15, derandomize=True, deadline=None)
@given(st.lists(st.tuples(WORDS, st.none() | WORDS), min_size=1, max_size=9), st.integers(1, 3), st.data())
def test_pictures_never_overlap_whatever_the_texts(
    texts: list[tuple[str, str | None]], seeds: int, data: st.DataObject
) -> None:
    size = data.draw(st.sampled_from([(96, 64), (200, 480), (40, 40)]))
    shown = [
        Shown(number, scene, action or scene, seed or None, seed == 0, "")
        for number, (scene, action) in enumerate(texts, 1)
        for seed in range(seeds)
    ]
    pictures = [Image.new("RGB", size, (7 * i % 256, 90, 90)) for i in range(len(shown))]
    sheet, boxes = drawn("A title", "made so", shown, pictures)
    for (left, top, right, bottom), picture in zip(boxes, pictures, strict=True):
        assert 0 <= left < right <= sheet.width
        assert 0 <= top < bottom <= sheet.height
        assert sheet.crop((left, top, right, bottom)).getcolors() == [
            ((right - left) * (bottom - top), picture.getpixel((0, 0)))
        ]


def test_a_long_story_has_a_sheet_of_bounded_size() -> None:
    shown = [Shown(n, "a park", "a fox sits", None, True, "") for n in range(1, 1001)]
    picture, boxes = drawn("", "", shown, [Image.new("RGB", (192, 128))] * 1000)
    assert picture.width * picture.height < 1.5 * sheet.MOST_PIXELS
    assert boxes[0][2] - boxes[0][0] < sheet.WIDTH


@pytest.fixture
def file(tmp_path: Path, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "foxes.yaml"
    path.write_text(STORY + "# the end\n")
    return path


def test_the_command_prints_the_sheet(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sheet", "foxes.yaml"]) == 0
    assert capsys.readouterr().out == "out/foxes/sheet.png\n"
    assert run(["sheet", "foxes.yaml", "--seeds", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    jsonschema.validate(printed, result_schema("sheet"))
    assert (printed["forwards"], len(printed["pictures"])) == (6 * STEPS, 12)
    assert "--keep" in err


def test_what_is_kept_stands_in_the_story(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sheet", "foxes.yaml", "--keep", "3=2,5=0", "--keep", "1=9"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "foxes.yaml: scene 3 has seed 2",
        "foxes.yaml: scene 5 has seed 0",
        "foxes.yaml: scene 1 has seed 9",
    ]
    scenes = parse_story("s", file.read_bytes()).scenes
    assert [scene.seed for scene in scenes] == [9, None, 2, None, 0, None]
    assert file.read_text().endswith("# the end\n")
    assert run(["sheet", "foxes.yaml", "--keep", "1=none,3=none,5=none", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    jsonschema.validate(printed, result_schema("sheet"))
    assert printed == {"story": "foxes.yaml", "seeds": {"1": None, "3": None, "5": None}, "changed": True}
    assert file.read_text() == STORY + "# the end\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep", "3"], "is not SCENE=SEED"),
        (["--keep", "x=2"], "is not SCENE=SEED"),
        (["--keep", "3=-1"], "is not a seed"),
        (["--keep", f"3={2**63}"], "is not a seed"),
        (["--keep", "3=2,3=4"], "scene 3 twice"),
        (["--keep", "1=1,7=2"], "it has no scene 7"),
        (["--keep", "1=1", "--seeds", "3"], "exclude each other"),
    ],
    ids=lambda words: words[1] if isinstance(words, list) else "",
)
def test_a_choice_that_makes_no_sense_changes_nothing(
    file: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file.read_bytes()
    assert run(["sheet", "foxes.yaml", *words]) == 2
    assert said in capsys.readouterr().err
    assert file.read_bytes() == before
    assert run(["sheet", "-", "--keep", "1=1"]) == 2


def test_a_faulty_story_has_no_sheet(file: Path, fake_model: ModelSpec) -> None:
    file.write_text("scenes: [a]\nx: 1\n")
    assert run(["sheet", "foxes.yaml"]) == 65
    assert not Path("out").exists()
