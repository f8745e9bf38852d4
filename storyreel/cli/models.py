"""Commands about models: what there is, fetching it, and what it takes."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from storyreel.cli.options import (
    Attention,
    Device,
    Json,
    Model,
    Plugins,
    Quantize,
    Size,
    Steps,
    Weights,
    check_weights,
    exclude,
    flag,
    option,
)
from storyreel.cli.reading import check_written
from storyreel.cli.rendering import gpu_memory, machine_memory
from storyreel.cli.results import Fit, Fits, print_json
from storyreel.engine import Engine
from storyreel.errors import UsageError
from storyreel.models.device_errors import check_device
from storyreel.models.memory import fitting_mode
from storyreel.models.specs import MODELS, QUANTIZATIONS, ModelSpec, find_model, model_names
from storyreel.stopping import KEPT, stopping
from storyreel.story.planning import DEFAULT_MODEL, Overrides, longest_scene
from storyreel.story.vocabulary import listing, load_vocabulary

ROUNDS, MINUTES = 3, 25
LENT = "An hour on a GPU, and true sizes without a download"  # a group of options


def _models() -> list[str]:
    return list(model_names())


def _names() -> list[str]:
    return [*MODELS, "eval"]


def models(
    model: Annotated[
        str | None,
        typer.Argument(
            help="This one alone, with all that it can draw, if that is known.",
            metavar="MODEL",
            autocompletion=_models,
        ),
    ] = None,
    fits: Annotated[
        str | None,
        option("GB", "Only what runs on a GPU of so much memory, and in which memory mode."),
    ] = None,
    page: Annotated[Path | None, option("FILE", "Write a page with pictures of what MODEL draws.")] = None,
    plugin: Plugins = None,  # which `as_command` minds
    as_json: Json = False,
) -> None:
    """List the models that can be used, what each needs, and which are there.

    Under each are its variants, MODEL:VARIANT, which take few steps.
    """
    exclude("--fits", fits is not None, {"--page": page is not None})
    gigabytes = None if fits is None else _gigabytes(fits)
    one = find_model(model) if model else None
    names = [name for name in model_names() if model in (None, name, name.partition(":")[0])]
    specs = [find_model(name) for name in names]
    vocabulary = load_vocabulary(one) if one else None
    if page is not None:
        _write_gallery(page, one)
    if gigabytes is not None:
        _print_fitting(specs, gigabytes, as_json)
        return
    if as_json:
        draws = {"draws": asdict(vocabulary)} if vocabulary else {}
        print_json({spec.name: asdict(spec) | draws for spec in specs})
        return
    for spec in specs:
        there = "there" if spec.is_there else f"not there ({spec.remedy})"
        words = f"{spec.name}: {spec.title}, weights {there}, {spec.licence}"
        print(f"  {words}" if spec.name != spec.base and one is None else words)
        if spec.territory:
            print(f"  no rights in {spec.territory}")
        if spec.name != spec.base and one is None:
            continue  # all else is the model's
        print(
            f"  {spec.size[0]}x{spec.size[1]} at {spec.fps} frames per second, scenes of up to "
            f"{longest_scene(spec) * spec.frames_per_latent / spec.fps:g} s, "
            f"{spec.steps} steps" + (f", {spec.memory_mb} MB" if spec.memory_mb else "")
        )
        if spec.memory_gb:
            print(f"  GPU memory {gpu_memory(spec.memory_gb)}")
        if own := machine_memory(spec):
            needs = ", ".join(f"{mode} {size:g} GB" for mode, size in own.items())
            print(f"  the machine's own memory: {needs}, and some 2 GB more")
    for kind, entries in (listing(vocabulary) if vocabulary else {}).items():
        print(f"  {kind}:")
        for entry in entries:
            print(f"    {entry}")
    if vocabulary:
        print("  What a scene leaves open is drawn at random. Wearing nothing cannot be asked for.")


def _gigabytes(text: str) -> float:
    """Read the size of a GPU's memory. Raises UsageError."""
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise UsageError(f"--fits {text!r} is no size of a memory", "Write a card's gigabytes: --fits 24")
    return size


def _print_fitting(specs: Sequence[ModelSpec], gigabytes: float, as_json: bool) -> None:
    """Print which models run on a GPU of so much memory, and how."""
    from storyreel.cli.display import say

    found = {spec.name: _fits(spec, gigabytes) for spec in specs}
    running = [spec for spec in specs if found[spec.name]["storage"] or not spec.gpu_gb]
    if as_json:
        print_json({spec.name: asdict(spec) | {"fits": found[spec.name]} for spec in running})
        return
    for spec in running:
        ways = [
            f"--memory {fit['mode']}{'' if how == 'none' else f' --quantize {how}'}: "
            f"{fit['gpu_gb']:g} GB of the GPU's memory, {fit['machine_gb']:g} GB of the machine's"
            for how, fit in found[spec.name]["storage"].items()
        ]
        print(f"{spec.name}: {spec.title}")
        for way in ways or ["needs no GPU"]:
            print(f"  {way}")
        print(f"  {scene_time(spec)}")
    say("memory is calculated, at the default size and length; that of a film: render STORY --dry-run")
    if left := [spec.name for spec in specs if spec not in running]:
        say(f"too large for {gigabytes:g} GB: {', '.join(left)}")


