"""What is wrong with a device: its name, too little memory, or that it is lost. Loads no torch."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from storyreel.errors import MissingError, StoryreelError, UsageError
from storyreel.plugins import FAULTS

# torch has a class of its own for its allocator alone: what CUDA, cuBLAS, cuDNN and the pinning of memory
# lack is a plain RuntimeError or torch.AcceleratorError, known by its words. cuBLAS and cuDNN that find no
# room for their first handle say that they are not initialized.
_MEMORY = re.compile(
    r"out of memory|ALLOC(ATION)?_FAILED|MemoryAllocation|can('t|not) allocate memory|not enough memory"
    r"|_NOT_INITIALIZED when calling `?cublasCreate|CUDNN_STATUS_NOT_INITIALIZED|\bpin memory",
    re.IGNORECASE,
)
_OF_MACHINE = re.compile(
    r"DefaultCPUAllocator|can('t|not) allocate memory|HOST_ALLOCATION|\bpin memory", re.IGNORECASE
)
_DEVICE = re.compile(r"\b(CUDA|HIP|cuDNN|MIOpen)\w* (driver )?error", re.IGNORECASE)
_OURS = re.compile("device-side assert|invalid argument|invalid configuration", re.IGNORECASE)  # bugs


def check_device(name: str) -> None:
    """Raise UsageError for what cannot be a device's name."""
    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name):
        raise UsageError(f"unknown device {name!r:.60}", "Use auto, cpu, cuda or cuda:N.")


def lacks_memory(error: BaseException) -> bool:
    """Tell whether an error says that a device, or this machine, has too little memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):  # as when a file is to be mapped
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _MEMORY.search(str(error)) is not None


def machine_lacks(error: BaseException) -> bool:
    """Tell whether what is lacking is the machine's own memory."""
    return isinstance(error, MemoryError | OSError) or _OF_MACHINE.search(str(error)) is not None


def device_error(error: BaseException) -> MissingError | None:
    """Return what to tell of an error of a device; None if it is something else, such as a bug."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    if lacks_memory(error):
        remedy = "Use a smaller --size, shorter scenes, or a device with more memory."
        who = "the device"
        if machine_lacks(error):
            who = "this machine"
            remedy = "End something else, ask the batch system for more, or use a smaller model."
        return MissingError(f"{who} has too little memory ({reason}); what is finished is kept", remedy)
    if not isinstance(error, RuntimeError) or not _DEVICE.search(reason) or _OURS.search(reason):
        return None
    if "no kernel image" in reason:
        remedy = "Install the build of torch that knows this GPU, or use --device cpu."
        return MissingError(f"this build of torch cannot use the GPU ({reason})", remedy)
    remedy = "See what the driver says (nvidia-smi, dmesg), then run the same command again."
    return MissingError(f"the GPU is lost ({reason}); finished scenes are kept", remedy)


@contextmanager
def plugin_faults(words: str) -> Iterator[None]:
    """Turn what a plugin's code ends with into UsageError, but for full memory and devices that are lost.

    ``words`` say which plugin it is.
    """
    try:
        yield
    except StoryreelError:
        raise
    except FAULTS as error:
        if lacks_memory(error) or device_error(error) is not None:
            raise
        told = f"{words} fails: {type(error).__name__}: {error}"
        raise UsageError(told, "Correct it; STORYREEL_DEBUG=1 shows where that is.") from error
