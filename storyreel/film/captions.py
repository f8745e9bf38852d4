"""A film's prompts as captions beside it: WebVTT and SubRip."""

from __future__ import annotations

import re

from storyreel.film.timeline import Clip, Timeline

JOINER = "\u2060"  # shows nothing, and keeps signs apart that a player would take for markup


def webvtt(timeline: Timeline) -> str:
    """Return the captions as WebVTT, every cue named by its clip."""
    cues = [
        f"{clip.name}\n{_span(timeline, clip, '.')}\n{_escaped(clip.caption)}\n" for clip in timeline.clips
    ]
    return "WEBVTT\n\n" + "\n".join(cues)


def subrip(timeline: Timeline) -> str:
    r"""Return the captions as SubRip, which knows no escapes.

    Players read <b> and {\an8} as markup; a word joiner behind the bracket shows such text as it is.
    """
    cues = [
        f"{number}\n{_span(timeline, clip, ',')}\n{_apart(clip.caption)}\n"
        for number, clip in enumerate(timeline.clips, 1)
    ]
    return "\n".join(cues)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _apart(text: str) -> str:
    return re.sub(r"[<{]", lambda bracket: bracket[0] + JOINER, text)


def _span(timeline: Timeline, clip: Clip, point: str) -> str:
    """Return a cue's times, to the nearest millisecond: the next one begins where it ends."""
    begin, end = (_clock(frame, timeline.fps, point) for frame in (clip.start, clip.end))
    return f"{begin} --> {end}"


def _clock(frame: int, fps: int, point: str) -> str:
    ms = round(1000 * frame / fps)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}{point}{ms % 1000:03d}"
