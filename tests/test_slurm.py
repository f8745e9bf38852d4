"""A real Slurm of one node with two pretended GPUs, started here, and a batch on it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import ROOT

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue")
LACKING = [name for name in COMMANDS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]

pytestmark = [
    pytest.mark.slow,  # it waits for a scheduler
    pytest.mark.skipif(bool(LACKING), reason=f"there is no Slurm here: {', '.join(LACKING)}"),
    pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() != 0, reason="slurmd runs as root only"),
]

# A requeued job waits as long as credentials live, two minutes by default: here the five that are the least.
CONFIGURATION = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=20
MpiDefault=none
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 Gres=gpu:2 State=UNKNOWN
PartitionName=usual Nodes={host} Default=YES MaxTime=60 PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes={host} MaxTime=60 PriorityTier=2
"""


def wait_for(what: Callable[[], object], seconds: float = 600) -> None:
    """Wait until something is true, and fail if it never is."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


def told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def field(job: str, name: str) -> str:
    found = re.search(rf"\b{name}=(\S+)", told("scontrol", "show", "job", job))
    assert found is not None
    return found[1]


def has_restarted(element: str) -> bool:
    return field(element, "Restarts") == "1"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm of our own beside any other: own configuration, key, socket, ports and state."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    host = socket.gethostname().partition(".")[0]
    configuration = CONFIGURATION.format(folder=folder, host=host, ports=ports)
    (folder / "slurm.conf").write_text(configuration)
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File=/dev/null,/dev/zero\n")
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
    munged += [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT))
        daemons = []
        try:
            for command in (munged, ["slurmctld", "-D", "-i"], ["slurmd", "-D"]):
                with (folder / f"{command[0]}.out").open("wb") as log:
                    daemons.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
                if command is munged:
                    wait_for((folder / "munge.socket").exists, 20)
            wait_for(
                lambda: (
                    "idle"
                    in subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout
                ),
                30,
            )
            yield
            subprocess.run(["scancel", "--user=root"], capture_output=True)
            wait_for(lambda: not told("squeue", "--noheader"), 60)
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
                with suppress(ProcessLookupError):  # its helpers, if it left any
                    os.killpg(daemon.pid, signal.SIGKILL)
    assert not subprocess.run(["pgrep", "-f", str(folder)], capture_output=True).stdout


class Stories:
    """Short drafts with the embedded model, and the command on them."""

    OPTIONS = ("--device", "cpu", "--steps", "4", "--seconds", "0.5")

    def __init__(self, folder: Path, scenes: dict[str, int]) -> None:
        self.folder, self.out = folder, folder / "the films"
        places = ("in Central Park", "in the subway train")
        self.paths: list[str] = []
        for name, count in scenes.items():
            pairs = [f'  - ["a corgi dog {places[n % 2]}", "a corgi dog is sitting"]\n' for n in range(count)]
            path = folder / f"{name}.yaml"
            path.write_text(f"render: {{seed: {len(self.paths)}}}\nscenes:\n{''.join(pairs)}")
            self.paths.append(str(path))

    def run(self, command: str, *arguments: str, out: Path | None = None) -> subprocess.CompletedProcess[str]:
        words = [
            sys.executable,
            "-m",
            "storyreel",
            command,
            *arguments,
            *self.OPTIONS,
            "--out",
            str(out or self.out),
        ]
        return subprocess.run(words, capture_output=True, text=True)

    def submit(self, *options: str) -> str:
        done = self.run("batch", *self.paths, "--slurm", *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def status(self) -> dict[str, dict[str, object]]:
        done = self.run("batch", "--status", "--json")
        assert done.returncode == 0, done.stderr
        rows: dict[str, dict[str, object]] = json.loads(done.stdout)
        return rows

    def has_begun(self, name: str) -> bool:
        return any((self.out / name / "segments").glob("01-*.mp4"))

    def log(self, element: str) -> str:
        return (self.out / "slurm" / f"{element}.log").read_text()


@pytest.fixture
def stories(cluster: None, tmp_path: Path) -> Stories:
    return Stories(tmp_path, {"a long": 12, "it's long": 12, "short": 2, "$HOME": 2})


def test_a_batch_survives_being_stopped(stories: Stories) -> None:
    """Four stories on two GPUs; the two that run are told to stop, as before the end of their time."""
    job = stories.submit()
    elements = [f"{job}_{element}" for element in range(4)]
    names = list(stories.status())
    wait_for(lambda: stories.has_begun(names[0]) and stories.has_begun(names[1]))
    rows = stories.status()
    assert [row["state"] for row in rows.values()] == ["running", "running", "waiting", "waiting"]
    assert [row["slurm"] for row in rows.values()] == ["RUNNING", "RUNNING", "PENDING", "PENDING"]
    for element in elements[:2]:
        with subprocess.Popen(["scancel", "--signal=USR1", "--batch", element]) as scancel:
            wait_for(partial(has_restarted, element), 30)
            scancel.kill()  # it would try again until it hits the next run too
    wait_for(lambda: all(field(element, "JobState") == "COMPLETED" for element in elements))
    assert [field(element, "Restarts") for element in elements] == ["1", "1", "0", "0"]
    assert {row["state"] for row in stories.status().values()} == {"done"}
    assert "of 12 scenes are there already" in stories.log(elements[0])
    straight = stories.folder / "straight"
    assert stories.run("render", *stories.paths, out=straight).returncode == 0
    for name in names:
        film = Path(name) / f"{name}.mp4"
        assert (stories.out / film).read_bytes() == (straight / film).read_bytes()


def test_a_batch_survives_preemption_and_ends_when_it_is_cancelled(cluster: None, tmp_path: Path) -> None:
    stories = Stories(tmp_path, {"long": 99})
    job = stories.submit()
    (name,) = stories.status()
    wait_for(lambda: stories.has_begun(name))
    urgent = told(
        "sbatch", "--parsable", "--partition=urgent", "--ntasks=4", "--output=/dev/null", "--wrap=sleep 1"
    ).strip()
    wait_for(lambda: field(urgent, "JobState") == "COMPLETED", 40)
    element = f"{job}_0"
    wait_for(lambda: field(element, "JobState") == "RUNNING")
    assert has_restarted(element)
    finished = len(list((stories.out / name / "segments").glob("??-*.mp4")))
    assert finished > 0
    told("scancel", element)
    wait_for(lambda: field(element, "JobState") == "CANCELLED")
    time.sleep(8)  # longer than a requeued job waits
    assert field(element, "JobState") == "CANCELLED"
    (row,) = stories.status().values()
    assert (row["state"], row["slurm"]) == ("failed", "CANCELLED")


def test_what_slurm_itself_refuses(stories: Stories) -> None:
    done = stories.run("batch", *stories.paths, "--slurm", "--partition", "no such")
    assert done.returncode == 1
    assert "invalid partition specified: no such" in done.stderr
    assert done.stdout == ""
