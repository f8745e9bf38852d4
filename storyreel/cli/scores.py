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
    exclude,
    option,
)
from storyreel.cli.reading import (
    check_out,
    check_written,
    film_folder,
    missing_weights,
    raise_all,
    read,
    warn,
)
from storyreel.cli.rendering import print_plans
from storyreel.cli.results import print_json
from storyreel.cli.tables import TableOptions
from storyreel.errors import ScriptError, StoppedError, StoryreelError, UsageError
from storyreel.models.device_errors import check_device
from storyreel.stopping import KEPT, stopping
from storyreel.story.casting import read_casting
from storyreel.story.naming import film_name

if TYPE_CHECKING:
    from storyreel.evaluation.ablation import PlannedFilm
    from storyreel.evaluation.films import Film
    from storyreel.evaluation.result import Evaluation
    from storyreel.story.schema import Story

FOREIGN, METRICS = "A film that something else made", "Metrics"  # groups of options
Segments = Annotated[
    str, option("WHERE", "Where its scenes begin: chapters, equal, or seconds, as in 2.5,5,7.5.", FOREIGN)
]
Fps = Annotated[
    float | None,
    option("N", "How often a second films are looked at. Default: as suits them all.", min=0.1, max=999),
]
WeightsDir = Annotated[Path | None, option("DIR", "A folder of pretrained models, by their names.", METRICS)]


