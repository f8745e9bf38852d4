"""ffmpeg as a process: which program it is, how it is started, ended, and what its errors mean."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from storyreel.errors import MissingError, OutputError, StoryreelError
from storyreel.stopping import deferred

RUN_AGAIN = "Run again; finished scenes are kept."
_REMEDY = "Reinstall it (pip install --force-reinstall imageio-ffmpeg), or let IMAGEIO_FFMPEG_EXE name one."

# Becomes ffmpeg, after asking for SIGKILL (9) at its parent's death (1, PR_SET_PDEATHSIG of Linux's prctl).
# If ffmpeg does not start, the error's number goes into the pipe ``failure``.
_LAUNCHER = """
import ctypes, os, sys
failure, parent, *command = sys.argv[1:]
os.set_inheritable(int(failure), False)
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(parent):
    try:
        os.execv(command[0], command)
    except OSError as error:
        os.write(int(failure), str(error.errno).encode())
"""


@cache
def program() -> str:
    """Return the absolute path of ffmpeg. Raises MissingError."""
    return _find_program()


def _find_program() -> str:
    """Return the path of the package's ffmpeg, or of what IMAGEIO_FFMPEG_EXE names.

    A name without a folder is looked up on PATH; so is "ffmpeg" if the package brings none.
    """
    import imageio_ffmpeg

    try:
        named = str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise MissingError(f"ffmpeg is missing: {error}", _REMEDY) from None
    if (found := shutil.which(named)) is None:
        where = "on PATH" if os.path.basename(named) == named else "there, or no program"
        raise MissingError(f"ffmpeg does not start: {named} is not {where}", _REMEDY)
    return os.path.abspath(found)


def version() -> str:
    """Return ffmpeg's version, for keys and manifests. Raises MissingError."""
    path = _find_program()
    try:
        done = subprocess.run([path, "-version"], capture_output=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise MissingError(f"ffmpeg does not start: {error.strerror}", _REMEDY) from None
    if (found := re.match(rb"ffmpeg version (\S+)", done.stdout)) is None:
        words = f"{path} is not ffmpeg: it does not print its version (exit code {done.returncode})"
        raise MissingError(words, _REMEDY)
    return found[1].decode(errors="replace")


def temporary_file() -> IO[bytes]:
    """Open a file without a name. Raises OutputError."""
    try:
        return tempfile.TemporaryFile()
    except OSError as error:  # which names the folders that were tried, if none can be used
        remedy = "Set TMPDIR to a folder on a disk with room, then run again: finished scenes are kept."
        raise OutputError(f"cannot write a temporary file: {error.strerror}", remedy) from None


def local_file(path: Path) -> str:
    """Return a file as an argument that ffmpeg cannot read as an option, an address or a pattern."""
    return f"file:{path.resolve()}"


@contextmanager
def running(arguments: Sequence[str], errors: Any, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run ffmpeg, its messages going to the file ``errors``; at the end of this it has ended, or is killed.

    ``options`` are those of `subprocess.Popen`. Raises MissingError if it does not start.
    """
    process = None
    try:
        with deferred():  # a signal between its start and the assignment would leave it running
            process = _start(arguments, errors, **options)
        yield process
    finally:
        if process is not None:
            process.kill()
            with suppress(BrokenPipeError):  # of frames that it no longer takes
                process.__exit__(None, None, None)


def _start(arguments: Sequence[str], errors: Any, **options: Any) -> subprocess.Popen[bytes]:
    command = [program(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *arguments]
    start = _start_tied if sys.platform == "linux" else subprocess.Popen
    try:
        # In a session of its own, so that Ctrl-C reaches storyreel alone, which then ends ffmpeg.
        return start(command, stderr=errors, start_new_session=True, **options)
    except OSError as error:
        raise MissingError(f"ffmpeg does not start: {error.strerror}", _REMEDY) from None


def _start_tied(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program that the kernel kills when this process ends, however it ends. Raises OSError.

    An orphaned ffmpeg would see the end of its input and write a valid, shorter film. A
    ``preexec_fn`` would do it too, but makes every start copy this process's page tables.
    """
    reading, failure = os.pipe()
    with open(reading, "rb") as answer:
        try:
            launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(failure), str(os.getpid())]
            process = subprocess.Popen([*launcher, *command], pass_fds=[failure], **options)
        finally:
            os.close(failure)
        reason = answer.read()  # ends when ffmpeg runs
    if reason:
        with process:  # waits for it and closes its pipes
            raise OSError(int(reason), os.strerror(int(reason)))
    return process


def finish(process: subprocess.Popen[bytes]) -> int:
    """Close ffmpeg's input, wait for it, and return its exit code."""
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()
    return process.wait()


def failure(code: int, errors: Any) -> StoryreelError:
    """Return the error for an exit code and the messages in the file ``errors``."""
    errors.seek(0)
    words = errors.read().decode(errors="replace").strip()
    last = words.splitlines()[-1] if words else f"exit code {code}"
    if "No space left" in words or "Permission denied" in words or "Read-only" in words:
        remedy = "Make room or choose another --out, then run again."
        return OutputError(f"ffmpeg cannot write: {last}", remedy)
    return StoryreelError(f"ffmpeg failed: {last}", RUN_AGAIN)
