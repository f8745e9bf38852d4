"""Stories of benchmarks: StoryMem's ST-Bench and EntityBench, ViStoryBench, ViMax, and HoloCine's shots."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from storyreel.errors import FormatError
from storyreel.story.importing.draft import Draft, Shot, one_prompt
from storyreel.story.importing.members import Member
from storyreel.story.importing.source import NotThisError, Source


def read_storymem(source: Source, fps: float | None) -> Draft:
    """Read shots with a video prompt, cut or going on, and with an action beside it where there is one."""
    data = _mapping(source)
    scenes = data.get("scenes")
    if not _are_mappings(scenes) or not any("video_prompts" in scene for scene in scenes):
        raise NotThisError("it has no scenes with video_prompts")
    draft = Draft([], _text(data.get("story_name")))
    overview = _text(data.get("story_overview"))
    draft.remarks += [overview] if overview else []
    entities = _entities(data)
    draft.cast = [Member(name, text) for kind, name, text in entities.values() if kind == "character"]
    schedule = data.get("entity_schedule")
    schedule = schedule if isinstance(schedule, Mapping) else {}
    for index, scene in enumerate(scenes):
        where = f"scenes[{index}]"
        prompts = _texts(scene.get("video_prompts"), source, f"{where}.video_prompts")
        actions = _texts(scene.get("action_descriptions", []), source, f"{where}.action_descriptions")
        cuts = scene.get("cut", [])
        cuts = cuts if isinstance(cuts, list) else [cuts]
        if actions and len(actions) != len(prompts):
            draft.leave_out("action_descriptions that are not one a prompt", where)
            actions = []
        if len(cuts) > len(prompts):
            draft.leave_out("cuts without a prompt", where)
        for at, prompt in enumerate(prompts):
            shot = Shot(prompt, actions[at] if actions else "", f"{where}.video_prompts[{at}]")
            here = schedule.get(f"{scene.get('scene_num', index + 1)}:{at + 1}")
            shot.who = _names(here.get("characters")) if isinstance(here, Mapping) else []
            if shot.action and isinstance(here, Mapping):
                shot.scene = _setting(here, entities)
            elif shot.action and prompt.rstrip().endswith(shot.action.strip()):
                shot.scene = prompt.rstrip().removesuffix(shot.action.strip()).strip()
            cut = _flag(cuts[at]) if at < len(cuts) else None
            if at < len(cuts) and cut is None:
                draft.leave_out(
                    f"a cut that is neither true nor false, {cuts[at]!r:.40}", f"{where}.cut[{at}]"
                )
            shot.transition = None if cut is None else "cut" if cut else "continue"
            draft.shots.append(shot)
        _unused(draft, scene, ("scene_num", "video_prompts", "action_descriptions", "cut"), where)
    known = ("story_name", "story_overview", "scenes", "entity_schedule", "entity_descriptions")
    _unused(draft, data, (*known, *(key for key in data if key.startswith("_"))), "")
    if schedule:
        draft.guess("a scene prompt is the place of the shot and its things, as entity_schedule has them")
    one_prompt(draft)
    return draft


def shot_numbers(path: Path) -> list[tuple[int, int]]:
    """Return (scene, shot) of every shot of StoryMem's, EntityBench's or ViStoryBench's JSON, in its order.

    ViStoryBench knows shots alone; all are of scene 1. Raises FormatError for what is neither, or OSError.
    """
    wrong = FormatError(
        f"{path} is no script of StoryMem, EntityBench or ViStoryBench", "Name one of their JSON files."
    )
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise wrong from None
    if not isinstance(data, Mapping):
        raise wrong
    found: list[tuple[Any, Any]] = []
    scenes, shots = data.get("scenes"), data.get("Shots")
    if _are_mappings(scenes) and any("video_prompts" in scene for scene in scenes):
        for index, scene in enumerate(scenes):
            prompts = scene.get("video_prompts")
            count = len(prompts) if isinstance(prompts, list) else 0
            found += [(scene.get("scene_num", index + 1), at + 1) for at in range(count)]
    elif _are_mappings(shots):
        found = [(1, shot.get("index", at + 1)) for at, shot in enumerate(shots)]
    if not found or not all(isinstance(number, int) and number >= 0 for pair in found for number in pair):
        raise wrong
    return found


def _entities(data: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Return whoever and whatever EntityBench describes, by name: kind, name and description."""
    schedule, told = data.get("entity_schedule"), data.get("entity_descriptions")
    if not isinstance(told, Mapping):
        return {}
    shots = (
        [shot for shot in schedule.values() if isinstance(shot, Mapping)]
        if isinstance(schedule, Mapping)
        else []
    )
    people = {who for shot in shots for who in _names(shot.get("characters"))}
    found = {}
    for label, one in told.items():
        if not isinstance(one, Mapping) or not (name := _text(one.get("name"))):
            continue
        is_character = name in people or label.lower().startswith("character")
        found[name] = ("character" if is_character else "thing", name, _text(one.get("description")))
    return found


