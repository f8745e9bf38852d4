"""Wan's decoder, one picture at a time and its rows in strips, so that it fits in fp32 too.

Its convolutions look back two pictures. What a picture adds to the next two is added up at once, so that
nothing has to be copied beside them: the same sums as `WanDecoder3d` makes, with far less alive.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanDecoder3d,
    WanResample,
    WanResidualBlock,
)
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

CELLS = 2**16  # rows times columns of a strip: work for the largest GPU, and little beside a picture


def stream(decoder: WanDecoder3d, latents: Tensor, cells: int = CELLS) -> Iterator[Tensor]:
    """Yield the pictures (1, C', 1, H', W') of latents (1, C, F, H, W), strip by strip of ``cells``."""
    last = latents.is_contiguous(memory_format=torch.channels_last_3d)
    return _Stream(decoder, cells, torch.channels_last_3d if last else torch.contiguous_format).pictures(
        latents
    )


class _Stream:
    """What the layers of a decoder know of one clip."""

    def __init__(self, decoder: WanDecoder3d, cells: int, form: torch.memory_format) -> None:
        self._decoder, self._cells, self._form = decoder, cells, form
        self._sums: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # of the next two pictures, so far
        self._seen: dict[nn.Module, Tensor] = {}  # the last two frames

    def pictures(self, latents: Tensor) -> Iterator[Tensor]:
        decoder = self._decoder
        frames = self._begun(latents)
        for block in decoder.up_blocks:
            frames = self._risen(block, frames)
        for x in frames:
            yield self._convolved(decoder.conv_out, x, decoder.norm_out, decoder.nonlinearity)
            del x  # before the next one is made; the others yield what they keep no name for

    def _begun(self, latents: Tensor) -> Iterator[Tensor]:
        for x in latents.split(1, 2):
            yield self._middle(self._convolved(self._decoder.conv_in, x))

    def _middle(self, x: Tensor) -> Tensor:
        block = self._decoder.mid_block
        x = self._residual(block.resnets[0], x)
        for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
            x = self._residual(resnet, x if attention is None else attention(x))
        return x

    def _risen(self, block: Any, frames: Iterator[Tensor]) -> Iterator[Tensor]:
        """Send frames through a block that may double their rows and columns, and their number."""
        upsampler = block.upsampler if hasattr(block, "upsampler") else (block.upsamplers or [None])[0]
        shortcut = getattr(block, "avg_shortcut", None)
        first = True
        for x in frames:
            around = [] if shortcut is None else list(shortcut(x, first_chunk=first).split(1, 2))
            first = False
            for resnet in block.resnets:
                x = self._residual(resnet, x)
            waiting = [x] if upsampler is None else self._in_time(upsampler, x)
            del x
            while waiting:
                yield self._enlarged(upsampler, waiting.pop(0), around.pop(0) if around else None)

    def _residual(self, block: WanResidualBlock, x: Tensor) -> Tensor:
        """Send a frame through a residual block, in its own memory where its channels stay.

        The second convolution is a row behind the first, and what it adds to is no longer needed there.
        """
        output: Tensor = block.conv_shortcut(x)
        height = x.shape[3]
        above = x.new_empty(0)
        for begin, end in self._strips(x):
            top, first, last = max(0, begin - 1), max(0, begin - 1), end if end == height else end - 1
            strip = block.nonlinearity(block.norm1(x[..., top : end + 1, :]))
            strip = self._summed(block.conv1, strip, top, begin, end, height)
            strip = block.nonlinearity(block.norm2(strip))
            strip = torch.cat([above, strip], 3) if begin else strip
            above = strip[..., -2:, :].clone()
            top = end - strip.shape[3]
            output[..., first:last, :] += self._summed(block.conv2, strip, top, first, last, height)
        return output

    def _convolved(self, layer: WanCausalConv3d, x: Tensor, *before: nn.Module) -> Tensor:
        """Convolve a frame, (1, C, 1, H, W), after what is done ``before``."""
        output = self._blank(x, layer.out_channels, *x.shape[3:])
        for begin, end in self._strips(x):
            top = max(0, begin - 1)
            strip = x[..., top : end + 1, :]
            for work in before:
                strip = work(strip)
            output[..., begin:end, :] = self._summed(layer, strip, top, begin, end, x.shape[3])
        return output

    def _summed(
        self, layer: WanCausalConv3d, strip: Tensor, top: int, begin: int, end: int, height: int
    ) -> Tensor:
        """Return rows of this frame, convolved, and add to those of the next two.

        ``strip`` begins at row ``top`` and has a row more on either side, where there is one.
        """
        if layer not in self._sums:
            shape = layer.out_channels, height, strip.shape[4]
            self._sums[layer] = self._blank(strip, *shape).zero_(), self._blank(strip, *shape).zero_()
        first, second = (rows[..., begin:end, :] for rows in self._sums[layer])
        weight = layer.weight.flip(2).permute(2, 0, 1, 3, 4).flatten(0, 1)
        bias = pad(layer.bias, (0, 2 * layer.out_channels))
        made = conv2d(strip[:, :, 0], weight, bias, padding=1)[:, :, None, begin - top : end - top]
        now, after, last = made.split(layer.out_channels, 1)
        output: Tensor = now.add_(first)
        torch.add(second, after, out=first)
        second.copy_(last)
        return output

    def _in_time(self, upsampler: WanResample, x: Tensor) -> list[Tensor]:
        """Make two frames of one; the clip's first stays alone, and the others do not know it."""
        if upsampler.mode != "upsample3d":
            return [x]
        layer = upsampler.time_conv
        if layer not in self._seen:
            self._seen[layer] = torch.zeros_like(x).expand(-1, -1, 2, -1, -1)
            return [x]
        made = layer(x, self._seen[layer])
        self._seen[layer] = torch.cat([self._seen[layer][:, :, 1:], x], 2)
        return [frame.clone() for frame in made.chunk(2, 1)]  # each to be freed by itself

    def _enlarged(self, upsampler: WanResample | None, x: Tensor, around: Tensor | None) -> Tensor:
        """Double a frame's rows and columns and convolve, then add what goes around that."""
        if upsampler is None:
            return x
        upsample, layer = upsampler.resample
        output = self._blank(x, layer.out_channels, 2 * x.shape[3], 2 * x.shape[4])
        for begin, end in self._strips(output):
            top = max(0, begin - 1) // 2
            rows = layer(upsample(x[:, :, 0, top : end // 2 + 1]))
            output[:, :, 0, begin:end] = rows[:, :, begin - 2 * top : end - 2 * top]
        return output if around is None else output.add_(around)

    def _strips(self, x: Tensor) -> Iterator[tuple[int, int]]:
        """Yield where strips of a frame's rows begin and end."""
        height, width = x.shape[3:]
        size = max(2, self._cells // width)
        for begin in range(0, height, size):
            yield begin, min(begin + size, height)

    def _blank(self, x: Tensor, channels: int, height: int, width: int) -> Tensor:
        """Return a frame (1, C, 1, H, W) of any content, of the dtype and on the device of ``x``."""
        shape = (1, channels, 1, height, width)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=self._form)
