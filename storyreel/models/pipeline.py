"""What the families have in common: a folder as diffusers lays out a pipeline, text, pictures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.hooks import apply_group_offloading
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase

from storyreel.errors import PromptError
from storyreel.files import read_json
from storyreel.models.attention import Remembering, recording, with_memory
from storyreel.models.base import (
    Memory,
    MemoryMode,
    OneByOne,
    Text,
    load_component,
    read_component,
)
from storyreel.models.quantized import quantize
from storyreel.models.specs import ModelSpec

PREVIEW = "preview.safetensors"  # beside the components, where a model has one
T5_XXL: dict[str, Any] = {  # version 1.1, which Mochi and LTX read with
    "vocab_size": 32128,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
TEXT_MULTIPLE = 16  # tokens: what nobody reads costs time, and few lengths make few graphs
WORKING = 8_000_000_000  # bytes for activations and decoding: the most that any model was calculated to take
MODES: tuple[MemoryMode, ...] = ("high", "balanced", "low")
SCHEDULERS = {cls.__name__: cls for cls in (FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler)}


@dataclass
class Parts:
    """The components of a pipeline. ``experts`` are its transformers, that for most noise first.

    ``options`` are the pipeline's own settings, ``preview`` is a linear map from latents to pictures.
    """

    experts: Sequence[nn.Module]
    vae: nn.Module
    text_encoder: nn.Module
    tokenizer: PreTrainedTokenizerBase
    scheduler: Any = field(default_factory=FlowMatchEulerDiscreteScheduler)
    options: dict[str, Any] = field(default_factory=dict)
    preview: dict[str, Tensor] = field(default_factory=dict)


class PipelineAdapter(OneByOne):
    """One film's use of a model that diffusers has a pipeline for.

    A family names its classes and its layers, and says how its transformer is asked and how its
    codec decodes.
    """

    pipeline_class: ClassVar[type[Any]]
    transformer_class: ClassVar[type[Any]]
    vae_class: ClassVar[type[Any]]
    text_encoder_class: ClassVar[type[Any]]
    stack: ClassVar[str] = "transformer_blocks"  # what a transformer calls its repeated blocks
    pipeline_options: ClassVar[frozenset[str]] = frozenset()  # of model_index.json
    # For random weights: of a scheduler, and of the text encoder.
    schedule: ClassVar[dict[str, Any]] = {}
    text_architecture: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, spec: ModelSpec, device: torch.device, parts: Parts, memory: MemoryMode = "auto"
    ) -> None:
        self.spec = spec
        self.device = device
        self.parts = parts
        self.experts: list[Any] = [self._stored(spec, expert.eval()) for expert in parts.experts]
        self.vae: Any = parts.vae.eval()
        self.text_encoder: Any = parts.text_encoder.eval()
        self.tokenizer: Any = parts.tokenizer
        self.dtype: torch.dtype = getattr(torch, spec.dtype)
        self._preview = {key: value.to(device) for key, value in parts.preview.items()}
        self._texts: dict[str, Text] = {}
        for expert in self.experts:
            self._prepare(expert)
        self.memory: MemoryMode = fitting_mode(self._sizes(), device) if memory == "auto" else memory
        self._arrange()

    @classmethod
    def load(cls, spec: ModelSpec, device: torch.device, memory: MemoryMode = "auto") -> Self:
        """Load from a folder laid out as diffusers lays out a pipeline.

        Everything is checked on the CPU before the device is touched.
        """
        folder, dtype = spec.weights, getattr(torch, spec.dtype)

        def component(kind: type[Any], name: str, **options: Any) -> Any:
            if spec.variant and any((folder / name).glob(f"*.{spec.variant}*.safetensors")):
                options["variant"] = spec.variant
            return load_component(partial(kind.from_pretrained, **options), folder / name, kind)

        options = read_component(_read_json, folder / "model_index.json")
        names = ["transformer", *(["transformer_2"] if options.get("boundary_ratio") is not None else [])]
        diffusers = {"torch_dtype": dtype}
        vae_dtype = getattr(torch, spec.vae_dtype)
        tokenizer = partial(AutoTokenizer.from_pretrained, local_files_only=True)
        preview = read_component(load_file, folder / PREVIEW) if (folder / PREVIEW).exists() else {}
        parts = Parts(
            experts=[component(cls.transformer_class, name, **diffusers) for name in names],
            vae=component(cls.vae_class, "vae", **{**diffusers, "torch_dtype": vae_dtype}),
            text_encoder=component(cls.text_encoder_class, "text_encoder", dtype=dtype),
            tokenizer=read_component(tokenizer, folder / "tokenizer"),
            scheduler=read_component(_scheduler, folder / "scheduler"),
            options=options,
            preview={key: value.float() for key, value in preview.items()},
        )
        adapter = cls(spec, device, parts, memory)
        # A configuration can be read and be of no use: that is said now, not after the first scene.
        latents = torch.zeros(1, spec.latent_channels, 2, 2, 2, device=device)
        read_component(lambda _: _check_levels(adapter.sigmas(2, latents.shape)), folder / "scheduler")
        read_component(lambda _: adapter._tokens(""), folder / "tokenizer")
        read_component(lambda _: adapter._raw(latents), folder / "vae")
        return adapter

    @classmethod
    def random(cls, spec: ModelSpec, device: torch.device) -> Self:
        """Return a model of the true sizes with random weights, for measuring: it draws noise.

        Its text encoder is a thin one of the true width, since texts are encoded once in a film; on the
        device "meta", where nothing has any data, it is the true one.
        """
        dtype = getattr(torch, spec.dtype)
        torch.manual_seed(0)

        def made(build: Callable[[], Any], kind: torch.dtype) -> Any:
            usual = torch.get_default_dtype()
            torch.set_default_dtype(kind)  # so that ten billion weights are never there in fp32
            try:
                with device:
                    return build()
            finally:
                torch.set_default_dtype(usual)

        boundary = {} if spec.boundary_ratio is None else {"boundary_ratio": spec.boundary_ratio}
        experts = [
            cls._stored(spec, made(lambda: cls.transformer_class(**spec.architecture), dtype))
            for _ in range(1 + len(boundary))
        ]
        width = next(
            experts[0].config[key]
            for key in ("text_embed_dim", "text_dim", "caption_channels")
            if key in experts[0].config
        )
        tokenizer = ByT5Tokenizer()
        thin = {"d_kv": 64, "d_ff": 64, "num_layers": 1, "num_heads": 1, "vocab_size": len(tokenizer)}
        sizes = cls.text_architecture if device.type == "meta" else thin
        config = cls.text_encoder_class.config_class(d_model=width, **sizes)
        text_encoder = made(lambda: cls.text_encoder_class(config), dtype)
        vae = made(cls.vae_class, getattr(torch, spec.vae_dtype))
        scheduler = FlowMatchEulerDiscreteScheduler(**cls.schedule)
        parts = Parts(experts, vae, text_encoder, tokenizer, scheduler, boundary)
        return cls(spec, device, parts, "high")  # all of it is there already

    def stock_latents(self, prompt: str, noise: Tensor, steps: int, guidance: Sequence[float]) -> Tensor:
        """Return what diffusers' own pipeline makes of a prompt and noise (1, C, F, H, W), for comparison.

        ``guidance`` is that of each expert. The components are the same, the attention is diffusers' own.
        """
        spec, parts = self.spec, self.parts
        experts = dict(zip(("transformer", "transformer_2"), self.experts, strict=False))
        pipeline = self.pipeline_class(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            scheduler=type(parts.scheduler).from_config(parts.scheduler.config),
            **experts,
            **{name: value for name, value in parts.options.items() if name in self.pipeline_options},
        )
        pipeline.set_progress_bar_config(disable=True)
        self._give_noise(pipeline, noise)
        frames, height, width = noise.shape[2:]
        with self.stock_attention():
            found: Tensor = pipeline(
                prompt=prompt,
                latents=self._stock_input(noise),
                height=height * spec.pixels_per_latent,
                width=width * spec.pixels_per_latent,
                num_frames=spec.frames_per_latent * (frames - 1) + 1,
                num_inference_steps=steps,
                **dict(zip(("guidance_scale", "guidance_scale_2"), guidance, strict=False)),
                max_sequence_length=spec.text_length,
                output_type="latent",
                **self._call_options(),
            ).frames
        return self._unpacked(found, noise.shape)

    def _give_noise(self, pipeline: Any, noise: Tensor) -> None:
        """Let a pipeline begin with ``noise`` that would not take it as an argument."""

    def _stock_input(self, x: Tensor) -> Tensor:
        """Return latents as the family's pipeline takes them."""
        return x

    def _unpacked(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        return x

    def _call_options(self) -> dict[str, Any]:
        """Return what else the family's pipeline is told."""
        return {}

    def compile(self) -> None:
        """Compile the transformers' blocks, which share their graphs."""
        for expert in self.experts:
            for block in self.blocks(expert):
                block.compile()

    @contextmanager
    def stock_attention(self) -> Iterator[None]:
        """Let the transformers have diffusers' own attention for a while."""
        layers = [layer for expert in self.experts for layer in self.stock_layers(expert)]
        ours = [layer.processor for layer, _ in layers]
        blocks = [block for expert in self.experts for block in self.blocks(expert)]
        compiled = [block._compiled_call_impl for block in blocks]  # Mochi's own attention breaks graphs
        try:
            for layer, processor in layers:
                layer.processor = processor()
            for block in blocks:
                block._compiled_call_impl = None
            yield
        finally:
            for block, implementation in zip(blocks, compiled, strict=True):
                block._compiled_call_impl = implementation
            for (layer, _), processor in zip(layers, ours, strict=True):
                layer.processor = processor

    @property
    def transformer(self) -> Any:
        """The transformer; of several, the one for most noise."""
        return self.experts[0]

    # Memory

    @classmethod
    def _stored(cls, spec: ModelSpec, transformer: Any) -> Any:
        """Return a transformer with its blocks' weights stored as the spec says, block by block."""
        if spec.quantize == "fp8":
            for block in getattr(transformer, cls.stack):
                quantize(block)
        return transformer

    def _sizes(self) -> tuple[int, int, int]:
        """Return the bytes of the transformers, the text encoder and the codec."""
        experts, encoder, codec = (
            sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
            for modules in (self.experts, (self.text_encoder,), (self.vae,))
        )
        return experts, encoder, codec

    def _arrange(self) -> None:
        """Put every component where the memory mode wants it between its uses."""
        others = self.device if self.memory == "high" else torch.device("cpu")
        self.vae.to(others)
        self.text_encoder.to(others)
        for expert in self.experts:
            if self.memory != "low":
                expert.to(self.device)
            else:
                expert.to("cpu")
                self._offload(expert, offload_type="block_level", num_blocks_per_group=1)
        if self.memory == "low":
            self._offload(self.text_encoder, offload_type="leaf_level")

    def _offload(self, module: nn.Module, **options: Any) -> None:
        """Have the parts of a component on the device only while they work."""
        apply_group_offloading(
            module, onload_device=self.device, use_stream=self.device.type == "cuda", **options
        )

    def economise(self) -> MemoryMode | None:
        """Go to the next lower memory mode; None if there is none."""
        if self.memory == "low":
            return None
        self.memory = MODES[MODES.index(self.memory) + 1]
        self._arrange()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return self.memory

    @contextmanager
    def _at_work(self, module: nn.Module) -> Iterator[None]:
        """Have a component on the device while it works; the text encoder may come in parts."""
        in_parts = self.memory == "low" and module is self.text_encoder
        if not in_parts:
            module.to(self.device)
        try:
            yield
        finally:
            if self.memory != "high" and not in_parts:
                module.to("cpu")

    # Text

    def prepare(self, prompts: Iterable[str]) -> None:
        """Encode prompts in advance, so that the text encoder is needed only once; forget all others.

        Raises PromptError.
        """
        wanted = dict.fromkeys(prompts)
        self._texts = {prompt: text for prompt, text in self._texts.items() if prompt in wanted}
        with self._at_work(self.text_encoder):
            for prompt in wanted:
                self.encode(prompt)

    def encode(self, prompt: str) -> Text:
        """Encode a prompt. Raises PromptError if it is too long to be read whole."""
        if prompt not in self._texts:
            text = self._encode(prompt)
            self._texts[prompt] = Text(text.states.cpu(), text.mask.cpu())
        text = self._texts[prompt]
        return Text(text.states.to(self.device, copy=True), text.mask.to(self.device, copy=True))

    def _encode(self, prompt: str) -> Text:
        length = self.spec.text_length
        tokens = self._tokens(prompt)
        if (count := int(tokens.attention_mask.sum())) > length:
            raise PromptError(prompt, count, length)
        busy = next(self.text_encoder.parameters()).device == self.device
        with torch.inference_mode(), nullcontext() if busy else self._at_work(self.text_encoder):
            return self._encoded(tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device))

    def _tokens(self, prompt: str) -> Any:
        length = self.spec.text_length
        return self.tokenizer(prompt, padding="max_length", max_length=length, return_tensors="pt")

    def _encoded(self, ids: Tensor, mask: Tensor) -> Text:
        """Encode the tokens (1, L) of a prompt."""
        kept = padded_length(int(mask.sum()), mask.shape[1])
        states: Tensor = self.text_encoder(ids[:, :kept], attention_mask=mask[:, :kept])[0]
        return Text(states, mask[:, :kept].bool())

    # Denoising

    def sigmas(self, steps: int, shape: Sequence[int]) -> list[float]:
        """Return the steps + 1 noise levels from 1 to 0 for latents of a shape."""
        self.parts.scheduler.set_timesteps(steps)
        levels: list[float] = self.parts.scheduler.sigmas.tolist()
        return levels

    def predict(
        self, x: Tensor, sigma: float, texts: Sequence[Text], memory: Memory | None = None
    ) -> list[Tensor]:
        """Return the velocity ε - x0 at ``x`` (1, C, F, H, W) for each text, in fp32."""
        index = self.expert_at(sigma)
        expert = self.experts[index]
        with with_memory(self.layers(expert), memory if index == self.expert_at(0.0) else None):
            return list(self._velocities(expert, x, sigma, texts).float().split(1))

    @torch.inference_mode()
    def remember(self, latents: Tensor, text: Text) -> Memory:
        """Return what every layer sees in clean frames, seen as a clip of their own.

        Of two experts only the one for little noise is shown them, and it alone remembers. The other was
        never taught clean frames, and noised to its own levels they are nearly all noise; what it
        decides, the composition, is each scene's own.
        """
        expert = self.experts[self.expert_at(0.0)]
        with recording(self.layers(expert)) as seen:
            self._velocities(expert, latents, 0.0, [text])
        return Memory(tuple(seen), latents.new_ones(seen[0][0].shape[1]))

    def expert_at(self, sigma: float) -> int:
        """Return which transformer is made for a noise level."""
        boundary = self.parts.options.get("boundary_ratio")
        return 0 if boundary is None or sigma >= boundary else 1

    # Pictures

    def preview(self, latents: Tensor) -> Tensor | None:
        """Return a rough picture (F, 3, H, W) in [-1, 1] of each latent frame, by a linear map alone.

        None if the weights bring no map.
        """
        if not self._preview:
            return None
        frames = latents[0].transpose(0, 1)
        patches = nn.functional.conv2d(frames, self._preview["weight"], self._preview["bias"])
        return nn.functional.pixel_shuffle(patches, self.spec.pixels_per_latent)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return the pictures, uint8 (T, H, W, 3) on the CPU, of a clip's latents (1, C, F, H, W).

        They are decoded a few latent frames at a time, equal to all at once; the first latent frame
        is one picture, every other several.
        """
        dtype = next(self.vae.parameters()).dtype
        with self._at_work(self.vae):
            return torch.cat([_to_bytes(part) for part in self._decoded(self._raw(latents).to(dtype))])

    def _raw(self, latents: Tensor) -> Tensor:
        """Return latents as the codec knows them."""
        config = self.vae.config
        mean, std = (
            torch.tensor(values, device=latents.device).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        raw: Tensor = latents * (std / config.get("scaling_factor", 1.0)) + mean
        return raw

    def blocks(self, transformer: Any) -> Sequence[nn.Module]:
        """Return a transformer's repeated blocks."""
        return list(getattr(transformer, self.stack))

    def layers(self, transformer: Any) -> Sequence[Remembering]:
        """Return the processors of the layers in which the video looks at itself."""
        return [layer.processor for layer in self._self_attention(transformer)]

    def _self_attention(self, transformer: Any) -> list[Any]:
        return [block.attn1 for block in getattr(transformer, self.stack)]

    # What a family adds

    @abstractmethod
    def _prepare(self, transformer: Any) -> None:
        """Give a transformer the attention that weights and memory need."""

    @abstractmethod
    def stock_layers(self, transformer: Any) -> Sequence[tuple[Any, Callable[[], Any]]]:
        """Return the layers that `_prepare` changed, each with what makes diffusers' own processor."""

    @abstractmethod
    def _velocities(self, transformer: Any, x: Tensor, sigma: float, texts: Sequence[Text]) -> Tensor:
        """Return ε - x0 at ``x`` (1, C, F, H, W) for each of ``texts``: (len(texts), C, F, H, W)."""

    @abstractmethod
    def _decoded(self, latents: Tensor) -> Iterator[Tensor]:
        """Yield the pictures (1, 3, T, H, W) in [-1, 1] of latents as the codec knows them."""


