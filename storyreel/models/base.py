"""The one convention that every model is brought to.

Latents are (B, C, F, H, W) in fp32, normalised as the transformer sees them. σ is 1 for noise
and 0 for a clean picture, x_σ = (1 - σ)·x0 + σ·ε. A model's own habits end in its adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from storyreel.models.lora import Lora
from storyreel.models.memory import MemoryMode as MemoryMode
from storyreel.models.specs import ModelSpec


@dataclass(frozen=True)
class Text:
    """An encoded prompt.

    ``states`` are the tokens (1, L, D) of each of the model's text encoders. ``weights`` (1, ΣL), float,
    say how much each of them counts, one encoder after the other: 1 is as ever, 0 excludes, 2 is as if the
    token stood there twice. A transformer takes tokens as a set: their order means nothing.

    ``groups`` has for each encoder the sizes of groups of tokens, () without any: they stand at its end, one
    after the other, and each shares a weight, which may change; all tokens before them count once.
    """

    states: tuple[Tensor, ...]
    weights: Tensor
    groups: tuple[tuple[int, ...], ...] = ()

    def weights_by_encoder(self) -> tuple[Tensor, ...]:
        """Return views of the weights: (1, L) for each encoder."""
        weights: tuple[Tensor, ...] = self.weights.split([states.shape[1] for states in self.states], 1)
        return weights

    def mean(self) -> Tensor:
        """Return the mean (D,) in fp32 of the first encoder's tokens of weight 1, without zeros that pad."""
        states = self.states[0][0]
        return states[(self.weights_by_encoder()[0][0] == 1) & states.any(1)].float().mean(0)

    def to(self, device: torch.device | str, copy: bool = False) -> Text:
        """Return the text on a device."""
        states = tuple(states.to(device, copy=copy) for states in self.states)
        return Text(states, self.weights.to(device, copy=copy), self.groups)

    def grouped(self, of: Tensor) -> tuple[Text, Tensor]:
        """Return the text with its tokens in groups, and their order (ΣL,).

        ``of`` (ΣL,), integers on the CPU, says which group a token is of; those of group 0 always count once.
        """
        orders, groups = [], []
        for part in of.split([states.shape[1] for states in self.states]):
            orders.append(part.argsort(stable=True))
            groups.append(tuple(part[part > 0].unique(return_counts=True)[1].tolist()))
        states = tuple(x[:, order.to(x.device)] for x, order in zip(self.states, orders, strict=True))
        starts = accumulate(map(len, orders), initial=0)
        order = torch.cat([start + part for start, part in zip(starts, orders, strict=False)])
        return Text(states, self.weights[:, order.to(self.weights.device)], tuple(groups)), order


def side_by_side(texts: Sequence[Text], weights: Sequence[float]) -> Text:
    """Return several prompts' tokens as one text in which each prompt's tokens count by its weight.

    Each is a group of it. With weights that sum to 1, (1, 0) is the first prompt alone, and two equal prompts
    are that prompt.
    Mixing in the attention, and not of embeddings as arXiv 2503.06310 does, is a deviation.
    """
    states = tuple(torch.cat(parts, 1) for parts in zip(*(text.states for text in texts), strict=True))
    scaled = [text.weights * weight for text, weight in zip(texts, weights, strict=True)]
    parts = [Text(text.states, share).weights_by_encoder() for text, share in zip(texts, scaled, strict=True)]
    weights_of_all = torch.cat([part for encoder in zip(*parts, strict=True) for part in encoder], 1)
    sizes = [tuple(text.states[index].shape[1] for text in texts) for index in range(len(states))]
    return Text(states, weights_of_all, tuple(tuple(filter(None, of_one)) for of_one in sizes))


