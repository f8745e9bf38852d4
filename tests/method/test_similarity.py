from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from storyreel.method.similarity import (
    action_similarity,
    is_named,
    place_words,
    same_place,
    seam_overlap,
    shared_start,
    verb_phrase,
    without_names,
    word_spans,
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
    ("prompt", "names", "left"),
    [
        ("a fox and a dog sit", ("a fox",), "and a dog sit"),
        ("the Fox and a dog sit", ("a fox", "a dog"), "the and sit"),  # with another article, too
        ("a foxglove", ("a fox",), "a foxglove"),
        ("a fox", ("a fox",), ""),
        ("a fox cub and a fox", ("a fox", "a fox cub"), "and"),
        ("a fox cub", ("a fox",), "cub"),
        ("two  foxes\tsit", (), "two foxes sit"),
        ("a (red) fox runs", ("a (red) fox",), "runs"),
        ("a fox's tail", ("a fox",), "'s tail"),
    ],
)
def test_names_are_left_out_wherever_they_stand(prompt: str, names: tuple[str, ...], left: str) -> None:
    assert without_names(prompt, names) == left


@pytest.mark.parametrize(
    ("name", "prompt", "named"),
    [
        ("a fox", "a fox sits", True),
        ("a fox", "The FOX sits", True),
        ("a fox", "foxes sit", False),
        ("a fox", "it sits", False),
        ("a fox", "  a   bus  ", False),  # blanks alone name nobody
        ("Ann", "a man sits", False),
        ("Ann", "Ann's cat", True),
    ],
)
def test_who_is_named(name: str, prompt: str, named: bool) -> None:
    assert is_named(name, prompt) == named


letters = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=8)
sentences = st.lists(letters, min_size=0, max_size=6).map(" ".join)


@given(sentences, st.lists(letters, min_size=1, max_size=3).map(" ".join), sentences)
def test_a_name_between_blanks_is_found_and_left_out(before: str, name: str, after: str) -> None:
    assert is_named(name, f"{before} {name} {after}")
    left = without_names(f"{before} {name} {after}", (name,))
    assert len(left) < len(f"{before} {name} {after}".strip())
    assert without_names(before, ()) == before


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("a fox sits down", ["sits", "down"]),
        ("A fox, the fox runs", ["the", "runs"]),
        ("a fox", []),
        ("it doesn't well-nigh run", ["it", "doesn't", "well-nigh", "run"]),
    ],
)
@pytest.mark.parametrize("before", ["", "a fox in the park. ", "a fox sits down. "])
def test_where_a_parts_words_stand(before: str, part: str, words: list[str]) -> None:
    spans = word_spans(part, len(before), ("a fox",))
    assert [(before + part)[begin:end] for begin, end in spans] == words
    assert all(begin >= len(before) for begin, _ in spans)


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        ("a fox is walking on the streets of Rome", {"street", "rome"}),
        ("a fox in the park", {"park"}),
        ("a fox sits there", {"sit"}),
        ("", set()),
        ("a fox is sitting", set()),
        ("A café, at No. 5!", {"café", "no"}),
        ("on the bus", {"bus"}),  # which is no plural: too short
    ],
)
def test_what_may_name_a_place(scene: str, words: set[str]) -> None:
    assert place_words(scene, ("a fox",)) == words


@pytest.mark.parametrize(
    ("earlier", "later", "same"),
    [
        ("a fox in the park", "a dog is in the park", True),
        ("a fox in Central Park", "a fox lies in the park", True),  # half of the shorter one's words
        ("a fox in the park", "a fox on the street", False),
        ("a fox on the streets of Paris", "a fox on a street in Rome", True),
        ("a fox in the big old park", "a fox in the small new park", False),  # a third
        ("a fox in the park", "a fox is walking", True),  # no place: where it was
        ("a fox in the park", "a fox", True),
        ("inside the subway train", "a fox in the subway train", True),
    ],
)
def test_which_scenes_are_set_at_one_place(earlier: str, later: str, same: bool) -> None:
    names = ("a fox", "a dog")
    assert same_place(earlier, later, names) == same
    assert same_place(later, earlier, names) == same


@given(sentences, sentences)
def test_a_place_is_where_it_is(one: str, other: str) -> None:
    assert same_place(one, one, ())
    assert same_place(one, other, ()) == same_place(other, one, ())
    assert same_place(one, f"{one} {other}", ())  # to say more of a place is not to leave it
    assert same_place(one, "", ())
    assert place_words(f"  {one}\n", ()) == place_words(one, ())


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


@given(st.integers(1, 64), shares, shares)
def test_the_more_alike_the_shorter(longest: int, one: float, other: float) -> None:
    assert seam_overlap(longest, 0) == longest
    assert seam_overlap(longest, 1) == 1
    shorter, longer = (seam_overlap(longest, max(one, other)), seam_overlap(longest, min(one, other)))
    assert 1 <= shorter <= longer <= longest


def test_overlaps_by_hand() -> None:
    assert [seam_overlap(8, share) for share in (0, 0.25, 0.5, 0.9, 0.95, 1)] == [8, 6, 4, 1, 1, 1]
    assert seam_overlap(1, 0.0) == 1
