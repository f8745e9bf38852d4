"""Commands that render: here, one story after the other, or as a job of Slurm; and the plan of a dry run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
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
    option,
)
from storyreel.cli.process import rank
from storyreel.cli.reading import check_out, missing_weights, played, raise_all, read, tell, warn, worst
from storyreel.cli.results import failed, faults_of, print_json
from storyreel.cli.telling import complain, note
from storyreel.errors import (
    MissingError,
    ScriptError,
    StoppedError,
    StoryreelError,
    UsageError,
    counted,
    printable,
)
from storyreel.models.host import available_memory, total_memory
from storyreel.models.memory import GB
from storyreel.stopping import AGAIN, KEPT, deferred, stopping
from storyreel.story.plan import Card, Plan
from storyreel.story.planning import notes_of
from storyreel.story.schema import STDIN
from storyreel.story.sounds import Sound, Soundtrack

if TYPE_CHECKING:
    from storyreel.film.signature import Signer
    from storyreel.models.specs import ModelSpec
    from storyreel.rendering import Engine

BRIEF = 10  # seconds; of less, loading the model, which is not estimated, is a large part
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
    scenes: Annotated[
        str | None,
        option(
            "N,N-N",
            "Render these scenes alone, and what they depend on; the film is joined once all are there.",
            WORK,
        ),
    ] = None,
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
    others = {"--dry-run": dry_run, "--overwrite": options.overwrite, "--scenes": bool(scenes)}
    exclude("--verify", verify, others)
    # Every story, and all weights, are looked at before the first is rendered: a fault costs no work.
    warned: Warned = {}
    options.check_name(stories)
    plan = partial(options.plan, warned=None if verify else warned)
    casts = options.cast_files()
    plans, errors = read(stories, plan, options.film_name, casting=options.casting(), casts=casts)
    only = {name: scenes_of(scenes, plan) for name, plan in plans.items()}
    if not keep_going:
        raise_all(errors.values())
    check_out(options.out)
    warn(warned)
    check_weights(options.weights)
    signer = None if verify else options.signer()
    if dry_run:
        print_plans(plans, warned, as_json, errors, options, only)
        return
    if verify:
        _verify_plans(plans, errors, options.out, as_json)
        return
    errors |= missing_weights(plans.items())
    if not keep_going:
        raise_all(errors.values())
    for name, planned in plans.items():
        for words in planned.notes:
            note(printable(f"{name}: {words}"))
    _render_all(plans, errors, warned, options, signer, only, keep_going, as_json)


def _render_all(
    plans: Mapping[str, Plan],
    errors: Errors,
    warned: Warned,
    options: RenderOptions,
    signer: Signer | None,
    only: Mapping[str, frozenset[int] | None],
    keep_going: bool,
    as_json: bool,
) -> None:
    """Render what can be rendered; ``errors`` are those of stories, by their path or their film's name."""
    tell(errors.values())
    results: dict[str, object] = {}
    try:
        if todo := {name: plan for name, plan in plans.items() if name not in errors}:
            with rendering_engine(options, todo) as engine:
                for name, plan in todo.items():
                    try:
                        done = _render(name, plan, options, engine, signer, only[name], as_json)
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
def rendering_engine(options: RenderOptions, plans: Mapping[str, Plan]) -> Iterator[Engine]:
    """Give what renders; of torchrun's processes only the first gets it, the others serve it."""
    from storyreel.rendering import Engine

    with stopping(AGAIN if options.overwrite else KEPT) as stop:
        if rank() is None:
            yield Engine(
                options.device, options.memory, False, options.compile, stop=stop, attention=options.attention
            )
            return
        from storyreel.models import workers

        device = workers.own_device(options.device)
        with workers.together(device):
            shared = workers.rank() == 0
            engine = Engine(
                device, options.memory, shared, options.compile, stop=stop, attention=options.attention
            )
            if workers.rank() == 0:
                yield engine
                return
            specs = {plan.spec.label: plan.spec for plan in plans.values()}
            with suppress(StoppedError), stop.held():  # the first process decides
                workers.serve(lambda model: engine.adapter(specs[model]))
    raise typer.Exit


