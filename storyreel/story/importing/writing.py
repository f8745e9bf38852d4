"""Writes a draft as a story: YAML that people go on writing by hand, with comments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from textwrap import wrap

import yaml

from storyreel.story.importing.draft import Draft, Shot
from storyreel.story.importing.members import Placed
from storyreel.story.quoting import quoted
from storyreel.story.yaml_source import allowed_characters

WIDTH = 100  # of a line, unless a word is longer
MAX_REMARK = 600  # characters of one comment
# Text that is plainly text: no sign of YAML's, no word that means something else.
_PLAIN = re.compile(r"[^\W\d_][^:#{}\[\]&*!|>\"%@`\\=]*[^\s:#{}\[\]&*!|>\"%@`\\=]")


def written(
    draft: Draft, cast: Sequence[Placed], prompts: Sequence[Sequence[str]], head: Sequence[str], model: str
) -> str:
    """Return a story's YAML: ``prompts`` has one text or two for every shot of the draft, in their order."""
    lines = [*_comments(head)]
    if draft.title:
        lines += _entry("title", draft.title, "")
    if cast:
        lines.append("cast:")
        for one in cast:
            lines += _member(one)
    lines.append("scenes:")
    for shot, texts in zip(draft.shots, prompts, strict=True):
        lines += _scene(shot, texts)
    settings = {"model": model, "seed": "" if draft.seed is None else str(draft.seed)}
    if any(settings.values()):
        lines.append("render:")
        lines += [f"  {key}: {value}" for key, value in settings.items() if value]
    return "\n".join(lines) + "\n"


def _member(one: Placed) -> Iterator[str]:
    told = {"name": one.name, **({"noun": one.noun} if one.noun else {})}
    if all(_PLAIN.fullmatch(text) and "," not in text for text in told.values()):
        line = f"  {one.key}: {{{', '.join(f'{key}: {_scalar(text)}' for key, text in told.items())}}}"
        if len(line) <= WIDTH:
            yield line
            return
    yield f"  {one.key}:"
    for key, text in told.items():
        yield from _entry(key, text, "    ")


def _scene(shot: Shot, texts: Sequence[str]) -> Iterator[str]:
    yield from _comments(shot.remarks, "  ")
    more = {
        "seconds": "" if shot.seconds is None else f"{round(shot.seconds, 6):.10g}",
        "transition": shot.transition or "",
    }
    if len(texts) == 1 and not any(more.values()) and len(texts[0]) < WIDTH - 8:
        yield f"  - {_scalar(texts[0])}"
        return
    entries = [*_entry("scene", texts[0], "    ")]
    entries += _entry("action", texts[1], "    ") if len(texts) > 1 else []
    entries += [f"    {key}: {value}" for key, value in more.items() if value]
    yield f"  - {entries[0].lstrip()}"
    yield from entries[1:]


def _entry(key: str, text: str, indent: str) -> Iterator[str]:
    """Yield a key with its text, over several lines if it is long."""
    line = f"{indent}{key}: {_scalar(text)}"
    if len(line) <= WIDTH:
        yield line
        return
    yield f"{indent}{key}: >-"
    deeper = f"{indent}  "
    for part in wrap(text, WIDTH - len(deeper), break_long_words=False, break_on_hyphens=False):
        yield deeper + part


def _scalar(text: str) -> str:
    """Return a short text as YAML reads it back, without quotes where it needs none."""
    if _PLAIN.fullmatch(text) and yaml.safe_load(text) == text:
        return text
    return quoted(text)


def _comments(remarks: Iterable[str], indent: str = "") -> Iterator[str]:
    for remark in remarks:
        text = " ".join(allowed_characters(remark).split())
        if len(text) > MAX_REMARK:
            text = text[: MAX_REMARK - 1].rstrip() + "…"
        for part in wrap(text, WIDTH - len(indent) - 2, break_long_words=False, break_on_hyphens=False):
            yield f"{indent}# {part}"
