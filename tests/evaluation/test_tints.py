"""Drift of colours: a fault within a shot alone, of made films; and the table of it in the README."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from storyreel.evaluation.films import Film, Span
from storyreel.evaluation.findings import findings
from storyreel.evaluation.frames import FrameNumbers
from storyreel.evaluation.picture_measures import lab
from storyreel.evaluation.scores import film_scores
from storyreel.evaluation.tints import drifts, told_light
from tests.conftest import ROOT
from tests.crossfade import crossfaded
from tests.evaluation.test_double_exposure import LENGTH, actor, still
from tests.evaluation.test_scores import look

TINT = torch.tensor([1.15, 0.95, 0.75])
HEAD = "| film | colour drift, scene by scene, ΔE | found |"


def park(scenes: int = 3, place: int = 1) -> Tensor:
    """Somebody who walks to and fro, in one shot."""
    return torch.cat([actor(still(place), *((8, 2) if i % 2 else (54, -2))) for i in range(scenes)])


def tinted(film: Tensor, *levels: float) -> Tensor:
    """A film whose tint goes from one level to the next, each given for the border of two scenes."""
    ramps = [torch.linspace(a, b, LENGTH) for a, b in itertools.pairwise(levels)]
    return steps(film, torch.cat(ramps))


def steps(film: Tensor, levels: Tensor) -> Tensor:
    """A film with a level of tint for every frame, or for every scene."""
    each = levels if len(levels) == len(film) else levels.repeat_interleave(LENGTH)
    return (film * (1 + (TINT - 1) * each[:, None, None, None])).clamp(0, 255).to(torch.uint8)


def reddened(film: Tensor) -> Tensor:
    """A fifth of the picture is red from the second scene on."""
    found = film.clone()
    found[LENGTH:, 16:56, 20:50] = torch.tensor([230, 20, 20], dtype=torch.uint8)
    return found


def told(prompts: Sequence[str], goes_on: bool = True) -> Film:
    spans = (
        Span(prompt, "walks", LENGTH * i, LENGTH * (i + 1), i > 0, goes_on=goes_on)
        for i, prompt in enumerate(prompts)
    )
    return Film("run", "park", Path("park.mp4"), "Park", 12.0, tuple(spans))


SHOT = told(["a fox in a park"] * 3)
DUSK = told(["a fox in a park", "a fox in a park at dusk", "a fox in a park"])


def seen(film: Film, frames: Tensor) -> tuple[list[float | None], list[int]]:
    """Return every scene's drift, and the scenes of which it is said."""
    nothing: list[dict[str, Any]] = [{} for _ in film.spans]
    scores = film_scores(film, look(frames, nothing), {})
    said = [found.scene for found in findings(film, scores) if found.metric == "colour_drift"]
    return [scene["colour_drift"] for scene in scores["scenes"]], said


CROSSFADED = crossfaded(steps(park(), torch.tensor([0.0, 1, 1])), [LENGTH, 2 * LENGTH], 12)
FILMS: dict[str, tuple[Film, Tensor, list[int]]] = {
    "one shot": (SHOT, park(), []),
    "somebody in bright red, large, comes into it": (SHOT, reddened(park()), []),
    "a tint over its last two scenes": (SHOT, steps(park(), torch.tensor([0.0, 1, 1])), [2]),
    "the same, crossfaded for a second": (SHOT, CROSSFADED, [2]),
    "a tint that comes slowly, over all of it": (SHOT, tinted(park(), 0, 0.25, 0.5, 0.75), [3]),
    "a tint that comes slowly, in its last scene": (SHOT, tinted(park(), 0, 0, 0, 1.5), [3]),
    "the same, told at dusk from the second scene on": (
        DUSK,
        steps(park(), torch.tensor([0.0, 1, 1])),
        [],
    ),
    "told so, and back to day untold": (DUSK, steps(park(), torch.tensor([0.0, 1, 0])), [3]),
    "another place and another tint": (
        told(["a fox in a park", "a fox in a cave", "a fox at sea"], goes_on=False),
        torch.cat([park(1), steps(park(1, 2), torch.ones(1)), park(1, 3)]),
        [],
    ),
    "a still": (SHOT, park()[:1].expand(3 * LENGTH, -1, -1, -1), []),
    "without colours, tinted as any": (
        SHOT,
        park().float().mean(-1, keepdim=True).byte().expand(-1, -1, -1, 3),
        [],
    ),
}


