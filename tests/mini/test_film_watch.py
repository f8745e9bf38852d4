"""What the judge's map and looks say of whole films, with a judge that sees what the frames were made of.

Its frames are black, with everybody a box of one colour, 16 pixels wide and 24 high: so what it should say of
crossfades, hard cuts, stills and shuffles is known.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from storyreel.evaluation.verdicts import FilmVerdict
from storyreel.mini import verdicts
from storyreel.mini.judge import CHARACTERS, STRIDE, Opinion, Verdict
from storyreel.mini.verdicts import SHORTEST, judge_film, told
from storyreel.mini.world import Action, Character, Light, Look, Place
from storyreel.story.plan import Segment
from storyreel.story.planning import make_plan
from storyreel.story.schema import load_story, parse_story
from tests.conftest import ROOT
from tests.crossfade import crossfaded

LENGTH = 24
SIZE = 144, 96


class FakeJudge:
    """Sees the corgi where it is red, as much of it as it is red; its coat is black where there is green.

    A blue picture cannot be read. It walks if its box moves.
    """

    def judge(self, clip: Tensor) -> Opinion:
        looks = clip[::STRIDE].float() / 255
        red = torch.nn.functional.interpolate(looks.permute(0, 3, 1, 2), (12, 18), mode="area")[:, 0]
        where = torch.zeros(*red.shape, len(CHARACTERS))
        where[..., CHARACTERS.index(Character.CORGI)] = red
        columns = torch.arange(18.0)
        middles = (red.sum(1) * columns).sum(1) / red.sum((1, 2)).clamp(min=1e-6)
        walks = len(middles) > 1 and float((middles[1:] - middles[:-1]).abs().max()) > 0.1
        look = Look("black" if float(looks[..., 1].max()) > 0.2 else "orange", "red scarf")
        cast = {Character.CORGI: look} if float(red.max()) > 0.2 else {}
        action = Action.WALK if walks else Action.SIT
        verdict = Verdict(frozenset(cast), Place.TIDAL_BASIN, action, cast, Light.DUSK, 1)
        readable = float(looks[..., 2].max()) < 0.5
        return Opinion(torch.zeros(21), torch.zeros(10), torch.zeros(27), verdict, readable, 0.0, where)


@pytest.fixture(autouse=True)
def judge(monkeypatch: pytest.MonkeyPatch) -> FakeJudge:
    fake = FakeJudge()
    monkeypatch.setattr(verdicts, "shipped_judge", lambda: fake)
    return fake


def box(starts: Sequence[int], speed: int = 0, frames: int = LENGTH, coat: int = 0) -> Tensor:
    """A scene with a corgi at each of ``starts``, in pixels of 144, which walks at ``speed`` a frame."""
    film = torch.zeros(frames, SIZE[1], SIZE[0], 3, dtype=torch.uint8)
    for index, frame in enumerate(film):
        for start in starts:
            x = start + speed * index
            frame[48:72, x : x + 16, 0] = 255
            frame[48:72, x : x + 16, 1] = coat
    return film


@pytest.fixture(scope="module")
def segments() -> tuple[Segment, ...]:
    """Two scenes of the corgi alone at the Tidal Basin, which walks, and then sits."""
    story = load_story(ROOT / "stories" / "dc.yaml")
    part = story.model_copy(update={"scenes": story.scenes[3:5]})
    return make_plan(part, "dc").segments


def judged(segments: Sequence[Segment], film: Tensor) -> FilmVerdict:
    found = judge_film(segments, [1], film.split(17))
    assert found is not None
    return found


def test_a_seam_is_where_its_scene_starts_whatever_is_mixed_there(segments: tuple[Segment, ...]) -> None:
    film = torch.cat([box([8], 1), box([100], -1)])
    (seam,) = judged(segments, film).seams
    unmixed = [(0, LENGTH - 6), (LENGTH + 6, 2 * LENGTH)]
    found = judge_film(segments, [1], film.split(17), unmixed)
    assert found is not None
    (same,) = found.seams
    assert same.twice == 0
    assert same.jump == pytest.approx(seam.jump, rel=0.3)
    assert same.jump is not None
    assert same.jump > 10


def test_one_shot_goes_on(segments: tuple[Segment, ...]) -> None:
    (seam,) = judged(segments, box([8], speed=2, frames=2 * LENGTH)).seams
    assert seam.twice == 0
    assert seam.jump == pytest.approx(1, abs=0.25)
    assert seam.turn == pytest.approx(0, abs=0.5)


def test_a_hard_cut_jumps_and_a_crossfade_hides_it_and_shows_it_twice(segments: tuple[Segment, ...]) -> None:
    film = torch.cat([box([8], 1), box([100], -1)])
    (hard,) = judged(segments, film).seams
    assert hard.twice == 0
    assert hard.jump is not None
    assert hard.jump > 10
    assert hard.turn is not None
    assert hard.turn > 1.5  # it turned round
    (soft,) = judged(segments, crossfaded(film, [LENGTH], 12)).seams
    assert soft.twice is not None
    assert soft.twice > 0.2
    assert soft.jump is not None
    assert soft.jump < hard.jump  # as the issue has it: a dissolve hides a jump, and doubles what it hides


def test_a_still_that_is_cut_jumps_and_one_that_goes_on_does_not(segments: tuple[Segment, ...]) -> None:
    (still,) = judged(segments, box([40], frames=2 * LENGTH)).seams
    assert (still.jump, still.turn, still.twice) == (0, 0, 0)
    (moved,) = judged(segments, torch.cat([box([40]), box([80])])).seams
    assert moved.jump is not None
    assert moved.jump > 20


def test_frames_in_any_order_move_as_oddly_inside(segments: tuple[Segment, ...]) -> None:
    """So the ratio says nothing is wrong at the seam: right, and why motion is to be read beside it."""
    film = box([8], speed=2, frames=2 * LENGTH)
    order = torch.randperm(2 * LENGTH, generator=torch.Generator().manual_seed(0))
    (seam,) = judged(segments, film[order]).seams
    assert seam.jump is not None
    assert seam.jump < 1.5


def test_who_is_gone_behind_the_seam_does_not_jump(segments: tuple[Segment, ...]) -> None:
    (seam,) = judged(segments, torch.cat([box([8], 1), box([])])).seams
    assert seam.jump is seam.turn is None


def test_an_action_is_judged_in_the_first_and_the_last_third(segments: tuple[Segment, ...]) -> None:
    """It walks all the time, but for the last third of the second scene, which tells it to sit."""
    film = torch.cat([box([8], 1), box([32], 1)[:16], box([48])[:8]])
    walking, sitting = judged(segments, film).scenes
    assert (walking.action, walking.action_first, walking.action_last) == (True, True, True)
    assert (sitting.action, sitting.action_first, sitting.action_last) == (False, False, True)


def test_thirds_that_are_too_short_have_no_action() -> None:
    story = load_story(ROOT / "stories" / "dc.yaml")
    scenes = [scene.model_copy(update={"seconds": 1.0}) for scene in story.scenes[3:5]]
    short = make_plan(story.model_copy(update={"scenes": scenes}), "dc").segments
    assert short[0].frames // 3 < SHORTEST
    found = judged(short, box([8], 1, frames=2 * short[0].frames))
    assert [(scene.action_first, scene.action_last) for scene in found.scenes] == [(None, None)] * 2


def test_what_was_left_open_is_seen(segments: tuple[Segment, ...]) -> None:
    blue = box([40])
    blue[..., 2] = 255
    first, second = judged(segments, torch.cat([box([8], 1, coat=100), blue])).seen
    assert first.looks == {"corgi": {"colour": "black", "wear": "red scarf"}}
    assert first.stated == second.stated == {"corgi": {"colour": "", "wear": ""}}
    assert (first.place, first.light, first.arrangement) == ("tidal basin", "dusk", 1)
    assert (second.looks, second.light, second.arrangement) == ({}, None, None)  # nobody can tell


@pytest.mark.parametrize(
    ("first", "second", "looks"),
    [
        ("a corgi dog", "a siamese cat", (Look(""), Look(""))),
        (
            "a black corgi dog with a red scarf",
            "a grey siamese cat",
            (Look("black", "red scarf"), Look("grey")),
        ),
        (
            "an orange corgi dog",
            "a siamese cat with a blue collar",
            (Look("orange"), Look("", "blue collar")),
        ),
        (
            "a man in a green shirt and a black hat",
            "a woman in a red dress",
            (Look("green", "black hat"), Look("red")),
        ),
        ("a man with a red cap", "a woman in a yellow dress", (Look("", "red cap"), Look("yellow"))),
    ],
)
@pytest.mark.parametrize(
    ("words", "light"), [("", None), (" at dusk", Light.DUSK), (" in the daytime", Light.DAY)]
)
def test_looks_and_light_that_are_stated_are_read_off(
    first: str, second: str, looks: tuple[Look, Look], words: str, light: Light | None
) -> None:
    """Of every prompt of a shipped story, whatever the cast is called; any other prompt is no known one."""
    human = first.startswith("a man")
    text = (ROOT / "stories" / ("dc_human.yaml" if human else "dc.yaml")).read_text()
    plain = ("a man", "a woman") if human else ("a corgi dog", "a siamese cat")
    for name, told_name in zip(plain, (first, second), strict=True):
        text = text.replace(f"name: {name},", f"name: {told_name},")
    story = parse_story("dc.yaml", text.encode())
    cast = (Character.MAN, Character.WOMAN) if human else (Character.CORGI, Character.CAT)
    both = 0
    for scene in story.scenes:
        found = told(story.filled(scene.scene) + words, story.filled(scene.action))
        assert found.truth is not None, story.filled(scene.scene)
        both += len(found.truth.characters) == 2
        for who, look in zip(cast, looks, strict=True):
            if who in found.truth.characters:
                assert found.stated.get(who, Look("")) == look
        assert found.light is light
    assert both == 7
    assert told(story.filled(story.scenes[0].scene), "somebody is cooking").truth is None
