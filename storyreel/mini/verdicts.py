"""What the judge says of a whole film that tells a shipped story, whose truth is known.

For measuring only: nothing that renders imports this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from torch import Tensor

from storyreel.evaluation.clips import clips
from storyreel.evaluation.seams import transition
from storyreel.evaluation.verdicts import FilmVerdict, SceneVerdict, SeamVerdict
from storyreel.story.plan import Segment

from .judge import Verdict, load_judge
from .plots import PLOTS, STORIES, words

FPS = 12.0  # of every film of this world


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
    any segment's two prompts are not those of a shipped story.
    """
    wanted = [truths().get((s.scene, s.action)) for s in segments]
    true = [verdict for verdict in wanted if verdict is not None]
    if len(true) < len(wanted):
        return None
    starts, length = [s.start for s in segments], segments[-1].start + segments[-1].frames
    spans = [(s.start, s.start + s.frames) for s in segments]
    spans += [transition(starts, length, after, FPS) for after in seams]
    judge = load_judge()
    seen: dict[int, Verdict] = {i: judge.judge(clip).verdict for i, clip in clips(frames, spans)}
    scenes = (
        SceneVerdict(
            seen[i].characters == verdict.characters,
            seen[i].place is verdict.place,
            seen[i].action is verdict.action,
        )
        for i, verdict in enumerate(true)
    )
    borders = (
        SeamVerdict(
            after,
            seen[i].characters in (true[after - 1].characters, true[after].characters),
            true[after - 1].place is true[after].place,
        )
        for i, after in enumerate(seams, len(segments))
    )
    return FilmVerdict(tuple(scenes), tuple(borders))
