"""The files of a film's segments, each named by a key that covers all that shaped it.

Beside each file lies its record, sealed and written once, after the file. A file counts if its record has
the key that is looked for and the file's own hash; anything else is taken for missing. Files of another
seed, setting or text have other keys: they stay beside the new ones, and are used again when wanted again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on only

from storyreel.files import digest, file_hash, link_or_copy, matches, write_atomically, writing

# latents: a segment's clean latents. video: its frames, encoded. state: of a segment that is being denoised.
Kind = Literal["latents", "video", "state"]
SUFFIX: dict[Kind, str] = {"latents": ".safetensors", "video": ".mp4", "state": ".state.safetensors"}
FORMAT = 5  # of manifests and of records; another number is another film
RECORD = ".json"  # behind the name of the file that it is about
# What may be removed where no film needs it.
OURS = re.compile(
    r"\d{2,4}-[0-9a-f]{8}(\.mp4|(\.state)?\.safetensors)(\.json)?"
    r"|voice-[0-9a-f]{16}\.wav(\.json)?"
    r"|card-\d{1,4}\.mp4"  # of a film that was being joined
)
MOST_BYTES = 1 << 20  # of a record


class DecidedSeam(TypedDict):
    """The seam before a segment, as `plan.Seam` has it."""

    after: int
    transition: Literal["blend", "continue", "dissolve", "cut", "fade", "dip"]
    overlap: int
    strength: float
    similarity: float | None


class Sides(TypedDict):
    """How far the two sides of the seam before a segment are ``apart``, 0 to 255, as `sides.py` has it.

    ``before`` is the key of the latents of the segment before: of any other it says nothing.
    """

    before: str
    apart: float


class Decided(TypedDict, total=False):
    """What the method chose for a segment; ``prompt_weights`` are (scene, action) of every step.

    ``sides`` came of it, and is in the record of the segment's video; so is ``still``, a picture of it for
    pages (`stills.py`), a JPEG in base64.
    """

    lead: int
    seam: DecidedSeam | None
    prompt_weights: list[tuple[float, float]]
    sides: Sides
    still: str


@dataclass(frozen=True)
class Record:
    """What is known of a file of a segment, whose ``number`` counts from 01.

    ``key`` covers all that shaped it. ``device`` is what computed it and ``seconds`` how long that took.
    ``step`` is how many steps a state is after, ``decided`` is what the method chose while latents were
    denoised, or what came of that.
    """

    kind: Kind
    number: str
    key: str
    sha256: str
    device: str
    seconds: float
    step: int = 0
    decided: Decided = field(default_factory=Decided)

    @property
    def file(self) -> str:
        """The name of the file that it describes."""
        return file_name(self.kind, self.number, self.key)

    def text(self) -> str:
        """Return the record as the text of a file, sealed by its own hash."""
        content = {"format": FORMAT, **asdict(self)}
        return json.dumps(content | {"seal": digest(content)}, ensure_ascii=False) + "\n"


_RECORD = TypeAdapter(Record)


def file_name(kind: Kind, number: str, key: str) -> str:
    """Return the name of a segment's file: its number, and enough of its key to tell versions apart."""
    return f"{number}-{key[:8]}{SUFFIX[kind]}"


def spoken_name(key: str) -> str:
    """Return the name of a file that the voice has made: its text may be said in any scene."""
    return f"voice-{key[:16]}.wav"


def read_record(path: Path) -> Record | None:
    """Read a record; None if it is missing, was changed, or describes another file."""
    try:
        if path.stat().st_size > MOST_BYTES:
            return None
        text = path.read_bytes()
        record, content = _RECORD.validate_json(text, strict=True), json.loads(text)
        whole = {"format": FORMAT, **asdict(record)}
        sealed = content["seal"] == digest(whole) and content["format"] == FORMAT
    except (OSError, ValueError, ValidationError, TypeError, KeyError, RecursionError):
        return None
    return record if sealed and path.name == f"{record.file}{RECORD}" else None


class Store:
    """A folder of segments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, kind: Kind, number: str, key: str) -> Path:
        """Return where the file of a key is, or will be."""
        return self.folder / file_name(kind, number, key)

    def record(self, kind: Kind, number: str, key: str) -> Record | None:
        """Return the record of a key, without a look at its file; None if there is none."""
        path = self.path(kind, number, key)
        record = read_record(path.with_name(f"{path.name}{RECORD}"))
        return record if record is not None and record.key == key else None

    def find(self, kind: Kind, number: str, key: str) -> Record | None:
        """Return the record of a key if its file is there and unchanged, else None: reads the file."""
        record = self.record(kind, number, key)
        return record if record is not None and self.is_whole(record) else None

    def anywhere(self, kind: Kind, number: str, key: str) -> Record | None:
        """Return the record of a key, without a look at its file, also if the scene had another number."""
        return self.record(kind, number, key) or next(self._elsewhere(kind, key), None)

    def _elsewhere(self, kind: Kind, key: str) -> Iterator[Record]:
        for path in sorted(self.folder.glob(f"*-{key[:8]}{SUFFIX[kind]}{RECORD}")):
            if (record := read_record(path)) is not None and record.key == key:
                yield record

    def claim(self, kind: Kind, number: str, key: str) -> Record | None:
        """Return what `find` does; a whole file of a scene that had another number gets this one too.

        The film that is there may still need the other name, and as a link the second costs no space.
        Raises OutputError.
        """
        if (found := self.find(kind, number, key)) is not None:
            return found
        for record in self._elsewhere(kind, key):
            if record.number != number and self.is_whole(record):
                path = self.path(kind, number, key)
                with writing(path):
                    path.unlink(missing_ok=True)
                    link_or_copy(self.folder / record.file, path)
                return self.keep(
                    kind, number, key, record.device, record.seconds, record.step, record.decided
                )
        return None

    def is_whole(self, record: Record) -> bool:
        """Tell whether a record's file is there and unchanged."""
        return matches(self.folder / record.file, record.sha256)

    def keep(
        self,
        kind: Kind,
        number: str,
        key: str,
        device: str,
        seconds: float = 0.0,
        step: int = 0,
        decided: Decided | None = None,
    ) -> Record:
        """Write the record of a file that is complete, and return it. Raises OutputError."""
        path = self.path(kind, number, key)
        record = Record(
            kind, number, key, file_hash(path), device, round(seconds, 3), step, decided or Decided()
        )
        self.write(record)
        return record

    def write(self, record: Record) -> None:
        """Write the record of a file that stays as it is. Raises OutputError."""
        target = self.folder / f"{record.file}{RECORD}"
        with writing(target):
            write_atomically(target, record.text())

    def drop(self, kind: Kind, number: str, key: str) -> None:
        """Remove a file, its record first. Raises OutputError."""
        path = self.path(kind, number, key)
        with writing(path):
            path.with_name(f"{path.name}{RECORD}").unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def files(self) -> Iterator[Path]:
        """Yield every file that a render wrote here, of any key."""
        if self.folder.is_dir():
            for path in sorted(self.folder.iterdir(), reverse=True):  # a record before its file
                plain = path.is_file() and not path.is_symlink()
                if plain and OURS.fullmatch(path.name):
                    yield path
