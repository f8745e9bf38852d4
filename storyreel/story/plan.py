"""From a story to what will be rendered: segments and seams, by the model's table of facts.

Planning loads no model and changes nothing silently: a size or length that the model cannot
do is refused, with the nearest that it can.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from storyreel.errors import Fault, ScriptError, UsageError
from storyreel.method.settings import OLD_NAMES, PARTS, Method, legal_values
from storyreel.method.similarity import seam_overlap, seam_strength, shared_start, verb_phrase
from storyreel.method.step_skipping import EXACT, SPEEDS, Speed, find_speed
from storyreel.models.specs import MODELS, ModelSpec, find_model
from storyreel.story.schema import MAX_PROMPT, SIZE_PATTERN, Story, Transition
from storyreel.story.tokens import estimated_tokens, fewest_tokens, token_counter

T = TypeVar("T")

DEFAULT_MODEL = "mini"


@dataclass(frozen=True)
class Overrides:
    """What the command line asks for; None leaves it to the story, then to the model."""

    model: str | None = None
    seed: int | None = None
    size: str | None = None
    seconds: float | None = None
    steps: int | None = None
    guidance: float | None = None
    method: tuple[str, ...] = ()  # KEY=VALUE
    without: frozenset[str] = frozenset()
    speed: str | None = None
    quantize: str | None = None
    weights: Path | None = None  # a folder of the model's weights, instead of what was pulled


@dataclass(frozen=True)
class Settings:
    """How the whole film is rendered. ``width`` and ``height`` are the model's pixels.

    ``guidance`` counts at all noise levels, unless a second expert has ``guidance_2`` for its own.
    """

    seed: int
    width: int
    height: int
    steps: int
    guidance: float
    method: Method
    speed: str = "exact"
    guidance_2: float | None = None

    def guidance_of(self, expert: int) -> float:
        """Return the guidance of a model's expert, by its index."""
        return self.guidance if expert == 0 or self.guidance_2 is None else self.guidance_2

    @property
    def guidance_words(self) -> str:
        """The guidance for people to read, as in "4.5" or "4 and 3"."""
        second = "" if self.guidance_2 is None else f" and {self.guidance_2:g}"
        return f"{self.guidance:g}{second}"


@dataclass(frozen=True)
class Segment:
    """One scene as it will be rendered.

    It has ``latents`` latent frames of its own, which are ``frames`` frames of the film, and
    ``lead`` more before them: the overlap with the scene before, or a start that is not shown.
    ``phrase`` is what its action is compared by, ``seed`` makes its noise. ``blended`` says
    whether it grows out of the scene before.
    """

    index: int
    scene: str
    action: str
    phrase: str
    latents: int
    lead: int
    frames: int
    start: int
    seed: int
    blended: bool

    @property
    def number(self) -> str:
        """Its name in files, from 01."""
        return f"{self.index + 1:02d}"

    @property
    def prompt(self) -> str:
        """The one text for a model that is told scene and action together."""
        return joined_prompt(self.scene, self.action)


