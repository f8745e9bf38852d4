"""Commands about films: render and what is like it, how they are, whether they are whole, what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from storyreel.cli.options import (
    SLURM,
    WORK,
    DryRun,
    Json,
    OutOptions,
    RenderOptions,
    SlurmOptions,
    SomeStories,
    Stories,
    check_weights,
    exclude,
    flag,
)
from storyreel.cli.reading import (
    check_out,
    film_folder,
    film_folders,
    film_name,
    is_story,
    missing_weights,
    raise_all,
    read,
    tell,
    worst,
)
from storyreel.cli.results import Planned, Verified, failed, print_json
from storyreel.cli.telling import complain, note
from storyreel.errors import StoppedError, StoryreelError, UsageError, counted, printable
from storyreel.stopping import KEPT, deferred, stopping
from storyreel.story.plan import Plan, uncounted_prompts
from storyreel.story.schema import STDIN

if TYPE_CHECKING:
    from storyreel.models.specs import ModelSpec
    from storyreel.render import Engine

Errors = dict[str, StoryreelError]


def render(
    stories: Stories,
    options: RenderOptions,
    keep_going: Annotated[
        bool, flag("--keep-going", "A story that fails does not stop the others.", WORK)
    ] = False,
    dry_run: DryRun = False,
    verify: Annotated[
        bool,
        flag(
            "--verify",
            "Render nothing: read films and weights back, and hold them against the stories.",
            WORK,
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Render each story to OUT/NAME/NAME.mp4; a second run does only what is missing.

    The options win over what a story says of its own rendering. Variables, in brackets, and the file
    storyreel.toml beside the stories hold defaults, which count where the story says nothing.

    With --keep-going the exit code is that of the first faulty story, else of the first that failed. A
    signal ends all of it; the same command goes on.
    """
    exclude("--verify", verify, {"--dry-run": dry_run, "--overwrite": options.overwrite})
    # Every story, and all weights, are looked at before the first is rendered: a fault costs no work.
    plans, errors = read(stories, options.plan, film_name)
    if not keep_going or dry_run or verify:
        raise_all(errors.values())
    check_out(options.out)
    if dry_run:
        print_plans(plans, as_json)
        return
    check_weights(options.weights)
    if verify:
        _verify_plans(plans, options.out, as_json)
        return
    errors |= missing_weights(plans.items())
    if not keep_going:
        raise_all(errors.values())
    _render_all(plans, errors, options, keep_going, as_json)


def _render_all(
    plans: Mapping[str, Plan], errors: Errors, options: RenderOptions, keep_going: bool, as_json: bool
) -> None:
    """Render what can be rendered; ``errors`` are those of stories, by their path or their film's name."""
    tell(errors.values())
    results: dict[str, object] = {}
    try:
        if todo := {name: plan for name, plan in plans.items() if name not in errors}:
            with _engine(options, todo) as engine:
                for name, plan in todo.items():
                    try:
                        results[name] = _render(name, plan, options, engine, as_json)
                    except StoppedError:
                        raise
                    except StoryreelError as error:
                        errors[name] = error
                        if not keep_going:
                            raise
                        complain(f"{name}: {error}")
                        engine.stop.check()
    finally:  # what was done is told whatever ends the rest
        results |= {name: failed(error) for name, error in errors.items()}
        if as_json and results:
            print_json(results)
    if keep_going:
        note(f"{len(results) - len(errors)} of {counted(len(results), 'film')} done")
    for name, error in errors.items():
        complain(f"failed with {error.exit_code}: {name}")
    if errors:
        raise typer.Exit(worst(errors.values()).exit_code)


@contextmanager
def _engine(options: RenderOptions, plans: Mapping[str, Plan]) -> Iterator[Engine]:
    """Give what renders; of torchrun's processes only the first gets it, the others serve it."""
    from storyreel.cli.process import rank
    from storyreel.render import Engine

    with stopping(KEPT) as stop:
        if rank() is None:
            yield Engine(options.device, options.memory, False, options.compile, stop)
            return
        from storyreel.models import workers as crew

        device = crew.own_device(options.device)
        with crew.together(device):
            engine = Engine(device, options.memory, crew.rank() == 0, options.compile, stop)
            if crew.rank() == 0:
                yield engine
                return
            specs = {plan.spec.label: plan.spec for plan in plans.values()}
            with suppress(StoppedError), stop.held():  # the first process decides
                crew.serve(lambda model: engine.adapter(specs[model]))
    raise typer.Exit


def _render(name: str, plan: Plan, options: RenderOptions, engine: Engine, as_json: bool) -> dict[str, Any]:
    """Render one film and say so; return what it left as plain data."""
    from storyreel.cli.display import RenderDisplay, say
    from storyreel.render import render as render_film

    with RenderDisplay(name) as display:
        result = render_film(plan, name, options.out, engine, display, options.overwrite)
    scenes = f"{result.rendered} of {counted(result.segments, 'scene')} rendered"
    say(f"{name}: {plan.seconds:g} s of film, {scenes} in {result.seconds:.1f} s")
    if not as_json:
        print(result.film, flush=True)
    return {
        "state": "done",
        "film": str(result.film),
        "segments": result.segments,
        "rendered": result.rendered,
        "seconds": result.seconds,
    }


