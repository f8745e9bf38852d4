"""From a story to a plan, by the model's table of facts.

Planning loads no model and changes nothing silently: a size or length that the model cannot do is refused,
with the nearest that it can.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from storyreel.errors import Fault, FormatError, ScriptError, UsageError
from storyreel.method.settings import PARTS, Method, legal_values
from storyreel.method.similarity import is_named, same_place, shared_start, verb_phrase
from storyreel.method.step_skipping import find_speed
from storyreel.models.inventory import PREVIEW
from storyreel.models.lora import Experts, Lora, named_experts, parse_lora
from storyreel.models.lora_files import is_fit_known, lora_problem
from storyreel.models.specs import MODELS, ModelSpec, find_model, model_names
from storyreel.story.cards import card_lines, card_problem
from storyreel.story.plan import Card, Plan, Seam, Segment, Settings, derived_seed, joined_prompt
from storyreel.story.schema import (
    APART,
    MAX_PROMPT,
    SIZE_PATTERN,
    STDIN,
    RenderSettings,
    Scene,
    Story,
    Transition,
    one_line,
)
from storyreel.story.sounds import Heard, Soundtrack
from storyreel.story.tokens import estimated_tokens, fewest_tokens, token_counter

T = TypeVar("T")

DEFAULT_MODEL = "mini"
# What of several ways to blend makes of every seam that is not cut apart.
ALWAYS: dict[str, Transition] = {"continuation": "continue", "crossfade": "dissolve", "none": "cut"}
SOUND_KEYS = {"music": "audio", "scene": "audio", "speech": "say"}  # of a story, by the sounds' kinds
LEAD = 2  # latent frames that every scene leaves for its lead


@dataclass(frozen=True)
class Overrides:
    """What the command line asks for; None leaves it to the story, then to the model.

    ``size`` is WIDTHxHEIGHT in the model's pixels, ``seconds`` the length of scenes that name none;
    ``method`` are settings KEY=VALUE, ``without`` are names of the method's parts, or "all". ``weights`` is
    a folder to be used instead of what was pulled. ``lora`` are files of LoRAs, each maybe with =WEIGHT, and
    ``lora_source`` is the option, the variable or the file that names them.
    """

    model: str | None = None
    seed: int | None = None
    size: str | None = None
    seconds: float | None = None
    steps: int | None = None
    guidance: float | None = None
    negative: str | None = None
    shift: float | None = None
    method: tuple[str, ...] = ()
    without: frozenset[str] = frozenset()
    speed: str | None = None
    quantize: str | None = None
    weights: Path | None = None
    lora: tuple[Path, ...] | None = None
    lora_source: str = "--lora"


def make_plan(
    story: Story,
    name: str,
    overrides: Overrides = Overrides(),
    heard: Heard | None = None,
    pictures: Mapping[int, str] | None = None,
) -> Plan:
    """Plan a story; ``name`` is its title if it has none.

    ``heard`` is what `film.hearing` found of its sounds. Without it, only pictures are planned, and a scene
    that takes its length from its sound has the usual one. ``pictures`` are the SHA-256 of those that scenes
    begin with, by the scene's index; without them, the story's files are read.

    Raises UsageError for the first thing that the command line cannot have, ScriptError for everything that
    the story cannot, each with the nearest legal value.
    """
    spec = _model(story, overrides)
    refusals = _Refusals(story)
    settings = _settings(story, spec, overrides, refusals)
    track = heard.track if heard else None
    refusals.faults += heard.faults if heard else ()
    segments = _segments(story, spec, settings, overrides, refusals, track)
    files: dict[str, Path] = {}
    if pictures is None:
        pictures, files = _pictures(story, spec, settings, segments, refusals)
    segments = tuple(replace(s, picture=pictures.get(s.index)) for s in segments)
    seams = _seams(story, spec, settings.method, segments)
    _check_overlap(spec, settings.method, segments, seams, overrides, refusals)
    _check_sound(story, spec, segments, track, refusals)
    segments, cards = _with_cards(story, spec, segments, refusals)
    retakes = _retakes(story, spec, segments, refusals)
    refusals.raise_faults()
    shown = tuple(retakes.get(segment.index, segment) for segment in segments)
    replaced = tuple(segment for segment in segments if segment.index in retakes)
    data, font = story.model_dump(mode="json"), story.font_path
    notes = tuple(_settings_notes(story, spec, settings, overrides))
    if story.is_from_file:
        notes += tuple(_lora_notes(spec, shown))
    of_film = story.title or name, data, spec, settings, shown, seams, replaced, track, cards, font
    plan = Plan(*of_film, pictures=files, notes=notes)
    plan = plan.settled([None] * len(seams))
    if settings.method.plugged:
        assert plan.pace  # what a plugin's noise levels lack is said now
    return plan


class _Refusals:
    """What cannot be rendered: raised at once if the command line asks for it, else kept as a fault."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self.faults: list[Fault] = []

    def add(self, problem: str | None, from_command_line: bool, *location: str | int) -> None:
        """Refuse what has a ``problem``, None for none. Raises UsageError."""
        if problem is not None and from_command_line:
            raise UsageError(problem)
        if problem is not None:
            self.faults.append(self._story.fault(problem, *location))

    def raise_faults(self) -> None:
        """Raise ScriptError if the story has faults."""
        if self.faults:
            raise ScriptError(self._story.path, self.faults)


