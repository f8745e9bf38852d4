"""TWB, time-weighted blending of neighbouring segments (arXiv 2503.06310).

The published form, `published_blend`, adds clean latents of the finished segment to the noisy latents of the
next, which shrinks the variance and constrains nothing afterwards. A deviation: a segment begins with a
lead, latent frames that earlier segments have finished. In every step they stand there at a noise level
that the model knows, so that it continues them; they are never shown. Where the place stays, the lead is
the end of the segment before; where it changes, it holds the characters alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def with_lead(x: Tensor, lead: Tensor, weights: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Return noisy latents x_σ (B, C, F, H, W) whose first frames are a lead's, as far as it reaches.

    ``lead`` (B, C, L, H, W) is clean, ``weights`` (1, 1, L, H, W) are from 0, where x stays as it is, to 1,
    where it becomes (1 - σ)·lead + σ·noise; ``noise`` has the lead's shape.
    """
    length = lead.shape[2]
    given = torch.lerp(lead, noise, sigma)
    head = torch.lerp(x[:, :, :length], given.to(x), weights.to(x))
    return torch.cat([head, x[:, :, length:]], 2)


def name_matters(with_name: Tensor, without: Tensor) -> Tensor:
    """Return in which cells a name decides what is there: weights 0 or 1, (1, 1, F, H, W).

    ``with_name`` and ``without`` (N, C, F, H, W) are velocities at the same N noisy latents, for a prompt and
    for the same prompt without the name. Their mean square differences are added up, each relative to its
    largest in the frame, and averaged over 3x3 cells; Otsu's threshold on the roots parts the cells into two
    kinds. (DiffEdit, arXiv 2210.11427, has other prompts and half of the largest difference as the
    threshold. But what differs most may be a small part of somebody.)
    """
    apart = (with_name - without).float().square().mean(1)  # (N, F, H, W)
    largest = apart.flatten(2).amax(2).clamp(min=1e-12)[..., None, None]
    added = (apart / largest).sum(0)
    near = torch.nn.functional.avg_pool2d(added[:, None], 3, 1, 1, count_include_pad=False)[:, 0].sqrt()
    bars = torch.stack([otsu(frame) for frame in near])[:, None, None]
    return ((near > bars) & (near > 0)).float()[None, None]


def otsu(values: Tensor) -> Tensor:
    """Return the value up to which ``values`` (any shape) are of the lower of two kinds, without a histogram.

    Where the squares of all distances to the mean of their own kind add up to the least (Otsu 1979). Where
    all are the same, it is below all of them.
    """
    ordered = values.flatten().sort().values.double()
    count = torch.arange(1, len(ordered), device=ordered.device)
    sums = ordered.cumsum(0)
    lower, upper = sums[:-1] / count, (sums[-1] - sums[:-1]) / (len(ordered) - count)
    between = count * (len(ordered) - count) * (upper - lower).square()
    if len(ordered) < 2 or not ordered[-1] > ordered[0]:
        return ordered[0].to(values) - 1
    return ordered[int(between.argmax())].to(values)


def published_blend(noise: Tensor, tail: Tensor, beta: float, gamma: float) -> Tensor:
    """Return γ·z_prev,T + γ·z̄ + (1 - 2γ)·z_new,0: the blending of arXiv 2503.06310, once per seam.

    ``tail`` (B, C, K, H, W) are the last K latent frames of the segment before, z_prev,T the very
    last of them and z̄ = Σ w_i z_i / Σ w_i with w_i = β^(K-i-1). It pulls every frame of ``noise``
    (B, C, F, H, W). At γ = 0 the noise comes back as it is.
    """
    count = tail.shape[2]
    weights = beta ** torch.arange(count - 1, -1, -1, device=tail.device, dtype=tail.dtype)
    average = (tail * (weights / weights.sum()).view(1, 1, -1, 1, 1)).sum(2, keepdim=True)
    return gamma * tail[:, :, -1:] + gamma * average + (1 - 2 * gamma) * noise


def renoised(mixed: Tensor, noise: Tensor, gamma: float) -> Tensor:
    """Return what `published_blend` gave with the variance of the noise again (a deviation).

    Of its noise the standard deviation is 1 - 2γ, of its latents, which are alike, nearly 2γ.
    """
    return mixed + (math.sqrt(1 - (2 * gamma) ** 2) - (1 - 2 * gamma)) * noise


def dissolve(earlier: Tensor, later: Tensor, weights: Tensor) -> Tensor:
    """Mix two runs of pictures, uint8 (N, H, W, 3), by the later one's ``weights`` (N, 1, 1, 1)."""
    return torch.lerp(earlier.float(), later.float(), weights).round().to(torch.uint8)
