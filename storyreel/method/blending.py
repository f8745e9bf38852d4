"""TWB, time-weighted blending of neighbouring segments (METHOD 2; arXiv 2503.06310).

The published form adds clean latents of the finished segment to the noisy latents of the next,
which shrinks the variance and passes errors only forwards. Here neighbours share an overlap
and their estimates x̂0 are blended there in every denoising step, so that each constrains the
other at one noise level. Blending x̂0 and not x also lets a finished segment constrain one
that has only begun.
"""

from __future__ import annotations

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
