"""A lock on a folder, for one process: released when the process ends, where the file system has locks."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

EVERY = 0.05  # seconds between two tries
SILENT = 3.0  # seconds for which nobody need be told that there is something to wait for
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # as Lustre has it, or some NFS


class Lock:
    """The lock on the file ``path``. A note beside it names the process that holds it.

    Where the file system has no locks, the note is the lock: it is removed when the lock is released, and
    does not count if its process has ended on this machine.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._note = path, path.with_name(f"{path.name}.json")
        self._handle: int | None = None
        self._is_note_alone = False

    def acquire(self, patience: float) -> bool:
        """Try to take the lock for ``patience`` seconds; tell whether it is held now. Raises OSError."""
        deadline = time.monotonic() + patience
        while not self._take():
            if time.monotonic() >= deadline:
                return False
            time.sleep(EVERY)
        return True

    @contextmanager
    def waited_for(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Wait for the lock, and hold it; after some seconds ``tell`` for whom."""
        if not self.acquire(SILENT):
            tell(f"waiting for another storyreel{self.holder()}.{self.hint()}")
            self.acquire(math.inf)
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Release the lock."""
        try:
            with suppress(OSError):
                self._note.unlink()
        finally:
            if self._handle is not None:
                handle, self._handle = self._handle, None
                os.close(handle)

    def is_held(self) -> bool:
        """Tell whether any process holds the lock, without waiting or writing anything."""
        try:
            if not self._path.is_file():  # a pipe would never open
                return False
            with self._path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            return error.errno in NO_LOCKS and self._is_noted()
        return False

    def holder(self) -> str:
        """Return which process holds the lock, and since when, in brackets; "" if that is unknown."""
        try:
            process, host, since, *_ = self._noted()
        except (ValueError, TypeError):
            return ""
        return f" (process {process} on {host}, since {since})"

    def hint(self) -> str:
        """Return what else helps if the lock was not granted, after a blank; "" if nothing does."""
        if not self._is_note_alone:
            return ""
        return f" This file system has no locks: if that process has ended, delete {self._note}."

    def _take(self) -> bool:
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno in NO_LOCKS:
                self._is_note_alone = True
                return self._take_note()
            if isinstance(error, BlockingIOError):
                return False
            raise
        self._handle = handle
        with suppress(OSError):  # the note is only for people here
            self._note.write_text(self._words())
        return True

    def _take_note(self) -> bool:
        if self._note.exists() and not self._is_noted():  # none that appears meanwhile is removed
            self._note.unlink(missing_ok=True)
        try:
            with self._note.open("x") as file:
                file.write(self._words())
        except FileExistsError:
            return False
        return True

    def _is_noted(self) -> bool:
        """Tell whether the note is there, of a process that may still run."""
        try:
            process, host, _, *job = self._noted()
            if host == platform.node():
                os.kill(int(process), 0)
            elif job and job[0][0] == _job()[0] and job[0][1] < _job()[1]:
                return False  # Slurm has put the job back into the queue, since its node failed
        except (FileNotFoundError, ProcessLookupError):
            return False
        except (
            OSError,
            ValueError,
            TypeError,
            ArithmeticError,
            LookupError,
        ):  # another user's, or half written
            return self._note.exists()
        return True

    def _noted(self) -> Any:
        try:
            return json.loads(self._note.read_bytes())
        except RecursionError:
            raise ValueError from None

    @staticmethod
    def _words() -> str:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        words = [os.getpid(), platform.node(), now]
        return json.dumps([*words, _job()] if _job()[0] else words)


def _job() -> tuple[str, int]:
    """Return the Slurm job that this process is of, "" for none, and how often it has been begun again."""
    again = os.environ.get("SLURM_RESTART_COUNT", "")
    return os.environ.get("SLURM_JOB_ID", ""), int(again) if again.isdecimal() else 0
