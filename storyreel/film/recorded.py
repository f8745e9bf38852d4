"""The plan of a film as its own manifest has it: reading a film back takes neither story nor model.

With it, the page of a complete film is written anew.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from storyreel.errors import StoryreelError
from storyreel.film.folder import FilmFolder
from storyreel.film.inventory import take_inventory
from storyreel.film.keys import film_key, film_keys, plan_facts
from storyreel.film.manifest import Manifest
from storyreel.film.page import film_page, write_page
from storyreel.film.sound import recorded_track
from storyreel.film.store import Store
from storyreel.method.settings import Method
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import LoraFile, RenderSettings, Story


def recorded_plan(manifest: Manifest, name: str) -> Plan | None:
    """Return what a manifest says was planned; None if no storyreel of now would plan that.

    So it is if the manifest is damaged, or the table of models is another one by now.
    """
    facts = manifest.facts
    try:
        settings: dict[str, Any] = facts["settings"]
        story = Story.model_validate(facts["story"])
        scenes = [
            scene.model_copy(
                update={
                    "seconds": segment["frames"] / settings["fps"],
                    "lora": [LoraFile.model_validate(lora) for lora in segment.get("loras", ())],
                }
            )
            for scene, segment in zip(story.scenes, manifest.segments, strict=True)
        ]
        method = RenderSettings(method=Method.model_validate(settings["method"]))
        overrides = Overrides(
            model=facts["model"]["name"],
            seed=settings["seed"],
            size=f"{settings['width']}x{settings['height']}",
            steps=settings["steps"],
            # Of two guidances, both are the model's own.
            guidance=settings["guidance"] if settings["guidance_2"] is None else None,
            negative=settings.get("negative", ""),
            shift=settings.get("shift"),
            speed=settings["speed"],
            quantize=settings["quantize"],
        )
        wanted = story.model_copy(update={"scenes": scenes, "render": method})
        pictures = {
            index: str(segment["picture"])
            for index, segment in enumerate(manifest.segments)
            if "picture" in segment
        }
        plan = make_plan(wanted, name, overrides, pictures=pictures)
        sound = recorded_track(facts["sound"]) if facts.get("sound") is not None else None
        plan = replace(plan, story=facts["story"], title=facts["title"], sound=sound)
        keys = film_keys(plan, facts)
        if [segment["key"] for segment in manifest.segments] != list(keys.latents):
            return None
        if manifest.video_keys != list(keys.video):
            return None
        if any(facts[part] != value for part, value in plan_facts(plan).items()):
            return None
        film_key(plan, facts, ())  # what else is asked of a manifest is there, too
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError):
        return None
    except (ValidationError, StoryreelError):  # no story, or one that this storyreel refuses
        return None
    return plan


def renew_page(path: Path) -> None:
    """Write the page of the film in a folder anew, for what lies beside it by now.

    Nothing happens where there is no complete film, where its manifest is damaged or of another version,
    where a process renders into the folder, and where the page cannot be written: it can wait.
    """
    if not (path / "manifest.json").is_file():
        return
    with suppress(StoryreelError, OSError), FilmFolder(path, path.resolve().name) as folder:
        folder.take_recorded_name()
        present = folder.present
        plan = recorded_plan(present, folder.name) if present and present.film else None
        if present is None or plan is None or not folder.page_path.is_file():
            return
        inventory = take_inventory(plan, present.facts, Store(folder.segments).record)
        if not inventory.missing:
            write_page(folder, film_page(folder, inventory, present.film))
