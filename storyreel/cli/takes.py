"""Commands about takes: one scene is taken again, several times if wanted, and one take is kept."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from storyreel.cli.defaults import PREFIX
from storyreel.cli.options import (
    FILM,
    USUAL_OUT,
    Cast,
    DryRun,
    Json,
    Name,
    Out,
    RenderOptions,
    check_weights,
    option,
)
from storyreel.cli.reading import check_out, missing_weights, raise_all, warn
from storyreel.cli.rendering import rendering_engine
from storyreel.cli.results import print_json
from storyreel.cli.telling import note
from storyreel.errors import ScriptError, UsageError, counted, printable
from storyreel.story.casting import read_casting
from storyreel.story.naming import check_film_name, film_name
from storyreel.story.plan import Plan
from storyreel.story.schema import (
    NOBODY_ELSE,
    STDIN,
    Casting,
    Story,
    load_story,
    with_first_take,
    with_retake,
)

if TYPE_CHECKING:
    from storyreel.film.manifest import Manifest
    from storyreel.film.takes import Take
    from storyreel.rendering import Engine

OneStory = Annotated[Path, typer.Argument(help="A YAML story.", metavar="STORY", is_eager=True)]
Number = Annotated[int, typer.Argument(help="The scene's number, from 1.", metavar="SCENE", min=1)]


@dataclass(frozen=True)
class RetakeOptions(RenderOptions):
    """How a scene is taken again: ``take_seed`` is the take's, ``seed`` that of the film."""

    # No options: a take is of one film, replaces nothing, and is no film to be signed.
    casts: Path | None = None
    overwrite: bool = False
    sign_cert: Path | None = None
    sign_key: Path | None = None
    take_seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            help="Of the take, counted up for more of them. Default: by its number.",
            rich_help_panel=FILM,
            min=0,
            max=2**63 - 1,
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            "--film-seed",
            metavar="N",
            help="Of the film. Default: the story's, else as it was rendered.",
            rich_help_panel=FILM,
            envvar=f"{PREFIX}SEED",
            show_envvar=False,
            min=0,
            max=2**63 - 1,
        ),
    ] = None