@dataclass(frozen=True)
class Seam:
    """The border between segment ``after - 1`` and segment ``after``; ``overlap`` in latents.

    ``similarity`` is that of the two actions, None before a model has read them.
    """

    after: int
    transition: Transition
    overlap: int
    strength: float
    similarity: float | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that decides a film, before anything is computed.

    ``story`` is the script's own data, defaults filled in.
    """

    title: str
    story: dict[str, Any]
    spec: ModelSpec
    settings: Settings
    segments: tuple[Segment, ...]
    seams: tuple[Seam, ...]

    @cached_property
    def frames(self) -> int:
        """Frames of the film."""
        return sum(segment.frames for segment in self.segments)

    @property
    def seconds(self) -> float:
        """Length of the film."""
        return self.frames / self.spec.fps

    @property
    def forwards(self) -> int:
        """Forward passes of the transformer; one with guidance counts once."""
        return len(self.segments) * SPEEDS[self.settings.speed].forwards(self.settings.steps)

    @property
    def latents(self) -> int:
        """Latent frames that are denoised, those of overlaps counted twice: what a render costs."""
        return sum(segment.lead + segment.latents for segment in self.segments)

    @property
    def estimated_seconds(self) -> float | None:
        """Rendering time on the machine that ``spec.measured_on`` names; None if nobody has measured it."""
        spec, settings = self.spec, self.settings
        if spec.seconds_per_forward is None:
            return None
        usual = round(spec.seconds * spec.fps / spec.frames_per_latent) + spec.overlap
        area = settings.width * settings.height / (spec.size[0] * spec.size[1])
        guided = 1.0 if settings.guidance > 1 else 0.5
        forwards = SPEEDS[settings.speed].forwards(settings.steps)
        return self.latents / usual * forwards * spec.seconds_per_forward * area * guided

    def runs(self) -> Iterator[tuple[Segment, ...]]:
        """Yield the groups of segments from one cut to the next, which do not depend on each other."""
        run: list[Segment] = []
        for segment in self.segments:
            if run and not segment.blended:
                yield tuple(run)
                run = []
            run.append(segment)
        yield tuple(run)

    def seam(self, segment: Segment) -> Seam | None:
        """Return the seam before a segment; the first has none."""
        return self.seams[segment.index - 1] if segment.index else None

    def anchors(self, segment: Segment) -> tuple[int, ...]:
        """Return the segments of a segment's context: the first and the last that is sure to be finished."""
        if not self.settings.method.context:
            return ()
        sure = segment.index - self.settings.method.window
        beside = self.segments[max(0, sure + 1) : segment.index + 1]
        last = max([sure, *(s.index - 1 for s in beside if not s.blended)])
        return tuple(sorted({0, last})) if last >= 0 else ()

    def settled(self, similarities: Sequence[float | None]) -> Plan:
        """Return the plan with overlap and strength of every seam by how alike its actions are.

        There is a similarity per seam, None where nothing was compared (SAR).
        """
        seams, segments = [], [self.segments[0]]
        for seam, segment, similarity in zip(self.seams, self.segments[1:], similarities, strict=True):
            if similarity is not None and seam.transition == "blend":
                seam = replace(
                    seam,
                    similarity=similarity,
                    overlap=seam_overlap(seam.overlap, similarity) if seam.overlap else 0,
                    strength=seam_strength(seam.strength, similarity),
                )
            seams.append(seam)
            segments.append(replace(segment, lead=max(1, seam.overlap)))
        return replace(self, seams=tuple(seams), segments=tuple(segments))


def admits(steps_done: Sequence[int], window: int, steps: int) -> bool:
    """Tell whether the next segment may begin, given how far those being denoised have come.

    They begin a ``window``-th of all steps apart, so that no more than ``window`` are under way.
    """
    return not steps_done or steps_done[-1] >= math.ceil(steps / window)


def forwards_left(
    steps_done: Sequence[int], wanted: int, following: int, window: int, steps: int, speed: Speed = EXACT
) -> int:
    """Return the forwards until ``wanted`` more segments are finished.

    ``steps_done`` are those of the segments under way, ``following`` how many are still to begin.
    """
    active, count = list(steps_done), 0
    while wanted > 0:
        if following and admits(active, window, steps):
            active.append(0)
            following -= 1
        count += sum(speed.computes(done, steps) for done in active)
        active = [done + 1 for done in active]
        if active[0] == steps:
            active.pop(0)
            wanted -= 1
    return count


def joined_prompt(scene: str, action: str) -> str:
    """Return scene and action as one text, for a model that takes one prompt; the same is said once."""
    if scene == action:
        return scene
    return f"{scene.rstrip('. ')}. {action}"


