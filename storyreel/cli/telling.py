"""What is said beside the results, on stderr: errors always, notes unless ``-q``, details with ``-v``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LOUDNESS: ContextVar[int] = ContextVar("loudness", default=0)  # -1, 0 or 1, of the command that runs


@contextmanager
def loudness(level: int) -> Iterator[None]:
    """Say less (-1), what is usual (0) or more (1) in a command."""
    before = _LOUDNESS.set(level)
    try:
        yield
    finally:
        _LOUDNESS.reset(before)


def is_quiet() -> bool:
    """Tell whether notes are not wanted."""
    return _LOUDNESS.get() < 0


def complain(text: str) -> None:
    """Say what is wrong."""
    print(text, file=sys.stderr)


def note(text: str) -> None:
    """Say what is good to know."""
    if not is_quiet():
        print(f"{stamp()}{text}", file=sys.stderr)


def detail(text: str) -> None:
    """Say what few want to know."""
    if _LOUDNESS.get() > 0:
        note(text)


def stamp() -> str:
    """Return the time of day for the beginning of a line, with ``-v``; "" without."""
    return f"{time.strftime('%H:%M:%S')}  " if _LOUDNESS.get() > 0 else ""
