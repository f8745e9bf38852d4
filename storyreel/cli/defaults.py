"""Defaults that stay: the file ``storyreel.toml`` beside the stories, with options' names as keys."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from storyreel.cli.reading import is_story
from storyreel.errors import UsageError

FILE = "storyreel.toml"
PREFIX = "STORYREEL_"  # of the environment's variables, with the option's name in capitals
# Read from the file's folder, wherever the command is run.
PATHS = ("out", "weights", "sign_cert", "sign_key", "lora")
SEVERAL = ("lora",)  # which may be a list
KEYS = (
    *("model", "seed", "size", "seconds", "steps", "guidance", "negative", "shift", "speed", "quantize"),
    *("weights", "device", "memory", "out", "sign_cert", "sign_key", "lora"),
)


def unknown_variables() -> Iterator[tuple[str, str]]:
    """Yield every variable that is named as ours are and is none of them, and what to do about it."""
    known = [f"{PREFIX}{key.upper()}" for key in (*KEYS, "debug")]
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            near = get_close_matches(name, known, 1)
            yield name, f"Perhaps {near[0]}?" if near else "Unset it."


class FileDefaults(dict[str, Any]):
    """The file's values of a command's options, read when the first is asked for, so that help needs none.

    ``given`` are the values of the command line as they become known; the stories among them come first, and
    the file is theirs, or that of the working directory.
    """

    def __init__(self, given: Mapping[str, Any], keys: Collection[str]) -> None:
        super().__init__()
        self.path: Path | None = None
        self._given, self._keys = given, keys
        self._values: dict[str, Any] | None = None

    def get(self, name: str, default: Any = None) -> Any:
        """Return an option's value, or the default if the file has none. Raises UsageError."""
        if name not in self._keys:
            return default
        if self._values is None:
            places = self._given.get("places") or ()
            one = self._given.get("story")
            stories = self._given.get("stories") or (
                [one] if isinstance(one, Path) else filter(is_story, places)
            )
            self.path = defaults_file(list(stories))
            self._values = read_defaults(self.path) if self.path else {}
        return self._values.get(name, default)


def source_of(context: Any, name: str) -> str:
    """Return where an option's value comes from, if that is the environment or a file; "" otherwise."""
    source = context.get_parameter_source(name)
    if source is not None and source.name == "ENVIRONMENT":
        return f"{PREFIX}{name.upper()}"
    if source is not None and source.name == "DEFAULT_MAP":
        return str(getattr(context.default_map, "path", ""))
    return ""


def defaults_file(stories: Collection[Path]) -> Path | None:
    """Return the file beside some stories or in a folder of them, or in the working directory without any.

    Raises UsageError if it is not one and the same for all.
    """
    folders = {story if story.is_dir() else story.parent for story in stories} or {Path()}
    files = {folder.resolve(): folder / FILE for folder in sorted(folders)}
    found = [path for path in files.values() if path.is_file()]
    if found and len(files) > 1:
        names = ", ".join(map(str, sorted(folders)))
        raise UsageError(
            f"the stories lie in several folders, and {found[0]} counts for those beside it alone",
            f"Run the command once for each folder ({names}).",
        )
    return found[0] if found else None


def read_defaults(path: Path) -> dict[str, Any]:
    """Return what a file sets. Raises UsageError for what it cannot set."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", "Correct that, or move it away."
        ) from None
    except (ValueError, RecursionError) as error:  # no UTF-8, or no TOML
        words = str(error) or "it is nested too deep"
        raise UsageError(f"{path}: {words}", 'Write KEY = VALUE, as in model = "mini".') from None
    for key, value in values.items():
        if key not in KEYS:
            near = get_close_matches(key, KEYS, 1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise UsageError(f"{path}: unknown key {key!r}", f"{hint}Known keys: {', '.join(KEYS)}")
        items = value if key in SEVERAL and isinstance(value, list) else [value]
        if any(isinstance(item, bool) or not isinstance(item, str | int | float) for item in items):
            raise UsageError(f"{path}: {key} must be text or a number", 'As in model = "mini", steps = 8.')
        if key in PATHS:
            try:
                items = [str(path.parent / Path(str(item)).expanduser()) for item in items]
            except RuntimeError:  # ~NAME is the home of somebody who is not known here
                raise UsageError(
                    f"{path}: {key}: there is no home for {value!r}", "Write ~/FOLDER, or a whole path."
                ) from None
        values[key] = items if key in SEVERAL else items[0]
    return values
