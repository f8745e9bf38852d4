"""DIPW, dynamics-informed prompt weighting (arXiv 2503.06310).

The scene prompt and the action prompt have weights in every denoising step: by how well the present
estimate x̂0 shows each of them (alignment), how well the end of the segment before does (smoothness), and
how far the denoising has come (progression). The λ are not published. The weights act on the two prompts'
spans of one text that joins them (a deviation: `span_weights`), or, as in the paper, on texts of their own
(`text_weights`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def progression(progress: float) -> Tensor:
    """Return the narrative prior (2,) of scene and action at ``progress`` from 0 to 1.

    The paper's 1 - i/T and i/T.
    """
    return torch.tensor([1 - progress, progress])


def decision_prior(sigma: float, decides: tuple[float, float]) -> Tensor:
    """Return the prior (2,) of scene and action at noise level σ, by when the model decides on actions.

    While σ is within ``decides`` (low, high), all of it is the action's; else both count alike. A deviation
    from `progression`: in video the motion's layout is among the first things that are settled.
    """
    return torch.tensor([0.0, 1.0] if decides[0] < sigma <= decides[1] else [0.5, 0.5])


def standardised(own: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Return how much better a picture fits its own prompts than common ones, in standard deviations.

    ``own`` (2,) are its cosines with its scene and action, ``others`` two of (N,), those with common scenes
    and with common actions, N at least 2.
    """
    means = torch.stack([cosines.mean() for cosines in others])
    deviations = torch.stack([cosines.std() for cosines in others])
    return (own - means) / deviations.clamp(min=1e-4)


def prompt_scores(
    alignment: Tensor, smoothness: Tensor, prior: Tensor, lambdas: tuple[float, float, float]
) -> Tensor:
    """Return s_k = λ1·sim_k + λ2·prev_k + λ3·prior_k, shape (2,), for scene and action.

    ``alignment`` and ``smoothness`` (2,) are cosines of pictures with the two prompts, of this
    segment and of the end of the one before; ``prior`` (2,) is `progression`'s.
    """
    return lambdas[0] * alignment + lambdas[1] * smoothness + lambdas[2] * prior


def prompt_weights(scores: Tensor, temperature: float) -> Tensor:
    """Return softmax(s/τ), shape (2,): positive and of sum 1. τ → ∞ gives one half each."""
    return torch.softmax(scores / temperature, dim=-1)


def text_weights(weights: Tensor) -> Tensor:
    """Return how much scene, action and both in one text count, shape (3,), for ``weights`` (2,).

    (1, 0) is the scene alone, (0, 1) the action alone, (½, ½) the one text that joins them, which
    a model understands best; between them lies a mixture. Positive and of sum 1. A deviation: the
    paper mixes the two prompts' embeddings, but what a character does where, a text encoder and a
    transformer know from reading both together.
    """
    lead = weights[0] - weights[1]
    return torch.stack([lead.clamp(min=0), (-lead).clamp(min=0), 1 - lead.abs()])


def span_weights(weights: Tensor, emphasis: float) -> Tensor:
    """Return by how much the tokens of scene and of action count, shape (2,), for ``weights`` (2,).

    A prompt that leads counts up to ``emphasis`` times, with all of the weight; the other stays as it is,
    since without its scene an action has no place. (½, ½) is the text as the model knows it.
    """
    return (2 * weights).clamp(min=1) ** math.log2(emphasis)


def smoothed(weights: Tensor, before: Tensor | None, inertia: float) -> Tensor:
    """Return an exponential moving average over the steps; ``inertia`` 0 forgets at once.

    A deviation: estimates jump from step to step, and weights that jump with them do not
    converge. ``before`` is None in the first step.
    """
    return weights if before is None else torch.lerp(weights, before, inertia)
