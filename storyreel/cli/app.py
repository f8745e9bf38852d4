"""The command line: it parses, calls and prints. Nothing here imports torch."""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import re
import sys
import traceback
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

import typer

from storyreel import __version__
from storyreel.cli import streams
from storyreel.cli.options import (
    Device,
    FilmOptions,
    Quantize,
    RenderOptions,
    SlurmOptions,
    Weights,
    check_device,
    with_options,
)
from storyreel.errors import (
    InterruptError,
    OutputError,
    ScriptError,
    StoppedError,
    StoryreelError,
    UsageError,
    counted,
    printable,
)
from storyreel.models.device_errors import device_error
from storyreel.stopping import AGAIN, KEPT, deferred, stopping
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides, make_plan, uncounted_prompts
from storyreel.story.schema import Story, load_story, story_schema

if TYPE_CHECKING:
    from storyreel.evaluation.films import Film
    from storyreel.evaluation.result import Evaluation
    from storyreel.models.base import MemoryMode
    from storyreel.models.specs import ModelSpec
    from storyreel.render import Engine

T = TypeVar("T")

DEBUG = "STORYREEL_DEBUG"  # the variable that asks for tracebacks
INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"  # letters and marks that show nothing
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # of glibc's mallopt
LARGE, SPARE = 8 << 20, 64 << 20  # bytes

app = typer.Typer(
    help="Make one coherent film from a story of scene pairs.",
    epilog="Exit codes: 0 done; 1 failure; 2 usage; 65 bad script; 69 a model, weight or device is "
    "missing; 73 output cannot be written; 74 another process holds the output; 75 stopped, run again to go "
    "on; 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Stories = Annotated[list[Path], typer.Argument(help="YAML stories.", metavar="STORY…", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and load no model.")]
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


def main() -> int:
    """Run the command line and return its exit code; the one place where errors become exit codes."""
    _give_large_blocks_back()
    if _crew_rank():  # the first process speaks for all
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # for the rest of its life
    code = run(sys.argv[1:])
    if failure := streams.finish():
        _complain(f"error: cannot write the result: {failure.strerror}")
        code = code or OutputError.exit_code
    return code


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        with stopping() as stop:
            _refuse_optimized()
            code = app(list(arguments), prog_name="storyreel", standalone_mode=False)
            if code == InterruptError.exit_code:  # as some versions of typer have it for a KeyboardInterrupt
                raise stop.error()
    except StoryreelError as error:
        return _told(error)
    except (KeyboardInterrupt, typer.Abort):  # by no signal
        return _told(InterruptError("interrupted", AGAIN))
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's own can show themselves
            error.show()
            return int(error.exit_code)
        if isinstance(error, OSError):
            return _told(_of_the_system(error))
        if (told := device_error(error)) is not None:
            return _told(told)
        raise  # anything else is a bug, and keeps its traceback
    return code if isinstance(code, int) else 0


def _refuse_optimized() -> None:
    """Raise UsageError where Python leaves docstrings out."""
    if sys.flags.optimize > 1:
        remedy = "Leave out -OO, or unset PYTHONOPTIMIZE; -O will do."
        raise UsageError(
            "Python leaves out docstrings (-OO), without which transformers does not load", remedy
        )


def _told(error: StoryreelError) -> int:
    """Tell an error, with where it came from if that is asked for; return its exit code."""
    if os.environ.get(DEBUG, "") not in ("", "0"):
        traceback.print_exc()
    _complain(str(error))
    return error.exit_code


def _of_the_system(error: OSError) -> StoryreelError:
    """Return what the system refused where nobody had thought of it: what is known, and no advice."""
    words = error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
    names = [os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)]
    return StoryreelError(": ".join([*names, words]), f"{DEBUG}=1 shows where that happened.")


