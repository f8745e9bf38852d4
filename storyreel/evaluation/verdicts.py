"""What a judge says of a film whose truth is known: plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SceneVerdict:
    """Whether a segment shows those it should, where it should, doing what it should."""

    characters: bool
    place: bool
    action: bool


@dataclass(frozen=True)
class SeamVerdict:
    """The transition into segment ``after``.

    ``characters`` says whether it shows those of one of its two segments and nobody else;
    ``same_place`` is a fact of the story, not of the film.
    """

    after: int
    characters: bool
    same_place: bool


@dataclass(frozen=True)
class FilmVerdict:
    """One verdict a segment, and one for each seam that was asked for."""

    scenes: tuple[SceneVerdict, ...]
    seams: tuple[SeamVerdict, ...]
