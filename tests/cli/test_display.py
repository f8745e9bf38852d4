"""What a render shows: bars where a cursor can move, plain lines elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from storyreel.cli import display as console
from storyreel.cli.app import run
from tests.conftest import FakeEngine

STORY = "render: {model: fake}\nscenes:\n" + '  - ["a park", "a fox sits"]\n' * 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("file", "environment", "bars"),
    [
        (Terminal, {"TERM": "xterm"}, True),
        (Terminal, {"TERM": "xterm", "NO_COLOR": "1"}, True),
        (Terminal, {"TERM": "dumb"}, False),
        (Terminal, {"TERM": "dumb", "FORCE_COLOR": "1"}, False),
        (io.StringIO, {"TERM": "xterm"}, False),
        (io.StringIO, {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
        (io.StringIO, {"TERM": "xterm", "TTY_COMPATIBLE": "1"}, False),
    ],
)
def test_bars_on_a_terminal_and_lines_elsewhere(
    tmp_path: Path,
    fake_engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    file: type[io.StringIO],
    environment: dict[str, str],
    bars: bool,
) -> None:
    shown, story = file(), tmp_path / "foxes.yaml"
    story.write_text(STORY)
    stderr = Console(file=shown, soft_wrap=True, highlight=False, markup=False, _environ=environment)
    monkeypatch.setattr(console, "stderr", stderr)
    monkeypatch.setattr(console, "PLAIN_EVERY", 0)
    assert run(["render", str(story), "--out", str(tmp_path / "out")]) == 0
    text = shown.getvalue()
    assert "foxes: 1 s of film, 2 of 2 scenes rendered in " in text
    assert ("\x1b" in text) == bars
    assert (
        "foxes: rendering 2 scenes with fake\nfoxes: step 1 of 6, scene 0 of 2, 0 s so far" in text
    ) != bars
    with console.FilmBar("foxes", 2) as tell:
        tell(1)
    assert (shown.getvalue() == text) != bars


def test_tables_in_a_file_have_one_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert console.results().width == console.PLAIN_WIDTH