def _model(story: Story, overrides: Overrides) -> ModelSpec:
    """Return the model with the weights and the precision that are asked for."""
    wished = story.render
    if overrides.model is None and wished.model is not None and wished.model not in model_names():
        words = f"unknown model {wished.model!r}; known: {', '.join(model_names())}"
        raise ScriptError(story.path, [story.fault(words, "render", "model")])
    spec = find_model(_first(overrides.model, wished.model, DEFAULT_MODEL))
    if overrides.weights is not None:
        spec = replace(spec, weights=overrides.weights)
    return spec.quantized(_first(overrides.quantize, wished.quantize, spec.quantize))


def _settings(story: Story, spec: ModelSpec, overrides: Overrides, refusals: _Refusals) -> Settings:
    """Return the film's settings: the command line's, else the story's, else the model's."""
    _check_numbers(overrides)
    wished = story.render
    width, height = spec.size
    size = wished.size if overrides.size is None else overrides.size
    if size is not None:
        width, height = parse_size(size)
        refusals.add(size_problem(spec, width, height), overrides.size is not None, "render", "size")
    guidance = wished.guidance if overrides.guidance is None else overrides.guidance
    if guidance is not None and not (math.isfinite(guidance) and guidance >= 1):
        raise UsageError(f"guidance {guidance} is not valid", "Use a number from 1, which means none.")
    speed = _first(overrides.speed, wished.speed, "exact")
    find_speed(speed)
    steps = _first(overrides.steps, wished.steps, spec.steps)
    refusals.add(steps_problem(spec, steps), overrides.steps is not None, "render", "steps")
    shift = wished.shift if overrides.shift is None else overrides.shift
    if shift is not None:
        refusals.add(shift_problem(spec), overrides.shift is not None, "render", "shift")
    given = wished.negative if overrides.negative is None else overrides.negative
    negative = spec.negative if given is None else str(one_line(given))
    if given is not None:
        problem = negative_problem(spec, negative)
        refusals.add(problem, overrides.negative is not None, "render", "negative")
    # A chosen guidance counts at all noise levels, as `guidance_scale` alone does in diffusers.
    guidances = (spec.guidance, spec.guidance_2) if guidance is None else (guidance, None)
    guided = any(strength not in (1, None) for strength in guidances)
    method = chosen_method(wished.method, overrides)
    if method.weighting is None:
        method = method.model_copy(update={"weighting": spec.weighting})
    if method.emphasis is None:
        method = method.model_copy(update={"emphasis": spec.emphasis})
    if method.portraits is None:
        method = method.model_copy(update={"portraits": spec.portraits})
    if method.identity_weight is None:
        method = method.model_copy(update={"identity_weight": spec.identity_weight})
    elif spec.identity_weight is None:
        problem = f"model {spec.name} cannot weigh what shows its characters; leave identity_weight out"
        chosen = any(item.startswith("identity_weight=") for item in overrides.method)
        refusals.add(problem, chosen, "render", "method", "identity_weight")
    return Settings(
        seed=_first(overrides.seed, wished.seed, 0),
        width=width,
        height=height,
        steps=steps,
        guidance=guidances[0],
        method=method,
        speed="exact" if spec.trained_levels else speed,
        guidance_2=guidances[1],
        guidance_rescale=spec.guidance_rescale if guided else 0.0,
        negative=negative if guided else "",
        shift=spec.shift_at(width, height) if shift is None else shift,
    )


