"""A segment's lead: what earlier segments have finished of the characters, and of the shot that goes on.

Of another take, the end is given too. A scene with a picture of its own begins with that.

A model that is told a noise level for each token has learnt to go on from a picture without noise. So what is
given whole at the beginning is encoded from pictures there, that of a file or the last ones of the scene
before, and stays clean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from storyreel.errors import StoryreelError
from storyreel.method.blending import name_matters
from storyreel.method.similarity import without_names
from storyreel.models.base import Adapter, Request
from storyreel.models.lora import Lora
from storyreel.story.plan import LOOKED_AT, Given, Plan, Segment, derived_seed


@dataclass(frozen=True)
class Lead:
    """Clean latents (1, C, L, H, W), and the weights (1, 1, L, H, W) with which they stand in a segment.

    They begin with the segment, and L reaches as far as anything is given. The first ``clean`` latent frames
    stand there without noise. ``sound`` is likewise what is given of the segment's sound (1, C, S, 1, M),
    None where nothing is. ``portraits`` (1, 1, L, H, W) is 1 where characters stand as they were first shown,
    else 0; None if none does.
    """

    latents: Tensor
    weights: Tensor
    clean: int = 0
    sound: Lead | None = None
    portraits: Tensor | None = None

    def counts(self, weight: float | None) -> Tensor | None:
        """Return how often each cell counts in attention (1, 1, L, H, W), portraits ``weight`` times.

        None where each counts once.
        """
        if self.portraits is None or weight in (None, 1):
            return None
        return 1 + (weight - 1) * self.portraits


class Leads:
    """The leads of a film's segments.

    ``recall`` returns the latents (1, C, lead + own, H, W) of a scene's first take, which is finished, and
    ``recall_sound`` those of its sound, (1, C, S, 1, M), of a model that makes some.
    """

    def __init__(
        self,
        adapter: Adapter,
        plan: Plan,
        recall: Callable[[int], Tensor],
        recall_sound: Callable[[int], Tensor] | None = None,
    ) -> None:
        self._adapter, self._plan, self._recall, self._recall_sound = adapter, plan, recall, recall_sound
        self._portraits: dict[tuple[int, str, tuple[Lora, ...]], tuple[Tensor, Tensor]] = {}

    def of(self, segment: Segment) -> Lead | None:
        """Return what is given of a segment; None where nothing is. Its sources are finished."""
        parts = self._plan.given(segment)
        if not parts:
            return None
        reach = max(segment.lead, *(part.at + part.count for part in parts))
        latents = weights = portraits = None
        for part in parts:
            given, cells = (
                self._whole(part) if part.name is None else self._portrait(segment, part, part.name)
            )
            if latents is None or weights is None:
                latents = given.new_zeros(*given.shape[:2], reach, *given.shape[3:])
                weights = given.new_zeros(1, 1, *latents.shape[2:])
            places = slice(part.at, part.at + part.count)
            # Of two characters on one cell the first stays: they stand beside each other from there on.
            free = cells * (weights[:, :, places] == 0)
            latents[:, :, places] = torch.lerp(latents[:, :, places], given, free)
            weights[:, :, places] += free * part.strength
            if part.name is not None:
                portraits = torch.zeros_like(weights) if portraits is None else portraits
                portraits[:, :, places] += free
        assert latents is not None
        assert weights is not None
        # With less strength it would be neither clean nor of one noise level.
        clean = sum(part.count for part in parts if part.anew and part.name is None and part.strength == 1)
        heard = [part for part in parts if part.name is None and part.picture is None]
        return Lead(latents, weights, clean, self._sound(heard, reach), portraits)

    def _sound(self, parts: Sequence[Given], reach: int) -> Lead | None:
        """Return what is given of a segment's sound: what was heard with pictures that are given whole.

        The two have rates of their own: sound stands where its time is, as strong as the pictures do.
        """
        spec = self._plan.spec
        if spec.sound is None or self._recall_sound is None or not parts:
            return None
        latents = weights = None
        for part in parts:
            there = self._recall_sound(part.source)
            last, begin, end = (
                spec.sound_latents(count)
                for count in (part.first + part.count, part.at, part.at + part.count)
            )
            count = min(end - begin, last)  # the clip's first latents are shorter
            if latents is None or weights is None:
                latents = there.new_zeros(*there.shape[:2], spec.sound_latents(reach), *there.shape[3:])
                weights = there.new_zeros(1, 1, latents.shape[2], 1, 1)
            latents[:, :, end - count : end] = there[:, :, last - count : last]
            weights[:, :, end - count : end] = part.strength
        assert latents is not None
        assert weights is not None
        return Lead(latents, weights)

    def _whole(self, part: Given) -> tuple[Tensor, Tensor]:
        if part.anew:
            latents = self._adapter.encode_pictures(self._pictures(part))
        else:
            latents = self._recall(part.source)[:, :, part.first : part.first + part.count]
        return latents, torch.ones_like(latents[:, :1])

    def _pictures(self, part: Given) -> Tensor:
        """Return pictures, uint8 (T, H, W, 3): a file's, or the last that are shown of a segment."""
        plan = self._plan
        if part.picture is not None:
            from storyreel.models.pictures import read_picture

            path, size = plan.pictures[part.picture], (plan.settings.width, plan.settings.height)
            found, picture = read_picture(path, size)
            if found != part.picture:
                raise StoryreelError(f"the picture {path} has changed meanwhile", "Run the command again.")
            return torch.from_numpy(picture.copy())[None]
        source = plan.first_takes[part.source]
        shown = self._adapter.decode(self._recall(part.source))[: plan.unseen(source) + source.frames]
        return shown[-1 - plan.spec.frames_per_latent * (part.count - 1) :]

    def _frame(self, part: Given) -> Tensor:
        """Return the frame of a source that shows somebody (1, C, 1, H, W)."""
        latents = self._recall(part.source)
        if not part.anew:
            return latents[:, :, part.first : part.first + part.count]
        return self._adapter.encode_pictures(self._adapter.decode(latents[:, :, : part.first + 1])[-1:])

    def _portrait(self, segment: Segment, part: Given, name: str) -> tuple[Tensor, Tensor]:
        """Return a frame of a source, and which of its cells show a character. Both are kept.

        The character is looked for with the LoRAs of the segment that begins, which are merged then.
        """
        key = part.source, name, segment.loras
        if key not in self._portraits:
            self._adapter.merge_loras(segment.loras)
            latents = self._frame(part).clone()
            self._portraits[key] = latents, self._shows(latents, self._plan.first_takes[part.source], name)
        return self._portraits[key]

    @torch.inference_mode()
    def _shows(self, latents: Tensor, segment: Segment, name: str) -> Tensor:
        """Return which cells of a segment's frame show a character: where the model needs the name."""
        prompts = segment.prompt, without_names(segment.prompt, (name,))
        texts = [self._adapter.encode(prompt) for prompt in prompts]
        requests = []
        # Weights for few steps know no other noise levels than theirs; at 1 nobody can be seen.
        known = [sigma for sigma in self._plan.spec.trained_levels if sigma < 1]
        for look, wanted in enumerate(LOOKED_AT):
            level = min(known, key=lambda sigma: abs(sigma - wanted), default=wanted)
            generator = torch.Generator().manual_seed(derived_seed(segment.seed, look))
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            requests.append(Request(torch.lerp(latents, noise, level), level, texts))
        answers = list(self._adapter.predict(requests))
        named, without = (torch.cat([answer[k] for answer in answers]) for k in (0, 1))
        return name_matters(named, without).to(latents)
