"""What the judge of a model's world says of a film, as plain data; and where judges are found."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storyreel.evaluation.kept import SceneSeen
from storyreel.models.specs import known_model

if TYPE_CHECKING:
    from storyreel.evaluation.films import Film


@dataclass(frozen=True)
class SceneVerdict:
    """Whether a segment shows those it should, where it should, doing what it should.

    Each field is a metric of a scene, by its name in metrics.toml. ``action_first`` and ``action_last`` are
    of the first and last third of its frames alone, or of a little more where a third is too short for the
    judge; None where that would be more than half.
    ``looks`` (and light) is None where the prompts state none; ``looks_missing`` says in words what they
    state and the scene does not show.
    """

    characters: bool
    place: bool
    action: bool
    action_first: bool | None = None
    action_last: bool | None = None
    looks: bool | None = None
    looks_missing: str = ""


@dataclass(frozen=True)
class SeamVerdict:
    """The transition into segment ``after``.

    ``characters`` says whether it shows those of one of its two segments and nobody else;
    ``same_place`` is a fact of the story, not of the film. ``twice`` is the share of its pictures in which
    somebody stands at two places. ``jump`` is how far those who are on both sides go across the seam,
    ``turn`` how much their motion changes, both in units of what is usual inside the scenes; None where
    nobody is on both sides.
    """

    after: int
    characters: bool
    same_place: bool
    twice: float | None = None
    jump: float | None = None
    turn: float | None = None


@dataclass(frozen=True)
class FilmVerdict:
    """One verdict a segment, and one for each seam that was asked for.

    ``seen`` is what every segment shows of what its prompts leave open; () if the judge does not say.
    """

    scenes: tuple[SceneVerdict, ...]
    seams: tuple[SeamVerdict, ...]
    seen: tuple[SceneSeen, ...] = ()


def asked(place: str | None) -> Callable[..., Any] | None:
    """Return the function that a model's table entry names as "module:function"; None for None."""
    if place is None:
        return None
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def looks_of_judge(film: Film) -> float | None:
    """Return how often a second a film's judge looks, if the film is not looked at so often; else None."""
    spec = known_model(film.model or "")
    return spec.fps if spec and spec.judge and film.fps != spec.fps else None


def film_verdict(film: Film) -> FilmVerdict | None:
    """Ask the judge of a film's model, which sees the frames as the model made them.

    None where the model has no judge, where the story is none that the judge knows the truth of, and where
    the film is not looked at as often as the model makes frames.
    """
    from storyreel.evaluation.frames import film_frames
    from storyreel.film import reader

    spec = known_model(film.model or "")
    judge_film = asked(spec.judge) if spec else None
    if spec is None or judge_film is None or film.fps != spec.fps:
        return None
    smooth = [after for after, span in enumerate(film.spans) if span.blended]
    # A copy that is smaller than the film was is not made smaller than the model's pictures.
    upscale = max(1, min(spec.upscale, reader.probe(film.path).width // spec.min_size[0]))
    unmixed = [(clear.start, clear.stop) for clear in (span.unmixed(film.fps) for span in film.spans)]
    verdict: FilmVerdict | None = judge_film(film.spans, smooth, film_frames(film, upscale), unmixed)
    return verdict
