from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storyreel.method.blending import dissolve, name_matters, otsu, published_blend, renoised, with_lead


def frames(*values: float) -> torch.Tensor:
    """Latents (1, 1, F, 1, 1) of one value each."""
    return torch.tensor(values, dtype=torch.float32).view(1, 1, -1, 1, 1)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
shares = st.floats(0, 1, width=32)


@given(shapes, st.integers(0, 4), shares, st.integers(0, 99))
def test_a_lead_of_weight_0_is_not_there_and_one_of_weight_1_is_all_there_is(
    shape: tuple[int, int, int, int], own: int, sigma: float, seed: int
) -> None:
    channels, length, height, width = shape
    x = random(seed, 1, channels, length + own, height, width)
    lead, noise = (random(seed + n, 1, channels, length, height, width) for n in (1, 2))
    nothing, all_of_it = torch.zeros(1, 1, length, height, width), torch.ones(1, 1, length, height, width)
    assert torch.equal(with_lead(x, lead, nothing, noise, sigma), x)
    for level, expected in ((0.0, lead), (1.0, noise), (sigma, torch.lerp(lead, noise, sigma))):
        mixed = with_lead(x, lead, all_of_it, noise, level)
        assert mixed.shape == x.shape
        assert torch.equal(mixed[:, :, :length], expected)
        assert torch.equal(mixed[:, :, length:], x[:, :, length:])


@given(shares, shares)
def test_between_0_and_1_a_lead_is_a_mixture_in_each_cell_for_itself(weight: float, sigma: float) -> None:
    x, lead, noise = random(0, 1, 3, 4, 2, 2), random(1, 1, 3, 2, 2, 2), random(2, 1, 3, 2, 2, 2)
    weights = torch.zeros(1, 1, 2, 2, 2)
    weights[0, 0, 1, 0, 1] = weight
    kept = x.clone()
    mixed = with_lead(x, lead, weights, noise, sigma)
    cell = (1 - weight) * x[0, :, 1, 0, 1] + weight * (
        (1 - sigma) * lead[0, :, 1, 0, 1] + sigma * noise[0, :, 1, 0, 1]
    )
    assert torch.allclose(mixed[0, :, 1, 0, 1], cell, atol=1e-6)
    mixed[0, :, 1, 0, 1] = x[0, :, 1, 0, 1]
    assert torch.equal(mixed, x)
    assert torch.equal(x, kept)  # which is a state's own


def test_a_lead_in_double_precision_leaves_latents_as_they_are() -> None:
    x, lead = random(0, 1, 2, 3, 2, 2), random(1, 1, 2, 1, 2, 2).double()
    mixed = with_lead(x, lead, torch.ones(1, 1, 1, 2, 2).double(), lead, 0.0)
    assert (mixed.dtype, mixed.shape) == (torch.float32, x.shape)


def test_a_name_matters_where_the_velocity_differs() -> None:
    """By hand: what differs on one cell is a mean over those around it, which at a border are fewer."""
    plain = torch.zeros(2, 3, 2, 5, 6)
    named = plain.clone()
    named[:, :, 0, 2, 3] = 2.0
    named[0, 0, 1, 4, 5] = 0.1  # each frame has a largest of its own
    cells = name_matters(named, plain)
    assert (cells.shape, cells.dtype) == ((1, 1, 2, 5, 6), torch.float32)
    expected = torch.zeros(2, 5, 6)
    expected[0, 1:4, 2:5] = 1  # a ninth everywhere
    expected[1, 3:, 4:] = 1  # a quarter in the corner, a sixth beside it, and a ninth across
    assert torch.equal(cells[0, 0], expected)


def test_who_differs_most_in_one_small_part_is_there_whole() -> None:
    """A white tip of a tail: a share of the largest difference would leave the fox away."""
    apart = torch.full((1, 1, 1, 8, 12), 0.02)
    apart[..., 2:7, 4:9] = 0.4
    apart[..., 6, 2:4] = 1.0
    cells = name_matters(apart, torch.zeros_like(apart))[0, 0, 0]
    assert cells[2:7, 4:9].all()
    assert cells[6, 2:4].all()
    assert not cells[:, 10:].any()


def test_each_noise_has_a_largest_difference_of_its_own() -> None:
    """In much noise velocities differ by more: it does not outvote the others."""
    left, right = (torch.zeros(1, 1, 1, 8, 12) for _ in range(2))
    left[..., 2:5, 1:4] = 1.0
    right[..., 2:5, 8:11] = 9.0
    named = torch.cat([left, right])
    cells = name_matters(named, torch.zeros_like(named))[0, 0, 0]
    assert cells[3, 2] == cells[3, 9] == 1
    assert torch.equal(cells[:, :6], cells[:, 6:].flip(1))


@given(st.integers(0, 99))
def test_where_a_name_matters_most_counts_always(seed: int) -> None:
    named, plain = random(seed, 2, 3, 2, 4, 5), random(seed + 1, 2, 3, 2, 4, 5)
    cells = name_matters(named, plain)
    assert set(cells.unique().tolist()) == {0.0, 1.0}
    assert (cells.flatten(3).amax(3) == 1).all()
    assert torch.equal(cells, name_matters(plain, named))
    # A mean over noises: what one of them shows twice is what two show once.
    assert torch.equal(cells, name_matters(named.repeat(2, 1, 1, 1, 1), plain.repeat(2, 1, 1, 1, 1)))


def test_a_name_that_changes_nothing_matters_nowhere() -> None:
    same = random(0, 2, 3, 1, 4, 4)
    assert not name_matters(same, same).any()


def test_a_name_that_changes_all_alike_matters_everywhere() -> None:
    assert name_matters(torch.ones(1, 2, 1, 4, 4), torch.zeros(1, 2, 1, 4, 4)).all()


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=30))
def test_no_other_bar_parts_values_into_kinds_that_are_more_alike(values: list[float]) -> None:
    def apart(kind: Tensor) -> float:
        return float((kind - kind.mean()).square().sum()) if len(kind) else 0.0

    found, x = otsu(torch.tensor(values)), torch.tensor(values, dtype=torch.float64)
    least = min(apart(x[x <= bar]) + apart(x[x > bar]) for bar in x)
    assert apart(x[x <= found]) + apart(x[x > found]) <= least + 1e-3


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
