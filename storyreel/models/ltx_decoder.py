"""The decoder of LTX, and of LTX-2, as nodes.

Its convolutions need the frame ahead, so that diffusers decodes all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl_ltx import (
    LTXVideoCausalConv3d,
    LTXVideoDecoder3d,
    LTXVideoResnetBlock3d,
    LTXVideoUpsampler3d,
)
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import (
    LTX2VideoCausalConv3d,
    LTX2VideoDecoder3d,
    LTX2VideoResnetBlock3d,
    LTX2VideoUpsampler3d,
    PerChannelRMSNorm,
)
from torch import Tensor, nn

from storyreel.models.streaming import Chain, Convolution, Node, Sum, unpacked


def ltx_decoder(decoder: LTXVideoDecoder3d | LTX2VideoDecoder3d, time: Tensor | None, like: Tensor) -> Node:
    """Return a decoder of one clip; ``time`` (1,) is the timestep for one that takes it.

    Its latents are of dtype and device as ``like``.
    """
    if decoder.timestep_scale_multiplier is not None and time is not None:
        time = time * decoder.timestep_scale_multiplier
    embedded = _embedded(decoder.mid_block, time, like)
    nodes = [_convolution(decoder.conv_in), *(_residual(r, embedded) for r in decoder.mid_block.resnets)]
    for block in decoder.up_blocks:
        if block.conv_in is not None:
            nodes.append(_residual(block.conv_in, time))
        embedded = _embedded(block, time, like)
        nodes += [_upsampler(upsampler) for upsampler in block.upsamplers or ()]
        nodes += [_residual(resnet, embedded) for resnet in block.resnets]
    shift = scale = None
    if decoder.scale_shift_table is not None:
        shift, scale = _modulation(decoder, _embedded(decoder, time, like)).unbind(1)
    size = decoder.patch_size

    def pictures(x: Tensor) -> Tensor:
        return unpacked(x.unflatten(1, (-1, decoder.patch_size_t, size, size)).transpose(3, 4))

    nodes.append(_convolution(decoder.conv_out, _prepared(decoder.norm_out, decoder.conv_act, shift, scale)))
    return Chain(*nodes, Node(pictures))


def _convolution(
    layer: LTXVideoCausalConv3d | LTX2VideoCausalConv3d | nn.Conv3d,
    work: Callable[[Tensor], Tensor] = lambda x: x,
) -> Node:
    if isinstance(layer, nn.Conv3d):  # LTX-2's way round its layers, of single pictures
        return Convolution(layer, work, 0)
    # LTX-2 would be told with every call whether it is causal, and is not.
    return Convolution(
        layer.conv, work, 0 if getattr(layer, "is_causal", False) else layer.kernel_size[0] // 2
    )


def _residual(block: LTXVideoResnetBlock3d | LTX2VideoResnetBlock3d, embedded: Tensor | None) -> Node:
    rows: Any = [None] * 4
    if block.scale_shift_table is not None:
        rows = _modulation(block, embedded).unbind(1)
    first = _convolution(block.conv1, _prepared(block.norm1, block.nonlinearity, *rows[:2]))
    second = _convolution(block.conv2, _prepared(block.norm2, block.nonlinearity, *rows[2:]))
    around = Node(lambda x: x)
    if block.conv_shortcut is not None:
        around = _convolution(block.conv_shortcut, lambda x: _normalised(block.norm3, x))
    return Sum(Chain(first, second), around)


def _upsampler(layer: LTXVideoUpsampler3d | LTX2VideoUpsampler3d) -> Node:
    through = Chain(_convolution(layer.conv), _Spread(layer.stride))
    if not layer.residual:
        return through
    repeats = layer.stride[0] * layer.stride[1] * layer.stride[2] // layer.upscale_factor
    return Sum(through, Chain(_Spread(layer.stride), Node(lambda x: x.repeat(1, repeats, 1, 1, 1))))


class _Spread(Node):
    """Turns channels into frames, rows and columns; the clip's first frame becomes one alone."""

    def __init__(self, stride: tuple[int, int, int]) -> None:
        self._stride, self._begun = stride, False

    def push(self, x: Tensor) -> Tensor | None:
        x = unpacked(x.unflatten(1, (-1, *self._stride)))
        if not self._begun:
            self._begun, x = True, x[:, :, self._stride[0] - 1 :]
        return x


def _prepared(
    norm: nn.Module, nonlinearity: nn.Module, shift: Tensor | None = None, scale: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """Return what is done before a convolution."""

    def prepare(x: Tensor) -> Tensor:
        x = _normalised(norm, x)
        if shift is not None and scale is not None:
            x = x * (1 + scale) + shift
        output: Tensor = nonlinearity(x)
        return output

    return prepare


def _normalised(norm: nn.Module, x: Tensor) -> Tensor:
    if isinstance(norm, PerChannelRMSNorm):  # knows where the channels are
        by_itself: Tensor = norm(x)
        return by_itself
    output: Tensor = norm(x.movedim(1, -1)).movedim(-1, 1)
    return output


def _modulation(block: Any, embedded: Tensor | None) -> Tensor:
    """Return the shifts and scales (1, N, C, 1, 1, 1) of a block's timestep."""
    assert embedded is not None
    table: Tensor = block.scale_shift_table
    rows: Tensor = embedded.unflatten(1, (len(table), -1)) + table[None, ..., None, None, None]
    return rows


def _embedded(block: Any, time: Tensor | None, like: Tensor) -> Tensor | None:
    """Return the timestep (1,) as a block's own embedding (1, D, 1, 1, 1)."""
    if block.time_embedder is None or time is None:
        return time
    embedding: Tensor = block.time_embedder(
        timestep=time.flatten(), resolution=None, aspect_ratio=None, batch_size=1, hidden_dtype=like.dtype
    )
    return embedding.view(1, -1, 1, 1, 1)