def _settings_notes(story: Story, spec: ModelSpec, settings: Settings, overrides: Overrides) -> Iterator[str]:
    """Yield a note for every setting that changes nothing, or that the model's weights were not made for."""
    speed = _first(overrides.speed, story.render.speed, "exact")
    guided = settings.is_guided
    if speed != "exact" and spec.trained_levels:
        yield (
            f"speed {speed} changes nothing: model {spec.name} takes {settings.steps} steps"
            f"{'' if guided else ' without guidance'}, and all are computed"
        )
    if guided and spec.guidance == 1 and spec.guidance_2 in (1, None):
        yield (
            f"the weights of model {spec.name} were made for guidance 1: with guidance "
            f"{settings.guidance:g} each step costs twice"
        )
    method = settings.method
    # Without a preview no estimate is scored.
    unmeasured = spec.decides == (0.0, 0.0) and not (spec.weights / PREVIEW).is_file()
    if method.weighting is True and (method.emphasis == 1 or unmeasured):
        why = (
            "with emphasis 1 every word counts once"
            if method.emphasis == 1
            else f"where model {spec.name} decides what is done has not been measured"
        )
        yield f"weighting true changes nothing: {why}; weighting texts weighs two prompts side by side"
    given = story.render.negative if overrides.negative is None else overrides.negative
    if not guided and one_line(given or ""):
        yield "the negative prompt changes nothing: guidance 1 is none, and only guidance leads away from it"


def _lora_notes(spec: ModelSpec, segments: Sequence[Segment]) -> Iterator[str]:
    """Yield a note for every LoRA that could not be held against the model."""
    for lora in dict.fromkeys(lora for segment in segments for lora in segment.loras):
        if not is_fit_known(lora, spec):
            words = f"the weights of model {spec.name} are not here"
            yield f"LoRA {lora.path.name}: {words}: whether it fits is not known"


def _check_numbers(overrides: Overrides) -> None:
    """Raise UsageError for a seed, steps, a shift or a negative prompt that no story could have either."""
    given = {name: getattr(overrides, name) for name in ("seed", "steps", "shift", "negative")}
    try:
        RenderSettings.model_validate(given)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = str(fault["loc"][0])
        raise UsageError(f"{name} {given[name]!r:.60} is not valid", f"{fault['msg']}.") from None


def _segments(
    story: Story,
    spec: ModelSpec,
    settings: Settings,
    overrides: Overrides,
    refusals: _Refusals,
    track: Soundtrack | None,
) -> tuple[Segment, ...]:
    """Return a segment per scene, its lead not yet settled."""
    usual = _first(overrides.seconds, story.render.seconds, spec.seconds)
    refusals.add(seconds_problem(spec, usual), overrides.seconds is not None, "render", "seconds")
    texts = [(story.filled(scene.scene), story.filled(scene.action)) for scene in story.scenes]
    names, seeds = prompt_names(story), _seeds(story, settings.seed)
    loras = _loras(story, spec, overrides, refusals)
    count_tokens = token_counter(spec.weights / "tokenizer")
    segments: list[Segment] = []
    start = 0
    for index, (scene, (prompt, action)) in enumerate(zip(story.scenes, texts, strict=True)):
        own = scene.seconds
        if own == "auto":
            own, problem = _sounding_seconds(spec, scene, index, track)
            refusals.add(problem, False, "scenes", index, "seconds")
        elif own is not None:
            refusals.add(seconds_problem(spec, own), False, "scenes", index, "seconds")
        refusals.add(prompt_problem(spec, prompt, action, count_tokens), False, "scenes", index)
        frames = round(_first(own, usual) * spec.fps)
        segments.append(
            Segment(
                index=index,
                scene=prompt,
                action=action,
                phrase=verb_phrase(action, names),
                cast=_named(prompt, action, names),
                latents=frames // spec.frames_per_latent,
                lead=1,
                frames=frames,
                start=start,
                seed=seeds[index],
                blended=index > 0 and scene.transition not in APART and settings.method.blending != "none",
                loras=loras[index],
            )
        )
        start += frames
    return tuple(segments)


