"""What the judge says of films: whether anybody can tell what a scene shows, and whether it is what was told.

For measuring only: nothing that renders imports this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache

import torch
from torch import Tensor

from storyreel.evaluation.clips import clips
from storyreel.evaluation.kept import SceneSeen
from storyreel.evaluation.presence import across, centres, is_there_twice, steps, turns, usual
from storyreel.evaluation.seams import transition
from storyreel.evaluation.verdicts import FilmVerdict, SceneVerdict, SeamVerdict
from storyreel.story.plan import Segment

from .judge import CHARACTERS, STRIDE, UNREADABLE, Judge, Verdict, as_seen, load_judge
from .plots import NAMES, PLOTS, STORIES, words
from .world import COLOURS, Character, Look, wear_of
from .world.captions import CLOTHES, LIGHT_WORDS, NOUNS, named

FPS = 12.0  # of every film of this world
SHORTEST = 8  # frames, of which the judge looks at four: fewer show no action


@cache
def shipped_judge() -> Judge:
    """Load the package's judge, once."""
    return load_judge()


@torch.inference_mode()
def strangeness(pictures: Tensor) -> float:
    """Return how little pictures uint8 (N, H, W, 3) of a scene can be read: above 1, nobody can.

    It is twice the probability of that. Of a scene of two or three seconds, some sixteen pictures are what
    the judge looks at anyway.
    """
    ruin = shipped_judge()(as_seen(pictures)[None]).ruin[0]
    return 2 * float((ruin - UNREADABLE).sigmoid())


@cache
def truths() -> dict[tuple[str, str], Verdict]:
    """Return what a clip of each scene and action prompt of the shipped stories must show."""
    return {
        (words(lesson.scene, cast), words(lesson.action, cast)): Verdict(
            frozenset((cast.first, cast.second) if lesson.pair else (cast.first,)), lesson.place, lesson.shows
        )
        for plot, cast in STORIES.values()
        for lesson in PLOTS[plot]
    }


@dataclass(frozen=True)
class Told:
    """What a segment must show, and what its prompts state of looks and light; "" is open."""

    truth: Verdict
    stated: Mapping[Character, Look]
    light: str


def told(scene: str, action: str) -> Told | None:
    """Return what prompts tell that are a shipped story's, but for looks and light; None of any other."""
    light = next((light for words, light in _lights().items() if f" {words}" in scene), "")
    for phrase in _lights():
        scene = scene.replace(f" {phrase}", "")
    stated: dict[Character, Look] = {}

    def plain(found: re.Match[str]) -> str:
        who, look = _named()[found[2]]
        before = stated.get(who, Look(""))
        stated[who] = Look(look.colour or before.colour, look.wear or before.wear)
        return ("a " if found[1] else "") + NAMES[who].removeprefix("a ")

    scene, action = (_looks().sub(plain, prompt) for prompt in (scene, action))
    truth = truths().get((scene, action))
    if truth is None:
        return None
    return Told(truth, {who: stated.get(who, Look("")) for who in truth.characters}, light)


@cache
def _lights() -> dict[str, str]:
    return {phrase: light.value for light, phrases in LIGHT_WORDS.items() for phrase in phrases}


@cache
def _named() -> dict[str, tuple[Character, Look]]:
    """Return every plain name that states a look or a part of it."""
    return {
        named(NOUNS[who][0], who, colour, wear, clothes): (who, Look(colour, wear))
        for who in Character
        for colour in ("", *COLOURS[who])
        for wear in wear_of(who)
        for clothes in CLOTHES.get(who, ("",))
        if colour or wear
    }


@cache
def _looks() -> re.Pattern[str]:
    names = sorted(map(re.escape, _named()), key=len, reverse=True)
    return re.compile(rf"\b(an? )?({'|'.join(names)})\b")


