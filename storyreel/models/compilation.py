"""torch.compile for the blocks that a transformer repeats, and what happens where it does not work."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch._inductor.config
from torch import nn

from storyreel.errors import StoryreelError
from storyreel.models.device_errors import lacks_memory

T = TypeVar("T")

# Of one block. Kinds of requests, by number of texts, length of video and of text, make some ten, and as many
# more for each family in one process; torch's own limit of 8 goes on without compilation and without a word.
MOST_GRAPHS = 128
LIMITS = {
    "recompile_limit": MOST_GRAPHS,
    "accumulated_recompile_limit": 8 * MOST_GRAPHS,
    "fail_on_recompile_limit_hit": True,
    "suppress_errors": False,
}

# Of products in fp8 it would try some fifty kernels each, though nobody asked for that.
INDUCTOR: dict[str, object] = {"max_autotune_gemm_backends": "ATEN"}
if hasattr(torch._inductor.config, "deterministic"):  # of newer versions of torch
    INDUCTOR["deterministic"] = True  # no kernel is chosen by how fast it was just then, where digits differ


class Compilation:
    """Compiles blocks when they are first called; where that fails, all goes on without.

    One graph serves all blocks of a kind. The first shape gets a graph of its own, as a film whose scenes are
    all of one length has it; a second one makes a graph for shapes of any length. ``said`` is called with
    words for people if compilation fails. ``works`` until then.
    """

    def __init__(self, blocks: Sequence[nn.Module], said: Callable[[str], None]) -> None:
        self.works = True
        self._said = said
        self.add(blocks)

    def add(self, blocks: Sequence[nn.Module]) -> None:
        """Compile blocks that were not there before, too."""
        try:
            for block in blocks if self.works else ():
                # Not `block.compile()`: offloading puts its hooks around forward, and they wait for copies,
                # which a graph would leave out.
                block.forward = torch.compile(block.forward)
        except RuntimeError as error:  # this Python, or this platform, has no torch.compile
            self._failed(error)

    def run(self, compute: Callable[[], T]) -> T:
        """Return ``compute()``, which calls the blocks. Raises what it raises without compilation, too."""
        if self.works:
            try:
                with (  # for this call alone
                    torch._dynamo.config.patch(LIMITS),
                    torch._inductor.config.patch(INDUCTOR),
                    warnings.catch_warnings(),
                ):
                    # What its compiler advises, such as less precision, is not for those who render.
                    warnings.filterwarnings("ignore", module=r"torch\._inductor")
                    return compute()
            except StoryreelError:
                raise
            except Exception as error:
                if lacks_memory(error):  # which a lower memory mode may have
                    raise
                failure = error.with_traceback(None)
            # What compilers and what they start raise has no common class: if it works without, it was them.
            with torch.compiler.set_stance("force_eager"):
                answer = compute()
            self._failed(failure)
            return answer
        with torch.compiler.set_stance("force_eager"):
            return compute()

    def _failed(self, error: Exception) -> None:
        self.works = False
        self._said(f"the model cannot be compiled here ({reason(error)}); it goes on without, slower")


def reason(error: BaseException) -> str:
    """Return in one line why a compilation failed: torch wraps what its compilers say."""
    while (inner := getattr(error, "inner_exception", None) or error.__cause__) is not None:
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".:")
