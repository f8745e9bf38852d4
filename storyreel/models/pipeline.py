"""What the families have in common: text, velocities and pictures of a model in diffusers' classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Self, cast

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import Tensor, nn

from storyreel.errors import PromptError
from storyreel.models.attention import Keys, keys_of
from storyreel.models.base import Request, Text
from storyreel.models.compilation import Compilation
from storyreel.models.kernels import lse_kernel
from storyreel.models.loading import (
    Parts,
    TextEncoder,
    load_parts,
    names,
    random_parts,
    read_component,
    stored,
)
from storyreel.models.lora import Lora
from storyreel.models.memory import MemoryMode, Working
from storyreel.models.merging import merge
from storyreel.models.offload import Component, Offload
from storyreel.models.quantized import multiplies_float8, multiply_in_float8
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


@dataclass(frozen=True)
class _Kept:
    """A text in the machine's memory, without the zeros at the end of its states: a film may have thousands.

    ``lengths`` are those of the states with the zeros.
    """

    cut: Text
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, text: Text) -> _Kept:
        """Return what is to be kept of a text."""
        ends = (states[0].any(1).nonzero().flatten().tolist() for states in text.states)
        cut = (states[:, : max(end, default=-1) + 1] for states, end in zip(text.states, ends, strict=True))
        lengths = tuple(states.shape[1] for states in text.states)
        return cls(replace(text, states=tuple(cut)).to("cpu", copy=True), lengths)

    def text(self, device: torch.device) -> Text:
        """Return the text as it was, on a device."""
        there = self.cut.to(device, copy=True)
        states = (
            nn.functional.pad(states, (0, 0, 0, length - states.shape[1]))
            for states, length in zip(there.states, self.lengths, strict=True)
        )
        return replace(there, states=tuple(states))


class PipelineAdapter(ABC):
    """A model of a family: what its file says, on the components of its folder.

    Transformers and text encoders are read when they are first used: `prepare` encodes a film's texts before
    the transformers are there.

    A family names its classes and its layers, and says how its transformer is asked for a velocity and how
    its VAE decodes a clip in pieces. Everything else has a default, which a family may replace.
    """

    transformer_class: ClassVar[type[Any]]
    vae_class: ClassVar[type[Any]]
    reads_with: ClassVar[Sequence[TextEncoder]]
    connects_with: ClassVar[TextEncoder | None] = None  # what makes its text of the encoders' states
    sounds_with: ClassVar[dict[str, type[Any]]] = {}  # what decodes its sound, by the names of folders
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
        self.vae: Any = parts.vae.eval()
        if device.type == "cuda":
            channels_last(self.vae)
        self.dtype: torch.dtype = getattr(torch, spec.dtype)
        self._preview = {key: value.to(device) for key, value in parts.preview.items()}
        self._texts: dict[str, _Kept] = {}
        self._attention: Any = None  # the backend that was chosen, if any
        self._compilation: Compilation | None = None
        self.loras: tuple[Lora, ...] = ()
        self._lora_states: list[tuple[int, ...]] = []
        experts = [
            Component.of(part).then(partial(self._expert, index)) for index, part in enumerate(parts.experts)
        ]
        reading = [*parts.text_encoders, *([] if parts.connectors is None else [parts.connectors])]
        encoders = [Component.of(part).then(nn.Module.eval) for part in reading]
        decoders = self.vae
        if parts.sound:  # they are where the VAE is
            decoders = nn.ModuleList([self.vae, *(part.eval() for part in parts.sound.values())])
        usual = self._working(spec.size, spec.usual_latents)
        self.offload = Offload(device, experts, encoders, decoders, memory, usual)

    @classmethod
    def load(cls, spec: ModelSpec, device: torch.device, memory: MemoryMode = "auto") -> Self:
        """Load from the folder that ``spec`` names. Raises MissingError or DamagedError."""
        adapter = cls(spec, device, load_parts(cls, spec, device), memory)
        # A configuration can be read and be of no use: that is said now, not after the first scene.
        latents = torch.zeros(1, spec.latent_channels, 2, 2, 2, device=device)
        folder = spec.weights
        read_component(lambda _: _check_levels(adapter.sigmas(2, latents.shape)), folder / "scheduler")
        for index, name in enumerate(names("tokenizer", len(adapter.parts.tokenizers))):
            read_component(lambda _, index=index: adapter._tokens(index, ""), folder / name)  # type: ignore[misc]
        read_component(lambda _: adapter._raw(latents), folder / "vae")
        return adapter

    @classmethod
    def random(cls, spec: ModelSpec, device: torch.device) -> Self:
        """Return a model of the true sizes with random weights, for measuring: it draws noise."""
        return cls(spec, device, random_parts(cls, spec, device), "high")  # all of it is there already

    def compile(self, said: Callable[[str], None] = lambda words: None) -> None:
        """Compile the transformers' blocks, which share their graphs; those to be read, when they are.

        Where that cannot be, ``said`` is called with why not.
        """
        loaded = self.offload.loaded_experts
        self._compilation = Compilation([block for expert in loaded for block in self.blocks(expert)], said)

    @property
    def compiled(self) -> bool:
        """Whether the transformers' blocks are compiled."""
        return self._compilation is not None and self._compilation.works

    @property
    def experts(self) -> list[Any]:
        """The transformers, that for most noise first."""
        return self.offload.experts

    @property
    def text_encoders(self) -> list[Any]:
        """The text encoders."""
        return self.offload.text_encoders[: len(self.parts.text_encoders)]

    @property
    def connectors(self) -> Any:
        """What makes the text that a transformer reads of the text encoders' states, where there is such."""
        return self.offload.text_encoders[-1]

    def attend_by(self, backend: str) -> None:
        """Compute attention by one of diffusers' backends, which `kernels.check_backend` has tried."""
        self._attention = AttentionBackendName(backend)
        for expert in self.offload.loaded_experts:
            expert.set_attention_backend(backend)

    @property
    def memory(self) -> MemoryMode:
        """The memory mode that it is in."""
        return self.offload.mode

    def choose_memory_mode(self, size: tuple[int, int], latents: int) -> MemoryMode:
        """In mode auto, take the highest mode that fits a film; return the mode.

        ``size`` is that of its pictures, ``latents`` the most latent frames of a segment.
        """
        return self.offload.choose(self._working(size, latents))

    def lower_memory_mode(self) -> MemoryMode | None:
        """Go to the next lower memory mode and return it; None if there is none."""
        return self.offload.lower()

    def _working(self, size: tuple[int, int], latents: int) -> Working | None:
        """Return what is needed beside the weights; None where nobody has calculated it."""
        return None if self.spec.needs is None else self.spec.needs.working(size, latents)

    def merge_loras(self, loras: Sequence[Lora]) -> None:
        """Have some LoRAs, and no others, merged into the transformers, beside those that the model names.

        Where they are others than before, or their files have changed, the transformers are read again: to
        take something away from rounded weights is not exact. Raises MissingError or DamagedError for files
        that do not fit.
        """
        wanted, states = tuple(loras), [lora.state for lora in loras]
        if (wanted, states) == (self.loras, self._lora_states):
            return
        self.loras, self._lora_states = wanted, states
        self.offload.read_experts_again()

    def _expert(self, index: int, transformer: nn.Module) -> nn.Module:
        """Make a transformer, as it was read, one of ours; ``index`` says which."""
        spec = self.spec
        loras = [lora for lora in (*spec.loras, *self.loras) if lora.changes(index)]
        if loras and not next(transformer.parameters()).is_meta:
            merge(transformer, loras, spec.authors_names)  # before fewer bits are left of the weights
        expert = stored(spec, self.blocks(transformer), transformer.eval())
        if spec.quantize == "fp8" and spec.dtype == "bfloat16" and multiplies_float8(self.device):
            multiply_in_float8(expert, getattr(expert, "_skip_layerwise_casting_patterns", ["norm"]))
        self._prepare(expert)
        if self._attention is not None:
            cast(Any, expert).set_attention_backend(self._attention.value)
        if self._compilation is not None:
            self._compilation.add(self.blocks(expert))
        return expert

    # Text

    def prepare(self, prompts: Iterable[str]) -> None:
        """Encode prompts in advance, so that the text encoders work once a film; forget all others.

        They are freed then, but in mode high, and read again if another film has other prompts. Raises
        PromptError, before they are read.
        """
        wanted = dict.fromkeys(prompts)
        self._texts = {prompt: text for prompt, text in self._texts.items() if prompt in wanted}
        missing = [prompt for prompt in wanted if prompt not in self._texts]
        for prompt in missing:
            for index in range(len(self.parts.tokenizers)):
                self._checked_tokens(index, prompt)
        if missing:
            with self.offload.encoding():
                for prompt in missing:
                    self.encode(prompt)

    def encode(self, prompt: str) -> Text:
        """Encode a prompt. Raises PromptError if it is too long to be read whole."""
        if prompt not in self._texts:
            with torch.inference_mode(), self.offload.encoding():
                self._texts[prompt] = _Kept.of(self._encode(prompt))
        return self._texts[prompt].text(self.device)

    def _encode(self, prompt: str) -> Text:
        """Read a prompt with every text encoder."""
        read = [self._read(index, prompt) for index in range(len(self.parts.tokenizers))]
        states, weights = zip(*read, strict=True)
        return Text(states, torch.cat(weights, 1))

    def _read(self, index: int, prompt: str) -> tuple[Tensor, Tensor]:
        """Return the states (1, L, D) and weights (1, L) of a prompt by an encoder. Raises PromptError."""
        tokens = self._checked_tokens(index, prompt)
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        states, weights = self._encoded(self.text_encoders[index], ids, mask)
        first = self.reads_with[index].template
        return states[:, first:], weights[:, first:]

    def blank_text(self, tokens: int) -> Text:
        """Return a text of so many tokens without any meaning, for calculations."""
        ids, mask = (torch.zeros(1, self.spec.text_length, dtype=torch.long) for _ in range(2))
        mask[:, :tokens] = 1
        widths = [encoder.get_input_embeddings().embedding_dim for encoder in self.text_encoders]
        read = [
            self._encoded(lambda ids, width=width, **_: [torch.empty(*ids.shape, width)], ids, mask)
            for width in widths
        ]
        states, weights = zip(*read, strict=True)
        return Text(
            tuple(x.to(self.device, self.dtype) for x in states), torch.cat(weights, 1).to(self.device)
        )

    def _checked_tokens(self, index: int, prompt: str) -> Any:
        """Return a prompt's tokens for an encoder. Raises PromptError if they are too many."""
        tokens, encoder = self._tokens(index, prompt), self.reads_with[index]
        count, longest = int(tokens.attention_mask.sum()) - encoder.template, encoder.most(self.spec)
        if count > longest:
            raise PromptError(prompt, count, longest)
        return tokens

    def _tokens(self, index: int, prompt: str) -> Any:
        """Return a prompt's tokens for an encoder, with ``input_ids`` and ``attention_mask`` (1, L)."""
        tokenizer: Any = self.parts.tokenizers[index]
        longest = self.reads_with[index].most(self.spec)
        prompt = self.clean(prompt)
        return tokenizer(prompt, padding="max_length", max_length=longest, return_tensors="pt")

    def _offsets(self, index: int, prompt: str) -> Sequence[tuple[int, int]]:
        """Return where the tokens that an encoder reads stand in a cleaned prompt, each [begin, end).

        None do for a tokenizer that does not say so.
        """
        tokenizer: Any = self.parts.tokenizers[index]
        return tokenizer(prompt, return_offsets_mapping=True).offset_mapping if tokenizer.is_fast else ()

    def clean(self, prompt: str) -> str:
        """Return a prompt as the family's pipeline hands it to its tokenizer: most do as it is."""
        return prompt

    def _encoded(self, encoder: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states (1, L', D) and weights (1, L') of tokens (1, L): here of all but padding."""
        count = int(mask.sum())
        states: Tensor = encoder(ids[:, :count], attention_mask=mask[:, :count])[0]
        return states, mask[:, :count].float()

    def tokens_in(self, prompt: str, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Return which tokens (ΣL,), on the CPU, lie in spans of a prompt's characters, each [begin, end).

        None do for a tokenizer that does not say where its tokens stand.
        """
        parts = []
        clean = self.clean(prompt)
        if clean != prompt:
            spans = [(len(self.clean(prompt[:begin])), len(self.clean(prompt[:end]))) for begin, end in spans]
        for index, states in enumerate(self.encode(prompt).states):
            inside = torch.zeros(states.shape[1], dtype=torch.bool)
            for place, (begin, end) in enumerate(self._offsets(index, clean)):
                inside[place] = any(begin < last and first < end for first, last in spans)
            parts.append(inside)
        return torch.cat(parts)

    # Denoising

    def sigmas(self, steps: int, shape: Sequence[int], shift: float | None = None) -> list[float]:
        """Return the steps + 1 noise levels from 1 to 0 for latents of a shape.

        A ``shift`` counts instead of the folder's.
        """
        scheduler = self.parts.scheduler if shift is None else with_shift(self.parts.scheduler, shift)
        scheduler.set_timesteps(steps)
        levels: list[float] = scheduler.sigmas.tolist()
        return levels

    def predict(self, requests: Sequence[Request]) -> Iterator[list[Tensor]]:
        """Yield for each request the velocities ε - x0 in fp32, one for each of its texts.

        Where it has sound, those of the sound follow.
        """
        for request in requests:
            ask = partial(self._answer, self.experts[self.expert_at(request.sigma)], request)
            answer = ask() if self._compilation is None else self._compilation.run(ask)
            yield [velocity for of_one in answer for velocity in of_one.float().split(1)]

    def _answer(self, transformer: Any, request: Request) -> Sequence[Tensor]:
        """Return the velocities of a request's picture, (T, C, F, H, W), and those of its sound, if any."""
        given: dict[str, Any] = {"clean": request.clean} if self.spec.pictures else {}
        if request.counts is not None:
            given["counts"] = request.counts
        return [self._velocities(transformer, request.x, request.sigma, request.texts, **given)]

    def _keys(self, transformer: Any, texts: Sequence[Text], encoder: int = 0) -> tuple[Tensor, Keys]:
        """Return one encoder's states (B, L, D) of several texts, and how a transformer attends to them."""
        kernel = None
        if any(text.groups for text in texts):
            dim = transformer.config.attention_head_dim
            kernel = lse_kernel(self._attention, texts[0].weights.device, self.dtype, dim)
        return keys_of(texts, kernel, encoder)

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
        with self.offload.decoding():
            return torch.cat([_to_bytes(part) for part in self._decoded(self.raw(latents))])

    @torch.inference_mode()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Return the latents (1, C, F, H, W) of pictures, uint8 (T, H, W, 3); T = 1 + k·frames per latent."""
        frames = pictures.to(self.device).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        with self.offload.decoding():
            raw = self.vae.encode(frames.to(next(self.vae.parameters()).dtype)).latent_dist.mode().float()
        mean, std = (self._raw(torch.full_like(raw, value)) for value in (0.0, 1.0))
        latents: Tensor = (raw - mean) / (std - mean)
        return latents

    def decode_sound(self, latents: Tensor) -> Tensor:
        """Return the samples, fp32 (T, 2) on the CPU, of a clip's sound (1, C, S, 1, M)."""
        raise NotImplementedError(f"model {self.spec.name} makes no sound")

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


def with_shift(scheduler: Any, shift: float) -> Any:
    """Return a scheduler like one of ours whose levels are shifted otherwise."""
    name = "flow_shift" if "flow_shift" in scheduler.config else "shift"
    return type(scheduler).from_config(scheduler.config, **{name: shift})


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
