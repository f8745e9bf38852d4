"""What a plan is: segments and seams, and the settings of the film. `planning.py` makes it from a story.

Latent frames are what a model denoises, frames are the film's. What is here shapes latents: this module is
part of the recipe.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from storyreel.method.settings import Method
from storyreel.method.similarity import seam_overlap, seam_strength
from storyreel.method.step_skipping import EXACT, SPEEDS, Speed
from storyreel.models.specs import ModelSpec
from storyreel.story.schema import Transition


@dataclass(frozen=True)
class Settings:
    """How the whole film is rendered. ``width`` and ``height`` are in the model's pixels.

    ``steps`` are denoising steps, ``speed`` is a key of `step_skipping.SPEEDS`. ``guidance`` counts at all
    noise levels, unless a second expert has ``guidance_2`` for its own; 1 is none.
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

    ``index`` counts from 0. It has ``latents`` latent frames of its own, which are ``frames`` frames of the
    film from its frame ``start`` on, and ``lead`` latent frames before them: the overlap with the segment
    before, or one that is not shown. ``scene`` and ``action`` are its prompts, ``phrase`` is what of its
    action is compared with others', ``seed`` makes its noise. ``blended`` says whether the seam before it
    is a blend.
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
        """Its number in the names of files, from 01."""
        return f"{self.index + 1:02d}"

    @property
    def prompt(self) -> str:
        """Scene and action as one text, for a model that takes one prompt."""
        return joined_prompt(self.scene, self.action)


@dataclass(frozen=True)
class Seam:
    """The border between segment ``after - 1`` and segment ``after``.

    ``overlap`` is in latent frames, ``strength`` from 0, which blends nothing, to 1. ``similarity`` is that
    of the two actions, from 0 to 1; None before a model has compared them.
    """

    after: int
    transition: Transition
    overlap: int
    strength: float
    similarity: float | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that decides a film, before anything is computed.

    ``story`` is the story's own data, defaults filled in. A plan is settled once every seam's overlap
    follows the similarity of its actions, and every segment's lead that overlap.
    """

    title: str
    story: dict[str, Any]
    spec: ModelSpec
    settings: Settings
    segments: tuple[Segment, ...]
    seams: tuple[Seam, ...]

    @cached_property
    def frames(self) -> int:
        """The film's number of frames."""
        return sum(segment.frames for segment in self.segments)

    @property
    def seconds(self) -> float:
        """The film's length."""
        return self.frames / self.spec.fps

    @property
    def forwards(self) -> int:
        """Model evaluations of a whole render; one with guidance counts once."""
        return len(self.segments) * SPEEDS[self.settings.speed].forwards(self.settings.steps)

    @property
    def latents(self) -> int:
        """Latent frames that are denoised, those of overlaps counted twice."""
        return sum(segment.lead + segment.latents for segment in self.segments)

    @property
    def estimated_seconds(self) -> float | None:
        """Rendering time on the machine that ``spec.measured_on`` names; None if it was not measured."""
        spec, settings = self.spec, self.settings
        if spec.seconds_per_forward is None:
            return None
        usual = round(spec.seconds * spec.fps / spec.frames_per_latent) + spec.overlap
        area = settings.width * settings.height / (spec.size[0] * spec.size[1])
        guided = 1.0 if settings.guidance > 1 else 0.5
        forwards = SPEEDS[settings.speed].forwards(settings.steps)
        return self.latents / usual * forwards * spec.seconds_per_forward * area * guided

    def runs(self) -> Iterator[tuple[Segment, ...]]:
        """Yield the runs of segments from one cut to the next."""
        run: list[Segment] = []
        for segment in self.segments:
            if run and not segment.blended:
                yield tuple(run)
                run = []
            run.append(segment)
        yield tuple(run)

    def seam(self, segment: Segment) -> Seam | None:
        """Return the seam before a segment; None for the first."""
        return self.seams[segment.index - 1] if segment.index else None

    def anchors(self, segment: Segment) -> tuple[int, ...]:
        """Return the segments that give a segment context, by index.

        They are the story's first one and the last one that is finished for certain when it begins.
        """
        if not self.settings.method.context:
            return ()
        sure = segment.index - self.settings.method.window
        beside = self.segments[max(0, sure + 1) : segment.index + 1]
        last = max([sure, *(s.index - 1 for s in beside if not s.blended)])
        return tuple(sorted({0, last})) if last >= 0 else ()

    def settled(self, similarities: Sequence[float | None]) -> Plan:
        """Return the settled plan: overlap and strength of every seam by how alike its actions are (SAR).

        There is a similarity per seam, from 0 to 1, or None where nothing was compared.
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
    """Tell whether the next segment may begin, given the steps done of those that are being denoised.

    They begin a ``window``-th of all steps apart, so that no more than ``window`` are denoised at a time.
    """
    return not steps_done or steps_done[-1] >= math.ceil(steps / window)


def forwards_left(
    steps_done: Sequence[int], wanted: int, following: int, window: int, steps: int, speed: Speed = EXACT
) -> int:
    """Return the model evaluations until ``wanted`` more segments are finished.

    ``steps_done`` are those of the segments being denoised; ``following`` segments are still to begin.
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
    """Return scene and action as one text, for a model that takes one prompt; equal ones once."""
    if scene == action:
        return scene
    return f"{scene.rstrip('. ')}. {action}"


def derived_seed(seed: int, index: int) -> int:
    """Return an independent seed for one segment; index -1 is for the noise that all share."""
    digest = hashlib.sha256(f"storyreel noise {seed} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
