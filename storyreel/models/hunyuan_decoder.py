"""HunyuanVideo 1.5's decoder, as nodes that a clip goes through latent frame by latent frame.

Its convolutions look back two frames, and its one layer of attention to all latent frames before: their keys
and values are kept, two numbers for each of a thousand channels of a latent cell. The same sums as
`HunyuanVideo15Decoder3D` makes, whose mask has as many elements as there are pairs of cells in a clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from storyreel.models.streaming import Chain, Convolution, Node, Sum, unpacked


def decoder_of(decoder: Any, frames: int) -> Node:
    """Return the decoder of one clip of so many latent frames."""
    rest: Node = _convolution(decoder.conv_out, decoder.norm_out, decoder.conv_act)
    for block in reversed(decoder.up_blocks):
        upsampler = (block.upsamplers or [None])[0]
        if upsampler is not None and upsampler.add_temporal_upsample:
            rest = OneByOne(rest)
        rises = [] if upsampler is None else [Rise(upsampler)]
        rest = Chain(*map(_residual, block.resnets), *rises, rest)
    middle = decoder.mid_block
    nodes = [_residual(middle.resnets[0])]
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
        nodes += [] if attention is None else [LookingBack(attention, frames)]
        nodes.append(_residual(resnet))
    begin = Sum(_convolution(decoder.conv_in), Node(lambda x: x.repeat_interleave(decoder.repeat, 1)))
    return OneByOne(Chain(begin, *nodes, rest))


def _convolution(layer: Any, *before: nn.Module) -> Node:
    def work(x: Tensor) -> Tensor:
        for module in before:
            x = module(x)
        return x

    return Convolution(layer.conv, work, 0, layer.time_causal_padding[0])


def _residual(block: Any) -> Node:
    main = Chain(
        _convolution(block.conv1, block.norm1, block.nonlinearity),
        _convolution(block.conv2, block.norm2, block.nonlinearity),
    )
    return Sum(main, Node((lambda x: x) if block.conv_shortcut is None else block.conv_shortcut))


class OneByOne(Node):
    """Sends frames through a node one at a time, so that little is alive."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def push(self, x: Tensor) -> Tensor | None:
        """Return what has come through."""
        made = [y for frame in x.split(1, 2) if (y := self._node.push(frame)) is not None]
        return torch.cat(made, 2) if made else None

    def flush(self) -> Iterator[Tensor]:
        """Yield what the end of the clip completes."""
        yield from self._node.flush()


class LookingBack(Node):
    """Attends from every cell of a frame to all of this frame and of those before it.

    There is room for the keys and values of all ``frames`` from the beginning: what is alive does not grow.
    """

    def __init__(self, layer: Any, frames: int) -> None:
        self._layer, self._frames, self._seen = layer, frames, 0
        self._known: Tensor | None = None

    def push(self, x: Tensor) -> Tensor:
        """Return a frame (1, C, 1, H, W), attended."""
        layer, cells = self._layer, x.shape[3] * x.shape[4]
        frame = layer.norm(x)
        query, key, value = (
            convolve(frame).flatten(2).transpose(1, 2) for convolve in (layer.to_q, layer.to_k, layer.to_v)
        )
        if self._known is None:
            self._known = x.new_empty(2, 1, self._frames * cells, x.shape[1])
        begin, self._seen = self._seen, self._seen + cells
        self._known[0, :, begin : self._seen], self._known[1, :, begin : self._seen] = key, value
        keys, values = self._known[:, :, : self._seen, :]
        attended = nn.functional.scaled_dot_product_attention(query[:, None], keys[:, None], values[:, None])
        output: Tensor = layer.proj_out(attended[:, 0].transpose(1, 2).unflatten(2, x.shape[2:]))
        return output.add_(x)


class Rise(Node):
    """Doubles rows and columns, and where the layer does so the frames, but for the clip's first."""

    def __init__(self, layer: Any) -> None:
        self._convolution = _convolution(layer.conv)
        self._times, self._repeats, self._first = 1 + layer.add_temporal_upsample, layer.repeats, True

    def push(self, x: Tensor) -> Tensor:
        """Return the frames that one (1, C, 1, H, W) becomes."""
        made = self._convolution.push(x)
        assert made is not None  # it looks back alone
        first, self._first = self._first, False
        if self._times == 1:
            return _spread(made, 1).add_(_spread(x.repeat_interleave(self._repeats, 1), 1))
        if first:
            made = _spread(made, 1)
            return made[:, : made.shape[1] // 2] + _spread(x, 1).repeat_interleave(self._repeats // 2, 1)
        return _spread(made, 2).add_(_spread(x, 2).repeat_interleave(self._repeats, 1))


def _spread(x: Tensor, times: int) -> Tensor:
    """Turn channels (1, times·2·2·C, F, H, W) into (1, C, times·F, 2·H, 2·W)."""
    return unpacked(x.unflatten(1, (times, 2, 2, -1)).permute(0, 4, 1, 2, 3, 5, 6, 7))