def _give_large_blocks_back() -> None:
    """Have the C library return every large block to the system as soon as it is free.

    Left to itself, glibc raises its limit to 32 MB, so that tensors of changing sizes lie in one heap
    with gaps between them: the peak is then a matter of chance, and the longer a story the higher. What
    that heap keeps at its end stays as large as glibc would let it become: giving it back all the time
    took a sixth of a render's.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, SPARE)


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
@with_options
def render(
    stories: Stories,
    options: RenderOptions,
    dry_run: DryRun = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Render nothing: read all of the films and weights back, and decode."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Render each story to OUT/NAME/NAME.mp4; a second run does only what is missing.

    The options win over what the story's own render settings say.
    """
    _exclude("--verify", verify, {"--dry-run": dry_run, "--overwrite": options.overwrite})
    # Every script, and all weights, are looked at before the first is rendered: a fault costs no work.
    plans, errors = _read(stories, partial(make_plan, overrides=options.overrides()), _film_name)
    _raise_all(errors.values())
    _check_out(options.out)
    if dry_run:
        _print_plans(plans, as_json)
        return
    if plans:
        _check_weights(options.weights)
    if verify:
        _verify_all(plans, options.out, as_json)
        return
    _raise_all(_incomplete(plans).values())
    results: dict[str, object] = {}
    try:
        with _engine(options, plans) as engine:
            for name, plan in plans.items():
                results[name] = _render(name, plan, options, engine, as_json)
    finally:
        if as_json and results:  # what was done is told whatever happens to the next
            print(json.dumps(results, indent=2))


def _exclude(option: str, given: bool, others: Mapping[str, bool]) -> None:
    """Raise UsageError if an option is given together with one that contradicts it."""
    if given and (against := [other for other, is_given in others.items() if is_given]):
        raise UsageError(f"{option} and {' and '.join(against)} exclude each other", "Give one of them.")


def _check_weights(weights: Path | None) -> None:
    if weights is not None and not weights.is_dir():
        words = f"--weights {weights} is not a folder"
        raise UsageError(words, "Name the folder that holds the model's parts: transformer, vae and so on.")


def _incomplete(plans: Mapping[str, Plan]) -> dict[str, StoryreelError]:
    """Return what is missing of the models of plans, by their names."""
    from storyreel.models.inventory import check_inventory

    errors: dict[str, StoryreelError] = {}
    for name, plan in plans.items():
        try:
            check_inventory(plan.spec)
        except StoryreelError as error:
            errors[name] = error
    return errors


@contextmanager
def _engine(options: RenderOptions, plans: Mapping[str, Plan]) -> Iterator[Engine]:
    """Give what renders; of torchrun's processes only the first gets it, the others serve it."""
    from storyreel.render import Engine

    mode = cast("MemoryMode", options.memory)
    with stopping(KEPT) as stop:
        if _crew_rank() is None:
            yield Engine(options.device, mode, False, options.compile, stop)
            return
        from storyreel.models import workers as crew

        device = crew.own_device(options.device)
        with crew.together(device):
            engine = Engine(device, mode, crew.rank() == 0, options.compile, stop)
            if crew.rank() == 0:
                yield engine
                return
            specs = {plan.spec.label: plan.spec for plan in plans.values()}
            with suppress(StoppedError), stop.held():  # the first process decides
                crew.serve(lambda model: engine.adapter(specs[model]))
    raise typer.Exit


def _render(
    name: str, plan: Plan, options: RenderOptions, engine: Engine, as_json: bool
) -> dict[str, object]:
    """Render one film and say so; return what it left as plain data."""
    from storyreel.cli.display import RenderDisplay, stderr
    from storyreel.render import render as render_film

    with RenderDisplay(name) as display:
        result = render_film(plan, name, options.out, engine, display, options.overwrite)
    scenes = f"{result.rendered} of {counted(result.segments, 'scene')} rendered"
    stderr.print(f"{name}: {plan.seconds:g} s of film, {scenes} in {result.seconds:.1f} s")
    if not as_json:
        print(result.film, flush=True)
    return {**asdict(result), "film": str(result.film)}


