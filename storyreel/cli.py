"""The command line: it parses, calls and prints. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

import typer

from storyreel import __version__
from storyreel.errors import OutputError, ScriptError, StoryreelError, UsageError, printable
from storyreel.plan import Overrides, Plan, make_plan
from storyreel.story import Story, load_story, story_schema

if TYPE_CHECKING:
    from storyreel.models.base import MemoryMode
    from storyreel.render import Engine

T = TypeVar("T")

INTERRUPTED = 130

app = typer.Typer(
    help="Make one coherent film from a story of scene pairs.",
    epilog="Exit codes: 0 done; 1 failure; 2 usage; 65 bad script; 69 a model, weight or device is "
    "missing; 73 output cannot be written; 74 another process holds the output; 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Stories = Annotated[list[Path], typer.Argument(help="YAML stories.", metavar="STORY…", show_default=False)]
Weights = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A folder of the model's weights, instead of what was pulled."),
]
MemoryModes = Annotated[
    str,
    typer.Option(
        "--memory",
        help="What stays on the GPU: high, all of the model; balanced, the transformer; low, of that only "
        "the block that works. None changes the film. auto: by what is free.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

STARTER = """\
title: A fox in the park
cast:
  first: {name: a fox, possessive: its}
scenes:
  # Each scene is a pair: where we are, and what the character does there.
  - ["{first} is inside of the subway train", "{first} is sitting"]
  - ["{first} has arrived at Central Park", "{first} is sniffing the ground"]
  - scene: "{first} sees a red ball in Central Park"
    action: "{first} is looking up at the sky"
    seconds: 3
    transition: blend # or cut
render:
  model: mini
  seed: 7
