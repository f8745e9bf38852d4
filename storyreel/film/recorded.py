"""The plan of a film as its own manifest has it: reading a film back takes neither story nor model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from storyreel.errors import StoryreelError
from storyreel.film.keys import Keys, about_plan, film_key
from storyreel.film.manifest import Manifest
from storyreel.method.settings import Method
from storyreel.story.plan import Overrides, Plan, make_plan
from storyreel.story.schema import RenderSettings, Story


def recorded_plan(manifest: Manifest, name: str) -> tuple[Plan, Keys] | None:
    """Return what a manifest says was planned, with its keys; None if no storyreel of now would plan that.

    So it is if the manifest is damaged, or the table of models is another one by now.
    """
    about = manifest.about
    try:
        settings: dict[str, Any] = about["settings"]
        story = Story.model_validate(about["story"])
        scenes = [
            scene.model_copy(update={"seconds": segment["frames"] / settings["fps"]})
            for scene, segment in zip(story.scenes, manifest.segments, strict=True)
        ]
        method = RenderSettings(method=Method.model_validate(settings["method"]))
        overrides = Overrides(
            model=about["model"]["name"],
            seed=settings["seed"],
            size=f"{settings['width']}x{settings['height']}",
            steps=settings["steps"],
            # Of two guidances, both are the model's own.
            guidance=settings["guidance"] if settings["guidance_2"] is None else None,
            speed=settings["speed"],
            quantize=settings["quantize"],
        )
        plan = make_plan(story.model_copy(update={"scenes": scenes, "render": method}), name, overrides)
        plan = replace(plan, story=about["story"], title=about["title"])
        keys = [(segment["key"], segment["video_key"]) for segment in manifest.segments]
        if not all(isinstance(key, str) for pair in keys for key in pair):
            return None
        if any(about[part] != value for part, value in about_plan(plan).items()):
            return None
        film_key(plan, about, ())  # what else is asked of a manifest is there, too
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError):
        return None
    except (ValidationError, StoryreelError):  # no story, or one that this storyreel refuses
        return None
    return plan, Keys(tuple(key for key, _ in keys), tuple(key for _, key in keys))
