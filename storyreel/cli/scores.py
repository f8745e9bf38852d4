"""Commands about how good films are: eval and ablate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from storyreel.cli.options import (
    WORK,
    Cast,
    Device,
    DryRun,
    Json,
    ManyOptions,
    Plugins,
    Stories,
    Weights,
    check_weights,
    option,
)
from storyreel.cli.reading import check_out, film_folder, missing_weights, raise_all, read, warn
from storyreel.cli.rendering import print_plans
from storyreel.cli.results import print_json
from storyreel.errors import ScriptError, StoryreelError, UsageError
from storyreel.models.device_errors import check_device
from storyreel.stopping import KEPT, stopping
from storyreel.story.casting import read_casting
from storyreel.story.naming import film_name

if TYPE_CHECKING:
    from storyreel.evaluation.films import Film
    from storyreel.evaluation.result import Evaluation
    from storyreel.story.schema import Story

FOREIGN, METRICS = "A film that something else made", "Metrics"  # groups of options


def evaluate(
    out: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Films, their folders, or runs to compare: folders of films.", metavar="FILM|OUT…"
        ),
    ] = None,
    story: Annotated[
        list[Path] | None, option("FILE", "The story that it tells; with --video.", FOREIGN)
    ] = None,
    video: Annotated[list[Path] | None, option("FILE", "That film.", FOREIGN)] = None,
    cast: Cast = None,
    segments: Annotated[
        str,
        option("WHERE", "Where its scenes begin: chapters, equal, or seconds, as in 2.5,5,7.5.", FOREIGN),
    ] = "chapters",
    fps: Annotated[
        float | None,
        option("N", "How often a second films are looked at. Default: as suits them all.", min=0.1, max=999),
    ] = None,
    own: Annotated[
        bool,
        typer.Option(
            "--own/--no-own",
            help="Ask the film's model too, its encoder and its judge, or not. Default: --own.",
            rich_help_panel=METRICS,
        ),
    ] = True,
    require: Annotated[
        list[str] | None,
        option("METRIC", "Fail if this metric's weights are missing; may be repeated.", METRICS),
    ] = None,
    weights_dir: Annotated[
        Path | None, option("DIR", "A folder of pretrained models, by their names.", METRICS)
    ] = None,
    weights: Weights = None,
    device: Device = "auto",
    plugin: Plugins = None,  # which `as_command` minds
    report: Annotated[
        Path | None, option("FILE", "The HTML report. Default: eval.html in the first OUT.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score films and say where they are bad; several OUT are compared, paired by story.

    Nothing is fetched: metrics whose weights are not here have no value (storyreel pull eval).
    """
    check_device(device)
    from storyreel.evaluation.films import collect, foreign_film
    from storyreel.evaluation.metrics import known_metrics

    stories, videos = story or [], video or []
    folders = [film_folder(path) or path for path in out or ()]
    if len(stories) != len(videos):
        raise UsageError("--story and --video belong together", "Give as many of one as of the other.")
    if not folders and not videos:
        raise UsageError("there is nothing to score", "Name a rendered folder, or --story and --video.")
    for path in folders:
        if path.is_file():
            remedy = f"Name the story that it tells: storyreel eval --story FILE --video {path}"
            raise UsageError(f"{path} does not lie in the folder of a render", remedy)
    if fps is not None and not math.isfinite(fps):
        raise UsageError(f"--fps {fps} is not a frame rate", "Give the frames of a second, as in 23.976.")
    if unknown := set(require or ()) - set(known := known_metrics()):
        raise UsageError(f"unknown metric {min(unknown)!r}", f"Known: {', '.join(known)}")
    if weights_dir is not None and not weights_dir.is_dir():
        raise UsageError(f"{weights_dir} is not a folder", "Name the folder that holds the models' folders.")
    check_weights(weights)
    if cast and not stories:
        raise UsageError("--cast is for --story", "A film of storyreel's says itself who plays in it.")
    pairs, casting = zip(stories, videos, strict=True), read_casting(cast or ())
    films, errors = collect(folders, [partial(foreign_film, *pair, segments, casting) for pair in pairs], fps)
    if films:
        beside = folders[0] if folders and folders[0].is_dir() else films[0].path.parent
        evaluation = _evaluated(films, errors, require or (), weights_dir, own, weights, device)
        _show_evaluation(evaluation, report or beside / "eval.html", as_json)
    raise_all(errors)


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
    from storyreel.cli.display import FilmBar, say
    from storyreel.evaluation.evaluator import Evaluator, evaluate
    from storyreel.models.devices import pick_device

    evaluator = Evaluator(pick_device(device), weights_dir, own, weights)
    evaluator.require(require)
    evaluation, failed = evaluate(films, evaluator, lambda film: FilmBar(film.label, film.frames), say)
    errors += failed
    return evaluation


