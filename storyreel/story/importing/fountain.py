"""Screenplays in Fountain, as far as a story needs them: headings, action, who speaks, cuts, the title.

The packages for it (fountain-parser 0.1.1, screenplay-tools 0.0.10) forget where a line stood, which has to
be said of all that is left out; what is needed of the format is less than what would be around them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from storyreel.story.importing.draft import MAX_WEIGHED, Draft, Shot, one_prompt
from storyreel.story.importing.members import Member
from storyreel.story.importing.source import NotThisError, Source
from storyreel.story.schema import Transition

ENDINGS = (".fountain", ".spmd")
TRANSITIONS = ("FADE IN", "FADE OUT", "FADE TO BLACK", "CUT", "CUT TO BLACK", "THE END")
MAX_REMARKED = 200  # characters of a speech that a comment repeats
_HEADING = re.compile(r"(?:(INT|EXT|EST|INT\.?/EXT|EXT\.?/INT|I/E)[. ])\s*(\S.*)|\.(?=[^.\s])(.+)", re.I)
_INSIDE = {"INT": "interior", "EXT": "exterior", "EST": "exterior"}
_NUMBER = re.compile(r"\s*#[^#\n]+#\s*$")
_TITLE = re.compile(r"([A-Za-z][A-Za-z ]*):\s*(.*)")
_CAPITALS = re.compile(r"\b(?:[Aa]n?|[Tt]he|AN|THE)\s+([A-Z][A-Z'’-]{2,}(?:\s+[A-Z][A-Z'’-]{2,})*)\b")


@dataclass
class _Reading:
    draft: Draft
    heading: str = ""
    heading_line: int = 0
    shots: int = 0  # of the heading
    transition: Transition | None = None
    remarks: list[str] = field(default_factory=list)
    names: dict[str, None] = field(default_factory=dict)


def read_fountain(source: Source, fps: float | None) -> Draft:
    """Read a screenplay: a scene for every paragraph of action, its heading as the scene prompt."""
    draft = Draft([])
    lines = _without_notes(source.text, draft).split("\n")
    first = _title_page(lines, draft)
    headings = [index for index in range(first, len(lines)) if _heading(lines, index)]
    if source.suffix not in ENDINGS and not headings:
        raise NotThisError("it has no scene heading, as in INT. BAKERY - DAWN")
    reading = _Reading(draft)
    for block in _blocks(lines, first):
        while block:
            block = _read_block(reading, block)
    _finish_heading(reading)
    if reading.transition is not None:
        draft.leave_out("a transition at the end", "")
    action = "\n".join(f"{shot.scene}\n{shot.action}" for shot in draft.shots)
    names = dict.fromkeys([*reading.names, *(match[1] for match in _CAPITALS.finditer(action))])
    draft.cast = [Member(name) for name in names]
    draft.guess("a paragraph of action is a scene of its own; its heading is the scene prompt")
    one_prompt(draft, "a heading without action is one prompt")
    if names:
        draft.guess("whoever speaks, and who is introduced in capitals, is in the cast")
    return draft


def _read_block(reading: _Reading, block: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Read the element that some lines begin with; return those behind it."""
    draft, (number, first) = reading.draft, block[0]
    where = f"line {number}"
    if match := _HEADING.fullmatch(first):
        _finish_heading(reading)
        reading.heading, reading.heading_line, reading.shots = _in_words(match), number, 0
        return block[1:]
    if first.startswith(("#", "=")):
        kind = "a page break" if first.startswith("===") else "a section" if first[0] == "#" else "a synopsis"
        draft.leave_out(kind, where)
        return block[1:]
    if first.startswith("~") or (first.startswith(">") and first.endswith("<")):
        draft.leave_out("a lyric" if first[0] == "~" else "centred text", where)
        return block[1:]
    if len(block) == 1 and _is_transition(first):
        _set_transition(reading, first.strip("> "), where)
    elif len(block) > 1 and _is_cue(first):
        name = re.sub(r"\s*\(.*", "", first.strip("@^ ")).strip()
        reading.names[name] = None
        speech = " ".join(line for _, line in block[1:])
        draft.leave_out("what is spoken (kept as comments)", where)
        shown = speech if len(speech) <= MAX_REMARKED else speech[: MAX_REMARKED - 1] + "…"
        remark = f"{name}: {shown}"
        if reading.shots:
            draft.shots[-1].remarks.append(remark)
        else:
            reading.remarks.append(remark)
    else:
        words = " ".join(_plain(line) for _, line in block)
        _add(reading, words, where)
    return []


