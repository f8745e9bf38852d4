"""The text of every denoising step, and how much its words count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from storyreel.method.similarity import action_similarity, without_names, word_spans
from storyreel.method.weighting import (
    decision_prior,
    progression,
    prompt_scores,
    prompt_weights,
    smoothed,
    span_weights,
    standardised,
    text_weights,
)
from storyreel.models.base import Adapter, Text, side_by_side
from storyreel.story.plan import Plan, Segment

EQUAL = (0.5, 0.5)  # what one text that joins both prompts is
SCORED_EVERY = 2  # steps: weights are smoothed over steps anyway, and looking costs time
# What scenes and actions in general are like, so that only what is special about two of them is compared.
COMMON_ACTIONS = (
    *("is sitting", "is standing", "is walking", "is running", "is jumping", "is lying down"),
    *("is sleeping", "is smiling", "is eating", "is turning around", "is looking around"),
    *("is looking up", "is looking out of the window", "is picking something up", "is getting in"),
    "is getting out",
)


COMMON_SCENES = (
    *("in a room", "in a kitchen", "on a street of a city", "in a park", "in a forest", "on a beach"),
    *("in front of a house", "in a train", "at a lake", "in the mountains", "at a table", "on a field"),
)


class Scorer(Protocol):
    """A text-image encoder: how well a picture shows a text is the cosine of their unit vectors."""

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Return unit vectors (P, D)."""
        ...

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Return unit vectors (N, D) of pictures (N, 3, H, W) in [-1, 1]."""
        ...


@dataclass
class Prompts:
    """A segment's text, and its weights over the steps.

    ``spans`` (2, L) say which tokens are words of the scene prompt and of the action prompt in one text, and
    ``emphasis`` how often they may count; or ``shares`` (3, L) are the weights of the text's tokens if it
    were the scene prompt, the action prompt or the joined one alone. ``wanted`` (2, D) are the scorer's
    vectors of scene and action, ``alignment`` (2,) how well the estimate showed them when it was last scored,
    ``ending`` (D,) the vector of its last frame then. ``weights`` (2,) are the present ones of scene and
    action, ``history`` has one entry a step. All are on the device.
    """

    text: Text
    spans: Tensor | None = None
    emphasis: float = 1.0
    shares: Tensor | None = None
    wanted: Tensor | None = None
    alignment: Tensor | None = None
    ending: Tensor | None = None
    weights: Tensor | None = None
    history: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        self._plain = self.text.weights[0].clone()

    def apply(self) -> None:
        """Write the weights into the text, in place: without a synchronisation and without a new graph."""
        if self.weights is None:
            return
        if self.spans is not None:
            louder = span_weights(self.weights, self.emphasis)[:, None]
            counts = torch.where(self.spans, louder, torch.ones_like(louder)).prod(0)
            self.text.weights[0].copy_(self._plain * counts)
        elif self.shares is not None:
            self.text.weights[0].copy_(text_weights(self.weights) @ self.shares)

    def decided(self) -> list[tuple[float, float]]:
        """Return the weights (scene, action) of every step, rounded for records."""
        if not self.history:
            return []
        return [(round(scene, 4), round(action, 4)) for scene, action in torch.stack(self.history).tolist()]

    def state(self) -> dict[str, Tensor]:
        """Return what has changed since the beginning."""
        if not self.history:
            return {}
        state = {"alignment": self.alignment, "ending": self.ending, "history": torch.stack(self.history)}
        return {name: value for name, value in state.items() if value is not None}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""
        if "history" in state:
            self.alignment, self.ending = state.get("alignment"), state.get("ending")
            self.history = tuple(state["history"].unbind())
            self.weights = self.history[-1]
            self.apply()


def all_prompts(plan: Plan, scored: bool) -> list[str]:
    """Return every text that a model encodes for a film, each once.

    With ``scored``, a scorer encodes the phrases that actions are compared by.
    """
    method, prompts = plan.settings.method, [plan.settings.negative]
    for segment in plan.takes:
        alone = (
            [segment.scene, segment.action] if method.weighting == "texts" or method.prompt == "scene" else []
        )
        prompts += [*alone, segment.prompt]
    for segment in plan.takes:  # what the cells that show a character are found by
        prompts += [
            without_names(plan.first_takes[given.source].prompt, (given.name,))
            for given in plan.given(segment)
            if given.name is not None
        ]
    if _compares(plan) and not scored:
        prompts += [*COMMON_ACTIONS, *(segment.phrase for segment in plan.first_takes)]
    return list(dict.fromkeys(prompts))


class PromptWriter:
    """Encodes prompts and sets their weights in every step (DIPW of arXiv 2503.06310, `method.weighting`).

    Without a scorer, or for a model without cheap previews, progression alone decides.
    """

    def __init__(self, adapter: Adapter, plan: Plan, scorer: Scorer | None) -> None:
        self._adapter, self._plan, self._method = adapter, plan, plan.settings.method
        self._scorer = scorer if self._method.alignment or self._method.smoothness else None
        device = adapter.device  # everything is sent there here, so that no step does
        self._nothing = torch.zeros(2, device=device)
        steps = plan.settings.steps
        self._progression = [progression(step / steps).to(device) for step in range(steps)]
        # In, and outside of, the noise levels at which the model decides.
        self._decided = [decision_prior(level, (0.0, 1.0)).to(device) for level in (1.0, 0.0)]
        self._others = None
        if self._scorer is not None and self._method.weighting:
            # Always the same ones: a scene's latents depend on no prompts of scenes that are not its sources.
            common = (COMMON_SCENES, COMMON_ACTIONS)
            self._others = [self._scorer.embed_texts(prompts) for prompts in common]
        self.negative = adapter.encode(plan.settings.negative)

    def prompts(self, segment: Segment) -> Prompts:
        """Return a segment's prompts as they are before the first step."""
        if self._method.prompt == "scene":
            return Prompts(self._adapter.encode(segment.scene))
        joined = self._adapter.encode(segment.prompt)
        if not self._method.weighting:
            return Prompts(joined)
        if self._method.weighting == "texts":
            texts = [*map(self._adapter.encode, (segment.scene, segment.action)), joined]
            alone = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
            shares = torch.cat([side_by_side(texts, weights).weights for weights in alone])
            prompts = Prompts(side_by_side(texts, alone[2]), shares=shares)
        else:
            prompt, action = segment.prompt, segment.action
            of_scene, of_action = (
                self._adapter.tokens_in(prompt, word_spans(part, start, segment.cast))
                for part, start in ((segment.scene, 0), (action, len(prompt) - len(action)))
            )
            grouped, order = joined.grouped(of_scene.long() + 2 * of_action.long())
            spans = torch.stack([of_scene[order], of_action[order]]).to(self._adapter.device)
            prompts = Prompts(grouped, spans, self._method.emphasis or 1.0)
            if segment.scene == segment.action:  # one prompt, of which nothing leads
                prompts.emphasis = 1.0
        prompts.weights = self._weights(self._nothing, self._nothing, self._prior(0, 1.0))
        prompts.history = (prompts.weights,)
        if self._scorer is not None:
            prompts.wanted = self._scorer.embed_texts([segment.scene, segment.action])
        prompts.apply()
        return prompts

    def weigh(
        self, prompts: Prompts, estimate: Tensor, sigma: float, lower: float, step: int, ending: Tensor | None
    ) -> None:
        """Set the weights of ``step`` at σ ``lower`` by the estimate x̂0 of the step before, at ``sigma``.

        ``ending`` (D,) is the scorer's vector of the end of the segment that this one continues, if any.
        """
        if prompts.weights is None or step >= self._plan.settings.steps:
            return
        if self._scorer is not None and sigma <= self._method.score_below and step % SCORED_EVERY == 0:
            self._score(prompts, estimate)
        alignment = self._nothing if prompts.alignment is None else prompts.alignment
        smoothness = self._nothing
        if prompts.wanted is not None and ending is not None:
            smoothness = self._fit(prompts.wanted, ending)
        weights = self._weights(alignment, smoothness, self._prior(step, lower))
        prompts.weights = smoothed(weights, prompts.weights, self._method.inertia)
        prompts.history += (prompts.weights,)
        prompts.apply()

    def _prior(self, step: int, sigma: float) -> Tensor:
        if self._method.weighting == "texts":
            return self._progression[step]
        low, high = self._plan.spec.decides
        return self._decided[0 if low < sigma <= high else 1]

    def _weights(self, alignment: Tensor, smoothness: Tensor, prior: Tensor) -> Tensor:
        method = self._method
        return prompt_weights(prompt_scores(alignment, smoothness, prior, method.lambdas), method.temperature)

    def _fit(self, wanted: Tensor, picture: Tensor) -> Tensor:
        """Return how well a picture (D,) fits a scene's two prompts (2, D), beside what is common."""
        assert self._others is not None
        return standardised(wanted @ picture, [others @ picture for others in self._others])

    def _score(self, prompts: Prompts, estimate: Tensor) -> None:
        assert self._scorer is not None
        assert prompts.wanted is not None
        last = estimate.shape[2] - 1  # plain slices: an index would be sent to the device
        frames = [estimate[:, :, at : at + 1] for at in (last // 2, last)]
        pictures = self._adapter.preview(torch.cat(frames, 2))
        if pictures is None:
            return
        vectors = self._scorer.embed_pictures(pictures)
        prompts.alignment = self._fit(prompts.wanted, vectors.mean(0))
        prompts.ending = vectors[-1]


@torch.inference_mode()
def similarities(plan: Plan, adapter: Adapter, scorer: Scorer | None) -> list[float | None]:
    """Return S_A of the actions at every seam (SAR of arXiv 2503.06310), None where nothing is compared.

    Their embeddings are the scorer's, or else the means of the model's own text tokens. Where no more than
    one latent frame is shared, there is nothing to shorten.
    """
    if not _compares(plan):
        return [None] * len(plan.seams)

    def embed(phrases: Sequence[str]) -> Tensor:
        if scorer is not None:
            return scorer.embed_texts(phrases)
        return torch.stack([adapter.encode(phrase).mean() for phrase in phrases])

    typical = embed(COMMON_ACTIONS).mean(0)
    actions = embed([segment.phrase for segment in plan.first_takes])
    return [
        round(float(action_similarity(actions[seam.after - 1], actions[seam.after], typical)), 4)
        if seam.overlap > 1
        else None
        for seam in plan.seams
    ]


def _compares(plan: Plan) -> bool:
    return plan.settings.method.similarity and any(seam.overlap > 1 for seam in plan.seams)