def _show_evaluation(evaluation: Evaluation, page: Path, as_json: bool) -> None:
    """Print an evaluation, and write its report."""
    from storyreel.cli.display import print_comparison, print_findings, say
    from storyreel.evaluation.report import report_page
    from storyreel.files import write_atomically, writing
    from storyreel.film.recorded import renew_page

    if as_json:
        print_json(evaluation.plain())
    else:
        print_comparison(evaluation)
        print_findings(evaluation)
    if evaluation.films:
        with writing(page, "name another file: --report FILE", ""):
            write_atomically(page, report_page(evaluation, page.parent))
        for scored in evaluation.films:
            if scored.film.folder is not None:
                renew_page(scored.film.folder)  # which leads to the report from now on
        say(f"report: {page}")


def ablate(
    stories: Stories,
    options: ManyOptions,
    seeds: Annotated[int, option("N", "How many, from the seed on.", min=1)] = 3,
    variants: Annotated[
        str,
        option(
            "NAMES",
            "Some of full, without-dipw, without-twb, without-identity, without-sar, without-all, "
            "crossfade, continuation, published, scene-alone, with commas between. Default: all.",
        ),
    ] = "",
    out: Annotated[Path, option("DIR", "Folder for films and scores.", WORK)] = Path("out/ablation"),
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Render stories with the method, without each part and without all, and compare the films.

    The films are OUT/VARIANT/seed-N/NAME/NAME.mp4, with their scores beside them; a second run does
    only what is missing. `storyreel eval OUT` gives the same numbers, and says what is wrong with each film.
    """
    from storyreel.evaluation import ablation
    from storyreel.evaluation.metrics import known_metrics

    chosen = ablation.pick_variants(variants)
    known_metrics()  # a plugin's metric that is none is refused before films are made

    warned: dict[str, ScriptError] = {}

    def plan(story: Story, name: str) -> list[ablation.PlannedFilm]:
        options.plan(story, name, warned)  # all of the story's films are warned of alike
        return ablation.plan_films(story, name, seeds, chosen, options.overrides(story))

    casts = options.cast_files()
    planned, errors = read(stories, plan, film_name, casting=options.casting(), casts=casts)
    raise_all(errors.values())
    check_out(out)
    check_weights(options.weights)
    warn(warned)
    wanted = [film for group in planned.values() for film in group]
    if dry_run:
        labels = {film.label: name for name, group in planned.items() for film in group}
        of_films = {label: warned[name] for label, name in labels.items() if name in warned}
        print_plans({film.label: film.plan for film in wanted}, of_films, as_json, {})
        return
    from storyreel.cli.display import RenderDisplay, print_comparison, say
    from storyreel.rendering import Engine

    raise_all(missing_weights((film.label, film.plan) for film in wanted).values())
    with stopping(KEPT) as stop:
        engine = Engine(options.device, stop=stop)
        films, wrong = ablation.render_films(wanted, out, engine, RenderDisplay, say)
        del engine  # with the model: what scores films needs the memory
        evaluation = _evaluated(films, wrong, weights=options.weights, device=options.device)
    print_json(evaluation.plain()) if as_json else print_comparison(evaluation)
    raise_all(wrong)
