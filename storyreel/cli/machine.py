"""The command info: what this machine has and can do, and what to do where something is missing.

It imports nothing that takes long, and whatever it cannot find out is one of its answers.
"""

from __future__ import annotations

import csv
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Annotated, Any

import typer

from storyreel import __version__
from storyreel.cli.defaults import PREFIX, defaults_file, read_defaults, unknown_variables
from storyreel.cli.help import Command
from storyreel.cli.options import USUAL_OUT, Json, RenderOptions, as_command, check_weights
from storyreel.cli.results import Checked, print_json
from storyreel.errors import StoryreelError, UsageError, counted, printable
from storyreel.models.host import available_memory, total_memory
from storyreel.models.specs import MODELS, find_model, hub_cache
from storyreel.story.schema import parse_story

PACKAGES = ("torch", "diffusers", "transformers")
PATIENCE = 0.5  # seconds for nvidia-smi to answer
ROOM = 2e9  # bytes that should be free on a disk
ASKED = "name,memory.total,compute_cap"
FLASH = 8.0  # the compute capability from which torch has a flash kernel

Gpu = tuple[str, str, float]  # name, memory in words, compute capability: 0 if it is not known


def info(
    out: Annotated[
        Path | None, typer.Argument(help="Where films are to go. Default: out.", metavar="OUT")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what this machine has, from GPU to ffmpeg, and what to do where something is wrong."""
    place = out or _usual_place()
    gpus = cache(_gpus)  # asked once
    checks: dict[str, Callable[[], Checked]] = {
        "storyreel": _versions,
        "packages": _packages,
        "defaults": _defaults,
        "device": lambda: _device(gpus()),
        "attention": lambda: _attention(gpus()),
        "memory": _memory,
        "models": _models,
        "cache": lambda: _disk(hub_cache(), "Set HF_HOME to a folder with more room."),
        "films": lambda: _disk(place, "Choose another --out, or see: storyreel clean"),
        "ffmpeg": _ffmpeg,
        "voice": _voice,
        "slurm": _slurm,
    }
    found = {name: _answer(check) for name, check in checks.items()}
    if as_json:
        print_json(found)
        return
    for name, checked in found.items():
        print(printable(f"{name + ':':11}{checked['found']}"))
        if checked["remedy"]:
            print(printable(f"{'':11}{'' if checked['ok'] else '! '}{checked['remedy']}"))


def _answer(check: Callable[[], Checked]) -> Checked:
    """Return what a check finds; a check that fails is an answer too."""
    try:
        return check()
    except StoryreelError as error:
        return _fault(error.message, error.remedy)
    except Exception as error:  # whatever it is: this command is for machines on which something is wrong
        return _fault(f"cannot be found out: {type(error).__name__}: {error}", "")


def _good(found: str, remedy: str = "") -> Checked:
    return {"ok": True, "found": found, "remedy": remedy}


def _fault(found: str, remedy: str) -> Checked:
    return {"ok": False, "found": found, "remedy": remedy}


def _versions() -> Checked:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return _good(f"{__version__}, {python}, {platform.system()} {platform.release()}, {platform.machine()}")


def _packages() -> Checked:
    installed = []
    for name in PACKAGES:
        try:
            installed.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            return _fault(f"{name} is not installed", "Install storyreel again, with what it needs.")
    return _good(", ".join(installed))


def _defaults() -> Checked:
    """Say which variables and which file hold defaults here, and what render would refuse of them."""
    for name, remedy in unknown_variables():
        return _fault(f"{name} is no variable of storyreel", remedy)
    render = typer.Typer(add_completion=False)
    render.command(cls=Command)(as_command(_plan_something))
    typer.main.get_command(render).main([], standalone_mode=False)
    names = sorted(name for name in os.environ if name.startswith(PREFIX))
    file = defaults_file(())
    return _good(", ".join([*names, *([str(file)] if file else [])]) or "no variables, no file here")


def _plan_something(options: RenderOptions) -> None:
    """Plan a story by the defaults alone. Raises UsageError, and MissingError for what is to sign it."""
    check_weights(options.weights)
    options.signer()
    options.plan(parse_story("story", b"scenes: [[a park, a fox sits]]"), "story")


def _usual_place() -> Path:
    """Return where films go without --out; a file of defaults that cannot be read is told elsewhere."""
    said: dict[str, Any] = {}
    with suppress(UsageError):
        said = read_defaults(file) if (file := defaults_file(())) else {}
    return Path(os.environ.get(f"{PREFIX}OUT") or said.get("out") or USUAL_OUT)


def gpus_in_words() -> str:
    """Return the GPUs of this machine and their memory."""
    try:
        return "; ".join(f"{name}, {memory}" for name, memory, _ in _gpus()) or "no NVIDIA GPU"
    except ValueError:  # the driver says something else
        return "a GPU that the driver does not describe"


def _gpus() -> list[Gpu]:
    """Return the GPUs that the driver knows."""
    try:
        command = ["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=True, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):  # the driver says at once which there are
        facts = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        names = [re.search(r"^Model:\s*(.*)$", path.read_text(), re.MULTILINE) for path in facts]
        return [(name[1], "memory unknown", 0.0) for name in names if name]
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return [(name, memory, float(capability)) for name, memory, capability in rows]


def _torch_cuda() -> str:
    """Return which CUDA torch was built for, "" for none; torch is not imported."""
    found = util.find_spec("torch")
    if found is None or found.origin is None:
        return ""
    text = (Path(found.origin).parent / "version.py").read_text()
    built = re.search(r"^cuda\b.*= *['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return built[1] if built else ""


def _device(gpus: list[Gpu]) -> Checked:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    cpu = f"CPU, {counted(cores or 1, 'core')}" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    cuda = _torch_cuda()
    if not gpus:
        return _good(f"{cpu}; no NVIDIA GPU", "The model mini renders here; larger ones need a GPU.")
    names = "; ".join(f"{name}, {memory}" for name, memory, _ in gpus)
    if not cuda:
        return _fault(f"{names}, but torch is built for the CPU", "Install torch for CUDA: pytorch.org")
    return _good(f"{names}; torch for CUDA {cuda}; {cpu}")


def _attention(gpus: list[Gpu]) -> Checked:
    if gpus and not gpus[0][2]:
        return _good("not known: the driver does not say what the GPU can do")
    if gpus and gpus[0][2] >= FLASH:
        return _good("torch's flash kernel")
    if gpus:
        words = f"compute capability {gpus[0][2]:g}: torch has no flash kernel for it"
        return _fault(words, f"A GPU of capability {FLASH:g} (Ampere) or newer is much faster.")
    flags = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
    slow = "" if flags & {"avx512_bf16", "amx_bf16", "bf16"} or not flags else "; bf16 is emulated, and slow"
    return _good(f"torch's CPU kernel{slow}")


def _memory() -> Checked:
    """Say what this process can have: a batch system may give a job less than the machine has."""
    total, free = total_memory() / 1e9, available_memory() / 1e9
    words = f"{total:.1f} GB, {free:.1f} GB of it free"
    return _good(words) if free > 1 else _fault(words, "mini needs about 1 GB: end something else first.")


def _models() -> Checked:
    there = [name for name in MODELS if find_model(name).is_there]
    if "mini" not in there:
        return _fault("the model that comes with storyreel is not there", find_model("mini").remedy)
    return _good(f"{', '.join(there)} of {', '.join(MODELS)}", "More: storyreel pull MODEL")


def _disk(place: Path, remedy: str) -> Checked:
    """Say how much room there is in a folder that may not be there yet."""
    folder = next(path for path in (place, *place.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    words = f"{place}: {free / 1e9:.1f} GB free"
    if not os.access(folder, os.W_OK):
        return _fault(f"{place}: cannot be written", remedy)
    return _good(words) if free > ROOM else _fault(words, remedy)


def _ffmpeg() -> Checked:
    from storyreel.film import ffmpeg

    return _good(f"{ffmpeg.version()}, {ffmpeg.program()}")


def _voice() -> Checked:
    from storyreel.film.voice import PACKAGE
    from storyreel.origin import with_extra

    try:
        return _good(f"{PACKAGE} {metadata.version(PACKAGE)}")
    except metadata.PackageNotFoundError:
        return _good("not installed: recordings are heard, texts are not spoken", with_extra("voice"))


def _slurm() -> Checked:
    if shutil.which("sbatch") is None:
        return _good("no sbatch here: submit works where Slurm is installed")
    if shutil.which("scontrol") is None:
        return _fault("sbatch, but no scontrol", "Without it, a story whose time is up is not queued again.")
    return _good("sbatch and scontrol")
