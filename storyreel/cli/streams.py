"""The standard streams: whoever has stopped reading them does not stop the work."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys

TYPE_CHECKING = False  # typing itself takes longer to import than all of this
if TYPE_CHECKING:
    from typing import TextIO


class Stream(io.TextIOWrapper):
    """Drops what cannot be written. ``lost`` says why, as soon as something was dropped.

    A log may be on a full disk, its reader or its terminal may be gone: a film of a night must not be.
    """

    lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text if it can be; return its length."""
        try:
            return super().write(text)
        except OSError as error:
            self.lost = self.lost or error
            return len(text)

    def flush(self) -> None:
        """Write what is in the buffer if it can be."""
        try:
            super().flush()
        except OSError as error:
            self.lost = self.lost or error

    def drop(self) -> OSError | None:
        """Let go of what cannot be written; return why it cannot, if somebody still wants to read it."""
        self.flush()
        if self.lost is None:
            return None
        on_disk = stat.S_ISREG(os.fstat(self.fileno()).st_mode)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # where the rest of the buffer goes
        os.close(nowhere)
        self.flush()
        gone = self.lost.errno == errno.EPIPE or (self.lost.errno == errno.EIO and not on_disk)
        return None if gone else self.lost  # EIO: a terminal was closed


def secure() -> None:
    """Make stdout and stderr streams that may be lost, and open to nowhere those that were closed.

    The next file to be opened would get a closed one's number, and with it what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number is this one
    sys.stdout, sys.stderr = _secured(sys.stdout, 1), _secured(sys.stderr, 2)


def _secured(stream: TextIO | None, number: int) -> TextIO:
    # Whatever a terminal that knows only ASCII cannot show, it shows as \u….
    if stream is None:
        return Stream(open(number, "wb", closefd=False), errors="backslashreplace")
    if not isinstance(stream, io.TextIOWrapper):  # of a notebook, or a test
        return stream
    return Stream(
        stream.buffer,
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def finish() -> OSError | None:
    """Write what is left; return why a part of stdout is lost, if somebody still wants to read it."""
    failures = [stream.drop() for stream in (sys.stdout, sys.stderr) if isinstance(stream, Stream)]
    return failures[0] if failures else None
