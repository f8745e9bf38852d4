"""Lines of a story that lack quotes, and how to write them.

To YAML, a colon, a brace, a quote or a number sign in plain text may be syntax.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

MAX_LINE = 5000  # characters: two of the longest prompts, and what is around them
# Characters that look like a blank, or like nothing, and separate nothing in YAML.
ODD_BLANKS = "\u00a0\u1680\u202f\u205f\u2060\u3000" + "".join(map(chr, range(0x2000, 0x200C)))

_LINE = re.compile(r"(?P<before>\s*(?:-\s+)*(?:[a-z_]\w*:\s+)?)(?P<text>\S.*?)\s*")
_ITEM = re.compile(r"(?P<before>\s*(?:-\s+)*)(?P<text>\S.*?)\s*")
_COMMENT = re.compile(r"\s+#(?:\s+\D.*)?$")
_NO_COMMENT = re.compile(r"[ \t]+#(?![ \t]+[^\d\s])")
_BLANKS = rf"[ \t{ODD_BLANKS}]"
# Of a line: what is before its dashes or key and right behind them, or all of it.
_STRUCTURE = re.compile(
    rf"{_BLANKS}+$|(?:{_BLANKS}*(?=-|[a-z_]\w*:))?"
    rf"(?:-[{ODD_BLANKS}]{_BLANKS}*|-[ \t]+)*(?:[a-z_]\w*:[{ODD_BLANKS}]{_BLANKS}*)?"
)


def mended(line: str) -> str | None:
    """Return a line with its text quoted, if YAML cannot read it as it is and can then; else None."""
    if len(line) > MAX_LINE or '{"' in line or _is_readable(line):  # '{"': JSON, with other faults
        return None
    return next((candidate for candidate in _candidates(line) if _is_readable(candidate)), None)


def with_comment(line: str) -> str | None:
    """Return a line with its text quoted together with what YAML takes for a comment behind it."""
    if len(line) > MAX_LINE or (match := _LINE.fullmatch(line)) is None:
        return None
    candidate = match["before"] + quoted(match["text"])
    return candidate if _is_readable(candidate) else None


def lost_behind(line: str, text_end: int) -> int | None:
    """Return where a number sign follows a plain text that is hardly meant to begin a comment: "gate #7".

    A comment is written with a blank behind its sign, and with more than a number. None if there is none.
    """
    found = _NO_COMMENT.match(line, text_end)
    return None if found is None else found.end() - 1


def cut_at(line: str, goes_on: bool) -> int | None:
    """Return where such a sign cuts off a list, or a plain text if one ``goes_on`` in a later line."""
    found = _NO_COMMENT.search(line, len(line) - len(line.lstrip()) + 1)
    if found is None or line.lstrip().startswith("#"):
        return None
    before = line[: found.start()]
    is_open = sum(map(before.count, "[{")) > sum(map(before.count, "]}"))
    may_go_on = goes_on and before[-1].isalnum() and "'" not in before and '"' not in before
    return found.end() - 1 if is_open or may_go_on else None


def reason(line: str) -> str:
    """Return what keeps YAML from reading the text of a line."""
    match = _LINE.fullmatch(line)
    text = match["text"] if match else line
    first = text[:1]
    if re.search(r"\s#\S", text):
        return "has a number sign behind a blank, which begins a comment"
    if first in ("'", '"'):
        if text.count(first) == 1:
            return "has no closing quote"
        return "holds the quotes that it stands in" if text[-1] == first else "goes on after its quotes"
    if first in ("{", "["):
        return f"begins with {first}" if text[-1:] not in ("}", "]") else "holds signs of YAML's own"
    if first and first in "*&!|>%@`?,-":
        return f"begins with {first}"
    return "has a colon before a blank" if re.search(r":(\s|$)", text) else "is not plain"


def without_odd_blanks(line: str) -> tuple[str, int, str] | None:
    """Return a line with plain blanks before its text, and the index of the first other one, and itself.

    None if all of them are plain.
    """
    match = _STRUCTURE.match(line)
    if match is None or (found := re.search(f"[{ODD_BLANKS}]", match[0])) is None:
        return None
    plain = re.sub(f"[{ODD_BLANKS}]", " ", match[0]) + line[match.end() :]
    return plain, found.start(), found[0]


def quoted(text: str) -> str:
    """Return a text in quotes, so that YAML reads it as it is."""
    if '"' in text and "'" not in text:
        return f"'{text}'"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _candidates(line: str) -> Iterator[str]:
    """Yield what the line may be meant to be, the likeliest first."""
    for pattern in (_LINE, _ITEM):
        if (match := pattern.fullmatch(line)) is None:
            continue
        before, text = match["before"], match["text"]
        if text[0] in "[{" and "]}"["[{".index(text[0])] not in text:
            return  # it may be closed on a later line
        comment = _COMMENT.search(text)
        for length in dict.fromkeys([comment.start() if comment else len(text), len(text)]):
            rest = text[length:]
            if brackets := re.fullmatch(r"([\[{])(.*)([]}])", text[:length]):
                items = ", ".join(map(_item, _items(brackets[2])))
                yield f"{before}{brackets[1]}{items}{brackets[3]}{rest}"
            yield before + quoted(_meant(text[:length])) + rest


def _meant(text: str) -> str:
    """Return a text without the quotes that were meant to enclose it."""
    first = text[:1]
    if first not in ("'", '"'):
        return text
    following = text.find(first, 1)
    if following < 0 and first == '"':
        return text[1:]
    # A quote that a letter follows closes nothing: 'It's a fox'.
    if text[-1] == first and 0 < following < len(text) - 1 and text[following + 1].isalnum():
        return text[1:-1]
    return text


def _items(inside: str) -> Iterator[str]:
    """Yield what commas separate, but for those in quotes."""
    item = ""
    for part in re.findall(r'"(?:[^"\\]|\\.)*"(?=\s*(?:,|$))|\'[^\']*\'(?=\s*(?:,|$))|,|[^,]+', inside):
        if part == ",":
            yield item.strip()
            item = ""
        else:
            item += part
    yield item.strip()


def _item(item: str) -> str:
    """Return an item of a list, or a key with its value, with the text quoted if it needs that."""
    key = re.match(r"[a-z_]\w*:\s+", item)
    before = key[0] if key else ""
    text = item[len(before) :]
    return item if _is_readable(f"[{text}]") and ": " not in text else before + quoted(_meant(text))


def _is_readable(line: str) -> bool:
    try:
        for _ in yaml.parse(line.strip(), Loader=yaml.SafeLoader):
            pass
    except (yaml.YAMLError, ValueError, OverflowError):
        return False
    return True


def start(line: str) -> int:
    """Return where a line's text begins."""
    match = _LINE.fullmatch(line)
    return match.start("text") if match else 0
