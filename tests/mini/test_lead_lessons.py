"""Lessons that begin with frames clearer than the rest, as models are taught that begin with pictures."""

from __future__ import annotations

import pytest
import torch

from storyreel.mini.lessons import Example
from storyreel.mini.training.clips import Drawn
from storyreel.mini.training.layout import layout_of
from storyreel.mini.training.transformer import LEAD_NOISE, noise_left, pooled_losses, put_first
from storyreel.mini.world import Part, tag_of
from tests.mini.test_layout import CLIP

SHAPE = torch.Size((200, 32, 5, 4, 4))


def test_a_lead_is_whole_frames_at_the_beginning() -> None:
    left = noise_left(torch.Generator().manual_seed(0), None, True, SHAPE)
    assert left.shape == (200, 1, 5, 4, 4)
    given = left < 1
    assert (given.flatten(3).any(3) == given.flatten(3).all(3)).all()
    lengths = given[:, 0, :, 0, 0].sum(1)
    assert set(lengths.tolist()) == {1, 2, 3}
    assert (given[:, 0, :, 0, 0].long().diff(dim=1) <= 0).all()


def test_a_lead_has_one_share_of_noise() -> None:
    left = noise_left(torch.Generator().manual_seed(0), None, True, SHAPE)
    shares = torch.where(left < 1, left, 0).flatten(1).amax(1)
    assert ((left == shares.view(-1, 1, 1, 1, 1)) | (left == 1)).all()
    assert 0.9 * LEAD_NOISE < shares.max() < LEAD_NOISE
    assert shares.min() < 0.1 * LEAD_NOISE


def test_a_portrait_stands_in_the_first_frame_where_it_shows_somebody_and_a_rim() -> None:
    tags = torch.zeros(1, 64, 64, dtype=torch.uint8)
    tags[:, :16, :16] = tag_of(1, Part.BODY)
    theirs = layout_of(tags, CLIP)
    nothing = torch.zeros(0)
    lesson = Drawn(
        Example(CLIP, "", ""),
        nothing,
        nothing,
        nothing,
        portrait=torch.ones(32, 1, 4, 4),
        portrait_layout=theirs,
    )
    clean = torch.zeros(1, 32, 2, 4, 4)
    layout = torch.full((1, 2, 4, theirs.shape[2]), 7, dtype=torch.uint8)
    given = put_first(clean, layout, [lesson])
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(given[0, 0], expected)
    assert torch.equal(clean[0, 0, 0] == 1, expected)
    assert (clean[:, :, 1] == 0).all()
    assert torch.equal(layout[0, 0, 0], theirs[0, 0])
    assert (layout[0, 0, 1:] == 7).all()
    assert (layout[0, 1] == 7).all()
    (left,) = noise_left(torch.Generator().manual_seed(0), given, False, torch.Size((1, 32, 2, 4, 4)))
    assert torch.equal(left[0, 0] < 1, expected)
    assert (left[0, 1] == 1).all()


def test_behind_a_portrait_the_end_of_a_shot_stands_whole() -> None:
    portrait = torch.zeros(200, 1, 4, 4, dtype=torch.bool)
    portrait[..., 1:3] = True
    given = noise_left(torch.Generator().manual_seed(0), portrait, True, SHAPE) < 1
    assert torch.equal(given[:, :, 0], portrait)
    assert set(given[:, 0, 1:].all(3).all(2).sum(1).tolist()) == {1, 2, 3}
    assert given[:, :, 1].all()
    assert not given[:, :, 4].any()


def test_an_error_that_all_cells_share_costs_more_than_one_that_cancels_out() -> None:
    shared, whole = torch.full((2, 32, 5, 4, 4), 0.1), torch.ones(2, 1, 5, 4, 4)
    signs = torch.ones(4, 4)
    signs[::2] = -1
    frames, clips = pooled_losses(shared, whole)
    torch.testing.assert_close(frames, torch.tensor(0.01 * 16))
    torch.testing.assert_close(clips, torch.tensor(0.01 * 80))
    assert max(pooled_losses(shared * signs, whole)) < 1e-6
    in_turn = torch.tensor([1.0, -1, 1, -1, 0])[:, None, None]
    frames, clips = pooled_losses(shared * in_turn, whole)
    assert frames > 0.1
    assert clips < 1e-6
    in_the_rows_of_one_sign = (signs > 0).expand(2, 1, 5, 4, 4)
    frames, clips = pooled_losses(shared * signs, in_the_rows_of_one_sign)
    torch.testing.assert_close(frames, torch.tensor(0.01 * 8))
    torch.testing.assert_close(clips, torch.tensor(0.01 * 40))
    assert max(pooled_losses(shared, 0 * whole)) == 0


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_white_noise_loses_as_much_pooled_as_by_itself(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 32, 5, 8, 8, generator=generator)
    where = torch.rand(64, 1, 5, 8, 8, generator=generator) < share
    for pooled in pooled_losses(noise, where):
        assert 0.9 < pooled < 1.1
