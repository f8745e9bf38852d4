"""SIGTERM and SIGUSR1 ask a render to stop, as batch systems do when they need the machine."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from storyreel.errors import StoppedError

WORDS = "stopped by a signal", "What is finished is kept. Run the same command again to go on."
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Stop:
    """Whether a signal has asked to stop. Only the first counts: preemption sends one after the other."""

    def __init__(self) -> None:
        self.asked = False
        self._held = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: leave at once, unless what is under way is to be saved first."""
        if self.asked:
            return
        self.asked = True
        if not self._held:
            raise KeyboardInterrupt  # which libraries let through, whatever they are doing

    @contextmanager
    def held(self) -> Iterator[None]:
        """Leave only at the end of this, or where `check` is called."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """Raise StoppedError if a signal has come."""
        if self.asked:
            raise StoppedError(*WORDS)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Listen for signals. Raises StoppedError once one has come, and then ignores others.

    The process is on its way out then: another signal must not take its exit code away.
    """
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in SIGNALS}
    try:
        yield stop
    except KeyboardInterrupt:
        stop.check()
        raise
    finally:
        for number, handler in before.items():
            # Ours would not do: Python takes handlers away some time before its end.
            signal.signal(number, signal.SIG_IGN if stop.asked else handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Handle signals at the end of this instead of within."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other handles signals
        handled = [number for number in (signal.SIGINT, *SIGNALS) if callable(signal.getsignal(number))]
        before = {number: signal.signal(number, note) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in dict.fromkeys(came):
        signal.raise_signal(number)
