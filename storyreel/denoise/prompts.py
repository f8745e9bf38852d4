"""What the model is told at every step: two prompts side by side, each by its weight, or one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from storyreel.method.similarity import action_similarity
from storyreel.method.weighting import progression, prompt_scores, prompt_weights, smoothed, text_weights
from storyreel.models.base import Adapter, Text, side_by_side
from storyreel.story.plan import Plan, Segment, Settings

EQUAL = (0.5, 0.5)  # what one text that joins both prompts is
SCORED_EVERY = 2  # steps: weights are smoothed over steps anyway, and looking costs time
# What actions in general are like, so that only what is special about two of them is compared.
COMMON_ACTIONS = (
    *("is sitting", "is standing", "is walking", "is running", "is jumping", "is lying down"),
    *("is sleeping", "is smiling", "is eating", "is turning around", "is looking around"),
    *("is looking up", "is looking out of the window", "is picking something up", "is getting in"),
    "is getting out",
)


class Scorer(Protocol):
    """Says how well pictures show a text, by the cosine of unit vectors."""

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Return unit vectors (P, D)."""
        ...

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Return unit vectors (N, D) of pictures (N, 3, H, W) in [-1, 1]."""
        ...


@dataclass
class Prompts:
    """A segment's prompts: the text that the model reads, and how its weights came about.

    ``shares`` (3, L) tells which tokens are the scene's, the action's and those of both in one text,
    ``wanted`` (2, D) is what a scorer compares pictures with, ``ending`` (D,) how the estimate ended
    when it was last scored. ``weights`` (2,) of scene and action, and ``history``, one entry a step,
    stay on the device.
    """

    text: Text
    shares: Tensor | None = None
    wanted: Tensor | None = None
    alignment: Tensor | None = None
    ending: Tensor | None = None
    weights: Tensor | None = None
    history: tuple[Tensor, ...] = ()

    def apply(self) -> None:
        """Write the weights where the attention reads them: in place, without asking the device."""
        if self.shares is not None and self.weights is not None:
            self.text.mask[0].copy_(text_weights(self.weights) @ self.shares)

    def decided(self) -> list[tuple[float, float]]:
        """Return the weights (scene, action) of every step, for people."""
        if not self.history:
            return []
        return [(round(scene, 4), round(action, 4)) for scene, action in torch.stack(self.history).tolist()]

    def state(self) -> dict[str, Tensor]:
        """Return what has changed since the beginning."""
        if not self.history:
            return {}
        found = {"alignment": self.alignment, "ending": self.ending, "history": torch.stack(self.history)}
        return {name: value for name, value in found.items() if value is not None}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""
        if "history" in state:
            self.alignment, self.ending = state.get("alignment"), state.get("ending")
            self.history = tuple(state["history"].unbind())
            self.weights = self.history[-1]
            self.apply()


def all_prompts(plan: Plan, scored: bool) -> list[str]:
    """Return every text that a model reads for a film, each once; ``scored`` says that a scorer reads too."""
    method, found = plan.settings.method, [""]
    for segment in plan.segments:
        found += [segment.scene, segment.action, segment.prompt] if method.weighting else [segment.prompt]
    if method.similarity and not scored:
        found += [*COMMON_ACTIONS, *(segment.phrase for segment in plan.segments)]
    return list(dict.fromkeys(found))


class PromptWriter:
    """Encodes prompts and weighs them in every step (DIPW, METHOD 2).

    Without a scorer, or for a model without cheap previews, progression alone rules.
    """

    def __init__(self, adapter: Adapter, settings: Settings, scorer: Scorer | None) -> None:
        self._adapter, self._method = adapter, settings.method
        self._scorer = scorer if self._method.alignment or self._method.smoothness else None
        # On the device once and for all: a step must not wait for it.
        priors = [progression(step / settings.steps) for step in range(settings.steps)]
        self._priors = torch.stack(priors).to(adapter.device)
        self.negative = adapter.encode("")

    def prompts(self, segment: Segment) -> Prompts:
        """Return a segment's prompts as they are before the first step."""
        if not self._method.weighting:
            return Prompts(self._adapter.encode(segment.prompt))
        told = (segment.scene, segment.action, segment.prompt)
        texts = [self._adapter.encode(prompt) for prompt in told]
        shares = torch.block_diag(*(text.mask.float() for text in texts))
        nothing = torch.zeros_like(self._priors[0])
        weights = self._weights(nothing, nothing, self._priors[0])
        text = side_by_side(texts, [0.0, 0.0, 1.0])
        prompts = Prompts(text, shares, weights=weights, history=(weights,))
        if self._scorer is not None:
            prompts.wanted = self._scorer.embed_texts([segment.scene, segment.action])
        prompts.apply()
        return prompts

    def weigh(
        self, prompts: Prompts, estimate: Tensor, sigma: float, step: int, ending: Tensor | None
    ) -> None:
        """Set the weights of a step by the estimate x̂0 that was made at ``sigma`` in the one before.

        ``ending`` is how the segment before ends, as far as it has been seen.
        """
        if prompts.weights is None or step >= len(self._priors):
            return
        if self._scorer is not None and sigma <= self._method.score_below and step % SCORED_EVERY == 0:
            self._score(prompts, estimate)
        nothing = torch.zeros_like(self._priors[step])
        alignment = nothing if prompts.alignment is None else prompts.alignment
        smoothness = nothing
        if prompts.wanted is not None and ending is not None:
            smoothness = prompts.wanted @ ending
        weights = self._weights(alignment, smoothness, self._priors[step])
        prompts.weights = smoothed(weights, prompts.weights, self._method.inertia)
        prompts.history += (prompts.weights,)
        prompts.apply()

    def _weights(self, alignment: Tensor, smoothness: Tensor, prior: Tensor) -> Tensor:
        method = self._method
        return prompt_weights(prompt_scores(alignment, smoothness, prior, method.lambdas), method.temperature)

    def _score(self, prompts: Prompts, estimate: Tensor) -> None:
        assert self._scorer is not None
        assert prompts.wanted is not None
        last = estimate.shape[2] - 1  # plain slices: an index would be sent to the device
        frames = [estimate[:, :, at : at + 1] for at in (last // 2, last)]
        pictures = self._adapter.preview(torch.cat(frames, 2))
        if pictures is None:
            return
        seen = self._scorer.embed_pictures(pictures)
        prompts.alignment = prompts.wanted @ seen.mean(0)
        prompts.ending = seen[-1]


@torch.inference_mode()
def similarities(plan: Plan, adapter: Adapter, scorer: Scorer | None) -> list[float | None]:
    """Return how alike the actions at every seam are (SAR, METHOD 2); None where it is not asked.

    The scorer reads them, or else the model's own text encoder: the mean of its tokens.
    """
    if not plan.settings.method.similarity or not any(seam.strength for seam in plan.seams):
        return [None] * len(plan.seams)

    def embed(phrases: Sequence[str]) -> Tensor:
        if scorer is not None:
            return scorer.embed_texts(phrases)
        texts = [adapter.encode(phrase) for phrase in phrases]
        return torch.stack([text.states[text.mask == 1].mean(0) for text in texts])

    typical = embed(COMMON_ACTIONS).mean(0)
    told = embed([segment.phrase for segment in plan.segments])
    return [
        round(float(action_similarity(told[seam.after - 1], told[seam.after], typical)), 4)
        if seam.strength
        else None
        for seam in plan.seams
    ]
