"""From YAML text to plain data, with the place of every value and without YAML's surprises.

Refused: aliases (alias bombs), duplicate keys, tags, several documents, dates, octal and
sexagesimal numbers, deep nesting, control and bidirectional characters, what is not UTF-8.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from storyreel.errors import Fault, ScriptError
from storyreel.story import quoting

MAX_BYTES = 256 * 1024
MAX_READ_AGAIN = 64 * 1024  # characters, of files with lines that lack quotes: some dozens of them, as a rule
MAX_DEPTH = 20
MAX_NODES = 20_000  # twice what the longest story has
MAX_DIGITS = 40  # Python refuses numbers of thousands of digits

LOST = "quote it: a number sign behind a blank begins a comment, and what follows is lost"
_TAG = "tag:yaml.org,2002:"
_LINE_END = re.compile(r"\r\n|\n|\r")  # as editors count; what else ends a line for PyYAML is forbidden
_NUMBER = re.compile(r"[-+]?(0|[1-9]\d*)(\.\d*)?([eE][-+]?\d+)?|[-+]?\.\d+|[-+]?\.(inf|nan)", re.I)
# Control characters; bidirectional controls, which can make a text look different from what it is
# (CVE-2021-42574); separators, marks and tags that do not show.
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)


class _RefusedError(Exception):
    """A fault that ends the reading, with its mark; ``may_be_text`` if it may be text that lacks quotes."""

    def __init__(self, message: str, mark: Any, may_be_text: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.mark = mark
        self.may_be_text = may_be_text


@dataclass
class _Text:
    """A story's text, its lines, and the faults found in it so far."""

    text: str
    faults: list[Fault] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)  # of the file as it is

    def __post_init__(self) -> None:
        self.lines = self.lines or _LINE_END.split(self.text)

    def fault(self, message: str, mark: Any) -> Fault:
        """Return a fault at a mark; one after the last character belongs to the last line."""
        if mark is None:
            return Fault(message)
        line = min(mark.line, len(self.lines) - 1)
        column = mark.column if line == mark.line else len(self.lines[line])
        return Fault(message, line + 1, column + 1, self.lines[line])

    def refuse(self, message: str, mark: Any) -> None:
        """Add a fault that does not end the reading."""
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
            words = "aliases (*name) are not allowed; write the text out, or quote it if it is text"
            raise _RefusedError(words, event.start_mark, may_be_text=True)
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
    return None if match is None else (match.start(), character(match[0]))


def allowed_characters(text: str) -> str:
    """Return a text without the characters that no story may have."""
    return _FORBIDDEN.sub("", text)


def character(char: str) -> str:
    """Return a character's code and name."""
    return f"U+{ord(char):04X} ({unicodedata.name(char, 'control character').lower()})"


@dataclass(frozen=True)
class Source:
    """A parsed file: its data, the place of each part, and the faults so far.

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

    def with_plain_blanks(self) -> Source | None:
        """Return the file with plain blanks in place of others between its parts; None if it has no others.

        Such a blank is a fault in a file with other faults, which it may well explain. Raises ScriptError.
        """
        text = _with_plain_blanks(self._text)
        return None if text is None else _parse(self.path, text)

    def lost_texts(self, keys: Collection[str]) -> Iterator[Fault]:
        """Yield a fault for every plain text, in a list or under one of ``keys``, of which a part is lost.

        That part is what YAML takes for a comment.
        """
        for node in _plain_texts(self._node, keys):
            index = node.end_mark.line
            line = self._text.lines[index]
            if (at := quoting.lost_behind(line, node.end_mark.column)) is not None:
                alone = (node.start_mark.line, node.start_mark.column) == (index, quoting.start(line))
                meant = quoting.with_comment(line) if alone else None
                yield Fault(LOST, index + 1, at + 1, line, (meant or "").strip())


def _plain_texts(node: yaml.Node, keys: Collection[str]) -> Iterator[yaml.ScalarNode]:
    inside: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        inside = node.value
    elif isinstance(node, yaml.MappingNode):
        inside = [v for k, v in node.value if k.value in keys or not isinstance(v, yaml.ScalarNode)]
    for child in inside:
        if isinstance(child, yaml.ScalarNode) and child.style is None:
            yield child
        else:
            yield from _plain_texts(child, keys)


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
    """Read a YAML document. Raises ScriptError if it cannot be read to its end.

    A line that only lacks quotes, or has another blank than YAML's, is a fault like others: reading goes on
    with the line as it may have been meant.
    """
    return _parse(path, _without_forbidden(_decode(path, raw)))


def _parse(path: str, text: _Text) -> Source:
    left = MAX_READ_AGAIN
    while True:
        try:
            return _read(path, text)
        except _UnreadableError as error:
            left -= len(text.text)
            meant = _as_meant(text, error)
            if meant is None:
                raise ScriptError(path, [*_without_repeats([*text.faults, *error.faults])]) from None
            if left < 0:
                raise ScriptError(path, [*_without_repeats([*meant.faults, *error.faults[:-1]])]) from None
            text = meant


class _UnreadableError(Exception):
    """The text cannot be read to its end: all faults, the last one's last, and the lines that may hold it."""

    def __init__(self, faults: Sequence[Fault], lines: Sequence[int] = (), in_brackets: bool = False) -> None:
        super().__init__(faults)
        self.faults, self.lines, self.in_brackets = faults, lines, in_brackets


