"""What the families' attention processors share: tokens that count more or less, and memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from storyreel.models.base import Memory


def added_logits(mask: Tensor, before: int, dtype: torch.dtype) -> Tensor:
    """Return what attention adds to its logits, (B, 1, 1, before + L), or a mask of booleans.

    ``mask`` (B, L) says of each text token whether it counts or, as a float, how much: the log of
    the weight is added (METHOD 4). ``before`` tokens of the video stand before the text's.
    """
    if mask.is_floating_point():
        return nn.functional.pad(mask.log(), (before, 0)).to(dtype)[:, None, None]
    return nn.functional.pad(mask.bool(), (before, 0), value=True)[:, None, None]


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
    if not added.is_floating_point():
        added = torch.zeros_like(added, dtype=torch.float32).masked_fill(~added, -torch.inf)
    logits = q.float() @ k[:, :, free:].float().transpose(2, 3) / q.shape[-1] ** 0.5 + added[..., free:]
    whole = torch.logaddexp(sums.float(), logits.logsumexp(-1))[..., None]
    few = (logits - whole).exp().to(v.dtype) @ v[:, :, free:]
    merged: Tensor = many * (sums[..., None] - whole).exp().to(many.dtype) + few
    return merged


class Remembering:
    """An attention processor that can look at other frames too, and say what it sees in its own.

    ``memory`` holds keys (1, M, heads, D) and values of other frames with their weights (M,); they
    stand beside the video's own. Into ``recorder`` goes what this layer makes of its video. The
    keys are kept with the positions that they had there.
    """

    memory: tuple[Tensor, Tensor, Tensor] | None = None
    recorder: list[tuple[Tensor, Tensor]] | None = None

    def note(self, key: Tensor, value: Tensor) -> None:
        """Record the video's keys and values (B, N, heads, D), if somebody asked for them."""
        if self.recorder is not None:
            self.recorder.append((key.clone(), value.clone()))

    def extend(
        self, key: Tensor, value: Tensor, added: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return keys, values and what is added to their logits with the memory's behind them."""
        if self.memory is None:
            return key, value, added
        keys, values, weights = self.memory
        if added is None:
            added = key.new_zeros(len(key), 1, 1, key.shape[1])
        elif not added.is_floating_point():
            added = torch.zeros_like(added, dtype=key.dtype).masked_fill(~added, -torch.inf)
        key = torch.cat([key, keys.to(key.dtype).expand(len(key), -1, -1, -1)], 1)
        value = torch.cat([value, values.to(value.dtype).expand(len(key), -1, -1, -1)], 1)
        return key, value, torch.cat([added, weights.log().to(added).expand(len(key), 1, 1, -1)], 3)


@contextmanager
def with_memory(processors: Sequence[Remembering], memory: Memory | None) -> Iterator[None]:
    """Let every layer attend to its part of a memory too."""
    try:
        for index, processor in enumerate(processors):
            processor.memory = None if memory is None else (*memory.layers[index], memory.weights)
        yield
    finally:
        for processor in processors:
            processor.memory = None


@contextmanager
def recording(processors: Sequence[Remembering]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect the keys and values of the video that the layers see, in the layers' order."""
    seen: list[tuple[Tensor, Tensor]] = []
    try:
        for processor in processors:
            processor.recorder = seen
        yield seen
    finally:
        for processor in processors:
            processor.recorder = None
