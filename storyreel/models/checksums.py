"""The published SHA-256 of a model's files. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from storyreel import origin
from storyreel.errors import DamagedError, MissingError
from storyreel.files import file_hash
from storyreel.models.specs import MINI_WEIGHTS

CHECKSUMS = "SHA256SUMS"  # as `sha256sum` writes and checks it


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of everything in ``folder`` into its `CHECKSUMS`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    lines = [f"{file_hash(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines))


def published_checksums(folder: Path) -> dict[Path, str]:
    """Return the SHA-256 of a model's files by its `CHECKSUMS`; nothing without. Raises DamagedError."""
    sums, published = folder / CHECKSUMS, {}
    if not sums.is_file():
        return {}
    for line in sums.read_text(errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        if len(expected) != 64 or not name:
            raise DamagedError(f"{sums} is damaged", how_to_restore(sums))
        published[folder / name] = expected
    present = {path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json")}
    if unlisted := present - published.keys():  # a list that was cut short vouches for nothing
        raise DamagedError(f"{min(unlisted)} is not in {CHECKSUMS}", how_to_restore(sums))
    return published


def check_checksums(folder: Path) -> None:
    """Hold a model's files against its `CHECKSUMS`, where it has them.

    Safetensors with a flipped bit load without a word. Raises MissingError or DamagedError.
    """
    for path, expected in published_checksums(folder).items():
        if not path.is_file():
            raise MissingError(f"there is no {path.relative_to(folder)} in {folder}", how_to_restore(path))
        if file_hash(path) != expected:
            message = f"{path} is damaged: its SHA-256 is not the published one"
            raise DamagedError(message, how_to_restore(path))


def how_to_restore(path: Path) -> str:
    """Return what to do when a model's file or folder is missing or damaged."""
    if MINI_WEIGHTS in (path, *path.parents):
        return f"Restore {path}: {origin.again(path)}"
    return f"Restore {path}; the embedded model's: {origin.again(path)}; a hub's: storyreel pull MODEL"
