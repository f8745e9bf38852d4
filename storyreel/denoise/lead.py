"""A segment's lead: what earlier segments have finished of the characters, and of the shot that goes on.

Of another take, the end is given too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from storyreel.method.blending import name_matters
from storyreel.method.similarity import without_names
from storyreel.models.base import Adapter, Request
from storyreel.story.plan import LOOKS, Given, Plan, Segment, derived_seed

LOOKED_AT = 0.6  # the noise level at which a name decides most
SHARE = 0.15  # of the largest difference; from there on a cell shows the character


@dataclass(frozen=True)
class Lead:
    """Clean latents (1, C, L, H, W), and the weights (1, 1, L, H, W) with which they stand in a segment.

    They begin with the segment, and L reaches as far as anything is given.
    """

    latents: Tensor
    weights: Tensor


class Leads:
    """The leads of a film's segments.

    ``recall`` returns the latents (1, C, lead + own, H, W) of a scene's first take, which is finished.
    """

    def __init__(self, adapter: Adapter, plan: Plan, recall: Callable[[int], Tensor]) -> None:
        self._adapter, self._plan, self._recall = adapter, plan, recall
        self._portraits: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def of(self, segment: Segment) -> Lead | None:
        """Return what is given of a segment; None where nothing is. Its sources are finished."""
        parts = self._plan.given(segment)
        if not parts:
            return None
        reach = max(segment.lead, *(part.at + part.count for part in parts))
        latents = weights = None
        for part in parts:
            given, cells = self._whole(part) if part.name is None else self._portrait(part, part.name)
            if latents is None or weights is None:
                latents = given.new_zeros(*given.shape[:2], reach, *given.shape[3:])
                weights = given.new_zeros(1, 1, *latents.shape[2:])
            places = slice(part.at, part.at + part.count)
            # Of two characters on one cell the first stays: they stand beside each other from there on.
            free = cells * (weights[:, :, places] == 0)
            latents[:, :, places] = torch.lerp(latents[:, :, places], given, free)
            weights[:, :, places] += free * part.strength
        assert latents is not None
        assert weights is not None
        return Lead(latents, weights)

    def _whole(self, part: Given) -> tuple[Tensor, Tensor]:
        latents = self._recall(part.source)[:, :, part.first : part.first + part.count]
        return latents, torch.ones_like(latents[:, :1])

    def _portrait(self, part: Given, name: str) -> tuple[Tensor, Tensor]:
        """Return the first frame of a segment, and which of its cells show a character. Both are kept."""
        key = part.source, name
        if key not in self._portraits:
            latents = self._recall(part.source)[:, :, part.first : part.first + part.count].clone()
            self._portraits[key] = latents, self._shows(latents, self._plan.first_takes[part.source], name)
        return self._portraits[key]

    @torch.inference_mode()
    def _shows(self, latents: Tensor, segment: Segment, name: str) -> Tensor:
        """Return which cells of a segment's frame show a character: where the model needs the name."""
        prompts = segment.prompt, without_names(segment.prompt, (name,))
        texts = [self._adapter.encode(prompt) for prompt in prompts]
        # Weights for few steps know no other noise levels than theirs.
        level = min(self._plan.spec.sigmas or (LOOKED_AT,), key=lambda sigma: abs(sigma - LOOKED_AT))
        requests = []
        for look in range(LOOKS):
            generator = torch.Generator().manual_seed(derived_seed(segment.seed, look))
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            requests.append(Request(torch.lerp(latents, noise, level), level, texts))
        answers = list(self._adapter.predict(requests))
        named, without = (torch.cat([answer[k] for answer in answers]) for k in (0, 1))
        return name_matters(named, without, SHARE).to(latents)
