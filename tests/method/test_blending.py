from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from storyreel.method.blending import blend_overlap, time_weights


@given(st.integers(1, 12))
def test_time_weights_rise_and_are_symmetric(overlap: int) -> None:
    weights = time_weights(overlap).flatten()
    assert weights.shape == (overlap,)
    assert (weights.diff() > 0).all()
    assert 0 < float(weights[0]) < 1
    assert torch.allclose(weights + weights.flip(0), torch.ones(overlap))


def test_blending_by_hand() -> None:
    earlier, later = torch.zeros(1, 1, 3, 1, 1), torch.ones(1, 1, 3, 1, 1)
    a, b = blend_overlap(earlier, later, overlap=2)
    assert a.flatten().tolist() == [0, 0.25, 0.75]
    assert b.flatten().tolist() == [0.25, 0.75, 1]


def test_strength_zero_changes_nothing_and_one_makes_the_overlap_identical() -> None:
    generator = torch.Generator().manual_seed(0)
    earlier, later = (torch.randn(1, 4, f, 2, 2, generator=generator) for f in (5, 7))
    for overlap, strength in ((0, 1.0), (2, 0.0)):
        a, b = blend_overlap(earlier, later, overlap, strength)
        assert torch.equal(a, earlier)
        assert torch.equal(b, later)
    a, b = blend_overlap(earlier, later, 3)
    assert torch.equal(a[:, :, -3:], b[:, :, :3])
    assert torch.equal(a[:, :, :-3], earlier[:, :, :-3])
    assert torch.equal(b[:, :, 3:], later[:, :, 3:])
    half, _ = blend_overlap(earlier, later, 3, 0.5)
    assert torch.allclose(half, (earlier + a) / 2)
