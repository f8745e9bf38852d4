"""What the families have in common: text, velocities and pictures of a model in diffusers' classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor, nn

from storyreel.errors import PromptError
from storyreel.models.base import MemoryMode, Request, Text
from storyreel.models.loading import (
    Parts,
    TextEncoder,
    load_parts,
    names,
    random_parts,
    read_component,
    stored,
)
from storyreel.models.offload import Offload
from storyreel.models.specs import ModelSpec
from storyreel.models.streaming import channels_last

T5_XXL: dict[str, Any] = {  # version 1.1, which Mochi and LTX read with
    "d_model": 4096,
    "vocab_size": 32128,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
T5_THIN: dict[str, Any] = {"d_ff": 64, "num_layers": 1, "num_heads": 1}
TEXT_MULTIPLE = 16  # tokens: what nobody reads costs time, and few lengths make few graphs


class PipelineAdapter(ABC):
    """A model of a family: what its file says, on the components of its folder.

    A family names its classes and its layers, and says how its transformer is asked for a velocity and how
    its VAE decodes a clip in pieces. Everything else has a default, which a family may replace.
    """

    transformer_class: ClassVar[type[Any]]
    vae_class: ClassVar[type[Any]]
    reads_with: ClassVar[Sequence[TextEncoder]]
    at_once = 1
    stack: ClassVar[str] = "transformer_blocks"  # what a transformer calls its repeated blocks
    # Whose noise levels the family knows, and for random weights the settings of the first.
    schedulers: ClassVar[Sequence[type[Any]]] = (FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler)
    schedule: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, spec: ModelSpec, device: torch.device, parts: Parts, memory: MemoryMode = "auto"
    ) -> None:
        self.spec = spec
        self.device = device
        self.parts = parts
        self.experts: list[Any] = [
            stored(spec, self.blocks(expert), expert.eval()) for expert in parts.experts
        ]
        self.vae: Any = parts.vae.eval()
        if device.type == "cuda":
            channels_last(self.vae)
        self.text_encoders: list[Any] = [encoder.eval() for encoder in parts.text_encoders]
        self.dtype: torch.dtype = getattr(torch, spec.dtype)
        self._preview = {key: value.to(device) for key, value in parts.preview.items()}
        self._texts: dict[str, Text] = {}
        for expert in self.experts:
            self._prepare(expert)
        self.offload = Offload(device, self.experts, self.text_encoders, self.vae, memory)

    @classmethod
    def load(cls, spec: ModelSpec, device: torch.device, memory: MemoryMode = "auto") -> Self:
        """Load from the folder that ``spec`` names. Raises MissingError or DamagedError."""
        adapter = cls(spec, device, load_parts(cls, spec), memory)
        # A configuration can be read and be of no use: that is said now, not after the first scene.
        latents = torch.zeros(1, spec.latent_channels, 2, 2, 2, device=device)
        folder = spec.weights
        read_component(lambda _: _check_levels(adapter.sigmas(2, latents.shape)), folder / "scheduler")
        for index, name in enumerate(names("tokenizer", len(adapter.text_encoders))):
            read_component(lambda _, index=index: adapter._tokens(index, ""), folder / name)  # type: ignore[misc]
        read_component(lambda _: adapter._raw(latents), folder / "vae")
        return adapter

    @classmethod
    def random(cls, spec: ModelSpec, device: torch.device) -> Self:
        """Return a model of the true sizes with random weights, for measuring: it draws noise."""
        return cls(spec, device, random_parts(cls, spec, device), "high")  # all of it is there already

    def compile(self) -> None:
        """Compile the transformers' blocks, which share their graphs."""
        for expert in self.experts:
            for block in self.blocks(expert):
                block.compile()

    @property
    def memory(self) -> MemoryMode:
        """The memory mode that it is in."""
        return self.offload.mode

    def lower_memory_mode(self) -> MemoryMode | None:
        """Go to the next lower memory mode and return it; None if there is none."""
        return self.offload.lower()

    # Text

    def prepare(self, prompts: Iterable[str]) -> None:
        """Encode prompts in advance, so that the text encoders work once a film; forget all others.

        Raises PromptError.
        """
        wanted = dict.fromkeys(prompts)
        self._texts = {prompt: text for prompt, text in self._texts.items() if prompt in wanted}
        with ExitStack() as stack:
            for encoder in self.text_encoders:
                stack.enter_context(self.offload.at_work(encoder))
            for prompt in wanted:
                self.encode(prompt)

    def encode(self, prompt: str) -> Text:
        """Encode a prompt. Raises PromptError if it is too long to be read whole."""
        if prompt not in self._texts:
            with torch.inference_mode():
                self._texts[prompt] = self._encode(prompt).to("cpu")
        return self._texts[prompt].to(self.device, copy=True)

    def _encode(self, prompt: str) -> Text:
        """Read a prompt with every text encoder."""
        read = [self._read(index, prompt) for index in range(len(self.text_encoders))]
        states, weights = zip(*read, strict=True)
        return Text(states, torch.cat(weights, 1))

    def _read(self, index: int, prompt: str) -> tuple[Tensor, Tensor]:
        """Return the states (1, L, D) and weights (1, L) of a prompt by an encoder. Raises PromptError."""
        tokens, longest = self._tokens(index, prompt), self.spec.text_length
        if (count := int(tokens.attention_mask.sum())) > longest:
            raise PromptError(prompt, count, longest)
        encoder = self.text_encoders[index]
        with self.offload.at_work(encoder):
            ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
            return self._encoded(encoder, ids, mask)

    def _tokens(self, index: int, prompt: str) -> Any:
        """Return a prompt's tokens for an encoder, with ``input_ids`` and ``attention_mask`` (1, L)."""
        tokenizer: Any = self.parts.tokenizers[index]
        return tokenizer(prompt, padding="max_length", max_length=self.spec.text_length, return_tensors="pt")

    def _encoded(self, encoder: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states (1, L', D) and weights (1, L') of tokens (1, L)."""
        kept = padded_length(int(mask.sum()), mask.shape[1])
        states: Tensor = encoder(ids[:, :kept], attention_mask=mask[:, :kept])[0]
        return states, mask[:, :kept].float()

    def tokens_in(self, prompt: str, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Return which tokens (ΣL,) of a prompt lie in spans of its characters, each [begin, end).

        None do for a tokenizer that does not say where its tokens stand.
        """
        parts = []
        for states, tokenizer in zip(self.encode(prompt).states, self.parts.tokenizers, strict=True):
            inside = torch.zeros(states.shape[1], dtype=torch.bool)
            reader: Any = tokenizer
            offsets = reader(prompt, return_offsets_mapping=True).offset_mapping if reader.is_fast else ()
            for place, (begin, end) in enumerate(offsets):
                inside[place] = any(begin < last and first < end for first, last in spans)
            parts.append(inside)
        return torch.cat(parts).to(self.device)

    # Denoising

    def sigmas(self, steps: int, shape: Sequence[int]) -> list[float]:
        """Return the steps + 1 noise levels from 1 to 0 for latents of a shape."""
        self.parts.scheduler.set_timesteps(steps)
        levels: list[float] = self.parts.scheduler.sigmas.tolist()
        return levels

    def predict(self, requests: Sequence[Request]) -> Iterator[list[Tensor]]:
        """Yield for each request the velocities ε - x0 in fp32, one for each of its texts."""
        for x, sigma, texts in requests:
            velocities = self._velocities(self.experts[self.expert_at(sigma)], x, sigma, texts)
            yield list(velocities.float().split(1))

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
        is one picture, every other several. What the device holds does not grow with the clip.
        """
        with self.offload.at_work(self.vae):
            return torch.cat([_to_bytes(part) for part in self._decoded(self.raw(latents))])

    def raw(self, latents: Tensor) -> Tensor:
        """Return latents as the VAE knows them, in its dtype and, on a GPU, as its weights lie."""
        form = torch.channels_last_3d if latents.is_cuda else torch.contiguous_format
        return self._raw(latents).to(next(self.vae.parameters()).dtype).contiguous(memory_format=form)

    def _raw(self, latents: Tensor) -> Tensor:
        """Return latents without the normalisation that the transformer knows them in."""
        config = self.vae.config
        mean, std = (
            torch.tensor(values, device=latents.device).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        raw: Tensor = latents * (std / config.get("scaling_factor", 1.0)) + mean
        return raw

    # Layers

    @classmethod
    def blocks(cls, transformer: Any) -> Sequence[nn.Module]:
        """Return a transformer's repeated blocks."""
        return list(getattr(transformer, cls.stack))

    # What a family adds

    def _prepare(self, transformer: Any) -> None:  # noqa: B027  # many need nothing
        """Give a transformer the attention that tokens' weights need."""

    @abstractmethod
    def _velocities(self, transformer: Any, x: Tensor, sigma: float, texts: Sequence[Text]) -> Tensor:
        """Return ε - x0 for each of ``texts``, (T, C, F, H, W), at ``x`` (1, C, F, H, W)."""

    @abstractmethod
    def _decoded(self, latents: Tensor) -> Iterator[Tensor]:
        """Yield the pictures (1, 3, T, H, W) in [-1, 1] of latents as the VAE knows them."""


def padded_length(count: int, most: int) -> int:
    """Return the next multiple of `TEXT_MULTIPLE` tokens, or ``most``."""
    return min(-(-count // TEXT_MULTIPLE) * TEXT_MULTIPLE, most)


def _to_bytes(frames: Tensor) -> Tensor:
    """Turn pictures (1, 3, T, H, W) in [-1, 1] into uint8 (T, H, W, 3) on the CPU."""
    pixels = ((frames[0].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).cpu()


def _check_levels(levels: Sequence[float]) -> None:
    """Raise ValueError for noise levels that do not fall from 1 to 0."""
    # UniPC keeps its first a millionth below 1.
    falling = all(lower < level for level, lower in pairwise(levels))
    if not falling or abs(levels[0] - 1) > 1e-5 or levels[-1] != 0:
        raise ValueError(f"its noise levels do not fall from 1 to 0: {levels}")