def retake(
    story: OneStory,
    scene: Number,
    options: RetakeOptions,
    takes: Annotated[int, option("N", "How many takes to make.", FILM, min=1, max=99)] = 1,
    new_scene: Annotated[
        str | None,
        typer.Option("--scene", metavar="TEXT", help="Another scene prompt.", rich_help_panel=FILM),
    ] = None,
    action: Annotated[str | None, option("TEXT", "Another action prompt.", FILM)] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Take one scene again, as often as wanted, without touching any other.

    A take begins and ends as its neighbours need it, and costs one scene's time. All takes of the scene are
    laid side by side in OUT/NAME/takes-NN.png. The film changes only when a take is kept: storyreel keep.
    Give the options that the film was rendered with; --seed is the take's.
    """
    options.check_name([story])
    loaded, name = _read(story, scene, options.casting()), options.film_name(story)
    if options.seed is None and loaded.render.seed is None:
        options = replace(options, seed=_seed_of_film(options.out / name))
    check_out(options.out)
    check_weights(options.weights)
    plans = _plans(loaded, scene, options, name, takes, new_scene, action)
    raise_all(missing_weights((name, plan) for plan in plans).values())
    if dry_run:
        _print_plans(plans, scene, name, options, as_json)
        return
    made: list[Take] = []
    try:
        with rendering_engine(options, {name: plans[0]}) as engine:
            for words in _warnings(plans[0], scene, name, options, engine):
                note(words)
            for plan in plans:
                made.append(_make(plan, scene, name, options, engine))  # noqa: PERF401  # until one fails
    finally:  # what was made is told whatever ends the rest
        if made:
            _tell(made, loaded, scene, name, options, as_json)
        if left := len(plans) - len(made):
            seed = "" if options.take_seed is None else f" --seed {options.take_seed + len(made)}"
            note(f"{counted(left, 'take')} not made; to make what is left: --takes {left}{seed}")
    which = _which(options.out, options.name, options.cast)
    note(f"to keep one: storyreel keep {shlex.quote(str(story))} {scene} TAKE{which}")


def keep(
    story: OneStory,
    scene: Number,
    take: Annotated[int, typer.Argument(help="The take's number; 1 is the first.", metavar="TAKE", min=1)],
    out: Out = USUAL_OUT,
    name: Name = None,
    cast: Cast = None,
    as_json: Json = False,
) -> None:
    """Write into the story which take of a scene the film shows. The next render shows it.

    The rest of the file stays as it is, comments too.
    """
    from storyreel.film.takes import find_take, texts_of
    from storyreel.story.edit import edit_story, with_scene_key

    casting = read_casting(cast or ())
    loaded = _read(story, scene, casting)
    if name is not None:
        check_film_name(name)
    present, folder = loaded.scenes[scene - 1].retake, out / (name or film_name(story))
    written: Any = None
    if take > 1 and not (present and present.take == take):
        found = find_take(folder, texts_of(loaded.model_dump(mode="json")), scene, take)
        written = found.written
        if not found.fits(_film(folder)):
            note(f"take {take} was made with other settings than the film; the next render makes it anew")
    elif present and present.take == take:
        written = present.written

    def with_take(text: str) -> str:
        return with_scene_key(text, scene, "retake", written, str(story))

    changed = edit_story(story, with_take, casting)
    if as_json:
        print_json({"story": story, "scene": scene, "take": take, "changed": changed})
    else:
        print(printable(f"{story}: scene {scene} shows take {take}"))
    which = _which(out, name, cast)
    seed = None if loaded.render.seed is not None else _seed_of_film(folder)
    which += f" --seed {seed}" if seed else ""
    note(
        "to bring the film up to date, with the options that it was rendered with: "
        f"storyreel render {shlex.quote(str(story))}{which}"
    )


def _which(out: Path, name: str | None, cast: Sequence[str] | None) -> str:
    """Return the options that say which film it is, for a command that somebody will copy."""
    given = [("--out", str(out))] if out != USUAL_OUT else []
    given += [("--name", name)] if name is not None else []
    given += [("--cast", member) for member in cast or ()]
    return "".join(f" {option} {shlex.quote(value)}" for option, value in given)


def _warnings(plan: Plan, scene: int, name: str, options: RetakeOptions, engine: Engine) -> Iterator[str]:
    """Yield what to know before a take is made: what else is rendered, and what it will not fit."""
    from storyreel.film.differences import setting_differences
    from storyreel.film.reasons import looked_up

    device = engine.device_kind(plan.spec)
    inventory, before = looked_up(plan, options.out, name, frozenset({scene - 1}), device)
    if before is not None and (found := setting_differences(before, inventory.facts)):
        yield f"the film that is there was made otherwise, and the take will not fit it: {'; '.join(found)}"
    if others := sorted({s.index + 1 for s in inventory.undone if s.index != scene - 1}):
        numbers = ", ".join(map(str, others))
        yield f"not there yet, and rendered first, since the take has to fit to them: scenes {numbers}"


def _read(story: Path, scene: int, casting: Casting = NOBODY_ELSE) -> Story:
    """Return a story that has a scene of this number. Raises UsageError or ScriptError."""
    if story == STDIN:
        raise UsageError("takes are of a story in a file", "Save the story, and name its file.")
    loaded = load_story(story, casting)
    if scene > len(loaded.scenes):
        has = counted(len(loaded.scenes), "scene")
        raise UsageError(f"{story} has no scene {scene}", f"It has {has}; they count from 1.")
    return loaded


def _film(path: Path) -> Manifest | None:
    """Return the manifest of the film that is there, or was begun; None if there is none."""
    from storyreel.film.folder import FilmFolder

    folder = FilmFolder(path, path.name)
    folder.load()
    return folder.present or folder.unfinished


def _seed_of_film(path: Path) -> int | None:
    """Return the seed of the film that is there; None if there is none."""
    there = _film(path)
    settings = there.facts.get("settings") if there else None
    seed = settings.get("seed") if isinstance(settings, dict) else None
    return seed if isinstance(seed, int) else None


def _plans(
    story: Story,
    scene: int,
    options: RetakeOptions,
    name: str,
    takes: int,
    prompt: str | None,
    action: str | None,
) -> list[Plan]:
    """Return the plan of the film with each new take, numbered after those that there are."""
    from storyreel.film.takes import read_takes, takes_of_scene, texts_of

    present = story.scenes[scene - 1].retake
    taken = {1, present.take if present else 1}
    texts = texts_of(story.model_dump(mode="json"))
    listed = takes_of_scene(read_takes(options.out / name), texts, scene)
    taken |= {take.take for take in listed}
    plans = []
    for count in range(takes):
        seed = None if options.take_seed is None else options.take_seed + count
        given = {"seed": seed, "scene": prompt, "action": action}
        said = {key: value for key, value in given.items() if value is not None}
        warned: dict[str, ScriptError] = {}
        # A take with a seed of its own is always the same one: it is not made under a second number.
        same = [
            t.take
            for t in listed
            if seed is not None and (t.seed, t.scene, t.action) == (seed, prompt, action)
        ]
        number = same[0] if same else max(taken) + 1
        taken.add(number)
        retaken = with_retake(story, scene, {"take": number, **said})
        plans.append(options.plan(retaken, name, warned))
        if not count:
            warn(warned)
    return plans


def _make(plan: Plan, scene: int, name: str, options: RetakeOptions, engine: Engine) -> Take:
    """Render a take and say so."""
    from storyreel.cli.display import RenderDisplay
    from storyreel.film.takes import find_take, texts_of
    from storyreel.rendering import render_take

    take = plan.segments[scene - 1].take
    with RenderDisplay(f"{name}, scene {scene}, take {take}") as display:
        render_take(plan, scene - 1, name, options.out, engine, display)
    return find_take(options.out / name, texts_of(plan.story), scene, take)


def _tell(
    made: list[Take], story: Story, scene: int, name: str, options: RetakeOptions, as_json: bool
) -> None:
    """Show the takes that were made beside those that were there, and print where they are."""
    folder = options.out / name
    sheet = _sheet(folder, name, scene, story, options)
    if as_json:
        print_json({"scene": scene, "sheet": sheet, "takes": [_facts(take, folder) for take in made]})
        return
    for take in made:
        print(f"take {take.take}: {_video(take, folder)}")
    print(sheet)


def _sheet(folder: Path, name: str, scene: int, story: Story, options: RetakeOptions) -> Path:
    """Lay all takes of a scene side by side, that of the film first, and return the picture's path."""
    from storyreel.film.folder import FilmFolder
    from storyreel.film.reasons import looked_up
    from storyreel.film.recorded import renew_page
    from storyreel.film.takes import read_takes, record_take, takes_of_scene, takes_sheet, texts_of

    film, index = FilmFolder(folder, name), scene - 1
    film.load()
    plan = options.plan(with_first_take(story, scene), name)
    inventory, _ = looked_up(plan, options.out, name, frozenset({index}))
    if inventory.is_complete_at(index):  # the first take is one of them
        record_take(folder, plan, inventory, index)
    texts = texts_of(plan.story)
    takes = takes_of_scene(read_takes(folder), texts, scene)
    size = plan.settings.width, plan.settings.height
    picture = takes_sheet(folder, film.present, scene, texts, takes, size)
    renew_page(folder)  # which shows the takes too
    return picture


def _video(take: Take, folder: Path) -> Path:
    return folder / "segments" / take.video


def _facts(take: Take, folder: Path) -> dict[str, Any]:
    return {
        "take": take.take,
        "seed": take.seed,
        "scene": take.scene,
        "action": take.action,
        "video": _video(take, folder),
    }


def _print_plans(plans: list[Plan], scene: int, name: str, options: RetakeOptions, as_json: bool) -> None:
    """Print what takes would cost."""
    from storyreel.film.reasons import looked_up

    rows = []
    for plan in plans:
        inventory, _ = looked_up(plan, options.out, name, frozenset({scene - 1}))
        others = [segment.index + 1 for segment in inventory.undone if segment.index != scene - 1]
        take = plan.segments[scene - 1]
        rows.append({"take": take.take, "forwards": inventory.evaluations(), "first": sorted(set(others))})
        if not as_json:
            print(f"{name}: scene {scene}, take {take.take}: {inventory.evaluations()} model evaluations")
            print(f"  scene:  {take.scene}\n  action: {take.action}")
            if others:
                numbers = ", ".join(map(str, sorted(set(others))))
                print(f"  scenes that it has to fit to are not there yet and are rendered first: {numbers}")
    if as_json:
        print_json({"scene": scene, "takes": rows})
