"""Files that mean harm: each is read in no time, or refused with its place. See fuzz.py for thousands."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storyreel.errors import ScriptError
from storyreel.story.schema import MAX_SCENES, parse_story
from storyreel.story.yaml_source import MAX_BYTES, MAX_DEPTH, MAX_NODES
from tests import fuzz

ACCEPTED = {"anchor_that_nobody_uses", "byte_order_mark", "crlf", "ffmpeg_directives", "html_and_shell"}
ACCEPTED |= {"newline_in_a_title", "unknown_directive"}

PAIR = "  - [a, b]\n"
# As large as a story may be, each made of what the reader could stumble over again and again.
LARGE = {
    "braces": "scenes:\n  - ['" + "{" * 250_001 + "', b]\n",
    "control characters, one a line": "\x01\n" * 130_000,
    "scenes": "scenes:\n" + PAIR * 23_000,
    "empty scenes": "scenes: [" + "[]," * 80_000 + "]",
    "keys": "".join(f"k{n}: 1\n" for n in range(25_000)),
    "duplicate keys": "k: 1\n" * 52_000,
    "tags": "scenes: [" + "!x ," * 60_000 + "]",
    "dates": "scenes: [" + "2024-01-02," * 23_000 + "]",
    "unknown placeholders": "scenes:\n" + '  - ["{a}{b}{c}", "{d}"]\n' * 10_000,
    "folds": 'title: "' + "a\\\n" * 80_000 + '"\n',
    "names": "cast: {" + "".join(f"'{n}': {{}}," for n in range(20_000)) + "}\n",
    "quotes": "title: " + "''" * 130_000,
    "anchors": "title: " + "&a " * 80_000,
    "documents": "---\n" * 65_000,
}


@pytest.mark.parametrize("path", fuzz.NASTY, ids=lambda path: path.stem)
def test_a_nasty_file_is_refused_with_its_place(path: Path) -> None:
    assert fuzz.check(path.read_bytes()) == ("accepted" if path.stem in ACCEPTED else "refused")


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_files_are_read_in_no_time(name: str) -> None:
    raw = LARGE[name].encode()
    assert 0.75 * MAX_BYTES < len(raw) <= MAX_BYTES
    began = time.process_time()
    assert fuzz.check(raw) == "refused"
    # What takes ever longer, the larger a file is, takes minutes here; a busy machine only makes it twice.
    assert time.process_time() - began < 5 * fuzz.MOST_SECONDS


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False))
def test_generated_and_mutated_files_give_faults_and_nothing_else(draw: random.Random) -> None:
    fuzz.check(fuzz.hostile_file(draw))


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("#" * (MAX_BYTES + 1), f"{MAX_BYTES // 1024} KB"),
        ("scenes: " + "[" * (MAX_DEPTH + 1), f"{MAX_DEPTH} levels"),
        ("a: [" + "[]," * MAX_NODES + "]", f"{MAX_NODES} values"),
        ("scenes:\n" + PAIR * (MAX_SCENES + 1), f"at most {MAX_SCENES} scenes"),
        (f"scenes:\n  - [{'a' * 2001}, b]\n", "at most 2000"),
        (f"title: {'a' * 201}\nscenes:\n" + PAIR, "at most 200"),
        ("scenes:\n  - {scene: a, action: b, seconds: 601}\n", "600"),
    ],
    ids=["bytes", "depth", "values", "scenes", "prompt", "title", "seconds"],
)
def test_every_limit_is_named(text: str, limit: str) -> None:
    with pytest.raises(ScriptError) as caught:
        parse_story("s.yaml", text.encode())
    assert limit in str(caught.value)


def test_a_message_commands_no_terminal() -> None:
    with pytest.raises(ScriptError) as caught:
        parse_story("a\x1b[2J.yaml", b"title: !a%1b%5b2J x\n")
    head = next(line for line in str(caught.value).splitlines() if "tag" in line)
    assert head == r"a\x1b[2J.yaml:1:8: error: the tag !a\x1b[2J is not allowed; take it out"


def test_bytes_that_are_no_text_are_on_the_line_that_an_editor_shows() -> None:
    with pytest.raises(ScriptError) as caught:
        parse_story("s.yaml", "title: a\u2028b\n".encode() + b"x: \xff\n")
    assert (caught.value.faults[0].line, caught.value.faults[0].column) == (2, 4)


def test_a_hostile_manifest_is_believed_in_nothing_that_was_not_written() -> None:
    heard: list[str] = []
    assert fuzz.run(300, 0, heard.append, fuzz.hostile_manifest, fuzz.check_manifest), heard
