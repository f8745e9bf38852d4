"""Where somebody is: maps drawn by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from storyreel.evaluation.presence import STILL, across, centres, is_there_twice, steps, turns, usual

HEIGHT, WIDTH = 12, 18


def drawn(*boxes: tuple[float, int, int, int, int]) -> Tensor:
    """One picture's map: boxes of a probability, from a column and a row, so wide and high."""
    cells = torch.full((HEIGHT, WIDTH), 0.02)
    for share, x, y, wide, high in boxes:
        cells[y : y + high, x : x + wide] = share
    return cells


def test_the_middle_in_widths_of_the_picture() -> None:
    (x, y), nobody = centres(torch.stack([drawn((0.9, 4, 6, 2, 4)), drawn()]))
    assert (float(x), float(y)) == pytest.approx((5 / 18, 8 / 18))
    assert nobody.isnan().all()


def walk(count: int, speed: float, start: float = 0.1) -> Tensor:
    return torch.stack([start + speed * torch.arange(count), torch.full((count,), 0.5)], 1)


def test_a_walk_that_goes_on_is_as_usual() -> None:
    """Also after a seam: one track, cut in two, and measured across it."""
    track = walk(24, 0.02)
    inside = usual([steps(track[:12]), steps(track[12:])])
    assert inside is not None
    assert inside == pytest.approx(0.02)
    assert across(steps(track), 11) == pytest.approx(inside)
    assert across(turns(track), 10) == pytest.approx(0, abs=1e-6)


def test_a_jump_and_a_turn_by_hand() -> None:
    track = torch.cat([walk(12, 0.02), walk(12, -0.03, start=0.8)])
    assert across(steps(track), 11) == pytest.approx(0.8 - 0.32)
    assert across(turns(track), 10) == pytest.approx(0.05)
    straddling = across(turns(track), 9)  # the jump itself is no motion of either side
    assert straddling is not None
    assert straddling > 0.1
    assert usual([turns(walk(12, 0.02))]) == STILL


def test_a_still_film_has_a_large_jump_and_no_zero_to_divide_by() -> None:
    still = walk(12, 0.0)
    assert usual([steps(still)]) == STILL
    moved = across(steps(torch.cat([still, still + 0.3])), 11)
    assert moved is not None
    assert moved / STILL > 50


def test_who_is_not_seen_has_no_step() -> None:
    track = walk(6, 0.02)
    track[2] = torch.nan
    found = [across(steps(track), at) for at in range(-1, 6)]
    assert [value is None for value in found] == [True, False, True, True, False, False, True]
    assert usual([steps(track)]) == pytest.approx(0.02)
    assert usual([]) is usual([torch.full((3,), torch.nan)]) is None


@pytest.mark.parametrize(
    ("boxes", "twice"),
    [
        ([], False),
        ([(0.9, 4, 5, 3, 5)], False),
        ([(0.5, 2, 5, 3, 5), (0.45, 12, 5, 3, 5)], True),  # half of each: a double exposure
        ([(0.9, 2, 5, 3, 5), (0.9, 12, 5, 3, 5)], True),  # or really two
        ([(0.9, 2, 5, 3, 5), (0.9, 12, 9, 1, 1)], False),  # a speck
        ([(0.85, 2, 5, 3, 5), (0.15, 12, 5, 3, 5)], False),  # hardly there
        ([(0.9, 4, 5, 2, 5), (0.9, 7, 5, 2, 5)], True),  # a column of nobody between, more than one is wide
        ([(0.9, 4, 5, 4, 5), (0.9, 9, 5, 2, 5)], False),  # behind a pole: not further apart than it is wide
        ([(0.9, 4, 2, 3, 3), (0.9, 7, 5, 3, 3)], False),  # joined at a corner
    ],
)
def test_two_places_at_once(boxes: list[tuple[float, int, int, int, int]], twice: bool) -> None:
    assert is_there_twice(drawn(*boxes)) is twice
