"""LTX-Video in diffusers' classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule
from torch import Tensor
from transformers import T5EncoderModel

from storyreel.errors import DamagedError
from storyreel.models.attention import TextProcessor
from storyreel.models.base import Text
from storyreel.models.loading import Parts, TextEncoder
from storyreel.models.ltx_decoder import ltx_decoder
from storyreel.models.memory import MemoryMode
from storyreel.models.pipeline import T5_THIN, T5_XXL, PipelineAdapter
from storyreel.models.specs import ModelSpec
from storyreel.models.streaming import stream

SHIFTS = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
DECODE_TIMESTEP, DECODE_NOISE = 0.05, 0.025  # for VAEs that end the denoising, as their authors advise
NOISE_SEED = 0


class LTXAdapter(PipelineAdapter):
    """LTX packs its latents into one row of tokens, and spaces its steps by their number."""

    transformer_class = LTXVideoTransformer3DModel
    vae_class = AutoencoderKLLTXVideo
    reads_with = (TextEncoder(T5EncoderModel, T5_XXL, T5_THIN),)
    schedule: ClassVar[dict[str, Any]] = {"use_dynamic_shifting": True}

    def __init__(
        self, spec: ModelSpec, device: torch.device, parts: Parts, memory: MemoryMode = "auto"
    ) -> None:
        vae: Any = parts.vae
        if any(vae.config.decoder_inject_noise):  # LTX-Video 0.9.1's: from no generator of ours
            raise DamagedError("this VAE adds noise of its own", "Use LTX-Video 0.9 or 0.9.5 and later.")
        super().__init__(spec, device, parts, memory)

    def _prepare(self, transformer: Any) -> None:
        for block in transformer.transformer_blocks:
            block.attn2.set_processor(TextProcessor())

    def _encoded(self, encoder: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode as LTX was taught: its text encoder sees the padding too."""
        count = int(mask.sum())
        return encoder(ids)[0][:, :count], mask[:, :count].float()

    def sigmas(self, steps: int, shape: Sequence[int], shift: float | None = None) -> list[float]:
        """Return noise levels that lie the nearer to noise, the more tokens there are."""
        if steps == 1:
            return [1.0, 0.0]
        scheduler = self.parts.scheduler
        options = [scheduler.config.get(name, usual) for name, usual in SHIFTS.items()]
        tokens = shape[-3] * shape[-2] * shape[-1]
        even = [1 + (1 / steps - 1) * step / max(1, steps - 1) for step in range(steps)]
        scheduler.set_timesteps(sigmas=even, mu=calculate_shift(tokens, *options))
        levels: list[float] = scheduler.sigmas.tolist()
        return levels

    def _velocities(self, transformer: Any, x: Tensor, sigma: float, texts: Sequence[Text]) -> Tensor:
        tokens = packed(x).to(self.dtype)
        states, keys = self._keys(transformer, texts)
        output: Tensor = transformer(
            hidden_states=tokens.expand(len(texts), -1, -1),
            encoder_hidden_states=states,
            timestep=torch.full((len(texts),), 1000 * sigma, device=x.device),
            encoder_attention_mask=keys,
            return_dict=False,
            **self._positions(x),
        )[0]
        return unpacked(output, x.shape)

    def _positions(self, x: Tensor) -> dict[str, Any]:
        """Return what tells the transformer where and when its tokens are."""
        spec, (frames, height, width) = self.spec, x.shape[2:]
        scale = (spec.frames_per_latent / spec.fps, spec.pixels_per_latent, spec.pixels_per_latent)
        return {
            "num_frames": frames,
            "height": height,
            "width": width,
            "rope_interpolation_scale": scale,
        }

    def _raw(self, latents: Tensor) -> Tensor:
        shape = (1, -1, 1, 1, 1)
        mean, std = (
            v.to(latents.device, latents.dtype).view(shape)
            for v in (self.vae.latents_mean, self.vae.latents_std)
        )
        raw: Tensor = latents * (std / self.vae.config.scaling_factor) + mean
        return raw

    def _decoded(self, latents: Tensor) -> Iterator[Tensor]:
        time = None
        if self.vae.config.timestep_conditioning:
            generator = torch.Generator().manual_seed(NOISE_SEED)
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            latents = (1 - DECODE_NOISE) * latents + DECODE_NOISE * noise
            time = latents.new_tensor([DECODE_TIMESTEP])
        yield from stream(ltx_decoder(self.vae.decoder, time, latents), latents, self.spec.decoded_at_once)


class LaterLTXAdapter(LTXAdapter):
    """LTX of 0.9.5 and later: other noise levels, and a latent frame is where its last picture is."""

    def _encoded(self, encoder: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return PipelineAdapter._encoded(self, encoder, ids, mask)

    def sigmas(self, steps: int, shape: Sequence[int], shift: float | None = None) -> list[float]:
        """Return linear-quadratic noise levels, as this pipeline passes them on."""
        if steps == 1:
            return [1.0, 0.0]
        self.parts.scheduler.set_timesteps(sigmas=linear_quadratic_schedule(steps).tolist())
        levels: list[float] = self.parts.scheduler.sigmas.tolist()
        return levels

    def _positions(self, x: Tensor) -> dict[str, Any]:
        spec, device = self.spec, x.device
        frame, row, column = (torch.arange(n, device=device, dtype=torch.float32) for n in x.shape[2:])
        per_latent = spec.frames_per_latent
        seconds = (per_latent * frame + 1 - per_latent).clamp(min=0) * (1.0 / spec.fps)
        axes = (seconds, row * spec.pixels_per_latent, column * spec.pixels_per_latent)
        places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
        return {"video_coords": places[None]}


def packed(x: Tensor) -> Tensor:
    """Turn latents (B, C, F, H, W) into tokens (B, F·H·W, C)."""
    return x.flatten(2).transpose(1, 2)


def unpacked(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Turn tokens (B, F·H·W, C) into latents of a shape (…, F, H, W)."""
    latents: Tensor = x.transpose(1, 2).unflatten(2, tuple(shape[2:]))
    return latents