def _read(path: str, text: _Text) -> Source:
    reading = replace(text, faults=list(text.faults), lines=text.lines)
    loader = _Loader(reading)
    try:
        node = loader.get_single_node()
        if node is None:
            raise _UnreadableError([*reading.faults, Fault("the file is empty")])
        data = _construct(node, reading)
    except _RefusedError as refused:
        fault = reading.fault(refused.message, refused.mark)
        lines = [refused.mark.line] if refused.may_be_text else []
        raise _UnreadableError([*reading.faults, fault], lines) from None
    except yaml.MarkedYAMLError as error:
        marks = [mark for mark in (error.problem_mark, error.context_mark) if mark is not None]
        fault = reading.fault(_in_plain_words(error), marks[0] if marks else None)
        goes_on = any(sign in (error.problem or "") for sign in ("expected ':'", "'<scalar>'"))
        for index in range(fault.line - 1, max(-1, fault.line - 4), -1):
            if (at := quoting.cut_at(reading.lines[index], goes_on)) is not None:
                fault = Fault(LOST, index + 1, at + 1, reading.lines[index])
        in_brackets = "flow" in (error.context or "") and len({mark.line for mark in marks}) > 1
        raise _UnreadableError([*reading.faults, fault], [mark.line for mark in marks], in_brackets) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # such as the escape "\UFFFFFFFF"
        words = f"not valid YAML: {str(error).splitlines()[0]}"
        raise _UnreadableError([*reading.faults, reading.fault(words, loader.get_mark())]) from None
    else:
        return Source(path, data, tuple(_without_repeats(reading.faults)), node, reading)
    finally:
        loader.dispose()


def _without_repeats(faults: Sequence[Fault]) -> Sequence[Fault]:
    """Return the faults of a text of which lines were replaced: each once, and one of such a line.

    A text that is read again has the same faults again, and the columns of such a line are not the file's.
    """
    if not any(fault.mended for fault in faults):
        return faults
    kept: dict[Fault, None] = {}
    mended: set[int] = set()
    for fault in faults:
        if fault.line not in mended:
            kept[fault] = None
        if fault.mended:
            mended.add(fault.line)
    return list(kept)


# The parser's most frequent messages, and what they mean to the writer of a story.
_PLAIN_WORDS = {
    "cannot start any token": "a tab cannot indent, and @ and ` cannot begin a text; use blanks, or quote it",
    "could not find expected ':'": "a line that is neither a key with its colon nor an item with its dash; "
    "quote a text of several lines, or indent it further",
    "found unexpected end of stream": "a quote that is never closed",
    "mapping values are not allowed": "a colon where no key can be; quote a text that holds one",
    "expected ',' or ']'": "a list in brackets without its comma or its ]; quote a text that holds signs",
    "expected ',' or '}'": "a mapping in braces without its comma or its }; quote a text that holds signs",
    "but found '<scalar>'": "a text where none can be; quote it together with what is before it",
    "but found '<block": "a line that is not indented as those that it belongs to",
    "expected a single document": "a story is one document; take out '---'",
}


def _in_plain_words(error: yaml.MarkedYAMLError) -> str:
    words = ", ".join(part for part in (error.context, error.problem) if part)
    plain = next((meaning for sign, meaning in _PLAIN_WORDS.items() if sign in words), words)
    return plain if plain.startswith("a story") else f"not valid YAML: {plain}"


def _with_plain_blanks(text: _Text) -> _Text | None:
    """Return a text with plain blanks around its keys, and a fault for each other; None without any."""
    if not set(text.text) & set(quoting.ODD_BLANKS):
        return None
    pieces = re.split(f"({_LINE_END.pattern})", text.text)
    faults = []
    for index, line in enumerate(pieces[::2]):
        if found := quoting.without_odd_blanks(line):
            pieces[2 * index], column, char = found
            message = f"{character(char)} is not a blank in YAML; type a plain one"
            faults.append(Fault(message, index + 1, column + 1, text.lines[index]))
    return replace(text, text="".join(pieces), faults=[*text.faults, *faults]) if faults else None


def _as_meant(text: _Text, error: _UnreadableError) -> _Text | None:
    """Return a text as it may have been meant, with the faults of the one given; None if unknown."""
    if error.lines and (plain := _with_plain_blanks(text)):
        return plain
    pieces = re.split(f"({_LINE_END.pattern})", text.text)
    for index in error.lines:
        # A part of a list over several lines is never readable by itself.
        if (error.in_brackets and index != error.lines[-1]) or 2 * index >= len(pieces):
            continue
        line = pieces[2 * index]
        if (meant := quoting.mended(line)) is not None:
            last = error.faults[-1]
            column = last.column if last.line == index + 1 else quoting.start(line) + 1
            message = f"quote it: this text {quoting.reason(line)}"
            fault = Fault(message, index + 1, column, text.lines[index], meant.strip())
            pieces[2 * index] = meant
            return replace(text, text="".join(pieces), faults=[*text.faults, fault])
    return None


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
    """Replace forbidden characters, with a fault for the first of a line, so that the rest can be read."""
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
    """Turn nodes into str, int, float, bool, None, list and dict; add a fault for what is refused."""
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
