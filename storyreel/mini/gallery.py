"""A page with pictures of all that the embedded model can draw, by the program that drew its lessons."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html import escape
from random import Random

from PIL import Image

from .plots import NAMES
from .vocabulary import mini_vocabulary
from .world import (
    ARRANGEMENTS,
    COLOURS,
    LOOKS,
    Action,
    Character,
    Clip,
    Light,
    Look,
    Place,
    Stage,
    allowed_actions,
    look_name,
    stage_clip,
    wear_of,
)
from .world.captions import LIGHT_WORDS
from .world.model import DUET_ACTIONS

WIDTH, HEIGHT = 192, 128
MOMENT = 1.0  # seconds into a clip: every motion is under way
QUALITY = 80  # of JPEG

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
div { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .75rem; }
figure { margin: 0; } figcaption { font-size: .8rem; line-height: 1.3; }
img { width: 100%; border-radius: .3rem; display: block; }
"""


def gallery_page() -> str:
    """Return one HTML file that needs no network, with characters and looks, places and light, actions."""
    sections = {
        "Characters and looks": (
            "One or two in a scene. What a prompt leaves open is drawn at random, in every scene anew; "
            "that somebody wears nothing cannot be asked for.",
            _characters(),
        ),
        "Places and light": ("Every place has two sets; no words choose between them.", _places()),
        "Actions": ("Not every character does everything, nor everywhere.", _actions()),
    }
    body = "\n".join(
        f"<h2>{title}</h2>\n<p>{note}</p>\n<div>\n{chr(10).join(figures)}\n</div>"
        for title, (note, figures) in sections.items()
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<title>What mini draws</title>
<style>{_STYLE}</style>
<h1>What mini draws</h1>
<p>True pictures, by the program that drew its lessons: what the model is meant to draw for these words.</p>
{body}
</html>
"""


def _characters() -> Iterator[str]:
    for who in Character:
        plain = COLOURS[who][0]
        looks = [Look(colour) for colour in COLOURS[who]]
        looks += [Look(plain, wear) for wear in wear_of(who) if wear]
        for look in looks:
            clip = _clip(Place.CENTRAL_PARK, (who,), Action.STAND, look)
            yield _figure(f"a {look_name(who, look)}", clip)


def _places() -> Iterator[str]:
    names = {key: place.name for key, place in mini_vocabulary().places.items()}
    for place in Place:
        for light in Light:
            for arrangement in range(ARRANGEMENTS):
                clip = _clip(place, (Character.CORGI,), Action.STAND, None, light, arrangement)
                yield _figure(f"{names[place.value]} {LIGHT_WORDS[light][0]}", clip, empty=True)


def _actions() -> Iterator[str]:
    for key, taught in mini_vocabulary().actions.items():
        action = Action(key)
        who = [Character(one) for one in taught.characters]
        # The corgi, as in the first story, where it can; whoever can, else.
        first = Character.CORGI if Character.CORGI in who else who[0]
        cast = (first, Character.CAT) if action in DUET_ACTIONS else (first,)
        places = [Place(one) for one in taught.places]
        if action not in DUET_ACTIONS:
            places = [place for place in places if action in allowed_actions(first, place)]
        place = Place.CENTRAL_PARK if Place.CENTRAL_PARK in places else places[0]
        does = taught.name.replace("somebody", NAMES[Character.CAT])
        yield _figure(f"{NAMES[first]} {does}", _clip(place, cast, action))


def _clip(
    place: Place,
    cast: tuple[Character, ...],
    action: Action,
    look: Look | None = None,
    light: Light = Light.DAY,
    arrangement: int = 0,
) -> Clip:
    looks = (look, None) if look else tuple(LOOKS[who][0] for who in cast)
    return stage_clip(Random(0), place, cast, action, looks=looks, light=light, arrangement=arrangement)


def _figure(caption: str, clip: Clip, empty: bool = False) -> str:
    picture, _ = Stage(clip, WIDTH, HEIGHT).frame(MOMENT, empty)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=QUALITY)
    data = base64.b64encode(file.getvalue()).decode()
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    picture_of = f'<img alt="" {size} loading="lazy" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{picture_of}<figcaption>{escape(caption)}</figcaption></figure>"
