"""What is scored: films that storyreel rendered, and films that anything else made of a story.

Reading what is to be scored loads no torch. Everything comes from outside, so that everything is checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storyreel import video
from storyreel.checkpoint import file_hash
from storyreel.errors import StoryreelError, UsageError
from storyreel.models.specs import MODELS
from storyreel.plan import DEFAULT_MODEL
from storyreel.story import Character, Story, load_story

RATE_SLACK = 0.01  # of a rate's own: 23.976 is no 24, but containers round
# Who might have been drawn instead of whom the prompt names.
OTHERS = ("a man", "a woman", "a corgi dog", "a siamese cat", "a panda", "a fox")


@dataclass(frozen=True)
class Span:
    """One scene of a film: its prompts and its frames, ``start`` to the one before ``stop``.

    ``blended`` says whether it is meant to grow out of the scene before. ``others`` are its scene prompt
    with somebody else in the first character's place.
    """

    scene: str
    action: str
    start: int
    stop: int
    blended: bool
    others: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Film:
    """A film to be scored. Films of the same ``name`` in different runs are compared.

    ``model`` is what rendered it, if that is known; ``notes`` what a reader of its scores should know.
    """

    run: str
    name: str
    path: Path
    title: str
    fps: float
    spans: tuple[Span, ...]
    model: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def frames(self) -> int:
        """How many frames it must have."""
        return self.spans[-1].stop

    @property
    def label(self) -> str:
        """What people are told it is."""
        return f"{self.run}/{self.name}"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Segment(_Part):
    scene: str
    action: str
    start: int = Field(ge=0)
    frames: int = Field(ge=1)
    blended: bool


class _Settings(_Part):
    fps: int = Field(ge=1)


class _Model(_Part):
    name: str


class _Manifest(_Part):
    """What scoring needs of a manifest."""

    title: str
    story: dict[str, Any]
    model: _Model
    settings: _Settings
    segments: list[_Segment] = Field(min_length=1)
    film: dict[str, str]


def collect(
    folders: Sequence[Path], foreign: Sequence[Callable[[], Film]]
) -> tuple[list[Film], list[StoryreelError]]:
    """Return all films that can be scored, those in ``folders`` first, and what is wrong with the others."""
    films: list[Film] = []
    errors: list[StoryreelError] = []
    for folder in folders:
        try:
            makers = [partial(rendered_film, *found) for found in find_films(folder)]
        except StoryreelError as error:
            errors.append(error)
        else:
            _make(makers, films, errors)
    _make(foreign, films, errors)
    return films, errors


def _make(makers: Iterable[Callable[[], Film]], films: list[Film], errors: list[StoryreelError]) -> None:
    for make in makers:
        try:
            films.append(make())
        except StoryreelError as error:
            errors.append(error)


def find_films(out: Path) -> list[tuple[str, str, Path]]:
    """Return run, name and folder of every rendered film in ``out``, which may be one film's folder.

    Raises UsageError if there is none.
    """
    if not out.is_dir():
        remedy = "Name the folder of a render, as in out/nyc, or one that holds several, as in out."
        raise UsageError(f"{out} is not a folder", remedy)
    if (out / "manifest.json").is_file():
        return [(str(out.parent), out.resolve().name, out)]
    found = sorted(path.parent for path in out.rglob("manifest.json"))
    if not found:
        raise UsageError(f"there is no rendered film in {out}", "Render one: storyreel render STORY.yaml")
    return [(str(out), folder.relative_to(out).as_posix(), folder) for folder in found]


def rendered_film(run: str, name: str, folder: Path) -> Film:
    """Return the film that a render left in ``folder``. Raises StoryreelError if it is not whole."""
    path = folder / "manifest.json"
    again = "Run the same storyreel render again."
    try:
        manifest = _Manifest.model_validate(json.loads(path.read_bytes()))
        story = Story.model_validate(manifest.story)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ValidationError) and error.errors()[0]["loc"][:1] == ("film",):
            raise StoryreelError(f"{folder} holds half a render: it has no film yet", again) from None
        raise StoryreelError(f"{path} is no manifest of a render", again) from None
    film = folder / manifest.film.get("file", "")
    if film.parent != folder or not film.is_file():
        raise StoryreelError(f"{folder} holds half a render: it has no film yet", again)
    segments = manifest.segments
    if [s.start for s in segments] != [sum(s.frames for s in segments[:i]) for i in range(len(segments))]:
        raise StoryreelError(f"{path} is no manifest of a render: its segments do not join", again)
    _check_rate(film, video.probe(film).fps, manifest.settings.fps, "its manifest", again)
    notes: tuple[str, ...] = ()
    if file_hash(film) != manifest.film.get("sha256"):
        notes = ("this is not the film that was rendered: its file has been changed",)
    ends = [(s.start, s.start + s.frames) for s in segments]
    blended = [s.blended for s in segments]
    spans = _spans(story, ends, blended)
    return Film(run, name, film, manifest.title, manifest.settings.fps, spans, manifest.model.name, notes)


def foreign_film(story_path: Path, film: Path, segments: str, fps: float | None) -> Film:
    """Return a film that anything made of a story.

    ``segments`` says where its scenes are: ``chapters``, ``equal``, or the seconds at which the second and
    every later scene begin, with commas. ``fps`` says that this rate is meant, whatever the story's model
    has. Raises ScriptError, UsageError, or StoryreelError if the story does not fit the film.
    """
    story = load_story(story_path)
    if not film.is_file():
        raise UsageError(f"{film} is not a file", "Name a film: MP4, MOV, MKV, WebM or AVI.")
    facts = video.probe(film)
    model = facts.tags.get("storyreel_model") or story.render.model or DEFAULT_MODEL
    meant = f"If that is meant, say so: --fps {facts.fps:g}"
    if fps is not None:
        _check_rate(film, facts.fps, fps, "--fps", meant)
    elif model in MODELS:
        _check_rate(film, facts.fps, MODELS[model].fps, f"the story's model {model}", meant)
    count = len(story.scenes)
    frames = video.count_frames(film)
    if frames < count:
        raise StoryreelError(
            f"{film} has {frames} frames, the story {count} scenes", "Name the film that tells this story."
        )
    starts = _starts(segments, film, facts, frames, count)
    if (sum(a >= b for a, b in pairwise([*starts, frames]))) or starts[0] != 0:
        raise StoryreelError(
            f"{film}: {count} scenes do not fit into its {frames / facts.fps:.2f} s where they should begin",
            "Give other --segments.",
        )
    blended = [index > 0 and scene.transition == "blend" for index, scene in enumerate(story.scenes)]
    spans = _spans(story, list(pairwise([*starts, frames])), blended)
    title = story.title or story_path.stem
    # vlogger/nyc.mp4 of nyc.yaml is of the run vlogger; any other name is a run of its own.
    run = film.parent if film.stem == story_path.stem else film.with_suffix("")
    return Film(str(run), story_path.stem, film, title, facts.fps, spans, model)


def _starts(segments: str, film: Path, facts: video.Facts, frames: int, count: int) -> list[int]:
    """Return the frame at which every scene begins."""
    if segments == "equal":
        return [round(index * frames / count) for index in range(count)]
    if segments == "chapters":
        if len(facts.chapters) != count:
            raise StoryreelError(
                f"{film} has {len(facts.chapters)} chapters, the story {count} scenes",
                "Say where its scenes begin: --segments equal, or --segments 2.5,5,7.5 in seconds.",
            )
        return [round(start * facts.fps) for start in facts.chapters]
    try:
        times = [float(text) for text in segments.split(",")]
    except ValueError:
        remedy = "Use chapters, equal, or the seconds at which scenes begin, as in 2.5,5,7.5"
        raise UsageError(f"--segments {segments!r} makes no sense", remedy) from None
    if len(times) == count - 1:
        times.insert(0, 0.0)
    if len(times) != count or not all(0 <= time < 1e6 for time in times):
        raise StoryreelError(
            f"{len(times)} times do not fit a story of {count} scenes",
            f"Give the {count - 1} seconds at which the second and later scenes begin.",
        )
    return [round(time * facts.fps) for time in times]


def _check_rate(film: Path, found: float, wanted: float, whose: str, remedy: str) -> None:
    if abs(found - wanted) > RATE_SLACK * wanted:
        raise StoryreelError(f"{film} has {found:g} frames a second, by {whose} {wanted:g}", remedy)


def _spans(story: Story, ends: Sequence[tuple[int, int]], blended: Sequence[bool]) -> tuple[Span, ...]:
    return tuple(
        Span(story.filled(scene.scene), story.filled(scene.action), start, stop, grows, dict(others))
        for scene, (start, stop), grows, others in zip(
            story.scenes, ends, blended, _with_others(story), strict=True
        )
    )


def _with_others(story: Story) -> list[Iterator[tuple[str, str]]]:
    """Return each scene's prompt with somebody else as the first of the cast, by who that is."""
    names = {member.name for member in story.cast.values()}
    first = next(iter(story.cast), None)
    casts = {}
    if first is not None:
        kinds = {name.split()[-1] for name in names}
        for other in OTHERS:
            if other.split()[-1] not in kinds:
                double = Character(name=other, possessive=story.cast[first].possessive)
                casts[other] = story.model_copy(update={"cast": {**story.cast, first: double}})

    def told(prompt: str) -> Iterator[tuple[str, str]]:
        true = story.filled(prompt)
        texts = ((other, double.filled(prompt)) for other, double in casts.items())
        return ((other, text) for other, text in texts if text != true)

    return [told(scene.scene) for scene in story.scenes]
