"""The hashes of large weights, remembered from one command to the next: reading 40 GB takes minutes.

A file is known again by its inode, its size, and the times of its last writing and of its last change,
the second of which no program can set. That is no proof that the disk has not lost a bit since then:
`render --verify` reads every byte.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from storyreel.files import content_hash, digest, is_named_by_hash, write_atomically

LARGE = 64 << 20  # bytes; smaller files are read every time
SETTLED = 10.0  # seconds without a change: one that follows at once may show the same times


class RememberedHashes:
    """SHA-256 of files; those of large ones are kept in a file of the user's cache folder."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_folder() / "hashes.json"

    def of(self, paths: Iterable[Path]) -> dict[Path, str]:
        """Return the SHA-256 of files, without reading those that are as they were when last read."""
        known, found = self._load(), dict[Path, str]()
        for path in paths:
            stamp = _stamp(path)
            if (value := _known(known, path, stamp)) is None:
                value = content_hash(path)
                if stamp is not None and stamp == _stamp(path) and _is_settled(stamp):
                    self._remember(path, stamp, value)
            found[path] = value
        return found

    def to_read(self, paths: Iterable[Path]) -> int:
        """Return how many bytes of large files would have to be read for their hashes."""
        known = self._load()
        stamps = ((path, _stamp(path)) for path in paths)
        return sum(stamp[0] for path, stamp in stamps if stamp and _known(known, path, stamp) is None)

    def _load(self) -> dict[str, Any]:
        with suppress(OSError, ValueError, RecursionError):
            known = json.loads(self._path.read_bytes())
            if isinstance(known, dict):
                return known
        return {}

    def _remember(self, path: Path, stamp: list[int], value: str) -> None:
        # What other commands have written meanwhile is read again; one that writes just now wins, and
        # costs no more than a second reading of what is lost here.
        known = {name: entry for name, entry in self._load().items() if os.path.exists(name)}
        entry = {"stamp": stamp, "sha256": value}
        known[str(path.resolve())] = entry | {"seal": digest(entry)}
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(known, indent=2) + "\n")


def cache_folder() -> Path:
    """Return the folder for what storyreel can make again at any time."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "storyreel"
    except RuntimeError:  # a user without a home: nothing can be kept there, or found
        return Path(os.devnull) / "storyreel"


def _stamp(path: Path) -> list[int] | None:
    """Return what tells a file from any other and from itself in another state; None for a small one."""
    if is_named_by_hash(path):
        return None
    facts = path.stat()
    if facts.st_size < LARGE:
        return None
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_dev]


def _is_settled(stamp: list[int]) -> bool:
    return time.time_ns() - max(stamp[1:3]) >= SETTLED * 1e9


def _known(known: dict[str, Any], path: Path, stamp: list[int] | None) -> str | None:
    """Return the hash that was remembered of a file in this very state."""
    entry = known.get(str(path.resolve())) if stamp else None
    if not isinstance(entry, dict) or entry.get("stamp") != stamp:
        return None
    value = entry.get("sha256")
    whole = isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value)
    return value if whole and entry.get("seal") == digest({"stamp": stamp, "sha256": value}) else None
