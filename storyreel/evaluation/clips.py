"""Pieces of a film cut out of its stream of frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor


def clips(frames: Iterable[Tensor], spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Tensor]]:
    """Yield the position of each of ``spans`` and its clip, uint8 (T, H, W, 3), the earliest end first.

    ``frames`` are chunks (T, H, W, 3); a span is its first frame and the one behind its last. Spans may
    overlap. Only the frames of spans that are not over yet are kept. A span beyond the film's end
    is never yielded, and nothing is read behind the last span.
    """
    waiting = sorted(range(len(spans)), key=lambda i: spans[i][1], reverse=True)
    held, first = torch.empty(0, dtype=torch.uint8), 0
    for chunk in frames:
        held = torch.cat([held, chunk]) if len(held) else chunk
        while waiting and spans[waiting[-1]][1] <= first + len(held):
            position = waiting.pop()
            start, stop = spans[position]
            yield position, held[start - first : stop - first]
        if not waiting:
            return
        over = min(max(0, min(spans[i][0] for i in waiting) - first), len(held))
        held, first = held[over:], first + over
