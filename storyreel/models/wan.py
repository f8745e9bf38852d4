"""Wan in diffusers' classes: 2.1, and 2.2 with its two experts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor
from transformers import UMT5EncoderModel

from storyreel.models.attention import added_logits
from storyreel.models.base import Text, stacked
from storyreel.models.loading import TextEncoder
from storyreel.models.pipeline import T5_THIN, T5_XXL, PipelineAdapter, padded_length
from storyreel.models.wan_decoder import stream


class WanAdapter(PipelineAdapter):
    """Wan's text has no mask: what pads it counts, as zeros."""

    transformer_class = WanTransformer3DModel
    vae_class = AutoencoderKLWan
    reads_with = (TextEncoder(UMT5EncoderModel, {**T5_XXL, "vocab_size": 256384}, T5_THIN),)
    stack = "blocks"
    schedule: ClassVar[dict[str, Any]] = {"shift": 3.0}

    def _prepare(self, transformer: Any) -> None:
        for block in transformer.blocks:
            block.attn2.set_processor(WeightedWanProcessor())

    def _encoded(self, encoder: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode; the zeros behind a text are all alike, so that two stand for all by their weights.

        The first one's weight has a logarithm that bfloat16 holds exactly, the second has the rest.
        """
        read, _ = super()._encoded(encoder, ids, mask)
        count, length = int(mask.sum()), mask.shape[1]
        blank = length - count
        most = math.exp(math.floor(16 * math.log(blank)) / 16) if blank > 1 else float(blank)
        kept = padded_length(min(count + 2, length), length)
        states = read.new_zeros(1, kept, read.shape[2])
        states[:, :count] = read[:, :count]
        weights = torch.zeros(1, kept, device=ids.device)
        weights[:, :count] = 1
        for place, weight in enumerate((most, blank - most)[: kept - count]):
            weights[:, count + place] = weight
        return states, weights

    def _velocities(self, transformer: Any, x: Tensor, sigma: float, texts: Sequence[Text]) -> Tensor:
        states, weights = stacked(texts)
        added = added_logits(weights, 0, self.dtype)
        for block in transformer.blocks:
            block.attn2.processor.added = added
        output: Tensor = transformer(
            hidden_states=x.to(self.dtype).expand(len(texts), -1, -1, -1, -1),
            timestep=torch.full((len(texts),), 1000 * sigma, device=x.device),
            encoder_hidden_states=states,
            return_dict=False,
        )[0]
        return output

    def _decoded(self, latents: Tensor) -> Iterator[Tensor]:
        patch = self.vae.config.patch_size  # 2.2's VAE for small models makes 2x2 pixels a channel
        for picture in stream(self.vae.decoder, self.vae.post_quant_conv(latents)):
            yield picture if patch is None else unpatchify(picture, patch)


class WeightedWanProcessor(WanAttnProcessor):  # type: ignore[misc]  # diffusers has no types
    """Cross-attention to text whose tokens count more or less: Wan itself passes no mask."""

    added: Tensor | None = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend, video (B, N, D) to text (B, L, D)."""
        output: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, self.added, rotary_emb)
        return output
