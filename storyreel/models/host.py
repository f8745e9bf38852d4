"""How much memory this machine, or the job that this is, has of its own. Loads no torch."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # what version 1 says where there is no limit is near 2**63


def total_memory() -> int:
    """Return the bytes that a process here can have at most: the machine's, or its control group's limit."""
    return min([_machine("MemTotal", "SC_PHYS_PAGES"), *(limit for limit, _ in _limits())])


def available_memory() -> int:
    """Return the bytes that are to be had now: files that the system caches can be dropped, and count.

    A batch system, such as Slurm, holds a job to less than the machine has, by control groups.
    """
    free = _machine("MemAvailable", "SC_AVPHYS_PAGES")
    return min([free, *(max(0, limit - used) for limit, used in _limits())])


def peak_resident() -> int:
    """Return the bytes that this process had resident at its peak.

    By Linux's own account where there is one, which is right to some hundred kB: what getrusage says there
    begins with the peak of whatever started the process.
    """
    if peak := peak_of("self"):
        return peak
    return peak_by(resource.getrusage(resource.RUSAGE_SELF))


def peak_by(used: resource.struct_rusage) -> int:
    """Return the peak in bytes that the system's account of a process has, in units of its own."""
    return used.ru_maxrss if sys.platform == "darwin" else used.ru_maxrss * 1024


def peak_of(process: int | str) -> int:
    """Return the bytes that a running process had resident at its peak; 0 where the system does not tell."""
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", (PROC / f"{process}" / "status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return 0


def _machine(name: str, page_count: str) -> int:
    """Return a number of bytes from Linux's own account, else from the system's count of pages."""
    with suppress(OSError):
        found = re.search(rf"^{name}: +(\d+) kB", (PROC / "meminfo").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    for pages in (page_count, "SC_PHYS_PAGES"):  # macOS does not count the free ones
        with suppress(OSError, ValueError):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf(pages)
    return UNLIMITED


def _limits() -> Iterator[tuple[int, int]]:
    """Yield (limit, used) in bytes of the control groups that this process is in, of either version."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            yield from _of_group(CGROUPS, path, ("memory.max", "memory.current", "file"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
            yield from _of_group(CGROUPS / "memory", path, names)


def _of_group(root: Path, path: str, names: tuple[str, str, str]) -> Iterator[tuple[int, int]]:
    """Yield the limits of a group and of all above it; in a container, its own is the root."""
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        with suppress(OSError, ValueError):
            limit, used = (int((folder / name).read_text()) for name in names[:2])
            if limit < UNLIMITED:
                yield limit, used - _cached(folder, names[2])
        if folder == root:
            return


def _cached(folder: Path, name: str) -> int:
    """Return the bytes of files among what a group uses."""
    with suppress(OSError):
        found = re.search(rf"^{name} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
        if found:
            return int(found[1])
    return 0