@dataclass
class _Watch:
    """How everybody goes on inside the scenes, which is usual, and across seams."""

    steps: list[Tensor] = field(default_factory=list)
    turns: list[Tensor] = field(default_factory=list)
    across: dict[int, tuple[float | None, float | None]] = field(default_factory=dict)
    twice: dict[int, float] = field(default_factory=dict)

    def see_scene(self, where: Tensor, cast: Iterable[Character]) -> None:
        """Take in the map of a scene of some characters."""
        for track in self._tracks(where, cast):
            self.steps.append(steps(track))
            self.turns.append(turns(track))

    def see_seam(self, after: int, where: Tensor, at: int, earlier: Verdict, later: Verdict) -> None:
        """Take in the map of the transition into a segment, whose pictures begin with number ``at``."""
        tracks = self._tracks(where, earlier.characters & later.characters)
        jumps = [value for track in tracks if (value := across(steps(track), at - 1)) is not None]
        bends = [value for track in tracks if (value := across(turns(track), at - 2)) is not None]
        self.across[after] = max(jumps, default=None), max(bends, default=None)
        of = [CHARACTERS.index(who) for who in earlier.characters | later.characters]
        found = [any(is_there_twice(picture[..., who]) for who in of) for picture in where]
        self.twice[after] = sum(found) / max(1, len(found))

    def ratios(self, after: int) -> tuple[float | None, float | None]:
        """Return jump and turn at a seam, in units of what is usual inside the scenes."""
        found = zip(self.across[after], (usual(self.steps), usual(self.turns)), strict=True)
        jump, turn = (a / b if a is not None and b is not None else None for a, b in found)
        return jump, turn

    @staticmethod
    def _tracks(where: Tensor, cast: Iterable[Character]) -> list[Tensor]:
        return [centres(where[..., CHARACTERS.index(who)]) for who in cast]


def judge_film(
    segments: Sequence[Segment], seams: Sequence[int], frames: Iterable[Tensor]
) -> FilmVerdict | None:
    """Judge every segment, and the transition into each of the segments that ``seams`` names.

    ``frames`` are chunks uint8 (T, H, W, 3) at 12 a second. None, with no frame read, if any segment's two
    prompts are not those of a shipped story, but for the looks and the light that they state. Where nobody
    can tell what is shown, nothing is right: it shows none of them.
    """
    wanted = [told(s.scene, s.action) for s in segments]
    known = [one for one in wanted if one is not None]
    if len(known) < len(wanted):
        return None
    true, count = [one.truth for one in known], len(segments)
    starts, length = [s.start for s in segments], segments[-1].start + segments[-1].frames
    spans = [(s.start, s.start + s.frames) for s in segments]
    around = [transition(starts, length, after, FPS) for after in seams]
    thirds = [(i, part) for i, s in enumerate(spans) for part in _ends(s)]
    seen: dict[int, tuple[Verdict, bool]] = {}
    watch = _Watch()
    for i, clip in clips(frames, [*spans, *around, *(part for _, part in thirds)]):
        opinion = shipped_judge().judge(clip)
        seen[i] = opinion.verdict, opinion.readable  # the maps are too large to be kept of every segment
        if i < count:
            watch.see_scene(opinion.where, true[i].characters)
        elif i < count + len(seams):
            after, (first, _) = seams[i - count], around[i - count]
            at = -(-(starts[after] - first) // STRIDE)
            watch.see_seam(after, opinion.where, at, true[after - 1], true[after])
    acted: list[list[bool]] = [[] for _ in segments]
    for i, (scene, _) in enumerate(thirds, count + len(seams)):
        acted[scene].append(seen[i][1] and seen[i][0].action is true[scene].action)
    scenes = (_of_scene(*seen[i], one.truth, acted[i]) for i, one in enumerate(known))
    borders = (
        SeamVerdict(
            after,
            seen[i][1] and seen[i][0].characters in (true[after - 1].characters, true[after].characters),
            true[after - 1].place is true[after].place,
            watch.twice[after],
            *watch.ratios(after),
        )
        for i, after in enumerate(seams, count)
    )
    return FilmVerdict(
        tuple(scenes), tuple(borders), tuple(_seen(*seen[i], one) for i, one in enumerate(known))
    )


def _ends(span: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the first and the last third of a scene, if the judge can tell an action from so few frames."""
    start, stop = span
    third = (stop - start) // 3
    return [(start, start + third), (stop - third, stop)] if third >= SHORTEST else []


def _of_scene(found: Verdict, readable: bool, true: Verdict, acted: Sequence[bool]) -> SceneVerdict:
    right = found.characters == true.characters, found.place is true.place, found.action is true.action
    return SceneVerdict(*(readable and one for one in right), *acted)


def _seen(found: Verdict, readable: bool, one: Told) -> SceneSeen:
    looks = found.looks if readable else {}
    return SceneSeen(
        {who.value: asdict(look) for who, look in one.stated.items()},
        {who.value: asdict(look) for who, look in looks.items()},
        one.truth.place.value,
        one.light,
        found.light.value if readable else None,
        found.arrangement if readable else None,
    )