def _fits(spec: ModelSpec, gigabytes: float) -> Fits:
    """Return how a model runs on a GPU of so much memory."""
    storage: dict[str, Fit] = {}
    for how in QUANTIZATIONS if spec.needs else ("none",):
        stored = spec.quantized(how)
        if (mode := fitting_mode(stored.gpu_gb, gigabytes)) is not None:
            own = machine_memory(stored).get(mode, 0.0)
            storage[how] = {"mode": mode, "gpu_gb": stored.gpu_gb[mode], "machine_gb": own}
    return {
        "storage": storage,
        "seconds_per_scene": spec.seconds_per_scene,
        "measured_on": spec.measured_on,
    }


def scene_time(spec: ModelSpec) -> str:
    """Say how long a scene of the default size and length takes, where somebody has measured it."""
    if spec.seconds_per_scene is None:
        return f"{spec.steps} steps; time not measured yet"
    return f"{spec.steps} steps; a scene takes about {spec.seconds_per_scene:.1f} s on {spec.measured_on}"


def _write_gallery(page: Path, spec: ModelSpec | None) -> None:
    """Write a page with pictures of what a model draws. Raises UsageError where that is not known."""
    from storyreel.cli.display import say
    from storyreel.evaluation.verdicts import asked
    from storyreel.files import write_atomically, writing

    gallery = asked(spec.gallery) if spec else None
    if gallery is None:
        raise UsageError(
            "what a model draws is known only of one that was taught a world of its own",
            "Name it: storyreel models mini --page FILE",
        )
    if page.parent.is_dir():  # else it cannot be written, which is told below
        check_written(page, "--page", "page", _is_gallery)
    text: str = gallery()
    with writing(page, "name another file: --page FILE", ""):
        write_atomically(page, text)
    say(f"page: {page}")


def _is_gallery(path: Path) -> bool:
    """Tell whether a file was written as such a page, by how it begins: only such a file is replaced."""
    with path.open("rb") as file:
        return b" draws</title>" in file.read(1000)


