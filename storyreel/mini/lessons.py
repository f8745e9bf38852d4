"""What the embedded model is taught: clips of the world with the words for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, permutations
from random import Random

from storyreel.story.plan import joined_prompt

from .plots import PLOTS, STORIES, Cast, Lesson, words
from .world import (
    BALL_ACTIONS,
    DOOR_ACTIONS,
    Action,
    Character,
    Clip,
    Place,
    Telling,
    allowed_actions,
    caption,
    comes_in,
    lit,
    sample_clip,
    sample_telling,
    stage_clip,
)

FPS = 12.0
WIDTH, HEIGHT = 192, 128
PAIRS = tuple(dict.fromkeys((cast.first, cast.second) for _, cast in STORIES.values()))
ALL_PAIRS = tuple(permutations(Character, 2))

FIRST_STORY, ANY_STORY, ACTION_ALONE = 0.06, 0.34, 0.1  # shares of the lessons; the rest crosses
EXACT_WORDS = 0.6  # share of story lessons in the story's own words
GOING_ON = 0.4  # share of lessons that go on from another: those with a lead, and no others, are learned so
TURN = 0.25, 0.35  # world seconds into such a lesson at which it turns into what is told: behind its lead
ALONE_BEFORE, TOGETHER_BEFORE = 0.3, 0.1  # of those outside of stories: somebody comes, or leaves
PAIR_SHARE = 0.4  # share of crossed lessons with two characters
STORY_PAIRS = 0.5  # share of those whose characters share a shipped story
# Ways of telling a lesson, in hundredths; one that does not fit falls to the next that does.
TELLINGS = {"nothing": 10, "scene": 10, "action": 8, "sentence": 4, "one text": 68}
_UP_TO = dict(zip(TELLINGS, (hundredths / 100 for hundredths in accumulate(TELLINGS.values())), strict=True))


@dataclass(frozen=True)
class Example:
    """A clip with its two prompts, as a scene of a story would give them.

    ``scene`` may be empty. ``speaks_alone`` tells whether the action prompt means what the
    clip shows when the scene is left away.
    """

    clip: Clip
    scene: str
    action: str
    speaks_alone: bool = True
    telling: Telling | None = None


def held_out(who: Character, place: Place, action: Action) -> bool:
    """Tell whether a character never does ``action`` at ``place`` in training.

    One in eleven of the combinations that no shipped story needs; they measure composition.
    """
    if (who, place, action) in _STORY_COMBINATIONS:
        return False
    ranks = tuple(Character).index(who), tuple(Place).index(place), tuple(Action).index(action)
    return (3 * ranks[0] + 5 * ranks[1] + 7 * ranks[2]) % 11 == 0


_STORY_COMBINATIONS = frozenset(
    (cast.first, lesson.place, shown)
    for plot, cast in STORIES.values()
    for lesson in PLOTS[plot]
    for shown in (lesson.shows, lesson.alone)
)
HELD_OUT = tuple(
    (who, place, action)
    for who in Character
    for place in Place
    for action in allowed_actions(who, place)
    if held_out(who, place, action)
)


def sample_example(rng: Random) -> Example:
    """Draw a lesson: a scene of a shipped story, or any character at any place."""
    share, before = rng.random(), None
    if share < FIRST_STORY + ANY_STORY:
        plot, cast = STORIES["nyc" if share < FIRST_STORY else rng.choice(tuple(STORIES))]
        index = rng.randrange(len(PLOTS[plot]))
        scene, before = PLOTS[plot][index], PLOTS[plot][index - 1] if index else None
        example = story_example(rng, scene, cast)
    elif share < FIRST_STORY + ANY_STORY + ACTION_ALONE:
        plot, cast = STORIES[rng.choice(tuple(STORIES))]
        example = action_example(rng, rng.choice(PLOTS[plot]), cast)
    else:
        example = crossed_example(rng)
    if rng.random() >= GOING_ON:
        return example
    if before is None or before.place is not example.clip.place or before.shows in DOOR_ACTIONS:
        return replace(example, clip=going_on(rng, example.clip))
    former = _former(rng, example.clip, before.who(cast), before.shows, before.ball)
    return replace(example, clip=going_on(rng, example.clip, former))


def going_on(rng: Random, clip: Clip, former: Clip | None = None) -> Clip:
    """Return the clip as one that goes on from a ``former`` one, any if None, as a film's next scene does.

    So the model learns how one pose becomes another, and how somebody comes and leaves. Nobody did before
    what is held out, but who comes or leaves runs. Who comes in by a door was nowhere before.
    """
    if clip.action in DOOR_ACTIONS and comes_in(clip.action, clip.place is Place.SUBWAY_TRAIN):
        return clip
    if former is None:
        former = _former(rng, clip, *_any_before(rng, clip))
    return replace(clip, former=former, began=rng.uniform(0.4, 1.6), turn=rng.uniform(*TURN))


def portrait(rng: Random, clip: Clip) -> Clip:
    """Return a clip of whom ``clip`` shows, or of the first alone, in the same looks, at any place.

    Its first picture leads to ``clip`` as a film's first picture of somebody leads to its later scenes.
    """
    looks = [actor.look for actor in clip.actors]
    who = clip.cast[:1] if rng.random() < ALONE_BEFORE else clip.cast
    places = [place for place in Place if len(who) == 1 or place is not Place.SUBWAY_STAIRS]
    while not (actions := _actions(who, place := rng.choice(places))):
        pass
    return stage_clip(rng, place, who, rng.choice(actions), looks=looks)


def _any_before(rng: Random, clip: Clip) -> tuple[Sequence[Character], Action]:
    """Draw who might have been there before, and what they did."""
    who = clip.cast
    if len(who) == 2 and rng.random() < ALONE_BEFORE:
        who = who[:1]
    elif len(who) == 1 and clip.place is not Place.SUBWAY_STAIRS and rng.random() < TOGETHER_BEFORE:
        who = (who[0], rng.choice([one for one in Character if one is not who[0]]))
    return who, rng.choice(_actions(who, clip.place))


def _actions(who: Sequence[Character], place: Place) -> list[Action]:
    """Return what somebody can do at a place, alone or all of them, that is not held out; not at a door."""
    never = DOOR_ACTIONS | BALL_ACTIONS if len(who) > 1 else DOOR_ACTIONS
    return [
        action
        for action in allowed_actions(who[0], place)
        if action not in never
        and all(action in allowed_actions(one, place) for one in who)
        and not any(held_out(one, place, action) for one in who)
    ]


def _former(rng: Random, clip: Clip, who: Sequence[Character], action: Action, ball: bool = False) -> Clip:
    """Return what ``who`` did before ``clip``, in the same looks, light and set."""
    looks = {actor.character: actor.look for actor in clip.actors}
    known, backdrop = [looks.get(one) for one in who], clip.backdrop
    return stage_clip(rng, clip.place, who, action, ball, known, backdrop.light, backdrop.arrangement)


def story_example(rng: Random, scene: Lesson, cast: Cast, exact: float = EXACT_WORDS) -> Example:
    """Draw a clip of a story's scene, told in its own words with probability ``exact``."""
    clip = stage_clip(rng, scene.place, scene.who(cast), scene.shows, scene.ball)
    prop = scene.ball and scene.shows not in BALL_ACTIONS  # only the story's words tell of it
    if prop or rng.random() < exact:
        alone = scene.alone is scene.shows and not prop
        telling = sample_telling(rng, clip, plain=True)
        said = words(scene.scene, cast, telling.nouns), words(scene.action, cast, telling.nouns)
        return Example(clip, lit(said[0], telling.light), said[1], alone, telling)
    return _captioned(rng, clip)


