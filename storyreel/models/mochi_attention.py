"""Joint attention of Mochi, batched: diffusers' own processor loops over the batch."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import MochiAttention
from torch import Tensor, nn


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to neighbouring pairs of the last axis, in fp32."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


class BatchedMochiAttnProcessor:
    """The arithmetic of `MochiAttnProcessor2_0` without its loop, graph breaks and host syncs.

    Text tokens that the mask excludes get no attention from anything; what comes out at their
    own positions is of no consequence, since nothing ever reads them.
    """

    def __call__(
        self,
        attn: MochiAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend: video (B, N, D) and text (B, L, E) with mask (B, L), to the same shapes."""

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
        mask = nn.functional.pad(attention_mask.bool(), (count, 0), value=True)[:, None, None]
        joint = nn.functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2).to(query.dtype),
            value.transpose(1, 2).to(query.dtype),
            attn_mask=mask,
        )
        joint = joint.transpose(1, 2).flatten(2)
        video, text = joint[:, :count], joint[:, count:]
        video = attn.to_out[1](attn.to_out[0](video))
        if hasattr(attn, "to_add_out"):
            text = attn.to_add_out(text)
        return video, text
