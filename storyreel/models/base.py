"""The one convention that every model is brought to.

Latents are (B, C, F, H, W) in fp32, normalised as the transformer sees them. σ is 1 for noise
and 0 for a clean picture, x_σ = (1 - σ)·x0 + σ·ε. A model's own habits end in its adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from storyreel.models.specs import ModelSpec

# high: all on the device. balanced: text encoders and VAE only while they work. low: the transformer's
# blocks too come and go. None changes a picture.
MemoryMode = Literal["auto", "high", "balanced", "low"]


@dataclass(frozen=True)
class Text:
    """An encoded prompt.

    ``states`` are the tokens (1, L, D) of each of the model's text encoders. ``weights`` (1, ΣL), float,
    say how much each of them counts, one encoder after the other: 1 is as ever, 0 excludes, 2 is as if the
    token stood there twice.
    """

    states: tuple[Tensor, ...]
    weights: Tensor

    def weights_by_encoder(self) -> tuple[Tensor, ...]:
        """Return views of the weights: (1, L) for each encoder."""
        weights: tuple[Tensor, ...] = self.weights.split([states.shape[1] for states in self.states], 1)
        return weights

    def mean(self) -> Tensor:
        """Return the mean (D,) of the first encoder's tokens that have weight 1."""
        return self.states[0][self.weights_by_encoder()[0] == 1].mean(0)

    def to(self, device: torch.device | str, copy: bool = False) -> Text:
        """Return the text on a device."""
        states = tuple(states.to(device, copy=copy) for states in self.states)
        return Text(states, self.weights.to(device, copy=copy))


def side_by_side(texts: Sequence[Text], weights: Sequence[float]) -> Text:
    """Return several prompts' tokens as one text in which each prompt's tokens count by its weight.

    With weights that sum to 1, (1, 0) is the first prompt alone, and two equal prompts are that prompt.
    Mixing in the attention, and not of embeddings as arXiv 2503.06310 does, is a deviation.
    """
    states = tuple(torch.cat(parts, 1) for parts in zip(*(text.states for text in texts), strict=True))
    scaled = [text.weights * weight for text, weight in zip(texts, weights, strict=True)]
    parts = [Text(text.states, share).weights_by_encoder() for text, share in zip(texts, scaled, strict=True)]
    return Text(states, torch.cat([part for encoder in zip(*parts, strict=True) for part in encoder], 1))


def stacked(texts: Sequence[Text], encoder: int = 0) -> tuple[Tensor, Tensor]:
    """Return one encoder's states (B, L, D) and weights (B, L) of several texts, padded with zeros."""
    states = [text.states[encoder] for text in texts]
    return _padded(states), _padded([text.weights_by_encoder()[encoder] for text in texts])


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Stack rows (1, L, …) of different lengths, with zeros at their ends."""
    longest = max(row.shape[1] for row in rows)
    blank = [row.new_zeros(1, longest - row.shape[1], *row.shape[2:]) for row in rows]
    return torch.cat([torch.cat([row, rest], 1) for row, rest in zip(rows, blank, strict=True)])


class Request(NamedTuple):
    """What a transformer is to predict: the velocity at ``x`` and σ, for each text.

    ``x`` is (1, C, F, H, W).
    """

    x: Tensor
    sigma: float
    texts: Sequence[Text]

    def to(self, device: torch.device | str) -> Request:
        """Return the request on a device."""
        return Request(self.x.to(device), self.sigma, [text.to(device) for text in self.texts])


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

    def prepare(self, prompts: Iterable[str]) -> None:
        """Encode a film's prompts in advance and forget those of others. Raises PromptError."""
        ...

    def lower_memory_mode(self) -> MemoryMode | None:
        """Go to the next lower memory mode and return it; None if there is none."""
        ...

    def encode(self, prompt: str) -> Text:
        """Encode a prompt. Raises PromptError if it is too long to be read whole."""
        ...

    def tokens_in(self, prompt: str, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Return which tokens (ΣL,) of a prompt lie in spans of its characters, each [begin, end)."""
        ...

    def sigmas(self, steps: int, shape: Sequence[int]) -> list[float]:
        """Return the steps + 1 noise levels from 1 to 0 for latents of a shape."""
        ...

    def expert_at(self, sigma: float) -> int:
        """Return which of the model's transformers is made for a noise level; 0 where there is one."""
        ...

    def predict(self, requests: Sequence[Request]) -> Iterator[list[Tensor]]:
        """Yield for each request, in order and as soon as it is there, the velocities ε - x0 in fp32.

        There is one (1, C, F, H, W) for each of the request's texts.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pictures, uint8 (T, H, W, 3) on the CPU, of a clip's latents (1, C, F, H, W).

        The first latent frame is one picture, every other several.
        """
        ...

    def preview(self, latents: Tensor) -> Tensor | None:
        """Return a cheap picture (F, 3, H, W) in [-1, 1] of each latent frame; None if there is no way."""
        ...
