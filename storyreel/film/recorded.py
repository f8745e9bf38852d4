"""The plan of a film as its own manifest has it: reading a film back takes neither story nor model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from storyreel.errors import StoryreelError
from storyreel.film.keys import film_key, film_keys, plan_facts
from storyreel.film.manifest import Manifest
from storyreel.film.sound import recorded_track
from storyreel.method.settings import Method
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import RenderSettings, Story


def recorded_plan(manifest: Manifest, name: str) -> Plan | None:
    """Return what a manifest says was planned; None if no storyreel of now would plan that.

    So it is if the manifest is damaged, or the table of models is another one by now.
    """
    facts = manifest.facts
    try:
        settings: dict[str, Any] = facts["settings"]
        story = Story.model_validate(facts["story"])
        scenes = [
            scene.model_copy(update={"seconds": segment["frames"] / settings["fps"]})
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
            speed=settings["speed"],
            quantize=settings["quantize"],
        )
        plan = make_plan(story.model_copy(update={"scenes": scenes, "render": method}), name, overrides)
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
