"""The manifest of a film: what it is made from, its segments, and the files that were made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storyreel.files import digest, read_json
from storyreel.film.inventory import Inventory
from storyreel.film.keys import scene_facts
from storyreel.film.store import FORMAT, Record

UNWEIGHTED = (0.5, 0.5)  # what scene and action count where neither leads

# Of what is said of the film's file: some of it, such as the version that joined it, nothing else can tell.
SEAL = "seal"
# What is said of a film that was signed: its SHA-256 before that, and the SHA-256 of the certificate.
UNSIGNED, SIGNED_BY = "unsigned_sha256", "certificate_sha256"


@dataclass(frozen=True)
class Manifest:
    """The manifest of a film that is there, or that is to be rendered.

    ``facts`` say what it is made from (`keys.film_facts`), ``segments`` are its scenes with the files that
    were made of them, ``film`` is the film's file, with its key and SHA-256; {} as long as it is not joined.
    """

    facts: dict[str, Any]
    segments: list[dict[str, Any]]
    film: dict[str, str]

    def text(self) -> str:
        """Return the manifest as the text of a file."""
        film = self.film and {**self.film, SEAL: digest(self.film)}
        manifest = {"format": FORMAT, **self.facts, "segments": self.segments, "film": film}
        return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"

    @property
    def video_keys(self) -> list[Any]:
        """The keys of its segments' videos; None where the manifest has none."""
        return [segment.get("video_key") for segment in self.segments]

    @classmethod
    def read(cls, path: Path) -> Manifest | None:
        """Read a file; None if it is not there, of another format, or not a manifest."""
        try:
            manifest = read_json(path)
            if manifest.pop("format") != FORMAT:
                return None
            segments, film = list(map(dict, manifest.pop("segments"))), dict(manifest.pop("film"))
            if film and film.pop(SEAL) != digest(film):
                return None
            if not all(isinstance(value, str) for value in film.values()):
                return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return cls(manifest, segments, film)


def film_manifest(inventory: Inventory, film: dict[str, str] | None = None) -> Manifest:
    """Return the manifest of a film that is planned; with ``film``, its joined file, of one that is complete.

    The second also has every segment's records.
    """
    segments = []
    for index, scene in enumerate(scene_facts(inventory.plan)):
        entry = scene | {"key": inventory.keys.latents[index], "video_key": inventory.keys.video[index]}
        if inventory.keys.latents[index] != inventory.keys.first_takes[index]:
            entry["first_take_key"] = inventory.keys.first_takes[index]
        if film is not None:
            made = _records(inventory, index)
            entry |= {
                "files": {record.file: record.sha256 for record in made},
                "device": made[0].device,
                "seconds": round(sum(record.seconds for record in made), 3),
                "decided": decided_of(inventory, index),
            }
        segments.append(entry)
    return Manifest(inventory.facts, segments, film or {})


def _records(inventory: Inventory, index: int) -> tuple[Record, Record]:
    """Return the records of what a scene shows: of its latents and of its video."""
    return inventory.latents[inventory.plan.segments[index].slot], inventory.video[index]


def decided_of(inventory: Inventory, index: int) -> dict[str, Any]:
    """Return what was decided of a segment, with how far the two sides of the seam before it are apart.

    Where scene and action are one prompt, nothing was weighed, whatever its weights would have been.
    That is None where nobody knows: of a cut that the story wants, and where the two segments have never been
    decoded one after the other.
    """
    latents, video = _records(inventory, index)
    decided: dict[str, Any] = dict(latents.decided)
    segment = inventory.plan.segments[index]
    if segment.scene == segment.action:  # one prompt, of which nothing leads
        decided["prompt_weights"] = [UNWEIGHTED] * len(decided.get("prompt_weights", ()))
    sides = video.decided.get("sides")
    if decided.get("seam"):
        known = sides is not None and sides["before"] == inventory.keys.latents[index - 1]
        # Where the scene is by now, it may have been elsewhere when it was made.
        here = {"after": index, "sides": sides["apart"] if sides and known else None}
        decided["seam"] = decided["seam"] | here
    return decided
