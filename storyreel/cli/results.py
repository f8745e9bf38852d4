"""What ``--json`` prints: one shape for every command, published by ``storyreel schema --of COMMAND``.

A key that is not here is never printed, except where a shape says that it is open; keys may be added.
"""

from __future__ import annotations

import json
import os
from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from storyreel.errors import ScriptError, StoryreelError, UsageError
from storyreel.method.settings import Method
from storyreel.story.plan import Card, Seam, Segment

CLOSED, OPEN = ConfigDict(extra="forbid"), ConfigDict(extra="allow")
SCHEMA_ID = "https://storyreel.invalid/{}.result.schema.json"  # a name, not a place to fetch from


@with_config(CLOSED)
class Fault(TypedDict):
    """A fault of a story at its place, or what its model cannot draw; lines and columns count from 1."""

    line: int
    column: int
    message: str


@with_config(CLOSED)
class Done(TypedDict):
    """A film, or with state "parts" some scenes of it: ``rendered`` of its ``segments`` were made now.

    ``videos`` are the files of the scenes that were asked for, by their numbers.
    """

    state: Literal["done", "parts"]
    film: str
    segments: int
    rendered: int
    seconds: float
    videos: dict[str, str]
    warnings: list[Fault]


@with_config(CLOSED)
class Failed(TypedDict):
    """A story that could not be rendered."""

    state: Literal["failed"]
    error: str
    exit_code: int


@with_config(CLOSED)
class Planned(TypedDict):
    """What ``--dry-run`` knows of a film; times in seconds of the film, estimates in seconds of work.

    ``missing`` says why each scene that is not there would be rendered, by its number; null if that is not
    known. ``pictures`` are the names of the files with which scenes begin, by their SHA-256.
    """

    title: str
    model: str
    seed: int
    width: int
    height: int
    steps: int
    guidance: float
    guidance_2: float | None
    guidance_rescale: float
    negative: str
    shift: float | None
    speed: str
    quantize: str
    method: Method
    size: str
    fps: int
    frames: int
    seconds: float
    forwards: int
    latents: int
    estimated_seconds: float | None
    estimated_memory_mb: int | None
    estimated_on: str | None
    gpu_memory_gb: dict[str, float]
    machine_memory_gb: dict[str, float]
    machine_memory_free_gb: float
    weights_there: bool
    segments: list[Segment]
    pictures: dict[str, str]
    seams: list[Seam]
    sounds: list[dict[str, Any]]
    missing: dict[str, str] | None
    cards: list[Card]
    warnings: list[Fault]


@with_config(CLOSED)
class Verified(TypedDict):
    """A film that was read back: how many files, and what is wrong with which."""

    whole: bool
    files: int
    wrong: dict[str, str]


@with_config(CLOSED)
class Status(TypedDict):
    """How a film is; ``total`` is known once it is planned, ``job`` and ``slurm`` if it was submitted."""

    state: Literal["done", "running", "stopped", "failed", "waiting"]
    scenes: int
    total: int | None
    reason: str
    job: NotRequired[str]
    slurm: NotRequired[str | None]


@with_config(CLOSED)
class Submitted(TypedDict):
    """An array job: ``films`` has the story of each element by its film's name, in order."""

    job: str
    submitted: str
    films: dict[str, str]


@with_config(CLOSED)
class Script(TypedDict):
    """The script of an array job that ``--dry-run`` does not submit; ``films`` as in `Submitted`."""

    script: str
    films: dict[str, str]


@with_config(CLOSED)
class Signed(TypedDict):
    """What is known of a film's signature: ``unread`` without the packages that read it.

    ``signer`` is who the certificate says it is, ``generator`` the program that made the film, ``source``
    IPTC's term for how; ``problems`` are what is wrong, in C2PA's codes.
    """

    state: Literal["none", "unread", "valid", "trusted", "invalid", "tampered"]
    signer: str
    generator: str
    source: str
    problems: list[str]


@with_config(OPEN)
class Inspected(TypedDict):
    """A film's tags, by their names, and its signature."""

    signature: Signed


@with_config(CLOSED)
class Exported(TypedDict):
    """A file for other programs: of a ``scene``, from 1, or of the film; ``frames`` are its pictures."""

    format: str
    file: str
    scene: int | None
    frames: int | None
    bytes: int