def _loras(
    story: Story, spec: ModelSpec, overrides: Overrides, refusals: _Refusals
) -> list[tuple[Lora, ...]]:
    """Return the LoRAs of every scene: its own, else the command line's, else the film's.

    Each file is looked into, by its header alone.
    """
    seen: dict[str, Lora] = {}
    source = overrides.lora_source

    def refused(problem: str) -> UsageError:
        is_variable = source.isidentifier()
        return UsageError(f"{source}: {problem}", f"{os.pathsep!r} separates files there." * is_variable)

    def checked(lora: Lora, from_command_line: bool, *place: str | int) -> Lora:
        problem = None
        other = seen.setdefault(lora.path.name, lora)
        if other is not lora and _is_same(other.path, lora.path):
            lora = replace(lora, path=other.path)
        if other.path != lora.path:
            problem = (
                f"two LoRAs of the film are called {lora.path.name}; rename one, so that records tell them"
            )
        elif (other is lora or other.experts != lora.experts) and (from_command_line or story.is_from_file):
            problem = lora_problem(lora, spec)
        if problem is not None and from_command_line:
            raise refused(problem)
        if problem is not None and not lora.path.exists():
            problem += _weight_hint(lora.path.name)
        refusals.add(problem, False, *place)
        return lora

    of_film: list[Lora] = []
    of_scenes: dict[int, list[Lora]] = {
        i: [] for i, scene in enumerate(story.scenes) if scene.lora is not None
    }
    for scene, file, place in story.loras():
        if scene is None and overrides.lora is not None:
            continue
        path = Path(story.path).parent / file.file
        lora = Lora(path, file.weight, file.experts or _experts_of(path, spec))
        (of_film if scene is None else of_scenes[scene]).append(checked(lora, False, *place))
    for text in overrides.lora or ():
        try:
            path, weight = parse_lora(str(text))
        except ValueError as error:
            shown = "" if str(text) in ("", ".") else f"{text}: "
            raise refused(f"{shown}{error}") from None
        of_film.append(checked(Lora(path, weight, _experts_of(path, spec)), True))
    return [tuple(of_scenes.get(index, of_film)) for index in range(len(story.scenes))]


def _is_same(one: Path, other: Path) -> bool:
    """Tell whether two paths are of one file, however they are written."""
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # of a file that is not there, only the path is known
        return os.path.abspath(one) == os.path.abspath(other)


def _weight_hint(name: str) -> str:
    """Return how a story says the weight that a file's name ends with, as the command line writes it."""
    try:
        path, weight = parse_lora(name)
    except ValueError:
        return ""
    return "" if path.name == name else f"; write {{file: {path.name}, weight: {weight:g}}}"


def _experts_of(path: Path, spec: ModelSpec) -> Experts:
    """Return which of a model's transformers a LoRA is for that does not say so."""
    return "all" if spec.boundary_ratio is None else named_experts(path)


def prompt_names(story: Story) -> tuple[str, ...]:
    """Return whom a story's prompts may name: its cast, and the subject that all its actions begin with."""
    subject = shared_start(tuple(story.filled(scene.action) for scene in story.scenes))
    members = *(member.name for member in story.cast.values()), *([subject] if subject else [])
    return tuple(dict.fromkeys(members))


def _seeds(story: Story, seed: int) -> list[int]:
    """Return the seed of every scene's noise.

    It follows from the film's seed and the scene prompt as the story writes it, not from the scene's place:
    another action, another cast, or a scene that is inserted before it leave it as it is. The same prompt
    again has another one each time.
    """
    times: Counter[str] = Counter()
    seeds = []
    for scene in story.scenes:
        seeds.append(_own_seed(scene.seed, seed, f"{scene.scene} {times[scene.scene]}"))
        times[scene.scene] += 1
    return seeds


