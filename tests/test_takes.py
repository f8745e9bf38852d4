"""Takes of a scene, and what an edited story renders: every segment that has to be, and no other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from storyreel.film.folder import FilmFolder
from storyreel.film.reasons import looked_up, reasons
from storyreel.film.store import Store
from storyreel.film.takes import read_takes
from storyreel.rendering import Rendered, render, render_take
from tests.conftest import FakeEngine, Silent, plan_of

pytestmark = pytest.mark.usefixtures("fake_model")

Line = tuple[str, str, str]  # scene prompt, action prompt, more keys
# A shot of three scenes, one of two, and a scene by itself.
LINES: list[Line] = [
    ("a fox in the park", "a fox sits", ""),
    ("a fox in the park again", "a fox walks", "transition: continue"),
    ("a fox in the park still", "a fox eats", "transition: continue"),
    ("a fox at home", "a fox sleeps", "transition: dissolve"),
    ("a fox at home still", "a fox wakes", "transition: continue"),
    ("a fox at sea", "a fox swims", "transition: cut"),
]


def text(lines: Sequence[Line] = LINES, seed: int = 0, title: str = "Foxes") -> str:
    written = [
        f"title: {title}",
        f"render: {{model: fake, seed: {seed}}}",
        "cast: {fox: {name: a fox}}",
        "scenes:",
    ]
    for scene, action, more in lines:
        written.append(f"  - {{scene: '{scene}', action: '{action}'{', ' if more else ''}{more}}}")
    return "\n".join(written) + "\n"


def changed(index: int, more: str = "", scene: str = "", action: str = "") -> list[Line]:
    lines = list(LINES)
    before = lines[index]
    keys = ", ".join(filter(None, [before[2], more]))
    lines[index] = (scene or before[0], action or before[1], keys)
    return lines


def make(out: Path, story: str, **options: object) -> tuple[Rendered, Silent]:
    progress = Silent()
    only = options.pop("only", None)
    plan = plan_of(story, **options)
    return render(plan, "foxes", out, FakeEngine(), progress, only=only), progress  # type: ignore[arg-type]


def latents(out: Path) -> list[torch.Tensor]:
    """What the film that is there shows of every scene."""
    folder = FilmFolder(out / "foxes", "foxes")
    folder.load()
    assert folder.present is not None
    store = Store(folder.segments)
    paths = (store.path("latents", s["number"], s["key"]) for s in folder.present.segments)
    return [load_file(path)["latents"] for path in paths]


def film(out: Path) -> bytes:
    return (out / "foxes" / "foxes.mp4").read_bytes()


def manifest(out: Path) -> list[dict[str, object]]:
    segments: list[dict[str, object]] = json.loads((out / "foxes" / "manifest.json").read_text())["segments"]
    return segments


def overlaps(out: Path) -> list[int]:
    """The overlap of the seam before each scene, by how alike their actions are."""
    seams = [json.loads(json.dumps(segment["decided"]))["seam"] for segment in manifest(out)]
    return [seam["overlap"] if seam else 0 for seam in seams]


@pytest.mark.parametrize("index", range(6))
def test_a_retake_denoises_one_segment_and_leaves_all_others_as_they_are(tmp_path: Path, index: int) -> None:
    make(tmp_path, text())
    before, steps = latents(tmp_path), plan_of(text()).settings.steps
    result, progress = make(tmp_path, text(changed(index, "retake: 2")))
    assert progress.forwards == progress.promised == steps
    assert result.rendered in (1, 2)  # where it dissolves, a neighbour's pictures show it
    after = latents(tmp_path)
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [i != index for i in range(6)]


@pytest.mark.parametrize("index", [0, 1, 3])
def test_a_retake_ends_as_the_first_take_where_the_next_scene_goes_on(tmp_path: Path, index: int) -> None:
    make(tmp_path, text())
    first, second = (latents(tmp_path)[i] for i in (index, index + 1))
    make(tmp_path, text(changed(index, "retake: {take: 2, action: a fox dances}")))
    retake, overlap = latents(tmp_path)[index], overlaps(tmp_path)[index + 1]
    assert overlap > 0
    assert torch.equal(retake[:, :, -overlap:], first[:, :, -overlap:])
    assert torch.equal(retake[:, :, -overlap:], second[:, :, :overlap])
    assert not torch.equal(retake, first)


def test_it_begins_as_the_first_take_of_the_scene_before_ends(tmp_path: Path) -> None:
    lines = changed(1, "retake: 2")
    make(tmp_path, text(lines))
    overlap, shown = overlaps(tmp_path)[1], latents(tmp_path)
    assert overlap > 0
    assert torch.equal(shown[1][:, :, :overlap], shown[0][:, :, -overlap:])


def test_the_last_scene_of_a_shot_may_end_as_it_likes(tmp_path: Path) -> None:
    make(tmp_path, text())
    first = latents(tmp_path)[2]
    make(tmp_path, text(changed(2, "retake: 2")))
    assert not torch.equal(latents(tmp_path)[2][:, :, -1], first[:, :, -1])


def test_the_order_of_retakes_makes_no_difference(tmp_path: Path) -> None:
    """Nor whether they are made one after the other or at once from nothing."""
    takes = {0: "retake: 2", 1: "retake: {take: 5, action: a fox jumps}", 2: "retake: {take: 2, seed: 9}"}
    everything = list(LINES)
    for index, more in takes.items():
        everything[index] = changed(index, more)[index]
    make(tmp_path / "at once", text(everything))
    for order in permutations(takes):
        out, lines = tmp_path / str(order), list(LINES)
        make(out, text(lines))
        for index in order:
            lines[index] = everything[index]
            assert make(out, text(lines))[1].forwards == 3
        assert film(out) == film(tmp_path / "at once")


def test_going_back_to_the_first_take_renders_nothing(tmp_path: Path) -> None:
    make(tmp_path, text())
    first = film(tmp_path)
    make(tmp_path, text(changed(1, "retake: 2")))
    assert film(tmp_path) != first
    result, progress = make(tmp_path, text())
    assert (result.rendered, progress.forwards) == (0, 0)
    assert film(tmp_path) == first


def test_the_film_says_what_the_take_shows(tmp_path: Path) -> None:
    make(tmp_path, text(changed(1, "retake: {take: 3, action: a fox dances}")))
    said = manifest(tmp_path)[1]
    assert (said["action"], said["take"], said["scene"]) == ("a fox dances", 3, LINES[1][0])
    assert said["first_take_key"] != said["key"]
    assert "a fox dances" in (tmp_path / "foxes" / "index.html").read_text()


def test_a_take_beside_the_film_changes_nothing_of_it(tmp_path: Path) -> None:
    make(tmp_path, text())
    names = ("foxes.mp4", "manifest.json", "index.html")
    before = [(tmp_path / "foxes" / name).read_bytes() for name in names]
    plan = plan_of(text(changed(1, "retake: {take: 2, seed: 4}")))
    progress = Silent()
    render_take(plan, 1, "foxes", tmp_path, FakeEngine(), progress)
    assert progress.forwards == 3
    assert [(tmp_path / "foxes" / name).read_bytes() for name in names] == before
    (take,) = read_takes(tmp_path / "foxes")
    assert (take.number, take.take, take.seed, take.written) == (2, 2, 4, {"take": 2, "seed": 4})
    assert (tmp_path / "foxes" / "segments" / take.video).is_file()
    assert make(tmp_path, text(changed(1, "retake: {take: 2, seed: 4}")))[1].forwards == 0


def test_a_first_take_that_nothing_depends_on_is_not_rendered(tmp_path: Path) -> None:
    """Of the last scene of a shot, which nothing goes on from."""
    _, progress = make(tmp_path, text(changed(2, "retake: 2")))
    assert progress.forwards == 6 * 3
    _, progress = make(tmp_path / "other", text(changed(1, "retake: 2")))
    assert progress.forwards == 7 * 3


def test_a_damaged_list_of_takes_is_no_list(tmp_path: Path) -> None:
    for words in ("nonsense", "[1]", '[{"number": 1}]', "[" * 10_000):
        (tmp_path / "takes.json").write_text(words)
        assert read_takes(tmp_path) == []
    entry = {"number": 1, "take": 2, "seed": None, "scene": None, "action": None, "video": "../secret.mp4"}
    (tmp_path / "takes.json").write_text(json.dumps([entry]))
    assert read_takes(tmp_path) == []


# Edits of a story: how many segments each denoises.


def rendered(out: Path, lines: Sequence[Line], **options: object) -> int:
    return make(out, text(lines), **options)[1].forwards // 3


def test_a_scene_that_is_inserted_renders_itself_and_what_goes_on_from_it(tmp_path: Path) -> None:
    make(tmp_path, text())
    new = ("a fox on a hill", "a fox digs", "transition: dissolve")
    assert rendered(tmp_path, [*LINES[:3], new, *LINES[3:]]) == 1
    new = ("a fox on a hill", "a fox digs", "transition: continue")
    assert rendered(tmp_path, [*LINES[:2], new, *LINES[2:]]) == 2


def test_a_scene_that_goes_renders_what_went_on_from_it(tmp_path: Path) -> None:
    make(tmp_path, text())
    assert rendered(tmp_path, [*LINES[:5]]) == 0
    assert rendered(tmp_path, [*LINES[:4], *LINES[5:]]) == 0
    assert rendered(tmp_path, [LINES[0], *LINES[2:]]) == 1


def test_a_scene_that_moves_is_found_under_its_new_number(tmp_path: Path) -> None:
    make(tmp_path, text())
    before = latents(tmp_path)
    assert rendered(tmp_path, [*LINES[:3], LINES[5], *LINES[3:5]]) == 0
    assert [
        torch.equal(a, b)
        for a, b in zip(latents(tmp_path), [*before[:3], before[5], *before[3:5]], strict=True)
    ]
    assert {str(s["number"]) for s in manifest(tmp_path)} == {f"0{i}" for i in range(1, 7)}
    assert rendered(tmp_path, LINES) == 0


def test_a_changed_action_leaves_a_scenes_noise_as_it_is() -> None:
    seeds = [segment.seed for segment in plan_of(text()).segments]
    other = [segment.seed for segment in plan_of(text(changed(1, action="a fox dances"))).segments]
    assert other == seeds
    assert len(set(seeds)) == len(seeds)
    another = [segment.seed for segment in plan_of(text(seed=1)).segments]
    assert set(another).isdisjoint(seeds)


def test_a_scene_may_have_a_seed_of_its_own(tmp_path: Path) -> None:
    make(tmp_path, text())
    assert rendered(tmp_path, changed(5, "seed: 7")) == 1
    before = latents(tmp_path)[5]
    plan = plan_of(text(changed(5, "seed: 7", scene="a fox on a ship")))
    assert plan.segments[5].seed == plan_of(text(changed(5, "seed: 7"), seed=3)).segments[5].seed
    assert torch.equal(latents(tmp_path)[5], before)


def test_the_same_scene_twice_has_two_noises() -> None:
    twice = [LINES[5], LINES[5]]
    first, second = plan_of(text(twice)).segments
    assert first.seed != second.seed


@pytest.mark.parametrize(
    ("lines", "options", "why"),
    [
        (
            changed(1, action="a fox digs"),
            {},
            {1: "its action prompt has changed", 2: "it goes on from scene 2"},
        ),
        (
            changed(3, scene="a fox in bed"),
            {},
            {3: "its scene prompt has changed", 4: "it goes on from scene 4"},
        ),
        (changed(5, "seed: 3"), {}, {5: "its seed has changed"}),
        (changed(5, "seconds: 1"), {}, {5: "its length has changed"}),
        (changed(1, "retake: 2"), {}, {1: "another take is wanted"}),
        ([*LINES, ("a bus", "it drives", "")], {}, {6: "it is new", 5: "its pictures are made again"}),
        (
            [*LINES[:5], ("a fox at sea", "a fox swims", "transition: dissolve")],
            {},
            {4: "its pictures", 5: "it begins"},
        ),
        (LINES, {"steps": 2}, dict.fromkeys(range(1), "settings or versions have changed")),
    ],
)
def test_why_a_scene_is_rendered_is_said(
    tmp_path: Path, lines: list[Line], options: dict[str, object], why: dict[int, str]
) -> None:
    make(tmp_path, text())
    inventory, before = looked_up(plan_of(text(lines), **options), tmp_path, "foxes")
    said = reasons(inventory, before)
    if not options:
        assert set(said) - {i for i in said if said[i] == "its pictures are made again"} <= set(why)
    for index, words in why.items():
        assert said[index].startswith(words)
    assert set(looked_up(plan_of(text(lines), **options), tmp_path, "foxes")[0].missing) == set(said)
    assert make(tmp_path, text(lines), **options)[0].rendered == len(said)


@pytest.mark.parametrize(
    ("blending", "words"),
    [("lead", "it shows somebody as scene 1 does"), ("published", "it goes on from scene 1")],
)
def test_a_scene_of_another_place_goes_on_from_none(tmp_path: Path, blending: str, words: str) -> None:
    """It shows somebody as the one before it does; the published blending alone pulls it towards that."""
    sea: Line = ("{fox} at sea", "{fox} swims", "transition: dissolve")
    before, after = ([(f"{{fox}} in the {place}", "{fox} sits", ""), sea] for place in ("park", "snow"))
    options = {"method": (f"blending={blending}",)}
    make(tmp_path, text(before), **options)
    said = reasons(*looked_up(plan_of(text(after), **options), tmp_path, "foxes"))
    assert said == {0: "its scene prompt has changed", 1: f"{words}, which is rendered again"}


def test_how_to_change_a_scene_alone_is_said_where_others_depend_on_it(tmp_path: Path) -> None:
    make(tmp_path, text())
    _, progress = make(tmp_path, text(changed(1, action="a fox digs")))
    assert any("storyreel retake STORY 2 --action 'a fox digs'" in words for words in progress.heard)
    _, progress = make(tmp_path, text(changed(2, action="a fox digs")))
    assert not any("retake" in words for words in progress.heard)


def test_what_one_action_changes_in_a_story_without_a_cast_is_said(tmp_path: Path) -> None:
    """Who is in it is what all actions begin with."""
    before, after = (
        text(lines).replace("cast: {fox: {name: a fox}}\n", "")
        for lines in (LINES, changed(5, action="the sea roars"))
    )
    make(tmp_path, before)
    said = reasons(*looked_up(plan_of(after), tmp_path, "foxes"))
    assert said[5] == "its action prompt has changed"
    assert {said[index] for index in range(5)} == {"the words with which all actions begin have changed"}
    _, progress = make(tmp_path, after)
    assert any("A cast says it whatever the actions are" in words for words in progress.heard)
    assert any("storyreel retake STORY 6 --action 'the sea roars'" in words for words in progress.heard)


def test_some_scenes_are_rendered_alone_and_the_film_once_all_are_there(tmp_path: Path) -> None:
    result, progress = make(tmp_path, text(), only=frozenset({5}))
    # The first scene that shows the fox is in the lead.
    assert (result.is_complete, progress.forwards, list(result.videos)) == (False, 2 * 3, [5])
    assert result.videos[5].is_file()
    assert not result.film.exists()
    result, progress = make(tmp_path, text(), only=frozenset({1}))
    assert (result.is_complete, progress.forwards, list(result.videos)) == (False, 3, [1])
    result, progress = make(tmp_path, text(), only=frozenset({2}))
    # Its end shows the beginning of the next one.
    assert (result.is_complete, progress.forwards, list(result.videos)) == (False, 2 * 3, [2])
    result, _ = make(tmp_path, text(), only=frozenset({0, 3, 4}))
    assert result.is_complete
    whole, _ = make(tmp_path / "whole", text())
    assert result.film.read_bytes() == whole.film.read_bytes()


def test_ten_edits_of_a_story_of_twelve_scenes_render_at_most_fourteen_segments(tmp_path: Path) -> None:
    places = ["the park", "a bus", "a street", "home"]
    lines: list[Line] = []
    for place in places:
        lines += [(f"a fox at {place}", "a fox sits", "transition: dissolve")]
        lines += [
            (f"a fox at {place} {when}", f"a fox {does}", "transition: continue")
            for when, does in (("later", "walks"), ("at last", "sleeps"))
        ]
    lines[0] = (*lines[0][:2], "")
    count = {"nothing": 0}

    def edit(name: str, title: str = "Foxes") -> None:
        count[name] = make(tmp_path, text(lines, title=title))[1].forwards // 3

    make(tmp_path, text(lines))
    lines[4] = (*lines[4][:2], "transition: continue, retake: {take: 2, action: a fox jumps}")
    edit("another text of scene 5, taken again")
    lines[8] = (lines[8][0], "a fox dreams", lines[8][2])
    edit("another text of scene 9")
    lines[1] = (*lines[1][:2], "transition: continue, retake: {take: 2, seed: 5}")
    edit("another seed of scene 2")
    lines[2:2] = [("a fox on a hill", "a fox digs", "transition: dissolve")]
    lines[3] = (lines[3][0], lines[3][1], "transition: dissolve")
    edit("a scene inserted before scene 3")
    del lines[8]
    edit("scene 9 deleted")
    lines[7:7] = [lines.pop(2)]
    edit("scene 3 moved")
    lines[9] = (*lines[9][:2], "transition: cut")
    edit("a cut before scene 10")
    edit("another title", title="The fox")
    lines[-1] = (*lines[-1][:2], "transition: continue, seconds: 1")
    edit("the last scene is longer")
    lines[0] = (*lines[0][:2], "retake: 4")
    edit("the first scene taken again")
    assert len(count) == 11
    assert sum(count.values()) <= 14, count
    assert count["another title"] == count["nothing"] == 0
