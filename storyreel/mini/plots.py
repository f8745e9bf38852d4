"""The two plots of the paper's supplement: the words of every scene and what they show.

Each scene of ``PLOTS`` has the scene prompt and the action prompt as in the shipped stories
(tests hold them equal to ``stories/*.yaml``), and the truth they stand for in the cartoon
world. The training draws its lessons from here; a judge takes the expected answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from .world import Action, Character, Place
from .world.captions import POSSESSIVES

A, P = Action, Place


@dataclass(frozen=True)
class Lesson:
    """One scene of a plot: two prompts with placeholders and what a clip of them shows.

    ``alone`` is what the action prompt means without its scene, where that is another thing:
    "is walking" is a way through a door only for somebody who is getting on a bus.
    """

    scene: str
    action: str
    place: Place
    shows: Action
    alone: Action
    ball: bool = False

    @property
    def pair(self) -> bool:
        """Whether the second character of the cast is on stage too."""
        return "{second" in self.scene + self.action

    def who(self, cast: Cast) -> tuple[Character, ...]:
        """Who of the cast is on stage."""
        return (cast.first, cast.second) if self.pair else (cast.first,)


@dataclass(frozen=True)
class Cast:
    """The characters of a story, first and second."""

    first: Character
    second: Character


NAMES = {
    Character.MAN: "a man",
    Character.WOMAN: "a woman",
    Character.CORGI: "a corgi dog",
    Character.CAT: "a siamese cat",
    Character.PANDA: "a panda",
    Character.FOX: "a fox",
}

_BASIN = "at the Tidal Basin surrounded by cherry blossoms"
_STREETS = "the streets of Times Square, NYC"
_STOP = "at the Times Square bus stop"
_BOTH = "{first} and {second}"

# fmt: off
PLOTS: dict[str, tuple[Lesson, ...]] = {
    "nyc_animal": (
        Lesson("{first} is inside of the subway train", "{first} is sitting", P.SUBWAY_TRAIN, A.SIT, A.SIT),
        Lesson("{first} is looking out the subway window", "{first} now stands out", P.SUBWAY_TRAIN, A.LOOK_OUT, A.STAND),
        Lesson("{first} is getting off the subway train", "{first} is walking", P.SUBWAY_TRAIN, A.GET_OFF, A.WALK),
        Lesson(f"{{first}} is looking at {_STREETS}", "{first} is tilting its head curiously", P.TIMES_SQUARE, A.TILT, A.TILT),
        Lesson(f"{{first}} is walking on {_STREETS}", "{first} is wagging its tail", P.TIMES_SQUARE, A.WAG, A.WAG),
        Lesson(f"{{first}} is waiting for a bus {_STOP} in NYC", "{first} is standing", P.BUS_STOP, A.STAND, A.STAND),
        Lesson(f"{{first}} is getting on a bus {_STOP}", "{first} is walking", P.BUS_STOP, A.GET_ON, A.WALK),
        Lesson("{first} is looking out the bus window at the city view", "{first} is sitting", P.BUS_WINDOW, A.SIT, A.SIT),
        Lesson("{first} has arrived at Central Park", "{first} is sniffing the ground", P.CENTRAL_PARK, A.SNIFF, A.SNIFF),
        Lesson("{first} sees a red ball in Central Park", "{first} is looking up at the sky", P.CENTRAL_PARK, A.LOOK_OUT, A.LOOK_OUT, ball=True),
        Lesson("{first} is biting a red ball in Central Park", "{first} is wagging its tail", P.CENTRAL_PARK, A.BITE, A.WAG, ball=True),
        Lesson("{first} is kicking a red ball in Central Park", "{first} is playfully spinning", P.CENTRAL_PARK, A.SPIN, A.SPIN, ball=True),
    ),
    "nyc_human": (
        Lesson("{first} is inside of the subway train", "{first} is sitting", P.SUBWAY_TRAIN, A.SIT, A.SIT),
        Lesson("{first} is looking out the subway window", "{first} now stands out", P.SUBWAY_TRAIN, A.LOOK_OUT, A.STAND),
        Lesson("{first} is getting off the NYC subway train", "{first} is walking", P.SUBWAY_TRAIN, A.GET_OFF, A.WALK),
        Lesson("{first} is walking up the subway exit stairs", "{first} is looking around", P.SUBWAY_STAIRS, A.LOOK_AROUND, A.LOOK_AROUND),
        Lesson(f"{{first}} is looking at {_STREETS}", "{first} is tilting {first.possessive} head curiously", P.TIMES_SQUARE, A.TILT, A.TILT),
        Lesson(f"{{first}} is walking on {_STREETS}", "{first} is walking", P.TIMES_SQUARE, A.WALK, A.WALK),
        Lesson(f"{{first}} is waiting for a bus {_STOP} in NYC", "{first} is standing", P.BUS_STOP, A.STAND, A.STAND),
        Lesson(f"{{first}} is getting on a bus {_STOP}", "{first} is walking", P.BUS_STOP, A.GET_ON, A.WALK),
        Lesson("{first} is looking out the bus window at the city view", "{first} is sitting", P.BUS_WINDOW, A.SIT, A.SIT),
        Lesson("{first} has arrived at Central Park", "{first} is strolling", P.CENTRAL_PARK, A.WALK, A.WALK),
        Lesson("{first} sees a red ball in Central Park", "{first} is observing it curiously", P.CENTRAL_PARK, A.SEE_BALL, A.SEE_BALL, ball=True),
        Lesson("{first} is picking up a red ball in Central Park", "{first} is gripping it firmly", P.CENTRAL_PARK, A.PICK_UP, A.GRIP, ball=True),
        Lesson("{first} is throwing a red ball in Central Park", "{first} is watching its trajectory", P.CENTRAL_PARK, A.THROW, A.WATCH_BALL, ball=True),
    ),
    "dc_human": (
        Lesson("{first} is walking around the White House", "{first} is observing the architecture", P.WHITE_HOUSE, A.LOOK_OUT, A.LOOK_OUT),
        Lesson("{first} is strolling along the streets near the U.S. Capitol in Washington D.C.", "{first} is looking around with curiosity", P.CAPITOL, A.LOOK_AROUND, A.LOOK_AROUND),
        Lesson("{first} is passing by the Washington Monument", "{first} is walking", P.MONUMENT, A.WALK, A.WALK),
        Lesson("{first} is walking along the Tidal Basin surrounded by cherry blossoms", "{first} is taking a leisurely stroll", P.TIDAL_BASIN, A.WALK, A.WALK),
        Lesson(f"{{first}} stops for a moment {_BASIN}", "{first} is sitting", P.TIDAL_BASIN, A.SIT, A.SIT),
        Lesson("{first} is jogging along the Tidal Basin surrounded by cherry blossoms", "{first} is enjoying the fresh air", P.TIDAL_BASIN, A.RUN, A.LOOK_OUT),
        Lesson(f"{{first}} encounters {{second}} {_BASIN}", "{first} is smiling", P.TIDAL_BASIN, A.MEET, A.SMILE),
        Lesson(f"{{first}} is trying to catch {{second}} {_BASIN}", "{first} is running", P.TIDAL_BASIN, A.CHASE, A.RUN),
        Lesson(f"{{second}} is eventually caught up with by {{first}} {_BASIN}", "{first} is catching {first.possessive} breath and grinning", P.TIDAL_BASIN, A.CATCH, A.CATCH_BREATH),
        Lesson(f"{_BOTH} are enjoying the cherry blossoms together", f"{_BOTH} are sitting side by side", P.TIDAL_BASIN, A.SIT, A.SIT),
        Lesson(f"{_BOTH} are admiring the cherry blossoms at the Tidal Basin", f"{_BOTH} are lying on the grass looking up at the sky", P.TIDAL_BASIN, A.LIE, A.LIE),
        Lesson(f"{_BOTH} are lying on the grass {_BASIN}, slowly closing their eyes", f"{_BOTH} are resting peacefully", P.TIDAL_BASIN, A.LIE, A.LIE),
        Lesson(f"{_BOTH} have fallen asleep {_BASIN}", f"{_BOTH} are peacefully dozing off", P.TIDAL_BASIN, A.SLEEP, A.SLEEP),
    ),
    "dc_animal": (
        Lesson("{first} is walking around the White House", "{first} is sniffing the ground", P.WHITE_HOUSE, A.SNIFF, A.SNIFF),
        Lesson("{first} is strolling along the streets near the U.S. Capitol in Washington D.C.", "{first} is walking", P.CAPITOL, A.WALK, A.WALK),
        Lesson("{first} is passing by the Washington Monument", "{first} is looking around", P.MONUMENT, A.LOOK_AROUND, A.LOOK_AROUND),
        Lesson("{first} is walking along the Tidal Basin surrounded by cherry blossoms", "{first} is taking a leisurely stroll", P.TIDAL_BASIN, A.WALK, A.WALK),
        Lesson(f"{{first}} stops for a moment {_BASIN}", "{first} is sitting", P.TIDAL_BASIN, A.SIT, A.SIT),
        Lesson("{first} is running along the Tidal Basin surrounded by cherry blossoms", "{first} is excitedly running", P.TIDAL_BASIN, A.RUN, A.RUN),
        Lesson(f"{{first}} encounters {{second}} {_BASIN}", "{first} is tilting its head curiously", P.TIDAL_BASIN, A.MEET, A.TILT),
        Lesson(f"{{first}} is chasing a fleeing {{second.noun}} {_BASIN}", f"{_BOTH} are running", P.TIDAL_BASIN, A.CHASE, A.RUN),
        Lesson(f"{{second}} is finally caught by {{first}} {_BASIN}", "{first} is gently wagging its tail", P.TIDAL_BASIN, A.CATCH, A.WAG),
        Lesson(f"{_BOTH} are sniffing the scent of cherry blossoms together at the Tidal Basin", f"{_BOTH} are sitting", P.TIDAL_BASIN, A.SIT, A.SIT),
        Lesson(f"{_BOTH} are enjoying the cherry blossoms at the Tidal Basin", f"{_BOTH} are lying down", P.TIDAL_BASIN, A.LIE, A.LIE),
        Lesson(f"{_BOTH} are lying down {_BASIN}, slowly closing their eyes", f"{_BOTH} are lying down", P.TIDAL_BASIN, A.LIE, A.LIE),
        Lesson(f"{_BOTH} have fallen asleep {_BASIN}", f"{_BOTH} are peacefully sleeping", P.TIDAL_BASIN, A.SLEEP, A.SLEEP),
    ),
}
# fmt: on

STORIES: dict[str, tuple[str, Cast]] = {
    "nyc": ("nyc_animal", Cast(Character.CORGI, Character.CAT)),
    "nyc_human": ("nyc_human", Cast(Character.MAN, Character.WOMAN)),
    "nyc_panda": ("nyc_animal", Cast(Character.PANDA, Character.FOX)),
    "nyc_fox": ("nyc_animal", Cast(Character.FOX, Character.PANDA)),
    "dc": ("dc_animal", Cast(Character.CORGI, Character.CAT)),
    "dc_human": ("dc_human", Cast(Character.MAN, Character.WOMAN)),
    "dc_panda": ("dc_animal", Cast(Character.PANDA, Character.FOX)),
    "dc_fox": ("dc_animal", Cast(Character.FOX, Character.PANDA)),
}


@cache
def scenes_by_words() -> dict[tuple[str, str], tuple[Lesson, Cast]]:
    """Return the shipped stories' scenes by their scene and action prompts."""
    return {
        (words(lesson.scene, cast), words(lesson.action, cast)): (lesson, cast)
        for plot, cast in STORIES.values()
        for lesson in PLOTS[plot]
    }


def words(template: str, cast: Cast, nouns: Sequence[str] = ()) -> str:
    """Fill a prompt's placeholders with the characters' plain names, or with ``nouns``."""
    plain = [NAMES[who].partition(" ")[2] for who in (cast.first, cast.second)]
    known = (*nouns, *plain[len(nouns) :])

    def name(match: re.Match[str]) -> str:
        second = match[1] == "second"
        noun = known[second]
        if match[2] == "possessive":
            return POSSESSIVES.get(cast.second if second else cast.first, "its")
        return noun if match[2] == "noun" else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"

    return re.sub(r"\{(first|second)(?:\.(\w+))?\}", name, template)
