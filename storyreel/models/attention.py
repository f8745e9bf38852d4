"""What the families' attention processors share: tokens that count more or less."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def added_logits(weights: Tensor, video: int, dtype: torch.dtype) -> Tensor:
    """Return what attention adds to its logits, (B, 1, 1, video + L): the logarithm of each token's weight.

    ``weights`` (B, L) are the text tokens', before which ``video`` tokens of weight 1 stand: softmax of the
    sums is Σ w·exp(q·k)·v / Σ w·exp(q·k), so that weight 0 excludes a token and 2 is two of it.
    """
    return nn.functional.pad(weights.log(), (video, 0)).to(dtype)[:, None, None]


def attend(query: Tensor, key: Tensor, value: Tensor, added: Tensor | None, free: int) -> Tensor:
    """Attend, (B, N, heads, D); ``added`` is what `added_logits` gives, nothing on the first ``free`` keys.

    A mask of any kind keeps a GPU from its fastest kernel, and nearly all keys are the video's, which
    have none: there they are attended to apart from the few of the text, and merged.
    """
    q, k, v = (x.transpose(1, 2) for x in (query, key.to(query.dtype), value.to(query.dtype)))
    if added is not None and free and q.device.type != "cpu" and q.dtype != torch.float32:
        output = merged_attention(q, k, v, added, free)
    else:
        output = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=added)
    return output.transpose(1, 2)


def merged_attention(q: Tensor, k: Tensor, v: Tensor, added: Tensor, free: int) -> Tensor:
    """Attend, (B, heads, N, D), to the first ``free`` keys and to the others apart, and merge exactly.

    Both are softmaxes; each one's share in the whole follows from the logarithms of their sums. Rows of
    the others may be excluded altogether, those of the first may not.
    """
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    if q.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    many, sums = flash(q, k[:, :, :free], v[:, :, :free], 0.0, False)[:2]
    logits = q.float() @ k[:, :, free:].float().transpose(2, 3) / q.shape[-1] ** 0.5 + added[..., free:]
    whole = torch.logaddexp(sums.float(), logits.logsumexp(-1))[..., None]
    few = (logits - whole).exp().to(v.dtype) @ v[:, :, free:]
    merged: Tensor = many * (sums[..., None] - whole).exp().to(many.dtype) + few
    return merged
