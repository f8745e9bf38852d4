"""What comes of scoring films, as it is printed, reported and handed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from storyreel.errors import counted
from storyreel.evaluation.films import Film
from storyreel.evaluation.findings import Finding
from storyreel.evaluation.frames import Pictures
from storyreel.evaluation.metrics import known_metrics
from storyreel.evaluation.statistics import Row
from storyreel.evaluation.weights import OWN
from storyreel.files import digest

NOTE = (
    "The metrics of the paper (arXiv 2503.06310) are implemented anew, and not comparable with its table "
    "digit by digit. Standard deviations are those of samples (ddof 1). Smoothness is to be read beside "
    "motion: a still is smooth."
)
NAMED = 12  # scenes in a note
NAMES = {OWN: "the model's own encoder"}


@dataclass(frozen=True)
class Scored:
    """A film with its scores, what is wrong with it, and pictures of every scene."""

    film: Film
    scores: dict[str, Any]
    found: list[Finding]
    pictures: Sequence[Pictures]

    @property
    def notes(self) -> list[str]:
        """What a reader of its scores should know, as sentences without their ends."""
        cut = [
            f"{found['cut']} of its {found['of']} prompts, alone and joined, are longer than the "
            f"{found['reads']} tokens that {NAMES.get(found['encoder'], found['encoder'])} reads: "
            "it was given their beginnings"
            for found in self.scores["prompts_cut"]
        ]
        return [*self.film.notes, *cut, *_of_stills(self.scores)]


def _of_stills(scores: Mapping[str, Any]) -> list[str]:
    """Say where it is no merit that encoders find pictures alike, for those of a still are so too."""
    found, notes = scores["film"], []
    alike = [
        m for m in known_metrics().values() if m.needs and m.still == 1 and found.get(m.name) is not None
    ]
    still = [str(at) for at, scene in enumerate(scores["scenes"], 1) if scene.get("moving") == 0]
    named = ", ".join(still if len(still) <= NAMED else [*still[:NAMED], "…"])
    if alike and still:
        notes.append(
            f"{counted(len(still), 'scene')} with hardly any motion, up to 1 of 255 ({named}): "
            "similarity is no merit there, a still has as much"
        )
    similarity, stills = (found.get(name) for name in ("boundary_similarity", "boundary_of_stills"))
    if similarity is not None and stills is not None and similarity <= stills:
        notes.append(
            f"a film of its stills would have a boundary similarity of {stills:.3f}, and it has "
            f"{similarity:.3f}: that says nothing for how its shots go on"
        )
    return notes


@dataclass(frozen=True)
class Evaluation:
    """All films that could be scored, their runs side by side, and what it takes to repeat it."""

    films: list[Scored]
    comparison: dict[str, Any]
    missing: dict[str, str]  # metric: why it has no value
    repeat: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "note": NOTE,
            **self.repeat,
            "metrics": {name: asdict(metric) for name, metric in known_metrics().items()},
            "missing": self.missing,
            **self.comparison,
            "films": [
                {
                    "run": scored.film.run,
                    "name": scored.film.name,
                    "file": str(scored.film.path),
                    "sha256": scored.film.sha256,
                    "story": scored.film.story,
                    "story_sha256": digest(scored.film.told),
                    "model": scored.film.model,
                    "model_sha256": digest(scored.film.weights) if scored.film.weights else None,
                    "made_with": dict(scored.film.kind),
                    "fps": scored.film.fps,
                    "notes": scored.notes,
                    "scores": scored.scores,
                    "findings": [asdict(finding) for finding in scored.found],
                }
                for scored in self.films
            ],
        }


def rows_of(scored: Sequence[Scored]) -> list[Row]:
    """Return films as rows to be compared: a pair tells one story in the same words, with one seed."""
    return [
        Row(
            film.run,
            (film.name, film.told),
            film.story or film.name,
            one.scores["film"],
            told=film.told,
            is_alone=film.name == film.story,
        )
        for one in scored
        for film in [one.film]
    ]