def _own_seed(chosen: int | None, seed: int, name: str) -> int:
    """Return a seed for a scene's noise: by the one ``chosen`` for it, else by the film's and a name."""
    return derived_seed(seed, name) if chosen is None else derived_seed(chosen, "scene")


def _named(scene: str, action: str, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if is_named(name, joined_prompt(scene, action)))


def _retakes(
    story: Story, spec: ModelSpec, first_takes: Sequence[Segment], refusals: _Refusals
) -> dict[int, Segment]:
    """Return the takes that the film shows instead of first ones, by their index."""
    names, count_tokens = prompt_names(story), token_counter(spec.weights / "tokenizer")
    retakes = {}
    for first, scene in zip(first_takes, story.scenes, strict=True):
        if (retake := scene.retake) is None:
            continue
        prompt, action = map(story.filled, scene.shown)
        refusals.add(
            prompt_problem(spec, prompt, action, count_tokens), False, "scenes", first.index, "retake"
        )
        retakes[first.index] = replace(
            first,
            scene=prompt,
            action=action,
            phrase=verb_phrase(action, names),
            cast=_named(prompt, action, names),
            seed=_own_seed(retake.seed, first.seed, f"take {retake.take}"),
            take=retake.take,
        )
    return retakes


def _sounding_seconds(
    spec: ModelSpec, scene: Scene, index: int, track: Soundtrack | None
) -> tuple[float | None, str | None]:
    """Return the length of a scene that takes it from its sound, and what is wrong with that, or None.

    It is that of its speech, else of its audio, rounded up to what the model can render.
    """
    if scene.say is None and scene.audio is None:
        return None, "the scene has no sound to take its length from; give it say or audio, or a number"
    sounds = track.of_scene(index) if track else {}
    sound = sounds.get("speech") if scene.say else sounds.get("scene")
    if sound is None:  # which has a fault of its own, or is not looked at
        return None, None
    unit, longest = spec.frames_per_latent / spec.fps, longest_scene(spec)
    latents = max(1, math.ceil(sound.heard / unit - 1e-6))
    if latents <= longest:
        return latents * unit, None
    which = "speech" if scene.say else "audio"
    remedy = "say it in several scenes" if scene.say else "write a number of seconds: the rest is not heard"
    return None, (
        f"the scene's {which} takes {sound.heard:.2f} seconds, and the longest scene of model {spec.name} is "
        f"{longest * unit:g}; {remedy}"
    )


def _check_sound(
    story: Story,
    spec: ModelSpec,
    segments: Sequence[Segment],
    track: Soundtrack | None,
    refusals: _Refusals,
) -> None:
    """Refuse speech that does not fit into its scene, and what would begin after its scene or film."""
    for sound in track.sounds if track else ():
        shown = segments if sound.scene is None else segments[sound.scene : sound.scene + 1]
        seconds = sum(segment.frames for segment in shown) / spec.fps
        place = ("audio",) if sound.scene is None else ("scenes", sound.scene, SOUND_KEYS[sound.kind])
        if sound.start >= seconds:
            which = "film" if sound.scene is None else "scene"
            problem = (
                f"it would begin {sound.start:g} seconds after the {which}'s beginning, and the {which} "
            )
            refusals.add(f"{problem}is {seconds:g} seconds long", False, *place, "start")
        elif sound.kind == "speech" and sound.heard > seconds + 1e-3:
            if sound.scene is not None and story.scenes[sound.scene].seconds == "auto":
                continue  # and it is too long for any scene, which has been said
            problem = f"it takes {sound.heard:.2f} seconds to say this, and the scene has {seconds:g}"
            refusals.add(f"{problem}; write seconds: auto, or say less", False, *place)


