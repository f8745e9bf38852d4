from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyreel.cli.app import run
from storyreel.errors import ScriptError, UsageError
from storyreel.method.settings import Method
from storyreel.models.specs import MODELS
from storyreel.story.plan import LOOKED_AT, Given, Plan, derived_seed, joined_prompt
from storyreel.story.planning import seconds_problem, size_problem, uncounted_prompts
from tests.conftest import plan_of

MINI = replace(MODELS["mini"], overlap=2)
PLAIN = "scenes:\n  - [a park, a fox sits]\n  - [a bus, it drives]\n"
STORY = """
title: Foxes
cast: {first: {name: a fox}}
scenes:
  - ["{first} in the park", "{first} sits"]
  - {scene: "{first} at home", action: sleeps, seconds: 2.75}
  - {scene: a bus, action: drives, transition: cut}
  - [a, b]
  - [c, d]
"""


@pytest.fixture(scope="module", autouse=True)
def a_shot_goes_on_from_two_latent_frames() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "mini", MINI)
        yield


def test_segments_follow_one_another() -> None:
    plan = plan_of(STORY)
    assert [s.frames for s in plan.segments] == [24, 33, 24, 24, 24]
    assert [s.start for s in plan.segments] == [0, 24, 57, 81, 105]
    assert [s.latents for s in plan.segments] == [8, 11, 8, 8, 8]
    assert [s.blended for s in plan.segments] == [False, True, False, True, True]
    assert [s.cast for s in plan.segments] == [("a fox",), ("a fox",), (), (), ()]
    # A scene that names no place is where the one before was.
    assert [(s.after, s.transition, s.overlap, s.strength) for s in plan.seams] == [
        (1, "dissolve", 0, 1.0),
        (2, "cut", 0, 1.0),
        (3, "continue", 2, 1.0),
        (4, "continue", 2, 1.0),
    ]
    assert [s.lead for s in plan.segments] == [1, 2, 1, 2, 2]
    assert plan.latents == 8 + 11 + 8 + 8 + 8 + 8
    assert (plan.frames, plan.seconds, plan.forwards) == (129, 10.75, 5 * MINI.steps + len(LOOKED_AT))
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


CAST = """
cast: {first: {name: a fox}, second: {name: a dog}}
scenes:
  - ["{first} in the park", sits]
  - ["{first} in the park", walks]
  - ["{second} at home", sleeps]
  - ["{first} and {second} at home", they play]
  - {scene: "{second} and {first} at the lake", action: they swim, transition: cut}
  - [a bus, drives]
  - {scene: "{second} in the park", action: sits, transition: continue}
"""


def portrait(source: int, name: str) -> Given:
    return Given(source, name, first=0, at=0, count=1, strength=1.0)


def tail(source: int, first: int, count: int = 2, at: int = 0) -> Given:
    return Given(source, None, first, at, count, 1.0)


SHOTS = ("portraits=shots",)  # as of models that were not taught both, one behind the other


def test_a_lead_has_the_end_of_the_shot_or_the_characters_as_first_shown_or_both() -> None:
    plan = plan_of(CAST, method=SHOTS)
    transitions = ["continue", "dissolve", "continue", "cut", "dissolve", "continue"]
    assert [seam.transition for seam in plan.seams] == transitions
    assert [plan.given(s) for s in plan.segments] == [
        (),
        (tail(0, 1 + 8 - 2),),
        (),  # of the dog nothing is known yet
        (portrait(0, "a fox"), portrait(2, "a dog"), tail(2, 1 + 8 - 2, at=1)),  # the fox comes in
        (portrait(0, "a fox"), portrait(2, "a dog")),
        (),
        (portrait(2, "a dog"), tail(5, 1 + 8 - 2, at=1)),  # whatever the two places are
    ]
    assert [s.lead for s in plan.segments] == [1, 2, 1, 3, 2, 1, 3]
    assert [plan.sources(s) for s in plan.segments] == [(), (0,), (), (0, 2), (0, 2), (), (2, 5)]


