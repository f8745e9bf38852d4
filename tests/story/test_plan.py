from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyreel.cli.app import run
from storyreel.errors import ScriptError, UsageError
from storyreel.method.settings import Method
from storyreel.models.specs import MODELS
from storyreel.story.plan import admits, derived_seed, forwards_left, joined_prompt
from storyreel.story.planning import seconds_problem, size_problem
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
    # The second scene is nearly as long as the model can do: one frame is left for an overlap.
    assert [(s.after, s.transition, s.overlap, s.strength) for s in plan.seams] == [
        (1, "blend", 1, 1.0),
        (2, "cut", 0, 0.0),
        (3, "blend", 2, 1.0),
        (4, "blend", 2, 1.0),
    ]
    assert [s.lead for s in plan.segments] == [1, 1, 1, 2, 2]
    assert plan.latents == 8 + 12 + 8 + 8 + 8 + 7
    assert (plan.frames, plan.seconds, plan.forwards) == (132, 11.0, 5 * MINI.steps)
    assert plan.segments[0].scene == "a fox in the park"
    assert plan.segments[0].prompt == "a fox in the park. a fox sits"
    assert [s.number for s in plan.segments] == ["01", "02", "03", "04", "05"]
    assert [s.phrase for s in plan.segments] == ["sits", "sleeps", "drives", "b", "d"]
    assert [plan.seam(s) for s in plan.segments] == [None, *plan.seams]


def test_how_weights_are_stored_is_the_storys_or_the_command_lines() -> None:
    in_story = STORY + "render: {quantize: fp8}\n"
    assert plan_of(STORY).spec.label == "mini"
    assert plan_of(STORY, quantize="fp8").spec.label == "mini in fp8"
    assert plan_of(in_story).spec.quantize == "fp8"
    assert plan_of(in_story, quantize="none").spec == plan_of(STORY).spec
    with pytest.raises(UsageError, match="unknown quantization 'int3'") as caught:
        plan_of(STORY, quantize="int3")
    assert "none or fp8" in caught.value.remedy


def test_runs_end_at_cuts_and_nowhere_else() -> None:
    assert [[s.index for s in run] for run in plan_of(STORY).runs()] == [[0, 1], [2, 3, 4]]
    pairs = "scenes:\n" + "  - [a, b]\n" * 10
    assert [len(run) for run in plan_of(pairs).runs()] == [10]
    apart = plan_of(pairs, without=frozenset({"twb"}))
    assert [len(run) for run in apart.runs()] == [1] * 10
    assert {(s.transition, s.overlap, s.strength) for s in apart.seams} == {("cut", 0, 0.0)}


under_way = st.tuples(st.integers(1, 40), st.integers(1, 9)).flatmap(
    lambda both: st.tuples(
        st.just(both[0]),
        st.just(both[1]),
        st.lists(st.integers(0, both[0] - 1), max_size=both[1]).map(sorted),
    )
)


@given(under_way, st.integers(0, 12), st.integers(0, 12))
def test_forwards_left_is_what_the_calendar_says(
    case: tuple[int, int, list[int]], following: int, wanted: int
) -> None:
    """Every segment has a first and a last tick; a forward is a tick of one of them."""
    steps, window, done = case
    apart = math.ceil(steps / window)
    begun: list[int] = []
    for count in done:  # far enough apart, as a window leaves them
        if not begun or count >= begun[-1] + apart:
            begun.append(count)
    begun.reverse()
    first_ticks = [-count for count in begun]
    for _ in range(following):
        first_ticks.append(max(0, first_ticks[-1] + apart) if first_ticks else 0)
    wanted = min(wanted, len(first_ticks))
    end = first_ticks[wanted - 1] + steps if wanted else 0
    expected = sum(max(0, min(end, first + steps) - max(0, first)) for first in first_ticks)
    assert forwards_left(begun, wanted, following, window, steps) == expected


@given(st.integers(1, 60), st.integers(1, 64))
def test_no_more_segments_than_the_window_are_under_way(steps: int, window: int) -> None:
    active: list[int] = []
    most = 0
    for _ in range(3 * steps):
        if admits(active, window, steps):
            active.append(0)
        most = max(most, len(active))
        active = [done + 1 for done in active if done + 1 < steps]
    assert most <= window
    if steps % window == 0:
        assert most == window


def test_a_whole_story_takes_the_forwards_of_its_plan() -> None:
    for window in (1, 3, 4, 64):
        plan = plan_of(STORY, method=(f"window={window}",))
        steps = plan.settings.steps
        left = sum(forwards_left([], len(run), len(run), window, steps) for run in plan.runs())
        assert left == plan.forwards


