"""Changes of a story's YAML file that leave the rest of the file as it was written, byte for byte.

A change is a few splices of the text, at the places where PyYAML found the values: comments, blank lines,
quotes, line ends and the order of keys stay. The new text is read again, and counts only if exactly that one
value differs. A library that writes YAML from data, even one that keeps comments, lays out anew what it
writes.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from storyreel import files
from storyreel.errors import Fault, OutputError, ScriptError, UsageError, counted
from storyreel.story.schema import NOBODY_ELSE, STDIN, Casting, parse_story, read_story
from storyreel.story.yaml_source import forbidden_character, parse

_BYTE_ORDER_MARK = "\ufeff"
_LINE_END = re.compile(r"\r\n|\n|\r")
_KEY = re.compile(r"[a-z_][a-z0-9_]*")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_SHORT_FORM = ("scene", "action")  # what the texts of a pair are

Splice = tuple[int, int, str]  # from, to, and what comes there


def edit_story(path: Path, change: Callable[[str], str], casting: Casting = NOBODY_ELSE) -> bool:
    """Change the text of a story's file, as ``change`` returns it; tell whether it differs.

    It is checked with who plays in it, ``casting``: a plot may have no cast of its own. The file is replaced
    as a whole or not at all, with its mode; a link stays a link. Raises UsageError for standard input and
    for a change that would make the story invalid, ScriptError for a story that is invalid already,
    OutputError if the file cannot be written or was changed meanwhile.
    """
    if path == STDIN:
        raise UsageError("a story from standard input cannot be changed", "Save it, and give its file.")
    raw = read_story(path)
    parse_story(str(path), raw, casting)
    text = raw.decode()
    changed = change(text)
    if changed == text:
        return False
    data = changed.encode()
    try:
        parse_story(str(path), data, casting)
    except ScriptError as error:
        fault = error.faults[0]
        words = f"this change would make {path} invalid: {fault.message}"
        raise UsageError(words, "Nothing was written. Choose another value.") from None
    _replace(path.resolve(), raw, data)
    return True


def _replace(path: Path, before: bytes, after: bytes) -> None:
    """Write a file anew, if it still is what it was."""
    with files.writing(path, "make it writable, or change it in an editor", ""):
        if not os.access(path, os.W_OK):  # a folder that can be written lets a file be replaced that cannot
            raise OutputError(f"cannot write {path}: it is write-protected", "Make it writable.")
        with files.replacing(path) as part:
            part.write_bytes(after)
            part.chmod(stat.S_IMODE(path.stat().st_mode))
            if path.read_bytes() != before:
                words = f"{path} was changed by somebody else meanwhile; nothing was written"
                raise OutputError(words, "Run the same command again.")


def with_scene_key(text: str, scene: int, key: str, value: object | None, path: str = "story") -> str:
    """Return a story's text with a key of a scene set to ``value``, or without it for None.

    Scenes count from 1. The value is a number, a truth value, a text, or a mapping of such, which is written
    in one line. A scene in a short form gets the long one, with its texts as they are written. A comment
    behind a key that is removed goes with it, as do those inside a value that is replaced.
    ``path`` is what the file is called in errors. Raises ScriptError for a text that is no story, UsageError
    for a scene that is not there and for what cannot be changed without changing more.
    """
    document = _Document.read(text, path)
    scenes = document.data.get("scenes")
    number = len(scenes) if isinstance(scenes, list) else 0
    if not 1 <= scene <= number:
        words = f"{path} has {counted(number, 'scene')}; it has no scene {scene}"
        raise UsageError(words, "Scenes count from 1.")
    return document.with_key(("scenes", scene - 1), key, value, f"scene {scene}")


@dataclass(frozen=True)
class _Document:
    """A story's text without its byte order mark, and what was read of it."""

    text: str
    mark: str  # the byte order mark, or ""
    path: str
    data: dict[str, Any]
    root: yaml.MappingNode

    @staticmethod
    def read(text: str, path: str) -> _Document:
        """Read a text. Raises ScriptError."""
        mark = _BYTE_ORDER_MARK if text.startswith(_BYTE_ORDER_MARK) else ""
        text = text[len(mark) :]
        source = parse(path, text.encode("utf-8", "surrogatepass"))
        if source.faults:
            raise ScriptError(path, list(source.faults))
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise ScriptError(path, [source.fault("a story is a mapping with the key scenes")])
        return _Document(text, mark, path, source.data, root)

    def with_key(self, location: tuple[str | int, ...], key: str, value: object | None, owner: str) -> str:
        """Return the text with a key of what is at ``location`` set, or removed; ``owner`` is its name."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"not a key of a story: {key!r}")
        expected = copy.deepcopy(self.data)
        node, parent, given = self._at(location, expected)
        wanted = _changed(given, key, value)
        if wanted is None:
            raise UsageError(f"{owner} cannot be without its {key}", "Write another text in its place.")
        if repr(wanted) == repr(given):
            return self._whole(self.text)
        _put(expected, location, wanted)
        self._refuse_anchors(node, owner)
        text = self._spliced(self._splices(node, parent, key, value))
        try:
            after = parse(self.path, text.encode())
        except ScriptError:
            after = None
        if after is None or after.faults or _compared(after.data) != _compared(expected):
            line = node.start_mark.line + 1
            words = f"{self.path}:{line}: {owner} is laid out so that its {key} cannot be changed alone"
            raise UsageError(words, f"Change it in an editor{self._written(key, value)}.")
        return self._whole(text)

    def _at(self, location: tuple[str | int, ...], data: Any) -> tuple[yaml.Node, yaml.Node | None, Any]:
        """Return a node, the one that it stands in, and its data."""
        node: yaml.Node = self.root
        parent = None
        for part in location:
            parent, data = node, data[part]
            if isinstance(part, int):
                node = node.value[part]
            else:
                node = next(value for name, value in node.value if name.value == part)
        return node, parent, data

    def _whole(self, text: str) -> str:
        return self.mark + text

    def _written(self, key: str, value: object | None) -> str:
        return "" if value is None else f": {key}: {_flow(value, self._is_json)}"

    def _spliced(self, splices: Iterable[Splice]) -> str:
        text = self.text
        for start, end, new in sorted(splices, key=lambda splice: splice[:2], reverse=True):
            text = text[:start] + new + text[end:]
        return text

    def _refuse_anchors(self, node: yaml.Node, owner: str) -> None:
        """Raise ScriptError for an anchor in a node: the place of what has one is not known."""
        if node is self.root:
            return
        for token in self._tokens:
            at = token.start_mark
            if (
                isinstance(token, yaml.AnchorToken)
                and node.start_mark.index <= at.index < node.end_mark.index
            ):
                line = _LINE_END.split(self.text)[at.line]
                words = f"{owner} has the anchor &{token.value}, which nothing uses; take it out to change it"
                raise ScriptError(self.path, [Fault(words, at.line + 1, at.column + 1, line)])

    @cached_property
    def _tokens(self) -> list[yaml.Token]:
        return list(yaml.scan(self.text, Loader=yaml.SafeLoader))

    @cached_property
    def _line_end(self) -> str:
        """How the file ends its lines."""
        found = _LINE_END.search(self.text)
        return found[0] if found else "\n"

    @property
    def _is_json(self) -> bool:
        return bool(self.root.flow_style) and all(key.style == '"' for key, _ in self.root.value)

    def _line_of(self, index: int) -> int:
        """Return where the line begins that holds an index."""
        ends = list(_LINE_END.finditer(self.text, 0, index))
        return ends[-1].end() if ends else 0

    def _next_line(self, index: int) -> int:
        """Return where the line after that of an index begins, or the text's end."""
        found = _LINE_END.search(self.text, index)
        return found.end() if found else len(self.text)

    def _end(self, node: yaml.Node) -> int:
        """Return where a node ends, without the blanks and comments after it."""
        last = _last(node)
        if not _is_block(last):
            return int(last.end_mark.index)
        after = self._line_after(last)
        ending = _LINE_END.search(self.text, self._end_of_line_before(after))
        return ending.start() if ending and ending.end() == after else after

    def _line_after(self, node: yaml.Node) -> int:
        """Return where the first line begins of which nothing belongs to a node."""
        last = _last(node)
        if not _is_block(last):
            return self._next_line(last.end_mark.index)
        start, end = last.start_mark.index, int(last.end_mark.index)
        header, *lines = self.text[start:end].splitlines(keepends=True)
        if "+" in header.split("#")[0]:  # it keeps the empty lines at its end
            return end
        texts = [line for line in lines if line.strip()]
        indent = min((len(line) - len(line.lstrip(" ")) for line in texts), default=len(self.text))
        while lines and not lines[-1].strip() and len(lines[-1].rstrip("\r\n")) <= indent:
            end -= len(lines.pop())
        return end

    def _new_line(self, node: yaml.Node, column: int, words: str) -> Splice:
        """Return the splice that adds a line after a node, indented to a column."""
        at = self._line_after(node)
        # A comment that is indented further belongs to what is before it.
        reached = at
        while reached < len(self.text):
            end = self._next_line(reached)
            line = self.text[reached:end]
            text = line.strip()
            if text and not (text.startswith("#") and len(line) - len(line.lstrip(" ")) > column):
                break
            reached = end
            at = reached if text else at
        line = " " * column + words
        ended = at == 0 or self.text[at - 1] in "\r\n"
        return (at, at, line + self._line_end if ended else self._line_end + line)

    def _splices(
        self, node: yaml.Node, parent: yaml.Node | None, key: str, value: object | None
    ) -> list[Splice]:
        """Return what changes in the text: of a mapping, or of a scene in a short form."""
        words = "" if value is None else _flow(value, self._is_json)
        if isinstance(node, yaml.MappingNode):
            for index, (name, old) in enumerate(node.value):
                if name.value == key:
                    return self._removed(node, index) if value is None else [self._replaced(name, old, words)]
            return self._added(node, key, words)
        if isinstance(node, yaml.SequenceNode):
            if key in _SHORT_FORM:
                item = node.value[_SHORT_FORM.index(key)]
                return [(item.start_mark.index, self._end(item), words)]
            return self._pair_in_long_form(node, key, words)
        if key == "scene":
            return [(node.start_mark.index, self._end(node), words)]
        in_brackets = isinstance(parent, yaml.CollectionNode) and bool(parent.flow_style)
        return self._prompt_in_long_form(node, in_brackets, key, words)

    def _name(self, key: str) -> str:
        return f'"{key}"' if self._is_json else key

    def _added(self, node: yaml.MappingNode, key: str, words: str) -> list[Splice]:
        entry = f"{self._name(key)}: {words}"
        if not node.flow_style:
            return [self._new_line(node, node.value[0][0].start_mark.column, entry)]
        if not node.value:
            at = node.start_mark.index + 1
            return [(at, at, entry)]
        at = self._end(node.value[-1][1])
        return [(at, at, f", {entry}")]

    def _replaced(self, key: yaml.Node, value: yaml.Node, words: str) -> Splice:
        start, end = value.start_mark.index, self._end(value)
        before = self.text[key.end_mark.index : start]
        if start == end:  # nothing is there: "key:", or in braces "key"
            return (start, end, f" {words}" if ":" in before else f": {words}")
        if isinstance(value, yaml.ScalarNode):
            if _is_block(value):
                header = self.text[start : self._next_line(start)].rstrip()
                comment = re.search(r"\s+#.*", header)
                words += comment[0] if comment else ""
            return (start, end, words)
        if _last(value) is not value and "#" not in before:  # lines of keys: the value goes behind the colon
            return (key.end_mark.index + before.index(":") + 1, end, f" {words}")
        return (start, end, words)

    def _removed(self, node: yaml.MappingNode, index: int) -> list[Splice]:
        pairs = node.value
        key, value = pairs[index]
        start, end = key.start_mark.index, self._end(value)
        follower = pairs[index + 1][0].start_mark.index if index + 1 < len(pairs) else None
        if len(pairs) == 1:
            return [(start, end, "" if node.flow_style else "{}")]
        line = self._line_of(start)
        alone = not self.text[line:start].strip()  # in its first line
        if node.flow_style:
            return self._removed_in_braces(node, index, line if alone else None)
        after = self._line_after(value)
        if alone:
            if after == len(self.text) and self.text[-1:] not in ("\r", "\n"):  # nothing ends the last line
                ending = _LINE_END.search(self.text, self._end_of_line_before(line))
                line = ending.start() if ending else line
            return [(line, after, "")]
        # The first of the keys behind a dash: the next one takes its place.
        if follower is not None and not self.text[after:follower].strip():
            return [(start, follower, "")]
        kept = len(self.text[line:start].rstrip())
        ended = len(self.text[:after].rstrip("\r\n"))
        return [(line + kept, max(ended, end), "")]

    def _end_of_line_before(self, line: int) -> int:
        """Return where the line end is that is right before a line, if there is one."""
        return line - 2 if self.text[line - 2 : line] == "\r\n" else line - 1

    def _removed_in_braces(self, node: yaml.MappingNode, index: int, line: int | None) -> list[Splice]:
        pairs = node.value
        start, end = pairs[index][0].start_mark.index, self._end(pairs[index][1])
        after = self._next_line(end)
        rest = self.text[end:after]
        if line is not None and re.fullmatch(r"\s*,?\s*(#.*)?[\r\n]+", rest) and "," in rest.split("#")[0]:
            return [(line, after, "")]
        if index + 1 < len(pairs):
            follower = pairs[index + 1][0].start_mark.index
            if "#" not in self.text[end:follower]:
                return [(start, follower, "")]
            return [(start, end + self.text[end:follower].index(",") + 1, "")]
        before = self._end(pairs[index - 1][1])
        if "#" not in self.text[before:start]:
            return [(before, end, "")]
        return [(start, end, "")]  # a comma before the closing brace is no fault

    def _pair_in_long_form(self, node: yaml.SequenceNode, key: str, words: str) -> list[Splice]:
        entry = f"{self._name(key)}: {words}"
        starts = [item.start_mark.index for item in node.value]
        if node.flow_style:
            at, end = self._end(node.value[-1]), node.end_mark.index
            names = [
                (start, start, f"{self._name(name)}: ")
                for name, start in zip(_SHORT_FORM, starts, strict=True)
            ]
            opening = (node.start_mark.index, node.start_mark.index + 1, "{")
            return [opening, *names, (at, at, f", {entry}"), (end - 1, end, "}")]
        dashes = [self._dash(start) for start in starts]
        names = [(dash, dash + 1, f"{name}:") for name, dash in zip(_SHORT_FORM, dashes, strict=True)]
        return [*names, self._new_line(node, node.start_mark.column, entry)]

    def _dash(self, start: int) -> int:
        """Return where the dash is of an item that starts there."""
        entries = (t.start_mark.index for t in self._tokens if isinstance(t, yaml.BlockEntryToken))
        return int(max(at for at in entries if at <= start))

    def _prompt_in_long_form(self, node: yaml.Node, in_brackets: bool, key: str, words: str) -> list[Splice]:
        start, end = node.start_mark.index, self._end(node)
        entry = f"{self._name(key)}: {words}"
        if in_brackets:
            return [(start, start, f"{{{self._name('scene')}: "), (end, end, f", {entry}}}")]
        column = node.start_mark.column
        # The lines that the text goes on in have to be indented further than its key.
        lines = []
        at = self._next_line(start)
        while at < end:
            after = self._next_line(at)
            if self.text[at:after].strip("\r\n"):
                lines.append(at)
            at = after
        texts = [self.text[at : self._next_line(at)] for at in lines]
        indents = [len(line) - len(line.lstrip(" ")) for line in texts if line.strip()]
        shift = 0
        dash = self._dash(start)
        if _is_block(node) and re.search(r"\d", re.split(r"\s", self.text[start:end], maxsplit=1)[0]):
            shift = column - (dash - self._line_of(dash))  # its own indent counts from what it stands in
        elif indents and min(indents) <= column:
            shift = column + 2 - min(indents)
        shifts = [(at, at, " " * shift) for at in lines]
        return [(start, start, "scene: "), *shifts, self._new_line(node, column, entry)]


