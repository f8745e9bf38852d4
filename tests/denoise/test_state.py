"""What is taken back from a segment's file: all of it as it was, and nothing of any other shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from storyreel.denoise.loop import SegmentState, begin, denoise, latents_shape
from storyreel.denoise.prompts import PromptWriter
from storyreel.denoise.state import Stored
from storyreel.errors import StoryreelError
from storyreel.models.specs import MODELS
from storyreel.story.plan import Plan
from tests.conftest import FakeAdapter, FakeScorer, plan_of
from tests.tiny import CPU, TINY

STEPS, LEFT = 8, 4
STORY = "render: {model: tiny}\nscenes:\n  - [the park, a fox walks]\n"
KINDS: dict[str, dict[str, Any]] = {
    "exact": {"method": ("weighting=true",)},
    "fast": {"method": ("weighting=true",), "speed": "fast"},
    "plain": {"without": frozenset({"dipw"})},
}


class LeftError(Exception):
    pass


def begun(kind: str, scored: bool) -> tuple[Plan, SegmentState, PromptWriter, FakeAdapter]:
    plan = plan_of(STORY, steps=STEPS, **KINDS[kind])
    adapter = FakeAdapter(TINY)
    writer = PromptWriter(adapter, plan, FakeScorer("a fox walks") if scored else None)
    return plan, begin(adapter, plan, plan.segments[0], writer.prompts(plan.segments[0])), writer, adapter


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(MODELS, "tiny", TINY)
    return tmp_path / "state.safetensors"


def saved(path: Path, kind: str = "exact", scored: bool = True) -> tuple[dict[str, Tensor], int]:
    """Save a segment that is left on its way; return what the file holds, and after how many steps."""
    plan, state, writer, adapter = begun(kind, scored)

    def watch(window: Sequence[SegmentState]) -> None:
        if window[0].step >= LEFT:
            Stored(path).save_state(window[0])
            raise LeftError

    with pytest.raises(LeftError):
        list(denoise(adapter, plan.settings, plan.segments, writer, lambda _: state, watch))
    return load(path.read_bytes()), state.step


@pytest.mark.parametrize("scored", [False, True], ids=["without scorer", "with scorer"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_that_was_saved_is_taken_back(path: Path, kind: str, scored: bool) -> None:
    held, step = saved(path, kind, scored)
    wanted = (
        {"x", "broken"}
        | ({"history"} if kind != "plain" else set())
        | ({"levels", "velocities"} if kind == "fast" else set())
    )
    assert held.keys() == wanted | ({"alignment", "ending"} if scored and kind != "plain" else set())
    state = begun(kind, scored)[1]
    Stored(path).restore(state, step)
    Stored(path).save_state(state)
    again = load(path.read_bytes())
    assert again.keys() == held.keys()
    assert all(torch.equal(again[name], value) for name, value in held.items())


NAMES = ["x", "history", "alignment", "ending", "levels", "velocities"]
FORGED: dict[str, Callable[[Tensor], Tensor | None]] = {
    "gone": lambda value: None,
    "a number": lambda value: value.flatten()[0].clone(),
    "one row less": lambda value: value[1:].clone(),
    "one row more": lambda value: torch.cat([value, value[:1]]),
    "one side more": lambda value: value[None].clone(),
    "the last side longer": lambda value: torch.cat([value, value[..., :1]], -1),
    "whole numbers": lambda value: value.to(torch.int64),
    "empty": lambda value: value.new_empty(0),
}


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize("name", NAMES)
def test_what_has_another_shape_or_is_gone_is_one_clear_error(path: Path, name: str, forged: str) -> None:
    """And the segment is as it had begun."""
    held, step = saved(path, "fast")
    value = FORGED[forged](held.pop(name))
    path.write_bytes(save(held | ({} if value is None else {name: value.contiguous()})))
    state = begun("fast", True)[1]
    before = state.x.clone(), state.prompts.decided()
    with pytest.raises(StoryreelError, match="holds no segment") as caught:
        Stored(path).restore(state, step)
    assert "--overwrite" in caught.value.remedy
    assert (state.step, state.known) == (0, ())
    assert torch.equal(state.x, before[0])
    assert state.prompts.decided() == before[1]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_of_another_step_or_another_way_is_refused(path: Path, kind: str) -> None:
    held, step = saved(path, kind)
    others = [(kind, step - 1), (kind, step + 1)] if kind != "plain" else [("exact", step), ("fast", step)]
    for other, at in [*others, (kind, -1), (kind, STEPS + 1)]:
        with pytest.raises(StoryreelError, match="holds no segment"):
            Stored(path).restore(begun(other, True)[1], at)
    path.write_bytes(save(held | {"more": torch.zeros(1)}))
    with pytest.raises(StoryreelError, match="holds no segment"):
        Stored(path).restore(begun(kind, True)[1], step)


def test_velocities_of_a_level_that_was_not_passed_are_refused(path: Path) -> None:
    held, step = saved(path, "fast")
    for level in (float("nan"), 2.0, 0.0):
        held["levels"][-1] = level
        path.write_bytes(save(held))
        with pytest.raises(StoryreelError, match="holds no segment"):
            Stored(path).restore(begun("fast", True)[1], step)


@pytest.mark.parametrize("value", [float("nan"), -float("inf"), 0.0, 1.5, LEFT + 1.0, None])
def test_a_step_that_was_not_taken_has_broken_nothing(path: Path, value: float | None) -> None:
    """Nor is a state believed that says nothing of it, as one of an earlier version."""
    held, step = saved(path, "plain")
    assert step == LEFT
    broken = {} if value is None else {"broken": torch.tensor(value)}
    path.write_bytes(save({"x": held["x"]} | broken))
    with pytest.raises(StoryreelError, match="holds no segment"):
        Stored(path).restore(begun("plain", True)[1], step)


shapes = st.lists(st.integers(0, 7), max_size=5).map(tuple)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*NAMES, "other"]), shapes, max_size=6), st.integers(-2, STEPS + 2))
def test_any_tensors_are_a_state_or_one_clear_error(
    path: Path, forged: dict[str, tuple[int, ...]], step: int
) -> None:
    state = begun("exact", True)[1]
    x = {"x": torch.zeros_like(state.x), "broken": torch.tensor(float("inf"))}
    path.write_bytes(save(x | {name: torch.zeros(shape) for name, shape in forged.items()}))
    try:
        Stored(path).restore(state, step)
    except StoryreelError:
        assert state.step == 0
    else:
        assert len(state.prompts.decided()) == min(step + 1, STEPS)


def test_latents_and_how_they_end_have_their_shapes(path: Path) -> None:
    plan, state, writer, adapter = begun("exact", True)
    (done,) = denoise(adapter, plan.settings, plan.segments, writer, lambda _: state, lambda _: None)
    shape, file = latents_shape(plan, plan.segments[0]), Stored(path)
    assert done.x.shape == shape
    file.save_latents(done)
    assert torch.equal(file.latents(CPU, shape), done.x)
    assert file.ending(CPU, 2) is not None
    with pytest.raises(StoryreelError, match="holds no segment"):
        file.ending(CPU, 3)
    for side in range(5):
        other = [length + (n == side) for n, length in enumerate(shape)]
        with pytest.raises(StoryreelError, match="holds no segment"):
            file.latents(CPU, other)