def pull(
    models: Annotated[
        list[str],
        typer.Argument(
            help="See: storyreel models. eval: the models of eval's metrics.",
            metavar="MODEL…",
            autocompletion=_names,
        ),
    ],
    update: Annotated[bool, flag("--update", "Take the newest commit, and hold to it.")] = False,
    accept: Annotated[
        bool,
        typer.Option(
            "--accept-licence",
            "--accept-license",
            help="You accept the licences of these models, where they have conditions.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Fetch and verify the weights of models: the only command that ever contacts a hub.

    Licences are said before any contact, sizes before anything is fetched. A licence that has conditions must
    be accepted, once for each model.
    """
    from storyreel.cli.display import say
    from storyreel.evaluation.weights import WEIGHTS
    from storyreel.models import hub

    specs = [find_model(name) for name in models if name != "eval"]
    results: dict[str, Mapping[str, str]] = {}

    def accepts(licence: str) -> bool:
        # Only somebody who can read the question is asked.
        if accept or as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return accept
        return typer.confirm(f"Do you accept the licence? {licence}", err=True)

    def done(name: str, folder: object) -> None:
        results[name] = {"folder": str(folder)}
        if not as_json:
            print(folder, flush=True)

    try:
        with stopping(KEPT):
            # All licences before any contact, all sizes before the first file: a later model costs no work.
            for spec in specs:
                hub.agree(spec, say, None, accepts)
            found = [hub.find(spec, say, update) for spec in specs]
            for spec, files in zip(specs, found, strict=True):
                done(spec.name, hub.take(spec, files, say))
            for judge in WEIGHTS.values() if "eval" in models else ():
                if judge.hub is not None:
                    done(judge.name, hub.fetch(judge.name, judge.hub, hub.at_the_top, say, update))
    finally:
        if as_json and results:  # what was fetched is told whatever happens to the next
            print_json(results)


def bench(
    model: Model = None,
    variants: Annotated[
        str,
        option(
            "NAMES",
            "Some of stock, plain, full, without-dipw, without-twb, without-sar, balanced, fast, with "
            "commas between. Default: all.",
        ),
    ] = "",
    random_weights: Annotated[
        bool, flag("--random-weights", "Measure without any download: true sizes, random weights.")
    ] = False,
    calculated: Annotated[
        bool, flag("--calculate", "Calculate work and memory: needs neither weights nor a GPU.")
    ] = False,
    fit: Annotated[
        bool, flag("--fit", "With --calculate: print the model's memory as its table entry has it.")
    ] = False,
    frames: Annotated[int | None, option("N", "Of a segment. Default: the model's.", min=2)] = None,
    size: Size = None,
    steps: Steps = None,
    rounds: Annotated[int, option("N", "How often each variant is timed.", min=1)] = ROUNDS,
    compiled: Annotated[bool, flag("--compile", "Compile, stock too. Default: no.")] = False,
    quantize: Quantize = None,
    attention: Attention = None,
    weights: Weights = None,
    device: Device = "auto",
    gpu_day: Annotated[
        Path | None,
        option("DIR", "Measure all that wants a GPU, by itself, and keep the results in DIR.", LENT),
    ] = None,
    minutes: Annotated[
        float | None,
        option("N", f"For how long; what does not fit is left out. Default: {MINUTES}.", LENT, min=0),
    ] = None,
    make_folder: Annotated[
        Path | None,
        option("DIR", "Write MODEL's folder with random weights, for --weights DIR.", LENT),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time a model's variants against diffusers' own pipeline, in turn, on the same inputs.

    With --calculate, what they would take: without weights, without a GPU. With --gpu-day, all that is to be
    measured on a GPU, as far as --minutes reach: a second run does what is missing.
    """
    check_device(device)
    exclude("--fit", fit, {"--json": as_json, "--quantize": quantize is not None, "--size": size is not None})
    exclude("--random-weights", random_weights, {"--weights": weights is not None, "--calculate": calculated})
    of_variants = {
        "--variants": bool(variants),
        "--random-weights": random_weights,
        "--calculate": calculated,
        "--frames": frames is not None,
        "--size": size is not None,
        "--steps": steps is not None,
        "--rounds": rounds != ROUNDS,
        "--compile": compiled,
        "--quantize": quantize is not None,
        "--attention": attention is not None,
        "--weights": weights is not None,
    }
    exclude("--gpu-day", gpu_day is not None, of_variants | {"--make-folder": make_folder is not None})
    exclude("--make-folder", make_folder is not None, of_variants)
    if minutes is not None and gpu_day is None:
        raise UsageError("--minutes is of --gpu-day", "Add --gpu-day DIR, or leave it out.")
    if gpu_day is not None:
        exclude("--gpu-day", True, {"--model": model is not None})
        _measure_all(gpu_day, device, MINUTES if minutes is None else minutes, as_json)
        return
    spec = find_model(model or DEFAULT_MODEL)
    if make_folder is not None:
        _make_folder(spec, make_folder, as_json)
        return
    if quantize is not None:
        spec = spec.quantized(quantize)
    if weights is not None:
        spec = replace(spec, weights=weights)
    seconds = None if frames is None else (frames - 1) / spec.fps
    engine = Engine(device, attention=attention)
    if not calculated:
        engine.check_attention(spec)
    from storyreel.benchmark import run as benches
    from storyreel.benchmark.calculate import CALCULABLE, calculate, entry
    from storyreel.benchmark.variants import STOCK, VARIANTS
    from storyreel.cli.display import print_bench, print_calculation, say
    from storyreel.models.devices import pick_device

    chosen = [name.strip() for name in variants.split(",") if name.strip()]
    overrides = Overrides(
        spec.name, size=size, seconds=seconds, steps=steps, quantize=spec.quantize, weights=spec.weights
    )
    report: Any
    if fit:
        if not calculated:
            raise UsageError("--fit prints what is calculated", "Add --calculate.")
        for name, value in entry(spec).items():
            print(f"{name}={value!r},")
        return
    if calculated:
        report = calculate(spec, overrides, chosen or CALCULABLE)
        print_json(report) if as_json else print_calculation(report)
        return
    check_weights(weights)
    report = benches.bench(
        spec,
        pick_device(device),
        overrides,
        chosen or [STOCK, *VARIANTS],
        rounds,
        random_weights,
        compiled,
        say,
        engine.attention,
    )
    print_json(report) if as_json else print_bench(report)


def _measure_all(folder: Path, device: str, minutes: float, as_json: bool) -> None:
    """Do the measurements of a lent hour, and print their table."""
    from storyreel.benchmark.gpu_day import TABLE, gpu_day
    from storyreel.cli.display import say

    with stopping(KEPT):
        report = gpu_day(folder, device, minutes, say)
    print_json(report) if as_json else print((folder / TABLE).read_text(), end="")


def _make_folder(spec: ModelSpec, folder: Path, as_json: bool) -> None:
    """Write a model's folder with random weights."""
    from storyreel.benchmark.folders import make_folder
    from storyreel.cli.display import say

    with stopping(KEPT):
        made = make_folder(spec, folder, spec.dtype, say)
    print_json({"model": spec.name, "folder": made}) if as_json else print(made)
