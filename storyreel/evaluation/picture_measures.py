"""Pure measures of pictures: similarity, distance, colour."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
ALEXNET_TAPS = (1, 4, 7, 9, 11)  # of its features: behind every ReLU
LPIPS_MEAN, LPIPS_STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def grey(frames: Tensor) -> Tensor:
    """Return brightness (T, H, W), 0 to 255, of frames uint8 (T, H, W, 3), by BT.709's weights."""
    return frames.float() @ torch.tensor([0.2126, 0.7152, 0.0722], device=frames.device)


def ssim(a: Tensor, b: Tensor, span: float = 255.0) -> Tensor:
    """Return the structural similarity (T,) of pictures (T, H, W) whose values span ``span``.

    Wang et al. 2004 with K1 = 0.01 and K2 = 0.03: the mean over all places of an 11x11 Gaussian window of
    σ = 1.5, the picture's borders reflected, as torchmetrics does. Pictures smaller than that: NaN.
    """
    if min(a.shape[1:]) < SSIM_WINDOW:
        return a.new_full((len(a),), float("nan"))
    margin = SSIM_WINDOW // 2
    down, across = (_bells(side + 2 * margin).to(a) for side in a.shape[1:])
    a, b = (F.pad(x, (margin,) * 4, mode="reflect") for x in (a, b))

    def blurred(x: Tensor) -> Tensor:
        return down @ x @ across.T

    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    cov = blurred(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    index = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    index = index / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return index.mean((1, 2))


@cache
def _bells(side: int) -> Tensor:
    """Return the matrix (side - 10, side) of the window's mean everywhere: faster than to convolve."""
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    bell = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    rows = [
        torch.zeros(side - SSIM_WINDOW + 1, side, dtype=torch.float64).diagonal_scatter(
            (bell[i] / bell.sum()).expand(side - SSIM_WINDOW + 1), i
        )
        for i in range(SSIM_WINDOW)
    ]
    return torch.stack(rows).sum(0)


def lab(colours: Tensor) -> Tensor:
    """Return CIELAB (…, 3) of sRGB colours (…, 3), 0 to 255, for the white D65 (IEC 61966-2-1, CIE 15)."""
    rgb = colours.double() / 255
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = linear.new_tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(1)
    f = torch.where(xyz > (6 / 29) ** 3, xyz ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


class AlexNetFeatures(nn.Module):
    """The convolutions of AlexNet (Krizhevsky 2014, "one weird trick"), named as torchvision names them."""

    def __init__(self) -> None:
        super().__init__()
        pool = nn.MaxPool2d(3, 2)
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), pool),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), pool),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the activations behind every convolution, of pictures (N, 3, H, W)."""
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in ALEXNET_TAPS:
                found.append(x)
        return found


def lpips(network: AlexNetFeatures, heads: Sequence[Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Return the LPIPS distance (N,) of pictures (N, 3, H, W) in [-1, 1]; 0 for equal ones.

    Zhang et al. 2018, version 0.1: squared differences of unit activations, weighted by ``heads``
    (1, C, 1, 1) and averaged over the picture, summed over the layers.
    """
    mean, std = (a.new_tensor(v).view(1, 3, 1, 1) for v in (LPIPS_MEAN, LPIPS_STD))
    total = a.new_zeros(len(a))
    for head, x, y in zip(heads, network((a - mean) / std), network((b - mean) / std), strict=True):
        x, y = (v / (v.square().sum(1, keepdim=True).sqrt() + 1e-10) for v in (x, y))
        total = total + F.conv2d((x - y) ** 2, head).mean((1, 2, 3))
    return total
