"""The judge of whole films, on true clips of a shipped story laid end to end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

import pytest
import torch
from torch import Tensor

from storyreel.evaluation.verdicts import FilmVerdict
from storyreel.mini import verdicts
from storyreel.mini.judge import UNREADABLE, Judge, Verdict
from storyreel.mini.lessons import FPS, HEIGHT, WIDTH
from storyreel.mini.plots import PLOTS, STORIES, words
from storyreel.mini.verdicts import judge_film, strangeness, told, truths
from storyreel.mini.world import (
    LOOKS,
    Action,
    Character,
    Light,
    Look,
    Place,
    draw_clip,
    lit,
    look_name,
    stage_clip,
)
from storyreel.story.plan import Segment
from storyreel.story.planning import make_plan
from storyreel.story.schema import load_story
from tests.conftest import ROOT
from tests.mini.test_judge import with_bias

FRAMES = 24
SCENES = range(3, 7)  # of dc: the Tidal Basin, alone three times, then the cat comes
FIRST = 2  # at the monument


def drawn(index: int, seed: int = 1) -> Tensor:
    """A true clip of a scene of the story `dc`."""
    plot, cast = STORIES["dc"]
    lesson = PLOTS[plot][index]
    who = lesson.who(cast)
    clip = stage_clip(Random(seed), lesson.place, who, lesson.shows, lesson.ball)
    images, _ = draw_clip(clip, FRAMES, FPS, WIDTH, HEIGHT)
    return torch.from_numpy(images)


def chunks(scenes: Sequence[int]) -> Iterator[Tensor]:
    """The clips of some scenes as one stream, whose chunks end where no segment does."""
    film = torch.cat([drawn(index) for index in scenes])
    yield from film.split(17)


@pytest.fixture(scope="module")
def segments() -> tuple[Segment, ...]:
    """The plan of scenes FIRST to 6 of `dc`, five segments of 24 frames."""
    story = load_story(ROOT / "stories" / "dc.yaml")
    part = story.model_copy(update={"scenes": story.scenes[FIRST:7]})
    return make_plan(part, "dc").segments


def judged(segments: Sequence[Segment], scenes: Sequence[int], seams: Sequence[int]) -> FilmVerdict:
    verdict = judge_film(segments, seams, chunks(scenes))
    assert verdict is not None
    return verdict


def test_every_scene_of_every_story_has_its_truth() -> None:
    count = 0
    for plot, cast in STORIES.values():
        for lesson in PLOTS[plot]:
            truth = truths()[words(lesson.scene, cast), words(lesson.action, cast)]
            assert (truth.place, truth.action, len(truth.characters)) == (
                lesson.place,
                lesson.shows,
                1 + lesson.pair,
            )
            count += 1
    assert len(truths()) == count  # no two scenes share their prompts


@pytest.mark.parametrize(
    ("scene", "action", "looks", "light"),
    [
        (
            "a black corgi dog with a red scarf is walking around the White House",
            "",
            ("black", "red scarf"),
            None,
        ),
        ("an orange corgi dog is walking around the White House", "", ("orange", ""), None),
        ("a corgi dog is walking around the White House after dark", "", None, Light.NIGHT),
        (
            "a corgi dog with a blue collar is walking around the White House at dusk",
            "a grey corgi dog is sniffing the ground",
            ("grey", "blue collar"),
            Light.DUSK,
        ),
        ("a corgi dog is walking around the White House", "", None, None),
    ],
)
def test_what_prompts_state_is_taken_out_and_asked(
    scene: str, action: str, looks: tuple[str, str] | None, light: Light | None
) -> None:
    found = told(scene, action or "a corgi dog is sniffing the ground")
    assert found.truth is not None
    assert (found.truth.place, found.truth.action) == (Place.WHITE_HOUSE, Action.SNIFF)
    assert found.stated == ({Character.CORGI: Look(*looks)} if looks else {})
    assert found.light is light


def test_people_and_pairs_state_looks_too() -> None:
    pair = told(
        "a man in a red shirt and a black hat and a woman with a purple scarf are at the Tidal Basin",
        "a man and a woman in a blue dress are smiling at each other",
    )
    assert pair.stated == {
        Character.MAN: Look("red", "black hat"),
        Character.WOMAN: Look("blue", "purple scarf"),
    }
    puppy = told(
        "the cute grey corgi puppy with a blue collar sees a panda bear with a yellow bandana", "they sit"
    )
    assert puppy.stated == {
        Character.CORGI: Look("grey", "blue collar"),
        Character.PANDA: Look("", "yellow bandana"),
    }
    seen = Verdict(frozenset(), Place.CAPITOL, Action.SIT, {Character.MAN: Look("green", "black hat")})
    assert pair.missing(seen) == ["a red shirt", "a blue dress", "a purple scarf"]


@pytest.mark.parametrize("story", STORIES)
def test_every_shipped_story_with_a_cast_that_states_looks_is_known(story: str) -> None:
    rng = Random(story)
    plot, cast = STORIES[story]
    members = (cast.first, cast.second)
    looks = [rng.choice(LOOKS[who]) for who in members]
    nouns = [look_name(who, look) for who, look in zip(members, looks, strict=True)]
    for lesson in PLOTS[plot]:
        found = told(lit(words(lesson.scene, cast, nouns), "at sunset"), words(lesson.action, cast, nouns))
        plain = truths()[words(lesson.scene, cast), words(lesson.action, cast)]
        assert found.truth == plain
        assert found.light is Light.DUSK
        assert found.stated == dict(zip(members[: 1 + lesson.pair], looks, strict=False))


def test_a_look_that_is_stated_and_not_shown_is_said(judge: Judge, segments: tuple[Segment, ...]) -> None:
    for part, index in (("characters", 0), ("colours", 1), ("wear", 1)):
        with_bias(judge, part, index, who=Character.CORGI)
    with_bias(judge, "lights", tuple(Light).index(Light.NIGHT))
    first = segments[0]

    def said(who: str, light: str = "", ruin: float = -50.0) -> tuple[bool | None, str]:
        with_bias(judge, "ruin", value=ruin)
        scene, action = (text.replace("a corgi dog", who) for text in (first.scene, first.action))
        stating = replace(first, scene=lit(scene, light), action=action)
        verdict = judge_film([stating], [], [torch.zeros(first.frames, HEIGHT, WIDTH, 3, dtype=torch.uint8)])
        assert verdict is not None
        return verdict.scenes[0].looks, verdict.scenes[0].looks_missing

    assert said("a corgi dog") == (None, "")
    assert said("a black corgi dog with a red scarf", "at night") == (True, "")
    wrong = "an orange corgi dog and a blue collar"
    assert said("an orange corgi dog with a blue collar") == (False, wrong)
    assert said("a corgi dog", "by day") == (False, "daylight")
    # Where nobody can tell what is shown, no look is right either.
    assert said("a corgi dog with a red scarf", "at dusk", 50.0) == (False, "a red scarf and dusk")


@pytest.mark.parametrize(("frames", "long_enough"), [(24, True), (16, True), (15, False)])
def test_the_ends_of_a_scene_are_judged_where_they_are_long_enough(
    judge: Judge, segments: tuple[Segment, ...], frames: int, long_enough: bool
) -> None:
    scene = replace(segments[0], start=0, frames=frames)
    verdict = judge_film([scene], [], [torch.zeros(frames, HEIGHT, WIDTH, 3, dtype=torch.uint8)])
    assert verdict is not None
    (found,) = verdict.scenes
    assert (found.action_first is not None, found.action_last is not None) == (long_enough, long_enough)


def test_true_clips_are_right(segments: tuple[Segment, ...]) -> None:
    verdict = judged(segments, [FIRST, *SCENES], [1, 2, 4])
    assert len(verdict.scenes) == 5
    for scene in verdict.scenes:
        assert (scene.characters, scene.place, scene.action) == (True, True, True)
    assert [seam.after for seam in verdict.seams] == [1, 2, 4]
    assert [seam.same_place for seam in verdict.seams] == [False, True, True]
    assert [seam.characters for seam in verdict.seams] == [True] * 3


def test_swapped_segments_are_wrong(segments: tuple[Segment, ...]) -> None:
    first, second, third, fourth, last = (FIRST, *SCENES)
    verdict = judged(segments, [first, second, third, last, fourth], [1, 3])
    right = [(s.characters, s.place, s.action) for s in verdict.scenes]
    assert right[:3] == [(True, True, True)] * 3
    assert right[3] == right[4] == (False, True, False)  # another cast does another thing, at the Basin
    verdict = judged(segments, [second, first, third, fourth, last], [])
    assert [s.place for s in verdict.scenes] == [False, False, True, True, True]
    assert verdict.seams == ()


def test_strangers_in_a_transition_are_seen(segments: tuple[Segment, ...]) -> None:
    """The cat walks in around the seam of two scenes that are the corgi's alone."""
    film = torch.cat([drawn(index) for index in (FIRST, *SCENES)])
    film[48 - 10 : 48 + 4] = drawn(6)[:14]
    verdict = judge_film(segments, [1, 2], film.split(17))
    assert verdict is not None
    assert [seam.characters for seam in verdict.seams] == [True, False]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    """A judge that nobody has trained, in place of the package's."""
    torch.manual_seed(0)
    untrained = Judge().eval()
    monkeypatch.setattr(verdicts, "shipped_judge", lambda: untrained)
    return untrained