def test_portraits_in_all_scenes_stand_before_the_end_of_a_shot_too() -> None:
    plan = plan_of(COMES)
    assert plan.settings.method.portraits == MINI.portraits == "scenes"
    assert plan.given(plan.segments[1]) == (portrait(0, "a fox"), tail(0, 1 + 8 - 2, at=1))
    assert [s.lead for s in plan.segments] == [1, 3, 2]
    # Behind a portrait, a decoder would make other pictures of the end of the shot than it was.
    assert [plan.undecoded(s) for s in plan.segments] == [0, 1, 0]
    assert [plan.unseen(s) for s in plan.segments] == [1, 4, 4]
    wan = plan_of(COMES, model="wan-14b")
    assert wan.settings.method.portraits == "shots"
    assert "portraits" not in wan.settings.facts["method"]  # films of before keep their keys
    asked = plan_of(COMES, model="wan-14b", method=("portraits=scenes",))
    assert asked.settings.facts["method"]["portraits"] == "scenes"
    assert [s.lead for s in asked.segments] == [1, 1 + wan.seams[0].overlap, 2]
    # What goes on from a picture alone has no lead for them.
    pictures = replace(plan, spec=replace(plan.spec, pictures=True)).settled([None] * 2)
    assert [s.lead for s in pictures.segments] == [1, 2, 2]
    unlike = replace(plan, spec=replace(plan.spec, first_alike=False)).settled([None] * 2)
    for other in (pictures, unlike):
        assert [other.undecoded(s) for s in other.segments] == [0, 0, 0]


def test_where_a_first_frame_is_unlike_others_no_end_of_a_shot_stands_there() -> None:
    plan = plan_of(CAST)
    plan = replace(plan, spec=replace(plan.spec, first_alike=False)).settled([None] * 6)
    assert [s.lead for s in plan.segments] == [1, 3, 1, 3, 2, 1, 3]
    assert plan.given(plan.segments[1]) == (portrait(0, "a fox"), tail(0, 1 + 8 - 2, at=1))
    assert plan.sources(plan.segments[3]) == (0, 2)
    alone = replace(plan_of(CAST, without=frozenset({"identity"})), spec=plan.spec).settled([None] * 6)
    assert alone.given(alone.segments[1]) == (tail(0, 1 + 8 - 2, at=1),)


def test_the_end_of_a_segment_lies_behind_its_own_lead() -> None:
    pairs = "scenes:\n" + "  - [the park, it sits]\n" * 2 + "  - [the park, it walks]\n"
    plan = plan_of(pairs, without=frozenset({"identity"}))
    assert [s.lead for s in plan.segments] == [1, 2, 2]
    assert [plan.given(s) for s in plan.segments] == [(), (tail(0, 1 + 8 - 2),), (tail(1, 2 + 8 - 2),)]
    alike = plan.settled([1.0, 0.0])  # of which the first needs one frame alone
    assert [s.lead for s in alike.segments] == [1, 1, 2]
    assert [alike.given(s) for s in alike.segments] == [(), (tail(0, 8, 1),), (tail(1, 1 + 8 - 2),)]


@pytest.mark.parametrize(
    ("without", "looks"),
    [(frozenset(), 2 * len(LOOKED_AT)), ({"identity"}, 0), ({"all"}, 0)],
    ids=str,
)
def test_evaluations_that_find_a_character_are_counted_once(without: frozenset[str], looks: int) -> None:
    """Of fox and dog; in a film of which a part is there, those that the rest takes."""
    plan = plan_of(CAST, without=frozenset(without))
    assert plan.forwards == len(plan.segments) * MINI.steps + looks
    assert plan.looks(plan.segments[:1]) == 0
    whole, alone = plan.estimated_seconds, plan_of(CAST, without=frozenset({"identity"})).estimated_seconds
    assert whole is not None
    assert alone is not None
    assert (whole > alone) is (looks > 0)


def test_each_of_two_who_are_first_shown_together_has_a_portrait() -> None:
    text = CAST.replace('"{first} in the park", sits', '"{first} and {second} in the park", they sit')
    plan = plan_of(text)
    assert plan.given(plan.segments[2]) == (portrait(0, "a dog"),)
    assert plan.given(plan.segments[4]) == (portrait(0, "a fox"), portrait(0, "a dog"))


