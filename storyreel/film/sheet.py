"""The contact sheet of a film that need not be there yet: `sheet.png`, and `sheet.json`, which lists it.

Both are written whole, the list last. It holds the key of all that the sheet shows, and counts only as long
as the picture is the one that it was written for.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storyreel.files import digest, file_hash, matches, read_json, write_atomically, writing
from storyreel.film.folder import SHEET
from storyreel.film.store import RECORD, file_name

if TYPE_CHECKING:
    from PIL import Image, ImageFont

FORMAT = 1  # of the list, and of how the sheet is laid out
PICTURE, LIST = SHEET
COLUMNS = 4
WIDTH, LEAST_WIDTH = 384, 96  # pixels of a picture
MOST_PIXELS = 50_000_000  # of a sheet: pictures are smaller on one that would have more
LINES = 4  # of a prompt: the list has all of it
PAPER, INK, FAINT = (24, 24, 27), (250, 250, 250), (161, 161, 170)


@dataclass(frozen=True)
class Shown:
    """A picture of a scene, whose ``number`` counts from 1.

    ``seed`` is what a story says of the scene's noise, None where it says nothing; ``key`` covers all that
    shaped the picture. ``chosen`` says whether the film is made like that, as the story is now.
    """

    number: int
    scene: str
    action: str
    seed: int | None
    chosen: bool
    key: str

    @property
    def words(self) -> str:
        """What tells it from other pictures of its scene."""
        seed = "no seed of its own" if self.seed is None else f"seed {self.seed}"
        return f"{seed}, as the story is" if self.chosen else seed


@dataclass(frozen=True)
class Sheet:
    """A sheet that is there: its list, as plain data, and its files."""

    folder: Path
    content: dict[str, Any]

    @property
    def picture(self) -> Path:
        """The file of the sheet."""
        return self.folder / PICTURE


def sheet_key(title: str, shown: Sequence[Shown], facts: dict[str, Any]) -> str:
    """Return a key of all that a sheet shows; ``facts`` are those of `keys.film_facts`."""
    texts = [[one.number, one.scene, one.action, one.seed, one.chosen, one.key] for one in shown]
    return digest([FORMAT, title, texts, facts["recipe"]["pictures"]])


def find_sheet(folder: Path, key: str) -> Sheet | None:
    """Return the sheet of a key, if it is in a film's folder and unchanged."""
    try:
        content = read_json(folder / LIST)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("key") != key:
        return None
    return Sheet(folder, content) if matches(folder / PICTURE, str(content.get("sha256"))) else None


def drafts_of_sheet(folder: Path) -> set[str]:
    """Return the names of the files of drafts that the sheet in a film's folder shows; none without one."""
    try:
        pictures = read_json(folder / LIST)["pictures"]
        names = [file_name("latents", f"{one['number']:02d}", one["key"]) for one in pictures]
    except (OSError, ValueError, TypeError, KeyError):
        return set()
    return {*names, *(f"{name}{RECORD}" for name in names)}


