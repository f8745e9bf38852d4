"""The takes of scenes that were made beside those that the film shows: what was asked for, and their videos.

`takes.json` in the film's folder lists them, so that one can be chosen by its number. It is no part of the
film: what the film shows is said in the story alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ImageDraw, ImageFont
from PIL.Image import Image, frombytes, new
from pydantic import TypeAdapter, ValidationError

from storyreel.errors import UsageError
from storyreel.files import read_json, replacing, write_atomically, writing
from storyreel.film import reader
from storyreel.film.manifest import Manifest
from storyreel.film.store import file_name
from storyreel.story.plan import Plan
from storyreel.story.schema import Retake

if TYPE_CHECKING:
    from storyreel.film.inventory import Inventory

FILE = "takes.json"
SEGMENTS = "segments"
MOMENTS = 6  # pictures of a take
SHEET_WIDTH, LABEL, GAP = 240, 16, 8  # pixels


@dataclass(frozen=True)
class Take:
    """A take of the scene with the ``number`` 1 and up: what a story says of it, and its video's file.

    Take 1 is the first one. ``scene`` and ``action`` are prompts as a story writes them, None for the
    scene's own.
    """

    number: int
    take: int
    seed: int | None
    scene: str | None
    action: str | None
    video: str

    @property
    def written(self) -> int | dict[str, Any] | None:
        """What a story says of it under ``retake``; None for the first take."""
        if self.take == 1:
            return None
        return Retake(take=self.take, seed=self.seed, scene=self.scene, action=self.action).written


_TAKES = TypeAdapter(list[Take])


def read_takes(folder: Path) -> list[Take]:
    """Return the takes that a film's folder lists, by scene and number; of a damaged list none."""
    try:
        takes = _TAKES.validate_python(read_json(folder / FILE))
    except (OSError, ValueError, ValidationError):
        return []
    named = (take for take in takes if Path(take.video).name == take.video and take.number > 0)
    return sorted(named, key=lambda take: (take.number, take.take))


def record_take(folder: Path, plan: Plan, inventory: Inventory, index: int) -> None:
    """List the take that a plan shows of a scene, whose video is there. Raises OutputError."""
    number = index + 1
    written = plan.story["scenes"][index].get("retake") or {"take": 1}
    retake = Retake.model_validate(written) if written["take"] > 1 else None
    take = Take(
        number,
        written["take"],
        retake.seed if retake else None,
        retake.scene if retake else None,
        retake.action if retake else None,
        inventory.video[index].file,
    )
    others = [one for one in read_takes(folder) if (one.number, one.take) != (number, take.take)]
    takes = sorted([*others, take], key=lambda one: (one.number, one.take))
    text = json.dumps([asdict(one) for one in takes], indent=2, ensure_ascii=False) + "\n"
    with writing(folder / FILE):
        write_atomically(folder / FILE, text)


def takes_sheet(
    folder: Path, present: Manifest | None, number: int, takes: Sequence[Take], size: tuple[int, int]
) -> Path:
    """Write a picture of all takes of a scene, a row each: first what the film that is there shows of it.

    ``size`` is that of the model's pictures. Returns the picture's path. Raises StoryreelError if a video
    cannot be read, OutputError.
    """
    rows: dict[str, str] = {}  # names of videos, and what is said of each
    for scene in present.segments[number - 1 : number] if present else ():
        video = file_name("video", str(scene.get("number")), str(scene.get("video_key")))
        rows[video] = f"in the film: take {scene.get('take', 1)}"
    for take in takes:
        rows.setdefault(take.video, f"take {take.take}")
    videos = {video: folder / SEGMENTS / video for video in rows}
    pictures = [(rows[name], list(_moments(path, size))) for name, path in videos.items() if path.is_file()]
    target = folder / f"takes-{number:02d}.png"
    with writing(target), replacing(target) as part:
        _sheet(pictures).save(part, "PNG")
    return target


def _moments(video: Path, size: tuple[int, int]) -> Iterator[Image]:
    """Yield pictures of a video, spread over its length."""
    width, height = size
    frames = b"".join(reader.read_frames(video, width, height))
    each = width * height * 3
    last = len(frames) // each - 1
    for moment in range(MOMENTS):
        at = round(moment * last / (MOMENTS - 1)) * each
        picture = frombytes("RGB", size, frames[at : at + each])
        yield picture.resize((SHEET_WIDTH, max(1, round(SHEET_WIDTH * height / width))))


def _sheet(rows: list[tuple[str, list[Image]]]) -> Image:
    """Lay pictures out, a row for each take, with its name above it."""
    font = ImageFont.load_default(size=LABEL)
    height = max(picture.height for _, pictures in rows for picture in pictures)
    line = LABEL * 2 + height + GAP
    sheet = new("RGB", (MOMENTS * (SHEET_WIDTH + GAP) + GAP, len(rows) * line + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (words, pictures) in enumerate(rows):
        pen.text((GAP, row * line + LABEL // 2), words, "black", font)
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (GAP + column * (SHEET_WIDTH + GAP), row * line + LABEL * 2))
    return sheet


def find_take(folder: Path, number: int, take: int) -> Take:
    """Return a take of a scene. Raises UsageError, naming those that there are."""
    takes = [one for one in read_takes(folder) if one.number == number]
    for one in takes:
        if one.take == take:
            return one
    known = ", ".join(str(one.take) for one in takes) or "none"
    remedy = f"Make one: storyreel retake STORY {number}"
    raise UsageError(f"scene {number} has no take {take}; there are: {known}", remedy)
