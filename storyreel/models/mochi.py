"""Mochi in diffusers' classes: the embedded model is one, at toy size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKLMochi, MochiTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from torch import Tensor, nn
from transformers import T5EncoderModel

from storyreel.models.base import Text
from storyreel.models.loading import TextEncoder
from storyreel.models.mochi_attention import use_batched_attention
from storyreel.models.pipeline import T5_THIN, T5_XXL, PipelineAdapter

THRESHOLD = 0.025  # as in diffusers' pipeline: the noise that half of the steps are spent on


class MochiAdapter(PipelineAdapter):
    """Mochi counts noise levels and velocities the other way round: 1 is clean."""

    transformer_class = MochiTransformer3DModel
    vae_class = AutoencoderKLMochi
    reads_with = (TextEncoder(T5EncoderModel, T5_XXL, T5_THIN),)
    schedule: ClassVar[dict[str, Any]] = {"invert_sigmas": True}

    def _prepare(self, transformer: Any) -> None:
        use_batched_attention(transformer)

    def _encoded(self, encoder: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        states, weights = super()._encoded(encoder, ids, mask)
        if self.parts.options.get("force_zeros_for_empty_prompt") and weights.shape[1] <= 1:
            return states[:, :0], weights[:, :0]  # of "" there is the end token alone
        return states, weights

    def sigmas(self, steps: int, shape: Sequence[int], shift: float | None = None) -> list[float]:
        """Return Mochi's linear-quadratic noise levels, or even ones for a model that wants them.

        Half of Mochi's own steps lie above σ = 0.975, which pays with 64 steps and not with 16.
        """
        if self.spec.even_steps or steps == 1:
            return [1 - step / steps for step in range(steps + 1)]
        self.parts.scheduler.set_timesteps(sigmas=np.array(linear_quadratic_schedule(steps, THRESHOLD)))
        return [1 - level for level in self.parts.scheduler.sigmas.tolist()]

    def _velocities(self, transformer: Any, x: Tensor, sigma: float, texts: Sequence[Text]) -> Tensor:
        states, keys = self._keys(transformer, texts)
        output: Tensor = transformer(
            hidden_states=x.to(self.dtype).expand(len(texts), -1, -1, -1, -1),
            encoder_hidden_states=states,
            encoder_attention_mask=keys,
            timestep=torch.full((len(texts),), 1000 * (1 - sigma), device=x.device),
            return_dict=False,
        )[0]
        return -output

    @torch.inference_mode()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Return the latents (1, C, F, H, W) of pictures, uint8 (T, H, W, 3); T = 1 + k·frames per latent."""
        video = pictures.permute(3, 0, 1, 2)[None].to(self.device).float() / 127.5 - 1
        mean = self._raw(torch.zeros(1, self.spec.latent_channels, 1, 1, 1, device=self.device))
        std = self._raw(torch.ones_like(mean)) - mean
        latents: Tensor = (self.vae.encode(video).latent_dist.mode() - mean) / std
        return latents

    def _decoded(self, latents: Tensor) -> Iterator[Tensor]:
        skip = self.vae.temporal_compression_ratio - 1
        with streaming(self.vae.decoder):
            for chunk in latents.split(self.spec.decoded_at_once, dim=2):
                yield self.vae.decoder(chunk)[0][:, :, skip:]
                skip = 0


@contextmanager
def streaming(decoder: nn.Module) -> Iterator[None]:
    """Let a causal decoder take a clip in pieces.

    Its convolutions repeat the first frame where there is none before; in a stream they must see
    the frames before instead, which diffusers' own framewise decoding gets wrong for Mochi's
    padding. Here a hook on each convolution prepends what it saw last, and its own padding in
    time is off.
    """
    found = [m for m in decoder.modules() if isinstance(m, CogVideoXCausalConv3d)]
    convolutions = [conv for conv in found if conv.time_kernel_size > 1]
    seen: dict[nn.Module, Tensor] = {}

    def prepend(conv: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert isinstance(conv, CogVideoXCausalConv3d)
        count = conv.time_kernel_size - 1
        before = seen.get(conv)
        if before is None:
            before = inputs[0][:, :, :1].expand(-1, -1, count, -1, -1)
        x = torch.cat([before, inputs[0]], 2)
        seen[conv] = x[:, :, -count:].clone()
        return (x, *inputs[1:])

    hooks = [conv.register_forward_pre_hook(prepend) for conv in convolutions]
    padding = [conv.time_causal_padding for conv in convolutions]
    try:
        for conv in convolutions:
            conv.time_causal_padding = (*conv.time_causal_padding[:4], 0, 0)
        yield
    finally:
        for conv, kept, hook in zip(convolutions, padding, hooks, strict=True):
            conv.time_causal_padding = kept
            hook.remove()
