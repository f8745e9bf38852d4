"""What the judge says of films: whether anybody can tell what a scene shows, and whether it is what was told.

For measuring only: nothing that renders imports this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial

import torch
from torch import Tensor

from storyreel.evaluation.clips import clips
from storyreel.evaluation.kept import SceneSeen
from storyreel.evaluation.presence import across, centres, is_there_twice, steps, turns, usual
from storyreel.evaluation.seams import transition
from storyreel.evaluation.verdicts import FilmVerdict, SceneVerdict, SeamVerdict
from storyreel.story.plan import Segment

from .judge import CHARACTERS, STRIDE, UNREADABLE, Judge, Verdict, as_seen, load_judge
from .plots import scenes_by_words
from .world import COLOURS, PEOPLE, Character, Light, Look, look_name, wear_of
from .world.captions import CLOTHES, LIGHT_WORDS, NOUNS

FPS = 12.0  # of every film of this world
SHORTEST = 8  # frames, of which the judge looks at four: fewer show no action
LIGHT_NAMES = {Light.DAY: "daylight", Light.DUSK: "dusk", Light.NIGHT: "night"}


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
        prompts: Verdict(frozenset(lesson.who(cast)), lesson.place, lesson.shows)
        for prompts, (lesson, cast) in scenes_by_words().items()
    }


@dataclass(frozen=True)
class Told:
    """What a scene's prompts ask for.

    ``truth`` is what the scene must show; None where the prompts, but for looks and light, are none of a
    shipped story's. ``stated`` is what they say of somebody's looks, "" of what is left open; who is not in
    it is left open altogether, and so is a ``light`` that is None.
    """

    truth: Verdict | None
    stated: Mapping[Character, Look]
    light: Light | None

    def missing(self, seen: Verdict | None) -> list[str]:
        """Return what is stated and not seen, in words; all of it, if nobody can tell what is seen."""
        missing = []
        for who, look in self.stated.items():
            found = (seen.looks if seen else {}).get(who, Look(""))
            coat = f"{look.colour} {CLOTHES[who][0]}" if who in PEOPLE else look_name(who, Look(look.colour))
            for asked, shown, thing in (
                (look.colour, found.colour, coat),
                (look.wear, found.wear, look.wear),
            ):
                if asked and asked != shown:
                    missing.append(f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}")
        if self.light is not None and not (seen and seen.light is self.light):
            missing.append(LIGHT_NAMES[self.light])
        return missing


def told(scene: str, action: str) -> Told:
    """Read a scene's two prompts."""
    stated: dict[Character, Look] = {}
    stated_light: Light | None = None

    def plain(text: str) -> str:
        nonlocal stated_light
        for light, phrases in LIGHT_WORDS.items():
            text, count = re.subn(rf" (?:{'|'.join(phrases)})\b", "", text)
            stated_light = light if count else stated_light
        for who, pattern in _mentions().items():
            text = pattern.sub(partial(plain_name, who), text)
        return text

    def plain_name(who: Character, match: re.Match[str]) -> str:
        known, article = stated.get(who, Look("")), match["article"] or ""
        look = Look(match["colour"] or known.colour, match["wear"] or known.wear)
        if look != Look(""):
            stated[who] = look
        return ("a " if article == "an " else article) + match["noun"]

    truth = truths().get((plain(scene), plain(action)))
    return Told(truth, stated, stated_light)


@cache
def _mentions() -> dict[Character, re.Pattern[str]]:
    """Return what finds each character in a prompt, with the looks that are stated of it."""
    found = {}
    for who in Character:
        names = {noun.rpartition("{colour}")[2] for noun in NOUNS[who]}
        nouns = "|".join(sorted(names, key=len, reverse=True))  # or "corgi" would hide "corgi puppy"
        colour, wear = "|".join(COLOURS[who]), "|".join(filter(None, wear_of(who)))
        worn = rf"(?: (?:with|and) an? (?P<wear>{wear}))?"
        if who in PEOPLE:
            top = rf"(?: in an? (?P<colour>{colour}) (?:{'|'.join(CLOTHES[who])}))?"
            found[who] = re.compile(rf"\b(?P<article>)(?P<noun>{nouns})\b{top}{worn}")
        else:
            coat = rf"(?:(?P<colour>{colour}) )?"
            found[who] = re.compile(rf"\b(?P<article>an? |the )?{coat}(?P<noun>{nouns})\b{worn}")
    return found