def write_sheet(
    folder: Path, key: str, title: str, note: str, shown: Sequence[Shown], pictures: Sequence[Image.Image]
) -> Sheet:
    """Draw a sheet and list what is where on it; ``note`` says how it was made. Raises OutputError."""
    picture, boxes = drawn(title, note, shown, pictures)
    data = io.BytesIO()
    picture.save(data, "PNG")
    with writing(folder / PICTURE):
        write_atomically(folder / PICTURE, data.getvalue())
    content: dict[str, Any] = {
        "format": FORMAT,
        "key": key,
        "sha256": file_hash(folder / PICTURE),
        "title": title,
        "made": note,
        "size": list(picture.size),
        "pictures": [
            {
                "number": one.number,
                "scene": one.scene,
                "action": one.action,
                "seed": one.seed,
                "chosen": one.chosen,
                "key": one.key,
                "box": list(box),
            }
            for one, box in zip(shown, boxes, strict=True)
        ],
    }
    with writing(folder / LIST):
        write_atomically(folder / LIST, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return Sheet(folder, content)


def drawn(
    title: str, note: str, shown: Sequence[Shown], pictures: Sequence[Image.Image]
) -> tuple[Image.Image, list[tuple[int, int, int, int]]]:
    """Return the sheet and where each picture is on it: left, top, right and bottom in pixels.

    With one picture a scene, `COLUMNS` scenes are side by side, each over its text; with several, a scene is
    a row of its own under its text.
    """
    width, aspect = WIDTH, pictures[0].height / pictures[0].width
    while width > LEAST_WIDTH and len(shown) * (width * aspect + 120) * (width + 20) > MOST_PIXELS:
        width = max(LEAST_WIDTH, int(width * 0.8))
    layout = _Layout(width, round(width * aspect))
    scenes: dict[int, list[int]] = {}
    for index, one in enumerate(shown):
        scenes.setdefault(one.number, []).append(index)
    most = max(map(len, scenes.values()))
    columns = min(COLUMNS, len(scenes)) if most == 1 else most
    layout.begin(columns, title, note)
    boxes: dict[int, tuple[int, int, int, int]] = {}
    rows = list(scenes.values())
    if most == 1:
        rows = [[i for one in rows[at : at + columns] for i in one] for at in range(0, len(rows), columns)]
    for row in rows:
        if most == 1:
            boxes |= layout.row([(i, pictures[i], _texts(shown[i])) for i in row])
        else:
            layout.line(_texts(shown[row[0]]))
            captions = [[(shown[i].words, INK if shown[i].chosen else FAINT, False)] for i in row]
            boxes |= layout.row([(i, pictures[i], texts) for i, texts in zip(row, captions, strict=True)])
    return layout.finished(), [boxes[i] for i in range(len(shown))]


Text = tuple[str, tuple[int, int, int], bool]  # words, colour, and whether in large letters


def _texts(one: Shown) -> list[Text]:
    texts: list[Text] = [(f"{one.number}  {one.scene}", INK, True)]
    return texts if one.action == one.scene else [*texts, (one.action, FAINT, False)]


class _Layout:
    """A sheet that grows downwards, row by row."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import ImageFont

        self._width, self._height = width, height
        self._gap = max(6, width // 24)
        size = max(9, width // 24)
        self._large, self._small = (ImageFont.load_default(size + more) for more in (2, 0))
        self._parts: list[tuple[int, int, Image.Image | Text]] = []
        self._y = self._gap

    def begin(self, columns: int, title: str, note: str) -> None:
        """Set how many pictures are side by side, and put the title on top."""
        self._across = self._gap + columns * (self._width + self._gap)
        self.line([(title, INK, True), (note, FAINT, False)])

    def line(self, texts: Sequence[Text]) -> None:
        """Add texts as wide as the sheet."""
        self._y = self._written(self._gap, self._y, self._across - 2 * self._gap, texts) + self._gap // 2

    def row(
        self, cells: Sequence[tuple[int, Image.Image, Sequence[Text]]]
    ) -> dict[int, tuple[int, int, int, int]]:
        """Add pictures side by side, each with its texts below; return where they are, by their names."""
        from PIL import Image

        boxes, bottom = {}, self._y
        for column, (name, picture, texts) in enumerate(cells):
            x = self._gap + column * (self._width + self._gap)
            small = picture.resize((self._width, self._height), Image.Resampling.LANCZOS)
            self._parts.append((x, self._y, small))
            boxes[name] = (x, self._y, x + self._width, self._y + self._height)
            below = self._y + self._height + self._gap // 3
            bottom = max(bottom, self._written(x, below, self._width, texts))
        self._y = bottom + self._gap
        return boxes

    def finished(self) -> Image.Image:
        """Return the sheet."""
        from PIL import Image, ImageDraw

        sheet = Image.new("RGB", (self._across, self._y), PAPER)
        draw = ImageDraw.Draw(sheet)
        for x, y, part in self._parts:
            if isinstance(part, tuple):
                draw.text((x, y), part[0], part[1], self._large if part[2] else self._small)
            else:
                sheet.paste(part, (x, y))
        return sheet

    def _written(self, x: int, y: int, width: int, texts: Sequence[Text]) -> int:
        """Add texts, each wrapped to a width; return where they end."""
        for words, colour, large in texts:
            font = self._large if large else self._small
            height = sum(font.getmetrics()) if hasattr(font, "getmetrics") else 12
            for line in _wrapped(words, font, width):
                self._parts.append((x, y, (line, colour, large)))
                y += height
        return y


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Return a text in lines that are at most so many pixels wide; what is behind `LINES` is left out."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        while font.getlength(word) > width and len(word) > 1:  # a text without blanks
            fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    lines = [line for line in lines if line]
    if len(lines) <= LINES:
        return lines
    last = lines[LINES - 1]
    while last and font.getlength(f"{last}…") > width:
        last = last[:-1]
    return [*lines[: LINES - 1], f"{last.rstrip()}…"]
