"""What may stand on a card, a picture of text that no model draws."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Iterator

# What the font knows that Pillow brings along (Aileron, a part of it): English, and a few signs.
ENGLISH = frozenset(string.ascii_letters + string.digits + string.punctuation + " ©«°±´·»‘’“”…‹›⁄™")
MOST_LINES = 8
MOST_CHARACTERS = 300


def card_lines(text: str) -> str:
    """Return a card's text with plain blanks, and without empty lines around it."""
    lines = [" ".join(line.split()) for line in unicodedata.normalize("NFC", text).splitlines()]
    return "\n".join(lines).strip("\n")


def card_problem(text: str, has_font: bool) -> str | None:
    """Return why a card's text cannot be drawn; None if it can, or if that is the font's own matter."""
    return next(_problems(text, has_font), None)


def _problems(text: str, has_font: bool) -> Iterator[str]:
    if text.count("\n") >= MOST_LINES:
        yield f"a card has at most {MOST_LINES} lines"
    if len(text) > MOST_CHARACTERS:
        yield f"a card has at most {MOST_CHARACTERS} characters with the names filled in"
    for sign in text.replace("\n", ""):
        if unicodedata.bidirectional(sign) in ("R", "AL") or unicodedata.category(sign) in ("Mn", "Mc", "Me"):
            yield f"cards cannot draw {sign!r}: letters stand side by side there, from left to right"
        elif not has_font and sign not in ENGLISH:
            words = f"{sign!r} is not in the font that comes along, which knows English alone"
            yield f"{words}; name another in the story, as in font: NotoSans-Regular.ttf"