def _with_cards(
    story: Story, spec: ModelSpec, segments: Sequence[Segment], refusals: _Refusals
) -> tuple[tuple[Segment, ...], tuple[Card, ...]]:
    """Return the segments where cards leave them, and the cards."""
    font = story.font_path
    if font is not None and story.is_from_file and not font.is_file():
        refusals.add(f"there is no font {font}", False, "font")
    lengths = [segment.frames for segment in segments]
    cards: list[Card] = []
    for before, card, place in story.cards():
        text = card_lines(story.filled(card.text))
        refusals.add(card_problem(text, font is not None), False, *place, "text")
        start = sum(lengths[:before]) + sum(earlier.frames for earlier in cards)
        cards.append(Card(before, text, card.ground, max(1, round(card.seconds * spec.fps)), start))
    shown = (
        replace(s, start=s.start + sum(card.frames for card in cards if card.before <= s.index))
        for s in segments
    )
    return tuple(shown), tuple(cards)


def _pictures(
    story: Story, spec: ModelSpec, settings: Settings, segments: Sequence[Segment], refusals: _Refusals
) -> tuple[dict[int, str], dict[str, Path]]:
    """Return the SHA-256 of the pictures that scenes begin with, by the scene's index, and their files."""
    wanted: dict[int, tuple[str, tuple[str | int, ...]]] = {}

    def refuse(problem: str | None, *place: str | int) -> None:
        file = story.cast_files.get(str(place[1])) if place[0] == "cast" else None
        if problem is not None and file is not None:  # the story has no picture at that place
            problem = f"{file}, picture of {place[1]}: {problem}"
        refusals.add(problem, False, *place)

    for index, scene in enumerate(story.scenes):
        if scene.picture is None:
            continue
        wanted[index] = (scene.picture, ("scenes", index, "picture"))
        if scene.transition == "continue":
            problem = "a scene that continues the shot begins with its last picture; take out one of the two"
            refuse(problem, "scenes", index, "transition")
    for who, member in story.cast.items():
        if member.picture is None:
            continue
        place: tuple[str | int, ...] = ("cast", who, "picture")
        first = next((s.index for s in segments if member.name in s.cast), None)
        refuse(_introduction_problem(story, first, wanted), *place)
        if first is not None:
            wanted.setdefault(first, (member.picture, place))
    base = Path() if story.path in ("stdin", str(STDIN)) else Path(story.path).parent
    hashes: dict[int, str] = {}
    files: dict[str, Path] = {}
    for index, (name, place) in sorted(wanted.items()):
        if not spec.pictures:
            can = ", ".join(name for name, facts in MODELS.items() if facts.pictures and name == facts.base)
            problem = f"model {spec.name} cannot begin a scene with a picture; models that can: {can}"
            refuse(problem, *place)
            continue
        from storyreel.models.pictures import read_picture

        try:
            found, _ = read_picture(base / name, (settings.width, settings.height))
        except FormatError as error:
            refuse(f"{name} {error.message}; {error.remedy}", *place)
            continue
        hashes[index], files[found] = found, base / name
    return hashes, files


def _introduction_problem(story: Story, first: int | None, taken: Mapping[int, object]) -> str | None:
    """Return why no scene can begin with the picture of a member, whom the scene ``first`` shows first."""
    if first is None:
        return "no scene names this member of the cast, so nothing begins with the picture; take it out"
    scene = f"scene {first + 1}, the first that names this member"
    if first in taken:
        return f"{scene}, begins with another picture; take out one of the two"
    if first and story.scenes[first].transition not in APART:
        return f"{scene}, does not begin with a cut; write transition: cut there, or take the picture out"
    return None


def _seams(story: Story, spec: ModelSpec, method: Method, segments: Sequence[Segment]) -> tuple[Seam, ...]:
    """Return the seams between neighbours, each with the longest overlap that may be used there."""
    names = tuple(dict.fromkeys(name for segment in segments for name in segment.cast))
    seams = []
    for (earlier, later), scene in zip(pairwise(segments), story.scenes[1:], strict=True):
        transition = scene.transition
        if transition == "blend":
            transition = "continue" if same_place(earlier.scene, later.scene, names) else "dissolve"
        if transition not in APART:
            transition = ALWAYS.get(method.blending, transition)
        if transition == "continue" and later.picture is not None:  # which another picture begins
            transition = "dissolve"
        # The published form knows pictures alone, and none crosses a cut.
        apart = method.blending == "none" or (method.blending == "published" and transition in APART)
        strength = 0.0 if apart else method.strength
        overlap = 0
        if transition == "continue" and method.leads:
            overlap = min(method.overlap or spec.overlap, _longest_overlap(spec, earlier, later))
        seams.append(Seam(later.index, transition, overlap, strength))
    return tuple(seams)


