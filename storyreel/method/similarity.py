"""SAR, the semantic action representation (arXiv 2503.06310).

As published, α' = α·(1 - S_A), with S_A the cosine of two neighbouring actions' embeddings: the more alike
the actions are, the weaker is the blending of their segments. Where α' acts is not said; here it scales a
seam's overlap, so that a story of similar actions costs less. Whether the place stays is read from the
words of the two scene prompts.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # planning needs the words alone, and loads no torch
    from torch import Tensor

_ARTICLES = ("a", "an", "the")
_AUXILIARIES = ("is", "are", "was", "were", "has", "have")
_GRAMMAR = """
    a an the is are was were has have had be been do does did can will and or but he she it they his her its
    their him them this that who which in on at of to by for from with into onto over under off out up down
    near along around inside outside behind through across about between beside front back top next now then
    again still there here when while as together slowly finally eventually moment s
"""
NO_PLACE = frozenset(_GRAMMAR.split())
_NOUNS = """
    building ceiling clearing crossing evening king landing morning parking ring spring
"""
THINGS = frozenset(_NOUNS.split())  # that end in -ing all the same


def verb_phrase(action: str, names: tuple[str, ...]) -> str:
    """Return an action without its subject: "a corgi dog is sitting" becomes "is sitting".

    ``names`` are the cast's; they are left out wherever they stand. A sentence that would
    vanish stays whole.
    """
    return without_names(action, names) or action


def without_names(prompt: str, names: tuple[str, ...]) -> str:
    """Return a prompt without some names, with or without their articles, wherever they stand."""
    forms = {form for name in names for form in (name, _bare(name))}
    for name in sorted(forms, key=len, reverse=True):
        prompt = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " ", prompt, flags=re.IGNORECASE)
    return " ".join(prompt.split())


def word_spans(part: str, start: int, names: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return where the words of a part that begins at ``start`` stand, without names: [begin, end)."""
    forms = sorted({form for name in names for form in (name, _bare(name))}, key=len, reverse=True)
    named = [
        match.span()
        for form in forms
        for match in re.finditer(rf"(?<!\w){re.escape(form)}(?!\w)", part, re.IGNORECASE)
    ]
    words = (match.span() for match in re.finditer(r"\w[\w'’-]*", part))
    return [
        (start + begin, start + end)
        for begin, end in words
        if not any(first <= begin < last for first, last in named)
    ]


def is_named(name: str, prompt: str) -> bool:
    """Tell whether a prompt has a name, with its article or without."""
    return without_names(prompt, (name,)) != " ".join(prompt.split())


def _bare(name: str) -> str:
    return re.sub(r"^(an?|the)\s+", "", name, flags=re.IGNORECASE)


def place_words(scene: str, names: tuple[str, ...]) -> frozenset[str]:
    """Return what may name the place in a scene prompt: its words but names, grammar, and what is being done.

    In lower case and without a plural's s; "{first} is walking on the streets of Rome" has street and rome.
    """
    words = re.findall(r"[^\W\d_]+", without_names(scene, names).casefold())
    kept = (w for w in words if w not in NO_PLACE and (w in THINGS or not w.endswith("ing")))
    return frozenset(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in kept)


def same_place(earlier: str, later: str, names: tuple[str, ...]) -> bool:
    """Tell whether two scene prompts are set at one place: half of the words of the shorter are in both.

    A scene that names no place stays where the one before was.
    """
    first, second = place_words(earlier, names), place_words(later, names)
    return 2 * len(first & second) >= min(len(first), len(second))


def shared_start(sentences: tuple[str, ...]) -> str:
    """Return the words with which all sentences begin, the subject of a story without a cast.

    Articles and pronouns alone are no subject, an auxiliary is part of the verb; a story of one sentence has
    none.
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
    return "" if all(word.casefold() in NO_PLACE for word in words) else " ".join(words)


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


def seam_overlap(longest: int, similarity: float) -> int:
    """Return a seam's overlap in latent frames: ``longest`` at similarity 0, 1 at similarity 1."""
    return min(longest, max(1, round(longest * (1 - similarity))))