def evaluate(
    context: typer.Context,
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
    segments: Segments = "chapters",
    fps: Fps = None,
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
    weights_dir: WeightsDir = None,
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
    from storyreel.evaluation.report import is_report

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
    check_fps(fps)
    if unknown := set(require or ()) - set(known := known_metrics()):
        raise UsageError(f"unknown metric {min(unknown)!r}", f"Known: {', '.join(known)}")
    check_weights_dir(weights_dir)
    check_weights(weights)
    if report is not None:
        check_written(report, "--report", "report", is_report)
    if cast and not stories:
        raise UsageError("--cast is for --story", "A film of storyreel's says itself who plays in it.")
    pairs, casting = zip(stories, videos, strict=True), read_casting(cast or ())
    films, errors = collect(folders, [partial(foreign_film, *pair, segments, casting) for pair in pairs], fps)
    if films:
        beside = folders[0] if folders and folders[0].is_dir() else films[0].path.parent
        page = report or beside / "eval.html"
        check_written(page, "--report", "report", is_report)  # before anything is scored
        evaluation = _evaluated(films, errors, require or (), weights_dir, own, weights, device)
        _show_evaluation(evaluation, page, as_json, list(context.obj))
    raise_all(errors)


def check_fps(fps: float | None) -> None:
    """Raise UsageError for what is no number of frames a second."""
    if fps is not None and not math.isfinite(fps):
        raise UsageError(f"--fps {fps} is not a frame rate", "Give the frames of a second, as in 23.976.")


def check_weights_dir(folder: Path | None) -> None:
    """Raise UsageError for what is no folder."""
    if folder is not None and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", "Name the folder that holds the models' folders.")


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


def _show_evaluation(evaluation: Evaluation, page: Path, as_json: bool, command: list[str]) -> None:
    """Print an evaluation, and write its report."""
    from storyreel.cli.display import print_comparison, print_findings, say
    from storyreel.evaluation.report import report_page
    from storyreel.files import write_atomically, writing
    from storyreel.film.recorded import renew_page

    if as_json:
        print_json({"command": command, **evaluation.plain()})
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
    context: typer.Context,
    stories: Stories,
    options: ManyOptions,
    tables: TableOptions,
    seeds: Annotated[
        int | None, option("N", "How many, from the seed on. Default: 3, of table 2 one.", min=1)
    ] = None,
    variants: Annotated[
        str,
        option(
            "NAMES",
            "Some of full, without-dipw, without-twb, without-identity, without-sar, without-all, "
            "crossfade, continuation, published, scene-alone, of table 2 also stock, with commas between. "
            "Default: all, of table 2 the first six and stock.",
        ),
    ] = "",
    row: Annotated[
        list[str] | None,
        option("NAME:KEY=V", "A variant of your own, as in mine:overlap=4,gamma=0.2; may be repeated."),
    ] = None,
    video: Annotated[
        list[str] | None,
        option(
            "NAME=FOLDER",
            "Films of the same stories that something else made, called as the stories are; may be repeated.",
            FOREIGN,
        ),
    ] = None,
    segments: Segments = "chapters",
    fps: Fps = None,
    weights_dir: WeightsDir = None,
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
    from storyreel.evaluation.variants import COST_ROWS, COSTS

    known_metrics()  # a plugin's metric that is none is refused before films are made
    tables.check(as_json)
    check_fps(fps)
    check_weights_dir(weights_dir)
    exclude("--casts", options.casts is not None, {"--video": bool(video)})
    is_cost = tables.table == "2"
    if is_cost:
        exclude("--table 2", True, {"--video": bool(video), "--weights-dir": weights_dir is not None})
        exclude("--table 2", True, {"--fps": fps is not None, "--plugin": bool(options.plugin)})
        chosen = ablation.pick_variants(variants, COSTS, COST_ROWS)
    else:
        chosen = ablation.pick_variants(variants)
    known = {variant.slug for variant in (*COSTS, *chosen)}
    own = ablation.own_rows(row or (), known)
    chosen = (*chosen, *own)
    count = seeds or (1 if is_cost else 3)

    warned: dict[str, ScriptError] = {}

    def plan(story: Story, name: str) -> list[ablation.PlannedFilm]:
        options.plan(story, name, warned)  # all of the story's films are warned of alike
        return ablation.plan_films(story, name, count, chosen, options.overrides(story))

    casts = options.cast_files()
    planned, errors = read(stories, plan, film_name, casting=options.casting(), casts=casts)
    raise_all(errors.values())
    files = {film_name(path): path for path in stories}
    videos = ablation.find_videos(video or (), files, {*known, *(variant.slug for variant in own)})
    check_out(out)
    check_weights(options.weights)
    warn(warned)
    wanted = [film for group in planned.values() for film in group]
    foreign, wrong = ablation.foreign_films(videos, files, wanted, out, segments, options.casting(), fps)
    raise_all(wrong)
    if dry_run:
        labels = {film.label: name for name, group in planned.items() for film in group}
        of_films = {label: warned[name] for label, name in labels.items() if name in warned}
        print_plans({film.label: film.plan for film in wanted}, of_films, as_json, {})
        return
    from storyreel.cli.display import RenderDisplay, print_comparison, say
    from storyreel.rendering import Engine

    raise_all(missing_weights((film.label, film.plan) for film in wanted).values())
    if is_cost:
        _show_costs(wanted, out, options, tables, list(context.obj), as_json)
        return
    for name, of_story in videos.items():
        if left_out := sorted({*files} - {*of_story}):
            say(f"{name}: no film of {', '.join(left_out)}; it is compared by the others")
    with stopping(KEPT) as stop:
        engine = Engine(options.device, stop=stop)
        films, wrong = ablation.render_films(wanted, out, engine, RenderDisplay, say, foreign, fps)
        del engine  # with the model: what scores films needs the memory
        evaluation = _evaluated(
            films, wrong, weights_dir=weights_dir, weights=options.weights, device=options.device
        )
    result = {"command": list(context.obj), **evaluation.plain()}
    if tables.table is not None and evaluation.films:
        from storyreel.evaluation.result import rows_of
        from storyreel.evaluation.tables import TITLES, quality_table

        rows = rows_of(evaluation.films)
        titles = {row.run: TITLES.get(Path(row.run).name, Path(row.run).name) for row in rows}
        table = quality_table(rows, titles, evaluation.missing, tables.published, tables.further())
        tables.show(table, {**result, "table": table.plain()}, as_json)
        for scored in evaluation.films:
            for note in scored.notes:
                say(f"{scored.film.label}: {note}")
    else:
        print_json(result) if as_json else print_comparison(evaluation)
    raise_all(wrong)


def _show_costs(
    wanted: Sequence[PlannedFilm],
    out: Path,
    options: ManyOptions,
    tables: TableOptions,
    command: list[str],
    as_json: bool,
) -> None:
    """Render every film in a process of its own, and print what that took; a film that fails is left out."""
    from storyreel.benchmark.whole_films import check_stock, film_versions, measured
    from storyreel.cli.display import say
    from storyreel.evaluation.statistics import Row
    from storyreel.evaluation.tables import TITLES, cost_table
    from storyreel.evaluation.variants import STOCK
    from storyreel.files import digest

    for spec in {film.plan.spec.label: film.plan.spec for film in wanted if film.variant == STOCK}.values():
        check_stock(spec)
    rows, films, failed = [], [], []
    with stopping() as stop:
        for film in wanted:
            try:
                cost = measured(film.plan, film.variant == STOCK, options.device, out, stop)
            except StoppedError:
                raise
            except StoryreelError as error:
                say(f"{film.label}: not measured")
                failed.append(error)
                continue
            say(f"{film.label}: {cost.seconds:.1f} s, {cost.memory_gb:.3f} GB")
            numbers = {key: getattr(cost, key) for key in ("memory_gb", "seconds", "forwards", "latents")}
            run = film.variant.slug
            rows.append(Row(run, (film.story, film.seed), film.story, numbers))
            films.append(
                {"run": run, "name": film.name, "story": film.story, "seed": film.seed, **vars(cost)}
                | {"story_sha256": digest(film.plan.story), "settings": film.plan.settings.facts}
            )
    if not films:
        raise_all(failed)
    specs = {film.plan.spec.label: film.plan.spec for film in wanted}
    devices = ", ".join(sorted({film["device"] for film in films}))
    notes = [
        f"{', '.join(specs)}, {devices}. Each film was made in a process of its own, from nothing; the "
        "model was loaded before, and not compiled. Seconds are of denoising, decoding and encoding. "
        "Memory is the peak of what torch had allocated on a GPU, on a CPU that of what the process had "
        "resident, ffmpeg's left out; a GB has 1,000 MB.",
    ]
    table = cost_table(rows, {row.run: TITLES.get(row.run, row.run) for row in rows}, notes, tables.published)
    result = {
        "command": command,
        **film_versions(specs.values()),
        "films": films,
        "table": table.plain(),
    }
    tables.show(table, result, as_json)
    raise_all(failed)
