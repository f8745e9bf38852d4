"""YAML text to plain data, with the place of every value and without YAML's surprises.

Refused: aliases (alias bombs), duplicate keys, tags, several documents, dates, octal and
sexagesimal numbers, deep nesting, control and bidirectional characters, what is not UTF-8.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from storyreel.errors import Fault, ScriptError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20
MAX_NODES = 20_000  # twice what the longest story has; a file of nothing but commas is given up early
MAX_DIGITS = 40  # Python refuses to read numbers of thousands of digits, and nobody means them

_TAG = "tag:yaml.org,2002:"
_LINE_END = re.compile(r"\r\n|\n|\r")  # as editors count; what else ends a line for PyYAML is forbidden
_NUMBER = re.compile(r"[-+]?(0|[1-9]\d*)(\.\d*)?([eE][-+]?\d+)?|[-+]?\.\d+|[-+]?\.(inf|nan)", re.I)
# Control characters; bidirectional controls, which can make a script read other than it is
# (CVE-2021-42574); separators, marks and tags that no one sees.
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)


class _RefusedError(Exception):
    """A fault that ends the reading, with its mark."""

    def __init__(self, message: str, mark: Any) -> None:
        super().__init__(message)
        self.message = message
        self.mark = mark


@dataclass
class _Text:
    """A script's text, its lines, and the faults found in it so far."""

    text: str
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lines = _LINE_END.split(self.text)

    def fault(self, message: str, mark: Any) -> Fault:
        """Return a fault at a mark; one behind the last character belongs to the last line."""
        if mark is None:
            return Fault(message)
        line = min(mark.line, len(self.lines) - 1)
        column = mark.column if line == mark.line else len(self.lines[line])
        return Fault(message, line + 1, column + 1, self.lines[line])

    def refuse(self, message: str, mark: Any) -> None:
        """Note a fault after which reading goes on."""
        self.faults.append(self.fault(message, mark))


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses aliases, tags and deep nesting while it composes."""

    def __init__(self, text: _Text) -> None:
        super().__init__(text.text)
        self._text = text
        self._depth = self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _RefusedError("aliases (*name) are not allowed; write the text out", event.start_mark)
        if self._depth >= MAX_DEPTH:
            raise _RefusedError(f"nested more than {MAX_DEPTH} levels deep", event.start_mark)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _RefusedError(f"more than {MAX_NODES} values: not a story", event.start_mark)
        if event.tag is not None:
            tag = event.tag.replace(_TAG, "!!")
            self._text.refuse(f"the tag {tag} is not allowed; take it out", event.start_mark)
            event.tag, event.implicit = None, (True, False)
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
    match = _FORBIDDEN.search(text)
    if match is None:
        return None
    name = unicodedata.name(match[0], "control character").lower()
    return match.start(), f"U+{ord(match[0]):04X} ({name})"


@dataclass(frozen=True)
class Source:
    """A parsed file: its data, where each part of it stands, and what was refused so far.

    What was refused is None in the data.
    """

    path: str
    data: Any
    faults: tuple[Fault, ...]
    _node: yaml.Node
    _text: _Text

    def fault(self, message: str, location: Sequence[str | int] = (), key: bool = False) -> Fault:
        """Return a fault at ``location`` (keys and indices), or as near to it as exists.

        With ``key`` it points at the last key itself, else at its value.
        """
        return self._text.fault(message, _find(self._node, location, key)[0])

    def where(self, words: Sequence[str], location: Sequence[str | int]) -> list[Fault]:
        """Return the place of each of some words of the text at ``location``, as faults that say nothing.

        All words of the text up to the last are needed, in their order. One that an escape hides is
        where the one before it ends.
        """
        start, node = _find(self._node, location, False)
        end, quoted = node.end_mark.index, getattr(node, "style", None) == "'"
        text, at, places = self._text.text, start.index, []
        for word in words:
            shown = word.replace("'", "''") if quoted else word
            found = text.find(shown, at, end)
            if found >= 0:
                at = found
            ends = list(_LINE_END.finditer(text, start.index, at))
            line = start.line + len(ends)
            column = at - ends[-1].end() if ends else start.column + at - start.index
            places.append(self._text.fault("", yaml.Mark("", at, line, column, None, 0)))
            at += len(shown) if found >= 0 else 0
        return places


def _find(node: yaml.Node, location: Sequence[str | int], key: bool) -> tuple[yaml.Mark, yaml.Node]:
    """Return where something begins, or what is as near to it as there is, and what that is."""
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
                return mark, node
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            mark = node.start_mark
        else:
            return mark, node
    return mark, node


def parse(path: str, raw: bytes) -> Source:
    """Read a YAML document. Raises ScriptError where reading cannot go on."""
    text = _without_forbidden(_decode(path, raw))
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise ScriptError(path, [*text.faults, Fault("the file is empty")])
        data = _construct(node, text)
    except _RefusedError as refused:
        last = text.fault(refused.message, refused.mark)
    except yaml.MarkedYAMLError as error:
        words = ", ".join(part for part in (error.context, error.problem) if part)
        if "expected a single document" in words:
            words = "a story is one document; take out '---'"
        else:
            words = f"not valid YAML: {words}"
        last = text.fault(words, error.problem_mark or error.context_mark)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # such as the escape "\UFFFFFFFF"
        last = text.fault(f"not valid YAML: {str(error).splitlines()[0]}", loader.get_mark())
    else:
        return Source(path, data, tuple(text.faults), node, text)
    finally:
        loader.dispose()
    raise ScriptError(path, [*text.faults, last])


def _decode(path: str, raw: bytes) -> str:
    if len(raw) > MAX_BYTES:
        raise ScriptError(path, [Fault(f"larger than {MAX_BYTES // 1024} KB: not a story")])
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or (raw[:1] and raw[1:2] == b"\0") or raw[:1] == b"\0":
        raise ScriptError(path, [Fault("not UTF-8: this looks like UTF-16; save the file as UTF-8")])
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        lines = _LINE_END.split(raw.decode("utf-8", "replace"))
        before = _LINE_END.split(raw[: error.start].decode("utf-8"))
        message = f"not UTF-8: byte 0x{raw[error.start]:02X}; save the file as UTF-8"
        fault = Fault(message, len(before), len(before[-1]) + 1, lines[len(before) - 1])
        raise ScriptError(path, [fault]) from None


def _without_forbidden(text: str) -> _Text:
    """Replace forbidden characters, noting the first of a line, so that the rest can be read."""
    faults = []
    pieces = re.split(f"({_LINE_END.pattern})", text)
    for position in range(0, len(pieces), 2):
        found = forbidden_character(pieces[position])
        if found:
            index, name = found
            fault = Fault(f"{name} is not allowed", position // 2 + 1, index + 1, pieces[position])
            faults.append(fault)
            pieces[position] = _FORBIDDEN.sub("\ufffd", pieces[position])
    return _Text("".join(pieces), faults)


def _construct(node: yaml.Node, text: _Text) -> Any:
    """Turn nodes into str, int, float, bool, None, list and dict; note what is refused."""
    if isinstance(node, yaml.MappingNode):
        return dict(_pairs(node, text))
    if isinstance(node, yaml.SequenceNode):
        return [_construct(child, text) for child in node.value]
    value: str = node.value
    match node.tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return value.lower() in ("true", "yes", "on")
        case "int" | "float":
            number = _NUMBER.fullmatch(value)
            if number and len(value) <= MAX_DIGITS:
                plain = value.lower().replace(".inf", "inf").replace(".nan", "nan")
                return int(plain) if plain.lstrip("+-").isdigit() else float(plain)
            message = "a number is written plainly, as in 10 or 2.5; quote it if it is text"
            text.refuse(message, node.start_mark)
            return None
        case "timestamp":
            text.refuse("a date is not allowed; quote it if it is text", node.start_mark)
            return None
        case _:
            found = forbidden_character(value)
            if found:
                text.refuse(f"{found[1]} is not allowed, not even as an escape", node.start_mark)
                return None
            return value


def _pairs(node: yaml.MappingNode, text: _Text) -> Iterator[tuple[str, Any]]:
    seen: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            text.refuse("a key must be plain text", key.start_mark)
            continue
        if key.value in seen:
            text.refuse(f"duplicate key {key.value!r}; first on line {seen[key.value]}", key.start_mark)
            continue
        seen[key.value] = key.start_mark.line + 1
        yield key.value, _construct(value, text)
