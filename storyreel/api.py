"""storyreel in Python: the same films, in the same folders, as the commands make.

Every function raises `storyreel.StoryreelError`, whose text says what to do next. torch and the model are
loaded when something has to be computed, and not before.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storyreel.engine import Engine
from storyreel.errors import DamagedError, MissingError, UsageError
from storyreel.film.folder import FilmFolder
from storyreel.film.hearing import hear
from storyreel.film.manifest import Manifest
from storyreel.film.signature import open_signer
from storyreel.models.device_errors import check_device
from storyreel.models.inventory import check_inventory
from storyreel.rendering import render as render_film
from storyreel.story.casting import read_casting
from storyreel.story.naming import check_film_name, film_name
from storyreel.story.plan import Plan, Segment
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import Story
from storyreel.story.schema import load_story as read_story

if TYPE_CHECKING:
    from storyreel.evaluation.result import Evaluation

PathLike = str | os.PathLike[str]
RENDER = "Render it, which makes what is missing: storyreel.render(STORY)"
INLINE = 16 << 20  # bytes: a larger film is linked from a notebook instead of written into it


@dataclass(frozen=True)
class Progress:
    """How far a render has come.

    ``evaluations`` of the transformer are done of the ``evaluations_needed`` by this call; ``scenes`` are on
    disk of the ``scenes_total`` of the film. ``message`` is what the user should know, mostly "".
    """

    evaluations: int = 0
    evaluations_needed: int = 0
    scenes: int = 0
    scenes_total: int = 0
    message: str = ""


@dataclass(frozen=True)
class Scene:
    """One scene of a film: its two prompts, when it begins and how long it takes, in seconds of the film.

    ``weights`` are those of the scene prompt and of the action prompt in every denoising step, equal ones
    where prompts were not weighted. ``seam`` is its border to the scene before, None for the first:
    ``transition``, ``overlap`` in latent frames, ``strength`` and ``similarity`` from 0 to 1, and how far its
    two ``sides`` were apart before any dissolve, 0 to 255 or None.
    """

    scene: str
    action: str
    start: float
    seconds: float
    weights: tuple[tuple[float, float], ...] = field(repr=False)
    seam: Mapping[str, Any] | None = field(repr=False)


@dataclass(frozen=True)
class Film:
    """A finished film: ``path`` is its MP4, ``settings`` are what it was rendered with.

    It takes so many ``seconds``, cards included. A notebook shows it as a player.
    """

    path: Path
    title: str
    scenes: tuple[Scene, ...]
    settings: Mapping[str, Any] = field(repr=False)
    seconds: float

    @classmethod
    def open(cls, folder: PathLike) -> Film:
        """Return the film in a folder, as in ``out/nyc``, or the film that an MP4 there is.

        Raises MissingError if none is finished there, DamagedError if its manifest is nonsense.
        """
        path = Path(folder)
        path = path.parent if path.is_file() else path
        there = FilmFolder(path, path.name).manifest_path
        manifest = Manifest.read(there)
        if manifest is None and there.is_file():
            raise DamagedError(f"{there} is damaged, or of another version", RENDER)
        if manifest is None or not manifest.film:
            raise MissingError(f"there is no finished film in {path}", RENDER)
        try:
            film = cls._from(manifest, path)
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise DamagedError(f"the manifest of the film in {path} is damaged", RENDER) from error
        if not film.path.is_file():
            raise MissingError(f"{film.path} is not there", RENDER)
        return film

    @classmethod
    def _from(cls, manifest: Manifest, path: Path) -> Film:
        facts, fps = manifest.facts, manifest.facts["settings"]["fps"]
        scenes = [
            Scene(
                part["scene"],
                part["action"],
                part["start"] / fps,
                part["frames"] / fps,
                tuple((scene, action) for scene, action in part["decided"]["prompt_weights"]),
                part["decided"]["seam"],
            )
            for part in manifest.segments
        ]
        settings = facts["settings"] | {"model": facts["model"]["name"]}
        if (name := manifest.film["file"]) != Path(name).name:
            raise ValueError(f"{name!r} is no name of a file")  # a manifest may lead anywhere
        return cls(path / name, facts["title"], tuple(scenes), settings, facts["seconds"])

    @cached_property
    def scores(self) -> Mapping[str, Any]:
        """What `evaluate` measures of it: its "film", "scenes" and "seams". Computed when first asked for."""
        return evaluate(self).films[0].scores

    def _repr_html_(self) -> str:
        if self.path.stat().st_size <= INLINE:
            source = "data:video/mp4;base64," + base64.b64encode(self.path.read_bytes()).decode()
        else:
            source = self.path.absolute().as_uri()
        words = f"{self.title}: {len(self.scenes)} scenes, {self.seconds:g} s"
        return (
            f'<figure><video controls loop muted width="512" src="{escape(source)}"></video>'
            f"<figcaption>{escape(words)}</figcaption></figure>"
        )


def load_story(path: PathLike, *, cast: Mapping[str, str] | PathLike | None = None) -> Story:
    """Read and check a story.

    ``cast`` says who plays in it, as ``--cast`` does: {"first": "a red panda", "first.possessive": "her"}, or
    the path of a YAML file with a cast.
    Raises ScriptError with all of its faults; UsageError without a file, or for somebody it does not know.
    """
    _check_types(cast=(cast, Mapping | str | os.PathLike))
    if cast is None or isinstance(cast, Mapping):
        words = [f"{who}={text}" for who, text in (cast or {}).items()]
    else:
        words = [os.fspath(cast)]
    return read_story(Path(path), read_casting(words))


def plan(
    story: PathLike | Story,
    *,
    name: str | None = None,
    model: str | None = None,
    seed: int | None = None,
    size: str | None = None,
    seconds: float | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str | None = None,
    shift: float | None = None,
    method: Mapping[str, object] | None = None,
    without: str | Iterable[str] | None = None,
    speed: str | None = None,
    quantize: str | None = None,
    lora: PathLike | Sequence[PathLike] | None = None,
    weights: PathLike | None = None,
) -> Plan:
    """Return all that decides a film, before anything is computed: segments, seams, settings.

    What is None is the story's own, else the model's. ``size`` is "WIDTHxHEIGHT" in pixels, ``seconds`` the
    length of scenes that name none, ``negative`` what guidance leads away from, "" for nothing, ``shift`` how
    far noise levels are shifted, of models with a choice, ``method`` has settings of the method by name,
    ``without`` parts of it to leave out: dipw, twb, identity, sar, all, with commas between or one by one;
    ``lora`` are files of LoRAs, each as "FILE" or "FILE=WEIGHT"; ``weights`` is a folder. Raises ScriptError
    for what a story cannot have, UsageError for what the arguments cannot.
    """
    _check_types(
        story=(story, Story | str | os.PathLike),
        model=(model, str),
        size=(size, str),
        seconds=(seconds, int | float),
        guidance=(guidance, int | float),
        negative=(negative, str),
        shift=(shift, int | float),
        method=(method, Mapping),
        without=(without, str | Iterable),
        speed=(speed, str),
        quantize=(quantize, str),
        lora=(lora, str | os.PathLike | Sequence),
        weights=(weights, str | os.PathLike),
    )
    if weights is not None and not Path(weights).is_dir():
        raise UsageError(f"weights {os.fspath(weights)!r} is not a folder", "Name one that has a model.")
    if not isinstance(story, Story):
        path = Path(story)
        story, name = read_story(path), name or film_name(path)
    files = [lora] if isinstance(lora, str | os.PathLike) else lora or ()
    parts = without.split(",") if isinstance(without, str) else without or ()
    overrides = Overrides(
        model=model,
        seed=seed,
        size=size,
        seconds=seconds,
        steps=steps,
        guidance=guidance,
        negative=negative,
        shift=shift,
        method=tuple(f"{key}={value}" for key, value in (method or {}).items()),
        without=frozenset(part.strip() for part in parts if part.strip()),
        speed=speed,
        quantize=quantize,
        weights=None if weights is None else Path(weights),
        lora=tuple(map(Path, files)) or None,
    )
    return make_plan(story, name or "film", overrides, hear(story))


def render(
    story: PathLike | Story | Plan,
    *,
    out: PathLike = "out",
    name: str | None = None,
    device: str = "auto",
    engine: Engine | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    sign_cert: PathLike | None = None,
    sign_key: PathLike | None = None,
    **settings: Any,
) -> Film:
    """Render what is missing of a film into ``out/name`` and return it; with ``overwrite``, all of it.

    ``settings`` are those of `plan`. ``name`` is the story's file's unless it is given; a story or plan that
    comes from no file needs one. Calls that share an ``engine`` load a model once. ``progress`` is called in
    this thread, after every evaluation of the transformer. ``sign_cert`` and ``sign_key`` are the files of a
    certificate and its key, in PEM, to sign the film with. Raises StoryreelError; finished scenes stay.
    """
    if name is None and isinstance(story, str | os.PathLike):
        name = film_name(Path(story))
    if name is None:
        raise UsageError("a story that comes from no file needs a name", 'Give it one: name="my-film".')
    check_film_name(name)
    if not isinstance(engine, Engine | None):
        raise UsageError(f"engine {engine!r:.60} is not an engine", "Give storyreel.Engine(device).")
    if isinstance(story, Plan) and settings:
        raise UsageError(f"a plan has its settings: {', '.join(settings)}", "Give them to storyreel.plan.")
    planned = story if isinstance(story, Plan) else plan(story, name=name, **settings)
    signer = open_signer(*(None if path is None else Path(path) for path in (sign_cert, sign_key)))
    check_inventory(planned.spec)
    reports = _Reports(progress)
    render_film(planned, name, Path(out), engine or Engine(device), reports, overwrite, signer)
    return Film.open(Path(out) / name)


def evaluate(
    films: Film | PathLike | Sequence[Film | PathLike],
    *,
    device: str = "auto",
    weights_dir: PathLike | None = None,
    own: bool = True,
) -> Evaluation:
    """Score films, or all films of folders, as ``storyreel eval`` does; several folders are compared.

    ``weights_dir`` holds pretrained models by their names; ``own`` asks the films' own model too. Raises the
    first StoryreelError if a film cannot be scored; scores that were computed are kept beside the films.
    """
    from storyreel.evaluation.evaluator import Evaluator
    from storyreel.evaluation.evaluator import evaluate as score
    from storyreel.evaluation.films import collect
    from storyreel.models.devices import pick_device

    check_device(device)
    if weights_dir is not None and not Path(weights_dir).is_dir():
        raise UsageError(f"weights_dir {os.fspath(weights_dir)!r} is not a folder", "Name one.")
    several = [films] if isinstance(films, Film | str | os.PathLike) else films
    folders = [film.path.parent if isinstance(film, Film) else Path(film) for film in several]
    found, errors = collect(folders, (), None)
    for error in errors:  # before hours are spent on the others
        raise error
    evaluator = Evaluator(pick_device(device), None if weights_dir is None else Path(weights_dir), own)
    evaluation, failed = score(
        found, evaluator, lambda film: nullcontext(lambda frames: None), lambda text: None
    )
    for error in failed:
        raise error
    return evaluation


def _check_types(**given: tuple[object, Any]) -> None:
    """Raise UsageError for the first argument whose value is of no type that it may have.

    None leaves a setting open; only a story cannot be.
    """
    for name, (value, kinds) in given.items():
        if value is None and name != "story":
            continue
        if isinstance(value, bool) or not isinstance(value, kinds):
            remedy = f"It cannot be of type {type(value).__name__}."
            raise UsageError(f"{name} {value!r:.60} is not valid", remedy)


class _Reports:
    """What a render reports, as calls of one function; without a function, nothing."""

    def __init__(self, call: Callable[[Progress], None] | None) -> None:
        self._call = call
        self._now = Progress()

    def _report(self, **changed: Any) -> None:
        self._now = replace(self._now, **{"message": "", **changed})
        if self._call is not None:
            self._call(self._now)

    def started(self, plan: Plan, scenes: int, done: int, forwards: int) -> None:
        self._report(evaluations_needed=forwards, scenes=done, scenes_total=scenes)

    def forward(self) -> None:
        self._report(evaluations=self._now.evaluations + 1)

    def segment_finished(self, segment: Segment) -> None:
        self._report(scenes=min(self._now.scenes + 1, self._now.scenes_total))

    def said(self, text: str) -> None:
        self._report(message=text)
