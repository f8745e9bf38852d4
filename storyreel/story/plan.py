"""What a plan is: segments and seams, and the settings of the film. `planning.py` makes it from a story.

Latent frames are what a model denoises, frames are the film's. What is here shapes latents: this module is
part of the recipe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storyreel.method.noise_levels import levels_of, plugged_levels
from storyreel.method.settings import Method
from storyreel.method.similarity import seam_overlap
from storyreel.method.step_skipping import SPEEDS, Pace
from storyreel.models.lora import Lora
from storyreel.models.specs import ModelSpec
from storyreel.story.schema import Transition

if TYPE_CHECKING:
    from storyreel.story.sounds import Soundtrack


WHERE_USED = ("guidance_rescale", "negative", "shift")  # settings that most films do without


@dataclass(frozen=True)
class Settings:
    """How the whole film is rendered. ``width`` and ``height`` are in the model's pixels.

    ``steps`` are denoising steps, ``speed`` is a key of `step_skipping.SPEEDS`. ``guidance`` counts at all
    noise levels, unless a second expert has ``guidance_2`` for its own; 1 is none. It leads away from the
    prompt ``negative``, and by the share ``guidance_rescale`` the spread of a guided velocity is that of the
    text alone. ``shift`` is how strongly noise levels are shifted; None where the model has no choice.
    """

    seed: int
    width: int
    height: int
    steps: int
    guidance: float
    method: Method
    speed: str = "exact"
    guidance_2: float | None = None
    guidance_rescale: float = 0.0
    negative: str = ""
    shift: float | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """The settings as plain data, without those that say nothing here; the method has its own."""
        own = asdict(self) | {"method": self.method.model_dump()}
        return {name: value for name, value in own.items() if name not in WHERE_USED or value}

    def guidance_of(self, expert: int) -> float:
        """Return the guidance of a model's expert, by its index."""
        return self.guidance if expert == 0 or self.guidance_2 is None else self.guidance_2

    @property
    def is_guided(self) -> bool:
        """Whether there is guidance at any noise level."""
        return any(strength not in (1, None) for strength in (self.guidance, self.guidance_2))

    @property
    def guidance_words(self) -> str:
        """The guidance for people to read, as in "4.5", "4 and 3" or "5 rescaled by 0.7"."""
        second = "" if self.guidance_2 is None else f" and {self.guidance_2:g}"
        rescaled = f" rescaled by {self.guidance_rescale:g}" if self.guidance_rescale else ""
        return f"{self.guidance:g}{second}{rescaled}"


Slot = tuple[int, int]  # a segment's index, and its take
LOOKED_AT = 0.6, 0.75, 0.9  # σ at which a character's cells are looked for: one evaluation of a frame each


@dataclass(frozen=True)
class Segment:
    """One scene as it will be rendered.

    ``index`` counts from 0. It has ``latents`` latent frames of its own, which are ``frames`` frames of the
    film from its frame ``start`` on, and a ``lead`` of latent frames before them, which are not shown.
    ``scene`` and ``action`` are its prompts, ``cast`` the names in them, ``phrase`` is what of its action is
    compared with others', ``seed`` makes its noise. ``blended`` says whether it is to begin otherwise than
    with a cut. ``picture`` is the SHA-256 of a file with the picture that it begins with. ``take`` is 1 for
    the first take, which its neighbours are made with; another one is made to fit between them. ``loras``
    are merged into the model while it is denoised.
    """

    index: int
    scene: str
    action: str
    phrase: str
    cast: tuple[str, ...]
    latents: int
    lead: int
    frames: int
    start: int
    seed: int
    blended: bool
    take: int = 1
    picture: str | None = None
    loras: tuple[Lora, ...] = ()

    @property
    def slot(self) -> Slot:
        """What tells it from other segments of the film, and from other takes of its scene."""
        return self.index, self.take

    @property
    def number(self) -> str:
        """Its number in the names of files, from 01."""
        return f"{self.index + 1:02d}"

    @property
    def middle(self) -> int:
        """The latent frame in the middle of what is shown: where it begins, it may still be changing."""
        return self.lead + (self.latents - 1) // 2

    @property
    def prompt(self) -> str:
        """Scene and action as one text, for a model that takes one prompt."""
        return joined_prompt(self.scene, self.action)


@dataclass(frozen=True)
class Seam:
    """The border between segment ``after - 1`` and segment ``after``.

    ``transition`` is continue, dissolve or cut. ``overlap`` is how many latent frames of the earlier
    segment's end stand in the later one's lead, whole; ``strength`` is from 0, which blends nothing, to 1.
    ``similarity`` is that of the two actions, from 0 to 1; None before a model has compared them.
    """

    after: int
    transition: Transition
    overlap: int
    strength: float
    similarity: float | None = None


