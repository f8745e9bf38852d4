"""What the embedded model can draw, written down from what its lessons say.

``python -m storyreel.mini.vocabulary`` writes the file that stories are checked against: reading it
takes neither torch nor the drawing program. A test holds the two together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from random import Random

from storyreel.models.specs import MODELS
from storyreel.story.vocabulary import MOST, Vocabulary, words_of
from storyreel.story.vocabulary import Action as Taught
from storyreel.story.vocabulary import Character as Known
from storyreel.story.vocabulary import Place as Set

from .lessons import all_texts
from .plots import NAMES, PLOTS
from .world import COLOURS, Action, Character, Light, Look, Place, allowed_actions, look_name, wear_of
from .world.captions import (
    ACTION_PHRASES,
    ARRIVALS,
    CLOTHES,
    DUETS,
    GRASS_PHRASES,
    LIGHT_WORDS,
    NOUNS,
    OPEN_SETTINGS,
    OUTDOOR_PHRASES,
    PERSON_GRASS_PHRASES,
    SETTINGS,
    WHERE,
)
from .world.model import DUET_ACTIONS, SOLO_ACTIONS

SAMPLED, SEED = 3000, 6_000_011  # lessons, for the words between those of the tables

# What means a character, a place or an action; tests hold every caption of the lessons to it.
CHARACTER_WORDS: dict[Character, tuple[str, ...]] = {
    Character.MAN: ("man",),
    Character.WOMAN: ("woman",),
    Character.CORGI: ("corgi", "dog", "puppy"),
    Character.CAT: ("cat",),
    Character.PANDA: ("panda",),
    Character.FOX: ("fox",),
}
PLACE_PHRASES: dict[Place, tuple[str, ...]] = {
    Place.SUBWAY_TRAIN: ("subway",),
    Place.SUBWAY_STAIRS: ("subway exit", "subway station", "subway stairs"),
    Place.TIMES_SQUARE: ("Times Square",),
    Place.BUS_STOP: ("bus stop",),
    Place.BUS_WINDOW: ("bus",),
    Place.CENTRAL_PARK: ("Central Park",),
    Place.WHITE_HOUSE: ("White House",),
    Place.CAPITOL: ("Capitol",),
    Place.MONUMENT: ("Washington Monument",),
    Place.TIDAL_BASIN: ("Tidal Basin", "cherry blossoms"),
}
# The stairs lead out of the subway, the stop is at Times Square: these then name no other place.
HIDES: dict[Place, tuple[Place, ...]] = {
    Place.SUBWAY_STAIRS: (Place.SUBWAY_TRAIN,),
    Place.BUS_STOP: (Place.BUS_WINDOW, Place.TIMES_SQUARE),
}
ACTION_WORDS: dict[Action, tuple[str, ...]] = {
    Action.SIT: ("sit", "ride", "wait"),
    Action.STAND: ("stand", "stop for a moment", "ride", "wait"),
    Action.WALK: ("walk", "stroll", "climb", "pass by"),
    Action.RUN: ("run", "jog"),
    Action.LOOK_AROUND: ("look around", "wait"),
    Action.LOOK_OUT: (
        *("look out", "look up", "look at", "observe", "gaze", "admire", "enjoy", "wait"),
        "watch the city view",
    ),
    Action.TILT: ("tilt",),
    Action.WAG: ("wag",),
    Action.WAVE: ("wave",),
    Action.SNIFF: ("sniff",),
    Action.SEE_BALL: ("see", "find", "look at a red ball", "observe it"),
    Action.WATCH_BALL: ("watch",),
    Action.BITE: ("bite", "grip", "hold"),
    Action.GRIP: ("grip", "hold"),
    Action.PICK_UP: ("pick up",),
    Action.KICK: ("kick",),
    Action.THROW: ("throw",),
    Action.SPIN: ("spin",),
    Action.SMILE: ("smile", "grin"),
    Action.CATCH_BREATH: ("breath", "pant"),
    Action.LIE: ("lie", "lying", "rest"),
    Action.SLEEP: ("sleep", "asleep", "doze"),
    Action.GET_ON: ("get on", "board"),
    Action.GET_OFF: ("get off", "leave"),
    Action.MEET: ("meet", "encounter", "greet", "look at each other"),
    Action.CHASE: ("chase", "run after", "run away", "try to catch"),
    Action.CATCH: ("catch", "caught"),
}
# Where the first wording of the lessons says less by itself than it does in them.
ACTION_NAMES: dict[Action, str] = {
    Action.GET_ON: "getting on the subway train or a bus",
    Action.GET_OFF: "getting off the subway train or a bus",
    Action.MEET: "meeting somebody",
    Action.CHASE: "chasing somebody",
    Action.CATCH: "catching somebody",
}


def mini_vocabulary() -> Vocabulary:
    """Return all that the embedded model was taught."""
    return Vocabulary(
        characters={who.value: _character(who) for who in Character},
        places={
            place.value: Set(
                WHERE[place][0],
                PLACE_PHRASES[place],
                tuple(other.value for other in HIDES.get(place, ())),
            )
            for place in Place
        },
        actions={
            action.value: _action(action) for action in Action if action not in (Action.FLEE, Action.CAUGHT)
        },
        light={light.value: LIGHT_WORDS[light] for light in Light},
        words=tuple(sorted(set(words_of(" ".join(_texts()))))),
    )


def _character(who: Character) -> Known:
    wear = tuple(thing for thing in wear_of(who) if thing)
    example = look_name(who, Look(COLOURS[who][1], wear[0]))
    return Known(NAMES[who], CHARACTER_WORDS[who], COLOURS[who], wear, f"a {example}")


def _action(action: Action) -> Taught:
    pairs = action in DUET_ACTIONS
    able = {
        (who, place)
        for who in Character
        for place in Place
        if (place is not Place.SUBWAY_STAIRS if pairs else action in allowed_actions(who, place))
    }
    return Taught(
        name=ACTION_NAMES.get(action) or _plain(ACTION_PHRASES[action]),
        phrases=ACTION_WORDS[action],
        characters=tuple(who.value for who in Character if any(who is one for one, _ in able)),
        places=tuple(place.value for place in Place if any(place is one for _, one in able)),
        counts=(2,) if pairs else (1,) if action in SOLO_ACTIONS else tuple(range(1, MOST + 1)),
    )


def _plain(phrases: tuple[str, ...]) -> str:
    """Return the first of some wordings that goes with "is", without it."""
    first = next(phrase for phrase in phrases if phrase.startswith("[is|are] "))
    return _numbers(first.removeprefix("[is|are] ").replace("{their}", "its"))[0]


def _numbers(template: str) -> tuple[str, str]:
    """Return a wording for one and for several."""
    return (
        re.sub(r"\[([^|\]]*)\|([^\]]*)\]", r"\1", template),
        re.sub(r"\[([^|\]]*)\|([^\]]*)\]", r"\2", template),
    )


def _texts() -> Iterator[str]:
    """Yield all that lessons say: every wording of the tables, and some lessons for what is between."""
    tables = (NOUNS, CLOTHES, LIGHT_WORDS, WHERE, ARRIVALS, OPEN_SETTINGS, SETTINGS, ACTION_PHRASES)
    phrases = (OUTDOOR_PHRASES, GRASS_PHRASES, PERSON_GRASS_PHRASES, DUETS)
    for table in (*tables, *phrases):
        for wordings in table.values():
            for wording in wordings:
                yield from _numbers(re.sub(r"\{\w+\}", " ", wording))
    yield from (re.sub(r"\{[\w.]+\}", " ", f"{s.scene} {s.action}") for plot in PLOTS.values() for s in plot)
    yield from (
        look_name(who, Look(colour, wear))
        for who in Character
        for colour in COLOURS[who]
        for wear in wear_of(who)
    )
    yield from all_texts(Random(SEED), SAMPLED)


def as_text(vocabulary: Vocabulary) -> str:
    """Return the text of the file that says all this: a line for each thing that can be drawn."""
    parts = []
    for name, value in asdict(vocabulary).items():
        if isinstance(value, dict):
            lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in value.items())
            parts.append(f'"{name}": {{\n{lines}\n}}')
        else:
            parts.append(f'"{name}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    path = MODELS["mini"].vocabulary
    assert path is not None
    path.write_text(as_text(mini_vocabulary()), "utf-8")