def scenes_of(given: str | None, plan: Plan) -> frozenset[int] | None:
    """Read numbers of scenes, as in "3,5-7", as indices; None stays None. Raises UsageError."""
    if given is None:
        return None
    found: set[int] = set()
    for part in given.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"--scenes {given!r:.60}: {part!r:.40} is no number of a scene", "As in 3,5-7.")
        low, high = int(first), int(last or first)
        if not 1 <= low <= high <= len(plan.segments):
            has = counted(len(plan.segments), "scene")
            raise UsageError(f"--scenes {given!r:.60}: {part.strip()} is not in the film", f"It has {has}.")
        found |= set(range(low - 1, high))
    return frozenset(found)


def _render(
    name: str,
    plan: Plan,
    options: RenderOptions,
    engine: Engine,
    signer: Signer | None,
    only: frozenset[int] | None,
    as_json: bool,
) -> dict[str, Any]:
    """Render one film, or some of its scenes, and say so; return what it left as plain data."""
    from storyreel.cli.display import RenderDisplay, say
    from storyreel.rendering import render as render_film

    with RenderDisplay(name) as display:
        result = render_film(plan, name, options.out, engine, display, options.overwrite, signer, only)
    scenes = f"{result.rendered} of {counted(len(result.videos), 'scene')} rendered"
    length = f"{plan.seconds:g} s of film, " if result.is_complete else ""
    say(f"{name}: {length}{scenes} in {result.seconds:.1f} s")
    for path in [result.film] if result.is_complete else result.videos.values():
        if not as_json:
            print(path, flush=True)
    return {
        "state": "done" if result.is_complete else "parts",
        "film": str(result.film),
        "videos": {str(index + 1): str(path) for index, path in result.videos.items()} if only else {},
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
        render(stories or [], options, True, None, dry_run, False, as_json)


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
    options.check_name(stories)
    plan = partial(options.plan, warned=warned)
    casts = options.cast_files()
    plans, errors = read(stories, plan, options.film_name, casting=options.casting(), casts=casts)
    raise_all(errors.values())
    check_out(options.out)
    warn(warned)
    if options.overwrite:
        remedy = "Choose another --out, or delete the films: what goes back into the queue would start over."
        raise UsageError("--overwrite and a job exclude each other", remedy)
    check_weights(options.weights)
    options.signer()
    slurm.check_log_folder(options.out)
    pairs = dict(zip(plans, played(stories, casts), strict=True))
    films = {name: path for name, (path, _) in pairs.items()}
    own = {name: cast.path for name, (_, cast) in pairs.items() if cast}
    script = slurm.job_script(
        films.values(), options.arguments(), resources.directives(len(films)), options.environment(), own
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
    plans: Mapping[str, Plan],
    warned: Warned,
    as_json: bool,
    errors: Mapping[str, StoryreelError],
    options: RenderOptions | None = None,
    only: Mapping[str, frozenset[int] | None] | None = None,
) -> None:
    """Print what would be rendered, why, and what it would take; then raise the errors of faulty stories.

    With ``options``, what is there is looked up. ``only`` are the scenes that are asked for, by films' names.
    What is ``warned`` of is in the JSON too.
    """
    wanted = only or {}
    there = {name: _looked_up(plan, options, name, wanted.get(name)) for name, plan in plans.items()}
    for name, plan in plans.items():
        for words in notes_of(plan):
            note(printable(f"{name}: {words}"))
    if as_json:
        facts = {name: _plan_facts(plan, there[name], warned.get(name)) for name, plan in plans.items()}
        print_json(facts | {name: failed(error) for name, error in errors.items()})
    for name, plan in plans.items() if not as_json else ():
        print(f"{name}: {plan.title}")
        why, asked = there[name].why, wanted.get(name)
        common = Counter(segment.loras for segment in plan.segments).most_common(1)[0][0]
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
            for words in _heard_in(plan, segment.index):
                print(f"      {words}")
            if segment.take > 1:
                print(f"      take:   {segment.take}")
            if segment.picture is not None and segment.picture in plan.pictures:
                print(printable(f"      picture: {plan.pictures[segment.picture].name}"))
            if segment.loras != common:
                print(printable(f"      LoRAs:  {', '.join(map(str, segment.loras)) or 'none'}"))
            if why is not None and segment.index in why:
                print(f"      to render: {why[segment.index]}")
            elif there[name].exists and (asked is None or segment.index in asked):
                print("      is there")
        _print_cards(plan, [card for card in plan.cards if card.before == len(plan.segments)])
        settings = plan.settings
        print(
            f"  model {plan.spec.label}, {settings.width}x{settings.height}, seed {settings.seed}, "
            f"{settings.steps} steps, guidance {settings.guidance_words}"
            f"{'' if settings.shift is None else f', shift {settings.shift:g}'}"
        )
        if common:
            print(printable(f"  LoRAs: {', '.join(map(str, common))}"))
        if settings.negative:
            print(printable(f"  negative prompt: {settings.negative}"))
        print(
            f"  {counted(len(plan.segments), 'scene')}, {plan.frames} frames at {plan.spec.fps} per second"
            f", {plan.seconds:g} s of film"
        )
        if plan.sound:
            print(f"  sound: {', '.join(_sound_words(plan.sound))}")
        print(
            f"  {plan.forwards} model evaluations of {plan.latents / len(plan.segments):.1f} latent frames "
            f"at most, {_estimate(plan)}"
        )
        if not plan.spec.is_there:
            print(printable(f"  weights not there ({plan.spec.remedy})"))
        for words in _memory_words(plan):
            print(f"  {words}")
        if there[name].exists and why is not None:
            count = counted(len(why), "scene")
            print(f"  {count} to render: {there[name].forwards} model evaluations")
        for words in there[name].messages:
            print(f"  {words}")
    raise_all(errors.values())


@dataclass(frozen=True)
class _There:
    """What of a planned film is there, if that ``exists``: ``why`` scenes would be rendered, by their index.

    Without the model's weights ``why`` is None: it is not known.
    """

    exists: bool = False
    why: dict[int, str] | None = None
    forwards: int = 0
    messages: tuple[str, ...] = ()


def _looked_up(plan: Plan, options: RenderOptions | None, name: str, only: frozenset[int] | None) -> _There:
    from storyreel.film.reasons import alone_messages, looked_up, reasons

    if options is None:
        return _There()
    try:
        # Whether a GPU would be taken, only torch could tell.
        device = "cpu" if options.device == "cpu" else None
        inventory, before = looked_up(plan, options.out, name, only, device)
    except MissingError:
        return _There()
    if options.overwrite:
        inventory.forget(only)
        why = dict.fromkeys(sorted(inventory.missing), "--overwrite makes it again")
        return _There(before is not None, why, inventory.evaluations())
    messages = tuple(alone_messages(inventory, before)) if before else ()
    return _There(before is not None, reasons(inventory, before), inventory.evaluations(), messages)


def _heard_in(plan: Plan, index: int) -> Iterator[str]:
    """Yield what is heard in a scene."""
    sounds = plan.sound.of_scene(index) if plan.sound else {}
    if speech := sounds.get("speech"):
        yield f"says:   {speech.text or speech.file}, {speech.seconds:.1f} s"
    if own := sounds.get("scene"):
        yield f"audio:  {own.file}, {own.seconds:.1f} s"


def _sound_words(track: Soundtrack) -> Iterator[str]:
    """Yield what is heard in a film, the music first."""
    if (music := track.music) is not None:
        yield f"{music.file}, {music.seconds:.1f} s{', again and again' if music.loop else ''}"
    for kind, words in (("speech", "speech"), ("scene", "audio")):
        if count := sum(sound.kind == kind for sound in track.sounds):
            yield f"{words} in {counted(count, 'scene')}"


def _print_cards(plan: Plan, cards: Sequence[Card]) -> None:
    for card in cards:
        start, length = card.start / plan.spec.fps, card.frames / plan.spec.fps
        print(f"  --  {start:7.2f} s  {length:g} s, {card.frames} frames")
        print(printable(f"      card:   {' / '.join(filter(None, card.text.splitlines()))}"))


def gpu_memory(sizes: Mapping[str, float]) -> str:
    """Say what is needed of a GPU's memory in each mode, of ``sizes`` in GB."""
    needs = ", ".join(f"{mode} {size:g} GB" for mode, size in sizes.items())
    return f"by --memory: {needs} (calculated; have some in reserve)"


def _estimate(plan: Plan) -> str:
    if plan.estimated_seconds is None:
        return "time not measured yet"
    time = "under a minute" if plan.estimated_seconds < BRIEF else f"about {plan.estimated_seconds:.0f} s"
    return f"{time} and {plan.spec.memory_mb} MB on {plan.spec.measured_on}"


def _needed_memory(plan: Plan) -> dict[str, float]:
    """Return the GB of a GPU's memory that a film needs in each memory mode; nothing if nobody knows."""
    spec, settings = plan.spec, plan.settings
    if spec.needs is None:
        return dict(spec.memory_gb)
    working = spec.needs.working((settings.width, settings.height), plan.longest)
    needed = spec.needs.weights(spec.quantize).on_device(working)
    return {mode: round(size / GB, 1) for mode, size in needed.items()}


def machine_memory(spec: ModelSpec) -> dict[str, float]:
    """Return the GB of the machine's own memory that a model needs beside a GPU, in each memory mode."""
    if spec.needs is None:
        return {}
    return {mode: round(size / GB, 1) for mode, size in spec.needs.weights(spec.quantize).on_host().items()}


def _memory_words(plan: Plan) -> Iterator[str]:
    """Yield what a film needs of a GPU's memory and of the machine's, each with what is here."""
    if needed := _needed_memory(plan):
        from storyreel.cli.machine import gpus_in_words

        yield f"GPU memory {gpu_memory(needed)}; here: {gpus_in_words()}"
    if needed := machine_memory(plan.spec):
        sizes = ", ".join(f"{mode} {size:g} GB" for mode, size in needed.items())
        here = f"{available_memory() / GB:.1f} of {total_memory() / GB:.1f} GB are free"
        yield f"the machine's own memory: {sizes}, and some 2 GB more; here {here}"


def _sound_facts(sound: Sound) -> dict[str, Any]:
    return {name: value for name, value in asdict(sound).items() if name != "path"}


def _plan_facts(plan: Plan, there: _There, warned: ScriptError | None) -> dict[str, Any]:
    settings = plan.settings
    missing = None if there.why is None else {str(i + 1): why for i, why in there.why.items()}
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
        "gpu_memory_gb": _needed_memory(plan),
        "machine_memory_gb": machine_memory(plan.spec),
        "machine_memory_free_gb": round(available_memory() / GB, 1),
        "weights_there": plan.spec.is_there,
        "segments": [asdict(segment) for segment in plan.segments],
        "pictures": {sha256: path.name for sha256, path in plan.pictures.items()},
        "seams": [asdict(seam) for seam in plan.seams],
        "sounds": [_sound_facts(sound) for sound in plan.sound.sounds] if plan.sound else [],
        "missing": missing,
        "cards": [asdict(card) for card in plan.cards],
        "warnings": faults_of(warned),
    }
