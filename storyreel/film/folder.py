"""The output folder of a film, written so that nothing half done can pass for done.

A file is written under a temporary name, forced to disk and renamed. The manifest is that of the
film that is there; of one that is being rendered, `UNFINISHED` says what it is to be. The
segments of both, and of earlier ones, are in a `store.Store`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from storyreel.errors import LockedError, OutputError
from storyreel.film.lock import Lock

LOOK = 0.5  # seconds in which a mere look at the lock is surely over
FORMAT = 4  # of manifests and of records; another number is another film
UNFINISHED = "unfinished.json"


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
    return Path(os.readlink(path)).name if is_named_by_hash(path) else file_hash(path)


def is_named_by_hash(path: Path) -> bool:
    """Tell whether a file is a link to one whose name is its SHA-256."""
    return path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", Path(os.readlink(path)).name) is not None


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


@dataclass(frozen=True)
class Manifest:
    """What a film is, or is to be.

    ``about`` is what it is made from, ``segments`` are its scenes with what was made of them, ``film`` is
    its file with a key and a SHA-256; {} as long as it is not joined.
    """

    about: dict[str, Any]
    segments: list[dict[str, Any]]
    film: dict[str, str]

    def text(self) -> str:
        """Return it as the text of a file."""
        manifest = {"format": FORMAT, **self.about, "segments": self.segments, "film": self.film}
        return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> Manifest | None:
        """Read a file; None if it is not there, of another format, or nothing that was written so."""
        try:
            manifest = read_json(path)
            if manifest.pop("format") != FORMAT:
                return None
            segments, film = list(map(dict, manifest.pop("segments"))), dict(manifest.pop("film"))
            if not all(isinstance(value, str) for value in film.values()):
                return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return cls(manifest, segments, film)


@dataclass
class FilmFolder:
    """One story's output. Use it as a context: it holds the folder's lock.

    ``present`` is the manifest of the film that is there, ``unfinished`` that of one which is not.
    """

    path: Path
    name: str
    present: Manifest | None = None
    unfinished: Manifest | None = None

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
            self.manifest_path.name,
            UNFINISHED,
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
        """The manifest of the film."""
        return self.path / "manifest.json"

    @property
    def unfinished_path(self) -> Path:
        """What the film that is being rendered is to be."""
        return self.path / UNFINISHED

    @property
    def page_path(self) -> Path:
        """The film's page."""
        return self.path / "index.html"

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
        """Read what former runs left; a manifest that is not ours counts as none."""
        self.present = Manifest.read(self.manifest_path)
        self.unfinished = Manifest.read(self.unfinished_path)

    def film_is_complete(self, key: str | None = None) -> bool:
        """Tell whether the film is there, whole, and the one of ``key``, if one is given."""
        film = self.present.film if self.present else {}
        named = film.get("file") == self.film_path.name
        wanted = key is None or film.get("key") == key
        return named and wanted and matches(self.film_path, film.get("sha256", ""))

    def begin(self, manifest: Manifest) -> None:
        """Note what is being rendered; the film that is there stays."""
        self._write(self.unfinished_path, manifest.text())
        self.unfinished = manifest

    def publish(self, manifest: Manifest) -> None:
        """Note what the film is that is there now; if that was being rendered, it is no longer."""
        self._write(self.manifest_path, manifest.text())
        self.present = manifest
        if self.unfinished is None or _keys(self.unfinished) == _keys(manifest):
            with writing(self.unfinished_path):
                self.unfinished_path.unlink(missing_ok=True)
            self.unfinished = None

    def _write(self, path: Path, text: str) -> None:
        if not self.holds(path, text):
            with writing(path):
                write_atomically(path, text)

    @staticmethod
    def holds(path: Path, text: str) -> bool:
        """Tell whether a file is there and holds exactly this text."""
        try:
            return path.read_bytes() == text.encode()
        except OSError:
            return False

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


def _keys(manifest: Manifest) -> list[Any]:
    return [segment.get("video_key") for segment in manifest.segments]