COMES = """
cast: {first: {name: a fox}, second: {name: a dog}}
scenes:
  - ["{first} in the park", sits]
  - ["{first} in the park", "{second} comes to {first}"]
  - ["{second} at home", sleeps]
"""


def test_who_comes_into_a_shot_is_known_by_the_middle_of_that_scene() -> None:
    """It begins with the end of the one before, in which nobody has come yet."""
    plan = plan_of(COMES, method=SHOTS)
    assert plan.given(plan.segments[1]) == (tail(0, 1 + 8 - 2),)
    middle = Given(1, "a dog", first=2 + 3, at=0, count=1, strength=1.0)
    assert plan.given(plan.segments[2]) == (middle,)
    unlike = replace(plan, spec=replace(plan.spec, first_alike=False)).settled([None] * 2)
    assert unlike.given(unlike.segments[2]) == (portrait(1, "a dog"),)  # a frame of its own comes first
    pictures = replace(plan, spec=replace(unlike.spec, pictures=True)).settled([None] * 2)
    assert pictures.given(pictures.segments[2]) == (replace(middle, anew=True),)


def test_who_is_in_a_scene_may_be_said_in_either_prompt_and_without_an_article() -> None:
    text = (
        'cast: {first: {name: a fox}}\nscenes:\n  - [the park, "{first} sits"]\n  - [home, the Fox sleeps]\n'
    )
    plan = plan_of(text)
    assert [s.cast for s in plan.segments] == [("a fox",)] * 2
    assert plan.given(plan.segments[1]) == (portrait(0, "a fox"),)
    # Without a cast, actions that begin alike have a subject.
    plan = plan_of("scenes:\n  - [the park, a fox sits]\n  - [home, a fox sleeps]\n  - [a fox in a bus, x]\n")
    assert [s.cast for s in plan.segments] == [(), (), ()]
    plan = plan_of("scenes:\n  - [the park, a fox sits]\n  - [home, a fox sleeps]\n")
    assert plan.given(plan.segments[1]) == (portrait(0, "a fox"),)


