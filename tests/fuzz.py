"""Hostile stories and manifests by the thousand: generated ones, and known files with bytes changed.

By hand: ``python -m tests.fuzz --count 20000 --seed 0``, and again with ``--manifests``. Every file is made
from the seed and its own number, so that one that fails can be made again. `test_nasty.py` runs a few
hundred.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from storyreel.errors import ScriptError, StoryreelError
from storyreel.film.folder import FilmFolder
from storyreel.film.manifest import Manifest
from storyreel.film.store import RECORD, Record, read_record
from storyreel.story.planning import make_plan
from storyreel.story.schema import MAX_PROMPT, parse_story
from storyreel.story.yaml_source import forbidden_character

ROOT = Path(__file__).parent.parent
NASTY = sorted((ROOT / "tests" / "nasty").glob("*.yaml"))
MOST_SECONDS = 2.0  # for one file

_BASES = [path.read_bytes() for path in (*sorted((ROOT / "stories").glob("*.yaml")), *NASTY)]
_PIECES = [
    "\t",
    ":",
    "- ",
    '"',
    "'",
    "[",
    "]",
    "{",
    "}",
    "&a ",
    "*a",
    "!!int ",
    "!",
    "|",
    ">",
    "\0",
    "\x1b",
    "é",
]
_PIECES += [
    "%",
    "@",
    "`",
    "---\n",
    "...\n",
    "? ",
    "#",
    ",",
    "\r",
    "\n",
    "\u2028",
    "\ufeff",
    "1e999",
    "0x",
    "<<: ",
]
_PIECES += [
    "=",
    ".inf",
    ".nan",
    "9" * 5000,
    "\u202e",
    "{first}",
    "{first.noun}",
    '"\\ud800"',
    "\x85",
    "~",
    "\\",
]
_PIECES += ["!%1b ", "12:30", "[" * 30, "{" * 30, "  ", "猫", "scenes:", "render: ", "title: "]
_KEYS = [
    "title",
    "cast",
    "scenes",
    "render",
    "scene",
    "action",
    "seconds",
    "transition",
    "name",
    "possessive",
]
_KEYS += [
    "noun",
    "model",
    "seed",
    "size",
    "steps",
    "guidance",
    "negative",
    "shift",
    "speed",
    "quantize",
    "method",
    "overlap",
    "blending",
    "first",
]
_KEYS += ["", "<<", "=", "[key]", "__class__", "\x1b[2J", "\u202e", "猫", "0", "k" * 200]
_SCALARS: list[object] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2.0,
    0.5,
    2**63,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
]
_SCALARS += [
    "",
    " ",
    "a fox",
    "{first}",
    "{{x}}",
    "{",
    "}",
    "{first.noun}",
    "mini",
    "mochi",
    "sora",
    "96x64",
    "192x128",
    "9x9",
]
_SCALARS += [
    "cut",
    "blend",
    "dissolve",
    "fast",
    "\0",
    "\x9b",
    "\ud7ff",
    "\u202e",
    "\u3164",
    "a\nb",
    "x" * (MAX_PROMPT + 1),
]


def hostile_file(draw: random.Random) -> bytes:
    """Return the bytes of one file that somebody might take for a story."""
    if draw.random() < 0.4:
        text = _written(draw, _story(draw))
        raw = text.encode("utf-8", "surrogatepass")
        return _mutated(draw, raw) if draw.random() < 0.5 else raw
    return _mutated(draw, draw.choice(_BASES))


def _story(draw: random.Random) -> object:
    """Return data shaped like a story, wrong in some places."""
    pair = [draw.choice(["a fox in the park", "{first} walks"]), "a fox sleeps"]
    story: dict[str, object] = {"scenes": [pair] * draw.randint(0, 4)}
    story |= {"cast": {"first": {"name": "a fox"}}} if draw.random() < 0.5 else {}
    story |= {"render": {"seed": 7, "method": {"overlap": 2}}} if draw.random() < 0.5 else {}
    for _ in range(draw.randint(0, 4)):
        _spoil(draw, story)
    return story


def _spoil(draw: random.Random, value: Any) -> None:
    """Change one thing, somewhere inside a value."""
    while isinstance(value, dict | list):
        keys: Sequence[Any] = list(value) if isinstance(value, dict) else range(len(value))
        if isinstance(value, dict) and (not keys or draw.random() < 0.3):
            value[draw.choice(_KEYS)] = _anything(draw)
            return
        if not keys:
            return
        key = draw.choice(keys)
        if not isinstance(value[key], dict | list) or draw.random() < 0.3:
            value[key] = _anything(draw)
            return
        value = value[key]


def _anything(draw: random.Random, depth: int = 0) -> object:
    kind = draw.random()
    if depth > 3 or kind < 0.6:
        return draw.choice(_SCALARS)
    many = range(draw.randint(0, 3))
    if kind < 0.8:
        return [_anything(draw, depth + 1) for _ in many]
    return {draw.choice(_KEYS): _anything(draw, depth + 1) for _ in many}


def _written(draw: random.Random, data: object) -> str:
    if draw.random() < 0.3:
        return json.dumps(data, ensure_ascii=draw.random() < 0.5)
    flow = draw.choice([True, False])
    return str(yaml.safe_dump(data, allow_unicode=draw.random() < 0.5, default_flow_style=flow))


def _mutated(draw: random.Random, raw: bytes) -> bytes:
    """Return a file with some of its bytes flipped, cut, doubled, moved or joined by others."""
    data = bytearray(raw)
    for _ in range(draw.randint(1, 6)):
        at, length = draw.randint(0, len(data)), draw.choice([0, 1, 2, 8, 40, 400])
        kind = draw.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at:at] = draw.choice(_PIECES).encode("utf-8", "surrogatepass")
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length] * draw.choice([1, 2, 50])
        elif kind == 4:
            other = draw.choice(_BASES)
            start = draw.randint(0, len(other))
            data[at:at] = other[start : start + length]
        else:
            data[at : at + 1] = draw.randbytes(draw.randint(1, 4))
    return bytes(data)


def check(raw: bytes) -> str:
    """Have a file read as `validate` reads it; return what came of it.

    Raises AssertionError where a rejection has no place in the file or shows what no terminal should
    get; whatever else is raised is a fault of the reader.
    """
    try:
        story = parse_story("s.yaml", raw)
        make_plan(story, "s")
    except ScriptError as error:
        lines = re.split(r"\r\n|\n|\r", raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace"))
        assert error.faults
        for fault in error.faults:
            assert 1 <= fault.line <= len(lines), fault
            assert 1 <= fault.column <= len(lines[fault.line - 1]) + 1, fault
        _check_words(error)
        return "refused"
    except StoryreelError as error:
        _check_words(error)
        return type(error).__name__
    return "accepted"


def _check_words(error: StoryreelError) -> None:
    words = str(error)
    assert "\ufffe" not in words
    assert forbidden_character(words) is None, words[:300]


_RECORDS = [
    Record("latents", "01", "ab" * 32, "cd" * 32, "cpu", 1.5, 0, {"lead": 2, "seam": None}),
    Record("latents", "02", "ab" * 32, "cd" * 32, "cpu", 1.5, 0, {"prompt_weights": [(0.25, 0.75)] * 4}),
    Record("video", "01", "01" * 32, "ef" * 32, "a GPU", 0.5),
    Record("state", "03", "01" * 32, "ef" * 32, "cpu", 0.0, 12),
]


def hostile_manifest(draw: random.Random) -> bytes:
    """Return the bytes of a manifest, or of a segment's record, that something has happened to."""
    if draw.random() < 0.3:
        film = {"file": "film.mp4", "key": "ab" * 32, "sha256": "cd" * 32}
        text = Manifest({"title": "Foxes", "story": {}}, [{"number": "01", "key": "ab"}], film).text()
    else:
        text = draw.choice(_RECORDS).text()
    if draw.random() < 0.5:
        return _mutated(draw, text.encode())
    data = json.loads(text)
    for _ in range(draw.randint(1, 4)):
        _spoil(draw, data)
    return json.dumps(data).encode("utf-8", "surrogatepass")


