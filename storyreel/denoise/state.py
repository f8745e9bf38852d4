"""A denoising on disk: the latents of a finished segment, or the state of one that was under way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from storyreel.denoise.loop import SegmentState
from storyreel.errors import StoryreelError
from storyreel.files import write_atomically, writing

SOUND, SOUND_VELOCITIES, BROKEN = "sound", "sound velocities", "broken"  # names of tensors


class Stored:
    """The file of a segment."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save_latents(self, finished: SegmentState) -> None:
        """Write the latents (1, C, lead + own, H, W) of a segment, and how it ends. Raises OutputError."""
        sound = None if finished.sound is None else finished.sound.x
        self._write({"latents": finished.x, SOUND: sound, "ending": finished.prompts.ending})

    def save_state(self, begun: SegmentState) -> None:
        """Write all that has changed since a segment began. Raises OutputError."""
        tensors: dict[str, Tensor | None] = {"x": begun.x, BROKEN: begun.broken, **begun.prompts.state()}
        if begun.known:
            levels, velocities = zip(*begun.known, strict=True)
            tensors["levels"] = torch.tensor(levels, dtype=torch.float64)
            tensors["velocities"] = torch.stack(velocities)
        if begun.sound is not None:
            tensors[SOUND] = begun.sound.x
            if begun.sound.known:
                tensors[SOUND_VELOCITIES] = torch.stack([velocity for _, velocity in begun.sound.known])
        self._write(tensors)

    def _write(self, tensors: dict[str, Tensor | None]) -> None:
        kept = {name: value.cpu().contiguous() for name, value in tensors.items() if value is not None}
        with writing(self._path):
            write_atomically(self._path, save(kept))

    def latents(self, device: torch.device, shape: Sequence[int]) -> Tensor:
        """Return the segment's latents, of a ``shape``. Raises StoryreelError if the file holds no such."""
        tensors = self._tensors()
        if not _are_like(tensors, {"latents": shape}):
            raise self._forged()
        return tensors["latents"].to(device)

    def sound(self, device: torch.device, shape: Sequence[int]) -> Tensor:
        """Return the latents of the segment's sound, of a ``shape``. Raises StoryreelError without them."""
        tensors = self._tensors()
        if not _are_like(tensors, {SOUND: shape}):
            raise self._forged()
        return tensors[SOUND].to(device)

    def ending(self, device: torch.device, width: int) -> Tensor | None:
        """Return a scorer's vector (D,) of ``width`` D of how the segment ends; None if nothing scored it.

        Raises StoryreelError if the file holds another one.
        """
        tensors = self._tensors()
        if "ending" not in tensors:
            return None
        if not _are_like(tensors, {"ending": (width,)}):
            raise self._forged()
        return tensors["ending"].to(device)

    @torch.inference_mode()
    def restore(self, begun: SegmentState, step: int) -> None:
        """Take a segment that has just begun to where it was left, after ``step`` steps.

        Raises StoryreelError if the file holds the state of none like it.
        """
        tensors = {name: value.to(begun.x.device) for name, value in self._tensors().items()}
        if not 0 <= step < len(begun.sigmas) or not _is_state_of(begun, step, tensors):
            raise self._forged()
        begun.x, begun.broken, begun.step = tensors.pop("x"), tensors.pop(BROKEN), step
        levels = tensors.pop("levels").tolist() if "levels" in tensors else []
        begun.known = tuple(zip(levels, tensors.pop("velocities", ()), strict=True))
        if begun.sound is not None:
            begun.sound.x = tensors.pop(SOUND)
            begun.sound.known = tuple(zip(levels, tensors.pop(SOUND_VELOCITIES, ()), strict=True))
        begun.prompts.restore(tensors)

    def _tensors(self) -> dict[str, Tensor]:
        """Return what a file holds."""
        try:
            return load(self._path.read_bytes())
        except (SafetensorError, ValueError, KeyError) as error:
            raise self._forged() from error

    def _forged(self) -> StoryreelError:
        """Return the error for a file with the hash that was recorded, which yet holds nothing of ours."""
        return StoryreelError(f"{self._path} holds no segment", "Render again with --overwrite.")


def _is_state_of(begun: SegmentState, step: int, tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether some tensors are all of what a segment is after ``step`` steps, and nothing else."""
    prompts, steps = begun.prompts, len(begun.sigmas) - 1
    shapes: dict[str, Sequence[int]] = {"x": begun.x.shape, BROKEN: ()}
    if begun.sound is not None:
        shapes[SOUND] = begun.sound.x.shape
    if prompts.history:  # one entry a step, the next one's too
        shapes["history"] = min(step + 1, steps), 2
    if prompts.history and prompts.wanted is not None and "ending" in tensors:  # it has been scored
        shapes |= {"alignment": (2,), "ending": prompts.wanted.shape[1:]}
    if "levels" in tensors:
        kept = len(tensors["levels"]) if tensors["levels"].ndim else 0
        shapes |= {"levels": (kept,), "velocities": (kept, *begun.x.shape)}
        if begun.sound is not None:
            shapes |= {SOUND_VELOCITIES: (kept, *begun.sound.x.shape)}
    if shapes.keys() != tensors.keys() or not _are_like(tensors, shapes):
        return False
    if tensors[BROKEN].item() not in (math.inf, *range(1, step + 1)):
        return False
    passed = begun.sigmas[:step]
    return all(level in passed for level in tensors["levels"].tolist()) if "levels" in tensors else True


def _are_like(tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> bool:
    """Tell whether there are tensors of these names and shapes, of floating-point numbers."""
    return all(
        name in tensors and tensors[name].shape == tuple(shape) and tensors[name].is_floating_point()
        for name, shape in shapes.items()
    )