def _last(node: yaml.Node) -> yaml.Node:
    """Return what ends a node in the text: itself, or what is last in it where no bracket closes it."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style:
        node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
    return node


def _is_block(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")


def _changed(given: Any, key: str, value: object | None) -> Any:
    """Return a mapping, or a scene in any form, with a key set or removed; None if that cannot be."""
    if isinstance(given, dict):
        kept = {name: old for name, old in given.items() if name != key or value is not None}
        return kept if value is None else kept | {key: value}
    if value is None:
        return None if key in _SHORT_FORM and (isinstance(given, list) or key == "scene") else given
    if isinstance(given, list):
        if key in _SHORT_FORM:
            return [value if name == key else old for name, old in zip(_SHORT_FORM, given, strict=True)]
        return dict(zip(_SHORT_FORM, given, strict=True)) | {key: value}
    return value if key == "scene" else {"scene": given, key: value}


def _compared(data: Any) -> str:
    """Return data as a text that is equal where they are: to Python, 1, 1.0 and True are.

    The last text of a file without a line end has none either, and gets one when a line comes behind it.
    """
    if isinstance(data, dict):
        return f"{{{', '.join(f'{key!r}: {_compared(value)}' for key, value in data.items())}}}"
    if isinstance(data, list):
        return f"[{', '.join(map(_compared, data))}]"
    return repr(data.rstrip("\n") if isinstance(data, str) else data)


def _put(data: Any, location: tuple[str | int, ...], value: object) -> None:
    """Put a value in its place in data."""
    for part in location[:-1]:
        data = data[part]
    if location:
        data[location[-1]] = value


def _flow(value: object, as_json: bool = False) -> str:
    """Return data in one line of YAML, which may stand anywhere.

    Raises UsageError for what a story cannot hold.
    """
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float() if math.isfinite(value):
            mantissa, e, exponent = repr(value).partition("e")
            return mantissa + (".0" if e and "." not in mantissa else "") + e + exponent
        case str():
            if found := forbidden_character(value):
                raise UsageError(f"a story's text cannot hold {found[1]}", "Take it out.")
            # A word that YAML reads as a text, and not as yes, null and the like.
            plain = not as_json and _WORD.fullmatch(value) and yaml.safe_load(value) == value
            return value if plain else json.dumps(value, ensure_ascii=False)
        case dict():
            pairs = (f"{_flow(name, as_json)}: {_flow(inner, as_json)}" for name, inner in value.items())
            return f"{{{', '.join(pairs)}}}"
        case _:
            raise UsageError(f"a story cannot hold {value!r:.60}", "Give a number, a text or a mapping.")
