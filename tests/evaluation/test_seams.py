"""Worked by hand: films of single greys, whose steps are the differences of the greys."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storyreel.evaluation.seams import frame_steps, quiet_parts, seam_steps, transition, usual_step

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


def test_a_transition_stays_within_its_two_scenes() -> None:
    starts = [0, 24, 30, 33]
    assert transition(starts, 60, 1, FPS) == (24 - 11, 24 + 5)
    assert transition(starts, 60, 2, FPS) == (24, 33)
    assert transition(starts, 60, 3, FPS) == (30, 38)
    assert transition([0, 24], 26, 1, FPS) == (13, 26)


@pytest.mark.parametrize("fps", [0.1, 0.5, 1.0, 1.2])
def test_a_transition_has_a_frame_of_each_scene_however_few_a_second_has(fps: float) -> None:
    assert transition([0, 3], 6, 1, fps) == (2, 4)
    assert [seam.ratio for seam in seam_steps([2.0, 2.0, 8.0, 2.0, 2.0], [0, 3], fps)] == [4]


def test_what_no_transition_reaches() -> None:
    assert quiet_parts([0, 24, 48], 72, FPS) == [(0, 13), (29, 37), (53, 72)]
    assert quiet_parts([0], 24, FPS) == [(0, 24)]
    # The scene in the middle is all transition: then it counts whole.
    assert quiet_parts([0, 24, 32], 56, FPS) == [(0, 13), (24, 32), (37, 56)]


def test_a_seam_worked_by_hand() -> None:
    """Two scenes of 24 frames: steps of 2, of 6 in the transition, of 9 across the seam."""
    steps = [2.0] * 47
    steps[13:23] = [6.0] * 10  # from frame 13 to 23
    steps[20] = 8.0
    steps[23] = 9.0  # across
    steps[24:28] = [12.0, 6.0, 6.0, 6.0]
    steps[28] = 30.0  # from frame 28 to 29: behind the transition
    (seam,) = seam_steps(steps, [0, 24], FPS)
    assert (seam.ratio, seam.largest) == (4.5, 6.0)


def test_a_hard_border_is_measured_too() -> None:
    """It counts in no step inside, so that a film has the same usual step however it was joined."""
    steps = [1.0] * 71
    steps[23] = 200.0
    steps[47] = 3.0
    assert usual_step(steps, quiet_parts([0, 24, 48], 72, FPS)) == 1
    assert [(s.ratio, s.largest) for s in seam_steps(steps, [0, 24, 48], FPS)] == [(200, 200), (3, 3)]


def test_scenes_that_are_all_transition_fall_back_on_all_their_steps() -> None:
    steps = [1.0, 2.0, 3.0, 8.0, 1.0, 2.0, 3.0]
    (seam,) = seam_steps(steps, [0, 4], FPS)
    assert (seam.ratio, seam.largest) == (4, 4)


@pytest.mark.parametrize("step", [0.0, 0.09])
def test_a_frozen_film_is_not_called_smooth(step: float) -> None:
    """What codecs leave from one equal frame to the next is no movement."""
    steps = [step] * 47
    for across in (step, 5.0):
        steps[23] = across
        (seam,) = seam_steps(steps, [0, 24], FPS)
        assert (seam.ratio, seam.largest) == (None, None)


def test_frames_that_stand_still_do_not_make_a_seam_large() -> None:
    moving, halted = [4.0] * 47, [4.0] * 47
    moving[23] = halted[23] = 8.0
    halted[2:12] = [0.02] * 10
    for steps in (moving, halted):
        assert seam_steps(steps, [0, 24], FPS)[0].ratio == 2


def test_nothing_to_measure_is_none() -> None:
    assert seam_steps([], [0], FPS) == []
    (seam,) = seam_steps([4.0], [0, 1], FPS)  # two scenes of a single frame
    assert (seam.ratio, seam.largest) == (None, None)