def _setting(here: Mapping[str, Any], entities: Mapping[str, tuple[str, str, str]]) -> str:
    """Return the place of a shot, and the things in it, with their looks."""
    names = [*_names(here.get("places")), *_names(here.get("objects"))]
    told = []
    for name in names:
        looks = entities[name][2].rstrip(". ") if name in entities else ""
        told.append(f"{name}: {looks[:1].lower()}{looks[1:]}" if looks else name)
    return "; ".join(told)


def read_vistory(source: Source, fps: float | None) -> Draft:
    """Read shots with a setting and a still picture in words."""
    data = _mapping(source)
    shots = data.get("Shots")
    if not _are_mappings(shots) or not any("Static Shot Description" in shot for shot in shots):
        raise NotThisError("it has no Shots with a Static Shot Description")
    draft = Draft([])
    people = data.get("Characters")
    for key, who in people.items() if isinstance(people, Mapping) else ():
        if isinstance(who, Mapping):
            name = _text(who.get("name_en")) or str(key)
            draft.cast.append(Member(name, _text(who.get("prompt_en")) or _text(who.get("prompt_ch"))))
    used = ("index", "Setting Description", "Static Shot Description", "Characters Appearing")
    for index, shot in enumerate(shots):
        where = f"Shots[{index}]"
        setting = _in_english(shot.get("Setting Description"), draft, where)
        still = _in_english(shot.get("Static Shot Description"), draft, where)
        appearing = shot.get("Characters Appearing")
        names = _names(appearing.get("en") if isinstance(appearing, Mapping) else appearing)
        draft.shots.append(Shot(setting, still, where, who=names))
        for key in ("Plot Correspondence", "Shot Perspective Design"):
            if text := _in_english(shot.get(key), draft, where):
                draft.shots[-1].remarks.append(f"{key.split()[0 if 'Plot' in key else 1].lower()}: {text}")
                draft.leave_out(f"{key} (kept as a comment)", where)
        _unused(draft, shot, (*used, "Plot Correspondence", "Shot Perspective Design"), where)
    _unused(draft, data, ("Characters", "Shots"), "")
    draft.guess("what a still picture shows is taken for the action")
    return draft


def _in_english(value: Any, draft: Draft, where: str) -> str:
    """Return a text of which there may be several languages: the English one, else the first."""
    if not isinstance(value, Mapping):
        return _text(value)
    others = [key for key in value if key != "en"]
    if text := _text(value.get("en")):
        if others:
            draft.leave_out(f"texts in other languages: {', '.join(map(str, others))}", "")
        return text
    return next((text for key in others if (text := _text(value[key]))), "")


def read_vimax(source: Source, fps: float | None) -> Draft:
    """Read scenes of shots with a first frame and a video prompt."""
    data = _mapping(source)
    scenes = data.get("scenes")
    if not _are_mappings(scenes) or not any(_are_mappings(scene.get("shots")) for scene in scenes):
        raise NotThisError("it has no scenes with shots")
    draft = Draft([])
    overview = _text(data.get("story_overview"))
    draft.remarks += [overview] if overview else []
    for index, scene in enumerate(scenes):
        shots = scene.get("shots")
        for at, shot in enumerate(shots if _are_mappings(shots) else ()):
            where = f"scenes[{index}].shots[{at}]"
            first, prompt = _text(shot.get("first_frame")), _text(shot.get("video_prompt"))
            draft.shots.append(Shot(first, prompt, where, transition="cut"))
            _unused(draft, shot, ("shot_id", "first_frame", "video_prompt"), where)
        _unused(draft, scene, ("scene_num", "shots"), f"scenes[{index}]")
    _unused(draft, data, ("story_overview", "scenes"), "")
    draft.guess("a shot begins with a cut, since each is a clip of its own in the source")
    one_prompt(draft)
    return draft


def read_holocine(source: Source, fps: float | None) -> Draft:
    """Read a caption of the whole and one of every shot."""
    data = _mapping(source)
    shots = data.get("shot_captions")
    if not isinstance(shots, list) or not all(isinstance(shot, str) for shot in shots):
        raise NotThisError("it has no shot_captions")
    whole = _text(data.get("global_caption"))
    draft = Draft(
        [Shot(whole, shot, f"shot_captions[{at}]", transition="cut") for at, shot in enumerate(shots)]
    )
    _unused(draft, data, ("global_caption", "shot_captions"), "")
    if whole:
        draft.guess("the caption of the whole is every scene's scene prompt")
    draft.guess("a shot begins with a cut")
    return draft


def _mapping(source: Source) -> Mapping[str, Any]:
    data = source.data
    if isinstance(data, Mapping):
        return data
    raise NotThisError("it holds no mapping of keys")


def _are_mappings(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)


def _names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _texts(value: Any, source: Source, where: str) -> list[str]:
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return value
    raise FormatError(f"{source.path}: {where} is no list of texts", "Correct that, and try again.")


def _flag(value: Any) -> bool | None:
    """Return what a flag says, which some files have as a word; None if it says nothing."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def _unused(draft: Draft, data: Mapping[str, Any], used: Collection[str], where: str) -> None:
    """Say which keys of a mapping have no place in a story."""
    for key in data:
        if key not in used:
            draft.leave_out(str(key)[:60], where)
