"""The options that several commands share, each written once, as the fields of a dataclass."""

from __future__ import annotations

import inspect
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import typer

from storyreel.cli import telling
from storyreel.cli.defaults import PREFIX, source_of, unknown_variables
from storyreel.cli.help import LAST
from storyreel.errors import ScriptError, UsageError
from storyreel.models.device_errors import check_device
from storyreel.models.specs import model_names, plugged_model
from storyreel.plugins import Plugin, using
from storyreel.story.casting import CastFile, read_casting, read_casts
from storyreel.story.naming import check_film_name, film_name
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import Casting, Story
from storyreel.story.sounds import Heard
from storyreel.story.vocabulary import warnings_of

if TYPE_CHECKING:
    from storyreel.film.signature import Signer

T = TypeVar("T")

FILM, WORK, SLURM = "Film", "Where and how", "Slurm"  # groups of options

Speed = Literal["exact", "balanced", "fast"]
Quantized = Literal["none", "fp8"]
MemoryMode = Literal["auto", "high", "balanced", "low"]
DEVICES = ("auto", "cpu", "cuda")


def option(form: str | Any, words: str, group: str = "", variable: str = "", **more: Any) -> Any:
    """Return an option that takes a value: its form, or its choices; and the variable with its default."""
    form = "|".join(get_args(form)) if get_origin(form) is Literal else form
    more |= {"envvar": f"{PREFIX}{variable}", "show_envvar": False} if variable else {}
    return typer.Option(metavar=form, help=words, rich_help_panel=group or None, **more)


def flag(name: str, words: str, group: str = "") -> Any:
    """Return an option that takes no value."""
    return typer.Option(name, help=words, rich_help_panel=group or None)


def _models() -> list[str]:
    return list(model_names())


def _devices() -> list[str]:
    return list(DEVICES)


Plugins = Annotated[
    list[str] | None,
    option(
        "MODULE",
        "Have what a module, or a FILE.py, adds: formulas, noise levels, scorers, metrics, models; may be "
        "repeated.",
        WORK,
    ),
]
Stories = Annotated[
    list[Path],
    typer.Argument(help="YAML stories; - is standard input.", metavar="STORY…", is_eager=True),
]
SomeStories = Annotated[
    list[Path] | None,
    typer.Argument(help="YAML stories; - is standard input.", metavar="STORY…", is_eager=True),
]
Json = Annotated[bool, flag("--json", "Print the result as JSON; storyreel schema --of describes it.", LAST)]
DryRun = Annotated[bool, flag("--dry-run", "Print the plan and load no model.", WORK)]
Attention = Annotated[
    str | None,
    option(
        "NAME",
        "The attention backend of diffusers that computes, as in _native_cudnn, flash or sage. "
        "Default: DIFFUSERS_ATTN_BACKEND, or torch's own choice.",
        WORK,
    ),
]
Model = Annotated[
    str | None,
    option("NAME", "See: storyreel models. Default: mini.", FILM, "MODEL", autocompletion=_models),
]
Size = Annotated[str | None, option("WxH", "Pixels. Default: the model's.", FILM, "SIZE")]
Steps = Annotated[
    int | None,
    option("N", "Denoising steps. Default: the model's.", FILM, "STEPS", min=1, max=1000),
]
Quantize = Annotated[
    Quantized | None,
    option(
        Quantized,
        "fp8: the transformer's weights in half of the memory, and other pictures. Default: none.",
        FILM,
        "QUANTIZE",
    ),
]
Cast = Annotated[
    list[str] | None,
    option(
        "MEMBER=NAME",
        "Who plays a member of the story's cast, as in first='a red panda'; also MEMBER.possessive=his, "
        "MEMBER.noun=panda, or a YAML file with a cast; may be repeated.",
        FILM,
    ),
]
Casts = Annotated[
    Path | None,
    option("DIR", "Each story once with each cast of a folder that is for it, as STORY-CAST.", FILM),
]
LoraFiles = Annotated[
    list[Path] | None,
    option(
        "FILE[=WEIGHT]",
        "A LoRA, merged into the model's weights, in all scenes that name none; may be repeated.",
        FILM,
        "LORA",
    ),
]
Weights = Annotated[
    Path | None,
    option("DIR", "A folder of the model's weights, instead of what was pulled.", WORK, "WEIGHTS"),
]
Device = Annotated[
    str, option("DEVICE", "auto, cpu, cuda or cuda:N.", WORK, "DEVICE", autocompletion=_devices)
]
Memory = Annotated[
    MemoryMode,
    option(
        MemoryMode,
        "What stays on the GPU: high, all of the model; balanced, the transformer; low, of that "
        "only the block that works. None changes the film. auto: the highest that fits the film.",
        WORK,
        "MEMORY",
    ),
]
Strict = Annotated[
    bool,
    flag("--strict", "What the model cannot draw, where that is known, is a fault, not a warning.", WORK),
]
Out = Annotated[Path, option("DIR", "Folder for the films; each gets one of its own.", WORK, "OUT")]
USUAL_OUT = Path("out")
Name = Annotated[
    str | None, option("NAME", "The film's name, of one story alone. Default: the file's.", WORK)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors alone.", rich_help_panel=LAST)]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Also when each thing happens, and which defaults count.",
        rich_help_panel=LAST,
    ),
]