def row(name: str) -> str:
    """The line of the table about a film."""
    values, said = seen(*FILMS[name][:2])
    drift = ", ".join("–" if value is None else f"{value:.1f}" for value in values)
    return f"| {name} | {drift} | {', '.join(f'scene {one}' for one in said) or '–'} |"


@pytest.mark.parametrize("name", FILMS)
def test_a_drift_is_a_fault_where_the_place_stays_and_no_light_is_told(name: str) -> None:
    film, frames, wanted = FILMS[name]
    values, said = seen(film, frames)
    assert said == wanted
    assert [value for value in values if value is not None and value > 8] == [
        value for n, value in enumerate(values, 1) if value is not None and wanted and n >= wanted[0]
    ]


@pytest.mark.parametrize("name", FILMS)
def test_the_readme_says_how_far_made_films_drift(name: str) -> None:
    lines = (ROOT / "storyreel/evaluation/README.md").read_text("utf-8").splitlines()
    assert HEAD in lines
    assert row(name) in lines[lines.index(HEAD) :]


def test_a_fault_is_said_once_a_shot_and_names_its_beginning() -> None:
    frames = steps(park(6), torch.tensor([0.0, 1, 1, 0, 1, 1]))
    film = told(["a fox in a park"] * 6)
    spans = [replace(span, goes_on=n != 3) for n, span in enumerate(film.spans)]
    film = replace(film, spans=tuple(spans))
    nothing: list[dict[str, Any]] = [{} for _ in spans]
    scores = film_scores(film, look(frames, nothing, (None,) * 6, (None,) * 6), {})
    found = [f for f in findings(film, scores) if f.metric == "colour_drift"]
    assert [(f.scene, f.seconds) for f in found] == [(2, 2.0), (5, 8.0)]
    assert "where its shot begins, in scene 1 (" in found[0].words
    assert "where its shot begins, in scene 4 (" in found[1].words


def test_dissolves_to_another_place_are_no_drift() -> None:
    """The end of a shot is looked at before they begin, its beginning when they are over."""
    film = told(["a fox in a park", "a fox in a cave"], goes_on=False)
    cut = torch.cat([park(1), steps(park(1, 2), torch.ones(1))])
    assert max(v for v in seen(film, crossfaded(cut, [LENGTH], 10))[0] if v is not None) < 1


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a fox at dusk", {"dusk"}),
        ("a fox under the street's Lamps, by NIGHT", {"lamp", "night"}),
        ("a fox in a park, walking", set()),
        ("a delight, a sunflower, Tuesday", set()),  # no parts of words
    ],
)
def test_a_told_light_is_read_word_by_word(prompt: str, words: set[str]) -> None:
    assert told_light(prompt, "walks") == words


@pytest.mark.parametrize("length", [1, 2, 3, 4, 240])
def test_scenes_of_any_length_have_a_beginning_and_an_end(length: int) -> None:
    numbers = FrameNumbers()
    numbers.see(still(1, 2 * length))
    spans = [Span("x", "y", 0, length, False), Span("x", "y", length, 2 * length, True)]
    colours = torch.cat([lab(chunk)[..., 1:] for chunk in numbers.patches])
    found = drifts(spans, [(0, length), (length, 2 * length)], colours, 24.0)
    assert [drift and (drift.distance, drift.since) for drift in found] == [(0, 0), (0, 0)]


def test_what_is_kept_of_a_long_scene_is_small() -> None:
    numbers = FrameNumbers()
    for chunk in still(1, 100).split(9):
        numbers.see(chunk)
    assert sum(chunk.nbytes for chunk in numbers.patches) == 100 * 24 * 3 * 4