def make_plan(story: Story, name: str, overrides: Overrides = Overrides()) -> Plan:
    """Plan a story. ``name`` is its title if it has none.

    Raises UsageError for what the command line cannot have, ScriptError for what the script cannot, each
    with the nearest legal value.
    """
    wished = story.render
    if overrides.model is None and wished.model is not None and wished.model not in MODELS:
        words = f"there is no model {wished.model!r}; known: {', '.join(MODELS)}"
        raise ScriptError(story.path, [story.fault(words, "render", "model")])
    spec = find_model(_first(overrides.model, wished.model, DEFAULT_MODEL))
    if overrides.weights is not None:
        spec = replace(spec, weights=overrides.weights)
    spec = spec.quantized(_first(overrides.quantize, wished.quantize, spec.quantize))
    faults: list[Fault] = []

    def refuse(message: str, from_command_line: bool, *location: str | int) -> None:
        if from_command_line:
            raise UsageError(message)
        faults.append(story.fault(message, *location))

    width, height = spec.size
    size = wished.size if overrides.size is None else overrides.size
    if size is not None:
        width, height = parse_size(size)
        if (problem := size_problem(spec, width, height)) is not None:
            refuse(problem, overrides.size is not None, "render", "size")

    usual = _first(overrides.seconds, wished.seconds, spec.seconds)
    if (problem := seconds_problem(spec, usual)) is not None:
        refuse(problem, overrides.seconds is not None, "render", "seconds")
    count_tokens = token_counter(spec.weights / "tokenizer")
    segments: list[Segment] = []
    seed = _first(overrides.seed, wished.seed, 0)
    chosen = wished.guidance if overrides.guidance is None else overrides.guidance
    guidance = _first(chosen, spec.guidance)
    if not (math.isfinite(guidance) and guidance >= 1):
        raise UsageError(f"guidance {guidance} makes no sense", "Use a number from 1, which means none.")
    speed = _first(overrides.speed, wished.speed, "exact")
    find_speed(speed)
    method = chosen_method(wished.method, overrides)
    if method.weighting is None:
        method = method.model_copy(update={"weighting": spec.weighting})
    actions = tuple(story.filled(scene.action) for scene in story.scenes)
    names = tuple(member.name for member in story.cast.values()) + tuple(
        filter(None, [shared_start(actions)])
    )
    start = 0
    for index, scene in enumerate(story.scenes):
        if scene.seconds is not None and (problem := seconds_problem(spec, scene.seconds)) is not None:
            refuse(problem, False, "scenes", index, "seconds")
        texts = story.filled(scene.scene), actions[index]
        if (problem := prompt_problem(spec, *texts, count_tokens)) is not None:
            refuse(problem, False, "scenes", index)
        frames = round(_first(scene.seconds, usual) * spec.fps)
        segments.append(
            Segment(
                index=index,
                scene=texts[0],
                action=texts[1],
                phrase=verb_phrase(texts[1], names),
                latents=frames // spec.frames_per_latent,
                lead=1,
                frames=frames,
                start=start,
                seed=derived_seed(seed, index),
                blended=index > 0 and scene.transition == "blend" and method.blending != "none",
            )
        )
        start += frames
    overlaps = [_overlap(spec, method, *pair) for pair in pairwise(segments)]
    seams = [_longest_overlap(spec, *pair) for pair in pairwise(segments) if pair[1].blended]
    if method.overlap is not None and (most := min(seams, default=spec.max_latents)) < method.overlap:
        message = f"an overlap of {method.overlap} latent frames is longer than a scene allows: 1 to {most}"
        refuse(message, _sets(overrides, "overlap"), "render", "method", "overlap")
    if faults:
        raise ScriptError(story.path, faults)
    plan = Plan(
        title=story.title or name,
        story=story.model_dump(mode="json"),
        spec=spec,
        settings=Settings(
            seed=seed,
            width=width,
            height=height,
            steps=_first(overrides.steps, wished.steps, spec.steps),
            guidance=guidance,
            method=method,
            speed=speed,
            # What somebody chose counts at all noise levels, as `guidance_scale` alone does in diffusers.
            guidance_2=spec.guidance_2 if chosen is None else None,
        ),
        segments=tuple(segments),
        seams=tuple(
            Seam(s.index, "blend" if s.blended else "cut", overlap, method.strength if s.blended else 0.0)
            for s, overlap in zip(segments[1:], overlaps, strict=True)
        ),
    )
    return plan.settled([None] * len(plan.seams))


def chosen_method(wished: Method, overrides: Overrides) -> Method:
    """Return the story's method with what the command line changes. Raises UsageError."""
    values = wished.model_dump(exclude_unset=True)  # what follows from a setting may follow from another
    for item in overrides.method:
        key, equals, text = item.partition("=")
        key = OLD_NAMES.get(key, key)
        if key not in Method.model_fields or not equals:
            known = ", ".join(Method.model_fields)
            raise UsageError(f"--method {item!r} is no setting", f"Write KEY=VALUE with one of: {known}")
        values[key] = _plain(text)
    if unknown := overrides.without - {*PARTS, "all"}:
        raise UsageError(f"there is no part {min(unknown)!r}", f"Known parts: {', '.join(PARTS)}, all")
    try:
        method = Method.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        if not fault["loc"]:  # of settings that do not go together
            remedies = {"lambdas": "Set all of them.", "window": "Leave window out, or add --method window=1"}
            raise UsageError(f"--method: {fault['msg']}", remedies.get(fault["type"], "")) from None
        key = str(fault["loc"][0])
        message = f"--method {key} must be {legal_values(key)}, not {fault['input']!r:.60}"
        raise UsageError(message, Method.model_fields[key].description or "") from None
    return method.without(set(PARTS) if "all" in overrides.without else set(overrides.without))


