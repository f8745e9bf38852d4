"""YAML text to plain data, with the place of every value and without YAML's surprises.

Refused: aliases (alias bombs), duplicate keys, tags, several documents, dates, sexagesimal
numbers, deep nesting, control and bidirectional characters, anything that is not UTF-8.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from storyreel.errors import Fault, ScriptError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20
MAX_DIGITS = 40  # Python refuses to read numbers of thousands of digits, and nobody means them

_TAG = "tag:yaml.org,2002:"
_KINDS = {"str": "text", "int": "a number", "float": "a number", "bool": "true or false"}
# Bidirectional controls can make a script read other than it is (CVE-2021-42574).
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class _RefusedError(Exception):
    """A fault that ends the reading, with its mark."""

    def __init__(self, message: str, mark: yaml.Mark) -> None:
        super().__init__(message)
        self.message = message
        self.mark = mark


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses aliases and deep nesting while it composes."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise _RefusedError("aliases (*name) are not allowed; write the text out", event.start_mark)
        if self._depth >= MAX_DEPTH:
            raise _RefusedError(f"nested more than {MAX_DEPTH} levels deep", event.start_mark)
        self._depth += 1
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
            return node
        finally:
            self._depth -= 1


def forbidden_character(text: str) -> tuple[int, str] | None:
    """Return the index and name of the first control or bidirectional character, if any.

    Line feeds, carriage returns and tabs are not counted.
    """
    for index, char in enumerate(text):
        if char in "\n\r\t":
            continue
        category = unicodedata.category(char)
        if char in _BIDIRECTIONAL or category in ("Cc", "Cs") or char in "\ufeff\u2028\u2029":
            name = unicodedata.name(char, "control character")
            return index, f"U+{ord(char):04X} ({name.lower()})"
    return None


@dataclass(frozen=True)
class Source:
    """A parsed file: its data, where each part of it stands, and what was refused so far.

    What was refused is None in the data.
    """

    path: str
    text: str
    data: Any
    node: yaml.Node
    faults: tuple[Fault, ...]

    def fault(self, message: str, location: Sequence[str | int] = (), key: bool = False) -> Fault:
        """Return a fault at ``location`` (keys and indices), or as near to it as exists.

        With ``key`` it points at the last key itself, else at its value.
        """
        return _fault(self.text, message, _find(self.node, location, key))


def _find(node: yaml.Node, location: Sequence[str | int], key: bool) -> yaml.Mark:
    mark = node.start_mark
    for depth, part in enumerate(location):
        last = depth == len(location) - 1
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                if name.value == part:
                    mark = name.start_mark if last and key else value.start_mark
                    node = value
                    break
            else:
                return mark
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            mark = node.start_mark
        else:
            return mark
    return mark


def _fault(text: str, message: str, mark: yaml.Mark | None) -> Fault:
    if mark is None:
        return Fault(message)
    # A mark may stand behind the last character; errors there belong to the last line.
    lines = re.split(r"\r\n|[\n\r\x85\u2028\u2029]", text)  # as PyYAML counts lines
    line = min(mark.line, len(lines) - 1)
    column = mark.column if line == mark.line else len(lines[line])
    return Fault(message, line + 1, column + 1, lines[line])


def parse(path: str, raw: bytes) -> Source:
    """Read a YAML document. Raises ScriptError where reading cannot go on."""
    text = _decode(path, raw)
    faults: list[Fault] = []
    text = _without_forbidden(text, faults)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise ScriptError(path, [Fault("the file is empty")])
        data = _construct(node, loader, text, faults)
    except _RefusedError as refused:
        raise ScriptError(path, [*faults, _fault(text, refused.message, refused.mark)]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = ", ".join(part for part in (error.context, error.problem) if part)
        if "expected a single document" in words:
            words = "a story is one document; take out '---'"
        else:
            words = f"not valid YAML: {words}"
        raise ScriptError(path, [*faults, _fault(text, words, mark)]) from None
    except yaml.YAMLError as error:
        message = str(error).splitlines()[0]
        raise ScriptError(path, [*faults, Fault(f"not valid YAML: {message}")]) from None
    finally:
        loader.dispose()
    return Source(path, text, data, node, tuple(faults))


def _decode(path: str, raw: bytes) -> str:
    if len(raw) > MAX_BYTES:
        raise ScriptError(path, [Fault(f"larger than {MAX_BYTES // 1024} KB: not a story")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        column = len(before) - (before.rfind(b"\n") + 1) + 1
        fault = Fault(f"not UTF-8: byte 0x{raw[error.start]:02X}; save the file as UTF-8", line, column)
        raise ScriptError(path, [fault]) from None
    return text


def _without_forbidden(text: str, faults: list[Fault]) -> str:
    """Replace forbidden characters, noting each, so that the rest can still be checked."""
    lines = re.split(r"(\r\n|\n|\r)", text)
    for position in range(0, len(lines), 2):
        source = lines[position]
        while found := forbidden_character(lines[position]):
            index, name = found
            faults.append(Fault(f"{name} is not allowed", position // 2 + 1, index + 1, source))
            lines[position] = lines[position][:index] + "?" + lines[position][index + 1 :]
    return "".join(lines)


def _construct(node: yaml.Node, loader: _Loader, text: str, faults: list[Fault]) -> Any:
    """Turn nodes into str, int, float, bool, None, list and dict; collect what is refused."""
    kind = node.tag.removeprefix(_TAG)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return dict(_pairs(node, loader, text, faults))
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_construct(child, loader, text, faults) for child in node.value]
    if isinstance(node, yaml.ScalarNode):
        if kind == "str":
            found = forbidden_character(node.value)
            if found:
                message = f"{found[1]} is not allowed, not even as an escape"
                faults.append(_fault(text, message, node.start_mark))
            return node.value
        if kind == "null":
            return None
        if kind in ("int", "float", "bool") and ":" not in node.value and len(node.value) <= MAX_DIGITS:
            try:
                return loader.construct_object(node)
            except (ValueError, yaml.YAMLError):
                pass
    what = _KINDS.get(kind, "a date" if kind == "timestamp" else f"the tag !!{kind}")
    hint = "quote it if it is text" if isinstance(node, yaml.ScalarNode) else "take the tag out"
    faults.append(_fault(text, f"{what} of this form is not allowed; {hint}", node.start_mark))
    return None


def _pairs(
    node: yaml.MappingNode, loader: _Loader, text: str, faults: list[Fault]
) -> Iterator[tuple[str, Any]]:
    seen: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            faults.append(_fault(text, "a key must be plain text", key.start_mark))
            continue
        if key.value in seen:
            message = f"duplicate key {key.value!r}; first on line {seen[key.value]}"
            faults.append(_fault(text, message, key.start_mark))
            continue
        seen[key.value] = key.start_mark.line + 1
        yield key.value, _construct(value, loader, text, faults)