def _longest_overlap(spec: ModelSpec, earlier: Segment, later: Segment) -> int:
    """Return what two neighbours can share: all of the earlier, as long as the later one fits the model."""
    return min(earlier.latents, spec.max_latents - 1 - later.latents)


def _check_overlap(
    spec: ModelSpec,
    method: Method,
    segments: Sequence[Segment],
    seams: Sequence[Seam],
    overrides: Overrides,
    refusals: _Refusals,
) -> None:
    """Refuse an overlap that somebody chose and some seam does not allow."""
    pairs = (pair for pair, seam in zip(pairwise(segments), seams, strict=True) if seam.overlap)
    longest = [max(1, _longest_overlap(spec, *pair)) for pair in pairs]
    if method.overlap is not None and (most := min(longest, default=spec.max_latents)) < method.overlap:
        problem = f"an overlap of {method.overlap} latent frames is longer than a scene allows: 1 to {most}"
        chosen = any(item.startswith("overlap=") for item in overrides.method)
        refusals.add(problem, chosen, "render", "method", "overlap")


def chosen_method(wished: Method, overrides: Overrides) -> Method:
    """Return the story's method settings with the command line's changes. Raises UsageError."""
    values = wished.model_dump(exclude_unset=True)  # what follows from a setting may follow from another
    for item in overrides.method:
        key, equals, text = item.partition("=")
        if key not in Method.model_fields or not equals:
            known = ", ".join(Method.model_fields)
            raise UsageError(f"--method {item!r} is not a setting", f"Write KEY=VALUE with one of: {known}")
        values[key] = _plain(text)
    if unknown := overrides.without - {*PARTS, "all"}:
        raise UsageError(f"unknown part {min(unknown)!r}", f"Known parts: {', '.join(PARTS)}, all")
    try:
        method = Method.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        if not fault["loc"]:  # of settings that do not go together
            raise UsageError(f"--method: {fault['msg']}", "Set all of them.") from None
        key = str(fault["loc"][0])
        if fault["type"] == "plugin":
            raise UsageError(f"--method {key}: {fault['msg']}") from None
        message = f"--method {key} must be {legal_values(key)}, not {fault['input']!r:.60}"
        raise UsageError(message, Method.model_fields[key].description or "") from None
    return method.without(set(PARTS) if "all" in overrides.without else set(overrides.without))


def _plain(text: str) -> object:
    """Read a value as YAML does, and numbers as 1e-3 too; return what is not valid YAML as text."""
    try:
        return float(text) if re.fullmatch(r"[-+.\d]+e[-+]?\d+", text, re.I) else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _first(*values: T | None) -> T:
    """Return the first value that is not None."""
    return next(value for value in values if value is not None)


