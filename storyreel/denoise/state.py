"""A denoising on disk: the latents of a finished segment, or the state of one that was under way."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from storyreel.denoise.loop import SegmentState
from storyreel.errors import StoryreelError
from storyreel.files import write_atomically, writing


class Stored:
    """The file of a segment."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save_latents(self, finished: SegmentState) -> None:
        """Write the latents (1, C, lead + own, H, W) of a segment, and how it ends. Raises OutputError."""
        self._write({"latents": finished.x, "ending": finished.prompts.ending})

    def save_state(self, begun: SegmentState) -> None:
        """Write all that has changed since a segment began. Raises OutputError."""
        tensors: dict[str, Tensor | None] = {"x": begun.x, **begun.prompts.state()}
        if begun.known:
            levels, velocities = zip(*begun.known, strict=True)
            tensors["levels"] = torch.tensor(levels, dtype=torch.float64)
            tensors["velocities"] = torch.stack(velocities)
        self._write(tensors)

    def _write(self, tensors: dict[str, Tensor | None]) -> None:
        kept = {name: value.cpu().contiguous() for name, value in tensors.items() if value is not None}
        with writing(self._path):
            write_atomically(self._path, save(kept))

    def latents(self, device: torch.device) -> Tensor:
        """Return the segment's latents."""
        return self._tensors("latents")["latents"].to(device)

    def ending(self, device: torch.device) -> Tensor | None:
        """Return a scorer's vector (D,) of how the segment ends; None if nothing scored it."""
        ending = self._tensors("latents").get("ending")
        return None if ending is None else ending.to(device)

    @torch.inference_mode()
    def restore(self, begun: SegmentState, step: int) -> None:
        """Take a segment that has just begun to where it was left, after ``step`` steps.

        Raises StoryreelError if the file holds the state of none like it.
        """
        tensors = {name: value.to(begun.x.device) for name, value in self._tensors("x").items()}
        x = tensors.pop("x")
        levels = tensors.pop("levels", torch.empty(0))
        velocities = tensors.pop("velocities", x.new_empty(0, *x.shape))
        alike = x.shape == begun.x.shape == velocities.shape[1:] and levels.shape == velocities.shape[:1]
        if not alike or not 0 <= step < len(begun.sigmas):
            raise self._forged()
        begun.x, begun.step = x, step
        begun.known = tuple(zip(levels.tolist(), velocities, strict=True))
        begun.prompts.restore(tensors)

    def _tensors(self, needed: str) -> dict[str, Tensor]:
        """Return what a file holds; ``needed`` are its latents, (1, C, F, H, W)."""
        try:
            tensors = load(self._path.read_bytes())
        except (SafetensorError, ValueError, KeyError) as error:
            raise self._forged() from error
        if needed not in tensors or tensors[needed].ndim != 5:
            raise self._forged()
        return tensors

    def _forged(self) -> StoryreelError:
        """Return the error for a file with the hash that was recorded, which yet holds nothing of ours."""
        return StoryreelError(f"{self._path} holds no segment", "Render again with --overwrite.")