def fitting_mode(sizes: tuple[int, int, int], device: torch.device) -> MemoryMode:
    """Return the highest memory mode that a device's free memory allows, for `_sizes`."""
    if device.type != "cuda":
        return "high"
    free, _ = torch.cuda.mem_get_info(device)
    return mode_for(sizes, free)


def mode_for(sizes: tuple[int, int, int], free: int) -> MemoryMode:
    """Return the highest mode for transformers, text encoder and codec in ``free`` bytes."""
    experts, encoder, codec = sizes
    if experts + encoder + codec + WORKING <= free:
        return "high"
    # The text encoder comes before the work, not beside it.
    return "balanced" if experts + max(encoder, codec + WORKING) <= free else "low"


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Stack rows (1, L, …) of different lengths, with zeros at their ends."""
    longest = max(row.shape[1] for row in rows)
    blank = [row.new_zeros(1, longest - row.shape[1], *row.shape[2:]) for row in rows]
    return torch.cat([torch.cat([row, rest], 1) for row, rest in zip(rows, blank, strict=True)])


def padded_length(count: int, most: int) -> int:
    """Return the next multiple of `TEXT_MULTIPLE` tokens, or ``most``."""
    return min(-(-count // TEXT_MULTIPLE) * TEXT_MULTIPLE, most)


def _to_bytes(frames: Tensor) -> Tensor:
    """Turn pictures (1, 3, T, H, W) in [-1, 1] into uint8 (T, H, W, 3) on the CPU."""
    pixels = ((frames[0].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).cpu()


def _read_json(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no settings")
    return content


def _check_levels(levels: Sequence[float]) -> None:
    """Raise ValueError for noise levels that are not those of flow matching, from 1 to 0."""
    # UniPC keeps its first a millionth below 1.
    falling = all(lower < level for level, lower in pairwise(levels))
    if not falling or abs(levels[0] - 1) > 1e-5 or levels[-1] != 0:
        raise ValueError(f"its noise levels do not fall from 1 to 0: {levels}")


def _scheduler(folder: Path) -> Any:
    config = _read_json(folder / "scheduler_config.json")
    if (name := config.get("_class_name")) not in SCHEDULERS:
        raise ValueError(f"storyreel has no schedule of {name}")
    return SCHEDULERS[name].from_config(config)
