"""What comes of scoring films, as it is printed, reported and handed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from storyreel.evaluation.films import Film
from storyreel.evaluation.findings import Finding
from storyreel.evaluation.frames import Pictures
from storyreel.evaluation.metrics import known_metrics
from storyreel.evaluation.weights import OWN

NOTE = (
    "The metrics of the paper (arXiv 2503.06310) are implemented anew, and not comparable with its table "
    "digit by digit. Standard deviations are those of samples (ddof 1). Smoothness is to be read beside "
    "motion: a still is smooth."
)
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
        return [*self.film.notes, *cut]


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
                    "fps": scored.film.fps,
                    "notes": scored.notes,
                    "scores": scored.scores,
                    "findings": [asdict(finding) for finding in scored.found],
                }
                for scored in self.films
            ],
        }
