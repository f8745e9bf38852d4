"""Lists of prompts in JSON, YAML or Python, and maps of prompts over frames."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from storyreel.errors import FormatError
from storyreel.story.importing.draft import Draft, Shot, joined, one_prompt, without_weights
from storyreel.story.importing.source import NotThisError, Source
from storyreel.story.importing.text import read_any, timed

FPS = 8.0  # of AnimateDiff's motion modules
MAX_DEPTH = 6
# The keys that prompts have, of a list before those of one; and what else an item of a list may say.
MANY = ("prompts", "prompt_list", "text_prompts", "prompt_texts", "scene_prompts", "captions", "texts")
ONE = ("prompt", "text_prompt", "caption", "text")
LISTS = ("scenes", "shots", "segments", "clips", "queue")
SCENES = ("scene", "scene_prompt", "setting", "background")
ACTIONS = ("action", "action_prompt", "motion")
LENGTHS = ("seconds", "duration", "length_seconds")
FRAMES = ("frames", "num_frames", "video_length", "length", "max_frames")
_MAP = re.compile(r"\s*\{?\s*[\"']?\d+[\"']?\s*:\s*[\"']")


def read_prompts(source: Source, fps: float | None) -> Draft:
    """Read a list of prompts, wherever in the file it is; of several, refuse to choose."""
    data = source.data
    if isinstance(data, list) and data and all(isinstance(item, Mapping) for item in data):
        data = [item["params"] if isinstance(item.get("params"), Mapping) else item for item in data]
        if len(data) == 1:
            data = data[0]  # JSONL of one story, a queue of one
        elif any(next(_lists(item), ("", ""))[1] for item in data if not _is_item(item)):
            words = f"{source.path} has {len(data)} stories, each with prompts of its own"
            raise FormatError(words, "Leave one of them in it.")
    found = list(_lists(data))
    if source.is_python:
        found = [(one.name, one.value) for one in source.named if _holds(one.name, MANY, one.value)]
        found = found or [(one.name, one.value) for one in source.named if _holds(one.name, ONE, one.value)]
    if not found:
        raise NotThisError(f"it has no list of prompts, and no key {', '.join([*MANY[:3], ONE[0]])}")
    if len(found) > 1:
        names = ", ".join(f"{where!r:.60}" for where, _ in found[:6])
        raise FormatError(f"{source.path} has several lists of prompts: {names}", "Leave one of them in it.")
    where, value = found[0]
    draft = _read(value, where, source, fps)
    if source.is_python:
        draft.seed = _seed(data.get("seed"))
        draft.leave_out("the rest of the program, which was not run", "")
    elif isinstance(data, Mapping):
        _settings(draft, data, where.split("."))
    one_prompt(draft)
    return draft


def _settings(draft: Draft, data: Mapping[str, Any], used: Sequence[str]) -> None:
    """Take over a title and a seed, and say what else there is on the way to the prompts."""
    title = data.get("title", data.get("name"))
    draft.title = title if isinstance(title, str) else ""
    here: Any = data
    for step in used or [""]:
        for key, value in here.items() if isinstance(here, Mapping) else ():
            if key == step or (key in ("title", "name") and value == draft.title):
                continue
            if key == "seed" and _seed(value) is not None:
                draft.seed = _seed(value)
            else:
                draft.leave_out(f"the setting {str(key)[:60]}", "")
        here = here.get(step) if isinstance(here, Mapping) else None


def _seed(value: Any) -> int | None:
    is_seed = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return value if is_seed else None


def _holds(key: str, keys: Sequence[str], value: Any) -> bool:
    """Tell whether a key is one of those that prompts have, and its value is prompts."""
    key = str(key).lower()
    many = keys is MANY and key.endswith("prompts") and "neg" not in key
    return (key in keys or many) and _are_prompts(value)


def _lists(data: Any, where: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield what may be a list of prompts, with its place."""
    if isinstance(data, list | tuple) and data and not depth:
        if all(isinstance(item, str) for item in data) or all(_is_item(item) for item in data):
            yield where, data
        return
    if not isinstance(data, Mapping) or depth > MAX_DEPTH:
        return
    for keys in (MANY, ONE):
        here = [(f"{where}.{key}".lstrip("."), data[key]) for key in data if _holds(key, keys, data[key])]
        if here:
            yield from here
            return
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _lists(value, f"{where}.{key}".lstrip("."), depth + 1)
        elif key in LISTS and isinstance(value, list) and value and all(map(_is_item, value)):
            yield f"{where}.{key}".lstrip("."), value


def _are_prompts(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(item, str) for item in value) or all(_is_item(item) for item in value)


def _is_item(item: Any) -> bool:
    """Tell whether something is a prompt with what belongs to it, or a pair of prompts."""
    if isinstance(item, Mapping):
        return any(isinstance(item.get(key), str) for key in (*ONE, *SCENES, *ACTIONS))
    return isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(text, str) for text in item)


