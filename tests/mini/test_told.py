"""What a text tells of its clip, as a target of the text encoder."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch

from storyreel.mini.lessons import Example, sample_example, sample_text
from storyreel.mini.training.told import KINDS, OF_A_CHARACTER, UNKNOWN, ToldHead, told_by, told_loss
from storyreel.mini.world import Action, Character, Light, Look, Place, Telling, stage_clip

CLIP = stage_clip(
    Random(0),
    Place.CAPITOL,
    (Character.WOMAN, Character.MAN),
    Action.MEET,
    looks=(Look("red", "black hat"), Look("green")),
    light=Light.NIGHT,
)
TELLING = Telling(
    ("woman in a red dress and a black hat", "man"), "at night", (Look("red", "black hat"), Look(""))
)
EXAMPLE = Example(
    CLIP,
    "A woman in a red dress and a black hat is near the U.S. Capitol at night",
    "A woman in a red dress and a black hat meets a man",
    telling=TELLING,
)


def facts(text: str) -> dict[str, list[int]]:
    told = told_by(text, EXAMPLE).tolist()
    size = len(OF_A_CHARACTER)
    of = {who.name: told[i * size : (i + 1) * size] for i, who in enumerate(Character)}
    return of | {"rest": told[size * len(Character) :]}


def test_a_scene_tells_who_is_there_how_they_look_where_and_in_which_light() -> None:
    told = facts(EXAMPLE.scene)
    assert told["WOMAN"] == [1, 3, 2]
    assert told["MAN"] == [0, UNKNOWN, UNKNOWN]
    assert told["rest"] == [tuple(Place).index(Place.CAPITOL), UNKNOWN, 1 + tuple(Light).index(Light.NIGHT)]


def test_an_action_tells_no_place_and_an_unstated_look_is_open() -> None:
    told = facts(EXAMPLE.action)
    assert told["WOMAN"] == [1, 3, 2]
    assert told["MAN"] == [1, 0, 0]
    assert told["rest"] == [UNKNOWN, tuple(Action).index(Action.MEET), 0]


def test_no_words_tell_nothing() -> None:
    told = facts("")
    assert all(told[who.name] == [0, UNKNOWN, UNKNOWN] for who in Character)
    assert told["rest"] == [UNKNOWN, UNKNOWN, 0]


def test_every_lesson_can_be_read() -> None:
    rng = Random(5)
    for _ in range(300):
        example = sample_example(rng)
        text = sample_text(rng, example)
        told = told_by(text, example)
        assert told.shape == (len(KINDS),)
        assert all(fact == UNKNOWN or 0 <= fact < kinds for fact, kinds in zip(told, KINDS, strict=True))
        named = {who for who, fact in zip(Character, told[:: len(OF_A_CHARACTER)], strict=False) if fact == 1}
        assert named <= set(example.clip.cast)
        assert bool(named) == bool(text)


def test_a_lesson_without_its_telling_is_refused() -> None:
    with pytest.raises(ValueError, match="telling"):
        told_by(EXAMPLE.scene, replace(EXAMPLE, telling=None))


def test_words_that_do_not_count_are_not_read() -> None:
    torch.manual_seed(0)
    head = ToldHead(8)
    states, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True, True, False, False, False]])
    read = head(states, mask)
    assert [logits.shape for logits in read] == [(2, kinds) for kinds in KINDS]
    states[1, 2:] = 100
    for before, after in zip(read, head(states, mask), strict=True):
        assert torch.equal(before, after)


def test_what_a_text_leaves_unknown_costs_nothing() -> None:
    told = told_by(EXAMPLE.scene, EXAMPLE)[None]
    right = tuple(torch.full((1, kinds), -20.0) for kinds in KINDS)
    for logits, fact in zip(right, told[0].tolist(), strict=True):
        if fact != UNKNOWN:
            logits[0, fact] = 20
    assert float(told_loss(right, told)) < 1e-6
    wrong = tuple(-logits for logits in right)
    assert float(told_loss(wrong, told)) > 30
