"""What a model needs of a GPU's and of the machine's memory, by a film's size and length. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# high: all on the device. balanced: text encoders and VAE only while they work. low: the transformer's
# blocks too come and go. None changes a picture.
MemoryMode = Literal["auto", "high", "balanced", "low"]
MODES: tuple[MemoryMode, ...] = ("high", "balanced", "low")
GB = 1e9


@dataclass(frozen=True)
class Working:
    """Bytes beside the weights, at most: while a step is denoised, and while pictures are decoded."""

    denoising: float
    decoding: float


# For a model of which nothing is calculated: what most of the others take at their default size.
USUAL = Working(8 * GB, 8 * GB)


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's weights.

    ``experts`` are its transformers; ``as_read`` the largest of them as it is read, before its weights are
    stored in fewer bits. ``parts`` of a transformer are on the device at a time in mode low, and
    ``matrix`` of the text encoders.
    """

    experts: tuple[float, ...]
    as_read: float
    encoders: float
    vae: float
    parts: float
    matrix: float

    def on_device(self, working: Working) -> dict[str, float]:
        """Return the bytes that a device must have free in each memory mode.

        The text encoders are done before the transformers come, but in mode high.
        """
        experts = sum(self.experts)
        return {
            "high": experts + self.encoders + self.vae + max(working.denoising, working.decoding),
            "balanced": max(self.encoders, experts + max(working.denoising, self.vae + working.decoding)),
            "low": max(self.parts + working.denoising, self.vae + working.decoding, self.matrix),
        }

    def on_host(self) -> dict[str, float]:
        """Return the bytes that the machine holds of the weights in each memory mode, beside a GPU.

        One component is read after the other, and kept only where the mode wants that.
        """
        reading = max(self.encoders, self.as_read)
        kept = sum(self.experts) - max(self.experts)
        return {
            "high": max(reading, self.vae),
            "balanced": reading + self.vae,
            "low": max(self.encoders, kept + self.as_read) + self.vae,
        }


@dataclass(frozen=True)
class Needs:
    """A model's memory as straight lines, in GB: what `storyreel bench --calculate --fit` prints.

    ``denoising`` is (a, b) for a + b·cells and ``decoding`` (a, b, c) for a + b·area + c·cells, where
    ``area`` are millions of pixels of a picture and ``cells`` that times the latent frames of a segment.
    ``by_storage`` are (one transformer, its parts in mode low) for each way to store its weights.
    """

    experts: int
    encoders: float
    vae: float
    matrix: float
    by_storage: dict[str, tuple[float, float]]
    denoising: tuple[float, float]
    decoding: tuple[float, float, float]

    def working(self, size: tuple[int, int], latents: int) -> Working:
        """Return the bytes beside the weights for pictures of a size, and so many latent frames."""
        area = size[0] * size[1] / 1e6
        a, b = self.denoising
        c, d, e = self.decoding
        cells = area * latents
        return Working((a + b * cells) * GB, (c + d * area + e * cells) * GB)

    def weights(self, quantize: str) -> Weights:
        """Return the bytes of the weights, the transformers' stored as one of `specs.QUANTIZATIONS`."""
        expert, parts = (size * GB for size in self.by_storage[quantize])
        as_read = self.by_storage["none"][0] * GB
        others = (self.encoders * GB, self.vae * GB)
        return Weights((expert,) * self.experts, as_read, *others, parts, self.matrix * GB)


def fitting_mode(needed: Mapping[str, float], there: float) -> MemoryMode | None:
    """Return the highest memory mode that needs no more than is ``there``; None if none does."""
    return next((mode for mode in MODES if mode in needed and needed[mode] <= there), None)


def highest_mode(needed: dict[str, float], free: float) -> MemoryMode:
    """Return the highest memory mode that ``free`` bytes of a device allow; low where none does."""
    return fitting_mode(needed, free) or "low"