def _verify_all(plans: dict[str, Plan], out: Path, as_json: bool) -> None:
    from storyreel.film.verify import verify

    found = {name: verify(plan, name, out) for name, plan in plans.items()}
    wrong = {name: {path: fault for path, fault in files.items() if fault} for name, files in found.items()}
    if as_json:
        results = {
            name: {"whole": not wrong[name], "files": len(files), "wrong": wrong[name]}
            for name, files in found.items()
        }
        print(json.dumps(results, indent=2))
    else:
        for name, files in found.items():
            for path, fault in wrong[name].items():
                print(f"{path} {fault}")
            whole = len(files) - len(wrong[name])
            print(f"{name}: {whole} of {counted(len(files), 'file')} are whole")
    if any(wrong.values()):
        raise StoryreelError(
            f"not whole: {', '.join(name for name in found if wrong[name])}",
            "Run the same command without --verify: it renders again what is missing. "
            "Weights are fetched again by storyreel pull.",
        )


@app.command()
@with_options
def batch(
    options: RenderOptions,
    resources: SlurmOptions,
    stories: Annotated[
        list[Path] | None, typer.Argument(help="YAML stories.", metavar="STORY…", show_default=False)
    ] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Submit them as one array job that survives preemption.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Tell how the films are: these, or the last submission's.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plans, or Slurm's script, and do nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Render many stories with the model loaded once; one that fails does not stop the others.

    The exit code is that of the first story that failed, a bad script first. A stop or an interrupt ends
    the whole batch; the same command goes on.
    """
    if not slurm and resources != SlurmOptions():
        raise UsageError("there are options for Slurm, but not --slurm", "Add --slurm, or leave them out.")
    _exclude("--status", status, {"--slurm": slurm, "--dry-run": dry_run, "--overwrite": options.overwrite})
    if not stories and not status:
        raise UsageError("no story is named", "Name the stories to render: storyreel batch STORY…")
    plans, errors = _read(stories or (), partial(make_plan, overrides=options.overrides()), _film_name)
    if slurm or status or dry_run:
        _raise_all(errors.values())
    _check_out(options.out)
    if status:
        _print_status(plans, options.out, as_json)
    elif slurm:
        _submit(dict(zip(plans, stories or (), strict=True)), options, resources, dry_run, as_json)
    elif dry_run:
        _print_plans(plans, as_json)
    else:
        _check_weights(options.weights)
        _render_batch(plans, errors, options, as_json)


def _render_batch(
    plans: dict[str, Plan], errors: dict[str, StoryreelError], options: RenderOptions, as_json: bool
) -> None:
    """Render what can be rendered; ``errors`` are those of scripts, by their path."""
    incomplete = _incomplete(plans)
    failed = {**errors, **incomplete}
    _tell(failed.values())
    plans = {name: plan for name, plan in plans.items() if name not in incomplete}
    results: dict[str, dict[str, object]] = {}
    try:
        if plans:
            with _engine(options, plans) as engine:
                for name, plan in plans.items():
                    try:
                        results[name] = {"state": "done", **_render(name, plan, options, engine, as_json)}
                    except StoppedError:
                        raise
                    except StoryreelError as error:
                        failed[name] = error
                        _complain(f"{name}: {error}")
                        engine.stop.check()
    finally:
        for name, failure in failed.items():
            results[name] = {"state": "failed", "error": failure.message, "exit_code": failure.exit_code}
        if as_json and results:  # what was done is told whatever ends the batch
            print(json.dumps(results, indent=2))
    _complain(f"batch: {len(results) - len(failed)} of {counted(len(results), 'film')} done")
    for name, failure in failed.items():
        _complain(f"batch: failed with {failure.exit_code}: {name}")
    if failed:
        raise typer.Exit(_worst(failed.values()).exit_code)


def _submit(
    films: dict[str, Path], options: RenderOptions, resources: SlurmOptions, dry_run: bool, as_json: bool
) -> None:
    from storyreel import slurm

    if options.overwrite:
        remedy = "Choose another --out, or delete the films: what goes back into the queue would start over."
        raise UsageError("--overwrite and --slurm exclude each other", remedy)
    slurm.check_log_folder(options.out)
    script = slurm.job_script(films.values(), options.arguments(), resources.directives(len(films)))
    if dry_run:
        print(script, end="")
        return
    if slurm.cannot_requeue():
        _complain(
            "there is no scontrol here: where a job's node has none either, a story whose time is up is not "
            "queued again; its log says so, and the same command submits it again"
        )
    with stopping("What has a number is submitted: storyreel batch --status tells how it is."), deferred():
        submission = slurm.submit(script, options.out, films)
        stories = counted(len(films), "story", "stories")
        _complain(f"{stories} submitted; scripts and logs are in {options.out / slurm.FOLDER}")
        print(json.dumps(asdict(submission), indent=2) if as_json else submission.job)


def _print_status(plans: dict[str, Plan], out: Path, as_json: bool) -> None:
    from storyreel.film.status import all_films

    rows = all_films(out, plans, _complain)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for name, row in rows.items():
        total = "? scenes" if row["total"] is None else counted(row["total"], "scene")
        slurm_says = f", Slurm {row['job']} {row['slurm']}" if row.get("slurm") else ""
        reason = f": {row['reason']}" if row["reason"] else ""
        print(printable(f"{name}: {row['state']}, {row['scenes']} of {total}{slurm_says}{reason}"))


@app.command()
@with_options
def ablate(
    stories: Stories,
    options: FilmOptions,
    seeds: Annotated[int, typer.Option(min=1, help="How many, from the seed on.")] = 3,
    variants: Annotated[
        str,
        typer.Option(help="Some of full, without-dipw, without-twb, without-sar, without-all. Default: all."),
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder for films and scores.")] = Path("out/ablation"),
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Render each story with the method, without each part and without all, and compare the films.

    The films are OUT/VARIANT/seed-N/NAME/NAME.mp4, with their scores beside them; a second run does
    only what is missing. `storyreel eval OUT` gives the same numbers, and says what is wrong with each film.
    """
    from storyreel.evaluation import ablation

    chosen = ablation.pick_variants(variants)
    plan = partial(ablation.plan_films, seeds=seeds, variants=chosen, overrides=options.overrides())
    planned, errors = _read(stories, plan, _film_name)
    _raise_all(errors.values())
    _check_out(out)
    variants_planned = [film for group in planned.values() for film in group]
    plans = {film.label: film.plan for film in variants_planned}
    if dry_run:
        _print_plans(plans, as_json)
        return
    from storyreel.cli.display import RenderDisplay, print_comparison, stderr
    from storyreel.render import Engine

    _check_weights(options.weights)
    _raise_all(_incomplete(plans).values())
    with stopping(KEPT) as stop:
        engine = Engine(options.device, stop=stop)
        films, wrong = ablation.render_films(variants_planned, out, engine, RenderDisplay, stderr.print)
        del engine  # with the model: what scores films needs the memory
        evaluation = _evaluated(films, wrong, weights=options.weights, device=options.device)
    if as_json:
        print(json.dumps(evaluation.plain(), indent=2, allow_nan=False))
    else:
        print_comparison(evaluation)
    _raise_all(wrong)


@app.command()
def clean(
    out: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of films. Default: out.", metavar="OUT…", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; else it is only listed.")] = False,
    as_json: Json = False,
) -> None:
    """List what no film uses, scenes of former seeds, settings and texts; with --yes, remove it.

    What the present film needs stays, and so does the work of a render that was not finished.
    """
    from storyreel.film.clean import film_folders, remove_unused, size_words, unused

    done = "removed" if yes else "would be removed"
    rows = [(remove_unused if yes else unused)(path) for path in film_folders(out or [Path("out")])]
    if as_json:
        facts = [
            {
                "folder": str(row.folder),
                "files": [path.name for path in row.files],
                "bytes": row.size,
                "removed": yes and bool(row.files),
                "reason": row.reason,
            }
            for row in rows
        ]
        print(json.dumps(facts, indent=2))
        return
    for row in rows:
        if row.reason:
            _complain(printable(f"{row.folder}: {row.reason}"))
        elif row.files:
            print(printable(f"{row.folder}: {len(row.files)} files, {size_words(row.size)} {done}"))
    count, size = sum(len(row.files) for row in rows), sum(row.size for row in rows)
    print(f"{count} files, {size_words(size)} {done}" + ("" if yes or not count else ": add --yes"))