def batch(
    options: RenderOptions,
    resources: SlurmOptions,
    stories: SomeStories = None,
    slurm: Annotated[bool, flag("--slurm", "As storyreel submit.", SLURM)] = False,
    status: Annotated[bool, flag("--status", "As storyreel status.", WORK)] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Render stories and go on after one that fails: render --keep-going by its older name.

    With --slurm it is submit, with --status it is status.
    """
    if not slurm and resources != SlurmOptions():
        raise UsageError("there are options for Slurm, but not --slurm", "Add --slurm, or leave them out.")
    exclude("--status", status, {"--slurm": slurm, "--dry-run": dry_run, "--overwrite": options.overwrite})
    if not stories and not status:
        raise UsageError("no story is named", "Name the stories to render: storyreel batch STORY…")
    if slurm:
        submit(stories or [], options, resources, dry_run, as_json)
    elif status:
        _print_status(_status_of([], stories or [], options), as_json)
    else:
        render(stories or [], options, True, dry_run, False, as_json)


def submit(
    stories: Stories,
    options: RenderOptions,
    resources: SlurmOptions,
    dry_run: Annotated[bool, flag("--dry-run", "Print the script and submit nothing.", SLURM)] = False,
    as_json: Json = False,
) -> None:
    """Submit stories to Slurm as one array job, which survives time limits and preemption.

    All stories are checked first. Script, record and logs are in OUT/slurm.
    """
    from storyreel import slurm

    if STDIN in stories:
        raise UsageError("a job cannot read standard input", "Write the story into a file, and name that.")
    plans, errors = read(stories, options.plan, film_name)
    raise_all(errors.values())
    check_out(options.out)
    if options.overwrite:
        remedy = "Choose another --out, or delete the films: what goes back into the queue would start over."
        raise UsageError("--overwrite and a job exclude each other", remedy)
    slurm.check_log_folder(options.out)
    films = dict(zip(plans, stories, strict=True))
    script = slurm.job_script(
        films.values(), options.arguments(), resources.directives(len(films)), options.environment()
    )
    if dry_run:
        print(script, end="")
        return
    if slurm.cannot_requeue():
        note(
            "there is no scontrol here: where a job's node has none either, a story whose time is up is not "
            "queued again; its log says so, and the same command submits it again"
        )
    with stopping("What has a number is submitted: storyreel status shows how it is."), deferred():
        submission = slurm.submit(script, options.out, films)
        count = counted(len(films), "story", "stories")
        note(f"{count} submitted; scripts and logs are in {options.out / slurm.FOLDER}")
        print_json(asdict(submission)) if as_json else print(submission.job)


def status(
    options: OutOptions,
    places: Annotated[
        list[Path] | None,
        typer.Argument(help="Films, folders of films, or stories. Default: OUT.", metavar="FILM|OUT|STORY…"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how films are: done, running, stopped, failed or waiting, and how many scenes they have.

    Without a name these are the films of the last submission in OUT, else all films there. For a story,
    the options are those of render: done is only a film as they would make it.
    """
    given = places or []
    stories = [place for place in given if is_story(place)]
    _print_status(_status_of([place for place in given if place not in stories], stories, options), as_json)


def _status_of(places: list[Path], stories: list[Path], options: OutOptions) -> dict[str, dict[str, Any]]:
    """Return how films are: those in places, those of stories; without any, those in the usual place."""
    from storyreel.film.status import all_films, film_status

    rows: dict[str, dict[str, Any]] = {}
    for place in places:
        if (folder := film_folder(place)) is not None:
            every = all_films(folder.parent, {}, note)
            found = {folder.name: every.get(folder.name) or asdict(film_status(folder.parent, folder.name))}
        elif place.is_dir():
            found = all_films(place, {}, note)
        else:
            remedy = "Name a film, its folder, a folder of films, or a story that ends in .yaml."
            raise UsageError(f"{place} is neither a film nor a folder of films", remedy)
        rows |= {name if name not in rows else str(place / name): row for name, row in found.items()}
    plans, errors = read(stories, options.plan, film_name)
    raise_all(errors.values())
    if plans or not places:
        check_out(options.out)
        rows |= all_films(options.out, plans, note)
    return rows


def _print_status(rows: Mapping[str, Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    for name, row in rows.items():
        total = "? scenes" if row["total"] is None else counted(row["total"], "scene")
        slurm_says = f", Slurm {row['job']} {row['slurm']}" if row.get("slurm") else ""
        reason = f": {row['reason']}" if row["reason"] else ""
        print(printable(f"{name}: {row['state']}, {row['scenes']} of {total}{slurm_says}{reason}"))


def verify(
    places: Annotated[list[Path], typer.Argument(help="Films, or folders of films.", metavar="FILM|OUT…")],
    as_json: Json = False,
) -> None:
    """Read films back and say whether every file is whole and decodes; no story and no weights are needed.

    A film is held against its own manifest. Nothing is written. With render --verify it is held against a
    story, and the weights of its model are read too.
    """
    from storyreel.film.verify import verify_folder

    found: dict[str, Mapping[str, str] | StoryreelError] = {}
    for folder in dict.fromkeys(film_folders(places)):
        try:
            found[str(folder)] = verify_folder(folder)
        except StoryreelError as error:
            found[str(folder)] = error
    remedy = "Render such a film again: only what is missing or damaged is made anew."
    _print_verified(found, remedy, as_json)


def _verify_plans(plans: Mapping[str, Plan], out: Path, as_json: bool) -> None:
    from storyreel.film.verify import verify as verify_film

    remedy = (
        "Run the same command without --verify: it renders again what is missing. "
        "Weights are fetched again by storyreel pull."
    )
    _print_verified({name: verify_film(plan, name, out) for name, plan in plans.items()}, remedy, as_json)


def _print_verified(
    found: Mapping[str, Mapping[str, str] | StoryreelError], remedy: str, as_json: bool
) -> None:
    """Print what is wrong with each film's files, "" for nothing. Raises StoryreelError if anything is."""
    results: dict[str, Any] = {}
    for name, files in found.items():
        if isinstance(files, StoryreelError):
            results[name] = failed(files)
            complain(printable(f"{name}: {files}"))
            continue
        wrong = {path: fault for path, fault in files.items() if fault}
        results[name] = Verified(whole=not wrong, files=len(files), wrong=wrong)
        if not as_json:
            for path, fault in wrong.items():
                print(printable(f"{path} {fault}"))
            whole = len(files) - len(wrong)
            print(printable(f"{name}: {whole} of {counted(len(files), 'file')} are whole"))
    if as_json:
        print_json(results)
    errors = [files for files in found.values() if isinstance(files, StoryreelError)]
    if not_whole := [name for name, result in results.items() if not result.get("whole", True)]:
        raise StoryreelError(f"not whole: {', '.join(not_whole)}", remedy)
    if errors:
        raise typer.Exit(worst(errors).exit_code)


def inspect(
    film: Annotated[Path, typer.Argument(help="A film, or its folder.", metavar="FILM")],
    as_json: Json = False,
) -> None:
    """Print what a film says of itself: story, seed, model, versions."""
    from storyreel.film.video import read_tags

    folder = film_folder(film) if film.is_dir() else None
    path = min(folder.glob("*.mp4"), default=folder) if folder else film
    if not path.is_file():
        raise UsageError(f"{path} is not a file", "Name an MP4 that storyreel rendered, or its folder.")
    tags = read_tags(path)
    if as_json:
        print_json(tags)
    else:
        for key, value in tags.items():
            print(printable(f"{key}: {value}"))


def clean(
    out: Annotated[
        list[Path] | None,
        typer.Argument(help="Films, or folders of films. Default: out.", metavar="FILM|OUT…"),
    ] = None,
    yes: Annotated[bool, flag("--yes", "Remove it; else it is only listed.")] = False,
    as_json: Json = False,
) -> None:
    """List what no film uses, scenes of former seeds, settings and texts; with --yes, remove it.

    What the present film needs stays, and so does the work of a render that was not finished.
    """
    from storyreel.film.clean import film_folders as rendered
    from storyreel.film.clean import remove_unused, size_words, unused

    done = "removed" if yes else "would be removed"
    places = [film_folder(path) or path for path in out or [Path("out")]]
    rows = [(remove_unused if yes else unused)(path) for path in rendered(places)]
    if as_json:
        print_json(
            [
                {
                    "folder": str(row.folder),
                    "files": [path.name for path in row.files],
                    "bytes": row.size,
                    "removed": yes and bool(row.files),
                    "reason": row.reason,
                }
                for row in rows
            ]
        )
        return
    for row in rows:
        if row.reason:
            complain(printable(f"{row.folder}: {row.reason}"))
        elif row.files:
            print(printable(f"{row.folder}: {len(row.files)} files, {size_words(row.size)} {done}"))
    count, size = sum(len(row.files) for row in rows), sum(row.size for row in rows)
    print(f"{count} files, {size_words(size)} {done}" + ("" if yes or not count else ": add --yes"))


def print_plans(plans: Mapping[str, Plan], as_json: bool) -> None:
    """Print what would be rendered, and what it would take."""
    for name, plan in plans.items():
        for words in uncounted_prompts(plan):
            note(printable(f"{name}: {words}"))
    if as_json:
        print_json({name: _plan_facts(plan) for name, plan in plans.items()})
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
        settings = plan.settings
        print(
            f"  model {plan.spec.label}, {settings.width}x{settings.height}, seed {settings.seed}, "
            f"{settings.steps} steps, guidance {settings.guidance_words}"
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


def _plan_facts(plan: Plan) -> Planned:
    settings = plan.settings
    return {
        "title": plan.title,
        "model": plan.spec.name,
        **asdict(settings),
        "quantize": plan.spec.quantize,
        "method": settings.method.model_dump(),
        "size": f"{settings.width}x{settings.height}",
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
    }  # type: ignore[typeddict-item]