@dataclass(frozen=True)
class Given:
    """Latent frames of a first take, its ``source`` by index, that stand in another segment.

    ``count`` frames, from the source's ``first`` on, stand there from frame ``at`` on, ``strength`` strong:
    the cells that show who has the ``name``, or without a name all of the picture. Those that are made
    ``anew`` are encoded from pictures: the last that are shown of the source, with a ``name`` the one that
    its frame ``first`` ends with, or a ``picture``, named by its file's SHA-256; its source is the segment
    itself.
    """

    source: int
    name: str | None
    first: int
    at: int
    count: int
    strength: float
    anew: bool = False
    picture: str | None = None


@dataclass(frozen=True)
class Card:
    """Text on a plain picture, before a segment: ``before`` is its index, or their number behind the last.

    It is shown for ``frames`` frames of the film from its frame ``start`` on. ``ground`` is black or white.
    """

    before: int
    text: str
    ground: str
    frames: int
    start: int


@dataclass(frozen=True)
class Plan:
    """Everything that decides a film, before anything is computed.

    ``story`` is the story's own data, defaults filled in. ``segments`` are what the film shows; of those
    that are no first takes, ``replaced`` has the first takes. A plan is settled once every seam's overlap
    follows the similarity of its actions, and every segment's lead that overlap. ``sound`` is what is heard,
    None where nothing is; ``font`` is a file that its cards are drawn with, None for the usual one.
    ``pictures`` are the files of pictures on this machine, by their SHA-256. ``notes`` are for people: what
    was asked for and changes nothing.
    """

    title: str
    story: dict[str, Any]
    spec: ModelSpec
    settings: Settings
    segments: tuple[Segment, ...]
    seams: tuple[Seam, ...]
    replaced: tuple[Segment, ...] = ()
    sound: Soundtrack | None = None
    cards: tuple[Card, ...] = ()
    font: Path | None = None
    pictures: Mapping[str, Path] = field(default_factory=dict, compare=False, repr=False)
    notes: tuple[str, ...] = ()

    @cached_property
    def first_takes(self) -> tuple[Segment, ...]:
        """The first take of every scene: seams are planned, and leads made, from these alone.

        So a scene that is taken again changes no other.
        """
        replaced = {segment.index: segment for segment in self.replaced}
        return tuple(replaced.get(segment.index, segment) for segment in self.segments)

    @property
    def takes(self) -> tuple[Segment, ...]:
        """Every segment that may have to be denoised, each after those that it depends on."""
        return tuple(sorted({*self.segments, *self.replaced}, key=lambda segment: segment.slot))

    @property
    def needed(self) -> tuple[Segment, ...]:
        """Every segment that a whole render denoises: what is shown, and what that depends on."""
        found, waiting = set[Segment](), list(self.segments)
        while waiting:
            segment = waiting.pop()
            if segment not in found:
                found.add(segment)
                waiting += [self.first_takes[source] for source in self.sources(segment)]
        return tuple(sorted(found, key=lambda segment: segment.slot))

    @cached_property
    def frames(self) -> int:
        """The film's number of frames."""
        return sum(part.frames for part in self.parts())

    @property
    def seconds(self) -> float:
        """The film's length."""
        return self.frames / self.spec.fps

    @property
    def forwards(self) -> int:
        """Model evaluations of a whole render, to find characters too; one with guidance counts once."""
        return len(self.needed) * self.pace.forwards + self.looks(self.needed)

    @cached_property
    def pace(self) -> Pace:
        """What is done in each step: for all segments the same, at the levels of a usual one."""
        settings = self.settings
        area = settings.width * settings.height
        levels = self.plugged_levels(usual_tokens(self.spec, area))
        return pace_of(self.spec, settings.steps, settings.speed, area, settings.shift, levels)

    def plugged_levels(self, tokens: int) -> list[float] | None:
        """Return the noise levels that a plugin has for clips with so many tokens; None if none is asked.

        Raises UsageError for levels that do not fall from 1 to 0.
        """
        plugin = self.settings.method.plugged.get("levels")
        return None if plugin is None else plugged_levels(plugin, self.settings.steps, tokens)

    @property
    def latents(self) -> int:
        """Latent frames that are denoised, those of overlaps counted twice."""
        return sum(segment.lead + segment.latents for segment in self.needed)

    @property
    def longest(self) -> int:
        """Latent frames of the longest segment, with its lead."""
        return max(segment.lead + segment.latents for segment in self.takes)

    @property
    def estimated_seconds(self) -> float | None:
        """Rendering time on the machine that ``spec.measured_on`` names; None if it was not measured."""
        spec, settings = self.spec, self.settings
        if spec.seconds_per_forward is None:
            return None
        usual = round(spec.seconds * spec.fps / spec.frames_per_latent) + spec.overlap
        area = settings.width * settings.height / (spec.size[0] * spec.size[1])
        is_guided = settings.is_guided
        steps = sum(1.0 if is_guided and guided else 0.5 for guided in self.pace.guided_when_computed)
        found = self.looks(self.needed)  # each of one latent frame, and of two texts whatever the guidance
        forwards = self.latents * steps + found
        return forwards / usual * spec.seconds_per_forward * area

    def seam(self, segment: Segment) -> Seam | None:
        """Return the seam before a segment; None for the first."""
        return self.seams[segment.index - 1] if segment.index else None

    def pulled(self, segment: Segment) -> bool:
        """Tell whether the published blending pulls a segment's first noise towards the one before it."""
        seam = self.seam(segment)
        return self.settings.method.blending == "published" and seam is not None and seam.strength > 0

    def goes_on(self, segment: Segment) -> bool:
        """Tell whether a segment goes on from the one before it, of which others show somebody at most."""
        seam = self.seam(segment)
        return self.pulled(segment) or (seam is not None and seam.overlap > 0)

    @property
    def loras(self) -> tuple[Lora, ...]:
        """All LoRAs of its scenes, each once."""
        return tuple(dict.fromkeys(lora for segment in self.segments for lora in segment.loras))

    def parts(self) -> list[Segment | Card]:
        """Return all that the film shows, segments and cards, in order."""
        parts: list[Segment | Card] = [*self.segments, *self.cards]
        return sorted(parts, key=lambda part: part.start)

    def has_card_before(self, segment: Segment) -> bool:
        """Tell whether a segment follows on a card."""
        return any(card.before == segment.index for card in self.cards)

    def given(self, segment: Segment) -> tuple[Given, ...]:
        """Return what stands in a segment, in a settled plan: in its lead, and at another take's end too.

        Where the shot goes on, it is the end of the segment before; else characters as the first scene that
        has them shows them, and a free frame, which leads over to the scene. Both, where somebody comes into
        the shot; and where a model's first frame is unlike others, so that the end cannot stand there. A
        model that takes pictures goes on from the last one alone. A scene's own picture comes before all of
        these. Another take ends as the first one does, if the next segment continues that.
        """
        return (*self._given_before(segment), *self._given_after(segment))

    def _given_before(self, segment: Segment) -> tuple[Given, ...]:
        seam, method = self.seam(segment), self.settings.method
        if segment.picture is not None:
            return (Given(segment.index, None, 0, 0, 1, 1.0, anew=True, picture=segment.picture),)
        if seam is None or not method.leads:
            return ()
        earlier = self.first_takes[: segment.index]
        parts: list[Given] = []
        if method.identity and segment.lead > max(1, seam.overlap):
            for name in segment.cast:
                first = next((s for s in earlier if name in s.cast), None)
                parts += [] if first is None else [self._portrait(first, name, seam.strength)]
        if seam.overlap:
            tail = earlier[-1].lead + earlier[-1].latents - seam.overlap
            at = segment.lead - seam.overlap
            anew = self.spec.pictures
            parts.append(Given(segment.index - 1, None, tail, at, seam.overlap, seam.strength, anew))
        return tuple(parts)

    def _portrait(self, first: Segment, name: str, strength: float) -> Given:
        """Return somebody as the ``first`` segment that has them shows them, in its first frame.

        Who comes into a shot that goes on is not there yet, so it is the frame in the middle.
        """
        spec, comes = self.spec, self.goes_on(first) and first.picture is None
        # Where a first frame is unlike others, one that is free stands before the end of the shot.
        if not comes or not (spec.first_alike or spec.pictures):
            return Given(first.index, name, 0, 0, 1, strength)
        return Given(first.index, name, first.middle, 0, 1, strength, anew=not spec.first_alike)

    def _given_after(self, segment: Segment) -> tuple[Given, ...]:
        following = self.seams[segment.index : segment.index + 1]
        if segment.take == 1 or not following or not following[0].overlap:
            return ()
        first, count = self.first_takes[segment.index], following[0].overlap
        ends = [one.lead + one.latents - count for one in (first, segment)]
        return (Given(segment.index, None, ends[0], ends[1], count, following[0].strength),)

    def looks(self, segments: Iterable[Segment]) -> int:
        """Return how many model evaluations find the characters in some segments' leads, each once."""
        found = {
            (part.source, part.name, segment.loras)
            for segment in segments
            for part in self.given(segment)
            if part.name is not None
        }
        return len(LOOKED_AT) * len(found)

    def sources(self, segment: Segment) -> tuple[int, ...]:
        """Return the scenes, by index, without whose first takes a segment cannot begin."""
        if self.pulled(segment):
            return (segment.index - 1,)
        return tuple(sorted({given.source for given in self.given(segment) if given.picture is None}))

    def undecoded(self, segment: Segment) -> int:
        """Return how many latent frames of a segment are not decoded: portraits before the end of a shot.

        What a decoder makes of a frame depends on those before it: behind portraits, the end of a shot would
        be other pictures than it was. Where a first frame is unlike others, the end cannot be the first.
        """
        seam = self.seam(segment)
        if seam is None or not seam.overlap or segment.picture is not None:
            return 0
        return segment.lead - seam.overlap if self.spec.first_alike and self.spec.sound is None else 0

    def unseen(self, segment: Segment) -> int:
        """Return how many decoded pictures of a segment are not shown: its lead's, but one of its own."""
        lead = segment.lead - self.undecoded(segment)
        return self.spec.frames_per_latent * (lead - 1) + (segment.picture is None)

    def settled(self, similarities: Sequence[float | None]) -> Plan:
        """Return the settled plan: overlap and strength of every seam by how alike its actions are (SAR).

        There is a similarity per seam, from 0 to 1, or None where nothing was compared.
        """
        seams, firsts = [], [self.first_takes[0]]
        for seam, segment, similarity in zip(self.seams, self.first_takes[1:], similarities, strict=True):
            if similarity is not None and seam.overlap:
                seam = replace(seam, similarity=similarity, overlap=seam_overlap(seam.overlap, similarity))
            seams.append(seam)
            firsts.append(replace(segment, lead=self._lead(segment, seam)))
        shown = [
            segment
            if segment.index == 0
            else replace(segment, lead=self._lead(segment, seams[segment.index - 1]))
            for segment in self.segments
        ]
        replaced = tuple(firsts[segment.index] for segment in self.replaced)
        return replace(self, seams=tuple(seams), segments=tuple(shown), replaced=replaced)

    def _lead(self, segment: Segment, seam: Seam) -> int:
        """Return the latent frames of a segment's lead; one if nothing is given, since it is one picture."""
        method, before = self.settings.method, self.first_takes[segment.index - 1]
        if segment.picture is not None or (self.spec.pictures and seam.overlap):
            return max(1, seam.overlap)
        known = {name for s in self.first_takes[: segment.index] for name in s.cast}
        if seam.overlap and method.portraits != "scenes":
            known -= set(before.cast)
        portraits = method.identity and method.leads and not known.isdisjoint(segment.cast)
        free = portraits or (seam.overlap > 0 and not self.spec.first_alike)
        return max(1, seam.overlap) + int(free)