def _check_out(out: Path) -> None:
    from storyreel.files import obstacle, writing

    with writing(out):
        if (why := obstacle(out)) is not None:
            raise OutputError(f"cannot write into {out}: {why}", "Mend that, or choose another --out.")
        if out.exists() and not out.is_dir():
            raise OutputError(f"cannot write into {out}: it is not a folder", "Choose another --out.")


def _read(
    stories: Sequence[Path],
    plan: Callable[[Story, str], T],
    name_of: Callable[[Path], str],
    once: bool = True,
) -> tuple[dict[str, T], dict[str, StoryreelError]]:
    """Read and plan all stories; return the plans by name, and what is wrong with the others by path.

    With ``once``, two of one name are an error.
    """
    plans: dict[str, T] = {}
    errors: dict[str, StoryreelError] = {}
    taken: set[str] = set()
    for path in stories:
        try:
            story = load_story(path)
            name = name_of(path)
            if once and name.casefold() in taken:
                remedy = "Rename one of the stories: the file's name is the film's."
                raise UsageError(f"two stories would be written to {name!r}", remedy)
            taken.add(name.casefold())
            plans[name] = plan(story, name)
        except StoryreelError as error:
            errors[str(path)] = error
    return plans, errors


def _raise_all(errors: Collection[StoryreelError]) -> None:
    """Tell all errors; raise the one that decides the exit code."""
    if errors:
        worst = _worst(errors)
        _tell(error for error in errors if str(error) != str(worst))
        raise worst


