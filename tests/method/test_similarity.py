from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from storyreel.method.similarity import (
    action_similarity,
    seam_overlap,
    seam_strength,
    shared_start,
    verb_phrase,
)

shares = st.floats(0, 1)


@pytest.mark.parametrize(
    ("action", "names", "phrase"),
    [
        ("a corgi dog is sitting", ("a corgi dog",), "is sitting"),
        ("A Corgi Dog is sitting", ("a corgi dog",), "is sitting"),
        ("a fox waves at a red panda", ("a fox", "a red panda"), "waves at"),
        # The longer name goes first, or half of it would stay.
        ("a fox cub is sitting", ("a fox", "a fox cub"), "is sitting"),
        # A name is a word of its own.
        ("a cat sees a catfish", ("a cat",), "sees a catfish"),
        ("scat, cat", ("cat",), "scat,"),
        ("Mr. X (the fox) runs", ("Mr. X (the fox)",), "runs"),
        ("a fox", ("a fox",), "a fox"),
        ("is sitting", (), "is sitting"),
    ],
)
def test_the_verb_phrase_has_no_subject(action: str, names: tuple[str, ...], phrase: str) -> None:
    assert verb_phrase(action, names) == phrase


@pytest.mark.parametrize(
    ("sentences", "start"),
    [
        (("a fox is sitting", "a fox is walking"), "a fox"),
        (("A fox sits", "a fox walks", "a Fox runs"), "A fox"),
        (("a fox sits", "a dog sits"), ""),  # an article is no subject
        (("The fox", "the fox"), "The fox"),
        (("she sits", "he sits"), ""),
        (("a fox sits", "a fox"), "a fox"),
        (("a fox sits",), ""),
        ((), ""),
    ],
)
def test_the_shared_start_is_the_subject(sentences: tuple[str, ...], start: str) -> None:
    assert shared_start(sentences) == start


def test_similarity_runs_from_nothing_in_common_to_the_same() -> None:
    typical = torch.tensor([5.0, 5.0, 5.0])
    east, north = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 0.0])

    def similarity(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(action_similarity(typical + a, typical + b, typical))

    assert similarity(east, east) == pytest.approx(1)
    assert similarity(east, 7 * east) == pytest.approx(1)  # the direction counts
    assert similarity(east, -east) == 0
    assert similarity(east, north) == 0
    assert similarity(east, east + north * (2 / 3)) == pytest.approx(0.5**0.5)
    # Without the typical, all sentences would look alike.
    assert float(action_similarity(typical + east, typical + north, torch.zeros(3))) > 0.8
    assert similarity(torch.zeros(3), east) == 0  # and no NaN


@given(shares, shares)
def test_the_more_alike_the_weaker(strength: float, similarity: float) -> None:
    assert seam_strength(strength, 0) == strength
    assert seam_strength(strength, 1) == 0
    assert seam_strength(strength, similarity) == pytest.approx(strength - strength * similarity)


@given(st.integers(1, 64), shares, shares)
def test_the_more_alike_the_shorter(longest: int, one: float, other: float) -> None:
    assert seam_overlap(longest, 0) == longest
    assert seam_overlap(longest, 1) == 1
    shorter, longer = (seam_overlap(longest, max(one, other)), seam_overlap(longest, min(one, other)))
    assert 1 <= shorter <= longer <= longest


def test_overlaps_by_hand() -> None:
    assert [seam_overlap(8, share) for share in (0, 0.25, 0.5, 0.9, 0.95, 1)] == [8, 6, 4, 1, 1, 1]
    assert seam_overlap(1, 0.0) == 1
