"""What is scored: films that storyreel rendered, and films that anything else made of a story.

Reading what is to be scored loads no torch. Everything comes from outside, so that everything is checked.
"""

from __future__ import annotations

import json
import shlex
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storyreel.errors import StoryreelError, UsageError, printable
from storyreel.evaluation.frame_rates import SLACK, common_rate, looks, picture_rate, usual_rate
from storyreel.evaluation.variants import VARIANTS
from storyreel.files import file_hash
from storyreel.film import reader
from storyreel.film.dissolve import FADED, GREY, reach
from storyreel.method.similarity import same_place
from storyreel.method.step_skipping import SPEEDS
from storyreel.models.specs import MODELS, known_model
from storyreel.story.plan import pace_of
from storyreel.story.planning import DEFAULT_MODEL, prompt_names
from storyreel.story.schema import APART, NOBODY_ELSE, Casting, Character, Story, load_story

MANIFEST = "manifest.json"
MOST_REPEATED = 1_000_000  # looks at frames that a player shows again, beyond as many as there are frames
SEEDS = "seed-*"  # folders in a run that `storyreel ablate` made
# Who might have been drawn instead of whom the prompt names.
OTHERS = ("a man", "a woman", "a corgi dog", "a siamese cat", "a panda", "a fox")


@dataclass(frozen=True)
class Span:
    """One scene of a film: its prompts and its frames, ``start`` to the one before ``stop``.

    ``blended`` says whether the story wants it to grow out of the scene before: a fact of the story, the same
    for a film that was made without any blending; ``goes_on``, whether in one shot; ``fades``, whether it
    comes out of a plain colour, and whether it ends in one. ``mixed`` are the seconds at its beginning and at
    its end in which the render dissolved it with a neighbour; 0 where nobody knows of any. ``others`` are its
    scene prompt with somebody else in the first character's place. ``sides`` is how far the two sides of the
    seam before it are apart, 0 to 255, as the render measured it before any dissolve; None where nobody did.
    """

    scene: str
    action: str
    start: int
    stop: int
    blended: bool
    others: Mapping[str, str] = field(default_factory=dict)
    sides: float | None = None
    goes_on: bool = True
    fades: tuple[bool, bool] = (False, False)
    mixed: tuple[float, float] = (0.0, 0.0)

    @property
    def prompt(self) -> str:
        """Scene and action as one text; once, where they are the same."""
        return self.scene if self.action == self.scene else f"{self.scene} {self.action}"

    @property
    def frames(self) -> int:
        """How many it has."""
        return self.stop - self.start

    def clear(self, fps: float) -> Span:
        """Return the same without the frames of fades that the story wants, at ``fps`` looks a second."""
        return self._without([FADED * fades for fades in self.fades], fps)

    def unmixed(self, fps: float) -> Span:
        """Return the same without the frames of fades, nor those that the render dissolved with a neighbour.

        A judge that looks for one scene in a mixture of two finds neither, where people see both.
        """
        ends = zip(self.fades, self.mixed, strict=True)
        return self._without([max(FADED * fades, mixed) for fades, mixed in ends], fps)

    def _without(self, seconds: Sequence[float], fps: float) -> Span:
        into, out_of = (min(ceil(length * fps), (self.frames - 1) // 2) for length in seconds)
        return replace(self, start=self.start + into, stop=self.stop - out_of)


@dataclass(frozen=True)
class Film:
    """A film to be scored, looked at ``fps`` times a second.

    Films of the same ``name`` in different runs are compared; several may tell the same ``story``, each with
    a seed of its own. It takes ``seconds``; ``times`` are when its own frames are shown, ``picks`` which of
    them is seen at every look, ``spans`` its scenes in looks. ``model`` is what rendered it, if that is
    known, ``kind`` all that it was rendered with but for the seed, ``weights`` the SHA-256 of that model's
    files (None: nobody knows), ``cost`` what that took, by the names of metrics, ``folder`` where the render
    left it. ``sha256`` is the file's, ``hdr`` is as in `reader.Facts`; ``notes`` are what a reader of its
    scores should know. ``scenes`` are those of its own frames that are no cards; all, if it is
    empty. ``cards`` are where, in seconds of the scenes, cards were left out, and how long each is.
    """

    run: str
    name: str
    path: Path
    title: str
    fps: float
    spans: tuple[Span, ...]
    model: str | None = None
    notes: tuple[str, ...] = ()
    story: str = ""
    seconds: float = 0.0
    times: tuple[float, ...] = ()
    picks: tuple[int, ...] = ()
    hdr: str = ""
    kind: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    folder: Path | None = None
    sha256: str = ""
    scenes: tuple[int, ...] = ()
    cards: tuple[tuple[float, float], ...] = ()

    @property
    def frames(self) -> int:
        """How many looks it takes."""
        return self.spans[-1].stop

    def time_of(self, seconds: float) -> float:
        """Return when in the film something is, by when it is in its scenes, which may have cards between."""
        return seconds + sum(length for start, length in self.cards if start <= seconds)

    @property
    def label(self) -> str:
        """What people are told it is."""
        return printable(f"{self.run}/{self.name}")

    @property
    def told(self) -> tuple[tuple[str, str], ...]:
        """What its scenes are to show: films that do not agree in this are no pair."""
        return tuple((span.scene, span.action) for span in self.spans)


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Seam(_Part):
    transition: str = ""
    strength: float = 0.0
    sides: float | None = Field(default=None, ge=0, le=255)


class _Decided(_Part):
    lead: int
    seam: _Seam | None = None


class _Segment(_Part):
    scene: str
    action: str
    start: int = Field(ge=0)
    frames: int = Field(ge=1)
    latents: int | None = None
    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    decided: _Decided | None = None


class _Card(_Part):
    before: int = Field(ge=0)
    start: int = Field(ge=0)
    frames: int = Field(ge=1)


class _Settings(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    fps: int = Field(ge=1)
    steps: int | None = Field(default=None, ge=1, le=1000)
    speed: str = ""
    width: int = Field(default=1, ge=1)
    height: int = Field(default=1, ge=1)
    shift: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    method: dict[str, Any] = {}


class _Model(_Part):
    name: str
    weights: dict[str, str] | None = None


class _Manifest(_Part):
    """What scoring needs of a manifest."""

    title: str
    story: dict[str, Any]
    model: _Model
    settings: _Settings
    segments: list[_Segment] = Field(min_length=1)
    cards: list[_Card] = []
    film: dict[str, str]


def collect(
    folders: Sequence[Path], foreign: Sequence[Callable[[], Film]], fps: float | None = None
) -> tuple[list[Film], list[StoryreelError]]:
    """Return all films that can be scored, those in ``folders`` first, and what is wrong with the others.

    All are looked at ``fps`` times a second; if that is None, at the highest rate that suits them all. Raises
    UsageError if there is none.
    """
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
    films = _told_apart(films, errors)
    return _on_one_time_base(films, errors, fps), errors


def _make(makers: Iterable[Callable[[], Film]], films: list[Film], errors: list[StoryreelError]) -> None:
    for make in makers:
        try:
            films.append(make())
        except StoryreelError as error:
            errors.append(error)


def _told_apart(films: Sequence[Film], errors: list[StoryreelError]) -> list[Film]:
    """Return every film once, each with its own run and name.

    There is a note where two only seem to be a pair, and where films of one run were not made alike.
    """
    once: list[Film] = []
    for film in films:
        if any((film.run, film.name, film.path) == (f.run, f.name, f.path) for f in once):
            errors.append(UsageError(f"{film.path} is named twice", "Name every film once."))
        else:
            once.append(film)
    count = Counter((film.run, film.name) for film in once)
    first: dict[str, Film] = {}
    leading: dict[str, Film] = {}
    found = []
    for film in once:
        if count[film.run, film.name] > 1:
            film = replace(film, run=str(film.path))  # film.mp4 and film.mkv are two
        notes = []
        if first.setdefault(film.name, film).told != film.told:
            notes.append(f"its prompts are not those of {first[film.name].label}: the two are not compared")
        other = leading.setdefault(film.run, film)
        if unlike := sorted(n for n in {*film.kind, *other.kind} if film.kind.get(n) != other.kind.get(n)):
            notes.append(
                f"it was not made as {other.label} of the same run was: other {', '.join(unlike)}; "
                "means over the run mix both"
            )
        found.append(replace(film, notes=(*film.notes, *notes)))
    return found


def _on_one_time_base(films: Sequence[Film], errors: list[StoryreelError], fps: float | None) -> list[Film]:
    """Return films as they are looked at, all as often; add to ``errors`` those that cannot be."""
    if not films:
        return []
    rate = common_rate([film.fps for film in films]) if fps is None else fps
    if rate is None:
        rates = ", ".join(f"{rate:g}" for rate in sorted({film.fps for film in films}))
        remedy = f"Name one with --fps, as in --fps {min(film.fps for film in films):g}, or score them apart."
        raise UsageError(f"films of {rates} frames a second have no time base in common", remedy)
    found: list[Film] = []
    _make([partial(looked_at, film, rate) for film in films], found, errors)
    return found


def looked_at(film: Film, rate: float) -> Film:
    """Return a film, given frame by frame, as it is seen ``rate`` times a second.

    Raises StoryreelError if that is oftener than it has pictures, or too seldom for its scenes.
    """
    if rate > film.fps * (1 + SLACK):
        raise StoryreelError(
            f"{film.path} has {film.fps:g} pictures a second, and cannot be looked at {rate:g} times",
            f"Give --fps {film.fps:g}, or less.",
        )
    picks = looks(film.times, film.seconds, rate)
    starts = [bisect_left(picks, span.start) for span in film.spans]
    ends = list(pairwise([*starts, len(picks)]))
    if any(start >= stop for start, stop in ends):
        words = f"{film.path} has a scene that is too short to be looked at {rate:g} times a second"
        raise StoryreelError(words, "Score it by itself, or give a higher --fps.")
    spans = (replace(span, start=a, stop=b) for span, (a, b) in zip(film.spans, ends, strict=True))
    picks = [film.scenes[pick] for pick in picks] if film.scenes else picks
    return replace(film, fps=rate, spans=tuple(spans), picks=tuple(picks))


def find_films(out: Path) -> list[tuple[str, str, str, Path]]:
    """Return run, name, story and folder of every film of ``out``.

    That may be a film's folder, or any file in it; the folder of a run, OUT/NAME; or what `storyreel ablate`
    left: a run with a folder for every seed, OUT/seed-N/NAME, or several such runs, which are compared. Films
    further down are no part of a run. Raises UsageError if there are none.
    """
    if out.is_file() and (out.parent / MANIFEST).is_file():
        out = out.parent
    if not out.is_dir():
        there = "is no folder of a render" if out.exists() else "is not there"
        remedy = "Name the folder of a render, as in out/nyc, or one that holds several, as in out.\n"
        remedy += f"A film that anything else made: storyreel eval --story STORY.yaml --video {out}"
        raise UsageError(f"{out} {there}", remedy)
    if (out / MANIFEST).is_file():
        name = out.resolve().name
        return [(str(out.parent), name, name, out)]
    if found := _run(out):
        return found
    for depth in (1, 2, 3):
        if runs := [folder for folder in sorted(out.glob("*/" * depth)) if _run(folder)]:
            names = " ".join(shlex.quote(str(run)) for run in runs)
            raise UsageError(f"{out} is no run: its films lie deeper", f"Name runs: storyreel eval {names}")
    raise UsageError(f"there is no rendered film in {out}", "Render one: storyreel render STORY.yaml")


def _run(out: Path) -> list[tuple[str, str, str, Path]]:
    """Return the films of a run, or of all variants of an ablation; nothing if it is neither."""
    films = [path.parent for path in sorted(out.glob(f"*/{MANIFEST}"))]
    return (
        [(str(out), folder.name, folder.name, folder) for folder in films]
        or _of_seeds(out)
        or [film for variant in _variants(out) for film in _of_seeds(variant)]
    )


def _variants(out: Path) -> list[Path]:
    """Return the folders of an ablation in the order of its table: the first is what others differ from."""
    known = {variant.slug: number for number, variant in enumerate(VARIANTS)}
    return sorted(out.glob("*/"), key=lambda folder: (known.get(folder.name, len(known)), folder.name))


def _of_seeds(run: Path) -> list[tuple[str, str, str, Path]]:
    """Return the films of a run with a folder for every seed."""
    folders = [path.parent for path in sorted(run.glob(f"{SEEDS}/*/{MANIFEST}"))]
    return [(str(run), f"{f.parent.name}/{f.name}", f.name, f) for f in folders]


def rendered_film(run: str, name: str, story_name: str, folder: Path) -> Film:
    """Return the film that a render left in ``folder``. Raises StoryreelError if it is not whole."""
    path = folder / MANIFEST
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
    parts: list[_Segment | _Card] = sorted([*segments, *manifest.cards], key=lambda part: part.start)
    if [part.start for part in parts] != [sum(p.frames for p in parts[:i]) for i in range(len(parts))]:
        raise StoryreelError(f"{path} is no manifest of a render: its segments do not join", again)
    # Cards are no scenes: of the film, the scenes alone are looked at, as if they were all.
    shown = [frame for s in segments for frame in range(s.start, s.start + s.frames)]
    starts = [sum(s.frames for s in segments[:index]) for index in range(len(segments))]
    ends = [(start, start + s.frames) for start, s in zip(starts, segments, strict=True)]
    story = _cut_at(story, {card.before for card in manifest.cards})
    prompts = [(s.scene, s.action) for s in segments]
    told = replace(_told(story, prompts, ends), run=run, name=name, story=story_name)
    told = replace(told, path=film, title=manifest.title, model=manifest.model.name, kind=_kind(manifest))
    told = replace(told, weights=manifest.model.weights, cost=_cost(manifest), folder=folder)
    told = replace(told, sha256=file_hash(film))
    fps, count = manifest.settings.fps, len(shown)
    lengths = [s.frames for s in segments]
    cards = tuple((sum(lengths[: card.before]) / fps, card.frames / fps) for card in manifest.cards)
    told = replace(told, scenes=tuple(shown) if cards else (), cards=cards)
    if told.sha256 == manifest.film.get("sha256"):  # it has the frames that were planned
        sides = (s.decided.seam.sides if s.decided and s.decided.seam else None for s in segments)
        spans = (
            replace(span, sides=apart, mixed=mixed)
            for span, apart, mixed in zip(told.spans, sides, _mixed(manifest), strict=True)
        )
        told = replace(told, spans=tuple(spans))
        return replace(told, fps=fps, seconds=count / fps, times=tuple(i / fps for i in range(count)))
    if manifest.cards:  # nobody knows where they are in it
        raise StoryreelError(f"{film} is not the film that was rendered: its file has been changed", again)
    facts, frames = reader.probe(film), reader.survey(film)
    rate = usual_rate(frames.times, facts.fps)
    if abs(rate - fps) > SLACK * fps:
        raise StoryreelError(f"{film} has {rate:g} frames a second, by its manifest {fps}", again)
    if len(frames.times) != count:
        raise StoryreelError(f"{film} has {len(frames.times)} frames, its scenes {count}", again)
    changed = "this is not the film that was rendered: its file has been changed"
    return _timed(replace(told, notes=(changed,)), facts, frames)


def _cut_at(story: Story, behind: set[int]) -> Story:
    """Return a story in which scenes, by their index, begin with a cut if they do not fade."""
    scenes = [
        scene.model_copy(update={"transition": "cut"})
        if index in behind and scene.transition not in APART
        else scene
        for index, scene in enumerate(story.scenes)
    ]
    return story.model_copy(update={"scenes": scenes})


def _kind(manifest: _Manifest) -> dict[str, Any]:
    """Return the model and every setting but the seed, those of the method by their own names."""
    settings = manifest.settings.model_dump()
    method = settings.pop("method", None)
    settings.pop("seed", None)
    settings.pop("fps")
    return {"model": manifest.model.name, **settings, **(method if isinstance(method, dict) else {})}


def _cost(manifest: _Manifest) -> dict[str, float]:
    """Return what a film cost, by the names of metrics: what its manifest says of that."""
    cost: dict[str, float] = {}
    segments, settings = manifest.segments, manifest.settings
    latents = [s.decided.lead + s.latents for s in segments if s.decided and s.latents is not None]
    if len(latents) == len(segments):
        cost["latents"] = sum(latents)
    plugged = settings.method.get("levels") is not None
    # Which steps were skipped at a plugin's noise levels is not known.
    known = settings.speed in SPEEDS and (settings.speed == "exact" or not plugged)
    if settings.steps is not None and known:
        spec = known_model(manifest.model.name) or MODELS[DEFAULT_MODEL]
        area = settings.width * settings.height
        pace = pace_of(spec, settings.steps, settings.speed, area, settings.shift)
        cost["forwards"] = len(segments) * pace.forwards
    seconds = [s.seconds for s in segments if s.seconds is not None]
    if len(seconds) == len(segments):
        cost["render_seconds"] = sum(seconds)
    return cost


def foreign_film(story_path: Path, film: Path, segments: str, casting: Casting = NOBODY_ELSE) -> Film:
    """Return a film that anything made of a story, with who plays in it instead of the story's cast.

    ``segments`` says where its scenes are: ``chapters``, ``equal``, or the seconds at which the second and
    every later scene begin, with commas. Raises ScriptError, UsageError, or StoryreelError if the story does
    not fit the film.
    """
    story = load_story(story_path, casting)
    if not film.is_file():
        raise UsageError(f"{film} is not a file", "Name a film: MP4, MOV, MKV, WebM or AVI.")
    facts, frames = reader.probe(film), reader.survey(film)
    count = len(story.scenes)
    if len(frames.times) < count:
        raise StoryreelError(
            f"{film} has {len(frames.times)} frames, the story {count} scenes",
            "Name the film that tells this story.",
        )
    rate = usual_rate(frames.times, facts.fps)
    length = frames.times[-1] + 1 / rate
    # A scene begins with the first frame that is shown from then on; half a frame is a container's rounding.
    begins = _starts(segments, film, facts, length, count)
    starts = [bisect_left(frames.times, time - 0.5 / rate) for time in begins]
    if starts[0] != 0 or any(a >= b for a, b in pairwise([*starts, len(frames.times)])):
        raise StoryreelError(
            f"{film}: {count} scenes do not fit into its {length:.2f} s where they should begin",
            "Give other --segments.",
        )
    prompts = [(story.filled(s.shown[0]), story.filled(s.shown[1])) for s in story.scenes]
    told = _told(story, prompts, list(pairwise([*starts, len(frames.times)])))
    # vlogger/nyc.mp4 of nyc.yaml is of the run vlogger; any other name is a run of its own.
    run = film.parent if film.stem == story_path.stem else film.with_suffix("")
    told = replace(told, run=str(run), name=story_path.stem, story=story_path.stem, path=film)
    model = facts.tags.get("storyreel_model") or story.render.model or DEFAULT_MODEL
    told = replace(told, title=story.title or story_path.stem, model=model, sha256=file_hash(film))
    return _timed(told, facts, frames)


def _timed(film: Film, facts: reader.Facts, frames: reader.Frames) -> Film:
    """Return a film with its frames' times and its rate, and what is to be said of them."""
    rate, notes = usual_rate(frames.times, facts.fps), list(film.notes)
    length = frames.times[-1] + 1 / rate
    if length * rate > 2 * len(frames.times) + MOST_REPEATED:
        raise StoryreelError(
            f"{film.path} has {len(frames.times)} frames for {length / 3600:.0f} hours, by their times",
            "They are damaged, or it stands still for hours: cut it, and score it again.",
        )
    pictures = picture_rate(frames.changes, rate)
    if looks(frames.times, length, rate) != list(range(len(frames.times))):
        pictures = rate
        notes.append(
            f"its frame rate varies: it is looked at by its frames' times, usually {rate:g} a second"
        )
    elif pictures < rate:
        notes.append(
            f"{1 - pictures / rate:.0%} of its {rate:g} frames a second repeat the one before: "
            f"it is looked at as a film of {pictures:g}"
        )
    if facts.hdr:
        notes.append(f"it is HDR ({facts.hdr}): it was mapped to SDR before it was looked at")
    return replace(film, fps=pictures, seconds=length, times=frames.times, hdr=facts.hdr, notes=tuple(notes))


def _mixed(manifest: _Manifest) -> list[tuple[float, float]]:
    """Return for how many seconds every scene's beginning and end are dissolved with a neighbour."""
    segments, fps = manifest.segments, manifest.settings.fps
    apart = {card.before for card in manifest.cards}
    seams = [(0, 0)]
    for index, (earlier, later) in enumerate(pairwise(segments), 1):
        seam = later.decided.seam if later.decided else None
        if seam is None or seam.transition != "dissolve" or index in apart:
            seams.append((0, 0))
            continue
        blending = manifest.settings.method.get("blending", "")
        seams.append(reach(seam.transition, seam.strength, str(blending), fps, earlier.frames, later.frames))
    ends = [before for before, _ in (*seams[1:], (0, 0))]
    return [(behind / fps, end / fps) for (_, behind), end in zip(seams, ends, strict=True)]


def _starts(segments: str, film: Path, facts: reader.Facts, length: float, count: int) -> Sequence[float]:
    """Return the seconds at which every scene begins."""
    if segments == "equal":
        return [index * length / count for index in range(count)]
    if segments == "chapters":
        if len(facts.chapters) != count:
            raise StoryreelError(
                f"{film} has {len(facts.chapters)} chapters, the story {count} scenes",
                "Say where its scenes begin: --segments equal, or --segments 2.5,5,7.5 in seconds.",
            )
        return facts.chapters
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
    return times


def _told(story: Story, prompts: Sequence[tuple[str, str]], ends: Sequence[tuple[int, int]]) -> Film:
    """Return a film of a story as yet without a file, its scenes ending where ``ends`` says.

    ``prompts`` are the scene and the action prompt of the take that is shown of every scene.
    """
    names = prompt_names(story)
    places = [story.filled(scene.scene) for scene in story.scenes]  # seams are planned by first takes
    stays = [True, *(same_place(before, place, names) for before, place in pairwise(places))]
    fades = [scene.transition in GREY for scene in story.scenes]
    around = zip(fades, [*fades[1:], False], strict=True)
    scenes = zip(story.scenes, prompts, stays, ends, _with_others(story), around, strict=False)
    spans = tuple(
        Span(
            prompt,
            action,
            start,
            stop,
            start > 0 and scene.transition not in APART,
            dict(others),
            goes_on=scene.transition == "continue" or (scene.transition == "blend" and is_there),
            fades=faded,
        )
        for scene, (prompt, action), is_there, (start, stop), others, faded in scenes
    )
    return Film("", "", Path(), "", 0.0, spans)


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

    return [told(scene.shown[0]) for scene in story.scenes]
