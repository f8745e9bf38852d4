"""Commands that render: here, one story after the other, or as a job of Slurm; and the plan of a dry run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from storyreel.cli.films import print_verified, show_status
from storyreel.cli.options import (
    SLURM,
    WORK,
    DryRun,
    Json,
    RenderOptions,
    SlurmOptions,
    SomeStories,
    Stories,
    check_weights,
    exclude,
    flag,
)
from storyreel.cli.process import rank
from storyreel.cli.reading import check_out, missing_weights, raise_all, read, tell, warn, worst
from storyreel.cli.results import failed, faults_of, print_json
from storyreel.cli.telling import complain, note
from storyreel.errors import ScriptError, StoppedError, StoryreelError, UsageError, counted, printable
from storyreel.stopping import KEPT, deferred, stopping
from storyreel.story.naming import film_name
from storyreel.story.plan import Card, Plan
from storyreel.story.planning import uncounted_prompts
from storyreel.story.schema import STDIN

if TYPE_CHECKING:
    from storyreel.models.specs import ModelSpec
    from storyreel.rendering import Engine

SEAMS = {"continue": "goes on in the shot", "dissolve": "dissolve", "cut": "cut"}
SEAMS |= {"fade": "fade through black", "dip": "dip to white"}

Errors = dict[str, StoryreelError]
Warned = dict[str, ScriptError]  # by films' names: what models cannot draw of their stories


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

    What the model cannot draw of a story is said first, where that is known; with --strict it is a fault.

    With --keep-going the exit code is that of the first faulty story, else of the first that failed. A
    signal ends all of it; the same command goes on.
    """
    exclude("--verify", verify, {"--dry-run": dry_run, "--overwrite": options.overwrite})
    # Every story, and all weights, are looked at before the first is rendered: a fault costs no work.
    warned: Warned = {}
    plans, errors = read(stories, partial(options.plan, warned=None if verify else warned), film_name)
    if not keep_going:
        raise_all(errors.values())
    check_out(options.out)
    warn(warned)
    check_weights(options.weights)
    if dry_run:
        print_plans(plans, warned, as_json, errors)
        return
    if verify:
        _verify_plans(plans, errors, options.out, as_json)
        return
    errors |= missing_weights(plans.items())
    if not keep_going:
        raise_all(errors.values())
    _render_all(plans, errors, warned, options, keep_going, as_json)


def _render_all(
    plans: Mapping[str, Plan],
    errors: Errors,
    warned: Warned,
    options: RenderOptions,
    keep_going: bool,
    as_json: bool,
) -> None:
    """Render what can be rendered; ``errors`` are those of stories, by their path or their film's name."""
    tell(errors.values())
    results: dict[str, object] = {}
    try:
        if todo := {name: plan for name, plan in plans.items() if name not in errors}:
            with _engine(options, todo) as engine:
                for name, plan in todo.items():
                    try:
                        done = _render(name, plan, options, engine, as_json)
                        results[name] = done | {"warnings": faults_of(warned.get(name))}
                    except StoppedError:
                        raise
                    except StoryreelError as error:
                        errors[name] = error
                        if not keep_going:
                            raise
                        complain(f"{name}: {error}")
                        engine.stop.check()
    finally:  # what was done is told whatever ends the rest
        results |= {name: failed(failure) for name, failure in errors.items()}
        if as_json and results:
            print_json(results)
    if keep_going:
        note(f"{len(results) - len(errors)} of {counted(len(results), 'film')} done")
    for name, failure in errors.items():
        complain(f"failed with {failure.exit_code}: {name}")
    if errors:
        raise typer.Exit(worst(errors.values()).exit_code)


@contextmanager
def _engine(options: RenderOptions, plans: Mapping[str, Plan]) -> Iterator[Engine]:
    """Give what renders; of torchrun's processes only the first gets it, the others serve it."""
    from storyreel.rendering import Engine

    with stopping(KEPT) as stop:
        if rank() is None:
            yield Engine(options.device, options.memory, False, options.compile, stop)
            return
        from storyreel.models import workers

        device = workers.own_device(options.device)
        with workers.together(device):
            engine = Engine(device, options.memory, workers.rank() == 0, options.compile, stop)
            if workers.rank() == 0:
                yield engine
                return
            specs = {plan.spec.label: plan.spec for plan in plans.values()}
            with suppress(StoppedError), stop.held():  # the first process decides
                workers.serve(lambda model: engine.adapter(specs[model]))
    raise typer.Exit