def test_what_nobody_can_tell_is_strange(judge: Judge) -> None:
    """The limit is the judge's own."""
    pictures = drawn(FIRST)
    found = [strangeness(pictures)]
    with torch.inference_mode():
        ruin = float(judge.judge(pictures[:16].repeat_interleave(2, 0)).ruin)
    assert strangeness(pictures[:16]) == pytest.approx(2 / (1 + math.exp(UNREADABLE - ruin)))
    for bias in (-50.0, 50.0):
        with_bias(judge, "ruin", value=bias)
        found.append(strangeness(pictures))
    assert found[1] < 1e-3 < found[0] < 1.999 < found[2] <= 2


def test_in_what_nobody_can_tell_nothing_is_right(judge: Judge, segments: tuple[Segment, ...]) -> None:
    """Not even what the judge would have chosen."""
    seen = judge.judge(drawn(FIRST)).verdict
    told = {(s.scene, s.action): seen for s in segments}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdicts, "truths", lambda: told)
        for bias, right in ((-50.0, True), (50.0, False)):
            with_bias(judge, "ruin", value=bias)
            verdict = judged(segments, [FIRST] * 5, [1, 3])
            assert {(s.characters, s.place, s.action) for s in verdict.scenes} == {(right,) * 3}
            assert [(s.characters, s.same_place) for s in verdict.seams] == [(right, True)] * 2


def test_an_unknown_scene_leaves_all_open_and_reads_nothing(segments: tuple[Segment, ...]) -> None:
    other = (*segments[:-1], replace(segments[-1], action="a corgi dog is cooking"))
    stream = chunks([FIRST, *SCENES])
    assert judge_film(other, [1], stream) is None
    assert len(next(stream)) == 17
