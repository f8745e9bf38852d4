"""The takes of scenes that were made beside those that the film shows: what was asked for, and their videos.

`takes.json` in the film's folder lists them, so that one can be chosen by its number. It is no part of the
film: what the film shows is said in the story alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from storyreel.errors import UsageError
from storyreel.files import read_json, replacing, write_atomically, writing
from storyreel.film import reader
from storyreel.film.keys import settings_digest
from storyreel.film.manifest import Manifest
from storyreel.film.store import Kind, file_name
from storyreel.story.plan import Plan
from storyreel.story.schema import Retake

if TYPE_CHECKING:
    from PIL.Image import Image

    from storyreel.film.inventory import Inventory

FILE = "takes.json"
BEGUN = "take.unfinished.json"  # the names of what a take that is being made keeps and will make
SEGMENTS = "segments"
MOMENTS = 6  # pictures of a take
SHEET_WIDTH, LABEL, GAP = 240, 16, 8  # pixels


@dataclass(frozen=True)
class Take:
    """A take of a scene: what a story says of it, and the files of its video and its latents.

    ``number`` is that of the scene, from 1, when it was made; ``of`` are the scene's own prompts as the story
    wrote them then. Take 1 is the first one. ``scene`` and ``action`` are other prompts, None for these.
    ``made`` is the `keys.settings_digest` of the film that it was made for, None where nobody knows.
    """

    number: int
    of: tuple[str, str]
    take: int
    seed: int | None
    scene: str | None
    action: str | None
    video: str
    latents: str
    made: str | None = None

    def fits(self, film: Manifest | None) -> bool:
        """Tell whether it was made as a film was; else the next render of that makes it anew."""
        wanted = settings_digest(film.facts) if film else None
        return wanted is None or self.made is None or self.made == wanted

    @property
    def written(self) -> int | dict[str, Any] | None:
        """What a story says of it under ``retake``; None for the first take."""
        if self.take == 1:
            return None
        return Retake(take=self.take, seed=self.seed, scene=self.scene, action=self.action).written


_TAKES, _NAMES = TypeAdapter(list[Take]), TypeAdapter(list[str])
STATES: tuple[Kind, ...] = ("latents", "state")  # what there is of a segment while it is made
Texts = Sequence[tuple[str, str]]  # both prompts of every scene, as a story writes them


def read_takes(folder: Path) -> list[Take]:
    """Return the takes that a film's folder lists, by scene and number; of a damaged list none."""
    return _read(folder) or []


def _read(folder: Path) -> list[Take] | None:
    """Return what `read_takes` does; None for a list that is damaged or not there."""
    try:
        takes = _TAKES.validate_python(read_json(folder / FILE))
    except (OSError, ValueError, ValidationError):
        return None
    plain = all(Path(name).name == name for take in takes for name in (take.video, take.latents))
    if not plain or any(take.number < 1 or take.take < 1 for take in takes):
        return None
    return sorted(takes, key=lambda take: (take.number, take.take))


