"""Measures of pictures, against implementations and values that were not written here."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from storyreel.evaluation.encoders import HEADS
from storyreel.evaluation.picture_measures import AlexNetFeatures, grey, lab, lpips, ssim


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_ssim_equals_torchmetrics() -> None:
    """On pictures that are alike, as neighbours are: noise would hide the window's shape."""
    a = torch.nn.functional.interpolate(pictures(4, 1, 8, 12), (40, 56), mode="bicubic") * 255
    b = (a + 20 * pictures(4, 1, 40, 56, seed=1)).clamp(0, 255)
    theirs = structural_similarity_index_measure(a, b, data_range=255.0, reduction="none")
    assert isinstance(theirs, Tensor)
    ours = ssim(a[:, 0], b[:, 0])
    assert ours.max() - ours.min() > 0.01
    assert torch.allclose(ours, theirs, atol=2e-6)
    assert torch.allclose(ssim(a[:, 0].double(), b[:, 0].double()).float(), theirs, atol=2e-6)


def test_ssim_of_itself_is_1_and_symmetric() -> None:
    a, b = pictures(2, 20, 30) * 255, pictures(2, 20, 30, seed=1) * 255
    assert torch.allclose(ssim(a, a), torch.ones(2), atol=1e-5)
    assert torch.allclose(ssim(a, b), ssim(b, a), atol=1e-6)
    assert (ssim(a, b) < 0.5).all()
    assert math.isnan(float(ssim(a[:1, :8], a[:1, :8])))  # no window fits


def test_lpips_equals_the_authors_package() -> None:
    """Stored: version 0.1.4 of the package lpips, its code and heads, on these weights and pictures."""
    network = AlexNetFeatures()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(network.features.named_parameters()):
            scale = 0.1 if parameter.ndim == 1 else (2 / parameter[0].numel()) ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(3, 3, 64, 80, generator=generator) * 2 - 1 for _ in range(2))
    b[1], b[2] = a[1] * 0.9, a[2]
    saved = load_file(HEADS)
    heads = [saved[f"lin{i}"] for i in range(5)]
    with torch.no_grad():
        found = lpips(network, heads, a, b)
        assert found.tolist() == pytest.approx(
            [0.09645459800958633, 0.00010005889635067433, 0.0], abs=1e-6, rel=1e-5
        )
        assert torch.allclose(found, lpips(network, heads, b, a), atol=1e-7)


def test_lab_of_known_colours() -> None:
    """Lindbloom's values for sRGB."""
    colours = torch.tensor([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255], [128, 128, 128]])
    expected = torch.tensor(
        [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [53.59, 0, 0]]
    )
    assert torch.allclose(lab(colours).float(), expected, atol=0.03)


def test_grey_is_brightness() -> None:
    frames = torch.tensor([[[[255, 255, 255], [0, 255, 0]]]], dtype=torch.uint8)
    assert torch.allclose(grey(frames), torch.tensor([[[255.0, 0.7152 * 255]]]))
