"""A denoising on disk: the latents finished last, and the states of the segments that were under way."""

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
from storyreel.denoise.loop import SegmentState, State
from storyreel.denoise.prompts import PromptWriter
from storyreel.errors import StoryreelError
from storyreel.files import write_atomically, writing
from storyreel.models.base import Adapter
from storyreel.story.plan import Plan


class Stored:
    """The file of a finished segment and of the window behind it, or of a window alone."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, state: State) -> None:
        """Write a state, and with it the latents (1, C, lead + own, H, W) that were finished last."""
        finished = {"latents": state.before, "ending": state.ending}
        tensors = {name: value for name, value in finished.items() if value is not None}
        for begun in state.window:
            number = begun.segment.number
            tensors[f"{number}.x"] = begun.x
            for name, value in begun.prompts.state().items():
                tensors[f"{number}.{name}"] = value
            if begun.known:
                levels, velocities = zip(*begun.known, strict=True)
                tensors[f"{number}.levels"] = torch.tensor(levels, dtype=torch.float64)
                tensors[f"{number}.velocities"] = torch.stack(velocities)
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        facts = {"begun": {begun.segment.number: begun.step for begun in state.window}}
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
        """Return the error for a file with the hash that was recorded, which yet holds nothing of ours."""
        return StoryreelError(f"{self._path} holds no segment", "Render again with --overwrite.")

    @torch.inference_mode()
    def state(self, plan: Plan, adapter: Adapter, writer: PromptWriter, anchors: Anchors) -> State:
        """Return the state that was saved, on the adapter's device."""
        device = adapter.device
        tensors = self._tensors()
        never = torch.full((), math.inf, device=device)
        window = []
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
            context = anchors.context(segment)
            window.append(SegmentState(segment, x, step, prompts, context, sigmas, never, tuple(known)))
        before, ending = (
            tensors[name].to(device) if name in tensors else None for name in ("latents", "ending")
        )
        return State(before, window, ending)
