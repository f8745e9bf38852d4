"""Worked by hand: films of single greys, whose steps are the differences of the greys."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storyreel.evaluation.seams import frame_steps, smoothness, transition

FPS = 12.0


def greys(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 4, 3)


def test_steps_are_differences_in_either_direction() -> None:
    assert frame_steps([greys(0, 10, 250, 249)]) == [10, 240, 1]
    half = greys(0, 0).clone()
    half[1, 0] = 100  # one of two rows
    assert frame_steps([half]) == [50]
    assert frame_steps([]) == frame_steps([greys(7)]) == []


@given(st.lists(st.lists(st.integers(0, 255), max_size=5), max_size=6))
def test_steps_do_not_depend_on_the_chunks(values: list[list[int]]) -> None:
    film = [value for chunk in values for value in chunk]
    expected = [abs(b - a) for a, b in pairwise(film)]
    assert frame_steps(greys(*chunk) for chunk in values if chunk) == expected


def test_a_transition_stays_within_its_two_segments() -> None:
    starts = [0, 24, 30, 33]
    assert transition(starts, 60, 1, FPS) == (24 - 11, 24 + 5)
    assert transition(starts, 60, 2, FPS) == (24, 33)
    assert transition(starts, 60, 3, FPS) == (30, 38)
    assert transition([0, 24], 26, 1, FPS) == (13, 26)


def test_a_seam_worked_by_hand() -> None:
    """Two segments of 24 frames: steps of 2, of 6 in the transition, of 9 across the seam."""
    steps = [2.0] * 47
    steps[13:23] = [6.0] * 10  # from frame 13 to 23
    steps[20] = 8.0
    steps[23] = 9.0  # across
    steps[24:28] = [12.0, 6.0, 6.0, 6.0]
    steps[28] = 30.0  # from frame 28 to 29: behind the transition
    found = smoothness(steps, [0, 24], [1], FPS)
    inside = 13 + 18  # steps of 2 before the transition; of 2 behind it, and one of 30
    assert found.motion == pytest.approx((2 * inside + 30) / (inside + 1))
    (seam,) = found.seams
    assert (seam.after, seam.ratio, seam.largest) == (1, 4.5, 6.0)


def test_a_cut_is_neither_a_seam_nor_motion() -> None:
    steps = [1.0] * 71
    steps[23] = 200.0  # the cut into segment 1
    steps[47] = 3.0
    found = smoothness(steps, [0, 24, 48], [2], FPS)
    assert found.motion == 1
    assert [(s.after, s.ratio) for s in found.seams] == [(2, 3.0)]


def test_segments_that_are_all_transition_fall_back_on_all_their_steps() -> None:
    steps = [1.0, 2.0, 3.0, 8.0, 1.0, 2.0, 3.0]
    found = smoothness(steps, [0, 4], [1], FPS)
    assert found.motion == 2
    assert (found.seams[0].ratio, found.seams[0].largest) == (4, 4)


def test_a_frozen_film_is_not_called_smooth() -> None:
    steps = [0.0] * 47
    steps[23] = 5.0
    for film in (steps, [0.0] * 47):
        found = smoothness(film, [0, 24], [1], FPS)
        assert found.motion == 0
        assert (found.seams[0].ratio, found.seams[0].largest) == (None, None)


def test_nothing_to_measure_is_none() -> None:
    assert smoothness([], [0], [], FPS).motion is None
    found = smoothness([4.0], [0, 1], [1], FPS)  # two segments of a single frame
    assert (found.motion, found.seams[0].ratio) == (None, None)