def parse_size(size: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT. Raises UsageError."""
    if re.fullmatch(SIZE_PATTERN, size):
        width, height = size.split("x")
        return int(width), int(height)
    raise UsageError(f"{size!r} is not a size; write WIDTHxHEIGHT, as in 96x64")


def prompt_problem(
    spec: ModelSpec, scene: str, action: str, count_tokens: Callable[[str], int] | None
) -> str | None:
    """Return why a model cannot read a scene's prompts whole; None if it can, or if that is not known.

    Without ``count_tokens``, only prompts that are too long for certain are refused.
    """
    prompt = joined_prompt(scene, action)
    if max(len(scene), len(action)) > MAX_PROMPT:
        return f"a prompt is longer than {MAX_PROMPT} characters with the names filled in"
    count = count_tokens(prompt) if count_tokens else fewest_tokens(prompt)
    if count <= spec.text_length:
        return None
    least, words = ("", "fewer or commoner words") if count_tokens else (" at the least", "fewer words")
    return (
        f"scene and action have {count} tokens together{least}, model {spec.name} reads {spec.text_length}; "
        f"use {words}"
    )


def negative_problem(spec: ModelSpec, negative: str) -> str | None:
    """Return why a model cannot read a negative prompt whole; None if it can, or if that is not known."""
    count_tokens = token_counter(spec.weights / "tokenizer")
    count = (count_tokens or fewest_tokens)(negative)
    if count <= spec.text_length:
        return None
    least, words = ("", "fewer or commoner words") if count_tokens else (" at the least", "fewer words")
    return (
        f"the negative prompt has {count} tokens{least}, model {spec.name} reads {spec.text_length}; "
        f"use {words}"
    )


def steps_problem(spec: ModelSpec, steps: int) -> str | None:
    """Return why a model cannot take so many steps; None if it can."""
    if not spec.sigmas or steps == spec.steps:
        return None
    return (
        f"model {spec.name} was trained for {spec.steps} steps at fixed noise levels, and cannot take "
        f"{steps}; leave the steps out, or take {spec.base}"
    )


def shift_problem(spec: ModelSpec) -> str | None:
    """Return why a model takes no shift; None if it does."""
    if spec.shifts:
        return None
    return f"model {spec.name} takes no shift, its noise levels are fixed; leave it out"


def notes_of(plan: Plan) -> Iterator[str]:
    """Yield what is good to know of a plan before it is rendered."""
    yield from plan.notes
    yield from uncounted_prompts(plan)


def uncounted_prompts(plan: Plan) -> Iterator[str]:
    """Yield a note for every scene whose prompts may be too long, if no tokenizer is here to count them."""
    spec = plan.spec
    counts = {f"scene {s.index + 1}": estimated_tokens(s.prompt) for s in plan.segments}
    counts["the negative prompt"] = estimated_tokens(plan.settings.negative)
    long = {what: count for what, count in counts.items() if count > spec.text_length}
    if long and token_counter(spec.weights / "tokenizer") is None:
        for what, count in long.items():
            yield (
                f"{what} may be too long: model {spec.name} reads {spec.text_length} tokens, "
                f"and it has {count} by an estimate (the model's tokenizer is not here)"
            )


def size_problem(spec: ModelSpec, width: int, height: int) -> str | None:
    """Return why a model cannot render a size, with the nearest that it can; None if it can."""
    legal = tuple(
        min(max(round(value / spec.size_multiple) * spec.size_multiple, low), high)
        for value, low, high in zip((width, height), spec.min_size, spec.max_size, strict=True)
    )
    if legal == (width, height):
        return None
    return f"model {spec.name} cannot render {width}x{height}; the nearest it can is {legal[0]}x{legal[1]}"


def longest_scene(spec: ModelSpec) -> int:
    """Return the latent frames of the longest scene that a model can render, its lead not counted."""
    return spec.max_latents - LEAD


def seconds_problem(spec: ModelSpec, seconds: float) -> str | None:
    """Return why a model cannot render a scene of a length, with the nearest it can; None if it can."""
    unit = spec.frames_per_latent / spec.fps
    longest = longest_scene(spec)
    if not math.isfinite(seconds):
        return f"a scene of {seconds} seconds is not valid; give a finite number"
    latents = max(-1e9, min(seconds / unit, 1e9))
    # Of thirds of a second, as 8 frames are at 24 a second, six digits must do: those that are printed below.
    if abs(latents - round(latents)) < 1e-3 and 1 <= round(latents) <= longest:
        return None
    nearest = {min(max(count, 1), longest) for count in (int(latents), int(latents) + 1)}
    words = " or ".join(f"{count * unit:g}" for count in sorted(nearest))
    return f"model {spec.name} cannot render a scene of {seconds:g} seconds; the nearest it can: {words}"


def nearest_seconds(spec: ModelSpec, seconds: float) -> float:
    """Return the length of a scene that a model can render and that is nearest to another one."""
    unit = spec.frames_per_latent / spec.fps
    return min(max(round(min(seconds, 1e9) / unit), 1), longest_scene(spec)) * unit
