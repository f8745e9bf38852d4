"""A film's scenes and seams for an editor: an edit decision list (CMX 3600), and OpenTimelineIO.

Both lay the finished film out in clips that are taken from the film itself, each from where it is shown. So
what they describe is the film, frame by frame, transitions too: a frame that dissolves into itself stays what
it is.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from storyreel.film.timeline import Clip, Join, Timeline

REEL = 8  # characters of a reel's name in CMX 3600: capitals and digits
RATES = (24, 25, 30, 48, 50, 60)  # of SMPTE timecode, those that are whole numbers and drop no frames


def timecode_rate(fps: int) -> int:
    """Return the rate of an edit list's timecodes: the first of SMPTE's in which every frame begins.

    No editor knows 12 or 16 frames a second. Where there is none, it is the film's own.
    """
    return next((rate for rate in RATES if rate % fps == 0), fps)


def timecode(frame: int, fps: int) -> str:
    """Return when a film's frame begins, as in 00:00:02:11, at the film's `timecode_rate`."""
    rate = timecode_rate(fps)
    seconds, rest = divmod(frame * rate // fps, rate)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{rest:02d}"


def reel_name(name: str) -> str:
    """Return a film's name as that of a reel; FILM where no letter or digit of ASCII is left."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Z0-9]", "", plain.upper())[:REEL] or "FILM"


def edl(timeline: Timeline, sound: bool) -> str:
    """Return a CMX 3600 edit decision list: an event a clip, a marker (LOC) a seam.

    A dissolve begins before the seam, and its event with it. With ``sound``, the last event is the film's
    sound as a whole.
    """
    rate = timecode_rate(timeline.fps)
    lines = [f"TITLE: {timeline.title}", "FCM: NON-DROP FRAME", ""]
    following = [*timeline.clips[1:], None]
    for number, (clip, later) in enumerate(zip(timeline.clips, following, strict=True), 1):
        before, length = (clip.join.before, clip.join.before + clip.join.behind) if clip.join else (0, 0)
        begin, end = clip.start - before, clip.end - (later.join.before if later and later.join else 0)
        if length:
            lines.append(_event(timeline, number, "V", "C", begin, begin))
        effect = f"D    {length * rate // timeline.fps:03d}" if length else "C"
        lines.append(_event(timeline, number, "V", effect, begin, end))
        lines += [
            f"* {of} CLIP NAME: {timeline.path.name}" for of in (("FROM", "TO") if length else ("FROM",))
        ]
        if number == 1:  # readers know no comment before the first event
            lines.append(f"* COMMENT: timecodes count {rate} frames a second")
        if clip.join:
            lines.append(
                f"* LOC: {timecode(clip.start, timeline.fps)} GREEN   {clip.name}: {clip.join.words}"
            )
        lines += [f"* COMMENT: {line}" for line in clip.caption.splitlines()]
    if sound:
        lines.append(_event(timeline, len(timeline.clips) + 1, "AA", "C", 0, timeline.frames))
        lines.append(f"* FROM CLIP NAME: {timeline.path.name}")
    return "\n".join(lines) + "\n"


def _event(timeline: Timeline, number: int, track: str, effect: str, begin: int, end: int) -> str:
    """Return an event's line: what is shown of the film from one frame to another, there itself."""
    first, last = timecode(begin, timeline.fps), timecode(end, timeline.fps)
    reel = reel_name(timeline.name)
    return f"{number:03d}  {reel:8} {track:5} {effect:8} {first} {last} {first} {last}"


def otio(timeline: Timeline, sound: bool, folder: Path) -> str:
    """Return the film as OpenTimelineIO's JSON, for a file in ``folder``, from which the film is named.

    Every clip has a marker with what the method did at the seam before it; a dissolve or a fade is a
    transition. With ``sound`` there is a track of that, too.
    """
    tracks = [_track("Video", "scenes", list(_items(timeline, folder)))]
    if sound:
        whole = _clip(timeline, timeline.name, 0, timeline.frames, folder)
        tracks.append(_track("Audio", "sound", [whole]))
    stack = {"OTIO_SCHEMA": "Stack.1", "name": "tracks", "children": tracks}
    content = {
        "OTIO_SCHEMA": "Timeline.1",
        "name": timeline.title,
        "global_start_time": _time(timeline, 0),
        "tracks": stack,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _items(timeline: Timeline, folder: Path) -> Iterator[dict[str, Any]]:
    for clip in timeline.clips:
        if clip.join and (clip.join.before or clip.join.behind):
            yield _transition(timeline, clip.join)
        facts: dict[str, Any] = {"scene": clip.number, "caption": clip.caption}
        facts["seam"] = dict(clip.join.facts) if clip.join else None
        yield {
            **_clip(timeline, clip.name, clip.start, clip.frames, folder),
            "markers": [_marker(timeline, clip, clip.join)] if clip.join else [],
            "metadata": {"storyreel": facts},
        }


def _clip(timeline: Timeline, name: str, start: int, frames: int, folder: Path) -> dict[str, Any]:
    film = {
        "OTIO_SCHEMA": "ExternalReference.1",
        "name": timeline.path.name,
        "target_url": _address(timeline.path, folder),
        "available_range": _range(timeline, 0, timeline.frames),
    }
    return {
        "OTIO_SCHEMA": "Clip.2",
        "name": name,
        "source_range": _range(timeline, start, frames),
        "media_references": {"DEFAULT_MEDIA": film},
        "active_media_reference_key": "DEFAULT_MEDIA",
    }


def _address(path: Path, folder: Path) -> str:
    """Return the address of a file, from a folder on, with what is no letter or digit escaped."""
    way = PurePosixPath(os.path.relpath(path.resolve(), folder.resolve()))
    return ("/" / way).as_uri().removeprefix("file:///")


def _transition(timeline: Timeline, join: Join) -> dict[str, Any]:
    return {
        "OTIO_SCHEMA": "Transition.1",
        "name": join.transition,
        "transition_type": "SMPTE_Dissolve" if join.transition == "dissolve" else "Custom_Transition",
        "in_offset": _time(timeline, join.before),
        "out_offset": _time(timeline, join.behind),
    }


def _marker(timeline: Timeline, clip: Clip, join: Join) -> dict[str, Any]:
    return {
        "OTIO_SCHEMA": "Marker.2",
        "name": join.words,
        "color": "GREEN",
        "marked_range": _range(timeline, clip.start, 0),
        "metadata": {"storyreel": dict(join.facts)},
    }


def _track(kind: str, name: str, children: list[dict[str, Any]]) -> dict[str, Any]:
    return {"OTIO_SCHEMA": "Track.1", "name": name, "kind": kind, "children": children}


def _time(timeline: Timeline, frames: int) -> dict[str, Any]:
    return {"OTIO_SCHEMA": "RationalTime.1", "rate": float(timeline.fps), "value": float(frames)}


def _range(timeline: Timeline, start: int, frames: int) -> dict[str, Any]:
    return {
        "OTIO_SCHEMA": "TimeRange.1",
        "start_time": _time(timeline, start),
        "duration": _time(timeline, frames),
    }
