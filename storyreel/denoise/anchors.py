"""What segments remember of earlier ones, for identity (METHOD 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from storyreel.method.memory import anchor_weight
from storyreel.models.base import Adapter, Memory, joined_memories
from storyreel.story.plan import Plan, Segment


class Anchors:
    """Looks at the middle frame of finished segments, and keeps what it saw of the story's first.

    ``recall`` returns the latents (1, C, F, H, W) of a finished segment.
    """

    def __init__(self, adapter: Adapter, plan: Plan, recall: Callable[[int], Tensor]) -> None:
        self._adapter, self._plan, self._recall = adapter, plan, recall
        self._first: Memory | None = None

    def memory(self, segment: Segment) -> Memory | None:
        """Return a segment's memory of those before it; None if it has none."""
        method, found = self._plan.settings.method, []
        for index in self._plan.anchors(segment):
            seen = self._look(index)
            weight = anchor_weight(method.memory, method.beta, segment.index - index, index == 0)
            found.append(replace(seen, weights=seen.weights * weight))
        return joined_memories(found) if found else None

    @torch.inference_mode()
    def _look(self, index: int) -> Memory:
        if index == 0 and self._first is not None:
            return self._first
        latents = self._recall(index)
        middle = latents.shape[2] // 2
        text = self._adapter.encode(self._plan.segments[index].prompt)
        seen = self._adapter.remember(latents[:, :, middle : middle + 1], text)
        if index == 0:
            self._first = seen
        return seen
