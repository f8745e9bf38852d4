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
    HunyuanVideo15Pipeline,
    LTX2Pipeline,
    LTXConditionPipeline,
    LTXPipeline,
    MochiPipeline,
    WanPipeline,
)
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.models.attention_processor import AttnProcessor2_0, MochiAttnProcessor2_0
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15AttnProcessor2_0
from diffusers.models.transformers.transformer_ltx import LTXVideoAttnProcessor
from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoAttnProcessor
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from storyreel.errors import UsageError
from storyreel.models.hunyuan import HunyuanAdapter
from storyreel.models.ltx import LaterLTXAdapter, LTXAdapter, packed, unpacked
from storyreel.models.ltx2 import LTX2Adapter, sound_packed, sound_unpacked
from storyreel.models.mochi import MochiAdapter
from storyreel.models.pipeline import PipelineAdapter, with_shift
from storyreel.models.wan import WanAdapter
from storyreel.story.plan import Settings

IMAGE_TOKENS = 729  # that HunyuanVideo 1.5's pipeline hands on where there is no image, too


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

    def pipeline(self, shift: float | None = None, **more: Any) -> Any:
        """Return the pipeline, with the model's components and with ``more`` that it is made of."""
        parts = self._adapter.parts
        there = replace(parts, experts=self._adapter.experts, text_encoders=self._adapter.text_encoders)
        if parts.connectors is not None:
            there = replace(there, connectors=self._adapter.connectors)
        scheduler = type(parts.scheduler).from_config(parts.scheduler.config)
        if shift is not None:
            scheduler = with_shift(scheduler, shift)
        if self._adapter.spec.sigmas:
            scheduler = FixedLevels.of(self._adapter.spec.sigmas, self._adapter.spec.renoises)
        components = {**there.by_name(), "scheduler": scheduler}
        chosen = {name: value for name, value in parts.options.items() if name in self.options}
        pipeline = self.pipeline_class(**components, **chosen, **more)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def read(self, prompt: str) -> None:
        """Have the pipeline read a prompt, as it does before it denoises."""
        self.pipeline().encode_prompt(prompt, max_sequence_length=self._adapter.spec.text_length)

    def latents(self, prompt: str, noise: Tensor, settings: Settings) -> Tensor:
        """Return the latents that noise (1, C, F, H, W) becomes with a film's settings."""
        spec, pipeline = self._adapter.spec, self._set(settings)
        frames, height, width = noise.shape[2:]
        with self._own_attention():
            output = pipeline(
                prompt=prompt,
                negative_prompt=settings.negative,
                height=height * spec.pixels_per_latent,
                width=width * spec.pixels_per_latent,
                num_frames=spec.frames_per_latent * (frames - 1) + 1,
                num_inference_steps=settings.steps,
                **self._options(settings),
                output_type="latent",
                **self._arguments(pipeline, noise),
            )
        return self._latents(output, noise)

    def _latents(self, output: Any, noise: Tensor) -> Tensor:
        """Return what a pipeline gave in the shape of the noise."""
        return self._unpacked(output.frames, noise)

    def _set(self, settings: Settings) -> Any:
        """Return the pipeline for a film's settings."""
        return self.pipeline(settings.shift)

    def _options(self, settings: Settings) -> dict[str, Any]:
        """Return what it is called with for a film's guidance, and for the length of texts."""
        guidance = [settings.guidance_of(expert) for expert, _ in enumerate(self._adapter.experts)]
        rescale = {"guidance_rescale": settings.guidance_rescale} if settings.guidance_rescale else {}
        return {
            **dict(zip(("guidance_scale", "guidance_scale_2"), guidance, strict=False)),
            **rescale,
            "max_sequence_length": self._adapter.spec.text_length,
        }

    def evaluate(self, x: Tensor, counts: Sequence[int]) -> None:
        """Evaluate the transformer at x (1, C, F, H, W) as the pipeline does, for texts of ``counts`` tokens.

        On tensors without data, to count what that takes.
        """
        adapter = self._adapter
        texts = []
        for encoder, kind in zip(adapter.text_encoders, adapter.reads_with, strict=True):
            shape = len(counts), kind.most(adapter.spec)
            width = encoder.get_input_embeddings().embedding_dim
            states = x.new_empty(*shape, width, dtype=adapter.dtype)
            texts += [states, x.new_empty(shape, dtype=torch.bool)]
        with self._own_attention():
            self._ask(adapter.experts[0], x.to(adapter.dtype), *texts)

    def _ask(self, transformer: Any, x: Tensor, states: Tensor, mask: Tensor, *others: Tensor) -> None:
        """Call the transformer as the pipeline does.

        With the states (B, L, D) and the mask (B, L) of texts by one encoder, and by others if there are any.
        """
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
        layers = [one for expert in self._adapter.experts for one in self._layers(expert)]
        ours = [layer.processor for layer, _ in layers]
        try:
            for layer, processor in layers:
                layer.processor = processor()
            yield
        finally:
            for (layer, _), processor in zip(layers, ours, strict=True):
                layer.processor = processor

    def _layers(self, transformer: Any) -> Iterator[tuple[Any, Callable[[], Any]]]:
        """Yield the transformer's layers of attention that are ours, each with what made diffusers' own."""
        for block in self._adapter.blocks(transformer):
            for name in self.attention:
                yield getattr(block, name), type(self).processor

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

    def _ask(self, transformer: Any, x: Tensor, states: Tensor, mask: Tensor, *others: Tensor) -> None:
        tokens = x[0, 0, :, ::2, ::2].numel()
        shape = (1, tokens) if self._adapter.spec.pictures else (1,)
        for text in states.split(1):  # guidance is a second call here
            transformer(
                hidden_states=x, timestep=x.new_empty(shape), encoder_hidden_states=text, return_dict=False
            )


