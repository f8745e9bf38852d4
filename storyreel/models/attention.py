"""What the families' attention processors share: tokens that count more or less, and context frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from storyreel.models.base import Context


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


class ContextProcessor:
    """An attention processor whose video can attend to earlier frames too.

    ``context`` holds keys (1, M, heads, D) and values of those frames with their weights (M,); they
    stand beside the video's own, with the rotary positions that they had there. Into ``recorder``, if there
    is one, go the keys and values of the video itself.
    """

    context: tuple[Tensor, Tensor, Tensor] | None = None
    recorder: list[tuple[Tensor, Tensor]] | None = None

    def record(self, key: Tensor, value: Tensor) -> None:
        """Record the video's keys and values (B, N, heads, D), if there is a recorder."""
        if self.recorder is not None:
            self.recorder.append((key.clone(), value.clone()))

    def extend(
        self, key: Tensor, value: Tensor, added: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return keys, values and what is added to their logits with the context's behind them."""
        if self.context is None:
            return key, value, added
        keys, values, weights = self.context
        if added is None:
            added = key.new_zeros(len(key), 1, 1, key.shape[1])
        key = torch.cat([key, keys.to(key.dtype).expand(len(key), -1, -1, -1)], 1)
        value = torch.cat([value, values.to(value.dtype).expand(len(key), -1, -1, -1)], 1)
        return key, value, torch.cat([added, weights.log().to(added).expand(len(key), 1, 1, -1)], 3)


@contextmanager
def attending_to(processors: Sequence[ContextProcessor], context: Context | None) -> Iterator[None]:
    """Let every layer attend to its part of a context too."""
    try:
        for index, processor in enumerate(processors):
            processor.context = None if context is None else (*context.layers[index], context.weights)
        yield
    finally:
        for processor in processors:
            processor.context = None


@contextmanager
def recording(processors: Sequence[ContextProcessor]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect the keys and values of the video in each layer, in the layers' order."""
    recorded: list[tuple[Tensor, Tensor]] = []
    try:
        for processor in processors:
            processor.recorder = recorded
        yield recorded
    finally:
        for processor in processors:
            processor.recorder = None
