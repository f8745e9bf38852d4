"""The manifest: what a film is, or is to be, and what was made of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storyreel.files import read_json
from storyreel.film.inventory import Inventory
from storyreel.film.keys import about_scenes
from storyreel.film.store import FORMAT


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

    @property
    def video_keys(self) -> list[Any]:
        """The keys of its segments' pictures, None of those that are planned."""
        return [segment.get("video_key") for segment in self.segments]

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


def wanted_film(about: dict[str, Any], there: Inventory, film: dict[str, str] | None = None) -> Manifest:
    """Return the manifest of a plan: its scenes, each with its keys and the records of what is there."""
    segments = []
    for index, scene in enumerate(about_scenes(there.plan)):
        entry = scene | {"key": there.keys.latents[index], "video_key": there.keys.video[index]}
        if film is not None:
            made = there.latents[index], there.video[index]
            entry |= {
                "files": {record.file: record.sha256 for record in made},
                "device": made[0].device,
                "seconds": round(sum(record.seconds for record in made), 3),
                "decided": made[0].decided,
            }
        segments.append(entry)
    return Manifest(about, segments, film or {})
