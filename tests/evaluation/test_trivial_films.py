"""What films score that take no method at all: the table in the evaluation's README, made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from storyreel.evaluation.double_exposure import Doubles
from storyreel.evaluation.seams import frame_steps, seam_steps
from storyreel.mini import verdicts
from storyreel.mini.verdicts import judge_film
from storyreel.story.planning import make_plan
from storyreel.story.schema import load_story
from tests.conftest import ROOT
from tests.crossfade import crossfaded
from tests.evaluation.test_double_exposure import LENGTH, actor, fade, still
from tests.mini.test_film_watch import FakeJudge, box

README = Path("storyreel/evaluation/README.md")
HEAD = "| film | seam ratio | largest step | double exposure | there twice | jump | turn |"
Film = tuple[Tensor, Tensor]  # as it is seen, and for the judge: only where the actor is


def scene(place: int, start: int, speed: int) -> Film:
    """Two seconds of somebody who walks at a place."""
    seen = actor(still(place), start * 2 / 3, speed * 2 / 3)
    return seen, box([start], speed)


def joined(first: Film, second: Film) -> Film:
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])


def both(change: Callable[[Tensor], Tensor], film: Film) -> Film:
    return change(film[0]), change(film[1])


def dissolved(film: Tensor) -> Tensor:
    return crossfaded(film, [LENGTH], 12)


def through_black(film: Tensor) -> Tensor:
    return fade(film[:LENGTH], film[LENGTH:], 0)


def shuffled(film: Tensor) -> Tensor:
    return film[torch.randperm(2 * LENGTH, generator=torch.Generator().manual_seed(0))]


def one_picture(film: Tensor) -> Tensor:
    return film[:1].expand(2 * LENGTH, -1, -1, -1)


STAYS = joined(scene(1, 8, 2), scene(1, 112, -2))
CHANGES = joined(scene(1, 8, 2), scene(2, 112, -2))
ONE_SHOT = joined(scene(1, 8, 2), scene(1, 8 + 2 * LENGTH, 2))
FILMS: dict[str, Film] = {
    "one shot": ONE_SHOT,
    "hard cut, place stays": STAYS,
    "hard cut, place changes": CHANGES,
    "crossfade of a second, place stays": both(dissolved, STAYS),
    "crossfade of a second, place changes": both(dissolved, CHANGES),
    "fade through black": both(through_black, CHANGES),
    "a still": both(one_picture, ONE_SHOT),
    "the frames of both scenes in any order": both(shuffled, CHANGES),
}


def row(name: str, film: Film) -> str:
    """The line of the table about a film."""
    seen, mapped = film
    (steps,) = seam_steps(frame_steps([seen]), [0, LENGTH], 12.0)
    doubles = Doubles([0, LENGTH], len(seen), 12.0)
    doubles.see(seen)
    story = load_story(ROOT / "stories" / "dc.yaml")
    part = story.model_copy(update={"scenes": story.scenes[3:5]})
    verdict = judge_film(make_plan(part, "dc").segments, [1], iter([mapped]))
    assert verdict is not None
    (seam,), (share,) = verdict.seams, doubles.shares

    def cell(value: float | None, digits: int = 1, factor: float = 1.0) -> str:
        return "–" if value is None else f"{factor * value:.{digits}f}"

    cells = [
        cell(steps.ratio),
        cell(steps.largest),
        f"{cell(share, 1, 100)} %",
        f"{cell(seam.twice, 0, 100)} %",
    ]
    return f"| {' | '.join([name, *cells, cell(seam.jump), cell(seam.turn)])} |"


@pytest.mark.parametrize("name", FILMS)
def test_the_readme_says_what_trivial_films_score(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "shipped_judge", FakeJudge)
    lines = (ROOT / README).read_text("utf-8").splitlines()
    assert HEAD in lines
    assert row(name, FILMS[name]) in lines[lines.index(HEAD) :]
