"""The film's page: one HTML file beside the film, readable from disk without a network."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from storyreel.errors import OutputError, counted
from storyreel.files import write_atomically, writing
from storyreel.film.folder import FilmFolder
from storyreel.film.inventory import Inventory
from storyreel.film.keys import film_chapters, film_tags
from storyreel.film.manifest import decided_of
from storyreel.film.store import RECORD, file_name, read_record
from storyreel.film.takes import read_takes, takes_of_scene, texts_of
from storyreel.film.writer import Chapter
from storyreel.pages import address, filled
from storyreel.story.plan import Plan, Segment

TEMPLATE = Path(__file__).with_name("film.html.j2")
SHARE = 100  # a growing page takes one part in so many of a render's time
READ = 100_000  # bytes of a report: its head says of which films it is
LONGEST_CUE = 300  # characters of a prompt in the captions: more would cover the picture
# What a seam did, for somebody who watches; ``before`` is the number of the scene before.
SEAMS = {
    "continue": "The shot goes on from scene {before}",
    "dissolve": "Scene {before} dissolves into this one",
    "cut": "A cut: this scene begins at once",
    "fade": "Through black from scene {before}",
    "dip": "Through white from scene {before}",
}
UNBLENDED = "Begins where scene {before} ends; nothing is blended"
PLOT = (36.0, 312.0, 8.0, 92.0)  # of a curve's picture: left, right, top (weight 1) and bottom (weight 0)


@dataclass(frozen=True)
class Take:
    """One of several takes of a scene: its ``number``, and ``video``, a path from the film's folder.

    ``still`` is its picture as records of videos have it, or ""; ``shown`` says whether it is in the film.
    """

    number: int
    still: str
    video: str
    shown: bool


Takes = Mapping[int, Sequence[Take]]  # by their segment's index


def film_page(
    folder: FilmFolder, there: Inventory, film: Mapping[str, str] | None, takes: Takes | None = None
) -> str:
    """Return a film's page: player, scenes, how each was made, and where the film comes from.

    ``film`` is what the manifest says of the joined file. None is for a film of which scenes are missing:
    its page plays those that are there, one after the other, and shows by itself what comes. ``takes`` are by
    default those that the folder lists.
    """
    plan = there.plan
    settings, upscale = plan.settings, plan.spec.upscale
    joined = address(f"{folder.name}.mp4")
    tags = film_tags(plan, film.get("storyreel", "")) if film is not None else film_tags(plan)
    chapters = film_chapters(plan)
    shown = joined if film is not None else None
    chapter_at = {chapter.start: chapter for chapter in chapters}  # cards have chapters too
    takes = takes_of(folder, there) if takes is None else takes
    scenes = [
        _scene(there, segment, chapter_at[segment.start], shown, takes.get(segment.index, ()))
        for segment in plan.segments
    ]
    first = next((scene for scene in scenes if scene["is_there"]), None)
    return filled(
        TEMPLATE,
        title=plan.title,
        facts=[counted(len(scenes), "scene"), seconds_words(plan.seconds), f"model {plan.spec.label}"],
        width=settings.width * upscale,
        height=settings.height * upscale,
        source=first["source"] if first else "",
        poster=first["still"] if first else "",
        captions=captions(chapters, plan.spec.fps),
        scenes=scenes,
        unfinished=_unfinished(folder, scenes, joined) if film is None else None,
        report="eval.html" if film and _is_reported(folder, film) else "",
        sheet="sheet.png" if (folder.path / "sheet.png").is_file() else "",
        tags={_label(name): value for name, value in tags.items() if name != "title"},
        plot=PLOT,
    )


def takes_of(folder: FilmFolder, there: Inventory) -> dict[int, list[Take]]:
    """Return the takes of scenes that a folder lists and has, with the one that the film shows among them."""
    found: dict[int, list[Take]] = {}
    listed, texts = read_takes(folder.path), texts_of(there.plan.story)
    for segment in there.plan.segments if listed else ():
        takes: dict[int, Take] = {}
        for made in takes_of_scene(listed, texts, segment.index + 1):
            record = read_record(folder.segments / f"{made.video}{RECORD}")
            if record is not None and (folder.segments / made.video).is_file():
                still = record.decided.get("still", "")
                takes[made.take] = Take(made.take, still, f"segments/{made.video}", False)
        if takes and (video := there.video.get(segment.index)) is not None:
            still = video.decided.get("still", "")
            takes[segment.take] = Take(segment.take, still, f"segments/{video.file}", True)
        if takes:
            found[segment.index] = [takes[number] for number in sorted(takes)]
    return found


def _unfinished(folder: FilmFolder, scenes: Sequence[Mapping[str, Any]], joined: str) -> dict[str, object]:
    """Return what the page says of a film that is not complete."""
    return {
        "words": f"{sum(scene['is_there'] for scene in scenes)} of {counted(len(scenes), 'scene')}",
        "joined": joined,
        "replaces": folder.growing_page_path != folder.page_path,
    }


def _is_reported(folder: FilmFolder, film: Mapping[str, str]) -> bool:
    """Tell whether a report lies beside the film, and is of this very film."""
    path = folder.path / "eval.html"
    try:
        if not path.is_file():  # a pipe would never end
            return False
        with path.open("rb") as report:
            return film["sha256"].encode() in report.read(READ)
    except (OSError, KeyError):
        return False


def _scene(
    there: Inventory, segment: Segment, chapter: Chapter, joined: str | None, takes: Sequence[Take]
) -> dict[str, Any]:
    """Return what the page shows of a scene; nothing where there is nothing to show.

    ``joined`` is the film's address; None while it is not joined, and every scene is played from its own.
    """
    plan, index = there.plan, segment.index
    latents, video = there.latents.get(segment.slot), there.video.get(index)
    is_there = latents is not None and video is not None
    start, length = segment.start / plan.spec.fps, segment.frames / plan.spec.fps
    own = address(f"segments/{file_name('video', segment.number, there.keys.video[index])}")
    made = decided_of(there, index) if latents is not None and video is not None else {}
    alone = captions([Chapter(0, segment.frames, chapter.title, chapter.subtitle)], plan.spec.fps)
    return {
        "number": index + 1,
        "is_there": is_there,
        "source": joined or own,
        "from": start if joined else 0,
        "start": start,
        "end": start + length,
        "clock": clock(start),
        "length": seconds_words(length),
        "when": f"{start:g} s to {start + length:g} s",
        "scene": segment.scene,
        "action": "" if segment.action == segment.scene else segment.action,
        "still": video.decided.get("still", "") if video else "",
        "captions": "" if joined and not takes else alone,
        "took": seconds_words(round(latents.seconds + video.seconds, 1)) if latents and video else "",
        "seam": _seam(plan, segment, made),
        "weights": _weights(made.get("prompt_weights") or []) if segment.action != segment.scene else None,
        "takes": [asdict(take) | {"video": address(take.video)} for take in takes],
    }


def _seam(plan: Plan, segment: Segment, made: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the seam before a segment did, in words, and the numbers behind them once it is decided."""
    seam = plan.seam(segment)
    if seam is None:
        return None
    decided: Mapping[str, Any] = made.get("seam") or {}
    transition = decided.get("transition", seam.transition)
    blended = transition == "cut" or decided.get("strength", seam.strength) > 0
    words = SEAMS.get(transition, "From scene {before}: " + transition) if blended else UNBLENDED
    numbers: dict[str, str] = {}
    if decided:
        numbers["Kind"] = transition
        if decided["overlap"]:
            numbers["Taken over"] = counted(decided["overlap"], "latent frame")
        if decided["similarity"] is not None:
            numbers["Actions alike"] = f"{100 * decided['similarity']:.0f} %"
        if transition != "cut":
            numbers["Strength"] = f"{decided['strength']:g}"
        if decided.get("sides") is not None:
            numbers["Sides apart"] = f"{decided['sides']:.1f} of 255, before any dissolve"
    return {"words": words.format(before=segment.index), "numbers": numbers}


