"""The output folder: what is finished, written so that nothing half done can pass for done.

A file is written under a temporary name, forced to disk and renamed. A segment counts as
complete when the manifest holds its key, which covers all that shaped it, and the hashes of
its files match, and that of its record. Everything else is absent and is rendered again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on only

from storyreel.errors import LockedError, OutputError
from storyreel.lock import Lock

LOOK = 0.5  # seconds in which a mere look at the lock is surely over
FORMAT = 3  # of the manifest; another number is another film


def digest(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. Raises OSError; ValueError for what cannot be written as JSON again.

    That is NaN and numbers that are infinite, which no JSON has, and half a character, which no text has;
    and what is nested too deep to be read.
    """

    def refuse(word: str) -> float:
        raise ValueError(f"{word} is no number")

    def finite(digits: str) -> float:
        return number if math.isfinite(number := float(digits)) else refuse(digits)

    if not path.is_file():  # a pipe would never end
        raise FileNotFoundError(errno.ENOENT, "is no file", str(path))
    data = path.read_bytes()
    try:
        value = json.loads(data, parse_constant=refuse, parse_float=finite)
        if re.search(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]", data):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return value


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file; unread if its target is named by it, as in huggingface_hub's cache."""
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else file_hash(path)


KEPT = "Then run the same command again: finished scenes are kept."
_FIRST_AID = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Make it writable"),
    errno.EIO: "Check the disk",
    errno.ENAMETOOLONG: "Shorten the name",
}
_ABOUT_FOLDERS = (errno.EEXIST, errno.ELOOP, errno.ENOENT, errno.ENOTDIR)
_PATH = (str, bytes, os.PathLike)


@contextmanager
def writing(path: Path, elsewhere: str = "choose another --out", afterwards: str = KEPT) -> Iterator[None]:
    """Turn the system's refusal to write ``path``, or into it, into OutputError.

    ``elsewhere`` and ``afterwards`` are what else helps, and what to do then.
    """
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, _PATH) else path
        if not _concerns(named, path, error.errno):
            raise
        where = path if ".part" in named.name else named  # of a temporary file nobody knows
        words = obstacle(path) if error.errno in _ABOUT_FOLDERS else None
        first = "Remove it" if words else _FIRST_AID.get(error.errno or 0)
        advice = f"{first}, or {elsewhere}" if first else elsewhere[:1].upper() + elsewhere[1:]
        message = f"cannot write {where}: {words or error.strerror or error}"
        raise OutputError(message, f"{advice}. {afterwards}".strip()) from error


def _concerns(named: Path, path: Path, code: int | None) -> bool:
    """Tell whether an error that names one file is of writing another: beside it, nothing is read."""
    beside = path.parent in named.parents and code != errno.ENOENT
    return beside or path in named.parents or named in (path, *path.parents)


def obstacle(path: Path) -> str | None:
    """Return what stands where a path wants a folder; None if nothing does."""
    for parent in reversed((path, *path.parents)):
        with suppress(OSError):
            if parent.is_symlink() and not parent.exists():
                return f"{parent} is a link that leads nowhere"
            if parent != path and parent.exists() and not parent.is_dir():
                return f"{parent} is no folder"
    return None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; on success, sync it and rename it to ``path``."""
    # Temporary names are hidden and random: an orphaned writer can spoil only its own file.
    part = path.with_name(f".{path.stem}-{secrets.token_hex(8)}.part{path.suffix}")
    try:
        yield part
        with part.open("rb+") as file:
            _sync(file.fileno())
        _rename(part, path)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename last, where folders can be synced: not on Windows, not on every network."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            _sync(handle)
        finally:
            os.close(handle)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a whole file or nothing."""
    with replacing(path) as part:
        _write(part, data.encode() if isinstance(data, str) else data)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # it cannot be asked for there
            raise


def _rename(path: Path, target: Path) -> None:
    path.replace(target)


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


def _record(entry: dict[str, Any]) -> SegmentRecord | None:
    """Return an entry's record; None if it is planned and not yet made, or was changed."""
    if "key" not in entry:
        return None
    try:
        record = _RECORD.validate_python(entry)
    except ValidationError:
        return None
    return record if entry.get("sha256") == digest(asdict(record)) else None