"""


def main() -> None:
    """Run the command line; the one place where errors become exit codes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows only ASCII shows the rest as \u
            stream.reconfigure(errors="backslashreplace")
    if _crew_rank():  # the first process speaks for all
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # for the rest of its life
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except OSError as error:  # of our own printing: whoever read it has gone, or its disk is full
        if not isinstance(error, BrokenPipeError):
            _complain(f"error: cannot write the result: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more to flush
        code = 1 if isinstance(error, BrokenPipeError) else OutputError.exit_code
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        code = app(list(arguments), prog_name="storyreel", standalone_mode=False)
    except StoryreelError as error:
        _complain(str(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        # Only click's own errors can show themselves; anything else is a bug.
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        error.show()
        return int(error.exit_code)
    if code == INTERRUPTED:  # some versions of typer turn the interrupt into this code themselves
        _complain("interrupted; finished scenes are kept. Run the same command again to go on.")
    return code if isinstance(code, int) else 0


def _crew_rank() -> int | None:
    """Return which of torchrun's processes this is; None if there is no other."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) < 2:
        return None
    return int(os.environ["RANK"])


def _complain(text: str) -> None:
    print(text, file=sys.stderr)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"storyreel {__version__}")
        raise typer.Exit


@app.command()
def render(
    stories: Stories,
    model: Annotated[str | None, typer.Option(help="See: storyreel models. Default: mini.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the films; each gets one of its own.")] = Path("out"),
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Default: 0.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels. Default: the model's.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length of scenes that name none.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1, max=100, help="1 means none.")] = None,
    without: Annotated[
        str, typer.Option(metavar="PARTS", help="Leave out parts of the method: dipw, twb, sar or all.")
    ] = "",
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Set one of the method's settings; may be repeated."),
    ] = None,
    speed: Annotated[str | None, typer.Option(help="exact, balanced or fast. Default: exact.")] = None,
    weights: Weights = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    memory: MemoryModes = "auto",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the model first: for long films on a GPU.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and load no model.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Render finished scenes again.")] = False,
    as_json: Json = False,
) -> None:
    """Render each story to OUT/NAME/NAME.mp4; a second run does only what is missing.

    The options win over what the story's own render settings say.
    """
    _check_device(device)
    if memory not in ("auto", "high", "balanced", "low"):
        raise UsageError(f"there is no memory mode {memory!r}", "Use auto, high, balanced or low.")
    parts = frozenset(part.strip() for part in without.split(",") if part.strip())
    overrides = Overrides(
        model, seed, size, seconds, steps, guidance, tuple(method or ()), parts, speed, weights
    )
    # Every script is read before the first is rendered: a fault costs no work.
    plans, errors = _read(stories, partial(make_plan, overrides=overrides), _film_name)
    _raise_all(errors)
    _check_out(out)
    if dry_run:
        _print_plans(plans, as_json)
        return
    from storyreel.render import Engine

    mode = cast("MemoryMode", memory)
    with ExitStack() as stack:
        if crewed := _crew_rank() is not None:
            from storyreel import crew

            device = crew.own_device(device)
            stack.enter_context(crew.together(device))
            if crew.rank() > 0:
                helper, specs = (
                    Engine(device, mode, compiled=compiled),
                    {plan.spec.name: plan.spec for plan in plans.values()},
                )
                crew.serve(lambda model: helper.adapter(specs[model]))
                return
        _render_all(plans, out, Engine(device, mode, crewed, compiled), overwrite, as_json)


def _render_all(plans: dict[str, Plan], out: Path, engine: Engine, overwrite: bool, as_json: bool) -> None:
    from storyreel.console import RenderDisplay, stderr
    from storyreel.render import render as render_film

    results = {}
    for name, plan in plans.items():
        with RenderDisplay(name) as display:
            result = render_film(plan, name, out, engine, display, overwrite)
        results[name] = {**asdict(result), "film": str(result.film)}
        stderr.print(
            f"{name}: {plan.seconds:g} s of film, {result.rendered} of {result.segments} scenes rendered "
            f"in {result.seconds:.1f} s"
        )
        if not as_json:
            print(result.film, flush=True)
    if as_json:
        print(json.dumps(results, indent=2))


@app.command()
def ablate(
    stories: Stories,
    seeds: Annotated[int, typer.Option(min=1, help="How many, from the seed on.")] = 3,
    variants: Annotated[
        str,
        typer.Option(help="Some of full, without-dipw, without-twb, without-sar, without-all. Default: all."),
    ] = "",
    model: Annotated[str | None, typer.Option(help="See: storyreel models. Default: mini.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for films and scores.")] = Path("out/ablation"),
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="The first. Default: 0.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels. Default: the model's.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length of scenes that name none.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1, max=100, help="1 means none.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Set one of the method's settings; may be repeated."),
    ] = None,
    speed: Annotated[str | None, typer.Option(help="exact, balanced or fast. Default: exact.")] = None,
    weights: Weights = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Json = False,
) -> None:
    """Render each story with the method, without each part and without all, and compare the films.

    The films are OUT/VARIANT/seed-N/NAME/NAME.mp4, with their scores beside them; a second run does
    only what is missing.
    """
    _check_device(device)
    from storyreel import ablation

    chosen = ablation.pick_variants(variants)
    overrides = Overrides(
        model, seed, size, seconds, steps, guidance, tuple(method or ()), speed=speed, weights=weights
    )
    plan = partial(ablation.plan_films, seeds=seeds, variants=chosen, overrides=overrides)
    planned, errors = _read(stories, plan, _film_name)
    _raise_all(errors)
    _check_out(out)
    from storyreel.console import RenderDisplay, print_ablation, stderr
    from storyreel.render import Engine

    films = [film for group in planned.values() for film in group]
    report = ablation.ablate(films, out, Engine(device), RenderDisplay, stderr.print)
    if as_json:
        print(json.dumps(report, indent=2, allow_nan=False))
    else:
        print_ablation(report)


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"cannot write into {out}: it is not a folder", "Choose another --out.")


def _check_device(device: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise UsageError(f"there is no device {device!r}", "Use auto, cpu, cuda or cuda:N.")


def _read(
    stories: Sequence[Path], plan: Callable[[Story, str], T], name_of: Callable[[Path], str]
) -> tuple[dict[str, T], list[StoryreelError]]:
    """Read and plan all stories; return the plans by name, and what is wrong with the others."""
    plans: dict[str, T] = {}
    errors: dict[str, StoryreelError] = {}  # by what they say: a bad option is told once
    taken: set[str] = set()
    for path in stories:
        try:
            story = load_story(path)
            name = name_of(path)
            if name.casefold() in taken:
                remedy = "Rename one of the stories: the file's name is the film's."
                raise UsageError(f"two stories would be written to {name!r}", remedy)
            taken.add(name.casefold())
            plans[name] = plan(story, name)
        except StoryreelError as error:
            errors.setdefault(str(error), error)
    return plans, list(errors.values())


def _raise_all(errors: Sequence[StoryreelError]) -> None:
    """Tell all errors; a bad script decides the exit code, whatever else is wrong."""
    if errors:
        worst = min(errors, key=lambda error: not isinstance(error, ScriptError))
        for error in errors:
            if error is not worst:
                _complain(str(error))
        raise worst


def _film_name(path: Path) -> str:
    return slug(path.stem)


def slug(stem: str) -> str:
    """Return a file's name as a folder's: ASCII letters, digits, dot, dash, underscore.

    Nothing that a slug names lies outside its parent.
    """
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip(".-")[:80] or "story"
    # What was lost tells stories apart: two of them must never share a folder.
    return (
        name if name == stem else f"{name}-{hashlib.sha256(stem.encode('utf-8', 'replace')).hexdigest()[:8]}"
    )


def _print_plans(plans: dict[str, Plan], as_json: bool) -> None:
    if as_json:
        print(json.dumps({name: _plan_facts(plan) for name, plan in plans.items()}, indent=2))
        return
    for name, plan in plans.items():
        print(f"{name}: {plan.title}")
        for segment in plan.segments:
            seam = "" if segment.index == 0 else "  blended" if segment.blended else "  cut"
            start, length = segment.start / plan.spec.fps, segment.frames / plan.spec.fps
            print(f"  {segment.number}  {start:7.2f} s  {length:g} s, {segment.frames} frames{seam}")
            print(f"      scene:  {segment.scene}")
            print(f"      action: {segment.action}")
        facts = _plan_facts(plan)
        print(f"  model {plan.spec.name}, {facts['size']}, seed {facts['seed']}, {facts['steps']} steps")
        print(
            f"  {len(plan.segments)} segments, {plan.frames} frames at {plan.spec.fps} per second, "
            f"{plan.seconds:g} s of film"
        )
        print(
            f"  {plan.forwards} forwards of {plan.latents / len(plan.segments):.1f} latent frames at most, "
            f"{_estimate(plan)}"
        )


def _estimate(plan: Plan) -> str:
    if plan.estimated_seconds is None:
        return "time and memory have not been measured yet"
    return f"about {plan.estimated_seconds:.0f} s and {plan.spec.memory_mb} MB on {plan.spec.measured_on}"


def _plan_facts(plan: Plan) -> dict[str, object]:
    return {
        "title": plan.title,
        "model": plan.spec.name,
        **asdict(plan.settings),
        "method": plan.settings.method.model_dump(),
        "size": f"{plan.settings.width}x{plan.settings.height}",
        "fps": plan.spec.fps,
        "frames": plan.frames,
        "seconds": plan.seconds,
        "forwards": plan.forwards,
        "latents": plan.latents,
        "estimated_seconds": plan.estimated_seconds and round(plan.estimated_seconds, 1),
        "estimated_memory_mb": plan.spec.memory_mb,
        "estimated_on": plan.spec.measured_on,
        "segments": [asdict(segment) for segment in plan.segments],
        "seams": [asdict(seam) for seam in plan.seams],
    }


@app.command()
def validate(stories: Stories) -> None:
    """Check stories without loading a model; print every fault with its place."""
    plans, errors = _read(stories, make_plan, str)
    for path, plan in plans.items():
        print(printable(f"{path}: {len(plan.segments)} scenes, {plan.seconds:g} s of film"))
    _raise_all(errors)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the story format, for editors."""
    print(json.dumps(story_schema(), indent=2))


@app.command()
def new(story: Annotated[Path, typer.Argument(help="The file to write.", metavar="STORY")]) -> None:
    """Write a story to start from."""
    try:
        with story.open("x", encoding="utf-8") as file:
            file.write(STARTER)
    except FileExistsError:
        raise UsageError(f"{story} is there already", "Choose another name.") from None
    except OSError as error:
        raise OutputError(f"cannot write {story}: {error.strerror}", "Choose another place.") from None
    print(story)


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that can be used, and what each needs."""
    from storyreel.models.specs import MODELS, find_model

    specs = [find_model(name) for name in MODELS]
    if as_json:
        print(json.dumps({spec.name: asdict(spec) for spec in specs}, indent=2, default=str))
        return
    for spec in specs:
        there = "there" if (spec.weights / "transformer").is_dir() else f"not there ({spec.remedy})"
        print(f"{spec.name}: {spec.title}, weights {there}, {spec.licence}")
        print(
            f"  {spec.size[0]}x{spec.size[1]} at {spec.fps} frames per second, scenes of up to "
            f"{(spec.max_latents - 1) * spec.frames_per_latent / spec.fps:g} s, "
            f"{spec.steps} steps" + (f", {spec.memory_mb} MB" if spec.memory_mb else "")
        )


@app.command()
def pull(
    models: Annotated[list[str], typer.Argument(help="See: storyreel models.", metavar="MODEL…")],
    update: Annotated[bool, typer.Option("--update", help="Take the newest commit, and hold to it.")] = False,
) -> None:
    """Fetch the weights of models from their hub and verify them: the only command that ever does."""
    from storyreel.models.specs import find_model

    specs = [find_model(name) for name in models]
    from storyreel.console import stderr
    from storyreel.models import hub

    for spec in specs:
        print(hub.pull(spec, stderr.print, update))


@app.command()
def bench(
    model: Annotated[str, typer.Option(help="See: storyreel models.")] = "mini",
    variants: Annotated[
        str,
        typer.Option(
            help="Some of stock, plain, full, without-dipw, without-twb, without-sar, balanced, fast. "
            "Default: all."
        ),
    ] = "",
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Measure without any download: true sizes, random weights."),
    ] = False,
    frames: Annotated[int | None, typer.Option(min=2, help="Of a segment. Default: the model's.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels. Default: the model's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Denoising steps.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each variant is timed.")] = 3,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the transformer's blocks.")] = False,
    weights: Weights = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Json = False,
) -> None:
    """Time and weigh a model's variants against diffusers' own pipeline, in turn, on the same inputs."""
    _check_device(device)
    from storyreel.models.specs import find_model

    spec = find_model(model)
    if weights is not None:
        spec = replace(spec, weights=weights)
    seconds = None if frames is None else (frames - 1) / spec.fps
    from storyreel import bench as benches
    from storyreel.console import print_bench, stderr
    from storyreel.models.base import pick_device

    chosen = [name.strip() for name in variants.split(",") if name.strip()]
    overrides = Overrides(model, size=size, seconds=seconds, steps=steps, weights=spec.weights)
    report = benches.bench(
        spec,
        pick_device(device),
        overrides,
        chosen or [benches.STOCK, *benches.VARIANTS],
        rounds,
        random_weights,
        compiled,
        stderr.print,
    )
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        print_bench(report)


@app.command()
def inspect(
    film: Annotated[Path, typer.Argument(help="An MP4.", metavar="VIDEO")], as_json: Json = False
) -> None:
    """Print what a film says of itself: story, seed, model, versions."""
    from storyreel.video import read_tags

    if not film.is_file():
        raise UsageError(f"{film} is not a file", "Name an MP4 that storyreel rendered.")
    tags = read_tags(film)
    if as_json:
        print(json.dumps(tags, indent=2))
    else:
        for key, value in tags.items():
            print(printable(f"{key}: {value}"))
