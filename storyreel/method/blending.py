"""TWB, time-weighted blending of neighbouring segments (arXiv 2503.06310).

The published form, `published_blend`, adds clean latents of the finished segment to the noisy latents of the
next, which shrinks the variance and passes errors only forwards. A deviation: neighbours share an overlap,
and their estimates x̂0 are blended there in every denoising step, so that each constrains the other at one
noise level. Blending x̂0 and not x also lets a finished segment constrain one that has only begun.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def time_weights(overlap: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the later segment's weight in each overlapping latent frame, shape (1, 1, O, 1, 1).

    The weights rise from near 0 to near 1 and are symmetric: at ``overlap`` 1 it is one half.
    """
    frames = torch.arange(overlap, device=device, dtype=torch.float32)
    return ((frames + 0.5) / max(1, overlap)).view(1, 1, -1, 1, 1)


def blend_overlap(
    earlier: Tensor, later: Tensor, overlap: int, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Blend the last frames of one segment's x̂0 with the first of the next one's.

    ``earlier`` (B, C, F, H, W) and ``later`` (B, C, G, H, W) are estimates at one noise level,
    or one of them is a finished segment. ``overlap`` is at most min(F, G). At ``strength`` 0
    both come back as they are, at 1 their overlaps come back identical.
    """
    if not overlap or strength == 0:
        return earlier, later
    tail, head = earlier[:, :, -overlap:], later[:, :, :overlap]
    agreed = torch.lerp(tail, head, time_weights(overlap, tail.device))
    earlier = torch.cat([earlier[:, :, :-overlap], torch.lerp(tail, agreed, strength)], 2)
    later = torch.cat([torch.lerp(head, agreed, strength), later[:, :, overlap:]], 2)
    return earlier, later


def constrain(finished: Tensor, later: Tensor, overlap: int, strength: float = 1.0) -> Tensor:
    """Pull the first frames of a segment's x̂0 towards the last ones of a finished segment.

    ``finished`` (B, C, F, H, W) stays as it is; at ``strength`` 1 its frames replace those of ``later``
    (B, C, G, H, W).
    """
    if not overlap or strength == 0:
        return later
    head = torch.lerp(later[:, :, :overlap], finished[:, :, -overlap:], strength)
    return torch.cat([head, later[:, :, overlap:]], 2)


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
