"""The plots are the shipped stories, and every scene of them can be drawn."""

from __future__ import annotations

from random import Random

import pytest

from storyreel.mini.plots import PLOTS, STORIES, Cast, words
from storyreel.mini.world import BALL_TAG, Character, draw_clip, owners_of, stage_clip
from storyreel.story.schema import load_story
from tests.conftest import ROOT


def test_every_story_is_shipped() -> None:
    assert {path.stem for path in (ROOT / "stories").glob("*.yaml")} >= set(STORIES)


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
        who = lesson.who(cast)
        clip = stage_clip(Random(0), lesson.place, who, lesson.shows, lesson.ball)
        _, tags = draw_clip(clip, 5, 2.5, 96, 64)
        owners = owners_of(tags)
        for frame in owners:
            assert all((frame == index + 1).any() for index in range(len(who))), lesson
        assert (owners == BALL_TAG).any() == lesson.ball


def test_placeholders_take_the_nouns_that_a_clip_is_told_with() -> None:
    cast = Cast(Character.FOX, Character.WOMAN)
    template = "{first} and {second}: {first.possessive}, {second.possessive}, {second.noun}"
    assert words(template, cast) == "a fox and a woman: its, her, woman"
    nouns = ("orange fox with a red scarf",)
    assert words(template, cast, nouns) == "an orange fox with a red scarf and a woman: its, her, woman"
