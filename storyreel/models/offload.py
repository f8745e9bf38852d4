"""Where a model's components are between their uses: the memory modes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from storyreel.models.base import MemoryMode

MODES: tuple[MemoryMode, ...] = ("high", "balanced", "low")
WORKING = 8_000_000_000  # bytes for activations and decoding: the most that any model was calculated to take


class Offload:
    """Moves components between the CPU and the device, as the memory mode wants it.

    ``mode`` auto becomes the highest that fits into the device's free memory.
    """

    def __init__(
        self,
        device: torch.device,
        experts: Sequence[nn.Module],
        text_encoders: Sequence[nn.Module],
        vae: nn.Module,
        mode: MemoryMode,
    ) -> None:
        self._device, self._experts, self._text_encoders, self._vae = device, experts, text_encoders, vae
        self.mode: MemoryMode = fitting_mode(self.sizes(), device) if mode == "auto" else mode
        self._arrange()

    def sizes(self) -> tuple[int, int, int]:
        """Return the bytes of the transformers, the text encoders and the VAE."""
        experts, encoders, vae = (
            sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
            for modules in (self._experts, self._text_encoders, (self._vae,))
        )
        return experts, encoders, vae

    def lower(self) -> MemoryMode | None:
        """Go to the next lower mode and return it; None if there is none."""
        if self.mode == "low":
            return None
        self.mode = MODES[MODES.index(self.mode) + 1]
        self._arrange()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return self.mode

    @contextmanager
    def at_work(self, module: nn.Module) -> Iterator[None]:
        """Have a text encoder or the VAE on the device for a while; in mode low, encoders come in parts."""
        in_parts = self.mode == "low" and any(module is encoder for encoder in self._text_encoders)
        if in_parts or next(module.parameters()).device == self._device:
            yield
            return
        module.to(self._device)
        try:
            yield
        finally:
            module.to("cpu")

    def _arrange(self) -> None:
        """Put every component where the mode wants it between its uses."""
        low = self.mode == "low"
        others = self._device if self.mode == "high" else torch.device("cpu")
        for module in (self._vae, *self._text_encoders):
            module.to(others)
        for expert in self._experts:
            expert.to("cpu" if low else self._device)
            if low:
                self._in_parts(expert, offload_type="block_level", num_blocks_per_group=1)
        if low:
            for encoder in self._text_encoders:
                self._in_parts(encoder, offload_type="leaf_level")

    def _in_parts(self, module: nn.Module, **options: object) -> None:
        """Have the parts of a component on the device only while they work."""
        stream = self._device.type == "cuda"
        apply_group_offloading(module, onload_device=self._device, use_stream=stream, **options)


def fitting_mode(sizes: tuple[int, int, int], device: torch.device) -> MemoryMode:
    """Return the highest mode that a device's free memory allows, for `Offload.sizes`."""
    if device.type != "cuda":
        return "high"
    free, _ = torch.cuda.mem_get_info(device)
    return mode_for(sizes, free)


def mode_for(sizes: tuple[int, int, int], free: int) -> MemoryMode:
    """Return the highest mode for transformers, text encoders and VAE in ``free`` bytes."""
    experts, encoders, vae = sizes
    if experts + encoders + vae + WORKING <= free:
        return "high"
    # The text encoders come before the work, not beside it.
    return "balanced" if experts + max(encoders, vae + WORKING) <= free else "low"
