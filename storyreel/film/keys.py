"""What a film is made from, the keys that cover it, and in words how two films differ.

A segment's key covers all that shapes it: its own part of the story, the segments it is denoised with,
those it grows out of or remembers, the model, its facts and its weights, the settings, the versions
that compute it, the kind of device, and storyreel's own recipe. Title, place in the film and what else only
decorates the film are no part of it; nor is storyreel's version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from storyreel import __version__
from storyreel.errors import DamagedError
from storyreel.files import digest
from storyreel.film import video
from storyreel.film.hashes import RememberedHashes
from storyreel.film.recipe import recipe_of
from storyreel.models.inventory import weight_files
from storyreel.models.specs import ModelSpec
from storyreel.story.plan import Plan

# Facts of a model that shape none of its pictures, or are said elsewhere: in settings or in scenes.
NO_FACTS = {
    *("name", "title", "licence", "weights", "hub", "revision", "judge", "strangeness"),
    "components",  # those that are read are among the weights
    *("size_multiple", "min_size", "max_size", "size", "seconds", "steps", "guidance", "guidance_2"),
    *("quantize", "weighting", "fps", "upscale"),
    *("architecture", "vae_architecture", "boundary_ratio"),  # of random weights
    *("seconds_per_forward", "memory_mb", "memory_gb", "measured_on"),
}
OF_PICTURES = ("fps", "upscale")  # settings that no latents depend on
ENCODER = "ffmpeg"
DEVICES = ("cpu", "cuda")  # kinds of what computes; the first where nothing else is known


@dataclass(frozen=True)
class Keys:
    """The keys of a film's segments: of their latents, and of their pictures."""

    latents: tuple[str, ...]
    video: tuple[str, ...]


def weight_hashes(spec: ModelSpec) -> dict[str, str]:
    """Return the SHA-256 of each file of a model. Raises MissingError or DamagedError."""
    files = weight_files(spec)
    try:
        hashes = RememberedHashes().of(files)
    except OSError as error:
        raise DamagedError(f"{error.filename} cannot be read: {error.strerror}", spec.remedy) from error
    return {path.relative_to(spec.weights).as_posix(): value for path, value in hashes.items()}


def versions() -> dict[str, str]:
    """Return the versions of what shapes a picture, without importing it, and storyreel's own."""
    packages = ("torch", "diffusers", "transformers", "tokenizers")
    installed = {name: metadata.version(name) for name in packages}
    return {"storyreel": __version__, **installed, ENCODER: video.encoder_version()}


def ingredients(spec: ModelSpec) -> dict[str, Any]:
    """Return what all films of a model are made from, as plain data. Raises MissingError."""
    facts = {name: value for name, value in asdict(spec).items() if name not in NO_FACTS}
    model = {"name": spec.name, "facts": facts, "weights": weight_hashes(spec)}
    return {"model": model, "versions": versions(), "recipe": asdict(recipe_of(spec.adapter))}


def about_plan(plan: Plan) -> dict[str, Any]:
    """Return what a film is to be, as plain data."""
    return {
        "title": plan.title,
        "story": plan.story,
        "story_sha256": digest(plan.story),
        "settings": asdict(plan.settings)
        | {"method": plan.settings.method.model_dump(), "quantize": plan.spec.quantize}
        | {"fps": plan.spec.fps, "upscale": plan.spec.upscale},
        "frames": plan.frames,
        "seconds": plan.seconds,
    }


def about_film(plan: Plan, made_of: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Return what it takes to make the film again, as plain data.

    ``made_of`` are the `ingredients` of its model, ``device`` is the kind of what computes it: cpu or cuda.
    """
    return about_plan(plan) | dict(made_of) | {"device": device}


def about_scenes(plan: Plan) -> list[dict[str, Any]]:
    """Return every segment's plan as plain data; what a render decides is in its records."""
    return [
        {"number": s.number, **{key: value for key, value in asdict(s).items() if key != "lead"}}
        for s in plan.segments
    ]


def film_keys(plan: Plan, about: Mapping[str, Any]) -> Keys:
    """Return the keys of all segments."""
    common = {part: about[part] for part in ("model", "device")}
    common["settings"] = {k: v for k, v in about["settings"].items() if k not in OF_PICTURES}
    common["recipe"] = about["recipe"]["latents"]
    common["versions"] = {k: v for k, v in about["versions"].items() if k not in ("storyreel", ENCODER)}
    shared = digest(common)
    scenes = [
        digest({k: v for k, v in asdict(s).items() if k not in ("start", "lead")}) for s in plan.segments
    ]
    latents: list[str] = []
    for run in plan.runs():
        before = None
        for position in range(len(run)):
            together = run[position : position + plan.settings.method.window]
            remembered = [latents[index] for s in together for index in plan.anchors(s)]
            before = digest([shared, [scenes[s.index] for s in together], before, remembered])
            latents.append(before)
    of_pictures = {name: about["settings"][name] for name in OF_PICTURES}
    pictures = digest([of_pictures, about["recipe"]["pictures"], about["versions"].get(ENCODER)])
    following = [[latents[s.index]] if s.blended else [] for s in plan.segments[1:]]
    of_video = (digest([pictures, own, shown]) for own, shown in zip(latents, [*following, []], strict=True))
    return Keys(tuple(latents), tuple(of_video))


def film_chapters(plan: Plan) -> list[video.Chapter]:
    """Return a chapter per scene: its scene prompt as title, both prompts as subtitle."""
    return [
        video.Chapter(s.start, s.start + s.frames, s.scene, "\n".join(dict.fromkeys([s.scene, s.action])))
        for s in plan.segments
    ]


def film_tags(plan: Plan, version: str = __version__) -> dict[str, str]:
    """Return the tags that say where a film comes from. They hold no time and no path.

    ``version`` is that of the storyreel that joined it.
    """
    return {
        "title": plan.title,
        "comment": f"Generated by AI ({video.AI_GENERATED})",
        "storyreel_version": version,
        "storyreel_model": plan.spec.name,
        "storyreel_seed": str(plan.settings.seed),
        "storyreel_story_sha256": digest(plan.story),
        "storyreel_size": f"{plan.settings.width}x{plan.settings.height}",
        "storyreel_steps": str(plan.settings.steps),
        "storyreel_guidance": plan.settings.guidance_words,
    }


def film_key(plan: Plan, about: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """Return a key that covers all that makes a film of its segments' pictures, given as SHA-256.

    storyreel's version is in the tags, and no part of the key: another one joins nothing again.
    """
    chapters = [asdict(chapter) for chapter in film_chapters(plan)]
    made_by = [about["recipe"]["pictures"], about["versions"].get(ENCODER)]
    return digest([pictures, chapters, film_tags(plan, version=""), made_by])
