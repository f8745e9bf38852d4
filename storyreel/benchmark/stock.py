"""What diffusers' own pipeline makes of the same prompt, noise and weights, to compare with.

A family that is to be compared has an entry in `STOCK`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXPipeline,
    MochiPipeline,
    WanPipeline,
)
from diffusers.models.attention_processor import MochiAttnProcessor2_0
from diffusers.models.transformers.transformer_ltx import LTXVideoAttnProcessor
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from storyreel.errors import UsageError
from storyreel.models.ltx import LaterLTXAdapter, LTXAdapter, packed, unpacked
from storyreel.models.mochi import MochiAdapter
from storyreel.models.pipeline import PipelineAdapter, with_shift
from storyreel.models.wan import WanAdapter
from storyreel.story.plan import Settings


class FixedLevels(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Euler steps at given noise levels, whatever a pipeline asks for; or with fresh noise after each."""

    @classmethod
    def of(cls, sigmas: Sequence[float], renoises: bool) -> FixedLevels:
        """Return a scheduler for noise levels from 1 down, without the 0 at the end."""
        scheduler = cls(stochastic_sampling=renoises)
        scheduler.levels = list(sigmas)
        return scheduler

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Take the given levels."""
        super().set_timesteps(sigmas=self.levels, device=device)


class Stock:
    """A family's pipeline in diffusers: what it is, and what it is called with.

    ``options`` are those of model_index.json that it takes, ``processor`` makes the attention of the
    transformers' layers in ``attention``.
    """

    pipeline_class: ClassVar[type[Any]]
    options: ClassVar[frozenset[str]] = frozenset()
    processor: ClassVar[Callable[[], Any]]
    attention: ClassVar[Sequence[str]] = ("attn1",)

    def __init__(self, adapter: PipelineAdapter) -> None:
        self._adapter = adapter

    def latents(self, prompt: str, noise: Tensor, settings: Settings) -> Tensor:
        """Return the latents that noise (1, C, F, H, W) becomes with a film's settings."""
        spec, parts = self._adapter.spec, self._adapter.parts
        there = replace(parts, experts=self._adapter.experts, text_encoders=self._adapter.text_encoders)
        scheduler = type(parts.scheduler).from_config(parts.scheduler.config)
        if settings.shift is not None:
            scheduler = with_shift(scheduler, settings.shift)
        if spec.sigmas:
            scheduler = FixedLevels.of(spec.sigmas, spec.renoises)
        components = {**there.by_name(), "scheduler": scheduler}
        chosen = {name: value for name, value in parts.options.items() if name in self.options}
        pipeline = self.pipeline_class(**components, **chosen)
        pipeline.set_progress_bar_config(disable=True)
        frames, height, width = noise.shape[2:]
        guidance = [settings.guidance_of(expert) for expert, _ in enumerate(self._adapter.experts)]
        rescale = {"guidance_rescale": settings.guidance_rescale} if settings.guidance_rescale else {}
        with self._own_attention():
            latents: Tensor = pipeline(
                prompt=prompt,
                negative_prompt=settings.negative,
                height=height * spec.pixels_per_latent,
                width=width * spec.pixels_per_latent,
                num_frames=spec.frames_per_latent * (frames - 1) + 1,
                num_inference_steps=settings.steps,
                **dict(zip(("guidance_scale", "guidance_scale_2"), guidance, strict=False)),
                **rescale,
                max_sequence_length=spec.text_length,
                output_type="latent",
                **self._arguments(pipeline, noise),
            ).frames
        return self._unpacked(latents, noise)

    def evaluate(self, x: Tensor, counts: Sequence[int]) -> None:
        """Evaluate the transformer at x (1, C, F, H, W) as the pipeline does, for texts of ``counts`` tokens.

        On tensors without data, to count what that takes.
        """
        adapter = self._adapter
        (encoder,) = adapter.text_encoders
        width = encoder.get_input_embeddings().embedding_dim
        states = x.new_empty(len(counts), adapter.spec.text_length, width, dtype=adapter.dtype)
        mask = x.new_empty(states.shape[:2], dtype=torch.bool)
        with self._own_attention():
            self._ask(adapter.experts[0], x.to(adapter.dtype), states, mask)

    def _ask(self, transformer: Any, x: Tensor, states: Tensor, mask: Tensor) -> None:
        """Call the transformer as the pipeline does, with states (B, L, D) and the mask (B, L) of texts."""
        transformer(
            hidden_states=x.expand(len(states), -1, -1, -1, -1).contiguous(),
            encoder_hidden_states=states,
            timestep=x.new_empty(len(states)),
            encoder_attention_mask=mask,
            return_dict=False,
        )

    @contextmanager
    def _own_attention(self) -> Iterator[None]:
        """Let the transformers have diffusers' own attention for a while; compiled blocks stay compiled."""
        blocks: list[Any] = [
            block for expert in self._adapter.experts for block in self._adapter.blocks(expert)
        ]
        layers = [getattr(block, name) for block in blocks for name in self.attention]
        ours = [layer.processor for layer in layers]
        try:
            for layer in layers:
                layer.processor = type(self).processor()
            yield
        finally:
            for layer, processor in zip(layers, ours, strict=True):
                layer.processor = processor

    def _arguments(self, pipeline: Any, noise: Tensor) -> dict[str, Any]:
        """Return what else the pipeline is called with: at least the noise, in its own form."""
        return {"latents": noise}

    def _unpacked(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Return the pipeline's latents in the shape of the noise."""
        return latents


class MochiStock(Stock):
    """`MochiPipeline`."""

    pipeline_class = MochiPipeline
    options = frozenset({"force_zeros_for_empty_prompt"})
    processor = MochiAttnProcessor2_0


class WanStock(Stock):
    """`WanPipeline`, with one transformer or two."""

    pipeline_class = WanPipeline
    options = frozenset({"boundary_ratio", "expand_timesteps"})
    processor = WanAttnProcessor
    attention = ("attn1", "attn2")

    def _ask(self, transformer: Any, x: Tensor, states: Tensor, mask: Tensor) -> None:
        for text in states.split(1):  # guidance is a second call here
            transformer(
                hidden_states=x, timestep=x.new_empty(1), encoder_hidden_states=text, return_dict=False
            )


class LTXStock(Stock):
    """`LTXPipeline`, whose latents are one row of tokens."""

    pipeline_class = LTXPipeline
    processor = LTXVideoAttnProcessor
    attention = ("attn1", "attn2")

    def _ask(self, transformer: Any, x: Tensor, states: Tensor, mask: Tensor) -> None:
        tokens, adapter = packed(x).expand(len(states), -1, -1).contiguous(), self._adapter
        assert isinstance(adapter, LTXAdapter)
        transformer(
            hidden_states=tokens,
            encoder_hidden_states=states,
            timestep=x.new_empty(len(states)),
            encoder_attention_mask=mask,
            return_dict=False,
            **adapter._positions(x),
        )

    def _arguments(self, pipeline: Any, noise: Tensor) -> dict[str, Any]:
        return {"latents": packed(noise), "frame_rate": self._adapter.spec.fps}

    def _unpacked(self, latents: Tensor, noise: Tensor) -> Tensor:
        return unpacked(latents, noise.shape)


class LaterLTXStock(LTXStock):
    """`LTXConditionPipeline`, which draws its own noise, whatever it is given."""

    pipeline_class = LTXConditionPipeline

    def _arguments(self, pipeline: Any, noise: Tensor) -> dict[str, Any]:
        prepare = pipeline.prepare_latents

        def prepare_ours(*arguments: Any, **options: Any) -> tuple[Any, ...]:
            _, *others = prepare(*arguments, **options)
            return packed(noise), *others

        pipeline.prepare_latents = prepare_ours
        return {"frame_rate": self._adapter.spec.fps}

    def _unpacked(self, latents: Tensor, noise: Tensor) -> Tensor:
        return latents


STOCK: dict[type, type[Stock]] = {
    MochiAdapter: MochiStock,
    WanAdapter: WanStock,
    LTXAdapter: LTXStock,
    LaterLTXAdapter: LaterLTXStock,
}


def stock_of(adapter: PipelineAdapter) -> Stock:
    """Return the pipeline that a model is compared with. Raises UsageError if its family has none."""
    for family in type(adapter).__mro__:
        if family in STOCK:
            return STOCK[family](adapter)
    words = f"model {adapter.spec.name} has no pipeline to compare with"
    raise UsageError(words, "Leave out the variant stock.")
