"""What the embedded model is taught: clips of the world with the words for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from storyreel.plan import joined_prompt

from .plots import PLOTS, STORIES, words
from .world import BALL_ACTIONS, DOOR_ACTIONS, Character, Clip, Place, caption, sample_clip, stage_clip

FPS = 12.0
WIDTH, HEIGHT = 96, 64
PAIRS = tuple(dict.fromkeys((cast.first, cast.second) for _, cast in STORIES.values()))

FIRST_STORY, ANY_STORY = 0.25, 0.5  # shares of the lessons; the rest crosses everything
EXACT_WORDS = 0.6  # share of story lessons in the story's own words
PAIR_SHARE = 0.2  # share of crossed lessons with two characters


@dataclass(frozen=True)
class Example:
    """A clip with its two prompts, as a scene of a story would give them."""

    clip: Clip
    scene: str
    action: str


def sample_example(rng: Random) -> Example:
    """Draw a lesson: a scene of a shipped story, or any character at any place."""
    share = rng.random()
    if share < FIRST_STORY:
        return _story_example(rng, "nyc")
    if share < FIRST_STORY + ANY_STORY:
        return _story_example(rng, rng.choice(tuple(STORIES)))
    return _crossed_example(rng)


def _story_example(rng: Random, story: str) -> Example:
    plot, cast = STORIES[story]
    lesson = rng.choice(PLOTS[plot])
    who = (cast.first, cast.second) if lesson.pair else (cast.first,)
    clip = stage_clip(rng, lesson.place, who, lesson.shows, lesson.ball)
    if rng.random() < EXACT_WORDS or (lesson.ball and lesson.shows not in BALL_ACTIONS):
        return Example(clip, words(lesson.scene, cast), words(lesson.action, cast))
    return Example(clip, caption(rng, clip, "scene"), caption(rng, clip, "action"))


def _crossed_example(rng: Random) -> Example:
    pair = rng.random() < PAIR_SHARE
    who = rng.choice(PAIRS) if pair else (rng.choice(tuple(Character)),)
    place = rng.choice(tuple(Place))
    action = sample_clip(rng, place, who).action
    clip = stage_clip(rng, place, who, action)
    return Example(clip, caption(rng, clip, "scene"), caption(rng, clip, "action"))


def sample_text(rng: Random, example: Example) -> str:
    """Draw what the model is told: both prompts, one of them, one sentence, or nothing."""
    kind = rng.random()
    if kind < 0.1:
        return ""
    if kind < 0.25:
        return example.scene
    # "is walking" alone must not mean going through a door.
    if kind < 0.4 and example.clip.action not in DOOR_ACTIONS:
        return example.action
    if kind < 0.45 and not example.clip.ball:
        return caption(rng, example.clip, "both")
    return joined_prompt(example.scene, example.action)


def all_texts(rng: Random, count: int) -> Iterator[str]:
    """Yield ``count`` texts of random lessons, for fitting the tokenizer."""
    for _ in range(count):
        yield sample_text(rng, sample_example(rng))