@with_config(CLOSED)
class Cleaned(TypedDict):
    """What a film's folder could do without, or did; ``reason`` says why it was left alone."""

    folder: str
    files: list[str]
    bytes: int
    removed: bool
    reason: str


@with_config(CLOSED)
class Validated(TypedDict):
    """A story: its scenes and seconds if it is valid, else its faults, or why it cannot be read."""

    valid: bool
    scenes: int | None
    seconds: float | None
    faults: list[Fault]
    warnings: list[Fault]
    error: str
    notes: list[str]


@with_config(CLOSED)
class Imported(TypedDict):
    """A story that a file of another program became.

    ``story`` is its text, ``file`` where that was written, or null. ``guessed`` is what the source does not
    say, ``left_out`` what a story has no place for, ``changed`` lengths that the model cannot have, and
    ``problems`` are why the model cannot render the story as it is.
    """

    format: str
    file: str | None
    story: str
    scenes: int
    cast: list[str]
    guessed: list[str]
    left_out: list[str]
    changed: list[str]
    problems: list[Fault]


@with_config(CLOSED)
class Fit(TypedDict):
    """The highest memory mode that a card allows, and the GB that it takes of the card and of the machine."""

    mode: str
    gpu_gb: float
    machine_gb: float


@with_config(CLOSED)
class Fits(TypedDict):
    """How a model runs on a card, by how its weights are stored: calculated, at its default size and length.

    A model that needs no GPU has no ``storage``. ``seconds_per_scene`` were measured on ``measured_on``.
    """

    storage: dict[str, Fit]
    seconds_per_scene: float | None
    measured_on: str | None


@with_config(OPEN)
class Model(TypedDict):
    """A model's entry in the table, or a variant's, with the folder of its weights.

    ``draws`` is there if one model is asked for, and all that it can draw is known; ``fits`` with --fits.
    """

    name: str
    title: str
    licence: str
    weights: str
    fps: int
    steps: int
    memory_gb: dict[str, float]
    draws: NotRequired[dict[str, Any]]
    fits: NotRequired[Fits]


@with_config(CLOSED)
class Pulled(TypedDict):
    """The folder of what was fetched, or was there already."""

    folder: str


@with_config(OPEN)
class Benched(TypedDict):
    """What each variant takes, measured or calculated."""

    model: str
    size: str
    frames: int
    steps: int
    variants: list[dict[str, Any]]


@with_config(OPEN)
class Step(TypedDict):
    """A measurement of a lent hour: its ``result`` if it is done, its ``error`` or ``reason`` if not."""

    step: str
    state: Literal["done", "failed", "skipped"]


@with_config(CLOSED)
class Measured(TypedDict):
    """The measurements of a lent hour, in their order, and the folder where each is a file."""

    folder: str
    steps: list[Step]


@with_config(CLOSED)
class MadeFolder(TypedDict):
    """A folder with a model's random weights."""

    model: str
    folder: str


@with_config(OPEN)
class Scored(TypedDict):
    """A film with its scores and findings."""

    run: str
    name: str
    file: str
    sha256: str
    scores: dict[str, Any]
    findings: list[dict[str, Any]]


@with_config(CLOSED)
class Tabled(TypedDict):
    """One of the paper's tables: what stands in its columns, row by row, and what is to be said of it.

    Of every row ``cells`` has each column by its key: ``mean``, ``std`` and ``count`` over stories, the
    ``difference`` to the first row, and ``why`` there is no number.
    """

    number: Literal[2, 3]
    title: str
    panels: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    notes: list[str]


@with_config(OPEN)
class Evaluated(TypedDict):
    """All films, their runs side by side, and which metrics have no value, and why.

    ``command`` is what was typed; ``table`` is there if one was asked for.
    """

    command: list[str]
    table: NotRequired[Tabled]
    metrics: dict[str, dict[str, Any]]
    missing: dict[str, str]
    summary: dict[str, dict[str, Any]]
    differences: dict[str, dict[str, Any]]
    films: list[Scored]


@with_config(CLOSED)
class Costed(TypedDict):
    """What films took, each in a process of its own, and with what versions and weights they were made."""

    command: list[str]
    storyreel: str
    versions: dict[str, str]
    models: dict[str, dict[str, Any]]
    films: list[dict[str, Any]]
    table: Tabled