def stacked(texts: Sequence[Text], encoder: int = 0) -> tuple[Tensor, Tensor]:
    """Return one encoder's states (B, L, D) and weights (B, L) of several texts, padded with zeros."""
    states = [text.states[encoder] for text in texts]
    return padded(states), padded([text.weights_by_encoder()[encoder] for text in texts])


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Stack rows (1, L, …) of different lengths, with zeros at their ends."""
    longest = max(row.shape[1] for row in rows)
    blank = [row.new_zeros(1, longest - row.shape[1], *row.shape[2:]) for row in rows]
    return torch.cat([torch.cat([row, rest], 1) for row, rest in zip(rows, blank, strict=True)])


class Request(NamedTuple):
    """What a transformer is to predict: the velocity at ``x`` and σ, for each text.

    ``x`` is (1, C, F, H, W). Its first ``clean`` latent frames have no noise at all: a model that is told a
    noise level for each token is told so. ``sound`` (1, C', S, 1, M), of a model that makes sound, is at the
    same σ; without it the picture is predicted as if nothing were heard. ``counts`` (1, 1, L, H, W) says how
    often the cells of the first L latent frames count in attention; all others count once.
    """

    x: Tensor
    sigma: float
    texts: Sequence[Text]
    clean: int = 0
    sound: Tensor | None = None
    counts: Tensor | None = None

    def to(self, device: torch.device | str) -> Request:
        """Return the request on a device."""
        sound = None if self.sound is None else self.sound.to(device)
        texts = [text.to(device) for text in self.texts]
        counts = None if self.counts is None else self.counts.to(device)
        return self._replace(x=self.x.to(device), texts=texts, sound=sound, counts=counts)


class Adapter(Protocol):
    """A loaded model.

    ``at_once`` is how many requests it answers at a time, one on each of several devices.
    """

    spec: ModelSpec
    device: torch.device
    at_once: int

    @property
    def memory(self) -> MemoryMode:
        """The memory mode that it is in."""
        ...

    @property
    def compiled(self) -> bool:
        """Whether what is called in every step is compiled."""
        ...

    def compile(self, said: Callable[[str], None] = ...) -> None:
        """Compile what is called in every step; if that cannot be, call ``said`` with why, once."""
        ...

    def attend_by(self, backend: str) -> None:
        """Compute attention by one of diffusers' backends, which is known to work."""
        ...

    @property
    def loras(self) -> Sequence[Lora]:
        """The LoRAs that are merged into the transformers, without those that the model names itself."""
        ...

    def merge_loras(self, loras: Sequence[Lora]) -> None:
        """Have some LoRAs, and no others, merged into the transformers, which may be read again for that.

        Raises MissingError or DamagedError for files that do not fit.
        """
        ...

    def prepare(self, prompts: Iterable[str]) -> None:
        """Encode a film's prompts in advance and forget those of others. Raises PromptError."""
        ...

    def choose_memory_mode(self, size: tuple[int, int], latents: int) -> MemoryMode:
        """In mode auto, take the highest mode that fits a film; return the mode.

        ``size`` is that of its pictures, ``latents`` the most latent frames of a segment.
        """
        ...

    def lower_memory_mode(self) -> MemoryMode | None:
        """Go to the next lower memory mode and return it; None if there is none."""
        ...

    def encode(self, prompt: str) -> Text:
        """Encode a prompt. Raises PromptError if it is too long to be read whole."""
        ...

    def tokens_in(self, prompt: str, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Return which tokens (ΣL,), on the CPU, lie in spans of a prompt's characters, each [begin, end)."""
        ...

    def sigmas(self, steps: int, shape: Sequence[int], shift: float | None = None) -> list[float]:
        """Return the steps + 1 noise levels from 1 to 0 for latents of a shape.

        A model with a choice of shifts takes ``shift`` instead of its folder's.
        """
        ...

    def expert_at(self, sigma: float) -> int:
        """Return which of the model's transformers is made for a noise level; 0 where there is one."""
        ...

    def predict(self, requests: Sequence[Request]) -> Iterator[list[Tensor]]:
        """Yield for each request, in order and as soon as it is there, the velocities ε - x0 in fp32.

        There is one (1, C, F, H, W) for each of the request's texts; where the request has sound, as many of
        the sound (1, C', S, 1, M) follow.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pictures, uint8 (T, H, W, 3) on the CPU, of a clip's latents (1, C, F, H, W).

        The first latent frame is one picture, every other several.
        """
        ...

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Return the latents (1, C, F, H, W) of a clip's pictures, uint8 (T, H, W, 3): of one, one frame.

        Of a model whose spec has ``pictures``.
        """
        ...

    def decode_sound(self, latents: Tensor) -> Tensor:
        """Return the samples, fp32 (T, 2) on the CPU, of a clip's sound (1, C, S, 1, M), as far as they go.

        Of a model whose spec has ``sound``, which says how many there are in a second.
        """
        ...

    def preview(self, latents: Tensor) -> Tensor | None:
        """Return a cheap picture (F, 3, H, W) in [-1, 1] of each latent frame; None if there is no way."""
        ...
