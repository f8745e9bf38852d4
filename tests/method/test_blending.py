from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from storyreel.method.blending import (
    blend_overlap,
    constrain,
    dissolve,
    published_blend,
    renoised,
    time_weights,
)


def frames(*values: float) -> torch.Tensor:
    """Latents (1, 1, F, 1, 1) of one value each."""
    return torch.tensor(values, dtype=torch.float32).view(1, 1, -1, 1, 1)


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


def test_a_finished_segment_gives_its_end_and_keeps_it() -> None:
    finished, later = frames(9, 1, 2), frames(5, 6, 7)
    assert constrain(finished, later, 2).flatten().tolist() == [1, 2, 7]
    assert constrain(finished, later, 2, 0.25).flatten().tolist() == [4, 5, 7]
    assert finished.flatten().tolist() == [9, 1, 2]
    assert later.flatten().tolist() == [5, 6, 7]
    assert torch.equal(constrain(finished, later, 0), later)
    assert torch.equal(constrain(finished, later, 2, 0.0), later)


def test_the_published_form_by_hand() -> None:
    """β = 1/2 over three frames: weights 1/4, 1/2, 1, so z̄ = (4/4 + 8/2 + 2) / 1.75 = 4."""
    noise, tail = frames(10, -10), frames(4, 8, 2)
    mixed = published_blend(noise, tail, beta=0.5, gamma=0.25)
    assert mixed.flatten().tolist() == pytest.approx([0.25 * 2 + 0.25 * 4 + 5, 0.25 * 2 + 0.25 * 4 - 5])
    assert torch.equal(published_blend(noise, tail, 0.5, 0.0), noise)
    # β = 1 is the plain mean, β = 0 the last frame alone.
    assert published_blend(noise, tail, 1.0, 0.5).flatten().tolist() == pytest.approx([1 + 7 / 3] * 2)
    assert published_blend(noise, tail, 0.0, 0.5).flatten().tolist() == pytest.approx([2, 2])


@pytest.mark.parametrize("gamma", [0.0, 0.05, 0.1, 0.25, 0.4, 0.5])
def test_what_the_published_form_takes_from_the_variance_is_given_back(gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 48, 4, 32, 32, generator=generator)
    tail = torch.randn(1, 48, 1, 32, 32, generator=generator).expand(-1, -1, 3, -1, -1)
    mixed = published_blend(noise, tail, 0.8, gamma)
    restored = renoised(mixed, noise, gamma)
    assert float(mixed.var()) == pytest.approx((1 - 2 * gamma) ** 2 + (2 * gamma) ** 2, abs=0.02)
    assert float(restored.var()) == pytest.approx(1, abs=0.02)
    # It is noise that is given, and the latents stay as strong as they were published.
    along = float((restored * tail[:, :, :1]).mean() / tail.square().mean())
    assert along == pytest.approx(2 * gamma, abs=0.02)
    if gamma == 0:
        assert torch.equal(restored, noise)


def test_dissolving_by_hand() -> None:
    black, white = torch.zeros(4, 2, 3, 3, dtype=torch.uint8), torch.full((4, 2, 3, 3), 255).byte()
    mixed = dissolve(black, white, torch.tensor([1, 3, 5, 7]).view(4, 1, 1, 1) / 8)
    assert (mixed.dtype, mixed.shape) == (torch.uint8, black.shape)
    # 255/8, 3·255/8, 5·255/8, 7·255/8, rounded and not cut off.
    assert mixed[:, 0, 0, 0].tolist() == [32, 96, 159, 223]
    assert (mixed == mixed[:, :1, :1, :1]).all()
    assert torch.equal(dissolve(black, white, torch.zeros(4, 1, 1, 1)), black)
    assert torch.equal(dissolve(black, white, torch.ones(4, 1, 1, 1)), white)
