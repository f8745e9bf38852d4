"""The baseline that the evaluation's README holds the method against is a plain crossfade."""

from __future__ import annotations

import torch

from tests.crossfade import crossfaded


def test_scenes_pass_over_into_each_other() -> None:
    """A dark scene and a bright one: even steps around the border, nothing else is touched."""
    film = torch.tensor([40] * 20 + [160] * 20, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)
    mixed = crossfaded(film, [20], 12)[:, 0, 0, 0].int()
    assert mixed[:14].tolist() == [40] * 14
    assert mixed[26:].tolist() == [160] * 14
    assert mixed.diff()[13:26].tolist() == [5, *[10] * 11, 5]


def test_pictures_that_are_not_there_stand_still() -> None:
    film = torch.arange(40, dtype=torch.uint8).mul(4).view(-1, 1, 1, 1)
    mixed = crossfaded(film, [20], 4).flatten().int()
    assert mixed[:18].tolist() == list(range(0, 72, 4))
    assert mixed[22:].tolist() == list(range(88, 160, 4))
    # Frame 18 of the earlier scene with the later one's first, 20; in the end 19, which stands, with 21.
    assert abs(mixed[18] - (0.875 * 72 + 0.125 * 80)) <= 1
    assert abs(mixed[21] - (0.125 * 76 + 0.875 * 84)) <= 1
