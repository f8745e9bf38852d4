"""What memory a process can have: the machine's, or what control groups of either version leave of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from storyreel.models import host

MEMINFO = "MemTotal:       65536000 kB\nMemFree:         1000000 kB\nMemAvailable:   32768000 kB\n"
NO_LIMIT = 9223372036854771712  # as version 1 has it


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("proc/self", "cgroup"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO)
    monkeypatch.setattr(host, "PROC", tmp_path / "proc")
    monkeypatch.setattr(host, "CGROUPS", tmp_path / "cgroup")
    return tmp_path


def group(machine: Path, path: str, files: dict[str, object]) -> None:
    folder = machine / "cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def test_without_limits_it_is_the_machines(machine: Path) -> None:
    assert host.total_memory() == 65536000 * 1024
    assert host.available_memory() == 32768000 * 1024
    (machine / "proc" / "self" / "cgroup").write_text("0::/user.slice\n")
    group(machine, "user.slice", {"memory.max": "max", "memory.current": 10**9})
    assert host.total_memory() == 65536000 * 1024


def test_a_job_has_what_its_group_or_one_above_leaves_it(machine: Path) -> None:
    """As Slurm makes them: a limit for the job, and none for the step within it."""
    (machine / "proc" / "self" / "cgroup").write_text("0::/slurm/job_7/step_0\n")
    group(machine, "slurm/job_7/step_0", {"memory.max": "max", "memory.current": 3 * 10**9})
    usage = {"memory.max": 16 * 10**9, "memory.current": 12 * 10**9}
    group(machine, "slurm/job_7", usage | {"memory.stat": f"anon 1\nfile {9 * 10**9}\nfile_mapped 5"})
    assert host.total_memory() == 16 * 10**9
    assert host.available_memory() == (16 - 12 + 9) * 10**9  # files that are cached can be dropped


def test_version_1_of_control_groups_is_known(machine: Path) -> None:
    (machine / "proc" / "self" / "cgroup").write_text("5:cpu,cpuacct:/\n4:memory:/job\n1:name=systemd:/\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    group(machine, "memory", dict(zip(names, (NO_LIMIT, 5 * 10**9), strict=True)))
    group(machine, "memory/job", dict(zip(names, (NO_LIMIT, 10**9), strict=True)))
    assert host.total_memory() == 65536000 * 1024
    group(machine, "memory/job", dict(zip(names, (8 * 10**9, 10**9), strict=True)))
    assert host.total_memory() == 8 * 10**9
    assert host.available_memory() == 7 * 10**9
    group(machine, "memory/job", {"memory.usage_in_bytes": 9 * 10**9})  # above its limit for a moment
    assert host.available_memory() == 0


def test_in_a_container_the_group_is_the_root(machine: Path) -> None:
    """Its path may be one that is only known outside."""
    (machine / "proc" / "self" / "cgroup").write_text("0::/docker/abc\n")
    group(machine, "", {"memory.max": 4 * 10**9, "memory.current": 10**9})
    assert host.total_memory() == 4 * 10**9
    assert host.available_memory() == 3 * 10**9


def test_where_linux_tells_nothing_the_system_is_asked(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "proc" / "meminfo").unlink()

    def sysconf(name: str) -> int:
        if name == "SC_AVPHYS_PAGES":  # as on macOS
            raise ValueError("unrecognized configuration name")
        return {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}[name]

    monkeypatch.setattr("os.sysconf", sysconf)
    assert host.total_memory() == host.available_memory() == 4096000