def check_manifest(raw: bytes) -> str:
    """Have a manifest or a record read as `render` reads it; return what came of it.

    Raises AssertionError where anything is believed of a segment that was not written.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = FilmFolder(Path(place), "film")
        folder.manifest_path.write_bytes(raw)
        folder.load()
        believed = []
        for known in _RECORDS:
            path = Path(place) / f"{known.file}{RECORD}"
            path.write_bytes(raw)
            if (record := read_record(path)) is not None:
                assert record == known, record
                believed.append(record)
    if folder.present is not None:
        assert not folder.film_is_complete()
        folder.present.text().encode()  # as status and the next render do
        return "a manifest"
    return f"{len(believed)} records"


def run(
    count: int,
    seed: int,
    tell: Callable[[str], None],
    make: Callable[[random.Random], bytes] = hostile_file,
    check: Callable[[bytes], str] = check,
) -> bool:
    """Check ``count`` files; tell the figures, and of every failure the file."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results: Counter[str] = Counter()
    slowest = 0.0
    for number in range(count):
        raw = make(random.Random(f"{seed} {number}"))
        began = time.process_time()
        try:
            results[check(raw)] += 1
        except Exception as error:
            results["FAILED"] += 1
            tell(f"seed {seed}, file {number}: {type(error).__name__}: {error}\n{raw[:2000]!r}")
        spent = time.process_time() - began
        slowest = max(slowest, spent)
        if spent > MOST_SECONDS:
            results["TOO SLOW"] += 1
            tell(f"seed {seed}, file {number}: {spent:.1f} s\n{raw[:2000]!r}")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = ", ".join(f"{amount} {name}" for name, amount in sorted(results.items()))
    tell(f"{count} files: {figures}")
    tell(f"slowest {slowest:.2f} s, peak memory {after / 1024:.0f} MB, {before / 1024:.0f} MB before")
    return not results["FAILED"] and not results["TOO SLOW"]


def main() -> int:
    """Read the command line and check files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--manifests", action="store_true", help="Manifests instead of stories.")
    options = parser.parse_args()
    kind = (hostile_manifest, check_manifest) if options.manifests else (hostile_file, check)
    return 0 if run(options.count, options.seed, print, *kind) else 1


if __name__ == "__main__":
    sys.exit(main())
