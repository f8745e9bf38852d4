"""Who plays: what the command line says of a story's cast, and folders of casts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import ValidationError

from storyreel.errors import Fault, ScriptError, UsageError
from storyreel.story.schema import CAST_FIELDS, Casting, Character, parse_cast
from storyreel.story.yaml_source import MAX_BYTES, forbidden_character, parse

_MEMBER = re.compile(r"([a-z][a-z0-9_]*)(?:\.([a-z]+))?")
_FORM = (
    "Write MEMBER=NAME, as in first='a red panda', or MEMBER.possessive=his; or name a YAML file with a cast."
)


@dataclass(frozen=True)
class CastFile:
    """A cast of a folder. It is for ``stories`` alone, patterns of their files' names without the ending."""

    path: Path
    casting: Casting
    stories: tuple[str, ...] = ("*",)

    @property
    def name(self) -> str:
        """What it adds to the names of films."""
        return self.path.stem

    def is_for(self, story: Path) -> bool:
        """Tell whether it plays in a story."""
        return any(fnmatchcase(story.stem, pattern) for pattern in self.stories)


def read_casts(folder: Path) -> tuple[CastFile, ...]:
    """Return the casts of a folder in the order of their names, one a YAML file.

    Raises UsageError without any, ScriptError for a file with faults.
    """
    if not folder.is_dir():
        raise UsageError(f"--casts {folder}: it is not a folder", "Of one file, write --cast FILE.")
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    except OSError as error:
        words = f"--casts {folder}: it cannot be read: {error.strerror}"
        raise UsageError(words, "Name another folder.") from None
    if not paths:
        raise UsageError(f"--casts {folder}: there is no cast in it", "Casts are files that end in .yaml.")
    return tuple(CastFile(path, _casting_of(path), _stories_of(path)) for path in paths)


def read_casting(words: Sequence[str]) -> Casting:
    """Return what some values of ``--cast`` say, of which later ones win.

    Each is MEMBER=NAME, MEMBER.FIELD=TEXT, or the path of a YAML file with a cast, which may be a story.
    Raises UsageError; ScriptError for a file with faults.
    """
    texts: dict[str, dict[str, str]] = {}
    singly: set[str] = set()
    files: dict[str, str] = {}
    for word in words:
        key, equals, text = word.partition("=")
        match = _MEMBER.fullmatch(key.strip())
        if not equals or (match is None and Path(word).is_file()):
            texts |= (found := _of_file(Path(word)))
            files |= dict.fromkeys(found, word)
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
    return Casting(texts, frozenset(singly), files)


def _casting_of(path: Path) -> Casting:
    texts = _of_file(path)
    return Casting(texts, files=dict.fromkeys(texts, str(path)))


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


def _stories_of(path: Path) -> tuple[str, ...]:
    """Return the patterns of the stories that a file is for, whose cast is whole. Raises ScriptError."""
    source = parse(str(path), path.read_bytes())
    data = source.data if isinstance(source.data, dict) else {}
    faults: list[Fault] = []
    if "scenes" not in data:  # else it is a story, whose cast plays everywhere
        unknown = [key for key in data if key not in ("cast", "stories")]
        words = "unknown key {!r}; allowed: cast, stories"
        faults += [source.fault(words.format(key), (key,), key=True) for key in unknown]
    found = data.get("stories", ["*"])
    if not (isinstance(found, list) and found and all(isinstance(one, str) and one for one in found)):
        words = "a list of names of stories, without .yaml, as in [nyc, '*_human']"
        faults.append(source.fault(words, ("stories",)))
    if faults:
        raise ScriptError(str(path), faults)
    return tuple(found)
