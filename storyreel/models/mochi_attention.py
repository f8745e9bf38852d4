"""Joint attention of Mochi, batched: diffusers' own processor loops over the batch."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import MochiTransformer3DModel
from diffusers.models.attention_processor import MochiAttention
from diffusers.models.embeddings import MochiAttentionPool
from diffusers.models.transformers.transformer_mochi import MochiRoPE
from torch import Tensor, nn

from storyreel.models.attention import Keys, added_logits, attend, masked


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to neighbouring pairs of the last axis, in fp32."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


def use_batched_attention(transformer: MochiTransformer3DModel) -> None:
    """Give a transformer the batched processor, and its pooled text the tokens' weights."""
    if isinstance(transformer.transformer_blocks[0].attn1.processor, BatchedMochiAttnProcessor):
        return
    for block in transformer.transformer_blocks:
        block.attn1.processor = BatchedMochiAttnProcessor()
    transformer.time_embed.pooler = WeightedPool(transformer.time_embed.pooler)
    transformer.rope = PlainMochiRoPE()


class WeightedPool(nn.Module):
    """`MochiAttentionPool`, with its layers, for tokens of any weight: its own weighs the query alone.

    For weights of 0 and 1 it is the same, bit for bit.
    """

    def __init__(self, pool: MochiAttentionPool) -> None:
        super().__init__()
        self.num_attention_heads = pool.num_attention_heads
        self.to_kv, self.to_q, self.to_out = pool.to_kv, pool.to_q, pool.to_out

    def forward(self, x: Tensor, keys: Keys | Tensor) -> Tensor:
        """Pool tokens x (B, L, D) by their weights (B, L) to (B, E).

        With one query for a row, where a mask costs nothing.
        """
        weights = keys if isinstance(keys, Tensor) else keys.weights
        x = torch.cat([MochiAttentionPool.pool_tokens(x, weights, keepdim=True), x], 1)
        key, value = self.to_kv(x).unflatten(2, (2, self.num_attention_heads, -1)).transpose(1, 3).unbind(2)
        query = self.to_q(x[:, 0]).unflatten(1, (self.num_attention_heads, -1))[:, :, None]
        pooled = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=added_logits(weights, 1, query.dtype)
        )
        projected: Tensor = self.to_out(pooled.squeeze(2).flatten(1, 2))
        return projected


class PlainMochiRoPE(MochiRoPE):  # type: ignore[misc]  # diffusers has no types
    """Mochi's angles without the fp32 autocast that diffusers asks for, which not every device has."""

    def _create_rope(self, freqs: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.einsum("nd,dhf->nhf", pos.float(), freqs.float())
        return angles.cos(), angles.sin()


class BatchedMochiAttnProcessor:
    """The arithmetic of `MochiAttnProcessor2_0` without its loop, graph breaks and host syncs.

    In place of a mask it takes how texts are attended to, or the weights (B, L) of all their tokens: for
    training, where there are many. What comes out where padding is, nothing ever reads.
    """

    _attention_backend: Any = None  # the name by which diffusers sets it

    def __call__(
        self,
        attn: MochiAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Keys | Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend: video (B, N, D) and text (B, L, E), to the same shapes."""

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

        count, longest = hidden_states.shape[1], text.shape[1]
        if isinstance(attention_mask, Tensor):
            rows = [masked(query, key, value, attention_mask, count)]
        else:
            rows = attend(query, key, value, attention_mask, count, self._attention_backend)
        video = torch.cat([row[:, :count] for row in rows]).flatten(2)
        text = torch.cat([_lengthened(row[:, count:].flatten(2), longest) for row in rows])
        video = attn.to_out[1](attn.to_out[0](video))
        if hasattr(attn, "to_add_out"):
            text = attn.to_add_out(text)
        return video, text


def _lengthened(x: Tensor, length: int) -> Tensor:
    """Pad tokens (B, L, D) with zeros."""
    return nn.functional.pad(x, (0, 0, 0, length - x.shape[1]))
