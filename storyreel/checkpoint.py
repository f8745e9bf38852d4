"""The output folder: what is finished, written so that nothing half done can pass for done.

A file is written under a temporary name, forced to disk and renamed. A segment counts as
complete when the manifest holds its key, which covers all that shaped it, and the hashes of
its files match. Everything else is absent and is rendered again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on only

from storyreel.errors import LockedError, OutputError

FORMAT = 3  # of the manifest; another number is another film


def digest(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file; unread if its target is named by it, as in huggingface_hub's cache."""
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else file_hash(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into OutputError."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        remedy = "Make room or choose another --out, then run again: finished segments are kept."
        raise OutputError(f"cannot write {where}: {error.strerror or error}", remedy) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; on success, sync it and rename it to ``path``."""
    # Temporary names are hidden and random: an orphaned writer can spoil only its own file.
    part = path.with_name(f".{path.stem}-{secrets.token_hex(8)}.part{path.suffix}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename last, where folders can be synced: not on Windows, not on every network."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a whole file or nothing."""
    with replacing(path) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)


class DecidedSeam(TypedDict):
    """The seam before a segment, as `plan.Seam` has it."""

    after: int
    transition: Literal["blend", "cut"]
    overlap: int
    strength: float
    similarity: float | None


class Decided(TypedDict, total=False):
    """What the method chose for a segment; ``prompt_weights`` of scene and action in every step."""

    lead: int
    seam: DecidedSeam | None
    prompt_weights: list[tuple[float, float]]


@dataclass(frozen=True)
class SegmentRecord:
    """What the manifest says of a segment. ``files`` maps names to SHA-256.

    ``key`` covers what shaped its latents, ``video_key`` what shaped its pictures ("" as long as
    it has none). ``device`` is what computed it, ``seconds`` how long that took. ``decided`` is
    what the method chose while rendering.
    """

    number: str
    key: str
    files: dict[str, str]
    device: str
    seconds: float
    decided: Decided
    video_key: str = ""


_RECORD = TypeAdapter(SegmentRecord)


