"""Casts from the command line: one plot, many casts."""

from __future__ import annotations

from pathlib import Path

import pytest

from storyreel.errors import ScriptError, StoryreelError, UsageError
from storyreel.models.specs import find_model
from storyreel.story.casting import read_casting
from storyreel.story.planning import make_plan
from storyreel.story.schema import Story, parse_story
from storyreel.story.vocabulary import warnings_of

PLOT = """\
scenes:
  - ["{first} meets {second} in Central Park", "{first} wags {first.possessive} tail at the {second.noun}"]
"""
OWN = "cast:\n  first: {name: a man, possessive: his, noun: fellow}\n  second: {name: a cat}\n" + PLOT


def cast(text: str, *words: str) -> Story:
    return parse_story("plot.yaml", text.encode(), read_casting(words))


def action(story: Story) -> str:
    return story.filled(story.scenes[0].action)


def refused(text: str, *words: str) -> StoryreelError:
    with pytest.raises(StoryreelError) as caught:
        cast(text, *words)
    return caught.value


def test_a_plot_without_a_cast_is_a_story_once_it_has_one() -> None:
    assert isinstance(refused(PLOT), ScriptError)
    assert "there is no --cast first=NAME" in str(refused(PLOT))
    story = cast(PLOT, "first=a fox", "second=a panda", "first.possessive=her")
    assert action(story) == "a fox wags her tail at the panda"
    assert story.model_dump()["cast"]["first"] == {"name": "a fox", "possessive": "her", "noun": None}
    error = refused(PLOT, "first=a fox")
    assert isinstance(error, ScriptError)
    assert [fault.message.split(";")[0] for fault in error.faults] == [
        "unknown placeholder {second}",
        "unknown placeholder {second.noun}",
    ]


def test_a_new_name_is_somebody_new_and_a_field_alone_changes_the_old_one() -> None:
    assert action(cast(OWN)) == "a man wags his tail at the cat"
    new = cast(OWN, "first=a fox")
    assert action(new) == "a fox wags its tail at the cat"
    assert new.cast["first"].field("noun") == "fox"
    assert action(cast(OWN, "first.possessive=her")) == "a man wags her tail at the cat"
    assert action(cast(OWN, "second.noun=tiger")) == "a man wags his tail at the tiger"
    for words in (("first.possessive=her", "first=a fox"), ("first=a fox", "first.possessive=her")):
        assert action(cast(OWN, *words)) == "a fox wags her tail at the cat"
    assert action(cast(OWN, "first=a fox", "first.name=a dog")) == "a dog wags its tail at the cat"


def test_a_file_or_another_story_has_a_cast_too(tmp_path: Path) -> None:
    file = tmp_path / "a=cast.yaml"
    file.write_text("cast:\n  first: {name: a fox, possessive: her}\n  third: {name: a dog}\n")
    story = cast(OWN, str(file))
    assert action(story) == "a fox wags her tail at the cat"
    assert list(story.cast) == ["first", "second"]  # third has no part in this plot
    other = tmp_path / "other.yaml"
    other.write_text("title: Other\ncast: {second: {name: a panda}}\nscenes: [a park]\n")
    assert action(cast(OWN, str(other))) == "a man wags his tail at the panda"
    assert action(cast(OWN, str(other), "second=a dog")) == "a man wags his tail at the dog"
    file.write_text("cast:\n  first: {nam: a fox}\n")
    error = refused(OWN, str(file))
    assert isinstance(error, ScriptError)
    assert error.path == str(file)
    assert [(fault.line, fault.message) for fault in error.faults] == [
        (2, "the key 'name' is missing"),
        (2, "unknown key 'nam'; allowed: name, possessive, noun, picture"),
    ]
    file.write_text("scenes: [a park]\n")
    assert "no cast in it" in str(refused(OWN, str(file)))
    file.write_text("cast: {first: {name: a, name: b}}")
    assert "duplicate key" in str(refused(OWN, str(file)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("third=a dog", "no prompt mentions {third}"),
        ("third=a dog", "It knows first, second."),
        ("First=a dog", "names no member"),
        ("=a dog", "names no member"),
        ("first.age=3", "It has first.name, first.noun, first.possessive."),
        ("first=", "empty text"),
        ("first= ", "empty text"),
        ("first={second}", "no placeholders"),
        ("first=a\x1bb", "U+001B"),
        ("first=a\u202eb", "U+202E"),
        ("first=" + "x" * 2001, "at most 2000"),
        ("nowhere.yaml", "cannot be read: No such file"),
        (".", "is a folder"),
        ("a\0b", "no file can have that name"),
    ],
)
def test_what_is_refused_of_the_command_line(words: str, said: str) -> None:
    error = refused(OWN, words)
    assert isinstance(error, UsageError)
    assert said in str(error)
    assert error.remedy


def test_a_field_of_nobody_is_refused() -> None:
    error = refused(PLOT, "first.possessive=his", "second=a cat")
    assert "has no name for first" in str(error)
    assert "--cast first=NAME" in str(error)


def test_faults_of_the_storys_own_cast_stay() -> None:
    assert "expected a mapping" in str(refused("cast: [a]\n" + PLOT, "first=a fox"))
    assert "expected a mapping" in str(refused("cast: {first: a dog}\n" + PLOT, "first.noun=x"))
    assert "plot.yaml: 1 fault" in refused("- a\n", "first=a fox").message


def test_more_than_two_are_planned_as_two_are_and_warned_of_for_mini() -> None:
    text = (
        'scenes:\n  - ["{a}, {b} and {c} are in Central Park", "{a} is sitting"]\n'
        '  - ["{c} is in Central Park", "{c} is running"]\n  - ["{d} is in Central Park", "{d} is sitting"]\n'
        '  - ["{b} is in Central Park", "{b} is sitting"]\n'
    )
    story = cast(text, "a=a fox", "b=a panda", "c=a corgi dog", "d=a woman")
    plan = make_plan(story, "four")
    assert [segment.cast for segment in plan.segments] == [
        ("a fox", "a panda", "a corgi dog"),
        ("a corgi dog",),
        ("a woman",),
        ("a panda",),
    ]
    # Each is shown again as the first scene with them shows them.
    assert [given.source for given in plan.given(plan.segments[3]) if given.name == "a panda"] == [0]
    (many,) = [
        fault for fault in warnings_of(story, find_model("mini")) if "has 3 characters" in fault.message
    ]
    assert many.line == 2


def test_an_unknown_word_of_the_command_line_is_warned_of_where_the_story_mentions_it() -> None:
    story = cast(OWN, "first=a dragon")
    (fault,) = [fault for fault in warnings_of(story, find_model("mini")) if "dragon" in fault.message]
    assert (fault.line, fault.source[fault.column - 1 :][:7]) == (5, "{first}")
    own = cast(OWN.replace("a cat", "a dragon"), "first=a fox")
    (fault,) = [fault for fault in warnings_of(own, find_model("mini")) if "dragon" in fault.message]
    assert (fault.line, fault.source[fault.column - 1 :][:6]) == (3, "dragon")