def _add(reading: _Reading, action: str, where: str) -> None:
    shot = Shot(reading.heading, action, where, transition=reading.transition, remarks=reading.remarks)
    reading.draft.shots.append(shot)
    reading.transition, reading.remarks = None, []
    reading.shots += 1


def _finish_heading(reading: _Reading) -> None:
    """Make a scene of a heading without action."""
    if reading.heading and not reading.shots:
        _add(reading, "", f"line {reading.heading_line}")


def _in_words(match: re.Match[str]) -> str:
    """Return a heading as a prompt: "INT. BAKERY - DAWN" becomes "Bakery, interior, dawn"."""
    text = _NUMBER.sub("", match[2] or match[3])
    parts = [part.strip() for part in re.split(r"\s+[-–—]+\s+|\.\s+|/\s+", text) if part.strip()]
    parts = [part.lower() if part.isupper() else part for part in map(_plain, parts)]
    if match[1]:
        parts.insert(1, _INSIDE.get(match[1].upper(), "interior and exterior"))
    words = ", ".join(parts)
    return words[:1].upper() + words[1:]


def _set_transition(reading: _Reading, text: str, where: str) -> None:
    words = text.upper().rstrip(":. ")
    if words.endswith("CUT TO") or words == "CUT":
        reading.transition = "cut"
    elif words.startswith("DISSOLVE"):
        reading.transition = "dissolve"
    else:
        reading.draft.leave_out(f"the transition {text[:40]}", where)


def _is_transition(line: str) -> bool:
    if line.startswith(">"):
        return not line.endswith("<")
    return line.isupper() and (line.endswith("TO:") or line.rstrip(".:") in TRANSITIONS)


def _is_cue(line: str) -> bool:
    if line.startswith("@"):
        return True
    name = re.sub(r"\s*\(.*", "", line.rstrip("^ "))
    return name.isupper() and any(char.isalpha() for char in name) and not line.startswith(("!", "~", ">"))


def _heading(lines: list[str], index: int) -> bool:
    before = lines[index - 1].strip() if index else ""
    return not before and _HEADING.fullmatch(lines[index].strip()) is not None


def _blocks(lines: list[str], first: int) -> list[list[tuple[int, str]]]:
    blocks: list[list[tuple[int, str]]] = [[]]
    for number, line in enumerate(lines[first:], first + 1):
        if line.strip():
            blocks[-1].append((number, line.strip()))
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def _title_page(lines: list[str], draft: Draft) -> int:
    """Read the title page; return the index of the first line behind it."""
    index = next((at for at, line in enumerate(lines) if line.strip()), 0)
    if not lines or _TITLE.match(lines[index]) is None or _HEADING.fullmatch(lines[index].strip()):
        return 0
    key = ""
    while index < len(lines) and lines[index].strip():
        match = _TITLE.match(lines[index])
        if match and not lines[index].startswith((" ", "\t")):
            key, text = match[1].strip().lower(), match[2]
            if key != "title":
                draft.leave_out(f"{match[1].strip()[:40]} of the title page", f"line {index + 1}")
        elif not lines[index].startswith((" ", "\t")):
            return 0  # a text with a colon, and no title page
        else:
            text = lines[index]
        if key == "title":
            draft.title = f"{draft.title} {_plain(text.strip())}".strip()
        index += 1
    return index


def _without_notes(text: str, draft: Draft) -> str:
    """Return a text without notes and what is struck out, its lines where they were."""
    for pattern, what in (
        (r"/\*.*?(?:\*/|\Z)", "what is struck out (/* */)"),
        (r"\[\[.*?\]\]", "a note ([[ ]])"),
    ):
        number, at = 1, 0
        for match in re.finditer(pattern, text, re.S):
            number, at = number + text.count("\n", at, match.start()), match.start()
            draft.leave_out(what, f"line {number}")
        text = re.sub(pattern, lambda match: "\n" * match[0].count("\n"), text, flags=re.S)
    return text


def _plain(text: str) -> str:
    """Return a line without marks of emphasis, centring and forcing."""
    if len(text) > MAX_WEIGHED:
        return text
    for _ in range(2):  # as in _**bold**_
        text = re.sub(r"(?<!\\)(\*{1,3}|_)(?=\S)([^*_]+?)(?<=\S)\1", r"\2", text)
    return text.lstrip("!~").strip("> <").strip() if text[:1] in "!~>" else text.replace("\\*", "*")
