"""Who plays: what the command line says of a story's cast."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from storyreel.errors import UsageError
from storyreel.story.schema import CAST_FIELDS, Casting, Character, parse_cast
from storyreel.story.yaml_source import MAX_BYTES, forbidden_character

_MEMBER = re.compile(r"([a-z][a-z0-9_]*)(?:\.([a-z]+))?")
_FORM = (
    "Write MEMBER=NAME, as in first='a red panda', or MEMBER.possessive=his; or name a YAML file with a cast."
)


def read_casting(words: Sequence[str]) -> Casting:
    """Return what some values of ``--cast`` say, of which later ones win.

    Each is MEMBER=NAME, MEMBER.FIELD=TEXT, or the path of a YAML file with a cast, which may be a story.
    Raises UsageError; ScriptError for a file with faults.
    """
    texts: dict[str, dict[str, str]] = {}
    singly: set[str] = set()
    for word in words:
        key, equals, text = word.partition("=")
        match = _MEMBER.fullmatch(key.strip())
        if not equals or (match is None and Path(word).is_file()):
            texts |= _of_file(Path(word))
            continue
        if match is None:
            raise UsageError(f"--cast {word!r:.80} names no member of a cast", _FORM)
        who, field = match[1], match[2] or "name"
        if field not in CAST_FIELDS:
            known = ", ".join(f"{who}.{name}" for name in CAST_FIELDS)
            raise UsageError(f"--cast {key}: a member of the cast has no {field!r}", f"It has {known}.")
        _check(key, field, text)
        texts[who] = {**texts.get(who, {}), field: text}
        singly.add(who)
    return Casting(texts, frozenset(singly))


def _check(key: str, field: str, text: str) -> None:
    """Raise UsageError for what no cast can have."""
    if found := forbidden_character(text):
        raise UsageError(f"--cast {key}: {found[1]} is not allowed", "Take it out.")
    try:
        Character.model_validate({"name": "somebody", field: text})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        words = "empty text" if fault["type"] == "string_too_short" else str(fault["msg"])
        raise UsageError(f"--cast {key}: {words[:1].lower()}{words[1:]}", _FORM) from None


def _of_file(path: Path) -> dict[str, dict[str, str]]:
    """Return the cast of a YAML file."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise UsageError(f"--cast {path}: it is a folder", _FORM) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no file can have that name"
        raise UsageError(f"--cast {path}: it cannot be read: {why}", _FORM) from None
    cast = parse_cast(str(path), raw)
    texts = {who: member.model_dump(exclude_unset=True) for who, member in cast.items()}
    for member in texts.values():
        if member.get("picture"):  # it lies beside this file, not beside the story
            member["picture"] = str((path.parent / member["picture"]).absolute())
    return texts
