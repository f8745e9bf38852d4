"""From a story to what will be rendered: segments and seams, by the model's table of facts.

Planning loads no model and changes nothing silently: a size or length that the model cannot
do is refused, with the nearest that it can.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from storyreel.errors import Fault, ScriptError, UsageError
from storyreel.models.specs import MODELS, ModelSpec, find_model
from storyreel.story import MAX_PROMPT, SIZE_PATTERN, Story, Transition

T = TypeVar("T")

DEFAULT_MODEL = "mini"
WINDOW = 4  # segments that are denoised together; what an interruption can cost


@dataclass(frozen=True)
class Overrides:
    """What the command line asks for; None leaves it to the story, then to the model."""

    model: str | None = None
    seed: int | None = None
    size: str | None = None
    seconds: float | None = None
    steps: int | None = None
    guidance: float | None = None


@dataclass(frozen=True)
class Settings:
    """How the whole film is rendered. ``width`` and ``height`` are the model's pixels."""

    seed: int
    width: int
    height: int
    steps: int
    guidance: float


@dataclass(frozen=True)
class Segment:
    """One scene as it will be rendered.

    It has ``latents`` latent frames of its own, which are ``frames`` frames of the film, and
    ``lead`` more before them: the overlap with the scene before, or a start that is not shown.
    ``seed`` makes its noise. ``blended`` says whether it grows out of the scene before.
    """

    index: int
    scene: str
    action: str
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
    """The border between segment ``after - 1`` and segment ``after``; ``overlap`` in latents."""

    after: int
    transition: Transition
    overlap: int


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
        return len(self.segments) * self.settings.steps

    @property
    def estimated_seconds(self) -> float:
        """Rendering time on the machine that ``spec.measured_on`` names."""
        spec, settings = self.spec, self.settings
        usual = round(spec.seconds * spec.fps / spec.frames_per_latent) + spec.overlap
        latents = sum(segment.latents + segment.lead for segment in self.segments)
        area = settings.width * settings.height / (spec.size[0] * spec.size[1])
        guided = 1.0 if settings.guidance > 1 else 0.5
        return latents / usual * settings.steps * spec.seconds_per_forward * area * guided

    def windows(self) -> Iterator[tuple[Segment, ...]]:
        """Yield the groups of neighbouring segments that are denoised together.

        A cut begins a new one: nothing behind it depends on what is before.
        """
        window: list[Segment] = []
        for segment in self.segments:
            if window and (len(window) == WINDOW or not segment.blended):
                yield tuple(window)
                window = []
            window.append(segment)
        yield tuple(window)


def joined_prompt(scene: str, action: str) -> str:
    """Return scene and action as one text, for a model that takes one prompt."""
    return f"{scene.rstrip('. ')}. {action}"


def make_plan(story: Story, name: str, overrides: Overrides = Overrides()) -> Plan:
    """Plan a story. ``name`` is its title if it has none.

    Raises MissingError for an unknown model, UsageError for what the command line cannot
    have, ScriptError for what the script cannot, each with the nearest legal value.
    """
    wished = story.render
    if overrides.model is None and wished.model is not None and wished.model not in MODELS:
        words = f"there is no model {wished.model!r}; known: {', '.join(MODELS)}"
        raise ScriptError(story.path, [story.fault(words, "render", "model")])
    spec = find_model(_first(overrides.model, wished.model, DEFAULT_MODEL))
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
    count_tokens = token_counter(spec)
    segments: list[Segment] = []
    seed = _first(overrides.seed, wished.seed, 0)
    guidance = _first(overrides.guidance, wished.guidance, spec.guidance)
    if not (math.isfinite(guidance) and guidance >= 1):
        raise UsageError(f"guidance {guidance} makes no sense", "Use a number from 1, which means none.")
    start = 0
    for index, scene in enumerate(story.scenes):
        if scene.seconds is not None and (problem := seconds_problem(spec, scene.seconds)) is not None:
            refuse(problem, False, "scenes", index, "seconds")
        texts = story.filled(scene.scene), story.filled(scene.action)
        if (problem := prompt_problem(spec, *texts, count_tokens)) is not None:
            refuse(problem, False, "scenes", index)
        frames = round(_first(scene.seconds, usual) * spec.fps)
        segments.append(
            Segment(
                index=index,
                scene=texts[0],
                action=texts[1],
                latents=frames // spec.frames_per_latent,
                lead=spec.overlap,
                frames=frames,
                start=start,
                seed=derived_seed(seed, index),
                blended=index > 0 and scene.transition == "blend",
            )
        )
        start += frames
    if faults:
        raise ScriptError(story.path, faults)
    return Plan(
        title=story.title or name,
        story=story.model_dump(mode="json"),
        spec=spec,
        settings=Settings(
            seed=seed,
            width=width,
            height=height,
            steps=_first(overrides.steps, wished.steps, spec.steps),
            guidance=guidance,
        ),
        segments=tuple(segments),
        seams=tuple(
            Seam(s.index, "blend" if s.blended else "cut", s.lead if s.blended else 0) for s in segments[1:]
        ),
    )


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


def token_counter(spec: ModelSpec) -> Callable[[str], int] | None:
    """Return what counts a text's tokens as the model does; None if its tokenizer is not there."""
    path = spec.weights / "tokenizer" / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # a damaged one, in the library's own words: loading the model says which
        return None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text).ids)


def prompt_problem(
    spec: ModelSpec, scene: str, action: str, count_tokens: Callable[[str], int] | None
) -> str | None:
    """Say why a model cannot read a scene's prompts whole; None if it can."""
    prompt = joined_prompt(scene, action)
    if max(len(scene), len(action)) > MAX_PROMPT:
        return f"a prompt is longer than {MAX_PROMPT} characters with the names filled in"
    if count_tokens is not None and (count := count_tokens(prompt)) > spec.text_length:
        return (
            f"scene and action have {count} tokens together, model {spec.name} reads {spec.text_length}; "
            "use fewer or commoner words"
        )
    return None


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
    longest = spec.max_latents - spec.overlap
    if not math.isfinite(seconds):
        return f"a scene of {seconds} seconds makes no sense; give a finite number"
    latents = seconds / unit
    if abs(latents - round(latents)) < 1e-6 and 1 <= round(latents) <= longest:
        return None
    nearest = {min(max(count, 1), longest) for count in (int(latents), int(latents) + 1)}
    words = " or ".join(f"{count * unit:g}" for count in sorted(nearest))
    return f"model {spec.name} cannot render a scene of {seconds:g} seconds; the nearest it can: {words}"
