"""The hashes of large weights, cached from one command to the next: reading 40 GB takes minutes.

A file counts as unchanged while its inode, its size, and the times of its last writing and of its last change
are the same, the second of which no program can set. A bit that the disk lost is not noticed so:
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
SETTLED = 10.0  # seconds without a change: a second change may follow too soon to change the times


class RememberedHashes:
    """SHA-256 of files; those of large ones are cached in ``path``, by default in the user's cache folder."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_folder() / "hashes.json"

    def of(self, paths: Iterable[Path]) -> dict[Path, str]:
        """Return the SHA-256 of files, reading only those that are not cached. Raises OSError."""
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
        """Return how many bytes of large files `of` would read."""
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
        # What other commands have cached meanwhile is read again. If one writes at the same moment, one entry
        # is lost, which costs a second reading.
        known = {name: entry for name, entry in self._load().items() if os.path.exists(name)}
        entry = {"stamp": stamp, "sha256": value}
        known[str(path.resolve())] = entry | {"seal": digest(entry)}
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(known, indent=2) + "\n")


def cache_folder() -> Path:
    """Return the folder for what can be computed again at any time."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "storyreel"
    except RuntimeError:  # a user without a home: nothing is cached
        return Path(os.devnull) / "storyreel"


def _stamp(path: Path) -> list[int] | None:
    """Return numbers that change whenever a file does; None for a small file."""
    if is_named_by_hash(path):
        return None
    facts = path.stat()
    if facts.st_size < LARGE:
        return None
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_dev]


def _is_settled(stamp: list[int]) -> bool:
    return time.time_ns() - max(stamp[1:3]) >= SETTLED * 1e9


def _known(known: dict[str, Any], path: Path, stamp: list[int] | None) -> str | None:
    """Return the cached hash of a file in this state; None if there is none."""
    entry = known.get(str(path.resolve())) if stamp else None
    if not isinstance(entry, dict) or entry.get("stamp") != stamp:
        return None
    value = entry.get("sha256")
    whole = isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value)
    return value if whole and entry.get("seal") == digest({"stamp": stamp, "sha256": value}) else None
