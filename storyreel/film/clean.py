"""Removes the files of segments that no film uses: those of other seeds, settings and texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storyreel.errors import LockedError, OutputError, StoryreelError, UsageError
from storyreel.files import writing
from storyreel.film.folder import FilmFolder, film_folders
from storyreel.film.manifest import Manifest
from storyreel.film.sheet import drafts_of_sheet
from storyreel.film.store import RECORD, Kind, Store, file_name
from storyreel.film.takes import files_of_begun_take, read_takes

IN_USE = "in use: left alone"
# A segment's files, and the key of each; a finished film has no state.
OF_FINISHED: tuple[tuple[Kind, str], ...] = (
    ("latents", "key"),
    ("video", "video_key"),
    ("latents", "first_take_key"),  # what the scenes beside another take were made with
)
OF_UNFINISHED: tuple[tuple[Kind, str], ...] = (*OF_FINISHED, ("state", "key"), ("state", "first_take_key"))


@dataclass(frozen=True)
class Unused:
    """Files of a folder that are not needed, with their bytes; ``reason`` says why none may be removed."""

    folder: Path
    files: dict[Path, int] = field(default_factory=dict)
    reason: str = ""

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(self.files.values())


def size_words(size: int) -> str:
    """Return a number of bytes for people to read."""
    return (
        f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"
    )


def folders_of_films(places: Iterable[Path]) -> Iterator[Path]:
    """Yield every film's folder in ``places``, each of which may be one. Raises UsageError."""
    for place in places:
        if not place.is_dir():
            remedy = "Name the folder of a render, as in out/nyc, or one that holds several, as in out."
            raise UsageError(f"{place} is not a folder", remedy)
        yield from film_folders(place)


def unused(path: Path, takes: bool = False) -> Unused:
    """Return what neither a folder's film needs nor an unfinished one; nothing is written."""
    folder = FilmFolder(path, path.name)
    if folder.is_in_use():
        return Unused(path, reason=IN_USE)
    folder.load()
    return _unused(folder, takes)


def remove_unused(path: Path, takes: bool = False) -> Unused:
    """Remove what `unused` returns, and return it. Raises OutputError if that cannot be done."""
    found = unused(path, takes)
    if found.reason or not found.files:
        return found
    try:
        with FilmFolder(path, path.name) as folder:
            found = _unused(folder, takes)  # again: from here on no other process renders into it
            for file in found.files:
                with writing(file):
                    file.unlink()
            return found
    except LockedError:
        return Unused(path, reason=IN_USE)


def _unused(folder: FilmFolder, takes: bool) -> Unused:
    try:
        folder.refuse_strange_files()
        files = unneeded(folder, takes)
    except StoryreelError as error:
        return Unused(folder.path, reason=f"left alone: {error.message}")
    except OSError as error:
        return Unused(folder.path, reason=f"left alone: cannot be read: {error.strerror}")
    return Unused(folder.path, files)


def unneeded(folder: FilmFolder, takes: bool = False) -> dict[Path, int]:
    """Return the files of segments and drafts that a loaded folder does not need, with their bytes.

    With ``takes``, also those of takes that were made and are in no film.

    Raises OutputError if no manifest says what it needs.
    """
    read = {folder.manifest_path: folder.present, folder.unfinished_path: folder.unfinished}
    read = {path: manifest if manifest and _says_all(manifest) else None for path, manifest in read.items()}
    unread = [path.name for path, manifest in read.items() if manifest is None and path.exists()]
    manifests = [manifest for manifest in read.values() if manifest is not None]
    if unread or not manifests:
        why = f"{unread[0]} is damaged or of an earlier version" if unread else "there is no manifest"
        raise OutputError(f"{why}, so that what is needed is not known", "Run the same render again first.")
    needed = {name for manifest in manifests for name in _names(manifest)} | drafts_of_sheet(folder.path)
    if not takes:
        files = {name for take in read_takes(folder.path) for name in (take.video, take.latents)}
        files |= files_of_begun_take(folder.path)
        needed |= files | {f"{name}{RECORD}" for name in files}
    found = {}
    for path in (*Store(folder.segments).files(), *Store(folder.drafts).files()):
        if path.name not in needed:
            with suppress(FileNotFoundError):  # a render that has begun meanwhile may have removed it
                found[path] = path.stat().st_size
    return found


def _says_all(manifest: Manifest) -> bool:
    """Tell whether a manifest names every scene's files: one that does not would make all of them go."""
    return bool(manifest.segments) and all(
        isinstance(segment.get(name), str)
        for segment in manifest.segments
        for name in ("number", "key", "video_key")
    )


def _names(manifest: Manifest) -> Iterator[str]:
    """Yield the names of all files of segments that a film needs, or will need, and of what is said in it."""
    for name in _spoken_files(manifest.facts.get("sound")):
        yield from (name, f"{name}{RECORD}")
    for segment in manifest.segments:
        for kind, key in OF_FINISHED if manifest.film else OF_UNFINISHED:
            name = file_name(kind, str(segment.get("number")), str(segment.get(key)))
            yield from (name, f"{name}{RECORD}")


def _spoken_files(facts: Any) -> Iterator[str]:
    sounds = facts.get("sounds") if isinstance(facts, dict) else None
    for sound in sounds if isinstance(sounds, (list, tuple)) else ():
        if isinstance(sound, dict) and sound.get("text") is not None:
            yield str(sound.get("file"))
