"""What the judge says of films: whether anybody can tell what a scene shows, and whether it is what was told.

For measuring only: nothing that renders imports this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from storyreel.evaluation.clips import clips
from storyreel.evaluation.seams import transition
from storyreel.evaluation.verdicts import FilmVerdict, SceneVerdict, SeamVerdict
from storyreel.story.plan import Segment

from .judge import UNREADABLE, Judge, Opinion, Verdict, as_seen, load_judge
from .plots import PLOTS, STORIES, words
from .world import COLOURS, PEOPLE, Character, Light, Look, look_name, wear_of
from .world.captions import CLOTHES, LIGHT_WORDS, NOUNS

FPS = 12.0  # of every film of this world
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
        (words(lesson.scene, cast), words(lesson.action, cast)): Verdict(
            frozenset((cast.first, cast.second) if lesson.pair else (cast.first,)), lesson.place, lesson.shows
        )
        for plot, cast in STORIES.values()
        for lesson in PLOTS[plot]
    }


class Told:
    """What a scene's prompts ask for: what it must show, and the looks and the light that they state.

    ``verdict`` is None where the plain prompts are none of a shipped story's. Of ``looks``, "" is what is
    left open.
    """

    def __init__(self, scene: str, action: str) -> None:
        self.looks: dict[Character, Look] = {}
        self.light: Light | None = None
        self.verdict = truths().get((self._plain(scene), self._plain(action)))

    def _plain(self, text: str) -> str:
        """Take what is stated out of a prompt, and remember it."""
        for light, phrases in LIGHT_WORDS.items():
            text, count = re.subn(rf" (?:{'|'.join(phrases)})\b", "", text)
            self.light = light if count else self.light
        for who, pattern in _mentions().items():
            text = pattern.sub(partial(self._take, who), text)
        return text

    def _take(self, who: Character, match: re.Match[str]) -> str:
        known, article = self.looks.get(who, Look("")), match["article"] or ""
        look = Look(match["colour"] or known.colour, match["wear"] or known.wear)
        if look != Look(""):
            self.looks[who] = look
        return ("a " if article == "an " else article) + match["noun"]

    def missing(self, seen: Verdict | None) -> list[str]:
        """Return what is stated and not seen, in words; all of it, if nobody can tell what is seen."""
        missing = []
        for who, look in self.looks.items():
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


def judge_film(
    segments: Sequence[Segment], seams: Sequence[int], frames: Iterable[Tensor]
) -> FilmVerdict | None:
    """Judge every segment, and the transition into each of the segments that ``seams`` names.

    ``frames`` are chunks uint8 (T, H, W, 3) at 12 a second. None, with no frame read, if
    any segment's two prompts are not those of a shipped story; they may state looks and light besides.
    Where nobody can tell what is shown, nothing is right: it shows none of them.
    """
    told = [Told(s.scene, s.action) for s in segments]
    true = [one.verdict for one in told if one.verdict is not None]
    if len(true) < len(told):
        return None
    starts, length = [s.start for s in segments], segments[-1].start + segments[-1].frames
    spans = [(s.start, s.start + s.frames) for s in segments]
    spans += [transition(starts, length, after, FPS) for after in seams]
    seen = {i: shipped_judge().judge(clip) for i, clip in clips(frames, spans)}
    scenes = (
        _of_scene(seen[i], one, verdict) for i, (one, verdict) in enumerate(zip(told, true, strict=True))
    )
    borders = (
        SeamVerdict(
            after,
            seen[i].readable
            and seen[i].verdict.characters in (true[after - 1].characters, true[after].characters),
            true[after - 1].place is true[after].place,
        )
        for i, after in enumerate(seams, len(segments))
    )
    return FilmVerdict(tuple(scenes), tuple(borders))


def _of_scene(seen: Opinion, told: Told, true: Verdict) -> SceneVerdict:
    found, missing = seen.verdict, told.missing(seen.verdict if seen.readable else None)
    return SceneVerdict(
        seen.readable and found.characters == true.characters,
        seen.readable and found.place is true.place,
        seen.readable and found.action is true.action,
        not missing if told.looks or told.light else None,
        " and ".join(missing),
    )
