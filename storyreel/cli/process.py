"""What the process of a command is: one of torchrun's or alone, and how it gives memory back."""

from __future__ import annotations

import ctypes
import os
import sys

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # of glibc's mallopt
LARGE, SPARE = 8 << 20, 64 << 20  # bytes
# Of torch's allocators; the first counts most, and is the only one that no version of torch calls deprecated.
ALLOCATORS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
EXPANDABLE = "expandable_segments:True"


def give_large_blocks_back() -> None:
    """Have the C library return every large block to the system as soon as it is free.

    Left to itself, glibc raises its limit to 32 MB, so that tensors of changing sizes lie in one heap
    with gaps between them: the peak is then a matter of chance, and the longer a story the higher. What
    that heap keeps at its end stays as large as glibc would let it become: giving it back all the time
    took a sixth of a render's.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, SPARE)


def let_segments_grow() -> None:
    """Have torch, which is not imported yet, grow the blocks that it takes of a GPU's memory.

    Scenes differ in length: tensors of many sizes would leave gaps between blocks of fixed ones. Whoever
    says something of torch's allocator is left with it.
    """
    if sys.platform == "linux" and not any(os.environ.get(name) for name in ALLOCATORS):
        os.environ[ALLOCATORS[0]] = EXPANDABLE


def rank() -> int | None:
    """Return which of torchrun's processes this is; None if there is no other."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) < 2:
        return None
    return int(os.environ["RANK"])
