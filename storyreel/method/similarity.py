"""SAR, the semantic action representation (arXiv 2503.06310).

As published, α' = α·(1 - S_A), with S_A the cosine of two neighbouring actions' embeddings: the more alike
the actions are, the weaker is the blending of their segments. Where α' acts is not said; here it scales a
seam's blending strength and its overlap, so that a story of similar actions costs less.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # planning needs the words alone, and loads no torch
    from torch import Tensor

_ARTICLES = ("a", "an", "the")
_AUXILIARIES = ("is", "are", "was", "were", "has", "have")


def verb_phrase(action: str, names: tuple[str, ...]) -> str:
    """Return an action without its subject: "a corgi dog is sitting" becomes "is sitting".

    ``names`` are the cast's; they are left out wherever they stand. A sentence that would
    vanish stays whole.
    """
    phrase = action
    for name in sorted(names, key=len, reverse=True):
        phrase = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " ", phrase, flags=re.IGNORECASE)
    return " ".join(phrase.split()) or action


def shared_start(sentences: tuple[str, ...]) -> str:
    """Return the words with which all sentences begin, the subject of a story without a cast.

    Articles alone are no subject, an auxiliary is part of the verb; a story of one sentence has none.
    """
    if len(sentences) < 2:
        return ""
    words = []
    for column in zip(*(sentence.split() for sentence in sentences), strict=False):
        if len({word.casefold() for word in column}) > 1:
            break
        words.append(column[0])
    while words and words[-1].casefold() in _AUXILIARIES:
        words.pop()
    return "" if all(word.casefold() in _ARTICLES for word in words) else " ".join(words)


def action_similarity(earlier: Tensor, later: Tensor, typical: Tensor) -> Tensor:
    """Return S_A from 0 (nothing in common) to 1 (the same), a scalar.

    ``earlier`` and ``later`` (D,) are embeddings of verb phrases and ``typical`` (D,) is the mean
    over many: what all sentences share would make any two of them look alike, so it is taken
    out before the cosine (a deviation). Opposites count as nothing in common.
    """
    earlier, later = earlier - typical, later - typical
    lengths = (earlier.norm() * later.norm()).clamp(min=1e-8)
    cosine: Tensor = (earlier @ later) / lengths
    return cosine.clamp(0, 1)


def seam_strength(strength: float, similarity: float) -> float:
    """Return α' = α·(1 - S_A)."""
    return strength * (1 - similarity)


def seam_overlap(longest: int, similarity: float) -> int:
    """Return a seam's overlap in latent frames: ``longest`` at similarity 0, 1 at similarity 1."""
    return min(longest, max(1, round(longest * (1 - similarity))))
