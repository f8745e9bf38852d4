"""The options that several commands share, each written once, as the fields of a dataclass."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from storyreel.errors import UsageError
from storyreel.story.planning import Overrides

T = TypeVar("T")

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Weights = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A folder of the model's weights, instead of what was pulled."),
]

Quantize = Annotated[
    str | None,
    typer.Option(
        help="none or fp8: the transformer's weights in half of the memory, and other pictures, "
        "nearly as good. Default: none."
    ),
]


def with_options(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command the fields of each dataclass that it takes as options of its own.

    typer reads a function's signature; this one names the fields where the command names the dataclass.
    """
    hints = get_type_hints(command, include_extras=True)
    grouped = {name: kind for name, kind in hints.items() if hasattr(kind, "__dataclass_fields__")}
    parameters = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind = grouped.get(parameter.name)
        parameters += _parameters(kind) if kind else [parameter]

    @wraps(command)
    def flat(**given: Any) -> T:
        for name, kind in grouped.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        return command(**given)

    keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    flat.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def _parameters(kind: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    option = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(field.name, option, default=field.default, annotation=hints[field.name])
        for field in fields(kind)
    ]


def check_device(device: str) -> None:
    """Raise UsageError for what cannot be a device's name."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise UsageError(f"there is no device {device!r}", "Use auto, cpu, cuda or cuda:N.")


@dataclass(frozen=True)
class FilmOptions:
    """What decides a film, beside its story."""

    model: Annotated[str | None, typer.Option(help="See: storyreel models. Default: mini.")] = None
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Default: 0.")] = None
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels. Default: the model's.")] = None
    seconds: Annotated[float | None, typer.Option(help="Length of scenes that name none.")] = None
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Denoising steps.")] = None
    guidance: Annotated[float | None, typer.Option(min=1, max=100, help="1 means none.")] = None
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Set one of the method's settings; may be repeated."),
    ] = None
    speed: Annotated[str | None, typer.Option(help="exact, balanced or fast. Default: exact.")] = None
    quantize: Quantize = None
    weights: Weights = None
    device: Device = "auto"

    def __post_init__(self) -> None:
        check_device(self.device)

    def overrides(self) -> Overrides:
        """Return what wins over the stories' own settings."""
        return Overrides(
            self.model,
            self.seed,
            self.size,
            self.seconds,
            self.steps,
            self.guidance,
            tuple(self.method or ()),
            speed=self.speed,
            quantize=self.quantize,
            weights=self.weights,
        )


@dataclass(frozen=True)
class RenderOptions(FilmOptions):
    """How films are rendered, and where they go."""

    out: Annotated[Path, typer.Option(help="Folder for the films; each gets one of its own.")] = Path("out")
    without: Annotated[
        str, typer.Option(metavar="PARTS", help="Leave out parts of the method: dipw, twb, sar or all.")
    ] = ""
    memory: Annotated[
        str,
        typer.Option(
            help="What stays on the GPU: high, all of the model; balanced, the transformer; low, of that "
            "only the block that works. None changes the film. auto: by what is free.",
        ),
    ] = "auto"
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the model first: for long films on a GPU.")
    ] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Render finished scenes again.")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory not in ("auto", "high", "balanced", "low"):
            raise UsageError(f"there is no memory mode {self.memory!r}", "Use auto, high, balanced or low.")

    def overrides(self) -> Overrides:
        """Return what wins over the stories' own settings."""
        parts = frozenset(part.strip() for part in self.without.split(",") if part.strip())
        return replace(super().overrides(), without=parts)

    def arguments(self) -> Iterator[str]:
        """Yield the words that say the same on a command line, folders with their whole path."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default or value == []:
                continue
            for one in value if isinstance(value, list) else [value]:
                word = Path(one).absolute() if isinstance(one, Path) else one
                yield f"--{field.name}" if one is True else f"--{field.name}={word}"


@dataclass(frozen=True)
class SlurmOptions:
    """What a Slurm job asks for, one story an element."""

    gpus: Annotated[int, typer.Option(min=0, help="Slurm: GPUs for a story.")] = 1
    time: Annotated[str | None, typer.Option(metavar="TIME", help="Slurm: longest run of a story.")] = None
    partition: Annotated[str | None, typer.Option(metavar="NAME", help="Slurm: partition.")] = None
    mem: Annotated[str | None, typer.Option(metavar="SIZE", help="Slurm: memory for a story.")] = None
    cpus: Annotated[int | None, typer.Option(min=1, help="Slurm: CPUs for a story.")] = None
    max_parallel: Annotated[int | None, typer.Option(min=1, help="Slurm: stories at a time.")] = None
    sbatch_option: Annotated[
        list[str] | None,
        typer.Option(metavar="--KEY=VALUE", help="Slurm: as after #SBATCH in a script; may be repeated."),
    ] = None

    def directives(self, stories: int) -> Iterator[str]:
        """Yield what follows ``#SBATCH`` in the script of a job of so many stories; the last of two wins."""
        limit = f"%{self.max_parallel}" if self.max_parallel else ""
        yield f"--array=0-{stories - 1}{limit}"
        asked = {
            "gpus": self.gpus or None,  # on many clusters even --gpus=0 needs GPUs to be known
            "time": self.time,
            "partition": self.partition,
            "mem": self.mem,
            "cpus-per-task": self.cpus,
        }
        yield from (shlex.quote(f"--{key}={value}") for key, value in asked.items() if value is not None)
        yield from self.sbatch_option or ()
