"""The shipped stories, and what the embedded model is taught of them."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from storyreel.mini.lessons import (
    HELD_OUT,
    TELLINGS,
    Example,
    action_example,
    all_texts,
    held_out_example,
    sample_example,
    sample_text,
)
from storyreel.mini.plots import PLOTS, STORIES, words
from storyreel.mini.world import DOOR_ACTIONS, Action, Character, Place, draw_clip, stage_clip
from storyreel.story.plan import joined_prompt
from storyreel.story.schema import load_story
from tests.conftest import ROOT


def test_every_story_is_shipped() -> None:
    assert {path.stem for path in (ROOT / "stories").glob("*.yaml")} == set(STORIES)


@pytest.mark.parametrize("name", STORIES)
def test_shipped_stories_say_what_the_plots_say(name: str) -> None:
    story = load_story(ROOT / "stories" / f"{name}.yaml")
    plot, cast = STORIES[name]
    said = [(story.filled(s.scene), story.filled(s.action)) for s in story.scenes]
    assert said == [(words(lesson.scene, cast), words(lesson.action, cast)) for lesson in PLOTS[plot]]


@pytest.mark.parametrize("name", STORIES)
def test_every_scene_can_be_drawn(name: str) -> None:
    plot, cast = STORIES[name]
    for lesson in PLOTS[plot]:
        who = (cast.first, cast.second) if lesson.pair else (cast.first,)
        clip = stage_clip(Random(0), lesson.place, who, lesson.shows, lesson.ball)
        _, owners = draw_clip(clip, 5, 2.5, 96, 64)
        for frame in owners:
            assert all((frame == index + 1).any() for index in range(len(who))), lesson
        assert (owners == 255).any() == lesson.ball


def test_staged_clips_vary_little() -> None:
    clips = [stage_clip(Random(i), Place.CENTRAL_PARK, (Character.FOX,), Action.SIT) for i in range(9)]
    assert len({clip.backdrop for clip in clips}) == 1
    assert len({clip.actors[0].x for clip in clips}) == 9
    assert {clip.actors[0].facing for clip in clips} == {1}


def test_lessons_cover_the_world_and_say_so() -> None:
    rng = Random(0)
    examples = [sample_example(rng) for _ in range(3000)]
    assert {e.clip.place for e in examples} == set(Place)
    assert {e.clip.actors[0].character for e in examples} == set(Character)
    kinds = Counter(sample_text(rng, e) != ("",) for e in examples)
    assert 0.07 < kinds[False] / len(examples) < 0.13  # for guidance
    for example in examples:
        if example.clip.action in DOOR_ACTIONS and example.action.endswith("is walking"):
            assert sample_text(rng, example) != (example.action,)
        # The one sentence for all of a door scene may be the very words of its action prompt.
        if not example.speaks_alone and example.clip.action not in DOOR_ACTIONS:
            assert sample_text(rng, example) != (example.action,)


def test_some_combinations_are_never_taught() -> None:
    rng = Random(5)
    forbidden = set(HELD_OUT)
    assert 60 < len(forbidden) < 120
    for _ in range(4000):
        clip = sample_example(rng).clip
        if len(clip.actors) == 1:
            assert (clip.actors[0].character, clip.place, clip.action) not in forbidden
    drawn = [held_out_example(rng).clip for _ in range(50)]
    assert {(c.actors[0].character, c.place, c.action) for c in drawn} <= forbidden


def test_no_story_scene_is_held_out() -> None:
    for plot, cast in STORIES.values():
        for lesson in PLOTS[plot]:
            assert (cast.first, lesson.place, lesson.shows) not in HELD_OUT


@pytest.mark.parametrize("name", STORIES)
def test_an_action_alone_means_what_it_says(name: str) -> None:
    plot, cast = STORIES[name]
    for lesson in PLOTS[plot]:
        example = action_example(Random(0), lesson, cast)
        assert example.scene == ""
        assert example.clip.action is lesson.alone
        named = (cast.first, cast.second) if "{second" in lesson.action else (cast.first,)
        assert tuple(actor.character for actor in example.clip.actors) == named
        assert sample_text(Random(3), example) in ((example.action,), ("",))


def shares(example: Example) -> dict[str, float]:
    """How often a lesson should be told in each way: what does not fit falls to the next."""
    found = dict.fromkeys(TELLINGS, 0.0)
    if not example.scene:
        nothing = TELLINGS["nothing"] / 100
        return found | {"nothing": nothing, "action": 1 - nothing}
    fits = {"action": example.speaks_alone, "sentence": not example.clip.ball}
    waiting = 0
    for way, share in TELLINGS.items():
        waiting += share
        if fits.get(way, True):
            found[way], waiting = waiting / 100, 0
    return found


def way_of_telling(example: Example, text: tuple[str, ...]) -> str:
    ways = {
        ("",): "nothing",
        (example.scene,): "scene",
        (example.action,): "action",
        (joined_prompt(example.scene, example.action),): "one text",
        (example.scene, example.action): "side by side",
    }
    return ways.get(text, "sentence")


def test_the_ways_of_telling_have_their_shares() -> None:
    assert sum(TELLINGS.values()) == 100
    rng = Random(6)
    examples = [sample_example(rng) for _ in range(4000)]
    seen = Counter(way_of_telling(example, sample_text(rng, example)) for example in examples)
    expected = [shares(example) for example in examples]
    for way in TELLINGS:
        mean = sum(share[way] for share in expected)
        deviation = sum(share[way] * (1 - share[way]) for share in expected) ** 0.5
        assert mean > 5 * deviation, way  # or the bounds would let everything pass
        assert abs(seen[way] - mean) < 4 * deviation, way


def test_texts_are_reproducible() -> None:
    assert list(all_texts(Random(1), 20)) == list(all_texts(Random(1), 20))