def _plain(text: str) -> object:
    """Read a value as a story's YAML would, and 1e-3 too; what is no YAML is the text that it is."""
    try:
        return float(text) if re.fullmatch(r"[-+.\d]+e[-+]?\d+", text, re.I) else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _sets(overrides: Overrides, key: str) -> bool:
    return any(item.startswith(f"{key}=") for item in overrides.method)


def _overlap(spec: ModelSpec, method: Method, earlier: Segment, later: Segment) -> int:
    """Return the longest overlap of a seam: what is asked for, as far as the segments' lengths allow."""
    if not later.blended or method.blending != "joint" or method.strength == 0:
        return 0
    return min(method.overlap or spec.overlap, _longest_overlap(spec, earlier, later))


def _longest_overlap(spec: ModelSpec, earlier: Segment, later: Segment) -> int:
    """Return what two neighbours can share: all of either, as long as the later one fits the model."""
    return min(earlier.latents, later.latents, spec.max_latents - later.latents)


def _first(*values: T | None) -> T:
    """Return the first value that somebody chose."""
    return next(value for value in values if value is not None)


def derived_seed(seed: int, index: int) -> int:
    """Return an independent seed for one segment; index -1 is the whole story's."""
    digest = hashlib.sha256(f"storyreel noise {seed} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def parse_size(size: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT. Raises UsageError."""
    if re.fullmatch(SIZE_PATTERN, size):
        width, height = size.split("x")
        return int(width), int(height)
    raise UsageError(f"{size!r} is no size; write WIDTHxHEIGHT, as in 96x64")


def prompt_problem(
    spec: ModelSpec, scene: str, action: str, count_tokens: Callable[[str], int] | None
) -> str | None:
    """Say why a model cannot read a scene's prompts whole; None if it can, or if nothing here can tell."""
    prompt = joined_prompt(scene, action)
    if max(len(scene), len(action)) > MAX_PROMPT:
        return f"a prompt is longer than {MAX_PROMPT} characters with the names filled in"
    if count_tokens is None and (count := fewest_tokens(prompt)) > spec.text_length:
        return (
            f"scene and action have {count} tokens together at the least, model {spec.name} reads "
            f"{spec.text_length}; use fewer words"
        )
    if count_tokens is not None and (count := count_tokens(prompt)) > spec.text_length:
        return (
            f"scene and action have {count} tokens together, model {spec.name} reads {spec.text_length}; "
            "use fewer or commoner words"
        )
    return None


def uncounted_prompts(plan: Plan) -> Iterator[str]:
    """Yield a note for every scene whose prompts may be too long, if no tokenizer is here to count them."""
    spec = plan.spec
    counts = {s.number: estimated_tokens(s.prompt) for s in plan.segments}
    long = {number: count for number, count in counts.items() if count > spec.text_length}
    if long and token_counter(spec.weights / "tokenizer") is None:
        for number, count in long.items():
            yield (
                f"scene {int(number)} may be too long: model {spec.name} reads {spec.text_length} tokens, "
                f"and it has {count} by an estimate (the model's tokenizer is not here)"
            )


def size_problem(spec: ModelSpec, width: int, height: int) -> str | None:
    """Say why a model cannot do a size, with the nearest that it can; None if it can."""
    legal = tuple(
        min(max(round(value / spec.size_multiple) * spec.size_multiple, low), high)
        for value, low, high in zip((width, height), spec.min_size, spec.max_size, strict=True)
    )
    if legal == (width, height):
        return None
    return f"model {spec.name} cannot render {width}x{height}; the nearest it can is {legal[0]}x{legal[1]}"


def seconds_problem(spec: ModelSpec, seconds: float) -> str | None:
    """Say why a model cannot do a scene's length, with the nearest it can; None if it can."""
    unit = spec.frames_per_latent / spec.fps
    longest = spec.max_latents - 1
    if not math.isfinite(seconds):
        return f"a scene of {seconds} seconds makes no sense; give a finite number"
    latents = min(seconds / unit, 1e9)
    if abs(latents - round(latents)) < 1e-6 and 1 <= round(latents) <= longest:
        return None
    nearest = {min(max(count, 1), longest) for count in (int(latents), int(latents) + 1)}
    words = " or ".join(f"{count * unit:g}" for count in sorted(nearest))
    return f"model {spec.name} cannot render a scene of {seconds:g} seconds; the nearest it can: {words}"
