"""Signals that ask a command to stop, as from Ctrl-C, a batch system that needs the machine, a lost line.

What is imported here is small: nothing is listened to before.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress

TYPE_CHECKING = False  # typing itself takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Iterator
    from sys import UnraisableHookArgs
    from types import FrameType
    from typing import NoReturn

    from storyreel.errors import StoppedError

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
SIGNALS: list[signal.Signals] = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
AGAIN = "Run the same command again."
KEPT = f"What is finished is kept. {AGAIN[:-1]} to go on."
KEPT_AFRESH = (  # once what was there of a film has been removed
    "What is finished is kept. Run the command without --overwrite to go on with {name}; "
    "what was not begun yet still needs it."
)
SAME = 0.1  # seconds in which two interrupts are one: timeout(1) sends it to the process and to its group


class Stopped(KeyboardInterrupt):
    """What a signal raises, wherever the program is: libraries let a KeyboardInterrupt through.

    A class of its own, since CPython remembers if KeyboardInterrupt itself comes out of ``exec`` of a string,
    as it may while any dataclass is imported. ``python -m`` then dies of SIGINT, whatever its exit code.
    """


class Stop:
    """Whether a signal has asked to stop. Only the first counts: preemption sends one after the other.

    But Ctrl-C pressed again ends what is still being saved. ``remedy`` is what to do after a stop.
    """

    def __init__(self, remedy: str = AGAIN) -> None:
        self.remedy = remedy
        self._signal: int | None = None
        self._interrupted: float | None = None  # when the first Ctrl-C came
        self._held = False

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._signal is not None

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: leave at once, unless what is under way is to be saved first."""
        first, again = not self.asked, False
        if first:
            self._signal = number
        if number == signal.SIGINT:
            again = self._interrupted is not None and time.monotonic() - self._interrupted > SAME
            self._interrupted = self._interrupted or time.monotonic()
        if again:
            self._signal = number
        if again or (first and not self._held):
            raise Stopped
        if first and number == signal.SIGINT:
            with suppress(Exception):  # it may have come within another print
                print("stopping after this step; Ctrl-C again stops at once", file=sys.stderr)

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
            raise self.error()

    def error(self) -> StoppedError:
        """Return what a stop is at the command line."""
        from storyreel.errors import InterruptError, StoppedError

        if self._signal in (None, signal.SIGINT):
            return InterruptError("interrupted", self.remedy)
        return StoppedError(f"stopped by {signal.Signals(self._signal).name}", self.remedy)


@contextmanager
def stopping(remedy: str = AGAIN) -> Iterator[Stop]:
    """Listen for signals. Raises StoppedError once one has come, and then ignores others.

    The process is on its way out then: another signal must not take its exit code away. Whatever else is
    raised after a signal comes of it: it may have broken off an import. Only that something could not be
    written is told as it is. A signal that is ignored stays ignored: SIGHUP is, under nohup.
    """
    stop = Stop(remedy)
    in_main = threading.current_thread() is threading.main_thread()  # no other handles signals
    before = {number: signal.getsignal(number) for number in SIGNALS if in_main}
    before = {number: was for number, was in before.items() if was not in (signal.SIG_IGN, None)}
    told = sys.unraisablehook

    def unraisable(found: UnraisableHookArgs) -> None:
        # Within a callback, as of an import's lock, Python goes on and only tells: `check` stops soon.
        if not isinstance(found.exc_value, Stopped):
            told(found)

    try:
        sys.unraisablehook = unraisable
        for number in before:
            signal.signal(number, stop.ask)
        yield stop
    except BaseException as error:
        from storyreel.errors import OutputError, StoppedError

        if stop.asked and not isinstance(error, OutputError | StoppedError):
            raise stop.error() from error
        raise
    finally:
        sys.unraisablehook = told
        for number, was in before.items():
            if stop.asked:  # our own handler would not do: Python takes it away some time before its end
                signal.signal(number, signal.SIG_IGN)
            elif signal.getsignal(number) == stop.ask:  # and not yet ignored
                signal.signal(number, was)


def leave(code: int) -> NoReturn:
    """End the process with an exit code that no signal takes away any more."""
    from storyreel.errors import InterruptError, StoppedError

    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if code in (StoppedError.exit_code, InterruptError.exit_code):
        # The signal may have come anywhere, also while a library in C++ was imported: nothing is tidied up.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def deferred() -> Iterator[None]:
    """Handle signals at the end of this instead of within."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other handles signals
        handled = [number for number in SIGNALS if callable(signal.getsignal(number))]
        before = {number: signal.signal(number, note) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in dict.fromkeys(came):
            signal.raise_signal(late)
