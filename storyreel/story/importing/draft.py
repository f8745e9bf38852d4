"""What every format is read into, and what makes a story's scenes of it.

A draft has scenes of one or two prompts, who is in them, and what a reader guessed or left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from storyreel.errors import FormatError
from storyreel.story.importing.members import Member
from storyreel.story.schema import MAX_PROMPT, MAX_SCENES, Transition, one_line
from storyreel.story.yaml_source import allowed_characters

MAX_WEIGHED = 20_000  # characters of a text in which marks of other tools are looked for
MAX_NESTED = 20  # brackets that weigh words
MAX_PLACES = 3  # of one thing that was left out that are named one by one
_EMPHASIS = re.compile(r"\(([^()]*?)\s*:\s*-?(?:\d+(?:\.\d*)?|\.\d+|`[^`]*`)\s*\)")
_TAG = re.compile(r"<(?:lora|lyco|hypernet|lora_?block|wildcard)[^<>]*>", re.I)


@dataclass
class Shot:
    """A scene to be: one prompt, or two; ``where`` it stands in its source; what is said of it in the story.

    ``seconds`` and ``transition`` are as in a story, None where the source says nothing; ``share`` is a part
    of the film's length, where the source knows no seconds; ``who`` are those whom it says to be there.
    """

    scene: str
    action: str = ""
    where: str = ""
    seconds: float | None = None
    share: float | None = None
    transition: Transition | None = None
    remarks: list[str] = field(default_factory=list)
    who: list[str] = field(default_factory=list)


@dataclass
class Draft:
    """A story to be; what was guessed, and what was left out, by what it is with its places in the source."""

    shots: list[Shot]
    title: str = ""
    cast: list[Member] = field(default_factory=list)
    seed: int | None = None
    remarks: list[str] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def guess(self, words: str) -> None:
        """Remember what the source does not say."""
        if words not in self.guesses:
            self.guesses.append(words)

    def leave_out(self, what: str, where: str) -> None:
        """Remember what a story has no place for."""
        self.left_out.setdefault(what, []).append(where)

    def losses(self) -> list[str]:
        """Return what was left out, a line each, with the first places."""
        lines = []
        for what, places in self.left_out.items():
            named = [place for place in dict.fromkeys(places) if place]
            more = len(named) - MAX_PLACES
            where = ", ".join(named[:MAX_PLACES]) + (f" and {more} more" if more > 0 else "")
            lines.append(f"{what} ({where})" if where else what)
        return lines

    def clean(self, path: str) -> None:
        """Make texts as a story may have them. Raises FormatError if no story can have them."""
        self.title = _text(self.title, self, "the title")[:200].rstrip()
        kept = []
        for shot in self.shots:
            shot.scene = _text(shot.scene, self, shot.where)
            shot.action = _text(shot.action, self, shot.where)
            if shot.action == shot.scene:
                shot.action = ""
            if not shot.scene:
                shot.scene, shot.action = shot.action, ""
            if shot.scene:
                kept.append(shot)
            else:
                self.leave_out("an empty prompt", shot.where)
            for text in (shot.scene, shot.action):
                if len(text) > MAX_PROMPT:
                    words = f"{path}: {shot.where}: a prompt of {len(text)} characters"
                    raise FormatError(
                        words, f"A story's has at most {MAX_PROMPT}: shorten it, and try again."
                    )
        if not kept:
            raise FormatError(f"{path} has no prompt", "A story has at least one scene: write one into it.")
        if len(kept) > MAX_SCENES:
            words = f"{path} has {len(kept)} prompts, a story at most {MAX_SCENES} scenes"
            raise FormatError(words, "Split the file, and import each part.")
        kept[0].transition = None  # nothing is before the first
        self.shots = kept


def _text(text: str, draft: Draft, where: str) -> str:
    """Return a text in one line, without what no story may have."""
    allowed = allowed_characters(text)
    if allowed != text:
        draft.leave_out("control characters", where)
    return str(one_line(allowed))


def without_weights(text: str, draft: Draft, where: str) -> str:
    """Return a prompt without the numbers and tags that other tools weigh its parts by."""
    if len(text) > MAX_WEIGHED:  # no story can have it
        return text
    text = " ".join(text.split())
    plain = _TAG.sub("", text)
    if plain != text:
        draft.leave_out("tags of other tools' models, as in <lora:…>", where)
    weighed = plain
    for _ in range(MAX_NESTED):
        plain, before = _EMPHASIS.sub(r"\1", plain), plain
        if plain == before:
            break
    if plain != weighed:
        draft.leave_out("weights of words, as in (word:1.2)", where)
    doubled = re.sub(r"(?<!\()\({2,}+([^()]*)\){2,}", r"\1", plain)
    if doubled != plain:
        draft.leave_out("brackets that weigh words, as in ((word))", where)
    return re.sub(r"\s*,(?:\s*,)+", ",", doubled).strip(" ,")


def one_prompt(draft: Draft, words: str = "the source has one prompt a scene") -> None:
    """Say that scenes have one prompt alone, if some have."""
    single = [not (shot.scene and shot.action) for shot in draft.shots]
    if any(single):
        some = "" if all(single) else "where "
        draft.guess(f"{some}{words}: it is the scene and the action")


def joined(parts: Sequence[str], between: str = ", ") -> str:
    """Return parts of a prompt as one text."""
    return between.join(part.strip(" ,") for part in parts if part.strip(" ,"))
