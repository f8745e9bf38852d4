"""Looking at a film: which of its frames are seen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storyreel.evaluation.encoders import Encoders
from storyreel.evaluation.films import Span
from storyreel.evaluation.frames import Scenes, picked
from storyreel.evaluation.weights import ALEXNET, DINO


@given(st.lists(st.integers(0, 19), max_size=60).map(sorted), st.lists(st.integers(1, 7), min_size=20))
def test_frames_are_picked_from_chunks_of_any_length(picks: list[int], lengths: list[int]) -> None:
    frames = torch.arange(20).view(-1, 1, 1, 1)
    chunks = frames.split([*lengths[:2], 20 - sum(lengths[:2])])
    found = list(picked(iter(chunks), picks))
    assert [int(value) for chunk in found for value in chunk] == picks
    assert all(len(chunk) for chunk in found)


def test_a_picture_that_stands_for_an_hour_is_not_held_as_often() -> None:
    """One picture of 20 times 43,200 would fill the memory."""
    chunks = torch.zeros(3, 1, 1, 3, dtype=torch.uint8), torch.ones(2, 1, 1, 3, dtype=torch.uint8)
    lengths = [len(chunk) for chunk in picked(iter(chunks), [0] * 43_200 + [3])]
    assert max(lengths) == 3
    assert sum(lengths) == 43_201


def test_what_is_behind_the_last_pick_is_not_read() -> None:
    chunks = iter([torch.zeros(3, 1, 1, 3), torch.zeros(3, 1, 1, 3)])
    assert len(list(picked(chunks, [0, 2]))) == 1
    assert len(list(chunks)) == 1


def test_of_a_shot_its_first_middle_and_last_pictures_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two scenes of 40 frames, each of which shows its number."""

    class Eye:
        def embed_prepared(self, frames: Tensor) -> Tensor:
            return frames[:, 0, 0, :1].float()

    monkeypatch.setattr(Encoders, "get", lambda self, name: Eye())
    spans = [Span("a", "b", 0, 40, False), Span("c", "d", 40, 80, True)]
    scenes = Scenes(spans, {}, Encoders(torch.device("cpu")), {DINO})
    for chunk in torch.arange(80, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 8, 8, 3).split(7):
        scenes.see(chunk)
    shots = [look.shot for look in scenes.looks if look.shot is not None]
    assert [shot.flatten().tolist() for shot in shots] == [[0, 21, 39], [40, 61, 79]]


@pytest.mark.parametrize("lengths", [(12, 40), (40, 12), (12, 9), (1, 3), (40, 40)])
def test_neighbours_of_any_lengths_are_compared(
    lengths: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every frame shows how far into its scene it is: pictures of one moment are no distance apart."""
    compared: list[int] = []

    class Distance:
        def between(self, first: Tensor, second: Tensor) -> Tensor:
            compared.append(len(first))
            return (first - second).abs().mean((1, 2, 3)) * 127.5

    monkeypatch.setattr(Encoders, "get", lambda self, name: Distance())
    first, second = lengths
    spans = [Span("a", "b", 0, first, False), Span("c", "d", first, first + second, True)]
    scenes = Scenes(spans, {}, Encoders(torch.device("cpu")), {ALEXNET})
    shown = torch.cat([torch.linspace(0, 240, length) for length in lengths]).to(torch.uint8)
    for chunk in shown.view(-1, 1, 1, 1).expand(-1, 4, 6, 3).split(7):
        scenes.see(chunk)
    ((aligned, across),) = (found for found in scenes.distances if found is not None)
    assert compared == [min(*lengths, 16), 1]
    assert aligned < 240 / min(lengths)
    assert across == pytest.approx(240 if first > 1 else 0, abs=0.01)
