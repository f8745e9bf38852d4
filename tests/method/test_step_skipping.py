from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from storyreel.errors import UsageError
from storyreel.method.step_skipping import SPEEDS, Speed, continued, find_speed


def test_exact_computes_and_guides_every_step() -> None:
    exact = find_speed("exact")
    for steps in (1, 16, 64):
        assert exact.forwards(steps) == steps
        assert all(exact.guides(step, steps) for step in range(steps))


@given(st.sampled_from(sorted(SPEEDS)), st.integers(1, 200))
def test_the_first_step_is_computed_and_faster_presets_compute_fewer(name: str, steps: int) -> None:
    speed = SPEEDS[name]
    assert speed.computes(0, steps)  # there is nothing to go on from
    assert 0 < SPEEDS["fast"].forwards(steps) <= SPEEDS["balanced"].forwards(steps) <= steps


@pytest.mark.parametrize("steps", [16, 50, 64])
def test_what_the_presets_cost(steps: int) -> None:
    """In forwards with guidance, of which one without is half."""

    def cost(speed: Speed) -> float:
        asked = [step for step in range(steps) if speed.computes(step, steps)]
        return sum(1.0 if speed.guides(step, steps) else 0.5 for step in asked) / steps

    assert cost(SPEEDS["exact"]) == 1
    assert 0.65 <= cost(SPEEDS["balanced"]) <= 0.75
    assert 0.4 <= cost(SPEEDS["fast"]) <= 0.5


def test_a_velocity_goes_on_along_its_line() -> None:
    one = torch.tensor([1.0, 2.0])
    assert continued([(0.9, one)], 0.5) is one
    line = [(level, torch.tensor([3 * level, 1 - level])) for level in (0.9, 0.7)]
    assert torch.allclose(continued(line, 0.4), torch.tensor([1.2, 0.6]))


def test_a_velocity_without_guidance_is_no_continuation_of_one_with_it() -> None:
    fast, steps = SPEEDS["fast"], 64
    asked = [step for step in range(steps) if fast.computes(step, steps)]
    turning = [step for step in asked if fast.turns(step, steps)]
    assert turning == [next(step for step in asked if not fast.guides(step, steps))]
    assert not any(SPEEDS["balanced"].turns(step, steps) for step in range(steps))


def test_an_unknown_speed_is_refused() -> None:
    with pytest.raises(UsageError, match="ludicrous"):
        find_speed("ludicrous")