def _read(value: Any, where: str, source: Source, fps: float | None) -> Draft:
    if isinstance(value, str):
        return read_any(value, source.path, where, fps)
    draft = Draft([])
    for index, item in enumerate(value):
        place = f"{where}[{index}]"
        if isinstance(item, str):
            draft.shots.append(Shot(without_weights(item, draft, place), where=place))
        elif isinstance(item, Mapping):
            draft.shots.append(_shot(item, place, draft))
        else:
            scene, action = (without_weights(text, draft, place) for text in item)
            draft.shots.append(Shot(scene, action, place))
    return draft


def _shot(item: Mapping[str, Any], where: str, draft: Draft) -> Shot:
    used: list[str] = []

    def text(keys: tuple[str, ...]) -> str:
        for key in keys:
            if isinstance(item.get(key), str):
                used.append(key)
                return without_weights(item[key], draft, where)
        return ""

    prompt, scene, action = text(ONE), text(SCENES), text(ACTIONS)
    shot = Shot(scene or prompt, action or (prompt if scene else ""), where)
    if prompt and scene and action:
        draft.leave_out("a prompt beside a scene and an action", where)
    for key in LENGTHS:
        number = item.get(key)
        if (
            shot.seconds is None
            and isinstance(number, int | float)
            and not isinstance(number, bool)
            and number > 0
        ):
            shot.seconds = float(number)
            used.append(key)
    for key in item:
        if key not in used:
            draft.leave_out(f"the setting {str(key)[:60]}", where)
    return shot


def read_travel(source: Source, fps: float | None) -> Draft:
    """Read a map of prompts by the frame from which each counts."""
    data = _map_of(source)
    steps = data.get("prompt_map", data) if isinstance(data, Mapping) else None
    if not isinstance(steps, Mapping) or not steps or not all(_frame(key) is not None for key in steps):
        raise NotThisError('it has no map of prompts by frames, as in {"0": "…", "48": "…"}')
    if not all(isinstance(text, str) for text in steps.values()):
        raise NotThisError("its map by frames holds more than texts")
    if len({_frame(key) for key in steps}) < len(steps):
        raise FormatError(f"{source.path} has two prompts for one frame", "Leave one of them in it.")
    around = data if steps is not data else {}
    draft = Draft([])
    head, tail = (_part(around, key, draft) for key in ("head_prompt", "tail_prompt"))
    rate, told = _rate(around, fps)
    items: list[tuple[float, float | None, str, str]] = []
    for key, text in sorted(steps.items(), key=lambda item: _frame(item[0]) or 0):
        where = f"frame {_frame(key)}"
        text, negative, _ = text.partition("--neg")
        if negative:
            draft.leave_out("what prompts say is not to be there (--neg)", where)
        prompt = joined([head, without_weights(text, draft, where), tail])
        items.append(((_frame(key) or 0) / rate, None, prompt, where))
    end = next((value for key in FRAMES if isinstance(value := around.get(key), int) and value > 0), None)
    frames = [round(item[0] * rate) for item in items]
    is_numbered = len(frames) > 1 and frames == list(range(frames[0], frames[0] + len(frames)))
    if is_numbered and steps is data:
        draft.guess("the keys number the prompts, and are no frames")
        draft.shots = [Shot(text, where=where.replace("frame", "key")) for _, _, text, where in items]
    else:
        draft.shots = timed(items, None if end is None else end / rate, draft)
    if len(items) > 1 and not told and not (is_numbered and steps is data):
        draft.guess(f"there are {rate:g} frames a second, as AnimateDiff has them; --fps says otherwise")
    used = ("prompt_map", "head_prompt", "tail_prompt", *FRAMES, "fps", "output")
    _settings(draft, {key: value for key, value in around.items() if key not in used}, ())
    one_prompt(draft)
    return draft


def _map_of(source: Source) -> Any:
    """Return a map that may lack its braces, as nodes for it have it."""
    text = source.text.strip()
    if _MAP.match(text) and not text.startswith("{"):
        try:
            return json.loads("{" + text.rstrip(", \n") + "}")
        except (ValueError, RecursionError) as error:
            raise NotThisError(f"it begins as a map of prompts by frames, but is none: {error}") from None
    data = source.data
    if isinstance(data, Mapping) and source.is_python:
        maps = [value for value in data.values() if isinstance(value, Mapping)]
        return maps[0] if len(maps) == 1 else data
    return data


def _frame(key: Any) -> int | None:
    text = str(key).strip()
    return int(text) if text.isdecimal() and len(text) < 10 else None


def _part(around: Mapping[str, Any], key: str, draft: Draft) -> str:
    value = around.get(key)
    return without_weights(value, draft, key) if isinstance(value, str) else ""


def _rate(around: Mapping[str, Any], fps: float | None) -> tuple[float, bool]:
    """Return the frames a second, and whether somebody said so."""
    output = around.get("output")
    said = [fps, around.get("fps"), output.get("fps") if isinstance(output, Mapping) else None]
    for rate in said:
        if isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate <= 1000:
            return float(rate), True
    return FPS, False