@dataclass
class FilmFolder:
    """One story's output. Use it as a context: it holds the folder's lock."""

    path: Path
    name: str
    records: dict[str, SegmentRecord] = field(default_factory=dict)
    film: dict[str, str] = field(default_factory=dict)
    window: dict[str, str] = field(default_factory=dict)  # segments under way, if their state was saved
    about: dict[str, Any] = field(default_factory=dict)
    planned: int = 0  # segments of the film that ``about`` is about
    damaged: set[str] = field(default_factory=set)  # segments whose records are no longer what was written

    def __post_init__(self) -> None:
        self._lock = Lock(self.path / ".lock")

    def __enter__(self) -> FilmFolder:
        with writing(self.path):
            self.refuse_strange_files()
            self.segments.mkdir(parents=True, exist_ok=True)
            if not self._lock.acquire(LOOK):
                raise self.locked()
            with ExitStack() as stack:
                stack.callback(self._lock.release)
                for part in (*self.path.glob(".*.part*"), *self.segments.glob(".*.part*")):
                    part.unlink()
                stack.pop_all()
        self.load()
        return self

    def locked(self) -> LockedError:
        """Return the error for a folder that another process holds."""
        remedy = f"Wait for it, or choose another --out.{self._lock.hint()}"
        words = f"another storyreel{self._lock.holder()} is rendering into {self.path}"
        return LockedError(words, remedy)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def refuse_strange_files(self) -> None:
        """Refuse links, which lead to what is not ours to change, and pipes and devices, which never end."""
        folders = (self.path, self.segments)
        ours = (
            ".lock",
            ".lock.json",
            "manifest.json",
            "events.jsonl",
            self.page_path.name,
            self.film_path.name,
        )
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

    @property
    def window_path(self) -> Path:
        """The state of the segments under way."""
        return self.segments / "window.safetensors"

    def video(self, number: str) -> Path:
        """A segment's film."""
        return self.segments / f"{number}.mp4"

    def latents(self, number: str) -> Path:
        """A segment's latents."""
        return self.segments / f"{number}.safetensors"

    def is_in_use(self) -> bool:
        """Tell whether somebody renders into the folder; nothing is written, and nobody is kept out."""
        return self._lock.is_held()

    def events(self) -> list[dict[str, Any]]:
        """Return what has happened, oldest first; a line that was cut short is left out."""
        events, path = [], self.path / "events.jsonl"
        try:
            if not path.is_file():
                return []
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, RecursionError):
                    events.append(json.loads(line))
        except OSError:
            pass
        return [event for event in events if isinstance(event, dict)]

    def load(self) -> None:
        """Read what a former run recorded; a manifest that is not ours counts as none."""
        try:
            manifest = read_json(self.manifest_path)
            if manifest["format"] != FORMAT:
                return
            for entry in manifest["segments"]:
                if record := _record(entry):
                    self.records[record.number] = record
                elif "key" in entry:
                    self.damaged.add(str(entry.get("number")))
            self.film, self.window = dict(manifest["film"]), dict(manifest.get("window", {}))
            own = {"format", "segments", "film", "window"}
            self.about = {key: manifest[key] for key in manifest.keys() - own}
            self.planned = len(manifest["segments"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self.records, self.film, self.window, self.about, self.planned = {}, {}, {}, {}, 0

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

    def has_window(self, key: str, device: str = "auto") -> bool:
        """Tell whether the state is there, whole, in which the segment of that key comes first."""
        return (
            self.window.get("key") == key
            and device in ("auto", self.window.get("device"))
            and matches(self.window_path, self.window.get("sha256", ""))
        )

    @staticmethod
    def _is_whole(record: SegmentRecord, path: Path) -> bool:
        return path.name in record.files and matches(path, record.files[path.name])

    def film_is_complete(self, key: str | None = None) -> bool:
        """Tell whether the film is there, whole, and made from the segments of ``key``, if one is given."""
        named = self.film.get("file") == self.film_path.name
        wanted = key is None or self.film.get("key") == key
        return named and wanted and matches(self.film_path, self.film.get("sha256", ""))

    def begin(self, kept: Collection[str]) -> None:
        """Forget every segment but those to be kept, and the film that was made of others."""
        self.records = {number: self.records[number] for number in kept}
        self.film = {}
        with writing(self.film_path):
            self.film_path.unlink(missing_ok=True)

    def record_latents(self, number: str, key: str, device: str, seconds: float, decided: Decided) -> None:
        """Note that a segment's latents are in place, and with them the state of those behind it."""
        if self.window.get("key") == key:
            self.window = {}
        path = self.latents(number)
        files = {path.name: file_hash(path)}
        self.records[number] = SegmentRecord(number, key, files, device, round(seconds, 3), decided)

    def record_window(self, key: str, device: str) -> None:
        """Note that the state is in place in which the segment of that key comes first."""
        self.window = {"key": key, "device": device, "sha256": file_hash(self.window_path)}

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
        """Write the manifest."""
        with writing(self.manifest_path):
            write_atomically(self.manifest_path, self.manifest(about, scenes))
            if not self.window:
                self.window_path.unlink(missing_ok=True)

    def manifest(self, about: dict[str, Any], scenes: list[dict[str, Any]]) -> str:
        """Return the manifest's text: ``about`` the film, and each of ``scenes`` with its record."""
        entries = []
        for scene in scenes:
            record = self.records.get(scene["number"])
            sealed = asdict(record) | {"sha256": digest(asdict(record))} if record else {}
            entries.append(scene | sealed)
        manifest = {"format": FORMAT, **about, "segments": entries, "film": self.film}
        if self.window:
            manifest["window"] = self.window
        return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"

    def log(self, event: str, **details: object) -> None:
        """Append to ``events.jsonl``."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **details}, ensure_ascii=False)
        path = self.path / "events.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def matches(path: Path, value: str) -> bool:
    """Tell whether a file is there and has this SHA-256."""
    try:
        return path.is_file() and file_hash(path) == value  # a pipe would never end
    except OSError:
        return False
