"""A file of another program: its text, and what it holds as data. Nothing of it is ever run."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from storyreel.errors import FormatError, ScriptError
from storyreel.story import yaml_source

MAX_BYTES = 4 << 20
_TYPES = {".json": "JSON", ".jsonl": "JSON", ".py": "Python", ".yaml": "YAML", ".yml": "YAML"}


class NotThisError(Exception):
    """A file is not of a format; says why."""


@dataclass(frozen=True)
class Named:
    """A value that a Python file gives a name, with the line."""

    name: str
    line: int
    value: Any


class Source:
    """A text file by its name, as yet of no known format."""

    def __init__(self, path: str, raw: bytes) -> None:
        self.path = path
        self.text = _decoded(path, raw)
        self.suffix = Path(path).suffix.lower()

    @property
    def is_python(self) -> bool:
        """Whether it is a program."""
        return self.suffix == ".py"

    @cached_property
    def data(self) -> Any:
        """The data that the file holds. Raises NotThisError if it holds text alone, or cannot be read."""
        kind = _TYPES.get(self.suffix) or self._looks_like()
        if kind == "JSON":
            return self._json()
        if kind == "YAML":
            return self._yaml()
        if kind == "Python":
            return {found.name: found.value for found in self.named}
        raise NotThisError("it is neither JSON nor YAML nor Python")

    @cached_property
    def named(self) -> list[Named]:
        """What a Python file gives names to, as far as it is written out: texts, numbers, lists and so on."""
        try:
            with warnings.catch_warnings(action="ignore"):  # of escapes in its texts
                tree = ast.parse(self.text)
                return list(_named(tree))
        except SyntaxError as error:
            raise NotThisError(f"it is no Python: line {error.lineno}: {error.msg}") from None
        except (ValueError, RecursionError, MemoryError, OverflowError):
            raise NotThisError("Python cannot read it") from None

    def _looks_like(self) -> str:
        start = self.text.lstrip()[:1]
        if start == "{" or (start == "[" and re.match(r"\[\s*[\[{\"\]]", self.text.lstrip())):
            return "JSON"
        if not self.suffix and re.match(r"(?:#.*\n|\s*\n)*(?:[\w.]+:(?:\s|$)|-\s+[\"'{\w])", self.text):
            return "YAML"
        return ""

    def _json(self) -> Any:
        try:
            return _loaded(self.text)
        except json.JSONDecodeError as error:
            lines = [line for line in self.text.split("\n") if line.strip()]
            if error.msg == "Extra data" and len(lines) > 1:
                return self._lines_of_json(lines)
            raise NotThisError(
                f"it is no JSON: line {error.lineno}, column {error.colno}: {error.msg}"
            ) from None
        except _RefusedError as error:
            raise NotThisError(f"its JSON has {error}") from None
        except RecursionError:
            raise NotThisError("its JSON is nested too deep") from None
        except ValueError:  # a number of thousands of digits
            raise NotThisError("its JSON has a number that is too long") from None

    def _lines_of_json(self, lines: list[str]) -> Any:
        values = []
        for number, line in enumerate(lines, 1):
            try:
                values.append(_loaded(line))
            except (ValueError, RecursionError, _RefusedError) as error:
                raise NotThisError(f"it is no JSON, nor one a line: value {number}: {error}") from None
        return values

    def _yaml(self) -> Any:
        try:
            source = yaml_source.parse(self.path, self.text.encode())
        except ScriptError as error:
            fault = error.faults[0]
            raise NotThisError(f"line {fault.line}: {fault.message}") from None
        if source.faults:
            fault = source.faults[0]
            raise NotThisError(f"line {fault.line}: {fault.message}")
        return source.data


class _RefusedError(Exception):
    """What JSON of other programs may have and no list of prompts needs."""


def _loaded(text: str) -> Any:
    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise _RefusedError(f"the number {digits}")
        return value

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            twice = Counter(key for key, _ in items).most_common(1)[0][0]
            raise _RefusedError(f"the key {twice!r:.60} twice")
        return found

    def constant(word: str) -> float:
        raise _RefusedError(f"{word}, which is no number")

    return json.loads(text, parse_float=number, parse_constant=constant, object_pairs_hook=pairs)


def _named(tree: ast.Module) -> Iterator[Named]:
    for node in ast.walk(tree):
        pairs: list[tuple[str, ast.expr]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target.id, node.value) for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            pairs = [(node.target.id, node.value)]
        elif isinstance(node, ast.keyword) and node.arg:
            pairs = [(node.arg, node.value)]
        for name, value in pairs:
            try:
                yield Named(name, value.lineno, ast.literal_eval(value))
            except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                continue  # it is computed when the file runs, which it never does here


def _decoded(path: str, raw: bytes) -> str:
    """Return a file's text with plain ends of lines. Raises FormatError for what is none."""
    if len(raw) > MAX_BYTES:
        raise FormatError(
            f"{path} is larger than {MAX_BYTES >> 20} MB", "Lists of prompts are smaller: split it."
        )
    encoding = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "UTF-8"
    try:
        text = raw.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise FormatError(f"{path}: line {line} is not {encoding}", "Save it as UTF-8.") from None
    if "\0" in text:
        raise FormatError(
            f"{path} is no text file", "Name a file of prompts, a benchmark's JSON or a screenplay."
        )
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise FormatError(f"{path} is empty", "Write prompts into it, a line each.")
    return text
