"""Prompts as plain text: a line or a paragraph each, with WanGP's commands, or in brackets over time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from storyreel.errors import FormatError
from storyreel.story.importing.draft import Draft, Shot, one_prompt, without_weights
from storyreel.story.importing.source import NotThisError, Source

ENDINGS = ("", ".txt", ".text", ".prompt", ".prompts")
_MARKUP = re.compile(r"\s*(<!doctype|<html|<\?xml|\{\\rtf|%PDF)", re.I)
_COMMANDS = re.compile(r"\s*\[(/[^\]\n]*)\]")
_LABEL = re.compile(r"\s*(?:\d{1,4}[.):]|[-*•]|(?:scene|shot|prompt)\s+\d{1,4}\s*[.:)-])\s+", re.I)
_TIMES = re.compile(
    r"\[\s*(\d+(?:\.\d+)?)\s*s(?:\s*-\s*(\d+(?:\.\d+)?)\s*s)?\s*:\s*(?!\d+(?:\.\d+)?\s*s?\s*\])([^\[\]]*)\]"
)
_END = r"(\d+(?:\.\d+)?)\s*([%s]?)"
_RANGES = re.compile(rf"\[\s*(?:{_END})?\s*:\s*(?:{_END})?\s*\]")


def read_framepack(source: Source, fps: float | None) -> Draft:
    """Read prompts in brackets, each with the second from which it counts."""
    return _framepack(source.text, "")


def read_relay(source: Source, fps: float | None) -> Draft:
    """Read a description of the whole, and prompts behind their parts of the film."""
    return _relay(source.text, source.path, "", fps)


def read_lines(source: Source, fps: float | None) -> Draft:
    """Read a prompt a line."""
    _refuse_markup(source)
    return _listed(source.text, "", False, fps)


def read_paragraphs(source: Source, fps: float | None) -> Draft:
    """Read a prompt a paragraph."""
    _refuse_markup(source)
    return _listed(source.text, "", True, fps)


def read_text(source: Source, fps: float | None) -> Draft:
    """Read prompts that are lines or paragraphs, whichever they seem to be."""
    _refuse_markup(source)
    if source.suffix not in ENDINGS:
        raise NotThisError(
            f"a file that ends in {source.suffix} may be anything: say --from lines if it is that"
        )
    return _listed(source.text, "", None, fps)


def read_any(text: str, path: str, where: str, fps: float | None) -> Draft:
    """Read a text that stands in another file."""
    if _TIMES.search(text):
        return _framepack(text, where)
    if any(match[1] or match[3] for match in _RANGES.finditer(text)):
        return _relay(text, path, where, fps)
    return _listed(text, where, None, fps)


def timed(
    items: Sequence[tuple[float, float | None, str, str]], end: float | None, draft: Draft
) -> list[Shot]:
    """Return scenes of prompts that count from one time on, and to another one if that is said.

    An item is when it begins, when it ends, the prompt and its place; ``end`` is the film's.
    """
    items = sorted(items, key=lambda item: item[0])
    shots = []
    if items and items[0][0] > 0:
        draft.guess("the first prompt counts from the beginning")
    for index, (begin, stop, text, where) in enumerate(items):
        begin = 0.0 if index == 0 else begin
        following = items[index + 1][0] if index + 1 < len(items) else None
        if following is not None and stop is not None and abs(stop - following) > 1e-6:
            draft.guess("a prompt counts until the next one begins, though the source says another end")
        until = following if following is not None else stop if stop is not None else end
        seconds = None if until is None else until - begin
        if seconds is not None and seconds <= 0:
            draft.leave_out("a prompt that has no time", where)
            continue
        if seconds is None and len(items) > 1:
            draft.guess(
                "the last scene is as long as the model's scenes are: the source does not say its end"
            )
        shots.append(Shot(text, where=where, seconds=seconds))
    return shots


def _framepack(text: str, where: str) -> Draft:
    found = list(_TIMES.finditer(text))
    if not found:
        raise NotThisError("it has no prompts in brackets with seconds, as in [0s-2s: …]")
    draft = Draft([])
    items: list[tuple[float, float | None, str, str]] = []
    for match in found:
        place = _place(text, match.start(), where)
        end = float(match[2]) if match[2] else None
        items.append((float(match[1]), end, without_weights(match[3], draft, place), place))
    rest = " ".join(_TIMES.sub(" ", text).split())
    if rest and min(item[0] for item in items) > 0:
        items.append(
            (0.0, None, without_weights(rest, draft, "outside of the brackets"), "outside of the brackets")
        )
    elif rest:
        draft.leave_out(f"a text outside of the brackets, which never counts: {rest[:80]}", "")
    draft.shots = timed(items, None, draft)
    one_prompt(draft)
    return draft


def _relay(text: str, path: str, where: str, fps: float | None) -> Draft:
    found = [match for match in _RANGES.finditer(text) if match[1] or match[3]]
    if not found:
        raise NotThisError("it has no prompts behind ranges, as in [0%:50%]")
    draft = Draft([])
    whole = without_weights(text[: found[0].start()], draft, "before the first range")
    units = {match[2 * side] for match in found for side in (1, 2) if match[2 * side - 1]}
    if len(units) > 1:
        raise FormatError(
            f"{path}: its ranges count in several units", "Write all of them in %, or in seconds."
        )
    unit = units.pop()
    items: list[tuple[float, float | None, str, str]] = []
    for index, match in enumerate(found):
        stop = found[index + 1].start() if index + 1 < len(found) else len(text)
        place = _place(text, match.start(), where)
        prompt = without_weights(text[match.end() : stop], draft, place)
        first = 0.0 if unit or not match[1] else 1.0  # frames count from 1
        begin = float(match[1]) - first if match[1] else 0.0
        items.append((begin, float(match[3]) - first if match[3] else None, prompt, place))
    shots = timed(items, 100.0 if unit == "%" else None, draft)
    if unit == "%":
        for shot in shots:
            shot.share, shot.seconds = shot.seconds, None
    elif not unit:
        rate = fps or 16.0
        if not fps:
            draft.guess(f"there are {rate:g} frames a second, as Wan has them; --fps says otherwise")
        for shot in shots:
            shot.seconds = None if shot.seconds is None else shot.seconds / rate
    if whole.strip():
        draft.guess("what is said of the whole film is every scene's scene prompt")
        for shot in shots:
            shot.scene, shot.action = whole, shot.scene
    draft.shots = shots
    one_prompt(draft)
    return draft


def _refuse_markup(source: Source) -> None:
    if match := _MARKUP.match(source.text):
        kind = match[1].lstrip("<?!{\\%").upper()
        hint = "; Final Draft can export Fountain" if kind == "XML" else ""
        raise NotThisError(f"it is {kind}, not plain text{hint}")


def _listed(text: str, where: str, paragraphs: bool | None, fps: float | None) -> Draft:
    """Read lines or paragraphs; None for whichever they seem to be."""
    draft = Draft([])
    blocks = list(_blocks(text, draft))
    if paragraphs is None:
        paragraphs = any(len(block) > 1 for block in blocks) and _are_wrapped(blocks)
        words = "a paragraph" if paragraphs else "a line"
        other = "lines" if paragraphs else "paragraphs"
        if any(len(block) > 1 for block in blocks):
            draft.guess(f"a scene is {words} of the source; --from {other} says otherwise")
    if not paragraphs:
        blocks = [[line] for block in blocks for line in block]
    texts = [(number, " ".join(line for _, line in block)) for block in blocks for number in [block[0][0]]]
    if len(texts) > 1 and all(_LABEL.match(text) for _, text in texts):
        texts = [(number, _LABEL.sub("", text, count=1)) for number, text in texts]
        draft.guess("numbers and dashes before the prompts are no part of them")
    for number, prompt in texts:
        draft.shots += _shots(prompt, f"{where}, line {number}" if where else f"line {number}", draft, fps)
    one_prompt(draft)
    return draft


def _blocks(text: str, draft: Draft) -> Iterator[list[tuple[int, str]]]:
    """Yield paragraphs: lists of lines with their numbers; without comments and macros."""
    block: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith(("#", "!{")):
            draft.leave_out("a comment" if line.lstrip()[0] == "#" else "a macro of WanGP", f"line {number}")
        elif line.strip():
            block.append((number, line.strip()))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _are_wrapped(blocks: Sequence[Sequence[tuple[int, str]]]) -> bool:
    """Tell whether lines of paragraphs go on in the next line, as those of prose do."""
    pairs = [(one[1], two[1]) for block in blocks for one, two in pairwise(block)]
    if any(two.startswith("[/") for _, two in pairs):
        return False
    open_ends = sum(one[-1:] not in '.!?…:"”。！？' or two[:1].islower() for one, two in pairs)
    return len(blocks) > 1 and 2 * open_ends > len(pairs)


def _shots(text: str, where: str, draft: Draft, fps: float | None) -> Iterator[Shot]:
    """Yield the scene of a prompt, or several if it has several parts, with what its commands say."""
    first = Shot("", where=where)
    while match := _COMMANDS.match(text):
        text = text[match.end() :]
        for command in match[1].split(","):
            _obey(command.strip().lstrip("/"), first, draft, fps)
    parts = [without_weights(part, draft, where) for part in text.split("|")]
    parts = [part for part in parts if part.strip()] or [""]
    seconds = first.seconds
    if len(parts) > 1:
        if seconds is not None:
            first.remarks.append(f"{seconds:g} seconds in the source, for {len(parts)} prompts together")
            seconds /= len(parts)
        draft.guess("prompts with | between them share a line's length equally, and go on in one shot")
    for index, part in enumerate(parts):
        going_on = Shot(part, where=where, seconds=seconds, transition="continue")
        start = Shot(part, where=where, seconds=seconds, transition=first.transition, remarks=first.remarks)
        yield going_on if index else start


def _obey(command: str, shot: Shot, draft: Draft, fps: float | None) -> None:
    """Do what a command of WanGP says; say it if a story has nothing like it."""
    name, _, value = (part.strip() for part in command.partition("="))
    duration = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s?)", value)
    if name == "duration" and duration and float(duration[1]) > 0 and (duration[2] or fps):
        shot.seconds = float(duration[1]) / (1.0 if duration[2] or not fps else fps)
    elif name == "duration" and duration and not duration[2]:
        draft.leave_out(f"the command [/{command[:60]}], which counts frames: give --fps", shot.where)
    elif name == "new_shot" or (name == "overlap" and value == "0"):
        shot.transition = "cut"
    else:
        draft.leave_out(f"the command [/{command[:60]}]", shot.where)


def _place(text: str, at: int, where: str) -> str:
    line = f"line {text.count(chr(10), 0, at) + 1}"
    return f"{where}, {line}" if where else line