@with_config(CLOSED)
class Checked(TypedDict):
    """One thing about this machine; ``remedy`` says what to do where it is not ``ok``."""

    ok: bool
    found: str
    remedy: str


@with_config(CLOSED)
class MadeTake(TypedDict):
    """A take of a scene; ``scene`` and ``action`` are other prompts than the scene's own, if any."""

    take: int
    seed: int | None
    scene: str | None
    action: str | None
    video: str


@with_config(CLOSED)
class Retaken(TypedDict):
    """The takes that were made of the scene with a number, and the picture that shows all of its takes."""

    scene: int
    sheet: str
    takes: list[MadeTake]


@with_config(CLOSED)
class PlannedTake(TypedDict):
    """A take that would be made, and the scenes that would be rendered ``first``: it has to fit to them."""

    take: int
    forwards: int
    first: list[int]


@with_config(CLOSED)
class PlannedTakes(TypedDict):
    """The takes of a scene that would be made."""

    scene: int
    takes: list[PlannedTake]


@with_config(CLOSED)
class SheetPicture(TypedDict):
    """A picture of a sheet: of which scene, with which seed of its own, and where it is.

    ``box`` is left, top, right and bottom in pixels; ``chosen`` whether the film is made like that.
    """

    number: int
    scene: str
    action: str
    seed: int | None
    chosen: bool
    key: str
    box: list[int]


@with_config(CLOSED)
class Drawn(TypedDict):
    """A contact sheet; ``forwards`` model evaluations were made now."""

    sheet: str
    title: str
    pictures: list[SheetPicture]
    forwards: int
    seconds: float
    warnings: list[Fault]


@with_config(CLOSED)
class Kept(TypedDict):
    """The take of a scene that a story's film shows; ``changed`` says whether the file was."""

    story: str
    scene: int
    take: int
    changed: bool


@with_config(CLOSED)
class SeedsKept(TypedDict):
    """A story in which scenes, by their number, have got a seed, or None lost theirs."""

    story: str
    seeds: dict[str, int | None]
    changed: bool


SHAPES: dict[str, Any] = {
    "sheet": Drawn | SeedsKept,
    "render": dict[str, Done | Failed] | dict[str, Planned | Failed] | dict[str, Verified | Failed],
    "batch": dict[str, Done | Failed] | dict[str, Planned | Failed] | dict[str, Status] | Submitted | Script,
    "submit": Submitted | Script,
    "retake": Retaken | PlannedTakes,
    "keep": Kept,
    "status": dict[str, Status],
    "verify": dict[str, Verified | Failed],
    "inspect": Inspected,
    "export": list[Exported],
    "clean": list[Cleaned],
    "import": Imported,
    "validate": dict[str, Validated],
    "eval": Evaluated,
    "ablate": Evaluated | Costed | dict[str, Planned],
    "models": dict[str, Model],
    "pull": dict[str, Pulled],
    "bench": Benched | Measured | MadeFolder,
    "info": dict[str, Checked],
    "doctor": dict[str, Checked],
}


def result_schema(command: str) -> dict[str, Any]:
    """Return the JSON Schema of what a command prints with ``--json``. Raises UsageError."""
    if command not in SHAPES:
        raise UsageError(f"{command!r} prints no JSON", f"Name one of: {', '.join(SHAPES)}")
    schema = TypeAdapter(SHAPES[command]).json_schema(mode="serialization")
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {
        "$schema": dialect,
        "$id": SCHEMA_ID.format(command),
        "title": f"storyreel {command} --json",
    } | schema


def faults_of(error: StoryreelError | None) -> list[Fault]:
    """Return the faults of a story as plain data; of any other error there are none."""
    faults = error.faults if isinstance(error, ScriptError) else []
    return [{"line": fault.line, "column": fault.column, "message": fault.message} for fault in faults]


def failed(error: Any) -> Failed:
    """Return what is said of a story that failed."""
    return {"state": "failed", "error": error.message, "exit_code": error.exit_code}


def print_json(result: object) -> None:
    """Print a result. Paths become text; what is no number in JSON is refused."""
    print(json.dumps(result, indent=2, allow_nan=False, default=os.fspath))