def _render(name: str, plan: Plan, options: RenderOptions, engine: Engine, as_json: bool) -> dict[str, Any]:
    """Render one film and say so; return what it left as plain data."""
    from storyreel.cli.display import RenderDisplay, say
    from storyreel.rendering import render as render_film

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
        show_status([], stories or [], options, as_json)
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
    warned: Warned = {}
    plans, errors = read(stories, partial(options.plan, warned=warned), film_name)
    raise_all(errors.values())
    check_out(options.out)
    warn(warned)
    if options.overwrite:
        remedy = "Choose another --out, or delete the films: what goes back into the queue would start over."
        raise UsageError("--overwrite and a job exclude each other", remedy)
    slurm.check_log_folder(options.out)
    films = dict(zip(plans, stories, strict=True))
    script = slurm.job_script(
        films.values(), options.arguments(), resources.directives(len(films)), options.environment()
    )
    if dry_run:
        if as_json:
            print_json({"script": script, "films": {name: path.absolute() for name, path in films.items()}})
        else:
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


def _verify_plans(plans: Mapping[str, Plan], errors: Errors, out: Path, as_json: bool) -> None:
    from storyreel.film.verify import verify as verify_film

    remedy = (
        "Run the same command without --verify: it renders again what is missing. "
        "Weights are fetched again by storyreel pull."
    )
    found: dict[str, Mapping[str, str] | StoryreelError] = {**errors}
    for name, plan in plans.items():
        try:
            found[name] = verify_film(plan, name, out)
        except StoryreelError as error:
            found[name] = error
    print_verified(found, remedy, as_json)


def print_plans(
    plans: Mapping[str, Plan], warned: Warned, as_json: bool, errors: Mapping[str, StoryreelError]
) -> None:
    """Print what would be rendered, and what it would take; then raise the errors of faulty stories.

    What is ``warned`` of is in the JSON too.
    """
    for name, plan in plans.items():
        for words in uncounted_prompts(plan):
            note(printable(f"{name}: {words}"))
    if as_json:
        facts = {name: _plan_facts(plan, warned.get(name)) for name, plan in plans.items()}
        print_json(facts | {name: failed(error) for name, error in errors.items()})
    for name, plan in plans.items() if not as_json else ():
        print(f"{name}: {plan.title}")
        for segment in plan.segments:
            before = plan.seam(segment)
            cards = [card for card in plan.cards if card.before == segment.index]
            _print_cards(plan, cards)
            cut = cards and before is not None and before.transition == "dissolve"
            seam = "" if before is None else f"  {'cut' if cut else SEAMS[before.transition]}"
            start, length = segment.start / plan.spec.fps, segment.frames / plan.spec.fps
            print(f"  {segment.number}  {start:7.2f} s  {length:g} s, {segment.frames} frames{seam}")
            if segment.scene == segment.action:
                print(f"      prompt: {segment.scene}")
            else:
                print(f"      scene:  {segment.scene}")
                print(f"      action: {segment.action}")
        _print_cards(plan, [card for card in plan.cards if card.before == len(plan.segments)])
        settings = plan.settings
        print(
            f"  model {plan.spec.label}, {settings.width}x{settings.height}, seed {settings.seed}, "
            f"{settings.steps} steps, guidance {settings.guidance_words}"
        )
        print(
            f"  {counted(len(plan.segments), 'scene')}, {plan.frames} frames at {plan.spec.fps} per second"
            f", {plan.seconds:g} s of film"
        )
        print(
            f"  {plan.forwards} model evaluations of {plan.latents / len(plan.segments):.1f} latent frames "
            f"at most, {_estimate(plan)}"
        )
    raise_all(errors.values())


def _print_cards(plan: Plan, cards: Sequence[Card]) -> None:
    for card in cards:
        start, length = card.start / plan.spec.fps, card.frames / plan.spec.fps
        print(f"  --  {start:7.2f} s  {length:g} s, {card.frames} frames")
        print(printable(f"      card:   {' / '.join(filter(None, card.text.splitlines()))}"))


def gpu_memory(spec: ModelSpec) -> str:
    """Say what a model needs of a GPU's memory in each mode."""
    needs = ", ".join(f"{mode} {size:g} GB" for mode, size in spec.memory_gb.items())
    return f"by --memory: {needs} (calculated; have some in reserve)"


def _estimate(plan: Plan) -> str:
    if plan.estimated_seconds is None:
        return f"time not measured yet; GPU memory {gpu_memory(plan.spec)}"
    return f"about {plan.estimated_seconds:.0f} s and {plan.spec.memory_mb} MB on {plan.spec.measured_on}"


def _plan_facts(plan: Plan, warned: ScriptError | None) -> dict[str, Any]:
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
        "cards": [asdict(card) for card in plan.cards],
        "warnings": faults_of(warned),
    }