@dataclass
class FilmFolder:
    """One story's output. Use it as a context: it holds the folder's lock."""

    path: Path
    name: str
    records: dict[str, SegmentRecord] = field(default_factory=dict)
    film: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> FilmFolder:
        with writing(self.path):
            self._refuse_strange_files()
            self.segments.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock", timeout=0)
            try:
                self._lock.acquire()
            except Timeout:
                remedy = "Wait for it, or choose another --out."
                raise LockedError(f"another storyreel is rendering into {self.path}", remedy) from None
            for part in (*self.path.glob(".*.part*"), *self.segments.glob(".*.part*")):
                part.unlink()
        self._load()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def _refuse_strange_files(self) -> None:
        """Refuse links, which lead to what is not ours to change, and pipes and devices, which never end."""
        folders = (self.path, self.segments)
        ours = (".lock", "manifest.json", "events.jsonl", self.page_path.name, self.film_path.name)
        inside = self.segments.iterdir() if self.segments.is_dir() else ()
        for path in (*folders, *(self.path / name for name in ours), *inside):
            is_ours = path.is_dir() if path in folders else path.is_file()
            if path.is_symlink() or (path.exists() and not is_ours):
                kind = "folder" if path in folders else "file"
                remedy = "Remove it, or choose another --out; --out itself may be a link."
                raise OutputError(f"{path} is no plain {kind}", remedy)

    @property
    def segments(self) -> Path:
        """Where the segments are."""
        return self.path / "segments"

    @property
    def film_path(self) -> Path:
        """The film."""
        return self.path / f"{self.name}.mp4"

    @property
    def manifest_path(self) -> Path:
        """The manifest."""
        return self.path / "manifest.json"

    @property
    def page_path(self) -> Path:
        """The film's page."""
        return self.path / "index.html"

    def video(self, number: str) -> Path:
        """A segment's film."""
        return self.segments / f"{number}.mp4"

    def latents(self, number: str) -> Path:
        """A segment's latents."""
        return self.segments / f"{number}.safetensors"

    def _load(self) -> None:
        """Read what a former run recorded; a manifest that is not ours, or was changed, counts as none."""
        try:
            manifest = json.loads(self.manifest_path.read_bytes())
            if manifest["format"] != FORMAT or manifest.pop("sha256") != digest(manifest):
                return
            for entry in manifest["segments"]:
                if "key" in entry:  # else it is planned and not yet made
                    record = _RECORD.validate_python(entry)
                    self.records[record.number] = record
            self.film = dict(manifest["film"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self.records, self.film = {}, {}

    def has_latents(self, number: str, key: str, device: str = "auto") -> bool:
        """Tell whether a segment's latents are there, whole, and made from the same things.

        ``auto`` takes a segment from any device.
        """
        record = self.records.get(number)
        if record is None or record.key != key or (device != "auto" and record.device != device):
            return False
        return self._is_whole(record, self.latents(number))

    def has_video(self, number: str, video_key: str) -> bool:
        """Tell whether a segment's film is there, whole, and made from the same things."""
        record = self.records.get(number)
        return (
            record is not None
            and record.video_key == video_key
            and self._is_whole(record, self.video(number))
        )

    @staticmethod
    def _is_whole(record: SegmentRecord, path: Path) -> bool:
        return path.name in record.files and _hash_matches(path, record.files[path.name])

    def film_is_complete(self, key: str) -> bool:
        """Tell whether the film is there, whole, and made from the same segments."""
        return self.film.get("key") == key and _hash_matches(self.film_path, self.film.get("sha256", ""))

    def begin(self, kept: Collection[str]) -> None:
        """Forget every segment but those to be kept, and the film that was made of others."""
        self.records = {number: self.records[number] for number in kept}
        self.film = {}
        with writing(self.film_path):
            self.film_path.unlink(missing_ok=True)

    def record_latents(self, number: str, key: str, device: str, seconds: float, decided: Decided) -> None:
        """Note that a segment's latents are in place."""
        path = self.latents(number)
        files = {path.name: file_hash(path)}
        self.records[number] = SegmentRecord(number, key, files, device, round(seconds, 3), decided)

    def record_video(self, number: str, video_key: str, seconds: float) -> None:
        """Note that a segment's film is in place."""
        record, path = self.records[number], self.video(number)
        self.records[number] = replace(
            record,
            files={**record.files, path.name: file_hash(path)},
            seconds=round(record.seconds + seconds, 3),
            video_key=video_key,
        )

    def remove_strangers(self, numbers: Collection[str]) -> None:
        """Remove the files of segments that the story no longer has."""
        kept = {path for number in numbers for path in (self.video(number), self.latents(number))}
        with writing(self.segments):
            for path in self.segments.iterdir():
                if path.suffix in (".mp4", ".safetensors") and path not in kept:
                    path.unlink()

    @staticmethod
    def holds(path: Path, text: str) -> bool:
        """Tell whether a file is there and holds exactly this text."""
        try:
            return path.read_bytes() == text.encode()
        except OSError:
            return False

    def write_manifest(self, about: dict[str, Any], scenes: list[dict[str, Any]]) -> None:
        """Write the manifest: ``about`` the film, and each of ``scenes`` with its record."""
        entries = []
        for scene in scenes:
            record = self.records.get(scene["number"])
            entries.append(scene | (asdict(record) if record else {}))
        manifest = {"format": FORMAT, **about, "segments": entries, "film": self.film}
        sealed = {**manifest, "sha256": digest(manifest)}
        text = json.dumps(sealed, indent=2, ensure_ascii=False) + "\n"
        with writing(self.manifest_path):
            write_atomically(self.manifest_path, text)

    def log(self, event: str, **details: object) -> None:
        """Append to ``events.jsonl``."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **details}, ensure_ascii=False)
        path = self.path / "events.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _hash_matches(path: Path, value: str) -> bool:
    try:
        return file_hash(path) == value
    except OSError:
        return False