def test_similar_actions_share_a_shorter_and_weaker_overlap() -> None:
    plan = plan_of(STORY, method=("strength=0.8",)).settled([0.25, 0.5, 0.5, None])
    assert [(s.overlap, s.similarity) for s in plan.seams] == [(1, 0.25), (0, None), (1, 0.5), (2, None)]
    assert [s.strength for s in plan.seams] == pytest.approx([0.6, 0, 0.4, 0.8])
    assert [s.lead for s in plan.segments] == [1, 1, 1, 1, 2]
    twins = plan_of(STORY).settled([1.0] * 4)
    assert [(s.overlap, s.strength) for s in twins.seams] == [(1, 0), (0, 0), (1, 0), (1, 0)]
    strangers = plan_of(STORY).settled([0.0] * 4)
    assert [s.overlap for s in strangers.seams] == [s.overlap for s in plan_of(STORY).seams]


def test_an_overlap_is_what_is_asked_for() -> None:
    pairs = "scenes:\n" + "  - [a, b]\n" * 3
    assert [s.overlap for s in plan_of(pairs).seams] == [MINI.overlap] * 2
    assert [s.overlap for s in plan_of(pairs, method=("overlap=5",)).seams] == [5, 5]
    for other in ("blending=published", "strength=0"):
        plan = plan_of(pairs, method=("overlap=5", other))
        assert [s.overlap for s in plan.seams] == [0, 0]
        assert [s.lead for s in plan.segments] == [1, 1, 1]


def test_the_command_line_changes_the_storys_method() -> None:
    text = STORY + "render: {method: {window: 2, beta: 0.5}}\n"
    method = plan_of(text, method=("window=3", "weighting=false", "strength=1")).settings.method
    assert method == Method(window=3, beta=0.5, weighting=False, strength=1.0)
    assert isinstance(method.strength, float)


@pytest.mark.parametrize(
    ("parts", "off"),
    [
        ({"dipw"}, {"weighting": False}),
        ({"sar"}, {"similarity": False}),
        ({"twb"}, {"blending": "none"}),
        ({"dipw", "sar"}, {"weighting": False, "similarity": False}),
        ({"all"}, {"weighting": False, "similarity": False, "blending": "none"}),
    ],
    ids=lambda value: " ".join(sorted(value)) if isinstance(value, set) else "",
)
def test_parts_can_be_left_out(parts: set[str], off: dict[str, object]) -> None:
    method = plan_of(STORY, without=frozenset(parts), method=("weighting=true",)).settings.method
    switches = {"weighting": True, "similarity": True, "blending": "joint"} | off
    assert {key: getattr(method, key) for key in switches} == switches


def test_whether_prompts_are_weighed_is_the_models_choice_unless_somebody_says() -> None:
    assert plan_of(STORY).settings.method.weighting is MODELS["mini"].weighting is False
    assert plan_of(STORY, model="mochi").settings.method.weighting is True
    assert plan_of(STORY, model="mochi", without=frozenset({"dipw"})).settings.method.weighting is False
    text = STORY + "render: {method: {weighting: true}}\n"
    assert plan_of(text).settings.method.weighting is True


def test_published_blending_and_its_window() -> None:
    """It has window 1 by itself, whoever chose it; another window beside it is refused with what to type."""
    published = STORY + "render: {method: {blending: published}}\n"
    assert plan_of(published).settings.method.window == 1
    assert plan_of(STORY, method=("blending=published",)).settings.method.window == 1
    assert plan_of(published, method=("blending=joint",)).settings.method.window == 4
    wide = STORY + "render: {method: {window: 2}}\n"
    for text, method in ((published, ("window=4",)), (wide, ("blending=published",))):
        with pytest.raises(UsageError, match="window must be 1 or left out, not") as caught:
            plan_of(text, method=method)
        assert "--method window=1" in caught.value.remedy
    with pytest.raises(ScriptError, match=r"story\.yaml:.*published blending"):
        plan_of(STORY + "render: {method: {blending: published, window: 2}}\n")
    with pytest.raises(UsageError) as caught:
        plan_of(STORY, method=("alignment=1",))
    assert caught.value.remedy == "Set all of them."


# what is set: words of the message
ILLEGAL = {
    "window: 0": "window must be a whole number from 1 to 64, not 0",
    "window: 1.5": "window must be a whole number from 1 to 64, not 1.5",
    "gamma: 0.7": "gamma must be a number from 0 to 0.5, not 0.7",
    "gamma: .nan": "gamma must be a number from 0 to 0.5, not nan",
    "beta: .nan": "beta must be a number from 0 to 1, not nan",
    "inertia: 1": "inertia must be a number from 0 to below 1, not 1",
    "temperature: 0": "temperature must be a number above 0 to 100, not 0",
    "temperature: .inf": "temperature must be a number above 0 to 100, not inf",
    "strength: much": "strength must be a number from 0 to 1, not 'much'",
    "strength: true": "strength must be a number from 0 to 1, not ",
    "weighting: 1": "weighting must be true or false, not 1",
    "blending: fade": "blending must be one of joint, published, none, not 'fade'",
    "overlap: 0": "overlap must be a whole number from 1 to 64, not 0",
    "overlap: 6": "an overlap of 6 latent frames is longer than a scene allows: 1 to 5",
    "alignment: 1": "alignment, smoothness and progression must sum to 1, not 1.6",
    "gama: 1": "gama",
}