def names_in(prompt: str) -> tuple[str, ...]:
    """Return how a prompt calls the characters of the world, articles and stated looks included."""
    found = (match[0] for pattern in _mentions().values() for match in pattern.finditer(prompt))
    return tuple(dict.fromkeys(name.strip() for name in found))


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
    segments: Sequence[Segment],
    seams: Sequence[int],
    frames: Iterable[Tensor],
    unmixed: Sequence[tuple[int, int]] | None = None,
) -> FilmVerdict | None:
    """Judge every segment, and the transition into each of the segments that ``seams`` names.

    ``frames`` are chunks uint8 (T, H, W, 3) at 12 a second. A segment is judged by the frames of ``unmixed``,
    first and behind the last, where it shows itself alone; None: by all. A seam is where its segment starts,
    whatever is mixed there. None, with no frame read, if any segment's two
    prompts are not those of a shipped story, but for the looks and the light that they state. Where nobody
    can tell what is shown, nothing is right: it shows none of them.
    """
    wanted = [told(s.scene, s.action) for s in segments]
    true = [one.truth for one in wanted if one.truth is not None]
    if len(true) < len(wanted):
        return None
    count = len(segments)
    starts, length = [s.start for s in segments], segments[-1].start + segments[-1].frames
    spans = unmixed or [(s.start, s.start + s.frames) for s in segments]
    around = [transition(starts, length, after, FPS) for after in seams]
    thirds = [(i, part) for i, s in enumerate(spans) for part in _ends(s)]
    seen: dict[int, Verdict | None] = {}  # None where nobody can tell
    watch = _Watch()
    for i, clip in clips(frames, [*spans, *around, *(part for _, part in thirds)]):
        opinion = shipped_judge().judge(clip)
        seen[i] = opinion.verdict if opinion.readable else None  # maps are too large to be kept
        if i < count:
            watch.see_scene(opinion.where, true[i].characters)
        elif i < count + len(seams):
            after, (first, _) = seams[i - count], around[i - count]
            at = -(-(starts[after] - first) // STRIDE)
            watch.see_seam(after, opinion.where, at, true[after - 1], true[after])
    acted: list[list[bool]] = [[] for _ in segments]
    for i, (scene, _) in enumerate(thirds, count + len(seams)):
        found = seen[i]
        acted[scene].append(found is not None and found.action is true[scene].action)
    scenes = [(seen[i], one, verdict) for i, (one, verdict) in enumerate(zip(wanted, true, strict=True))]
    return FilmVerdict(
        tuple(_of_scene(*scene, ends) for scene, ends in zip(scenes, acted, strict=True)),
        tuple(_of_seam(after, seen[i], true, watch) for i, after in enumerate(seams, count)),
        tuple(_seen(*scene) for scene in scenes),
    )


def _ends(span: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the first and the last third of a scene, or as much as the judge needs to tell an action.

    () where that would be more than half.
    """
    start, stop = span
    third = max(SHORTEST, (stop - start) // 3)
    return [(start, start + third), (stop - third, stop)] if 2 * third <= stop - start else []


def _of_scene(seen: Verdict | None, one: Told, true: Verdict, acted: Sequence[bool]) -> SceneVerdict:
    missing = one.missing(seen)
    first, last = acted or (None, None)
    return SceneVerdict(
        seen is not None and seen.characters == true.characters,
        seen is not None and seen.place is true.place,
        seen is not None and seen.action is true.action,
        first,
        last,
        not missing if one.stated or one.light else None,
        " and ".join(missing),
    )


def _of_seam(after: int, seen: Verdict | None, true: Sequence[Verdict], watch: _Watch) -> SeamVerdict:
    earlier, later = true[after - 1], true[after]
    return SeamVerdict(
        after,
        seen is not None and seen.characters in (earlier.characters, later.characters),
        earlier.place is later.place,
        watch.twice[after],
        *watch.ratios(after),
    )


def _seen(seen: Verdict | None, one: Told, true: Verdict) -> SceneSeen:
    return SceneSeen(
        {who.value: asdict(one.stated.get(who, Look(""))) for who in true.characters},
        {who.value: asdict(look) for who, look in seen.looks.items()} if seen else {},
        true.place.value,
        one.light.value if one.light else "",
        seen.light.value if seen else None,
        seen.arrangement if seen else None,
    )
