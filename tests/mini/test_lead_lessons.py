"""Lessons that begin with frames clearer than the rest, as models are taught that begin with pictures."""

from __future__ import annotations

import torch

from storyreel.mini.training.layout import layout_of
from storyreel.mini.training.transformer import LEAD_NOISE, covered, noise_left
from storyreel.mini.world import Part, tag_of
from tests.mini.test_layout import CLIP

SHAPE = torch.Size((200, 32, 5, 4, 4))


def test_a_lead_is_whole_frames_at_the_beginning() -> None:
    left = noise_left(torch.Generator().manual_seed(0), None, SHAPE)
    assert left.shape == (200, 1, 5, 4, 4)
    given = left < 1
    assert (given.flatten(3).any(3) == given.flatten(3).all(3)).all()
    lengths = given[:, 0, :, 0, 0].sum(1)
    assert set(lengths.tolist()) == {1, 2, 3}
    assert (given[:, 0, :, 0, 0].long().diff(dim=1) <= 0).all()


def test_a_lead_has_one_share_of_noise() -> None:
    left = noise_left(torch.Generator().manual_seed(0), None, SHAPE)
    shares = torch.where(left < 1, left, 0).flatten(1).amax(1)
    assert ((left == shares.view(-1, 1, 1, 1, 1)) | (left == 1)).all()
    assert 0.9 * LEAD_NOISE < shares.max() < LEAD_NOISE
    assert shares.min() < 0.1 * LEAD_NOISE


def test_characters_alone_are_given_with_a_rim() -> None:
    tags = torch.zeros(4, 64, 64, dtype=torch.uint8)
    tags[:, :16, :16] = tag_of(1, Part.BODY)
    cover = covered(layout_of(tags, CLIP)[None], torch.Size((1, 32, 2, 4, 4)))
    (left,) = noise_left(torch.Generator().manual_seed(0), cover, torch.Size((1, 32, 2, 4, 4)))
    expected = torch.zeros(2, 4, 4, dtype=torch.bool)
    expected[0, :2, :2] = True
    assert torch.equal(left[0] < 1, expected)