@pytest.mark.parametrize("setting", ILLEGAL)
def test_illegal_settings_are_refused_with_their_range(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story, out = tmp_path / "story.yaml", tmp_path / "out"
    pairs = "scenes:\n  - [a, b]\n  - [c, d]\n"
    story.write_text(pairs + f"render:\n  method:\n    {setting}\n")
    assert run(["render", str(story), "--out", str(out)]) == 65
    head, *_ = capsys.readouterr().err.splitlines()
    assert head.startswith(f"{story}:6:")
    assert ILLEGAL[setting] in head
    if setting == "gama: 1":
        assert "unknown key 'gama'; allowed: weighting, blending" in head

    story.write_text(pairs)
    assert run(["render", str(story), "--out", str(out), "--method", setting.replace(": ", "=")]) == 2
    err = capsys.readouterr().err
    assert ILLEGAL[setting] in err
    if setting == "gama: 1":
        assert "KEY=VALUE with one of: weighting, blending" in err
    assert not out.exists()


@pytest.mark.parametrize("value", ["[", "2024-13-45", "9" * 5000, "[" * 5000, "!!python/name:os.system", ""])
def test_nonsense_from_the_command_line_is_refused_and_nothing_else(value: str) -> None:
    with pytest.raises(UsageError, match="gamma must be a number from 0") as caught:
        plan_of(STORY, method=(f"gamma={value}",))
    assert len(caught.value.message) < 200


def test_the_command_line_wins_over_the_story_and_the_story_over_the_model() -> None:
    text = STORY + "render: {seed: 3, steps: 5, guidance: 2, seconds: 1}\n"
    story = plan_of(text)
    assert (story.settings.seed, story.settings.steps, story.settings.guidance) == (3, 5, 2)
    assert [s.frames for s in story.segments] == [12, 36, 12, 12, 12]
    line = plan_of(text, seed=0, steps=7, guidance=1.0, seconds=1.5)
    assert (line.settings.seed, line.settings.steps, line.settings.guidance) == (0, 7, 1)
    assert [s.frames for s in line.segments] == [18, 36, 18, 18, 18]
    assert line.segments[0].seed != story.segments[0].seed


def test_a_second_expert_has_its_own_guidance_unless_somebody_chooses_one() -> None:
    """As `guidance_scale` in diffusers counts for both experts, where no `guidance_scale_2` is given."""
    story = STORY + "render: {guidance: 2}\n"
    own = plan_of(STORY, model="wan-2.2-a14b", seconds=1.0).settings
    assert [own.guidance_of(expert) for expert in (0, 1)] == [4, 3]
    assert own.guidance_words == "4 and 3"
    line = plan_of(STORY, model="wan-2.2-a14b", seconds=1.0, guidance=4.0).settings
    assert [line.guidance_of(expert) for expert in (0, 1)] == [4, 4]
    assert line.guidance_words == "4"
    written = plan_of(story, model="wan-2.2-a14b", seconds=1.0).settings
    assert [written.guidance_of(expert) for expert in (0, 1)] == [2, 2]


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
        ({"size": "100x100"}, UsageError, "192x128"),
        ({"size": "big"}, UsageError, "WIDTHxHEIGHT"),
        ({"size": "96x64x2"}, UsageError, "WIDTHxHEIGHT"),
        ({"seconds": 2.1}, UsageError, "2 or 2.25"),
        ({"seconds": float("nan")}, UsageError, "finite"),
        ({"seconds": -1.0}, UsageError, "nearest it can: 0.25"),
        ({"seconds": 0.0}, UsageError, "nearest it can: 0.25"),
        ({"guidance": float("nan")}, UsageError, "guidance"),
        ({"model": "sora"}, UsageError, "Known models: mini"),
        ({"method": ("window",)}, UsageError, "KEY=VALUE"),
        ({"without": frozenset({"clip"})}, UsageError, "Known parts: dipw, twb, sar, all"),
    ],
)
def test_what_the_command_line_cannot_have(
    overrides: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        plan_of(STORY, **overrides)
    assert words in str(caught.value)


def test_all_of_a_scripts_lengths_are_told() -> None:
    text = "scenes:\n" + "  - {scene: a, action: b, seconds: 2.1}\n" * 2
    with pytest.raises(ScriptError) as caught:
        plan_of(text)
    assert [(f.line, f.column) for f in caught.value.faults] == [(2, 36), (3, 36)]


def test_joined_prompt_is_two_sentences() -> None:
    assert joined_prompt("a fox in the park.", "a fox sits") == "a fox in the park. a fox sits"
    assert joined_prompt("a fox sits", "a fox sits") == "a fox sits"  # said once is enough
