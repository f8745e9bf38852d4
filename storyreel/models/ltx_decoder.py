"""LTX's decoder, a few latent frames at a time.

Its convolutions need the frame ahead, so that diffusers can only decode all at once, or in tiles
that differ. Here every convolution keeps its last input frames, and what bypasses it is kept until its
output is there: the same arithmetic as `LTXVideoDecoder3d`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx import (
    LTXVideoCausalConv3d,
    LTXVideoDecoder3d,
    LTXVideoResnetBlock3d,
    LTXVideoUpsampler3d,
)
from torch import Tensor, nn


def stream(
    decoder: LTXVideoDecoder3d, latents: Tensor, time: Tensor | None, at_once: int
) -> Iterator[Tensor]:
    """Yield the pictures (1, 3, T, H, W) of latents (1, C, F, H, W), ``at_once`` latent frames a time.

    ``time`` (1,) is the timestep for a decoder that takes one.
    """
    state = _Stream()
    chunks = latents.split(at_once, dim=2)
    for index, chunk in enumerate(chunks):
        pictures = state.decode(decoder, chunk, time, index == len(chunks) - 1)
        if pictures.shape[2]:
            yield pictures


class _Stream:
    """The frames of one clip that the layers of a decoder still need."""

    def __init__(self) -> None:
        self._tails: dict[nn.Module, Tensor] = {}
        self._waiting: dict[nn.Module, Tensor] = {}
        self._begun: set[tuple[nn.Module, str]] = set()

    def decode(self, decoder: LTXVideoDecoder3d, x: Tensor, time: Tensor | None, last: bool) -> Tensor:
        """Return the pictures that the next latents ``x`` complete."""
        if decoder.timestep_scale_multiplier is not None and time is not None:
            time = time * decoder.timestep_scale_multiplier
        x = self._convolve(decoder.conv_in, x, last)
        embedded = _embedded(decoder.mid_block, time, x)
        for resnet in decoder.mid_block.resnets:
            x = self._residual(resnet, x, embedded, last)
        for block in decoder.up_blocks:
            if block.conv_in is not None:
                x = self._residual(block.conv_in, x, time, last)
            embedded = _embedded(block, time, x)
            for upsampler in block.upsamplers or ():
                x = self._upsample(upsampler, x, last)
            for resnet in block.resnets:
                x = self._residual(resnet, x, embedded, last)
        x = _normalised(decoder.norm_out, x)
        if decoder.scale_shift_table is not None:
            embedded = _embedded(decoder, time, x)
            assert embedded is not None
            table = decoder.scale_shift_table[None, ..., None, None, None]
            shift, scale = (embedded.unflatten(1, (2, -1)) + table).unbind(1)
            x = x * (1 + scale) + shift
        x = self._convolve(decoder.conv_out, decoder.conv_act(x), last)
        size = decoder.patch_size
        return _unpacked(x.unflatten(1, (-1, decoder.patch_size_t, size, size)).transpose(3, 4))

    def _convolve(self, layer: LTXVideoCausalConv3d, x: Tensor, last: bool) -> Tensor:
        """Convolve what has its neighbours in time; the clip's first and last frames are repeated."""
        size = layer.kernel_size[0]
        before = size - 1 if layer.is_causal else (size - 1) // 2
        if layer in self._tails or not x.shape[2]:
            x = torch.cat([self._tails.get(layer, x[:, :, :0]), x], 2)
        else:
            x = torch.cat([x[:, :, :1].expand(-1, -1, before, -1, -1), x], 2)
        if last and x.shape[2]:
            x = torch.cat([x, x[:, :, -1:].expand(-1, -1, size - 1 - before, -1, -1)], 2)
        if x.shape[2] < size:
            if x.shape[2]:
                self._tails[layer] = x
            return x.new_empty(len(x), layer.out_channels, 0, *x.shape[3:])
        self._tails[layer] = x[:, :, x.shape[2] - size + 1 :].clone()
        output: Tensor = layer.conv(x)
        return output

    def _residual(
        self, block: LTXVideoResnetBlock3d, x: Tensor, embedded: Tensor | None, last: bool
    ) -> Tensor:
        around = x
        if block.norm3 is not None:
            around = _normalised(block.norm3, around)
        if block.conv_shortcut is not None:
            around = self._convolve(block.conv_shortcut, around, last)
        modulation = None
        if block.scale_shift_table is not None and embedded is not None:
            modulation = embedded.unflatten(1, (4, -1)) + block.scale_shift_table[None, ..., None, None, None]
        for index, (norm, layer) in enumerate(((block.norm1, block.conv1), (block.norm2, block.conv2))):
            x = _normalised(norm, x)
            if modulation is not None:
                x = x * (1 + modulation[:, 2 * index + 1]) + modulation[:, 2 * index]
            x = self._convolve(layer, block.nonlinearity(x), last)
        return x + self._wait(block, around, x.shape[2])

    def _upsample(self, layer: LTXVideoUpsampler3d, x: Tensor, last: bool) -> Tensor:
        def spread(y: Tensor, which: str) -> Tensor:
            y = _unpacked(y.unflatten(1, (-1, *layer.stride)))
            if y.shape[2] and (layer, which) not in self._begun:
                self._begun.add((layer, which))
                y = y[:, :, layer.stride[0] - 1 :]
            return y

        output = spread(self._convolve(layer.conv, x, last), "through")
        if not layer.residual:
            return output
        repeats = layer.stride[0] * layer.stride[1] * layer.stride[2] // layer.upscale_factor
        around = spread(x, "around").repeat(1, repeats, 1, 1, 1)
        return output + self._wait(layer, around, output.shape[2])

    def _wait(self, layer: nn.Module, around: Tensor, count: int) -> Tensor:
        """Return the next ``count`` frames of what goes around a layer, and keep the others."""
        waiting = torch.cat([self._waiting[layer], around], 2) if layer in self._waiting else around
        self._waiting[layer] = waiting[:, :, count:]
        return waiting[:, :, :count]


def _normalised(norm: nn.Module, x: Tensor) -> Tensor:
    output: Tensor = norm(x.movedim(1, -1)).movedim(-1, 1)
    return output


def _embedded(block: Any, time: Tensor | None, x: Tensor) -> Tensor | None:
    """Return the timestep (1,) as a block's own embedding (1, D, 1, 1, 1)."""
    if block.time_embedder is None or time is None:
        return time
    embedding: Tensor = block.time_embedder(
        timestep=time.flatten(), resolution=None, aspect_ratio=None, batch_size=len(x), hidden_dtype=x.dtype
    )
    return embedding.view(len(x), -1, 1, 1, 1)


def _unpacked(x: Tensor) -> Tensor:
    """Turn (B, C, t, h, w, T, H, W) into (B, C, T·t, H·h, W·w)."""
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
