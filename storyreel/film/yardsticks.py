"""Where benchmarks look for a film's shots: the names of files, and scripts in their formats.

The layouts are those that the benchmarks' own code reads; README.md beside this file names each source.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from storyreel.errors import FormatError, UsageError, counted
from storyreel.film.timeline import Clip, Timeline
from storyreel.story.importing.benchmarks import shot_numbers

METHOD, MODE, LANGUAGE = "storyreel", "base", "en"  # ViStoryBench's folders above a story


@dataclass(frozen=True)
class Script:
    """What a benchmark calls a story, and its shots: (scene, shot) of each, from 1, in the film's order."""

    story: str
    shots: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Yardstick:
    """A benchmark: what it reads of a shot, what it calls a shot's file, and a script of the film for it.

    ``name`` is given a shot's index; ``script`` returns a file's name and its data.
    """

    reads: Literal["clips", "stills"]
    name: Callable[[Timeline, Script, int], str]
    script: Callable[[Timeline, Script], tuple[str, Any]] | None = None


def script_of(timeline: Timeline, path: Path | None) -> Script:
    """Return the story and the shots of a film as its benchmark's script has them.

    Without a script all shots are of one scene. Raises FormatError for a script that cannot be read, and
    UsageError for one that has another number of shots than the film has scenes.
    """
    count = len(timeline.scenes)
    if path is None:
        return Script(timeline.name, tuple((1, shot + 1) for shot in range(count)))
    try:
        shots = shot_numbers(path)
    except OSError as error:
        words = f"{path} cannot be read: {error.strerror}"
        raise UsageError(words, "Name the benchmark's JSON, from which the story was imported.") from None
    if len(shots) != count:
        words = f"{path} has {counted(len(shots), 'shot')}, the film {counted(count, 'scene')}"
        raise UsageError(words, "Name the script that this film tells.")
    if len(set(shots)) != len(shots):
        raise FormatError(f"{path} numbers two of its shots alike", "Correct that, and try again.")
    name = path.resolve().parent.name if path.stem == "story" else path.stem
    return Script(name.strip(".") or timeline.name, tuple(shots))


def _entity_name(timeline: Timeline, script: Script, index: int) -> str:
    scene, shot = script.shots[index]
    return f"{script.story}/{scene:03d}_{shot:03d}.mp4"


def _storymem_name(timeline: Timeline, script: Script, index: int) -> str:
    scene, shot = script.shots[index]
    return f"{script.story}/{scene:02d}_{shot:02d}.mp4"


def _msv_name(timeline: Timeline, script: Script, index: int) -> str:
    return f"Evaluation/data/videos/{script.story}/{index + 1:03d}.mp4"


def _vistory_name(timeline: Timeline, script: Script, index: int) -> str:
    """Below a folder that is named by when the film was joined, in UTC; a story's name there is a number."""
    joined = time.strftime("%Y%m%d-%H%M%S", time.gmtime(timeline.path.stat().st_mtime))
    shot = script.shots[index][1]
    return f"{METHOD}/{MODE}/{LANGUAGE}/{joined}/{_number(script)}/shots/shot_{shot:02d}.png"


def _vbench_name(timeline: Timeline, script: Script, index: int) -> str:
    return f"{script.story}/{timeline.scenes[index].name}.mp4"


def _number(script: Script) -> str:
    found = re.search(r"\d+$", script.story)
    return found[0] if found else "01"


def _prompts(clip: Clip) -> tuple[str, str]:
    """Return scene and action of a scene."""
    scene, _, action = clip.caption.partition("\n")
    return scene, action or scene


def _storymem_script(timeline: Timeline, script: Script) -> tuple[str, Any]:
    """Return a film as StoryMem's JSON and EntityBench's has it: a cut is true where no shot goes on."""
    scenes: dict[int, dict[str, Any]] = {}
    for clip, (number, _) in zip(timeline.scenes, script.shots, strict=True):
        scene = scenes.setdefault(
            number, {"scene_num": number, "video_prompts": [], "action_descriptions": [], "cut": []}
        )
        told, action = _prompts(clip)
        scene["video_prompts"].append(told if told == action else f"{told} {action}")
        scene["action_descriptions"].append(action)
        scene["cut"].append(clip.join is None or clip.join.transition != "continue")
    story = {"story_name": timeline.title, "story_overview": timeline.title}
    return f"{script.story}.json", {**story, "scenes": list(scenes.values())}


def _vistory_script(timeline: Timeline, script: Script) -> tuple[str, Any]:
    shots = []
    for clip, (_, number) in zip(timeline.scenes, script.shots, strict=True):
        told, action = _prompts(clip)
        prompts = {"Setting Description": {"en": told}, "Static Shot Description": {"en": action}}
        # Its loader leaves out shots that lack any of these.
        rest = {"Characters Appearing": {"en": []}, "Plot Correspondence": {"en": ""}}
        shots.append({"index": number, **prompts, **rest, "Shot Perspective Design": {"en": ""}})
    return f"ViStory/{_number(script)}/story.json", {"Characters": {}, "Shots": shots}


def _vbench_prompts(timeline: Timeline, script: Script) -> tuple[str, Any]:
    told = {f"{clip.name}.mp4": " ".join(dict.fromkeys(_prompts(clip))) for clip in timeline.scenes}
    return f"{script.story}.json", told


YARDSTICKS = {
    "entitybench": Yardstick("clips", _entity_name, _storymem_script),
    "storymem": Yardstick("clips", _storymem_name, _storymem_script),
    "msvbench": Yardstick("clips", _msv_name),
    "vistorybench": Yardstick("stills", _vistory_name, _vistory_script),
    "vbench": Yardstick("clips", _vbench_name, _vbench_prompts),
}


def as_json(data: Any) -> str:
    """Return a script as the text of a file."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
