"""The output folder of a film, out/NAME.

`manifest.json` is the manifest of the film that is there, `index.html` its page; `unfinished.json` is the
manifest of one that is being rendered. Its page is `index.html` too as long as no film is there, otherwise
`unfinished.html`, so that the page of the film that is there stays. The segments of both, and of former
films, are in a `store.Store`.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from storyreel.errors import LockedError, OutputError
from storyreel.files import matches, write_atomically, writing
from storyreel.film.manifest import Manifest
from storyreel.film.store import Store
from storyreel.lock import Lock

LOOK = 0.5  # seconds: another process that only checks the lock holds it for less
UNFINISHED = "unfinished.json"
SHEET = ("sheet.png", "sheet.json")  # the contact sheet, and what it shows
UNFINISHED_PAGE = "unfinished.html"


def is_film_folder(path: Path) -> bool:
    """Tell whether a folder is a film's. The name of what lies in it is not enough: a film may have any."""
    if not (path / "segments").is_dir():
        return False
    ours = ("manifest.json", UNFINISHED, "events.jsonl")
    return any((path / name).is_file() for name in ours) or any(Store(path / "segments").files())


def film_folders(place: Path) -> list[Path]:
    """Return the folders of all films in a folder, however deep; it may be one itself."""
    return sorted(path.parent for path in place.rglob("segments") if is_film_folder(path.parent))


@dataclass
class FilmFolder:
    """A film's folder. As a context it creates the folder, holds its lock and has loaded its manifests.

    ``present`` is the manifest of the film that is there, ``unfinished`` that of one that is being rendered.
    Entering raises LockedError if another process holds the lock, OutputError if the folder cannot be used.
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
                for part in (p for folder in self._folders for p in folder.glob(".*.part*")):
                    if not part.is_dir():  # a folder is nobody's rest
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
        """Raise OutputError for links, which may lead anywhere, and pipes and devices, which never end."""
        folders = self._folders
        ours = (
            ".lock",
            ".lock.json",
            self.manifest_path.name,
            UNFINISHED,
            "events.jsonl",
            *SHEET,
            self.page_path.name,
            UNFINISHED_PAGE,
            self.film_path.name,
        )
        inside = (path for folder in folders[1:] if folder.is_dir() for path in folder.iterdir())
        for path in (*folders, *(self.path / name for name in ours), *inside):
            is_ours = path.is_dir() if path in folders else path.is_file()
            if path.is_symlink() or (path.exists() and not is_ours):
                kind = "folder" if path in folders else "file"
                remedy = "Remove it, or choose another --out; --out itself may be a link."
                raise OutputError(f"{path} is not a plain {kind}", remedy)

    @property
    def segments(self) -> Path:
        """The folder of the segments' files."""
        return self.path / "segments"

    @property
    def drafts(self) -> Path:
        """The folder of the drafts' files."""
        return self.path / "drafts"

    @property
    def _folders(self) -> tuple[Path, ...]:
        return self.path, self.segments, self.drafts

    @property
    def film_path(self) -> Path:
        """The film's file."""
        return self.path / f"{self.name}.mp4"

    @property
    def manifest_path(self) -> Path:
        """The manifest of the film that is there."""
        return self.path / "manifest.json"

    @property
    def unfinished_path(self) -> Path:
        """The manifest of the film that is being rendered."""
        return self.path / UNFINISHED

    @property
    def page_path(self) -> Path:
        """The film's page."""
        return self.path / "index.html"

    @property
    def growing_page_path(self) -> Path:
        """The page of the film that is being rendered: another one where a film is there already."""
        return self.path / UNFINISHED_PAGE if self.film_path.exists() else self.page_path

    def is_in_use(self) -> bool:
        """Tell whether a process renders into the folder, without taking the lock or writing anything."""
        return self._lock.is_held()

    def events(self) -> list[dict[str, Any]]:
        """Return the logged events, oldest first; lines that are not whole are left out."""
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
        """Read the manifests; one that is damaged or of another format counts as missing."""
        self.present = Manifest.read(self.manifest_path)
        self.unfinished = Manifest.read(self.unfinished_path)

    def take_recorded_name(self) -> None:
        """Call the film as its manifest does, if it is there: the folder may have been renamed."""
        named = self.present.film.get("file", "") if self.present else ""
        if named in {film.name for film in self.path.glob("*.mp4")}:
            self.name = named.removesuffix(".mp4")

    def film_is_complete(self, key: str | None = None) -> bool:
        """Tell whether the film is there and unchanged, and has this ``key``, if one is given."""
        film = self.present.film if self.present else {}
        named = film.get("file") == self.film_path.name
        wanted = key is None or film.get("key") == key
        return named and wanted and matches(self.film_path, film.get("sha256", ""))

    def begin(self, manifest: Manifest) -> None:
        """Write the manifest of the film that is to be rendered. Raises OutputError."""
        self._write(self.unfinished_path, manifest.text())
        self.unfinished = manifest

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest of the film that is there; that of an unfinished one goes if it is the same.

        Raises OutputError.
        """
        self._write(self.manifest_path, manifest.text())
        self.present = manifest
        if self.unfinished is None or self.unfinished.video_keys == manifest.video_keys:
            for path in (self.unfinished_path, self.path / UNFINISHED_PAGE):
                with writing(path):
                    path.unlink(missing_ok=True)
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
        """Append an event to ``events.jsonl``. Raises OutputError."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **details}, ensure_ascii=False)
        path = self.path / "events.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
