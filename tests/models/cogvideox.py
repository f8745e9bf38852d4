"""CogVideoX 5B as a model of storyreel's: all that it takes, of which models/README.md speaks.

It is no part of the package. `test_own_family.py` puts its entry into the table and holds that it works.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb, get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor, nn
from transformers import T5EncoderModel

from storyreel.benchmark.stock import Stock
from storyreel.models.attention import Keys, attend
from storyreel.models.base import Text
from storyreel.models.loading import TextEncoder
from storyreel.models.pipeline import T5_THIN, T5_XXL, PipelineAdapter
from storyreel.models.specs import ModelSpec

AT_ONCE = 2  # latent frames that its codec was taught to decode together


class CogVideoXAttention:
    """Attention of video and text to both, by one set of layers, where tokens have weights."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Keys,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Attend: video (B, N, D) and text (B, L, D), to the same shapes."""
        count, length = hidden_states.shape[1], encoder_hidden_states.shape[1]
        both = torch.cat([hidden_states, encoder_hidden_states], 1)
        q, k, value = (
            layer(both).unflatten(2, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = (
            torch.cat([apply_rotary_emb(x[:, :count], image_rotary_emb, sequence_dim=1), x[:, count:]], 1)
            for x in (attn.norm_q(q), attn.norm_k(k))
        )
        rows = [row.flatten(2) for row in attend(query, key, value, attention_mask, count)]
        padded = [nn.functional.pad(row, (0, 0, 0, count + length - row.shape[1])) for row in rows]
        output = attn.to_out[0](torch.cat(padded))
        return output[:, :count], output[:, count:]


class CogVideoXAdapter(PipelineAdapter):
    """CogVideoX predicts v at DDIM's noise levels; what pads its text counts, and its frames come first."""

    transformer_class = CogVideoXTransformer3DModel
    vae_class = AutoencoderKLCogVideoX
    reads_with = (TextEncoder(T5EncoderModel, T5_XXL, T5_THIN),)
    schedulers = (CogVideoXDDIMScheduler,)
    schedule: ClassVar[dict[str, Any]] = {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "snr_shift_scale": 1.0,
        "timestep_spacing": "trailing",
    }

    def _prepare(self, transformer: Any) -> None:
        for block in transformer.transformer_blocks:
            block.attn1.processor = CogVideoXAttention()

    def _encoded(self, encoder: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode with the padding, which is as good as any token."""
        return encoder(ids)[0], torch.ones_like(mask, dtype=torch.float32)

    # σ is that of z / (√ᾱ + √(1-ᾱ)), which is (1 - σ)·x0 + σ·ε, for CogVideoX's z = √ᾱ·x0 + √(1-ᾱ)·ε.

    def sigmas(self, steps: int, shape: Sequence[int], shift: float | None = None) -> list[float]:
        """Return DDIM's noise levels."""
        self.parts.scheduler.set_timesteps(steps)
        return [*(self._level(int(time)) for time in self.parts.scheduler.timesteps), 0.0]

    def _level(self, time: int) -> float:
        signal, noise = self._shares(time)
        return noise / (signal + noise)

    def _shares(self, time: int) -> tuple[float, float]:
        alpha = float(self.parts.scheduler.alphas_cumprod[time])
        return alpha**0.5, (1 - alpha) ** 0.5

    def _velocities(self, transformer: Any, x: Tensor, sigma: float, texts: Sequence[Text]) -> Tensor:
        time = min(range(1000), key=lambda time: abs(self._level(time) - sigma))
        signal, noise = self._shares(time)
        z = ((signal + noise) * x).expand(len(texts), -1, -1, -1, -1)
        states, keys = self._keys(transformer, texts)
        v = transformer(
            hidden_states=z.transpose(1, 2).to(self.dtype),
            encoder_hidden_states=states,
            timestep=torch.full((len(texts),), time, device=x.device),
            image_rotary_emb=self._rotation(transformer.config, x),
            attention_kwargs={"attention_mask": keys},
            return_dict=False,
        )[0].transpose(1, 2)
        velocity: Tensor = (signal + noise) * v + (noise - signal) * z
        return velocity

    def _rotation(self, config: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        frames, *grid = x.shape[2], x.shape[3] // config.patch_size, x.shape[4] // config.patch_size
        usual = config.sample_width // config.patch_size, config.sample_height // config.patch_size
        crop = get_resize_crop_region_for_grid(tuple(grid), *usual)
        cos, sin = get_3d_rotary_pos_embed(
            config.attention_head_dim, crop, tuple(grid), frames, device=x.device
        )
        return cos, sin

    def _raw(self, latents: Tensor) -> Tensor:
        raw: Tensor = latents / self.vae.config.scaling_factor
        return raw

    def _decoded(self, latents: Tensor) -> Iterator[Tensor]:
        """Decode two latent frames at a time, the first ones as three: its norms look at what comes together.

        Of an even number the last is there twice, and what the second of them makes is left out.
        """
        count = latents.shape[2]
        begin, cache, left = 0, None, 4 * (count - 1) + 1
        if count % 2 == 0:
            latents = torch.cat([latents, latents[:, :, -1:]], 2)
        while begin < latents.shape[2]:
            end = begin + AT_ONCE + (begin == 0)
            pictures, cache = self.vae.decoder(latents[:, :, begin:end], conv_cache=cache)
            yield pictures[:, :, :left]
            begin, left = end, left - pictures.shape[2]


COGVIDEOX = ModelSpec(
    name="cogvideox-5b",
    title="CogVideoX, 5 B",
    adapter=f"{__name__}:CogVideoXAdapter",
    licence="CogVideoX License",
    fps=8,
    frames_per_latent=4,
    pixels_per_latent=8,
    latent_channels=16,
    size=(720, 480),
    size_multiple=16,
    min_size=(256, 256),
    max_size=(720, 720),
    seconds=5.0,
    max_latents=13,  # 49 frames
    decoded_at_once=AT_ONCE,
    overlap=1,
    text_length=226,
    steps=50,
    guidance=6.0,
    first_alike=False,
    architecture={"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True},
)


class CogVideoXStock(Stock):
    """`CogVideoXPipeline`, for `STOCK`: to compare with."""

    pipeline_class = CogVideoXPipeline
    processor = CogVideoXAttnProcessor2_0

    def _ask(self, transformer: Any, x: Tensor, states: Tensor, mask: Tensor, *others: Tensor) -> None:
        adapter = self._adapter
        assert isinstance(adapter, CogVideoXAdapter)
        transformer(
            hidden_states=x.expand(len(states), -1, -1, -1, -1).transpose(1, 2),
            encoder_hidden_states=states,
            timestep=x.new_empty(len(states)),
            image_rotary_emb=adapter._rotation(transformer.config, x),
            return_dict=False,
        )

    def _arguments(self, pipeline: Any, noise: Tensor) -> dict[str, Any]:
        return {"latents": noise.transpose(1, 2)}

    def _unpacked(self, latents: Tensor, noise: Tensor) -> Tensor:
        return latents.transpose(1, 2)
