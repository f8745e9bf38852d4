from __future__ import annotations

from collections.abc import Iterator

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storyreel.evaluation.clips import clips

FILM = torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)


def in_chunks(frames: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    for size in sizes:
        yield frames[:size]
        frames = frames[size:]
    yield frames


@given(
    st.lists(st.integers(1, 9), max_size=6),
    st.lists(st.tuples(st.integers(0, 39), st.integers(1, 12)), min_size=1, max_size=6),
)
def test_a_clip_is_the_films_own_slice(sizes: list[int], lengths: list[tuple[int, int]]) -> None:
    spans = [(start, min(40, start + length)) for start, length in lengths]
    found = dict(clips(in_chunks(FILM, sizes), spans))
    assert sorted(found) == list(range(len(spans)))
    for position, (start, stop) in enumerate(spans):
        assert torch.equal(found[position], FILM[start:stop])


def test_it_holds_only_what_is_still_wanted_and_stops_at_the_last() -> None:
    read: list[int] = []

    def one_by_one() -> Iterator[Tensor]:
        for index in range(40):
            read.append(index)
            yield FILM[index : index + 1].clone()

    stream = clips(one_by_one(), [(0, 2), (20, 23)])
    assert len(next(stream)[1]) == 2
    assert len(read) == 2
    _, clip = next(stream)
    assert clip.untyped_storage().nbytes() <= 4 * FILM[0].numel()  # not the 20 frames before
    assert list(stream) == []
    assert len(read) == 23


def test_what_lies_beyond_the_end_is_not_made_up() -> None:
    assert [position for position, _ in clips(iter([FILM]), [(38, 41), (0, 40)])] == [1]