def as_command(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command the fields of each dataclass that it takes as options of its own, and -q and -v.

    A command that takes the ``context`` gets it; its ``obj`` are the words that were typed.

    typer reads a function's signature; this one names the fields where the command names the dataclass.
    """
    hints = get_type_hints(command, include_extras=True)
    grouped = {name: kind for name, kind in hints.items() if hasattr(kind, "__dataclass_fields__")}
    options = {name: _options(kind) for name, kind in grouped.items()}
    types: dict[str, Any] = {"context": typer.Context}
    defaults: dict[str, Any] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if kind := grouped.get(name):
            types |= options[name]
            defaults |= {f.name: f.default for f in fields(kind) if f.name in types}
        else:
            types[name], defaults[name] = hints[name], parameter.default
    types |= {"quiet": Quiet, "verbose": Verbose}
    defaults |= {"quiet": False, "verbose": False}

    @wraps(command)
    def flat(context: typer.Context, **given: Any) -> T:
        exclude("--quiet", given["quiet"], {"--verbose": given["verbose"]})
        with telling.loudness(given.pop("verbose") - given.pop("quiet")):
            if any(getattr(param, "envvar", None) for param in context.command.params):
                for name, remedy in unknown_variables():
                    telling.note(f"{name} is no variable of storyreel. {remedy}")
            plugged = given.get("plugin")
            sources = {name: source_of(context, name) for name in given}
            for name, source in sources.items():
                if source:
                    telling.detail(f"{name}: {given[name]}, from {source}")
            for name, kind in grouped.items():
                values = {key: given.pop(key) for key in options[name]}
                if "sources" in kind.__dataclass_fields__:
                    values["sources"] = {key: sources[key] for key in options[name] if sources[key]}
                given[name] = kind(**values)
            if "context" in hints:
                given["context"] = context
            with using(plugged or ()) as offered:
                _look_at(offered)
                return command(**given)

    keyword = inspect.Parameter.KEYWORD_ONLY
    flat.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name, keyword, default=defaults.get(name, inspect.Parameter.empty), annotation=kind
            )
            for name, kind in types.items()
        ]
    )
    flat.__annotations__ = types
    return flat


def _look_at(offered: Sequence[Plugin]) -> None:
    """Raise UsageError for a metric or a model that is none; of functions, `using` has seen to that."""
    for plugin in offered:
        if plugin.kind == "models":
            plugged_model(plugin)
        elif plugin.kind == "metrics":
            from storyreel.evaluation.metrics import plugged_measure

            plugged_measure(plugin)


def _options(kind: Any) -> dict[str, Any]:
    """Return the types of those fields that are options."""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: hints[f.name] for f in fields(kind) if get_origin(hints[f.name]) is Annotated}


def exclude(option: str, given: bool, others: dict[str, bool]) -> None:
    """Raise UsageError if an option is given together with one that contradicts it."""
    if given and (against := [other for other, is_given in others.items() if is_given]):
        raise UsageError(f"{option} and {' and '.join(against)} exclude each other", "Give one of them.")


def check_weights(weights: Path | None) -> None:
    """Raise UsageError for what is no folder."""
    if weights is not None and not weights.is_dir():
        words = f"weights: {weights} is not a folder"
        raise UsageError(words, "Name the folder that holds the model's parts: transformer, vae and so on.")


@dataclass(frozen=True)
class FilmOptions:
    """What decides a film, beside its story.

    ``sources`` says of the options that the environment or a file has set which variable or file it was.
    """

    model: Model = None
    seed: Annotated[int | None, option("N", "Default: 0.", FILM, "SEED", min=0, max=2**63 - 1)] = None
    size: Size = None
    seconds: Annotated[
        float | None, option("S", "Length of scenes that name none. Default: the model's.", FILM, "SECONDS")
    ] = None
    steps: Steps = None
    guidance: Annotated[
        float | None,
        option("G", "1 means none. Default: the model's.", FILM, "GUIDANCE", min=1, max=100),
    ] = None
    negative: Annotated[
        str | None,
        option(
            "TEXT", "What guidance leads away from; '' is nothing. Default: the model's.", FILM, "NEGATIVE"
        ),
    ] = None
    shift: Annotated[
        float | None,
        option(
            "S",
            "Of noise levels, for Wan and HunyuanVideo (flow_shift). Default: the model's, by size.",
            FILM,
            "SHIFT",
        ),
    ] = None
    method: Annotated[
        list[str] | None, option("KEY=VALUE", "One of the method's settings; may be repeated.", FILM)
    ] = None
    speed: Annotated[
        Speed | None,
        option(Speed, "How many steps are computed, not guessed. Default: exact.", FILM, "SPEED"),
    ] = None
    quantize: Quantize = None
    cast: Cast = None
    lora: LoraFiles = None
    weights: Weights = None
    device: Device = "auto"
    plugin: Plugins = None
    strict: bool = False  # an option of those commands that name it, and so is the next
    casts: Path | None = None
    sources: dict[str, str] | None = None

    def __post_init__(self) -> None:
        check_device(self.device)

    def overrides(self, story: Story | None = None) -> Overrides:
        """Return what wins over a story's own settings: what the command line says.

        What the environment or a file says is a default, which counts where the story says nothing.
        """
        said = story.render if story else None
        values = {name: getattr(self, name) for name in Overrides.__dataclass_fields__ if name in vars(self)}
        for name in self.sources or ():
            if getattr(said, name, None) is not None:
                values[name] = None
        values["lora"] = tuple(values["lora"]) if values["lora"] else None
        values["lora_source"] = (self.sources or {}).get("lora", "--lora")
        return Overrides(**values | {"method": tuple(self.method or ()), "without": self.parts()})

    def casting(self) -> Casting:
        """Return who plays instead of a story's own cast. Raises UsageError or ScriptError."""
        return read_casting(self.cast or ())

    def cast_files(self) -> tuple[CastFile, ...]:
        """Return the casts of which each makes a film of a story. Raises UsageError or ScriptError."""
        if self.casts is None:
            return ()
        exclude("--casts", True, {"--cast": bool(self.cast), "--name": bool(getattr(self, "name", None))})
        return read_casts(self.casts)

    def parts(self) -> frozenset[str]:
        """Return the parts of the method that are left out."""
        return frozenset()

    def heard(self, story: Story, name: str) -> Heard | None:
        """Return what is heard in a story, None where nothing is. Raises MissingError."""
        if not story.has_sound:
            return None
        from storyreel.film.hearing import hear

        out = getattr(self, "out", None)
        return hear(story, None if out is None else out / name)

    def plan(self, story: Story, name: str, warned: dict[str, ScriptError] | None = None) -> Plan:
        """Plan a story. Raises UsageError, ScriptError or MissingError.

        What its model cannot draw of it is kept in ``warned`` under its name, or raised if ``strict``.
        """
        plan = make_plan(story, name, self.overrides(story), self.heard(story, name))
        if plan.font is not None and plan.cards:
            from storyreel.film.cards import check_font

            check_font(plan)
        if warned is not None and (faults := warnings_of(story, plan.spec)):
            found = ScriptError(story.path, faults)
            if self.strict:
                raise found
            warned[name] = found
        return plan


@dataclass(frozen=True)
class CheckOptions(FilmOptions):
    """What decides whether a story is valid."""

    casts: Casts = None
    strict: Strict = False


@dataclass(frozen=True)
class ManyOptions(FilmOptions):
    """What decides many films of each story."""

    casts: Casts = None


@dataclass(frozen=True)
class OutOptions(FilmOptions):
    """What decides films, and where they are."""

    out: Out = USUAL_OUT
    name: Name = None
    without: Annotated[
        str, option("PARTS", "Leave out parts of the method: some of dipw, twb, identity, sar, or all.", FILM)
    ] = ""

    def film_name(self, story: Path, cast: str = "") -> str:
        """Return the name of a story's film, with a cast's name behind it where there are several."""
        return self.name or film_name(story, cast)

    def check_name(self, stories: Sequence[Path]) -> None:
        """Raise UsageError for a name that is none, or is meant for several films."""
        if self.name is not None:
            check_film_name(self.name)
            if len(stories) > 1:
                raise UsageError(
                    "--name is for one story", "Render them one by one, or choose another --out."
                )

    def parts(self) -> frozenset[str]:
        """Return the parts of the method that are left out."""
        return frozenset(part.strip() for part in self.without.split(",") if part.strip())


@dataclass(frozen=True)
class RenderOptions(OutOptions):
    """How films are rendered."""

    casts: Casts = None
    memory: Memory = "auto"
    compile: Annotated[
        bool | None,
        flag(
            "--compile/--no-compile",
            "Compile the model, which takes a while at first. Default: the large ones on a GPU.",
            WORK,
        ),
    ] = None
    attention: Attention = None
    overwrite: Annotated[
        bool, flag("--overwrite", "Render again what is asked for, though it is there.", WORK)
    ] = False
    strict: Strict = False
    sign_cert: Annotated[
        Path | None,
        option("FILE", "Sign the film: a C2PA manifest with this certificate, in PEM.", WORK, "SIGN_CERT"),
    ] = None
    sign_key: Annotated[
        Path | None,
        option(
            "FILE", "The key of that certificate, in PEM. It is read, and never copied.", WORK, "SIGN_KEY"
        ),
    ] = None

    def signer(self) -> Signer | None:
        """Return what signs the films, tried out; None if they are not signed. Raises as `open_signer`."""
        from storyreel.film.signature import open_signer

        return open_signer(self.sign_cert, self.sign_key)

    def arguments(self) -> Iterator[str]:
        """Yield the words that say the same on a command line, folders with their whole path.

        What a variable or a file has set is left to them: there, too, a story may say otherwise. ``casts`` is
        left out: every film has one cast.
        """
        for name in _options(RenderOptions):
            value = getattr(self, name)
            is_nothing = value is None or value == [] or (value == "" and name != "negative")
            if name in (self.sources or ()) or is_nothing or name == "casts":
                continue
            if value is False:
                if name == "compile":  # which is no default
                    yield "--no-compile"
                continue
            for one in value if isinstance(value, list) else [value]:
                is_path = isinstance(one, Path) or (name == "cast" and "=" not in one)
                is_path = is_path or (name == "plugin" and one.endswith(".py"))
                word = Path(one).absolute() if is_path else one
                option = f"--{name.replace('_', '-')}"
                yield option if one is True else f"{option}={word}"

    def environment(self) -> dict[str, str]:
        """Return the variables that set an option, with their values."""
        variables = {name: source for name, source in (self.sources or {}).items() if source.isidentifier()}
        words = {name: getattr(self, name) for name in variables}
        return {
            variables[name]: os.pathsep.join(
                str(one.absolute() if isinstance(one, Path) else one)
                for one in (value if isinstance(value, list) else [value])
            )
            for name, value in words.items()
        }


@dataclass(frozen=True)
class SheetOptions(OutOptions):
    """What decides a sheet: the film's own options, for which it stands."""

    memory: Memory = "auto"
    strict: Strict = False


@dataclass(frozen=True)
class SlurmOptions:
    """What a Slurm job asks for, one story an element."""

    # A story is rendered by one process. Several GPUs share a film under torchrun, whose exit codes say too
    # little for a job that is to be queued again.
    gpus: Annotated[
        int | None, option("N", "GPUs for a story: 1, or 0 for none. Default: 1.", SLURM, min=0, max=1)
    ] = None
    time: Annotated[str | None, option("TIME", "Longest run of a story, as in 4:00:00.", SLURM)] = None
    partition: Annotated[str | None, option("NAME", "Partition.", SLURM)] = None
    mem: Annotated[str | None, option("SIZE", "Memory for a story, as in 64G.", SLURM)] = None
    cpus: Annotated[int | None, option("N", "CPUs for a story.", SLURM, min=1)] = None
    max_parallel: Annotated[int | None, option("N", "Stories at a time.", SLURM, min=1)] = None
    sbatch_option: Annotated[
        list[str] | None,
        option("--KEY=VALUE", "Another option of sbatch; may be repeated.", SLURM),
    ] = None

    def directives(self, stories: int) -> Iterator[str]:
        """Yield what follows ``#SBATCH`` in the script of a job of so many stories; the last of two wins."""
        limit = f"%{self.max_parallel}" if self.max_parallel else ""
        yield f"--array=0-{stories - 1}{limit}"
        asked = {
            # On many clusters even --gpus=0 needs GPUs to be known.
            "gpus": None if self.gpus == 0 else self.gpus or 1,
            "time": self.time,
            "partition": self.partition,
            "mem": self.mem,
            "cpus-per-task": self.cpus,
        }
        yield from (shlex.quote(f"--{key}={value}") for key, value in asked.items() if value is not None)
        yield from self.sbatch_option or ()
