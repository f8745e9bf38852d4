"""What the judge says of films: whether anybody can tell what a scene shows, and whether it is what was told.

For measuring only: nothing that renders imports this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import torch
from torch import Tensor

from storyreel.evaluation.clips import clips
from storyreel.evaluation.seams import transition
from storyreel.evaluation.verdicts import FilmVerdict, SceneVerdict, SeamVerdict
from storyreel.story.plan import Segment

from .judge import UNREADABLE, Judge, Opinion, Verdict, as_seen, load_judge
from .plots import PLOTS, STORIES, words

FPS = 12.0  # of every film of this world


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


def judge_film(
    segments: Sequence[Segment], seams: Sequence[int], frames: Iterable[Tensor]
) -> FilmVerdict | None:
    """Judge every segment, and the transition into each of the segments that ``seams`` names.

    ``frames`` are chunks uint8 (T, H, W, 3) at 12 a second. None, with no frame read, if
    any segment's two prompts are not those of a shipped story. Where nobody can tell what is shown,
    nothing is right: it shows none of them.
    """
    wanted = [truths().get((s.scene, s.action)) for s in segments]
    true = [verdict for verdict in wanted if verdict is not None]
    if len(true) < len(wanted):
        return None
    starts, length = [s.start for s in segments], segments[-1].start + segments[-1].frames
    spans = [(s.start, s.start + s.frames) for s in segments]
    spans += [transition(starts, length, after, FPS) for after in seams]
    seen = {i: shipped_judge().judge(clip) for i, clip in clips(frames, spans)}
    scenes = (_of_scene(seen[i], verdict) for i, verdict in enumerate(true))
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


def _of_scene(seen: Opinion, true: Verdict) -> SceneVerdict:
    if not seen.readable:
        return SceneVerdict(False, False, False)
    found = seen.verdict
    return SceneVerdict(
        found.characters == true.characters, found.place is true.place, found.action is true.action
    )
