from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from storyreel.errors import UsageError
from storyreel.method.noise_levels import (
    even,
    evenly_shifted,
    levels_of,
    linear_quadratic,
    shifted_by_tokens,
)
from storyreel.method.step_skipping import SPEEDS, Pace, continued, find_speed

LEVELS = {  # of the models' defaults
    "mini": even(16),
    "mochi": linear_quadratic(64),
    "wan-1.3b": evenly_shifted(50, 3.0),
    "wan-14b at 720p": evenly_shifted(50, 5.0),
    "wan-2.2-a14b": evenly_shifted(40, 12.0),
    "ltx-2b": shifted_by_tokens(50, 13 * 330),
    "ltx-13b": linear_quadratic(30),
    "hunyuan-1.5": levels_of("even", 50, 5.0, 0),
}
BOUNDARIES = {"wan-2.2-a14b": 0.875}
falling = st.one_of(
    st.integers(1, 200).map(even),
    st.integers(1, 200).map(linear_quadratic),
    st.builds(evenly_shifted, st.integers(1, 200), st.floats(0.2, 20)),
)


def pace(speed: str, model: str) -> Pace:
    return SPEEDS[speed].pace(LEVELS[model][:-1], BOUNDARIES.get(model))


def computed(found: Pace) -> list[int]:
    return [step for step, is_computed in enumerate(found.computed) if is_computed]


def cost(found: Pace) -> float:
    """In evaluations with guidance, of which one without is half, by the steps."""
    asked = [1.0 if found.guided[step] else 0.5 for step in computed(found)]
    return sum(asked) / len(found.computed)


@given(falling)
def test_exact_computes_and_guides_every_step(levels: list[float]) -> None:
    exact = find_speed("exact").pace(levels[:-1])
    assert exact.forwards == len(exact.computed) == len(levels) - 1
    assert all(exact.guided)


@given(st.sampled_from(sorted(SPEEDS)), falling)
def test_the_first_step_is_computed_and_faster_presets_compute_fewer(name: str, levels: list[float]) -> None:
    assert SPEEDS[name].pace(levels[:-1]).computed[0]  # there is nothing to go on from
    fast, balanced = (SPEEDS[speed].pace(levels[:-1]).forwards for speed in ("fast", "balanced"))
    assert 0 < fast <= balanced <= len(levels) - 1


def test_of_even_levels_the_steps_are_those_by_number() -> None:
    """The embedded model's films are what they were when a preset counted steps."""
    assert computed(pace("balanced", "mini")) == [*range(5), 6, 8, 10, 12, 14, 15]
    fast = pace("fast", "mini")
    assert computed(fast) == [0, 1, 2, 5, 8, 11, 14, 15]
    assert fast.guided == (True,) * 11 + (False,) * 5


@pytest.mark.parametrize(
    ("model", "balanced", "fast"),
    [  # evaluations, and the share of arithmetic: the table of models/README.md
        ("mini", (11, 0.69), (8, 0.41)),
        ("mochi", (44, 0.69), (25, 0.38)),
        ("wan-1.3b", (33, 0.66), (22, 0.41)),
        ("wan-14b at 720p", (32, 0.64), (22, 0.42)),
        ("wan-2.2-a14b", (33, 0.82), (19, 0.47)),
        ("ltx-2b", (33, 0.66), (22, 0.42)),
        ("ltx-13b", (25, 0.83), (17, 0.55)),
        ("hunyuan-1.5", (32, 0.64), (22, 0.42)),
    ],
)
def test_what_the_presets_cost(model: str, balanced: tuple[int, float], fast: tuple[int, float]) -> None:
    paces = [pace(speed, model) for speed in ("balanced", "fast")]
    found = [(one.forwards, round(cost(one), 2)) for one in paces]
    assert found == [balanced, fast]


@pytest.mark.parametrize("model", LEVELS)
@pytest.mark.parametrize("speed", ["balanced", "fast"])
def test_a_preset_means_the_same_noise_levels_for_every_model(speed: str, model: str) -> None:
    """In the middle no more than so many steps are left out, at the end none, whatever their numbers are."""
    preset, found, levels = SPEEDS[speed], pace(speed, model), LEVELS[model]
    for step, level in enumerate(levels[:-1]):
        before = max(s for s in computed(found) if s < step) if step else 0
        if not found.computed[step]:
            assert level > preset.end
            assert step - before < preset.every or level > preset.begin
            if level > preset.begin:
                assert (1 - level) / (1 - levels[before]) < 1 + preset.growth
        assert found.guided[step] == (level > preset.unguided)


@pytest.mark.parametrize("speed", ["balanced", "fast"])
def test_a_second_experts_first_step_is_computed(speed: str) -> None:
    """No velocity of the first expert's can be continued in it, at whatever level they change."""
    levels = evenly_shifted(40, 12.0)[:-1]
    for boundary in levels[1:]:
        found = SPEEDS[speed].pace(levels, boundary)
        assert found.computed[next((s for s, level in enumerate(levels) if level < boundary), 0)]
    plain = SPEEDS[speed].pace(levels)
    assert any(SPEEDS[speed].pace(levels, boundary) != plain for boundary in levels)


def test_a_velocity_goes_on_along_its_line() -> None:
    one = torch.tensor([1.0, 2.0])
    assert continued([(0.9, one)], 0.5) is one
    line = [(level, torch.tensor([3 * level, 1 - level])) for level in (0.9, 0.7)]
    assert torch.allclose(continued(line, 0.4), torch.tensor([1.2, 0.6]))


@pytest.mark.parametrize("model", LEVELS)
def test_a_velocity_without_guidance_is_no_continuation_of_one_with_it(model: str) -> None:
    fast = pace("fast", model)
    turning = [step for step in computed(fast) if fast.turns(step)]
    assert turning == [step for step in computed(fast) if not fast.guided[step]][:1]
    balanced = pace("balanced", model)
    assert not any(map(balanced.turns, range(len(balanced.computed))))


def test_an_unknown_speed_is_refused() -> None:
    with pytest.raises(UsageError, match="ludicrous"):
        find_speed("ludicrous")
