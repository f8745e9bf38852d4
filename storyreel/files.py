"""Files: hashed, read as JSON, and written as a whole or not at all.

A file is written under a temporary name, synced to disk and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from storyreel.errors import OutputError


def digest(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Return the value in a JSON file. Raises OSError; ValueError for what cannot be written as JSON again.

    That is NaN, infinite numbers and half a surrogate pair; and what is nested too deep to be read.
    """

    def refuse(word: str) -> float:
        raise ValueError(f"{word} is not a number")

    def finite(digits: str) -> float:
        return number if math.isfinite(number := float(digits)) else refuse(digits)

    if not path.is_file():  # a pipe would never end
        raise FileNotFoundError(errno.ENOENT, "is not a file", str(path))
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
    """Turn an OSError about writing ``path``, or into it, into OutputError.

    ``elsewhere`` says what else would help, ``afterwards`` what to do then.
    """
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, _PATH) else path
        if not _concerns(named, path, error.errno):
            raise
        where = path if ".part" in named.name else named  # the user knows no temporary file
        words = obstacle(path) if error.errno in _ABOUT_FOLDERS else None
        first = "Remove it" if words else _FIRST_AID.get(error.errno or 0)
        advice = f"{first}, or {elsewhere}" if first else elsewhere[:1].upper() + elsewhere[1:]
        message = f"cannot write {where}: {words or error.strerror or error}"
        raise OutputError(message, f"{advice}. {afterwards}".strip()) from error


def _concerns(named: Path, path: Path, code: int | None) -> bool:
    """Tell whether an error about the file ``named`` comes from writing ``path``."""
    beside = path.parent in named.parents and (code != errno.ENOENT or ".part" in named.name)
    return beside or path in named.parents or named in (path, *path.parents)


def obstacle(path: Path) -> str | None:
    """Return what is in the way of a path's folders; None if nothing is."""
    for parent in reversed((path, *path.parents)):
        with suppress(OSError):
            if parent.is_symlink() and not parent.exists():
                return f"{parent} is a broken link"
            if parent != path and parent.exists() and not parent.is_dir():
                return f"{parent} is not a folder"
    return None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success, sync that file and rename it to ``path``."""
    # Hidden and random, so that a writer that was left running spoils only its own file.
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
    """Sync a folder, so that a rename in it lasts; not every file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            _sync(handle)
        finally:
            os.close(handle)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a whole file or nothing. Raises OSError."""
    with replacing(path) as part:
        _write(part, data.encode() if isinstance(data, str) else data)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # the file system cannot sync
            raise


def _rename(path: Path, target: Path) -> None:
    path.replace(target)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or make a copy where the file system has no hard links. Raises OSError."""
    try:
        os.link(source, target)
    except OSError:
        with replacing(target) as part:
            shutil.copyfile(source, part)


def matches(path: Path, value: str) -> bool:
    """Tell whether a file is there and has this SHA-256."""
    try:
        return path.is_file() and file_hash(path) == value  # a pipe would never end
    except OSError:
        return False