# options: what is given, as (source, with names?) of each segment of `CAST`; the transitions
WAYS: dict[str, tuple[dict[str, object], list[list[tuple[int, bool]]], str]] = {
    "without identity": (
        {"without": frozenset({"identity"})},
        [[], [(0, False)], [], [(2, False)], [], [], [(5, False)]],
        "continue dissolve continue cut dissolve continue",
    ),
    "continuation": (
        {"method": ("blending=continuation", "identity=false")},
        [[], [(0, False)], [(1, False)], [(2, False)], [], [(4, False)], [(5, False)]],
        "continue continue continue cut continue continue",
    ),
    "crossfade": (
        {"method": ("blending=crossfade",)},
        [[]] * 7,
        "dissolve dissolve dissolve cut dissolve dissolve",
    ),
    "published": (
        {"method": ("blending=published",)},
        [[]] * 7,
        "continue dissolve continue cut dissolve continue",
    ),
    "none": ({"without": frozenset({"twb"})}, [[]] * 7, "cut cut cut cut cut cut"),
    "strength 0": (
        {"method": ("strength=0",)},
        [[]] * 7,
        "continue dissolve continue cut dissolve continue",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_other_ways_to_blend_give(way: str) -> None:
    options, expected, transitions = WAYS[way]
    plan = plan_of(CAST, **options)
    found = [[(given.source, given.name is not None) for given in plan.given(s)] for s in plan.segments]
    assert found == expected
    assert " ".join(seam.transition for seam in plan.seams) == transitions
    assert [s.lead for s in plan.segments] == [2 if given else 1 for given in expected]
    sources = [tuple(sorted({source for source, _ in given})) for given in expected]
    if way == "published":  # into their first noise, but for a cut's
        sources = [(), (0,), (1,), (2,), (), (4,), (5,)]
    assert [plan.sources(s) for s in plan.segments] == sources


SCENE = st.tuples(
    st.sampled_from(["", "{first} ", "{second} ", "{first} and {second} "]),
    st.sampled_from(["in the park", "at home", "rests"]),
    st.integers(1, MINI.max_latents - 2),
    st.sampled_from(["blend", "continue", "dissolve", "cut"]),
)
BLENDINGS = ("lead", "continuation", "crossfade", "published", "none")


def drawn_plan(scenes: list[tuple[str, str, int, str]], options: list[str]) -> Plan:
    lines = [
        f'  - {{scene: "{who}{where}", action: x, seconds: {count / 4}, transition: {transition}}}'
        for who, where, count, transition in scenes
    ]
    cast = "cast: {first: {name: a fox}, second: {name: a dog}}\nscenes:\n"
    return plan_of(cast + "\n".join(lines), method=tuple(options))


@given(
    st.lists(SCENE, min_size=1, max_size=6),
    st.sampled_from(BLENDINGS),
    st.booleans(),
    st.booleans(),
    st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=5, max_size=5),
)
def test_whatever_the_story_a_lead_fits_and_holds_what_is_finished(
    scenes: list[tuple[str, str, int, str]],
    blending: str,
    identity: bool,
    alike: bool,
    similar: list[float | None],
) -> None:
    drawn = drawn_plan(scenes, [f"blending={blending}", f"identity={str(identity).lower()}"])
    drawn = replace(drawn, spec=replace(drawn.spec, first_alike=alike)).settled([None] * len(drawn.seams))
    plan = drawn.settled(similar[: len(scenes) - 1])
    for segment in plan.segments:
        assert segment.lead + segment.latents <= plan.spec.max_latents
        given = plan.given(segment)
        seam = plan.seam(segment)
        overlap = seam.overlap if seam else 0
        named = any(part.name is not None for part in given)
        assert segment.lead == max(1, overlap) + int(named or (overlap > 0 and not alike))
        assert overlap == sum(part.count for part in given if part.name is None)
        for part in given:
            source = plan.segments[part.source]
            assert part.source < segment.index
            assert part.first + part.count <= source.lead + source.latents
            assert part.name is None or (part.name in segment.cast and part.name in source.cast)
            assert not any(part.name in s.cast for s in plan.segments[: part.source])
            if part.name is not None:
                assert (part.at, part.count) == (0, 1)
                # No frame that the end of the scene before fills: who comes is not there yet.
                whole = [one for one in plan.given(source) if one.name is None]
                assert not any(one.at <= part.first < one.at + one.count for one in whole)
            if part.name is None:  # the end of the one before, to its last frame, at the lead's end
                assert part.source == segment.index - 1
                assert part.first + part.count == source.lead + source.latents
                assert (part.at, part.at + part.count) == (segment.lead - part.count, segment.lead)
        names = [part.name for part in given]
        assert len(names) == len(set(names))
        # What was planned before actions were compared needs the same of the same segments.
        assert plan.sources(segment) == drawn.sources(drawn.segments[segment.index])
    assert plan.latents == sum(s.lead + s.latents for s in plan.segments)


def test_similar_actions_share_a_shorter_overlap() -> None:
    plan = plan_of(STORY, method=("strength=0.8",)).settled([0.25, 0.5, 0.5, None])
    assert [(s.overlap, s.similarity) for s in plan.seams] == [(0, None), (0, None), (1, 0.5), (2, None)]
    assert [s.strength for s in plan.seams] == [0.8] * 4
    assert [s.lead for s in plan.segments] == [1, 2, 1, 1, 2]
    twins = plan_of(STORY).settled([1.0] * 4)
    assert [(s.overlap, s.strength) for s in twins.seams] == [(0, 1), (0, 1), (1, 1), (1, 1)]
    strangers = plan_of(STORY).settled([0.0] * 4)
    assert [s.overlap for s in strangers.seams] == [s.overlap for s in plan_of(STORY).seams]


def test_an_overlap_is_what_is_asked_for() -> None:
    pairs = "scenes:\n" + "  - [a, b]\n" * 3
    assert [s.overlap for s in plan_of(pairs).seams] == [MINI.overlap] * 2
    longest = MINI.max_latents - 1 - 8
    plan = plan_of(pairs, method=(f"overlap={longest}", *SHOTS))
    assert [s.overlap for s in plan.seams] == [longest] * 2
    assert [s.lead for s in plan.segments] == [1, longest, longest]
    for other in ("blending=published", "strength=0"):
        plan = plan_of(pairs, method=(f"overlap={longest}", other))
        assert [s.overlap for s in plan.seams] == [0, 0]
        assert [s.lead for s in plan.segments] == [1, 1, 1]


def test_a_long_scene_leaves_less_for_an_overlap_and_a_short_one_before_it_has_less() -> None:
    most = (MINI.max_latents - 2) / 4
    text = f"scenes:\n  - [a, b]\n  - {{scene: a, action: c, seconds: {most}}}\n  - [a, d]\n"
    assert [s.overlap for s in plan_of(text).seams] == [1, MINI.overlap]
    short = "scenes:\n  - {scene: a, action: b, seconds: 0.25}\n  - [a, c]\n"
    assert [s.overlap for s in plan_of(short).seams] == [1]
    for story, legal in ((text, 1), (short, 1)):
        with pytest.raises(UsageError, match=f"an overlap of 2 latent frames is longer .*: 1 to {legal}$"):
            plan_of(story, method=("overlap=2",))


@given(st.integers(-3, MINI.max_latents + 3))
def test_a_scene_leaves_two_latent_frames_for_its_lead(count: int) -> None:
    assert (seconds_problem(MINI, count / 4) is None) == (1 <= count <= MINI.max_latents - 2)


def test_the_command_line_changes_the_storys_method() -> None:
    text = STORY + "render: {method: {lead_noise: 0.2, beta: 0.5}}\n"
    method = plan_of(text, method=("lead_noise=0.3", "weighting=false", "strength=1")).settings.method
    expected = Method(lead_noise=0.3, beta=0.5, weighting=False, strength=1.0, emphasis=MINI.emphasis)
    its = {"identity_weight": MINI.identity_weight, "portraits": MINI.portraits}
    assert method == expected.model_copy(update=its)
    assert isinstance(method.strength, float)


@pytest.mark.parametrize(
    ("parts", "off"),
    [
        ({"dipw"}, {"weighting": False}),
        ({"sar"}, {"similarity": False}),
        ({"twb"}, {"blending": "none"}),
        ({"identity"}, {"identity": False}),
        ({"dipw", "sar"}, {"weighting": False, "similarity": False}),
        ({"all"}, {"weighting": False, "similarity": False, "blending": "none", "identity": False}),
    ],
    ids=lambda value: " ".join(sorted(value)) if isinstance(value, set) else "",
)
def test_parts_can_be_left_out(parts: set[str], off: dict[str, object]) -> None:
    method = plan_of(STORY, without=frozenset(parts), method=("weighting=true",)).settings.method
    switches = {"weighting": True, "similarity": True, "blending": "lead", "identity": True} | off
    assert {key: getattr(method, key) for key in switches} == switches


def test_whether_and_how_prompts_are_weighed_is_the_models_choice_unless_somebody_says() -> None:
    simple = STORY.replace(", seconds: 2.75", "")
    for name in ("mini", "mochi"):  # neither does; see mini/README.md
        method = plan_of(simple, model=name).settings.method
        assert (method.weighting, method.emphasis) == (MODELS[name].weighting, MODELS[name].emphasis)
    assert plan_of(STORY, without=frozenset({"dipw"})).settings.method.weighting is False
    for value, text in ((True, "true"), ("texts", "texts"), (False, "false")):
        story = simple + f"render: {{method: {{weighting: {text}, emphasis: 3}}}}\n"
        for model in ("mini", "mochi"):
            method = plan_of(story, model=model).settings.method
            assert (method.weighting, method.emphasis) == (value, 3)


def test_how_often_portraits_count_is_the_models_choice_and_refused_where_they_cannot() -> None:
    simple = STORY.replace(", seconds: 2.75", "")
    assert plan_of(simple).settings.method.identity_weight == MINI.identity_weight == 1
    chosen = plan_of(simple, method=("identity_weight=3",)).settings.method
    assert chosen.identity_weight == 3
    assert plan_of(simple, model="wan-14b").settings.method.identity_weight is None
    assert "identity_weight" not in plan_of(simple, model="wan-14b").settings.facts["method"]
    with pytest.raises(UsageError, match=r"wan-14b cannot weigh .*; leave identity_weight out"):
        plan_of(simple, model="wan-14b", method=("identity_weight=2",))
    with pytest.raises(ScriptError) as caught:  # of the story, with its place
        plan_of(f"{simple}render: {{method: {{identity_weight: 2}}}}\n", model="wan-14b")
    assert "wan-14b cannot weigh" in str(caught.value)


def test_settings_that_belong_together_are_refused_with_what_to_do() -> None:
    with pytest.raises(UsageError, match="must sum to 1") as caught:
        plan_of(STORY, method=("alignment=1",))
    assert caught.value.remedy == "Set all of them."


# what is set: words of the message
ILLEGAL = {
    "overlap: 1.5": "overlap must be a whole number from 1 to 64, not 1.5",
    "emphasis: 0.5": "emphasis must be a number from 1 to 100, not 0.5",
    "identity_weight: 0": "identity_weight must be a number from 1 to 100, not 0",
    "lead_noise: -1": "lead_noise must be a number from 0 to 1, not -1",
    "identity: 1": "identity must be true or false, not 1",
    "gamma: 0.7": "gamma must be a number from 0 to 0.5, not 0.7",
    "gamma: .nan": "gamma must be a number from 0 to 0.5, not nan",
    "beta: .nan": "beta must be a number from 0 to 1, not nan",
    "inertia: 1": "inertia must be a number from 0 to below 1, not 1",
    "temperature: 0": "temperature must be a number above 0 to 100, not 0",
    "temperature: .inf": "temperature must be a number above 0 to 100, not inf",
    "strength: much": "strength must be a number from 0 to 1, not 'much'",
    "strength: true": "strength must be a number from 0 to 1, not ",
    "weighting: 1": "weighting must be true or false or texts, not 1",
    "blending: fade": "blending must be one of lead, continuation, crossfade, published, none, not 'fade'",
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
    assert head.startswith((f"{story}:6:", f"{story}:5:"))
    assert ILLEGAL[setting] in head
    if setting == "gama: 1":
        assert "unknown key 'gama'; allowed: weighting, emphasis, blending" in head

    story.write_text(pairs)
    assert run(["render", str(story), "--out", str(out), "--method", setting.replace(": ", "=")]) == 2
    err = capsys.readouterr().err
    assert ILLEGAL[setting] in err
    if setting == "gama: 1":
        assert "KEY=VALUE with one of: weighting, emphasis, blending" in err
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
    assert [s.frames for s in story.segments] == [12, 33, 12, 12, 12]
    line = plan_of(text, seed=0, steps=7, guidance=1.0, seconds=1.5)
    assert (line.settings.seed, line.settings.steps, line.settings.guidance) == (0, 7, 1)
    assert [s.frames for s in line.segments] == [18, 33, 18, 18, 18]
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


def test_what_has_no_guidance_is_estimated_at_half() -> None:
    """Where none is asked for, and in the steps in which a preset leaves it out."""
    own, none, fast = (plan_of(PLAIN, **how) for how in ({}, {"guidance": 1.0}, {"speed": "fast"}))
    seconds = [plan.estimated_seconds or 0 for plan in (own, none, fast)]
    assert seconds[1] == pytest.approx(seconds[0] / 2)
    costs = [1.0 if guided else 0.5 for guided in fast.pace.guided_when_computed]
    assert 0.5 in costs
    assert seconds[2] == pytest.approx(seconds[0] / MINI.steps * sum(costs))


def test_a_negative_prompt_is_the_lines_else_the_storys_else_the_models() -> None:
    own = plan_of(PLAIN, model="ltx-2b")
    assert own.settings.negative == MODELS["ltx-2b"].negative != ""
    text = PLAIN + "render: {negative: ' dull,\\n grey '}\n".replace("'", '"')
    story = plan_of(text, model="ltx-2b")
    assert story.settings.negative == "dull, grey"
    assert plan_of(text, model="ltx-2b", negative="night").settings.negative == "night"
    for nothing in ("", "  "):
        assert plan_of(text, model="ltx-2b", negative=nothing).settings.negative == ""
    written = plan_of(PLAIN + "render: {negative: ''}\n", model="ltx-2b")
    assert written.settings.negative == ""


def test_what_only_guidance_uses_is_no_setting_without_it() -> None:
    plain = plan_of(PLAIN, model="ltx-13b", guidance=1.0).settings
    assert (plain.negative, plain.guidance_rescale) == ("", 0)
    guided = plan_of(PLAIN, model="ltx-13b", guidance=2.0).settings
    assert (guided.negative, guided.guidance_rescale) == (MODELS["ltx-13b"].negative, 0.7)


def test_films_without_a_negative_prompt_and_a_shift_are_recorded_as_ever() -> None:
    """And so is their story: its hash is that of a story of before."""
    plan = plan_of(PLAIN)
    assert set(plan.settings.facts) == {
        *("seed", "width", "height", "steps", "guidance", "guidance_2", "method", "speed"),
    }
    assert not {"negative", "shift"} & plan.story["render"].keys()
    used = plan_of(PLAIN, model="wan-14b").settings.facts
    assert (used["negative"], used["shift"]) == (MODELS["wan-14b"].negative, 3.0)
    assert "guidance_rescale" not in used


def test_a_negative_prompt_is_counted_like_any_prompt() -> None:
    words = "a " * 128
    with pytest.raises(UsageError, match=r"the negative prompt has 129 tokens at the least, model ltx-2b"):
        plan_of(PLAIN, model="ltx-2b", negative=words)
    text = PLAIN + f"render: {{model: ltx-2b, negative: {words.strip()}}}\n"
    with pytest.raises(ScriptError, match="the negative prompt has") as caught:
        plan_of(text)
    (fault,) = caught.value.faults
    assert fault.line == len(PLAIN.splitlines()) + 1
    doubtful = plan_of(PLAIN, model="ltx-2b", negative="incomprehensibilities " * 30)
    assert [note for note in uncounted_prompts(doubtful) if "negative" in note] == [
        "the negative prompt may be too long: model ltx-2b reads 128 tokens, and it has 166 by an estimate "
        "(the model's tokenizer is not here)"
    ]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"negative": "a {first}"}, "a negative prompt has no placeholders"),
        ({"negative": "x" * 2001}, "at most 2000"),
        ({"shift": 3.0}, "model mini takes no shift"),
        ({"shift": 0.0, "model": "wan-14b"}, "greater than 0"),
        ({"shift": float("inf"), "model": "wan-14b"}, "shift"),
    ],
)
def test_negative_prompts_and_shifts_that_cannot_be_are_refused(
    overrides: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        plan_of(PLAIN, **overrides)
    said = ", ".join(f"{key}: {value!r}".replace("inf", ".inf") for key, value in overrides.items())
    with pytest.raises(ScriptError):
        plan_of(f"{PLAIN}render: {{{said}}}\n")


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


@given(st.floats(0.001, 700), st.sampled_from(sorted(MODELS)))
def test_the_nearest_lengths_are_legal(seconds: float, name: str) -> None:
    problem = seconds_problem(MODELS[name], seconds)
    if problem is not None:
        for word in problem.rsplit(": ", 1)[1].split(" or "):  # thirds of a second too
            assert seconds_problem(MODELS[name], float(word)) is None


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
        ({"method": ("overlap",)}, UsageError, "KEY=VALUE"),
        ({"without": frozenset({"clip"})}, UsageError, "Known parts: dipw, twb, identity, sar, all"),
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