class LTXStock(Stock):
    """`LTXPipeline`, whose latents are one row of tokens."""

    pipeline_class = LTXPipeline
    processor = LTXVideoAttnProcessor
    attention = ("attn1", "attn2")

    def _ask(self, transformer: Any, x: Tensor, states: Tensor, mask: Tensor, *others: Tensor) -> None:
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


class LTX2Stock(LTXStock):
    """`LTX2Pipeline`, which makes sound too.

    ``sound`` is the noise (1, C, S, 1, M) that a clip's sound begins with, none for all zeros, and afterwards
    what became of it.
    """

    pipeline_class = LTX2Pipeline
    processor = LTX2AudioVideoAttnProcessor
    attention = ("attn2", "audio_attn2")
    sound: Tensor | None = None
    _settings: Settings

    def latents(self, prompt: str, noise: Tensor, settings: Settings) -> Tensor:
        """Return the latents that noise (1, C, F, H, W) becomes; ``sound`` becomes that of the clip."""
        self._settings = settings
        return super().latents(prompt, noise, settings)

    def evaluate(self, x: Tensor, counts: Sequence[int]) -> None:
        """Evaluate the transformer at x, for as many texts: the connectors make them all of one length."""
        adapter = self._adapter
        spec, (frames, height, width), count = adapter.spec, x.shape[2:], len(counts)
        assert spec.sound is not None
        text = adapter.blank_text(0)
        states = [part.expand(count, -1, -1).contiguous() for part in text.states]
        mask = x.new_empty(count, spec.text_length, dtype=torch.bool)
        heard = x.new_empty(1, spec.sound_latents(frames), spec.sound.channels * spec.sound.bands)
        time = x.new_empty(count)
        with self._own_attention():
            adapter.experts[0](
                hidden_states=packed(x).to(adapter.dtype).expand(count, -1, -1).contiguous(),
                audio_hidden_states=heard.to(adapter.dtype).expand(count, -1, -1).contiguous(),
                encoder_hidden_states=states[0],
                audio_encoder_hidden_states=states[1],
                timestep=time,
                sigma=time,
                encoder_attention_mask=mask,
                audio_encoder_attention_mask=mask,
                num_frames=frames,
                height=height,
                width=width,
                fps=spec.fps,
                audio_num_frames=heard.shape[1],
                use_cross_timestep=True,
                return_dict=False,
            )

    def _arguments(self, pipeline: Any, noise: Tensor) -> dict[str, Any]:
        spec = self._adapter.spec
        assert spec.sound is not None
        if self.sound is None:
            sizes = (spec.sound.channels, spec.sound_latents(noise.shape[2]), 1, spec.sound.bands)
            self.sound = noise.new_zeros(1, *sizes)
        mean, std = self._of_sound(pipeline)
        return {
            **super()._arguments(pipeline, noise),
            "audio_latents": sound_packed(self.sound) * std + mean,  # which the pipeline takes away again
            "sigmas": self._adapter.sigmas(self._settings.steps, noise.shape)[:-1],
            # Its defaults are those of weights that are not distilled.
            "audio_guidance_scale": self._settings.guidance,
            **dict.fromkeys(
                ("stg_scale", "audio_stg_scale", "guidance_rescale", "audio_guidance_rescale"), 0.0
            ),
            **dict.fromkeys(("modality_scale", "audio_modality_scale"), 1.0),
        }

    def _latents(self, output: Any, noise: Tensor) -> Tensor:
        raw, heard = output.frames, output.audio  # as the codecs know them
        codec: Any = self._adapter.parts.sound["audio_vae"]
        vae = self._adapter.vae
        assert self.sound is not None
        tokens = (sound_packed(heard.unsqueeze(3)) - codec.latents_mean) / codec.latents_std
        self.sound = sound_unpacked(tokens, self.sound.shape)
        mean, std = (v.view(1, -1, 1, 1, 1) for v in (vae.latents_mean, vae.latents_std))
        latents: Tensor = (raw - mean) * vae.config.scaling_factor / std
        return latents

    @staticmethod
    def _of_sound(pipeline: Any) -> tuple[Tensor, Tensor]:
        return pipeline.audio_vae.latents_mean, pipeline.audio_vae.latents_std


