"""Context frames: keys and values of earlier segments that a segment may attend to, for identity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from storyreel.method.context import context_weight
from storyreel.models.base import Adapter, Context, joined_contexts
from storyreel.story.plan import Plan, Segment


class Anchors:
    """The contexts of a film's segments: the middle frame of the first one and of a finished one near by.

    ``recall`` returns the latents (1, C, F, H, W) of a finished segment. The first segment's keys are kept.
    """

    def __init__(self, adapter: Adapter, plan: Plan, recall: Callable[[int], Tensor]) -> None:
        self._adapter, self._plan, self._recall = adapter, plan, recall
        self._first: Context | None = None

    def context(self, segment: Segment) -> Context | None:
        """Return what a segment attends to of those before it; None if there is nothing."""
        method, contexts = self._plan.settings.method, []
        for index in self._plan.anchors(segment):
            context = self._of(index)
            weight = context_weight(method.context, method.beta, segment.index - index, index == 0)
            contexts.append(replace(context, weights=context.weights * weight))
        return joined_contexts(contexts) if contexts else None

    @torch.inference_mode()
    def _of(self, index: int) -> Context:
        """Return the keys and values of a finished segment's middle frame, at weight 1."""
        if index == 0 and self._first is not None:
            return self._first
        latents = self._recall(index)
        middle = latents.shape[2] // 2
        text = self._adapter.encode(self._plan.segments[index].prompt)
        context = self._adapter.context_of(latents[:, :, middle : middle + 1], text)
        if index == 0:
            self._first = context
        return context
