"""Streams that nobody reads, that are closed or full: the work goes on, and nothing goes elsewhere."""

from __future__ import annotations

import errno
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from storyreel.cli.app import run
from storyreel.cli.stories import STARTER
from storyreel.cli.streams import Stream
from tests.conftest import ROOT, FakeEngine

STORY = "render: {model: fake}\nscenes:\n" + '  - ["a park", "a fox sits"]\n' * 3
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def without_a_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def on_a_full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def on_a_closed_terminal() -> int:
    terminal, end = pty.openpty()
    os.close(terminal)
    return end


@pytest.fixture(params=[without_a_reader, pytest.param(on_a_full_disk, marks=FULL), on_a_closed_terminal])
def lost(request: pytest.FixtureRequest) -> Iterator[Stream]:
    """A stream on what can no longer be written, as stderr is: a line at a time."""
    with os.fdopen(request.param(), "wb") as buffer:
        yield Stream(buffer, line_buffering=True)


def test_a_batch_goes_on_without_its_log(
    tmp_path: Path, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, lost: Stream
) -> None:
    """The bars and lines of rich and all that libraries print go the same way."""
    stories = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for story in stories:
        story.write_text(STORY)
    monkeypatch.setattr(sys, "stderr", lost)
    monkeypatch.setattr(sys, "stdout", lost)
    assert run(["batch", *map(str, stories), "--out", str(tmp_path / "out")]) == 0
    assert all((tmp_path / "out" / name / f"{name}.mp4").exists() for name in "ab")
    assert lost.lost is not None
    failure = lost.drop()
    assert (failure is not None) == (lost.lost.errno == errno.ENOSPC)


def test_a_stream_that_is_read_is_as_any_other(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as buffer:
        stream = Stream(buffer, "ascii", "backslashreplace", line_buffering=True)
        assert stream.write("é\n") == 2
        assert (stream.lost, stream.drop()) == (None, None)
    assert (tmp_path / "log").read_bytes() == b"\\xe9\n"


BAD = "scenes: 1\n"
NO_ROOM = "error: cannot write the result: No space left on device\n"


@pytest.mark.parametrize(
    ("command", "code", "printed", "complaint"),
    [
        ("schema > /dev/full", 73, "", NO_ROOM),
        ("--show-completion > /dev/full", 73, "", NO_ROOM),
        ("schema | true", 0, "", ""),
        ("schema >&-", 0, "", ""),
        ("new mine.yaml >&-", 0, "", ""),
        ("new mine.yaml <&- >&- 2>&-", 0, "", ""),
        ("new mine.yaml 2>&-", 0, "mine.yaml\n", ""),
        ("new mine.yaml 2>/dev/full", 0, "mine.yaml\n", ""),
        ("validate bad.yaml 2>&-", 65, "", ""),
        ("validate bad.yaml 2>/dev/full", 65, "", ""),
        ("validate --nonsense 2>&-", 2, "", ""),
    ],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_cannot_be_printed_goes_nowhere(
    tmp_path: Path, command: str, code: int, printed: str, complaint: str
) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)
    line = f'"{sys.executable}" -m storyreel {command}; exit ${{PIPESTATUS[0]}}'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, printed, complaint)
    if "mine.yaml" in command:
        assert (tmp_path / "mine.yaml").read_text() == STARTER
    assert (tmp_path / "bad.yaml").read_text() == BAD
