"""Mochi in diffusers' classes: the embedded model is one, at toy size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKLMochi, MochiTransformer3DModel
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from torch import Tensor, nn
from transformers import T5EncoderModel

from storyreel.models.base import Text
from storyreel.models.loading import TextEncoder
from storyreel.models.mochi_attention import use_batched_attention
from storyreel.models.pipeline import T5_THIN, T5_XXL, PipelineAdapter
from storyreel.models.streaming import Chain, Convolution, Node, Sum, stream, unpacked

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

    def _velocities(
        self,
        transformer: Any,
        x: Tensor,
        sigma: float,
        texts: Sequence[Text],
        counts: Tensor | None = None,
    ) -> Tensor:
        states, keys = self._keys(transformer, texts)
        if counts is not None:
            keys = keys._replace(video=token_counts(counts, x.shape[2], transformer.config.patch_size))
        output: Tensor = transformer(
            hidden_states=x.to(self.dtype).expand(len(texts), -1, -1, -1, -1),
            encoder_hidden_states=states,
            encoder_attention_mask=keys,
            timestep=torch.full((len(texts),), 1000 * (1 - sigma), device=x.device),
            return_dict=False,
        )[0]
        return -output

    def _decoded(self, latents: Tensor) -> Iterator[Tensor]:
        skip = self.vae.temporal_compression_ratio - 1
        for pictures in stream(_decoder(self.vae.decoder), latents, self.spec.decoded_at_once):
            yield pictures[:, :, skip:]
            skip = 0


def token_counts(counts: Tensor, frames: int, patch: int) -> Tensor:
    """Return how often each token of so many latent frames counts (frames·h·w,).

    ``counts`` (1, 1, L, H, W) are of the cells of the first frames: a token counts as that of its cells that
    counts most. All other tokens count once.
    """
    tokens = nn.functional.max_pool2d(counts[0, 0, :, None], patch).flatten()
    every = frames * tokens.numel() // counts.shape[2]
    return nn.functional.pad(tokens, (0, every - tokens.numel()), value=1.0)


def _decoder(decoder: Any) -> Node:
    """Return the decoder of one clip; diffusers' own framewise decoding gets Mochi's padding wrong."""

    def convolution(norm: nn.Module, nonlinearity: nn.Module, layer: Any) -> Node:
        return Convolution(layer.conv, lambda x: nonlinearity(norm(x)), 0, layer.width_pad)

    def residuals(block: Any) -> Iterator[Node]:
        for r in block.resnets:
            first = convolution(r.norm1, r.nonlinearity, r.conv1)
            yield Sum(Chain(first, convolution(r.norm2, r.nonlinearity, r.conv2)), Node(lambda x: x))

    def linear(layer: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: layer(x.movedim(1, -1)).movedim(-1, 1)

    def rise(block: Any) -> Callable[[Tensor], Tensor]:
        factors = (block.temporal_expansion, block.spatial_expansion, block.spatial_expansion)
        return lambda x: unpacked(linear(block.proj)(x).unflatten(1, (-1, *factors)))

    nodes = [Node(decoder.conv_in), *residuals(decoder.block_in)]
    for block in decoder.up_blocks:
        nodes += [*residuals(block), Node(rise(block))]
    last = linear(decoder.proj_out)
    return Chain(*nodes, *residuals(decoder.block_out), Node(lambda x: last(decoder.nonlinearity(x))))
