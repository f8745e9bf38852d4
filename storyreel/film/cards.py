"""Titles and end cards: text on a plain picture, drawn by Pillow and encoded as scenes are.

A card is drawn whenever a film is joined, which takes less than to look for one, and lies beside the segments
as long as that lasts. It costs no model evaluation, and no other part of the film is made again for it: the
film's key covers its text, its length, the font, and how it is drawn.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storyreel.errors import UsageError
from storyreel.files import file_hash
from storyreel.film import writer
from storyreel.film.recipe import fingerprint, source
from storyreel.story.plan import Card, Plan

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

COLOURS = {"black": ((0, 0, 0), (255, 255, 255)), "white": ((255, 255, 255), (0, 0, 0))}  # ground, text
LARGEST = 1 / 8  # of the picture's height: a letter's size
WITHIN = 0.8  # of the picture's width and height
MODULE = "storyreel.film.cards"


def drawn_by(plan: Plan) -> dict[str, Any]:
    """Return what shapes the pictures of a film's cards beside their texts, as plain data.

    Raises UsageError for a font that cannot be read, or lacks a sign of a card.
    """
    check_font(plan)
    font = file_hash(plan.font) if plan.font else "Pillow's"
    text = source(MODULE)
    assert text is not None
    return {"pillow": metadata.version("pillow"), "font": font, "recipe": fingerprint(ast.parse(text))}


def check_font(plan: Plan) -> None:
    """Raise UsageError if a film's font cannot be read, or lacks a sign of one of its cards."""
    font = _font(plan.font, 20)
    if plan.font is None:
        return  # planning has looked
    unknown = _ink(font, "\uffff")  # no letter: what a font shows for whatever it lacks
    for card in plan.cards:
        for sign in dict.fromkeys(card.text):
            if not sign.isspace() and _ink(font, sign) == unknown:
                raise UsageError(f"{plan.font} has no {sign!r}, which a card needs", "Name another font.")


def _ink(font: FreeTypeFont, text: str) -> tuple[bytes, tuple[int, int]]:
    mask = font.getmask(text)
    return bytes(mask), mask.size


def write_card(plan: Plan, card: Card, path: Path) -> None:
    """Encode a card. Raises OutputError or StoryreelError."""
    spec, settings = plan.spec, plan.settings
    width, height = settings.width * spec.upscale, settings.height * spec.upscale
    picture = card_picture(card, width, height, plan.font).tobytes()
    with writer.SegmentWriter(path, width, height, spec.fps, 1) as encoder:
        for _ in range(card.frames):
            encoder.write(picture)


def card_picture(card: Card, width: int, height: int, font: Path | None = None) -> Image:
    """Draw a card: its text in the middle, as large as it fits, but no larger than a title.

    Its own lines are broken only where they would have to be less than half as large.
    """
    from PIL import Image, ImageDraw

    ground, colour = COLOURS[card.ground]
    picture = Image.new("RGB", (width, height), ground)
    draw = ImageDraw.Draw(picture)
    largest, inside = max(1, round(height * LARGEST)), (WITHIN * width, WITHIN * height)
    whole = [(size, False) for size in range(largest, largest // 2, -1)]
    for size, breaks in [*whole, *((size, True) for size in range(largest, 0, -1))]:
        chosen = _font(font, size)
        lines = "\n".join(_wrapped(card.text, chosen, inside[0])) if breaks else card.text
        left, top, right, bottom = draw.multiline_textbbox((0, 0), lines, chosen, spacing=size / 3)
        if right - left <= inside[0] and bottom - top <= inside[1]:
            break
    middle = width / 2, height / 2
    draw.multiline_text(middle, lines, colour, chosen, anchor="mm", spacing=size / 3, align="center")
    return picture


def _wrapped(text: str, font: FreeTypeFont, width: float) -> list[str]:
    """Break a text's lines where they are too wide: between words, and inside one that is too wide itself."""
    found: list[str] = []
    for line in text.splitlines():
        words = [part for word in line.split(" ") for part in _parts(word, font, width)]
        current = ""
        for word in words:
            longer = f"{current} {word}".strip()
            if current and font.getlength(longer) > width:
                found.append(current)
                current = word
            else:
                current = longer
        found.append(current)
    return found


def _parts(word: str, font: FreeTypeFont, width: float) -> Sequence[str]:
    parts = [""]
    for sign in word:
        if parts[-1] and font.getlength(parts[-1] + sign) > width:
            parts.append("")
        parts[-1] += sign
    return parts


def _font(path: Path | None, size: int) -> FreeTypeFont:
    """Return a font, Pillow's own without a path. Raises UsageError."""
    from PIL import ImageFont

    if path is None:
        # Without Raqm, which not every Pillow has: the same letters everywhere.
        own = ImageFont.load_default(size)
        assert isinstance(own, ImageFont.FreeTypeFont)
        return own
    try:
        data = BytesIO(path.read_bytes())
        return ImageFont.truetype(data, size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        words = f"the font {path} cannot be read: {error.strerror or error}"
        raise UsageError(words, "Name a TrueType or OpenType file, from the story's folder on.") from None