class HunyuanStock(Stock):
    """`HunyuanVideo15Pipeline`, whose guidance is a component."""

    pipeline_class = HunyuanVideo15Pipeline
    processor = HunyuanVideo15AttnProcessor2_0
    attention = ("attn",)

    def pipeline(self, shift: float | None = None, **more: Any) -> Any:
        """Return the pipeline; without other words, with diffusers' usual guidance."""
        return super().pipeline(shift, **{"guider": ClassifierFreeGuidance(), **more})

    def read(self, prompt: str) -> None:
        """Have the pipeline read a prompt, of whose length it has its own opinion."""
        self.pipeline().encode_prompt(prompt)

    def _set(self, settings: Settings) -> Any:
        rescale = settings.guidance_rescale
        guider = ClassifierFreeGuidance(settings.guidance_of(0), guidance_rescale=rescale)
        return self.pipeline(settings.shift, guider=guider)

    def _options(self, settings: Settings) -> dict[str, Any]:
        return {}

    def _layers(self, transformer: Any) -> Iterator[tuple[Any, Callable[[], Any]]]:
        yield from super()._layers(transformer)
        for block in transformer.context_embedder.token_refiner.refiner_blocks:
            yield block.attn, AttnProcessor2_0

    def _ask(self, transformer: Any, x: Tensor, states: Tensor, mask: Tensor, *others: Tensor) -> None:
        """Call its parts, as its own `forward` does for one text after the other.

        That looks at a mask's content, which is not there. Its text is as long as it can be, with an image's
        tokens of which none counts.
        """
        glyphs, its_mask = others
        for index in range(len(states)):
            row, time = slice(index, index + 1), x.new_empty(1)
            shape = (1, IMAGE_TOKENS, transformer.config.image_embed_dim)
            image = transformer.image_embedder(x.new_empty(shape))
            words = transformer.context_embedder(states[row], time, mask[row])
            text = torch.cat([image, transformer.context_embedder_2(glyphs[row]), words], 1)
            counted = torch.cat([mask.new_empty(1, IMAGE_TOKENS), its_mask[row], mask[row]], 1)
            unknown = transformer.config.in_channels - x.shape[1]
            given = torch.cat([x, x.new_empty(1, unknown, *x.shape[2:])], 1)
            rotation, modulation = transformer.rope(given), transformer.time_embed(time)
            video = transformer.x_embedder(given)
            for block in transformer.transformer_blocks:
                video, text = block(video, text, modulation, counted, rotation)
            transformer.proj_out(transformer.norm_out(video, modulation))


STOCK: dict[type, type[Stock]] = {
    MochiAdapter: MochiStock,
    WanAdapter: WanStock,
    LTXAdapter: LTXStock,
    LaterLTXAdapter: LaterLTXStock,
    LTX2Adapter: LTX2Stock,
    HunyuanAdapter: HunyuanStock,
}


def stock_of(adapter: PipelineAdapter) -> Stock:
    """Return the pipeline that a model is compared with. Raises UsageError if its family has none."""
    for family in type(adapter).__mro__:
        if family in STOCK:
            return STOCK[family](adapter)
    words = f"model {adapter.spec.name} has no pipeline to compare with"
    raise UsageError(words, "Leave out the variant stock.")