def _weights(weights: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    """Return how much each prompt counted over the denoising steps: as words, and as curves where it varies.

    None where that was not recorded.
    """
    if not weights:
        return None
    steps = counted(len(weights), "step")
    curves = [
        {"name": name, "from": f"{100 * of[0]:.0f} %", "to": f"{100 * of[-1]:.0f} %", "points": _points(of)}
        for name, of in zip(("scene prompt", "action prompt"), zip(*weights, strict=True), strict=True)
    ]
    if len(set(map(tuple, weights))) == 1:
        scene, action = (curve["from"] for curve in curves)
        same = "Both prompts count the same" if scene == action else f"{scene} scene, {action} action prompt"
        return {"words": f"{same} in all of {steps}.", "curves": [], "steps": len(weights)}
    parts = [f"the {curve['name']}’s goes from {curve['from']} to {curve['to']}" for curve in curves]
    words = f"Weight of each prompt over {steps} of denoising: {', '.join(parts)}."
    return {"words": words, "curves": curves, "steps": len(weights)}


def _points(weights: Sequence[float]) -> str:
    left, right, top, bottom = PLOT
    steps = max(1, len(weights) - 1)
    return " ".join(
        f"{left + (right - left) * step / steps:.1f},{bottom - (bottom - top) * weight:.1f}"
        for step, weight in enumerate(weights)
    )


def captions(chapters: Sequence[Chapter], fps: int) -> str:
    """Return a WebVTT file with a cue per chapter, its subtitle, as the address that holds it whole."""
    cues = ["WEBVTT"]
    for chapter in chapters:
        lines = [_shortened(line) for line in chapter.subtitle.splitlines() if line.strip()]
        text = escape("\n".join(lines), quote=False)  # also of -->, which would begin a cue
        cues.append(f"{_stamp(chapter.start / fps)} --> {_stamp(chapter.end / fps)}\n{text}")
    return "data:text/vtt;base64," + base64.b64encode(("\n\n".join(cues) + "\n").encode()).decode()


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= LONGEST_CUE else words[: LONGEST_CUE - 1].rstrip() + "…"


def _stamp(seconds: float) -> str:
    ms = round(1000 * seconds)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"


def clock(seconds: float) -> str:
    """Return a place in the film as players show it, as in "1:04" or "0:00.25"."""
    whole, part = divmod(round(100 * seconds), 100)
    return f"{whole // 60}:{whole % 60:02d}" + (f".{part:02d}".rstrip("0") if part else "")


def seconds_words(seconds: float) -> str:
    """Return how long something takes, for people to read."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _label(tag: str) -> str:
    """Return a tag's name for people to read: "Story sha256" of ``storyreel_story_sha256``."""
    words = tag.removeprefix("storyreel_").replace("_", " ")
    return words[:1].upper() + words[1:]


def write_page(folder: FilmFolder, page: str) -> None:
    """Write the page of a complete film, where it changed. Raises OutputError."""
    if not folder.holds(folder.page_path, page):
        with writing(folder.page_path):
            write_atomically(folder.page_path, page)


class GrowingPage:
    """The page of a film that is being rendered. It is a help on the way: no fault of it stops a render.

    It is written when a scene is finished, but takes no more than one part in `SHARE` of the time. The first
    writing, before which the template is read, does not count.
    """

    def __init__(self, folder: FilmFolder, inventory: Inventory) -> None:
        self._folder, self._inventory = folder, inventory
        self._next: float | None = None

    def write(self) -> None:
        """Write what is there by now, unless it was written too short a while ago."""
        began = time.monotonic()
        first, self._next = self._next is None, self._next or began
        if began < self._next:
            return
        try:
            page = film_page(self._folder, self._inventory, None)
            write_atomically(self._folder.growing_page_path, page)
        except Exception as error:  # whatever it is, the render is worth more
            with suppress(OutputError):
                self._folder.log("page", reason=f"{type(error).__name__}: {error}")
        if not first:
            self._next = began + SHARE * (time.monotonic() - began)
