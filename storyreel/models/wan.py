"""Wan in diffusers' classes: 2.1, and 2.2 with its two experts or, small, with a timestep for each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from storyreel.models.attention import TextProcessor
from storyreel.models.base import Text
from storyreel.models.loading import TextEncoder
from storyreel.models.pipeline import T5_THIN, T5_XXL, PipelineAdapter
from storyreel.models.wan_decoder import stream


class WanAdapter(PipelineAdapter):
    """Wan's text has no mask: what pads it counts, as zeros."""

    transformer_class = WanTransformer3DModel
    vae_class = AutoencoderKLWan
    reads_with = (TextEncoder(UMT5EncoderModel, {**T5_XXL, "vocab_size": 256384}, T5_THIN),)
    stack = "blocks"
    schedule: ClassVar[dict[str, Any]] = {"shift": 3.0}

    def clean(self, prompt: str) -> str:
        """Return a prompt as Wan's pipeline cleans it: mended by ftfy, HTML's signs read, single blanks."""
        cleaned: str = prompt_clean(prompt)
        return cleaned

    def _prepare(self, transformer: Any) -> None:
        for block in transformer.blocks:
            block.attn2.set_processor(TextProcessor())

    def _encoded(self, encoder: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode; zeros stand behind a text up to the full length, each as good as any token."""
        read, _ = super()._encoded(encoder, ids, mask)
        states = nn.functional.pad(read, (0, 0, 0, mask.shape[1] - read.shape[1]))
        return states, torch.ones_like(mask, dtype=torch.float32)

    def _velocities(
        self, transformer: Any, x: Tensor, sigma: float, texts: Sequence[Text], clean: int = 0
    ) -> Tensor:
        states, keys = self._keys(transformer, texts)
        for block in transformer.blocks:
            block.attn2.processor.keys = keys
        output: Tensor = transformer(
            hidden_states=x.to(self.dtype).expand(len(texts), -1, -1, -1, -1),
            timestep=self._timesteps(transformer, x, sigma, len(texts), clean),
            encoder_hidden_states=states,
            return_dict=False,
        )[0]
        return output

    def _timesteps(self, transformer: Any, x: Tensor, sigma: float, texts: int, clean: int) -> Tensor:
        """Return the timestep of each text; or of each token of x, (1, L), the same for all texts."""
        if not self.spec.pictures:
            return torch.full((texts,), 1000 * sigma, device=x.device)
        frames, height, width = (
            side // patch for side, patch in zip(x.shape[2:], transformer.config.patch_size, strict=True)
        )
        levels = torch.full((1, frames, height * width), 1000 * sigma, device=x.device)
        levels[:, :clean] = 0
        return levels.flatten(1)

    def _decoded(self, latents: Tensor) -> Iterator[Tensor]:
        patch = self.vae.config.patch_size  # 2.2's VAE for small models makes 2x2 pixels a channel
        for picture in stream(self.vae.decoder, self.vae.post_quant_conv(latents)):
            yield picture if patch is None else unpatchify(picture, patch)
