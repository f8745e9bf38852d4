"""A decoder as nodes that a clip goes through a few frames at a time, equal to all at once.

A node is pushed frames (1, C, T, H, W) and returns those that they complete, or None. When the clip ends the
nodes are flushed one after the other, so that what each of them still holds goes in small pieces
through those behind it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

# In half precision, older ones need many times the memory for three dimensions or go wrong, and
# torch then takes kernels that need more still (pytorch/pytorch#163539 and #166643).
CUDNN = 91500


class Node:
    """Works on every frame by itself."""

    def __init__(self, work: Callable[[Tensor], Tensor]) -> None:
        self._work = work

    def push(self, x: Tensor) -> Tensor | None:
        """Return the frames that ``x`` completes."""
        return self._work(x)

    def flush(self) -> Iterator[Tensor]:
        """Yield the frames that the end of the clip completes."""
        yield from ()


class Convolution(Node):
    """Convolves what ``work`` makes of frames; the clip's first frame is repeated before it, its last behind.

    ``pad`` is the padding of rows and columns by what is at their borders, beside the layer's own. Of
    ``size`` frames, ``behind`` come after the one that they make.
    """

    def __init__(self, layer: nn.Conv3d, work: Callable[[Tensor], Tensor], behind: int, pad: int = 0) -> None:
        super().__init__(work)
        self._layer, self._size, self._behind, self._pad = layer, layer.kernel_size[0], behind, pad
        self._tail: Tensor | None = None

    def push(self, x: Tensor) -> Tensor | None:
        """Return the frames whose neighbours in time are there."""
        return self._convolved(self._work(x))

    def flush(self) -> Iterator[Tensor]:
        """Yield the last frames."""
        if self._behind and self._tail is not None:
            made = self._convolved(self._tail[:, :, -1:].expand(-1, -1, self._behind, -1, -1))
            if made is not None:
                yield made

    def _convolved(self, x: Tensor) -> Tensor | None:
        if self._size > 1:
            first = x[:, :, :1].expand(-1, -1, self._size - 1 - self._behind, -1, -1)
            x = torch.cat([first if self._tail is None else self._tail, x], 2)
            self._tail = x[:, :, max(0, x.shape[2] - self._size + 1) :].clone()
        if x.shape[2] < self._size:
            return None
        if self._pad:
            x = nn.functional.pad(x, (self._pad,) * 4 + (0, 0), mode="replicate")
        old = x.is_cuda and x.dtype != torch.float32 and (torch.backends.cudnn.version() or 0) < CUDNN
        output: Tensor = folded(self._layer, x) if old else self._layer(x)
        return output


class Chain(Node):
    """Nodes one after the other."""

    def __init__(self, *nodes: Node) -> None:
        self._nodes = nodes

    def push(self, x: Tensor) -> Tensor | None:
        """Return what has come through all of them."""
        return self._through(x, 0)

    def flush(self) -> Iterator[Tensor]:
        """Flush the nodes in their order, each through those behind it."""
        for place, node in enumerate(self._nodes):
            for x in node.flush():
                if (made := self._through(x, place + 1)) is not None:
                    yield made

    def _through(self, x: Tensor | None, place: int) -> Tensor | None:
        for node in self._nodes[place:]:
            if x is None:
                break
            x = node.push(x)
        return x


class Sum(Node):
    """Adds what comes through ``main`` and what comes around it, which waits until its frame is there."""

    def __init__(self, main: Node, around: Node) -> None:
        self._main, self._around = main, around
        self._waiting: Tensor | None = None

    def push(self, x: Tensor) -> Tensor | None:
        """Return the frames that are through."""
        self._wait(self._around.push(x))
        return self._added(self._main.push(x))

    def flush(self) -> Iterator[Tensor]:
        """Yield the last frames."""
        for x in self._around.flush():
            self._wait(x)
        for x in self._main.flush():
            if (made := self._added(x)) is not None:
                yield made

    def _wait(self, x: Tensor | None) -> None:
        if x is not None:
            self._waiting = x if self._waiting is None else torch.cat([self._waiting, x], 2)

    def _added(self, x: Tensor | None) -> Tensor | None:
        if x is not None:
            assert self._waiting is not None
            count = x.shape[2]
            x = x.add_(self._waiting[:, :, :count])
            self._waiting = self._waiting[:, :, count:].clone() if self._waiting.shape[2] > count else None
        return x


def stream(decoder: Node, latents: Tensor, at_once: int) -> Iterator[Tensor]:
    """Yield the pictures (1, 3, T, H, W) of latents (1, C, F, H, W), ``at_once`` latent frames a time."""
    for chunk in latents.split(at_once, dim=2):
        if (pictures := decoder.push(chunk)) is not None:
            yield pictures
    yield from decoder.flush()


def folded(layer: nn.Conv3d, x: Tensor) -> Tensor:
    """Convolve as ``layer`` does, in two dimensions: the frames that make one are together its channels."""
    size, count = layer.kernel_size[0], x.shape[2] - layer.kernel_size[0] + 1
    frames = x[0].transpose(0, 1)
    beside = torch.cat([frames[begin : begin + count] for begin in range(size)], 1)
    weight = layer.weight.transpose(1, 2).flatten(1, 2)
    padding: tuple[int, ...] = tuple(int(side) for side in layer.padding[1:])
    if layer.padding_mode != "zeros":
        rows, columns = padding
        beside = nn.functional.pad(beside, (columns, columns, rows, rows), mode=layer.padding_mode)
        padding = (0, 0)
    output = nn.functional.conv2d(beside, weight, layer.bias, padding=padding)
    return output.transpose(0, 1)[None]


def unpacked(x: Tensor) -> Tensor:
    """Turn (B, C, t, h, w, T, H, W) into (B, C, T·t, H·h, W·w)."""
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def channels_last(module: nn.Module) -> None:
    """Lay a codec's weights out as tensor cores want them; what it makes then lies so too."""
    forms = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weight in module.parameters():
        if weight.ndim in forms:
            weight.data = weight.data.contiguous(memory_format=forms[weight.ndim])
