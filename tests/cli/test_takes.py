"""The commands retake and keep, and render --scenes: what they print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from storyreel.errors import NumericsError
from storyreel.story.schema import load_story
from tests.cli.test_commands import Place
from tests.conftest import FakeEngine

STORY = """\
# A story with a comment.
render: {model: fake}
cast:
  fox: {name: a fox}   # red
scenes:
  - ["{fox} in the park", "{fox} sits"]

  - scene: "{fox} in the park again"   # the same place
    action: "{fox} walks"
    transition: continue
  - ["{fox} at sea", "{fox} swims"]
"""


@pytest.fixture
def place(
    tmp_path: Path,
    fake_engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, capsys)


@pytest.fixture
def story(place: Place) -> Path:
    path = Path("tale.yaml")
    path.write_text(STORY)
    place.said("render", "tale.yaml")
    return path


def forwards(engine: FakeEngine) -> int:
    assert engine.fake is not None
    count = len(engine.fake.predicted)
    engine.fake.predicted.clear()
    return count


@pytest.mark.usefixtures("ffmpeg")
def test_takes_are_made_beside_each_other_and_one_is_kept(
    place: Place,
    story: Path,
    fake_engine: FakeEngine,
) -> None:
    film = Path("out/tale/tale.mp4")
    before = film.read_bytes()
    forwards(fake_engine)
    printed, said = place.said("retake", "tale.yaml", "2", "--takes", "3", "--action", "{fox} sleeps")
    assert forwards(fake_engine) == 3 * 3
    *takes, sheet = printed.splitlines()
    assert [line.partition(":")[0] for line in takes] == ["take 2", "take 3", "take 4"]
    assert all(Path(line.partition(": ")[2]).is_file() for line in takes)
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
    assert "storyreel keep tale.yaml 2 TAKE" in said
    assert (story.read_text(), film.read_bytes()) == (STORY, before)

    place.said("keep", "tale.yaml", "2", "3")
    kept = '    action: "{fox} walks"\n    transition: continue\n'
    retake = load_story(story).scenes[1].retake
    assert retake is not None
    assert (retake.take, retake.action, retake.seed) == (3, "{fox} sleeps", None)
    lines = story.read_text().splitlines()
    assert [line for line in lines if "retake" not in line] == STORY.splitlines()
    assert kept in story.read_text()

    place.said("render", "tale.yaml")
    assert forwards(fake_engine) == 0  # all of it is there
    assert film.read_bytes() != before
    manifest = json.loads(Path("out/tale/manifest.json").read_text())
    assert [s["action"] for s in manifest["segments"]] == ["a fox sits", "a fox sleeps", "a fox swims"]

    place.said("keep", "tale.yaml", "2", "1")
    assert story.read_text() == STORY
    place.said("render", "tale.yaml")
    assert film.read_bytes() == before


@pytest.mark.usefixtures("ffmpeg")
def test_their_json_has_the_shapes_that_are_published(place: Place, story: Path) -> None:
    made = place.json("retake", "tale.yaml", "1", "--takes", "2", "--seed", "7")
    assert [(take["take"], take["seed"]) for take in made["takes"]] == [(2, 7), (3, 8)]
    planned = place.json("retake", "tale.yaml", "1", "--dry-run")
    assert planned == {"scene": 1, "takes": [{"take": 4, "forwards": 3, "first": []}]}
    assert place.json("keep", "tale.yaml", "1", "3")["changed"] is True
    assert place.json("keep", "tale.yaml", "1", "3")["changed"] is False
    assert load_story(story).scenes[0].retake.written == {"take": 3, "seed": 8}  # type: ignore[union-attr]
    parts = place.json("render", "tale.yaml", "--scenes", "1,3", "--out", "other")
    assert (parts["tale"]["state"], sorted(parts["tale"]["videos"])) == ("parts", ["1", "3"])
    missing = place.json("render", "tale.yaml", "--dry-run", "--out", "other")["tale"]["missing"]
    assert list(missing) == ["2"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("retake", "tale.yaml", "4"), "no scene 4"),
        (("retake", "-", "1"), "a story in a file"),
        (("retake", "tale.yaml", "1", "--action", "{cat} sits"), "unknown placeholder {cat}"),
        (("retake", "tale.yaml", "1", "--action", " "), "action"),
        (("retake", "tale.yaml", "0"), "greater than or equal to 1"),
        (("keep", "tale.yaml", "1", "9"), "scene 1 has no take 9; there are: 1"),
        (("keep", "tale.yaml", "7", "1"), "no scene 7"),
        (("render", "tale.yaml", "--scenes", "1-9"), "1-9 is not in the film"),
        (("render", "tale.yaml", "--scenes", "first"), "no number of a scene"),
        (("render", "tale.yaml", "--scenes", "3-1"), "3-1 is not in the film"),
        (("render", "tale.yaml", "--scenes", "1,"), "no number of a scene"),
        (("render", "tale.yaml", "--scenes", "1", "--verify"), "exclude each other"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_done(
    place: Place,
    story: Path,
    fake_engine: FakeEngine,
    words: tuple[str, ...],
    says: str,
) -> None:
    asked = fake_engine.asked
    assert says in place.said(*words, code=2)[1]
    assert fake_engine.asked == asked
    assert story.read_text() == STORY


@pytest.mark.usefixtures("ffmpeg")
def test_a_retake_takes_the_seed_that_the_film_was_rendered_with(
    place: Place,
    story: Path,
    fake_engine: FakeEngine,
) -> None:
    place.said("render", "tale.yaml", "--seed", "5")
    forwards(fake_engine)
    place.said("retake", "tale.yaml", "2")
    assert forwards(fake_engine) == 3  # and no first take of another film
    place.said("retake", "tale.yaml", "2", "--film-seed", "6")
    assert forwards(fake_engine) > 3


def test_a_dry_run_says_what_is_there_what_will_be_rendered_and_why(place: Place, story: Path) -> None:
    assert place.said("render", "tale.yaml", "--dry-run")[0].count("is there") == 3
    story.write_text(STORY.replace("{fox} sits", "{fox} sleeps"))
    printed = place.said("render", "tale.yaml", "--dry-run")[0]
    assert "to render: its action prompt has changed" in printed
    assert "to render: it goes on from scene 1, which is rendered again" in printed
    assert "to render: it shows somebody as scene 1 does, which is rendered again" in printed
    assert "storyreel retake STORY 1 --action '{fox} sleeps'" in printed


@pytest.mark.usefixtures("ffmpeg")
def test_takes_belong_to_a_scenes_prompts_and_not_to_its_place(place: Place, story: Path) -> None:
    place.said("retake", "tale.yaml", "2", "--takes", "2")
    moved = STORY.replace("scenes:\n", 'scenes:\n  - ["{fox} on a hill", "{fox} digs"]\n')
    story.write_text(moved)
    assert "scene 2 has no take 3; there are: 1" in place.said("keep", "tale.yaml", "2", "3", code=2)[1]
    place.said("keep", "tale.yaml", "3", "3")
    assert load_story(story).scenes[2].retake.take == 3  # type: ignore[union-attr]
    story.write_text(STORY.replace("{fox} walks", "{fox} limps"))
    said = place.said("keep", "tale.yaml", "2", "3", code=2)[1]
    assert "former prompts" in said


@pytest.mark.usefixtures("ffmpeg")
def test_a_film_with_a_kept_take_is_whole_and_so_it_is_once_the_others_are_removed(
    place: Place, story: Path
) -> None:
    page = Path("out/tale/index.html")
    place.said("retake", "tale.yaml", "2", "--takes", "2")
    assert page.read_text().count("segments/02-") >= 3
    assert not Path("out/tale/unfinished.html").exists()
    assert place.json("status", "out/tale")["tale"]["state"] == "done"
    place.said("keep", "tale.yaml", "2", "3")
    said = place.said("render", "tale.yaml", "--verify", code=1)[0]
    assert "belongs to another film (scene 2's take 1 -> 3)" in said
    assert "scene 2's take 1 -> 3" in place.said("render", "tale.yaml")[1]
    assert {take["take"] for take in json.loads(Path("out/tale/takes.json").read_text())} == {1, 2, 3}
    place.said("render", "tale.yaml", "--verify")
    place.said("clean", "--yes")
    assert "segments/02-" in page.read_text()
    before = len(list(Path("out/tale/segments").iterdir()))
    place.said("clean", "--yes", "--takes")
    assert len(list(Path("out/tale/segments").iterdir())) < before
    place.said("verify", "out/tale")
    place.said("render", "tale.yaml", "--verify")


@pytest.mark.usefixtures("ffmpeg")
@pytest.mark.parametrize(("seed", "left"), [([], "--takes 2\n"), (["--seed", "7"], "--takes 2 --seed 8\n")])
def test_takes_that_were_made_before_one_failed_are_told(
    place: Place, story: Path, fake_engine: FakeEngine, seed: list[str], left: str
) -> None:
    adapter = fake_engine.fake
    assert adapter is not None
    at = len(adapter.predicted) + 8  # three for a take, and three to find the fox in the first scene

    def fail(count: int) -> None:
        if count == at:
            raise NumericsError("no picture", "Do something else.")

    adapter.on_predict = fail
    printed, said = place.said("retake", "tale.yaml", "3", "--takes", "3", *seed, code=1)
    assert [line.partition(":")[0] for line in printed.splitlines()[:-1]] == ["take 2"]
    assert f"2 takes not made; to make what is left: {left}" in said


@pytest.mark.usefixtures("ffmpeg")
def test_what_a_take_says_to_type_names_its_cast(place: Place, story: Path) -> None:
    """A plot without a cast is no story without who plays in it."""
    cast = ["--cast", "fox=a red panda"]
    story.write_text(STORY.replace("  fox: {name: a fox}   # red\n", "").replace("cast:\n", ""))
    place.said("render", "tale.yaml", *cast)
    _, said = place.said("retake", "tale.yaml", "3", *cast)
    assert "storyreel keep tale.yaml 3 TAKE --cast 'fox=a red panda'" in said
    _, said = place.said("keep", "tale.yaml", "3", "2", *cast)
    assert "storyreel render tale.yaml --cast 'fox=a red panda'" in said
    assert "retake: 2" in story.read_text()
    place.said("sheet", "tale.yaml", "--keep", "1=2", *cast)
    _, said = place.said("sheet", "tale.yaml", "--seeds", "2", *cast)
    assert "storyreel sheet tale.yaml --keep 3=2 --cast 'fox=a red panda'" in said


@pytest.mark.usefixtures("ffmpeg")
def test_what_keep_says_to_type_renders_the_same_film(place: Place, fake_engine: FakeEngine) -> None:
    """With the seed that the film was given, else all of it would be made again."""
    Path("tale.yaml").write_text(STORY)
    place.said("render", "tale.yaml", "--seed", "7")
    place.said("retake", "tale.yaml", "3")
    _, said = place.said("keep", "tale.yaml", "3", "2")
    assert "storyreel render tale.yaml --seed 7\n" in said
    forwards(fake_engine)
    place.said("render", "tale.yaml", "--seed", "7")
    assert forwards(fake_engine) == 0


@pytest.mark.usefixtures("ffmpeg")
def test_a_take_of_a_former_seed_is_told_from_those_of_the_film(place: Place) -> None:
    Path("tale.yaml").write_text(STORY)
    place.said("render", "tale.yaml", "--seed", "7")
    place.said("retake", "tale.yaml", "3")
    otherwise = "take 2 was made with other settings than the film"
    assert otherwise not in place.said("keep", "tale.yaml", "3", "2")[1]
    place.said("keep", "tale.yaml", "3", "1")
    place.said("render", "tale.yaml", "--seed", "8")
    assert otherwise in place.said("keep", "tale.yaml", "3", "2")[1]


@pytest.mark.parametrize("option", ["--overwrite", "--sign-cert=x.pem"])
def test_a_take_replaces_nothing_and_is_not_signed(place: Place, option: str) -> None:
    Path("tale.yaml").write_text(STORY)
    assert "No such option" in place.said("retake", "tale.yaml", "3", option, code=2)[1]


@pytest.mark.usefixtures("ffmpeg")
def test_of_another_scene_the_film_shows_nothing_on_the_sheet(place: Place, story: Path) -> None:
    story.write_text(STORY.replace("  - scene:", '  - ["{fox} on a hill", "{fox} looks"]\n  - scene:'))
    with Image.open(place.said("retake", "tale.yaml", "2")[0].splitlines()[-1]) as picture:
        two = picture.height
    with Image.open(place.said("retake", "tale.yaml", "4")[0].splitlines()[-1]) as picture:
        assert picture.height == two  # the first take, and the one just made; no scene of the film


@pytest.mark.usefixtures("ffmpeg")
def test_a_take_with_a_seed_of_its_own_is_made_once(
    place: Place, story: Path, fake_engine: FakeEngine
) -> None:
    place.said("retake", "tale.yaml", "3", "--seed", "5")
    forwards(fake_engine)
    again = place.json("retake", "tale.yaml", "3", "--seed", "5", "--takes", "2")
    assert [(take["take"], take["seed"]) for take in again["takes"]] == [(2, 5), (3, 6)]
    assert forwards(fake_engine) == 6  # three for the second take, and three to find the fox


@pytest.mark.usefixtures("ffmpeg")
def test_a_damaged_list_of_takes_is_kept_beside_the_new_one(place: Place, story: Path) -> None:
    damaged = Path("out/tale/takes.json")
    damaged.write_text("[{")
    place.said("retake", "tale.yaml", "3")
    assert damaged.with_name("takes.json.damaged").read_text() == "[{"
    assert len(json.loads(damaged.read_text())) == 2


@pytest.mark.usefixtures("ffmpeg")
def test_what_does_not_fit_the_film_is_said_before_it_is_made(place: Place, story: Path) -> None:
    said = place.said("retake", "tale.yaml", "2", "--steps", "2")[1]
    assert "the take will not fit it: steps 3 -> 2" in said
    assert "rendered first" in said
    assert "scenes 1" in said


@pytest.mark.usefixtures("ffmpeg")
def test_a_take_on_another_kind_of_device_is_warned_of(
    place: Place, story: Path, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that it depends on is made again there, and the film shows none of that."""
    monkeypatch.setattr(fake_engine, "device_kind", lambda spec: "cuda")
    said = place.said("retake", "tale.yaml", "2")[1]
    assert "the take will not fit it: device cpu -> cuda" in said
    assert "rendered first" in said
    assert "scenes 1" in said
    assert "was made with other settings than the film" in place.said("keep", "tale.yaml", "2", "2")[1]


def test_some_scenes_that_were_asked_for_are_no_render_that_died(place: Place, story: Path) -> None:
    place.said("render", "tale.yaml", "--scenes", "1", "--out", "other")
    row = place.json("status", "other/tale")["tale"]
    assert (row["state"], row["reason"]) == ("stopped", "only some of its scenes were asked for")
