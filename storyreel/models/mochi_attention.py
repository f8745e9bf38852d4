"""Joint attention of Mochi, batched: diffusers' own processor loops over the batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import MochiTransformer3DModel
from diffusers.models.attention_processor import MochiAttention
from diffusers.models.embeddings import MochiAttentionPool
from torch import Tensor, nn

from storyreel.models.base import Memory


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to neighbouring pairs of the last axis, in fp32."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


def _added(mask: Tensor, before: int, dtype: torch.dtype) -> Tensor:
    """Return what attention adds to its logits, (B, 1, 1, before + L), or a mask of booleans."""
    if mask.is_floating_point():
        return nn.functional.pad(mask.log(), (before, 0)).to(dtype)[:, None, None]
    return nn.functional.pad(mask.bool(), (before, 0), value=True)[:, None, None]


def use_batched_attention(transformer: MochiTransformer3DModel) -> None:
    """Give a transformer the batched processor, and its pooled text the tokens' weights."""
    if isinstance(transformer.transformer_blocks[0].attn1.processor, BatchedMochiAttnProcessor):
        return
    for block in transformer.transformer_blocks:
        block.attn1.processor = BatchedMochiAttnProcessor()
    transformer.time_embed.pooler.register_forward_hook(_weighted_pool)


def _weighted_pool(pool: MochiAttentionPool, inputs: tuple[Tensor, Tensor], output: Tensor) -> Tensor:
    """Pool the text again where its mask holds weights: `MochiAttentionPool` weighs only the query."""
    x, mask = inputs
    if not mask.is_floating_point():
        return output
    x = torch.cat([pool.pool_tokens(x, mask, keepdim=True), x], 1)
    key, value = pool.to_kv(x).unflatten(2, (2, pool.num_attention_heads, -1)).transpose(1, 3).unbind(2)
    query = pool.to_q(x[:, 0]).unflatten(1, (pool.num_attention_heads, -1))[:, :, None]
    pooled = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=_added(mask, 1, query.dtype)
    )
    weighted: Tensor = pool.to_out(pooled.squeeze(2).flatten(1, 2))
    return weighted


def _processors(transformer: MochiTransformer3DModel) -> list[BatchedMochiAttnProcessor]:
    return [block.attn1.processor for block in transformer.transformer_blocks]


@contextmanager
def with_memory(transformer: MochiTransformer3DModel, memory: Memory | None) -> Iterator[None]:
    """Let every layer attend to its part of a memory too."""
    processors = _processors(transformer)
    try:
        for index, processor in enumerate(processors):
            processor.memory = None if memory is None else (*memory.layers[index], memory.weights)
        yield
    finally:
        for processor in processors:
            processor.memory = None


@contextmanager
def recording(transformer: MochiTransformer3DModel) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect the keys and values of the video that the layers see, in the layers' order."""
    seen: list[tuple[Tensor, Tensor]] = []
    processors = _processors(transformer)
    try:
        for processor in processors:
            processor.recorder = seen
        yield seen
    finally:
        for processor in processors:
            processor.recorder = None


class BatchedMochiAttnProcessor:
    """The arithmetic of `MochiAttnProcessor2_0` without its loop, graph breaks and host syncs.

    The mask (B, L) says of each text token whether it counts or, as a float, how much: log of
    the weight is added to its attention logits (METHOD 4). Weight 1 is attention as ever, 0
    excludes; a token that stands there twice at a half each counts as once. What comes out at
    the positions of excluded tokens is of no consequence, since nothing ever reads them.

    ``memory`` holds keys (1, M, heads, D) and values of other frames with their weights (M,); they
    stand beside the video's own. Into ``recorder`` goes what this layer makes of its video. The
    keys are kept with the positions that they had there.
    """

    def __init__(self) -> None:
        self.memory: tuple[Tensor, Tensor, Tensor] | None = None
        self.recorder: list[tuple[Tensor, Tensor]] | None = None

    def __call__(
        self,
        attn: MochiAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend: video (B, N, D) and text (B, L, E) with its mask, to the same shapes."""

        def heads(layer: nn.Module, x: Tensor) -> Tensor:
            split: Tensor = layer(x).unflatten(2, (attn.heads, -1))
            return split

        query, key = (
            attn.norm_q(heads(attn.to_q, hidden_states)),
            attn.norm_k(heads(attn.to_k, hidden_states)),
        )
        if image_rotary_emb is not None:
            query, key = _rotate(query, *image_rotary_emb), _rotate(key, *image_rotary_emb)
        text = encoder_hidden_states
        query = torch.cat([query, attn.norm_added_q(heads(attn.add_q_proj, text))], 1)
        key = torch.cat([key, attn.norm_added_k(heads(attn.add_k_proj, text))], 1)
        value = torch.cat([heads(attn.to_v, hidden_states), heads(attn.add_v_proj, text)], 1)

        count = hidden_states.shape[1]
        added = _added(attention_mask, count, query.dtype)
        if self.recorder is not None:
            self.recorder.append((key[:, :count].clone(), value[:, :count].clone()))
        if self.memory is not None:
            keys, values, weights = self.memory
            key = torch.cat([key, keys.expand(len(key), -1, -1, -1)], 1)
            value = torch.cat([value, values.expand(len(key), -1, -1, -1)], 1)
            added = _added(attention_mask.float(), count, query.dtype)
            added = torch.cat([added, weights.log().to(added).expand(len(key), 1, 1, -1)], 3)
        joint = nn.functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2).to(query.dtype),
            value.transpose(1, 2).to(query.dtype),
            attn_mask=added,
        )
        joint = joint.transpose(1, 2).flatten(2)
        video, text = joint[:, :count], joint[:, count:]
        video = attn.to_out[1](attn.to_out[0](video))
        if hasattr(attn, "to_add_out"):
            text = attn.to_add_out(text)
        return video, text
