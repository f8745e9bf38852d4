"""Every error that a user can cause or meet: one tree, caught once at the command line.

An error says what is wrong and, in ``remedy``, what to do next. Its class fixes the exit code.
Anything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MAX_SHOWN = 100  # faults of one script that are printed


def printable(text: str) -> str:
    """Write what does not print as an escape: a name in a file must not command a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def counted(number: int, noun: str, many: str = "") -> str:
    """Return a number with its noun, as in "1 scene" and "2 scenes"; ``many`` is a plural of another form."""
    return f"{number} {noun if number == 1 else many or noun + 's'}"


class StoryreelError(Exception):
    """Base of the tree; exit code 1."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return printable(f"error: {self.message}" + (f"\n{self.remedy}" if self.remedy else ""))


class UsageError(StoryreelError):
    """The command line asks for something that makes no sense."""

    exit_code = 2


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a script. Lines and columns count from 1; ``source`` is the line.

    ``mended`` is the line as it may have been meant, "" if that is not known.
    """

    message: str
    line: int = 1
    column: int = 1
    source: str = ""
    mended: str = ""

    def saying(self, message: str) -> Fault:
        """Return a fault at the same place."""
        return replace(self, message=message)

    def format(self, path: str, kind: str = "error") -> str:
        """Return ``path:line:column: kind: …``, the line, a caret under the place, and the mended line."""
        from rich.cells import cell_len

        # Long lines are shown around the place; anything that does not print shows as a dot.
        first = max(0, self.column - 80)
        shown = "".join(c if c.isprintable() else "·" for c in self.source[first : first + 160])
        before = " " * cell_len(shown[: self.column - 1 - first])
        head = printable(f"{path}:{self.line}:{self.column}: {kind}: {self.message}")
        margin = f"{self.line:5d} | "
        text = f"{head}\n{margin}{shown}\n{' ' * (len(margin) - 2)}| {before}^"
        return text + (f"\nwrite | {printable(self.mended)}" if self.mended else "")


class ScriptError(StoryreelError):
    """A story is not what the format allows; holds every fault that was found."""

    exit_code = 65

    def __init__(self, path: str, faults: list[Fault]) -> None:
        super().__init__(f"{path}: {counted(len(faults), 'fault')}")
        self.path = path
        self.faults = sorted(faults, key=lambda fault: (fault.line, fault.column))

    def __str__(self) -> str:
        return self.format("error")

    def format(self, kind: str) -> str:
        """Return all faults with their places, or the first `MAX_SHOWN`; ``kind`` is what each is called."""
        shown = [fault.format(self.path, kind) for fault in self.faults[:MAX_SHOWN]]
        if len(self.faults) > MAX_SHOWN:
            shown.append(f"{self.path}: … and {len(self.faults) - MAX_SHOWN} more")
        return "\n".join(shown)


class FormatError(StoryreelError):
    """A file of another program is of no format that is known, or is not what its format allows."""

    exit_code = 65


class MissingError(StoryreelError):
    """A model, a weight, a device or a program is not there."""

    exit_code = 69


class DamagedError(MissingError):
    """A weight file is there but is not what it should be."""


class LicenceError(StoryreelError):
    """The licence of a model has conditions, and nobody has accepted them."""

    exit_code = 77


class OutputError(StoryreelError):
    """Something cannot be written."""

    exit_code = 73


class LockedError(StoryreelError):
    """Another process is rendering into the same folder."""

    exit_code = 74


class StoppedError(StoryreelError):
    """A signal has stopped a command; the same command goes on."""

    exit_code = 75

    def __str__(self) -> str:  # it is no error
        return printable(f"{self.message}\n{self.remedy}".rstrip())


class InterruptError(StoppedError):
    """Ctrl-C has."""

    exit_code = 130


class NumericsError(StoryreelError):
    """A render or a training produced NaN or infinity."""


class PromptError(StoryreelError):
    """A prompt is longer than a model can read; nothing is cut off silently."""

    exit_code = 65

    def __init__(self, prompt: str, tokens: int, limit: int) -> None:
        super().__init__(
            f"a prompt has {tokens} tokens, the model reads {limit}: {prompt[:80]!r}",
            "Shorten the scene or its action, or the negative prompt if it is that.",
        )


class SlurmError(StoryreelError):
    """Slurm refuses a job, or does not answer."""