def texts_of(story: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return both prompts of every scene of a story's data, as it writes them."""
    return [(scene["scene"], scene["action"]) for scene in story["scenes"]]


def takes_of_scene(takes: Sequence[Take], texts: Texts, number: int) -> list[Take]:
    """Return the takes of the scene that has a ``number`` now, from 1: those with its prompts.

    A scene keeps its takes when it moves, and has none of those that were made of other prompts. Scenes with
    equal prompts are told apart by their numbers.
    """
    own = texts[number - 1]
    twins = sum(other == own for other in texts) > 1
    return [take for take in takes if take.of == own and (take.number == number or not twins)]


def record_take(folder: Path, plan: Plan, inventory: Inventory, index: int) -> None:
    """List the take that a plan shows of a scene, whose files are there. Raises OutputError.

    A list that is damaged is kept under another name.
    """
    scene = plan.story["scenes"][index]
    said = scene.get("retake") or {}
    take = Take(
        index + 1,
        (scene["scene"], scene["action"]),
        said.get("take", 1),
        said.get("seed"),
        said.get("scene"),
        said.get("action"),
        inventory.video[index].file,
        inventory.latents[plan.segments[index].slot].file,
        settings_digest(inventory.facts),
    )
    known = _read(folder)
    with writing(folder / FILE):
        if known is None and (folder / FILE).exists():
            (folder / FILE).replace(folder / f"{FILE}.damaged")
        others = [
            one for one in known or () if (one.number, one.of, one.take) != (take.number, take.of, take.take)
        ]
        takes = sorted([*others, take], key=lambda one: (one.number, one.take))
        text = json.dumps([asdict(one) for one in takes], indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / FILE, text)


def begin_take(folder: Path, inventory: Inventory) -> None:
    """Note which files a take will make, so that `clean` leaves them if it is stopped. Raises OutputError."""
    plan, keys = inventory.plan, inventory.keys
    names = [
        file_name(kind, segment.number, keys.of(segment)) for segment in inventory.undone for kind in STATES
    ]
    names += [file_name("video", plan.segments[i].number, keys.video[i]) for i in sorted(inventory.missing)]
    with writing(folder / BEGUN):
        write_atomically(folder / BEGUN, json.dumps(names, indent=2) + "\n")


def end_take(folder: Path) -> None:
    """Forget what `begin_take` noted. Raises OutputError."""
    with writing(folder / BEGUN):
        (folder / BEGUN).unlink(missing_ok=True)


def files_of_begun_take(folder: Path) -> set[str]:
    """Return the names of the files of a take that was begun; none if the note is damaged."""
    try:
        return {str(name) for name in _NAMES.validate_python(read_json(folder / BEGUN))}
    except (OSError, ValueError, ValidationError):
        return set()


def find_take(folder: Path, texts: Texts, number: int, take: int) -> Take:
    """Return a take of the scene with a number. Raises UsageError, naming those that there are."""
    takes = takes_of_scene(read_takes(folder), texts, number)
    for one in reversed(takes):
        if one.take == take:
            return one
    known = ", ".join(str(number) for number in sorted({1, *(one.take for one in takes)}))
    remedy = f"Make one: storyreel retake STORY {number}. Takes of former prompts of the scene do not count."
    raise UsageError(f"scene {number} has no take {take}; there are: {known}", remedy)


def takes_sheet(
    folder: Path,
    present: Manifest | None,
    number: int,
    texts: Texts,
    takes: Sequence[Take],
    size: tuple[int, int],
) -> Path:
    """Write a picture of all takes of a scene, a row each: first what the film that is there shows of it.

    Where that film's scene of this ``number`` has other prompts than ``texts``, it shows nothing of it.
    ``size`` is that of the model's pictures. Returns the picture's path. Raises StoryreelError if a video
    cannot be read, OutputError.
    """
    rows: dict[str, str] = {}  # names of videos, and what is said of each
    is_same = present is not None and _texts_in(present)[number - 1 : number] == [texts[number - 1]]
    shown = present.segments[number - 1 : number] if present and is_same else []
    for scene in shown:
        video = file_name("video", str(scene.get("number")), str(scene.get("video_key")))
        rows[video] = f"in the film: take {scene.get('take', 1)}"
    in_film = {scene.get("take", 1) for scene in shown}
    for take in takes:
        if take.take not in in_film:  # of that one there may be an outdated video
            otherwise = "" if take.fits(present) else ", made with other settings"
            rows.setdefault(take.video, f"take {take.take}{otherwise}")
    videos = {video: folder / SEGMENTS / video for video in rows}
    pictures = [(rows[name], list(_moments(path, size))) for name, path in videos.items() if path.is_file()]
    target = folder / f"takes-{number:02d}.png"
    with writing(target), replacing(target) as part:
        _sheet(pictures).save(part, "PNG")
    return target


def _texts_in(present: Manifest) -> list[tuple[str, str]]:
    """Return what `texts_of` does of the story that a film was made of; [] if its manifest does not tell."""
    try:
        return texts_of(present.facts["story"])
    except (KeyError, TypeError):
        return []


def _moments(video: Path, size: tuple[int, int]) -> Iterator[Image]:
    """Yield pictures of a video, spread over its length."""
    from PIL.Image import frombytes

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
    from PIL import ImageDraw, ImageFont
    from PIL.Image import new

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
