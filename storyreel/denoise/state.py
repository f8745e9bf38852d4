"""The state of a denoising on disk: what was finished last, and all it takes to denoise those behind it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from storyreel.denoise.anchors import Anchors
from storyreel.denoise.loop import State, Take
from storyreel.denoise.prompts import PromptWriter
from storyreel.errors import StoryreelError
from storyreel.files import write_atomically, writing
from storyreel.models.base import Adapter
from storyreel.story.plan import Plan


class Stored:
    """The file of one segment, its latents and the takes that were under way beside it, or of a window."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, state: State) -> None:
        """Write a state, and with it the latents (1, C, lead + own, H, W) that were finished last."""
        finished = {"latents": state.before, "ending": state.ending}
        tensors = {name: value for name, value in finished.items() if value is not None}
        for behind in state.takes:
            tensors[f"{behind.segment.number}.x"] = behind.x
            for name, value in behind.prompts.state().items():
                tensors[f"{behind.segment.number}.{name}"] = value
            if behind.known:
                levels, velocities = zip(*behind.known, strict=True)
                tensors[f"{behind.segment.number}.levels"] = torch.tensor(levels, dtype=torch.float64)
                tensors[f"{behind.segment.number}.velocities"] = torch.stack(velocities)
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        facts = {"begun": {behind.segment.number: behind.step for behind in state.takes}}
        with writing(self._path):
            # One entry: safetensors writes several in any order, and bytes are to be the same.
            write_atomically(self._path, save(tensors, {"storyreel": json.dumps(facts)}))

    def latents(self, device: torch.device) -> Tensor:
        """Return the segment's own latents."""
        tensors = self._tensors()
        if "latents" not in tensors:  # as a window has none before its first segment is finished
            raise self._forged()
        return tensors["latents"].to(device)

    def _begun(self) -> dict[str, int]:
        try:
            with safe_open(self._path, framework="pt") as file:
                begun: dict[str, int] = json.loads(file.metadata()["storyreel"])["begun"]
            return {number: int(step) for number, step in begun.items()}
        except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._forged() from error

    def _tensors(self) -> dict[str, Tensor]:
        try:
            tensors = load(self._path.read_bytes())
        except (SafetensorError, ValueError, KeyError) as error:
            raise self._forged() from error
        if "latents" in tensors and tensors["latents"].ndim != 5:
            raise self._forged()
        return tensors

    def _forged(self) -> StoryreelError:
        """Return the error for a file whose hash the manifest vouches for and that is not ours."""
        return StoryreelError(f"{self._path} holds no segment", "Render again with --overwrite.")

    @torch.inference_mode()
    def state(self, plan: Plan, adapter: Adapter, writer: PromptWriter, anchors: Anchors) -> State:
        """Return the state."""
        device = adapter.device
        tensors = self._tensors()
        never = torch.full((), math.inf, device=device)
        takes = []
        for number, step in self._begun().items():
            segment = plan.segments[int(number) - 1]
            prompts = writer.prompts(segment)
            prefix = f"{number}."
            parts: dict[str, Any] = {
                name.removeprefix(prefix): value.to(device)
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
            x = parts.pop("x")
            known = zip(
                parts.pop("levels", torch.empty(0)).tolist(), parts.pop("velocities", ()), strict=True
            )
            prompts.restore(parts)
            sigmas = adapter.sigmas(plan.settings.steps, x.shape)
            memory = anchors.memory(segment)
            takes.append(Take(segment, x, step, prompts, memory, sigmas, never, tuple(known)))
        before, ending = (
            tensors[name].to(device) if name in tensors else None for name in ("latents", "ending")
        )
        return State(before, takes, ending)
