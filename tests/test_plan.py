from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyreel.errors import MissingError, ScriptError, UsageError
from storyreel.models.specs import MODELS
from storyreel.plan import WINDOW, derived_seed, joined_prompt, seconds_problem, size_problem
from tests.conftest import plan_of

MINI = MODELS["mini"]
STORY = """
title: Foxes
cast: {first: {name: a fox}}
scenes:
  - ["{first} in the park", "{first} sits"]
  - {scene: "{first} at home", action: sleeps, seconds: 3}
  - {scene: a bus, action: drives, transition: cut}
  - [a, b]
  - [c, d]
"""


def test_segments_follow_one_another() -> None:
    plan = plan_of(STORY)
    assert [s.frames for s in plan.segments] == [24, 36, 24, 24, 24]
    assert [s.start for s in plan.segments] == [0, 24, 60, 84, 108]
    assert [s.latents for s in plan.segments] == [8, 12, 8, 8, 8]
    assert [s.blended for s in plan.segments] == [False, True, False, True, True]
    assert [(s.after, s.transition, s.overlap) for s in plan.seams] == [
        (1, "blend", 1),
        (2, "cut", 0),
        (3, "blend", 1),
        (4, "blend", 1),
    ]
    assert (plan.frames, plan.seconds, plan.forwards) == (132, 11.0, 5 * MINI.steps)
    assert plan.segments[0].scene == "a fox in the park"
    assert plan.segments[0].prompt == "a fox in the park. a fox sits"
    assert [s.number for s in plan.segments] == ["01", "02", "03", "04", "05"]
    assert [[s.index for s in window] for window in plan.windows()] == [[0, 1], [2, 3, 4]]


def test_windows_are_bounded_and_end_at_cuts() -> None:
    plan = plan_of("scenes:\n" + "  - [a, b]\n" * 10)
    assert [len(window) for window in plan.windows()] == [WINDOW, WINDOW, 2]


def test_the_command_line_wins_over_the_story_and_the_story_over_the_model() -> None:
    text = STORY + "render: {seed: 3, steps: 5, guidance: 2, seconds: 1}\n"
    story = plan_of(text)
    assert (story.settings.seed, story.settings.steps, story.settings.guidance) == (3, 5, 2)
    assert [s.frames for s in story.segments] == [12, 36, 12, 12, 12]
    line = plan_of(text, seed=0, steps=7, guidance=1.0, seconds=1.5)
    assert (line.settings.seed, line.settings.steps, line.settings.guidance) == (0, 7, 1)
    assert [s.frames for s in line.segments] == [18, 36, 18, 18, 18]
    assert line.segments[0].seed != story.segments[0].seed


def test_seeds_differ_between_segments_and_stories() -> None:
    seeds = {derived_seed(seed, index) for seed in range(20) for index in range(-1, 20)}
    assert len(seeds) == 20 * 21
    assert all(0 <= seed < 2**63 for seed in seeds)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_nearest_size_is_legal(width: int, height: int) -> None:
    problem = size_problem(MINI, width, height)
    if problem is not None:
        nearest = problem.rsplit(" ", 1)[1].split("x")
        assert size_problem(MINI, int(nearest[0]), int(nearest[1])) is None


@given(st.floats(0.001, 700))
def test_the_nearest_lengths_are_legal(seconds: float) -> None:
    problem = seconds_problem(MINI, seconds)
    if problem is not None:
        for word in problem.rsplit(": ", 1)[1].split(" or "):
            assert seconds_problem(MINI, float(word)) is None


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        ({"size": "100x100"}, UsageError, "96x64"),
        ({"size": "big"}, UsageError, "WIDTHxHEIGHT"),
        ({"size": "96x64x2"}, UsageError, "WIDTHxHEIGHT"),
        ({"seconds": 2.1}, UsageError, "2 or 2.25"),
        ({"seconds": float("nan")}, UsageError, "finite"),
        ({"seconds": -1.0}, UsageError, "nearest it can: 0.25"),
        ({"seconds": 0.0}, UsageError, "nearest it can: 0.25"),
        ({"guidance": float("nan")}, UsageError, "guidance"),
        ({"model": "sora"}, MissingError, "Known models: mini"),
    ],
)
def test_what_the_command_line_cannot_have(
    overrides: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        plan_of(STORY, **overrides)


def test_all_of_a_scripts_lengths_are_told() -> None:
    text = "scenes:\n" + "  - {scene: a, action: b, seconds: 2.1}\n" * 2
    with pytest.raises(ScriptError) as caught:
        plan_of(text)
    assert [(f.line, f.column) for f in caught.value.faults] == [(2, 36), (3, 36)]


def test_joined_prompt_is_two_sentences() -> None:
    assert joined_prompt("a fox in the park.", "a fox sits") == "a fox in the park. a fox sits"
