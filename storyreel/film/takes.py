"""The takes of scenes that were made beside those that the film shows: what was asked for, and their videos.

`takes.json` in the film's folder lists them, so that one can be chosen by its number. It is no part of the
film: what the film shows is said in the story alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from storyreel.errors import UsageError
from storyreel.files import read_json, write_atomically, writing
from storyreel.story.plan import Plan
from storyreel.story.schema import Retake

if TYPE_CHECKING:
    from storyreel.film.inventory import Inventory

FILE = "takes.json"


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
        said = {"seed": self.seed, "scene": self.scene, "action": self.action}
        said = {name: value for name, value in said.items() if value is not None}
        return {"take": self.take, **said} if said else self.take


_TAKES = TypeAdapter(list[Take])


def read_takes(folder: Path) -> list[Take]:
    """Return the takes that a film's folder lists, by scene and number; of a damaged list none."""
    try:
        takes = _TAKES.validate_python(read_json(folder / FILE))
    except (OSError, ValueError, ValidationError):
        return []
    return sorted(takes, key=lambda take: (take.number, take.take))


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


def find_take(folder: Path, number: int, take: int) -> Take:
    """Return a take of a scene. Raises UsageError, naming those that there are."""
    takes = [one for one in read_takes(folder) if one.number == number]
    for one in takes:
        if one.take == take:
            return one
    known = ", ".join(str(one.take) for one in takes) or "none"
    remedy = f"Make one: storyreel retake STORY {number}"
    raise UsageError(f"scene {number} has no take {take}; there are: {known}", remedy)
