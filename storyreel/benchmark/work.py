"""The arithmetic of a film's denoising, calculated from a loaded model's configuration alone.

It takes seconds on the CPU, whatever the device: nothing is denoised to count it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import nn

from storyreel.benchmark.calculate import META, evaluation, operations
from storyreel.models.loading import Parts, default_dtype, in_fp32_where_loaded_so
from storyreel.models.pipeline import PipelineAdapter
from storyreel.story.plan import Plan

ENOUGH = 2  # blocks of a stack that are counted: two of the same kind, before the last, say what one takes


class Work:
    """Calculates the floating-point operations of plans for one model."""

    def __init__(self, adapter: PipelineAdapter) -> None:
        self._whole = len(adapter.blocks(adapter.experts[0]))
        counts = (self._whole,) if self._whole <= ENOUGH + 1 else (ENOUGH, ENOUGH + 1)
        self._short = [without_data(adapter, count) for count in counts]

    def of(self, plan: Plan) -> float:
        """Return the operations of the denoising of all segments."""

        @cache
        def of_one(latents: int, texts: int, weighting: str) -> int:
            found = [evaluation(short, plan, latents, texts, weighting).operations for short in self._short]
            if len(found) == 1:
                return found[0]
            return found[0] + (self._whole - ENOUGH) * (found[1] - found[0])

        return float(operations(plan, of_one))


def without_data(adapter: PipelineAdapter, blocks: int) -> PipelineAdapter:
    """Return a model of the same configuration on no device, with the first and last of its blocks alone."""
    with META, default_dtype(adapter.dtype):
        expert: Any = in_fp32_where_loaded_so(type(adapter.experts[0]).from_config(adapter.experts[0].config))
    with META:
        encoders: Sequence[Any] = [type(encoder)(encoder.config) for encoder in adapter.text_encoders]
        vae: Any = type(adapter.vae).from_config(adapter.vae.config)
        connectors: Any = None
        if adapter.parts.connectors is not None:
            connectors = type(adapter.connectors).from_config(adapter.connectors.config)
    every = adapter.blocks(expert)
    setattr(expert, adapter.stack, nn.ModuleList([*every[: blocks - 1], every[-1]]))
    parts = Parts([expert], vae, encoders, adapter.parts.tokenizers, connectors=connectors)
    return type(adapter)(adapter.spec.quantized("none"), META, parts, "high")
