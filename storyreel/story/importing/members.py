"""Who is in an imported story: names in its prompts become placeholders of a cast.

A name is found as it is written, in capitals, or in small letters behind an article: "Baker", "BAKER" and
"the baker" are one person, but "will" is not Will.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from storyreel.story.yaml_source import allowed_characters

MAX_NAME = 300  # characters of a name with its description, which stands wherever the name does
_ARTICLE = r"(?:(?:an?|the)\s+)?"
# What does not go on from "who is": "Wears a hat", "He is old".
_NO_NOUN = re.compile(
    r"(he|she|it|they|his|her|its|their|wears?|wearing|has|have|is|are|with|in|on|at|no)\b", re.I
)
_KEY = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Member:
    """Somebody by name, as the source's prompts have it, and what it says of their looks."""

    name: str
    description: str = ""


@dataclass(frozen=True)
class Placed:
    """A member of the cast to be: its key, its name and its noun, "" for the usual one."""

    key: str
    name: str
    noun: str
    of: str  # the source's name

    def is_called(self, names: Sequence[str]) -> bool:
        """Tell whether one of some names of the source is theirs."""
        return self.of.casefold() in {_bare(_plain(name)).casefold() for name in names}


def place(
    members: Sequence[Member], prompts: Sequence[Sequence[str]]
) -> tuple[list[Placed], list[list[str]], list[str]]:
    """Return the cast, the prompts of every scene with its placeholders, and what is to be said of it.

    A literal brace is written twice.
    """
    said: list[str] = []
    told_apart = list(_told_apart(members, said))
    everything = "\n".join(text for texts in prompts for text in texts)
    cast: list[Placed] = []
    for member in told_apart:
        if _pattern([member.name]).search(everything):
            cast.append(_placed(member, everything, {one.key for one in cast}, said))
        else:
            said.append(f"no prompt names {member.name}, who is left out of the cast")
    if not cast:
        return [], [[_doubled(text) for text in texts] for texts in prompts], said
    pattern = _pattern([one.of for one in cast])
    by_name = {one.of.casefold(): one for one in cast}
    told = []
    for texts in prompts:
        seen: set[str] = set()  # those whom the scene has introduced
        told.append([_with_placeholders(text, pattern, by_name, seen) for text in texts])
    return cast, told, said


def _told_apart(members: Sequence[Member], said: list[str]) -> Iterator[Member]:
    names = [_bare(_plain(member.name)) for member in members]
    for member, name in zip(members, names, strict=True):
        if sum(name.casefold() == other.casefold() for other in names) > 1:
            words = f"several members of the cast are called {name}: their names stay as they are"
            said += [words] if words not in said else []
        elif any(char.isalnum() for char in name):
            yield Member(name, _plain(member.description))


def _placed(member: Member, everything: str, taken: set[str], said: list[str]) -> Placed:
    name = member.name
    common = re.search(rf"\b(?:an?|the)\s+{re.escape(name)}(?!\w)", everything, re.I) is not None
    plain = name.lower() if common or name.isupper() else name
    if not common:
        plain = name.title() if name.isupper() and len(name) > 2 else name
    phrase, rest = _phrase(member.description)
    key = _key(name, taken)
    if rest:
        said.append(f"of the looks of {name} this is left out: {rest}")
    if not phrase:
        return Placed(key, _with_article(plain) if common else plain, "", name)
    if common:
        return Placed(key, phrase, plain, name)
    return Placed(key, f"{plain} ({phrase})", plain, name)


def _phrase(description: str) -> tuple[str, str]:
    """Return what a description calls somebody, with an article, and what it says beside that."""
    first, _, rest = description.strip().partition(". ")
    first = first.strip(" .,;:")
    if not first or _NO_NOUN.match(first) or len(first) > MAX_NAME:
        return "", description
    if re.match(r"(an?|the)\s", first, re.I):
        return first[0].lower() + first[1:], rest
    second = first.split()[1:2]
    proper = first[:2].isupper() or (second and second[0][:1].isupper())
    return _with_article(first if proper else first[0].lower() + first[1:]), rest


def _with_article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _bare(name: str) -> str:
    """Return a name without its article; "An Na" has none."""
    return re.sub(r"^(?:[Tt]he|an?)\s+", "", name)


def _plain(text: str) -> str:
    """Return a text as a cast may have it: in one line and without braces."""
    return " ".join(allowed_characters(text).replace("{", "(").replace("}", ")").split())


def _key(name: str, taken: set[str]) -> str:
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    key = _KEY.sub("_", letters).strip("_")[:40].rstrip("_")
    key = key if key[:1].isalpha() else f"character_{key}".rstrip("_")
    number, free = 2, key
    while free in taken:
        free, number = f"{key}_{number}", number + 1
    return free


def _pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Return what finds names: the longest first, with an article before them or without."""
    forms = []
    for name in sorted(names, key=len, reverse=True):
        small = re.escape(name.lower())
        written = {name, name.upper(), name.title() if name.isupper() else name}
        forms.append(rf"(?i:{_ARTICLE})(?:{'|'.join(map(re.escape, sorted(written)))})")
        forms.append(rf"(?i:(?:an?|the)\s+){small}")
    return re.compile(rf"(?<!\w)(?:{'|'.join(forms)})(?!\w)")


def _with_placeholders(
    text: str, pattern: re.Pattern[str], by_name: dict[str, Placed], seen: set[str]
) -> str:
    parts, at = [], 0
    for match in pattern.finditer(text):
        found = match[0].casefold()
        one = by_name.get(found) or by_name[re.sub(r"^(an?|the)\s+", "", found)]
        parts.append(_doubled(text[at : match.start()]))
        if one.noun and one.key in seen:
            article = "" if one.name.startswith(f"{one.noun} (") else "the "
            article = article.capitalize() if match.start() == 0 else article
            parts.append(f"{article}{{{one.key}.noun}}")
        else:
            parts.append(f"{{{one.key}}}")
        seen.add(one.key)
        at = match.end()
    parts.append(_doubled(text[at:]))
    return "".join(parts)


def _doubled(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