def action_example(rng: Random, scene: Lesson, cast: Cast) -> Example:
    """Draw what the action prompt of a story's scene means by itself, at any place."""
    both = "{second" in scene.action
    who = (cast.first, cast.second) if both else (cast.first,)
    places = [
        place
        for place in Place
        if all(scene.alone in allowed_actions(one, place) for one in who)
        and not (both and place is Place.SUBWAY_STAIRS)
        and not any(held_out(one, place, scene.alone) for one in who)
    ]
    clip = stage_clip(rng, rng.choice(places), who, scene.alone)
    telling = sample_telling(rng, clip, plain=True)
    return Example(clip, "", words(scene.action, cast, telling.nouns), True, telling)


def crossed_example(rng: Random, pairs: float = PAIR_SHARE) -> Example:
    """Draw any character, or two, doing anything anywhere, but for what is held out."""
    who: Sequence[Character] = (rng.choice(tuple(Character)),)
    if rng.random() < pairs:
        who = rng.choice(PAIRS if rng.random() < STORY_PAIRS else ALL_PAIRS)
    return _captioned(rng, crossed_clip(rng, who))


def crossed_clip(rng: Random, who: Sequence[Character]) -> Clip:
    """Draw some characters doing anything anywhere, but for what is held out."""
    while True:
        place = rng.choice(tuple(Place))
        action = sample_clip(rng, place, who).action
        if not any(held_out(one, place, action) for one in who):
            return stage_clip(rng, place, who, action)


def held_out_example(rng: Random) -> Example:
    """Draw a combination that `crossed_example` never shows."""
    who, place, action = rng.choice(HELD_OUT)
    return _captioned(rng, stage_clip(rng, place, (who,), action))


def _captioned(rng: Random, clip: Clip) -> Example:
    # "is walking" alone must not mean going through a door.
    alone = clip.action not in DOOR_ACTIONS
    telling = sample_telling(rng, clip)
    scene, action = (caption(rng, clip, kind, telling) for kind in ("scene", "action"))
    return Example(clip, scene, action, alone, telling)


def sample_text(rng: Random, example: Example) -> str:
    """Draw what the model is told: both prompts in one text, one of them, one sentence, or nothing.

    By the shares of `TELLINGS`. Without a scene, the action is all there is to tell.
    """
    kind = rng.random()
    if kind < _UP_TO["nothing"]:
        return ""
    if not example.scene:
        return example.action
    if kind < _UP_TO["scene"]:
        return example.scene
    if kind < _UP_TO["action"] and example.speaks_alone:
        return example.action
    if kind < _UP_TO["sentence"] and not example.clip.ball:
        return caption(rng, example.clip, "both", example.telling)
    return joined_prompt(example.scene, example.action)


def all_texts(rng: Random, count: int) -> Iterator[str]:
    """Yield ``count`` texts of random lessons, for fitting the tokenizer."""
    for _ in range(count):
        yield sample_text(rng, sample_example(rng))