def _worst(errors: Collection[StoryreelError]) -> StoryreelError:
    """Return what decides the exit code: the first bad script, else the first error."""
    return min(errors, key=lambda error: not isinstance(error, ScriptError))


def _tell(errors: Iterable[StoryreelError]) -> None:
    for text in dict.fromkeys(map(str, errors)):  # a bad option is told once
        _complain(text)


def _film_name(path: Path) -> str:
    return slug(path.stem)


def slug(stem: str) -> str:
    """Return a file's name as a folder's: letters and digits of any script, dot, dash, underscore.

    Nothing that a slug names lies outside its parent.
    """
    name = "".join(char if _is_plain(char) else "-" for char in unicodedata.normalize("NFC", stem))
    name = name.strip(".-")
    while name and unicodedata.category(name[0])[0] == "M":  # which would change what stands before it
        name = name[1:].lstrip(".-")
    # Other files of a film add to its name, which has at most 255 bytes.
    if name and name == stem and len(name) <= 80 and len(name.encode()) <= 160:
        return name
    # What was lost tells stories apart: two of them must never share a folder.
    lost = hashlib.sha256(stem.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    short = re.sub("-+", "-", name)[:71].encode()[:151].decode(errors="ignore")
    return f"{short.rstrip('.-') or 'story'}-{lost}"


def _is_plain(char: str) -> bool:
    """Tell whether a character shows, and means nothing to a shell, a file system or an address."""
    return char in "._-" or (unicodedata.category(char)[0] in "LMN" and char not in INVISIBLE)


def _tell_uncounted(name: str, plan: Plan) -> None:
    for note in uncounted_prompts(plan):
        _complain(printable(f"{name}: {note}"))


def _print_plans(plans: dict[str, Plan], as_json: bool) -> None:
    for name, plan in plans.items():
        _tell_uncounted(name, plan)
    if as_json:
        print(json.dumps({name: _plan_facts(plan) for name, plan in plans.items()}, indent=2))
        return
    for name, plan in plans.items():
        print(f"{name}: {plan.title}")
        for segment in plan.segments:
            seam = "" if segment.index == 0 else "  blended" if segment.blended else "  cut"
            start, length = segment.start / plan.spec.fps, segment.frames / plan.spec.fps
            print(f"  {segment.number}  {start:7.2f} s  {length:g} s, {segment.frames} frames{seam}")
            if segment.scene == segment.action:
                print(f"      prompt: {segment.scene}")
            else:
                print(f"      scene:  {segment.scene}")
                print(f"      action: {segment.action}")
        facts = _plan_facts(plan)
        print(
            f"  model {plan.spec.label}, {facts['size']}, seed {facts['seed']}, {facts['steps']} steps, "
            f"guidance {plan.settings.guidance_words}"
        )
        print(
            f"  {counted(len(plan.segments), 'segment')}, {plan.frames} frames at {plan.spec.fps} per second"
            f", {plan.seconds:g} s of film"
        )
        print(
            f"  {plan.forwards} forwards of {plan.latents / len(plan.segments):.1f} latent frames at most, "
            f"{_estimate(plan)}"
        )


def gpu_memory(spec: ModelSpec) -> str:
    """Say what a model needs of a GPU's memory in each mode."""
    needs = ", ".join(f"{mode} {size:g} GB" for mode, size in spec.memory_gb.items())
    return f"by --memory: {needs} (calculated; have some in reserve)"


def _estimate(plan: Plan) -> str:
    if plan.estimated_seconds is None:
        return f"time not measured yet; GPU memory {gpu_memory(plan.spec)}"
    return f"about {plan.estimated_seconds:.0f} s and {plan.spec.memory_mb} MB on {plan.spec.measured_on}"


def _plan_facts(plan: Plan) -> dict[str, object]:
    return {
        "title": plan.title,
        "model": plan.spec.name,
        **asdict(plan.settings),
        "quantize": plan.spec.quantize,
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
        "gpu_memory_gb": plan.spec.memory_gb,
        "segments": [asdict(segment) for segment in plan.segments],
        "seams": [asdict(seam) for seam in plan.seams],
    }


@app.command("eval")
def evaluate(
    out: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of films, or of runs to compare; OUT/NAME are the films of a run.",
            metavar="OUT…",
            show_default=False,
        ),
    ] = None,
    story: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="The story of a film that something else made; with --video."),
    ] = None,
    video: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="That film.")] = None,
    segments: Annotated[
        str,
        typer.Option(help="Where its scenes begin: chapters, equal, or seconds, as in 2.5,5,7.5"),
    ] = "chapters",
    fps: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=999,
            help="How often a second films are looked at. Default: as often as suits them all.",
        ),
    ] = None,
    own: Annotated[
        bool, typer.Option("--own/--no-own", help="Ask the film's model too: its encoder and its judge.")
    ] = True,
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC", help="Fail if this metric's weights are missing; may be repeated."),
    ] = None,
    weights_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder of pretrained models, by their names.")
    ] = None,
    weights: Weights = None,
    device: Device = "auto",
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The HTML report. Default: eval.html in the first OUT."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score films and say where they are bad; several OUT are compared, paired by story.

    Nothing is fetched: metrics whose weights are not here have no value (storyreel pull eval).
    """
    check_device(device)
    from storyreel.evaluation.films import collect, foreign_film
    from storyreel.evaluation.metrics import METRICS

    stories, videos = story or [], video or []
    if len(stories) != len(videos):
        raise UsageError("--story and --video belong together", "Give as many of one as of the other.")
    if not out and not videos:
        raise UsageError("there is nothing to score", "Name a rendered folder, or --story and --video.")
    if fps is not None and not math.isfinite(fps):
        raise UsageError(f"--fps {fps} makes no sense", "Give the frames of a second, as in 23.976.")
    if unknown := set(require or ()) - set(METRICS):
        raise UsageError(f"there is no metric {min(unknown)!r}", f"Known: {', '.join(METRICS)}")
    if weights_dir is not None and not weights_dir.is_dir():
        raise UsageError(f"{weights_dir} is not a folder", "Name the folder that holds the models' folders.")
    _check_weights(weights)
    pairs = zip(stories, videos, strict=True)
    films, errors = collect(out or (), [partial(foreign_film, *pair, segments) for pair in pairs], fps)
    if films:
        beside = out[0] if out and out[0].is_dir() else films[0].path.parent
        evaluation = _evaluated(films, errors, require or (), weights_dir, own, weights, device)
        from storyreel.cli.display import print_comparison, print_findings, stderr
        from storyreel.evaluation.report import report_page
        from storyreel.files import write_atomically, writing

        if as_json:
            print(json.dumps(evaluation.plain(), indent=2, allow_nan=False))
        else:
            print_comparison(evaluation)
            print_findings(evaluation)
        if evaluation.films:
            page = report or beside / "eval.html"
            with writing(page, "name another file: --report FILE", ""):
                write_atomically(page, report_page(evaluation))
            stderr.print(f"report: {page}")
    _raise_all(errors)


def _evaluated(
    films: list[Film],
    errors: list[StoryreelError],
    require: Sequence[str] = (),
    weights_dir: Path | None = None,
    own: bool = True,
    weights: Path | None = None,
    device: str = "auto",
) -> Evaluation:
    """Score films; add what is wrong with them to ``errors``."""
    from storyreel.cli.display import FilmBar, stderr
    from storyreel.evaluation.evaluator import Evaluator, evaluate
    from storyreel.models.devices import pick_device

    evaluator = Evaluator(pick_device(device), weights_dir, own, weights)
    evaluator.require(require)
    evaluation, failed = evaluate(
        films, evaluator, lambda film: FilmBar(film.label, film.frames), stderr.print
    )
    errors += failed
    return evaluation


@app.command()
def validate(stories: Stories) -> None:
    """Check stories without loading a model; print every fault with its place."""
    plans, errors = _read(stories, make_plan, str, once=False)
    for path, plan in plans.items():
        print(printable(f"{path}: {counted(len(plan.segments), 'scene')}, {plan.seconds:g} s of film"))
        _tell_uncounted(path, plan)
    _raise_all(errors.values())


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
        if spec.memory_gb:
            print(f"  GPU memory {gpu_memory(spec)}")


@app.command()
def pull(
    models: Annotated[list[str], typer.Argument(help="See: storyreel models.", metavar="MODEL…")],
    update: Annotated[bool, typer.Option("--update", help="Take the newest commit, and hold to it.")] = False,
) -> None:
    """Fetch the weights of models from their hub and verify them: the only command that ever does.

    The name eval stands for the models that metrics of `storyreel eval` need.
    """
    from storyreel.evaluation.weights import WEIGHTS
    from storyreel.models.specs import find_model

    specs = [find_model(name) for name in models if name != "eval"]
    from storyreel.cli.display import stderr
    from storyreel.models import hub

    with stopping(KEPT):
        for spec in specs:
            print(hub.pull(spec, stderr.print, update))
        for judge in WEIGHTS.values() if "eval" in models else ():
            if judge.hub is not None:
                print(hub.fetch(judge.name, judge.hub, hub.at_the_top, stderr.print, update))


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
    calculated: Annotated[
        bool,
        typer.Option("--calculate", help="Calculate work and memory: needs neither weights nor a GPU."),
    ] = False,
    frames: Annotated[int | None, typer.Option(min=2, help="Of a segment. Default: the model's.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels. Default: the model's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Denoising steps.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each variant is timed.")] = 3,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the transformer's blocks.")] = False,
    quantize: Quantize = None,
    weights: Weights = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time and weigh a model's variants against diffusers' own pipeline, in turn, on the same inputs.

    With --calculate, what they would take: without weights, without a GPU.
    """
    check_device(device)
    _exclude(
        "--random-weights", random_weights, {"--weights": weights is not None, "--calculate": calculated}
    )
    from storyreel.models.specs import find_model

    spec = find_model(model)
    if quantize is not None:
        spec = spec.quantized(quantize)
    if weights is not None:
        spec = replace(spec, weights=weights)
    seconds = None if frames is None else (frames - 1) / spec.fps
    from storyreel.benchmark import run as benches
    from storyreel.benchmark.calculate import CALCULABLE, calculate
    from storyreel.cli.display import print_bench, print_calculation, stderr
    from storyreel.models.devices import pick_device

    chosen = [name.strip() for name in variants.split(",") if name.strip()]
    overrides = Overrides(
        model, size=size, seconds=seconds, steps=steps, quantize=spec.quantize, weights=spec.weights
    )
    if calculated:
        report = calculate(spec, overrides, chosen or CALCULABLE)
        print(json.dumps(report, indent=2)) if as_json else print_calculation(report)
        return
    _check_weights(weights)
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
    from storyreel.film.reader import read_tags

    if not film.is_file():
        raise UsageError(f"{film} is not a file", "Name an MP4 that storyreel rendered.")
    tags = read_tags(film)
    if as_json:
        print(json.dumps(tags, indent=2))
    else:
        for key, value in tags.items():
            print(printable(f"{key}: {value}"))