def usual_tokens(spec: ModelSpec, area: int) -> int:
    """Return how many latent cells a scene of the usual length has, of pictures of an ``area`` in pixels."""
    latents = round(spec.seconds * spec.fps / spec.frames_per_latent) + spec.overlap
    return latents * area // spec.pixels_per_latent**2


def pace_of(
    spec: ModelSpec,
    steps: int,
    speed: str,
    area: int,
    shift: float | None,
    levels: list[float] | None = None,
) -> Pace:
    """Return what is done in each step at a model's noise levels, for pictures of an ``area`` in pixels.

    They are those of a scene of the usual length: which steps are computed depends on no scene. ``levels``
    are others, in their place.
    """
    if levels is None and spec.sigmas:
        levels = [*spec.sigmas, 0.0]
    levels = levels or levels_of(spec.levels, steps, shift, usual_tokens(spec, area))
    return SPEEDS[speed].pace(levels[:-1], spec.boundary_ratio)


def joined_prompt(scene: str, action: str) -> str:
    """Return scene and action as one text, for a model that takes one prompt; equal ones once."""
    if scene == action:
        return scene
    return f"{scene.rstrip('. ')}. {action}"


def derived_seed(seed: int, name: int | str) -> int:
    """Return an independent seed for each ``name`` of what draws noise from one seed."""
    digest = hashlib.sha256(f"storyreel noise {seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
