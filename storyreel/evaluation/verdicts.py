"""What a judge says of a film whose truth is known, as plain data; and where judges are found."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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


def asked(place: str | None) -> Callable[..., Any] | None:
    """Return the function that a model's table entry names as "module:function"; None for None."""
    if place is None:
        return None
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
