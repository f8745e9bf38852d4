"""The facts of a film, which say what it is made from, and the keys that cover them.

A segment's key covers all that shapes it: its plan and the seam before it, the segments that stand in its
lead, the model, its facts and its weights, the settings, the versions that compute it, the kind of device,
and storyreel's own recipe. Title, place in the film and
what else only decorates the film are no part of it; nor is storyreel's version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from storyreel import __version__
from storyreel.errors import DamagedError, MissingError
from storyreel.files import digest
from storyreel.film import ffmpeg
from storyreel.film.cards import drawn_by
from storyreel.film.dissolve import GREY, begins_with
from storyreel.film.hashes import RememberedHashes
from storyreel.film.provenance import xmp_packet
from storyreel.film.recipe import fingerprints, plugin_sources, recipe_of
from storyreel.film.sound import track_facts
from storyreel.film.writer import Chapter
from storyreel.models.inventory import weight_files
from storyreel.models.lora import Lora
from storyreel.models.specs import ModelSpec
from storyreel.story.plan import Card, Plan, Segment
from storyreel.story.sounds import Soundtrack

# Facts of a model that shape none of its pictures, or are said elsewhere: in settings or in scenes.
NO_FACTS = {
    *("name", "title", "licence", "weights", "hub", "revision", "judge", "strangeness"),
    *("vocabulary", "gallery"),
    *("loras", "authors_names"),  # of LoRAs the files are hashed
    "components",  # those that are read are among the weights
    *("size_multiple", "min_size", "max_size", "size", "seconds", "steps", "guidance", "guidance_2"),
    *("guidance_rescale", "negative", "shifts", "further"),
    *("quantize", "weighting", "emphasis", "portraits", "identity_weight", "fps", "upscale"),
    *("architecture", "vae_architecture", "boundary_ratio"),  # of random weights
    *("seconds_per_forward", "memory_mb", "memory_gb", "needs", "measured_on"),
    *("territory", "added"),  # what is added are files, and counts as those do
}
# Facts that came later: films of models without them are what they were.
LATER = {"levels": "even", "pictures": False, "sound": None, "sigmas": (), "renoises": False, "unread": ()}
OF_PICTURES = ("fps", "upscale")  # settings that no latents depend on
ENCODER = "ffmpeg"
AI_GENERATED = "https://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
MIXING = ("storyreel.film.audio", "storyreel.film.mix", "storyreel.film.sound")  # what mixes sounds
# Kinds of what computes; the first where nothing else is known. A GPU that multiplies what is stored in fp8
# makes another film than one that casts it back.
CUDA_FP8 = "cuda with fp8 arithmetic"
DEVICES = ("cpu", "cuda", CUDA_FP8)


@dataclass(frozen=True)
class Keys:
    """The keys of a film's segments, by their index: of their latents, and of their videos.

    ``first_takes`` are those of the latents of all first takes, also of those that are not shown.
    """

    latents: tuple[str, ...]
    video: tuple[str, ...]
    first_takes: tuple[str, ...]

    def of(self, segment: Segment) -> str:
        """Return the key of the latents of a segment, whichever take it is."""
        return (self.first_takes if segment.take == 1 else self.latents)[segment.index]


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
    return {"storyreel": __version__, **installed, ENCODER: ffmpeg.version()}


def further_versions(spec: ModelSpec) -> dict[str, str]:
    """Return the versions of what a model needs beside that; "none" of what is not here.

    diffusers goes without, and makes another film.
    """
    found = {}
    for name in spec.further:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def lora_hashes(loras: Iterable[Lora]) -> dict[str, str]:
    """Return the SHA-256 of each file of some LoRAs, by its name. Raises MissingError."""
    paths = {lora.path.name: lora.path for lora in loras}
    try:
        hashes = RememberedHashes().of(paths.values())
    except OSError as error:
        remedy = "Name the file of a LoRA, or leave it out."
        raise MissingError(f"{error.filename} cannot be read: {error.strerror}", remedy) from error
    return {name: hashes[path] for name, path in paths.items()}


def check_loras(segment: Segment, facts: Mapping[str, Any]) -> None:
    """Raise DamagedError if a file that was merged for a segment is not that of the ``facts`` any more."""
    for name, sha256 in lora_hashes(segment.loras).items():
        if sha256 != facts.get("loras", {}).get(name):
            remedy = "Run the same command again: what was made with the file as it was is kept."
            raise DamagedError(f"{name} has changed while it was used", remedy)


def ingredients(spec: ModelSpec) -> dict[str, Any]:
    """Return what all films of a model are made from, as plain data. Raises MissingError."""
    own = {name: value for name, value in asdict(spec).items() if name not in NO_FACTS}
    known = {name: value for name, value in own.items() if name not in LATER or value != LATER[name]}
    facts = {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}
    model: dict[str, Any] = {"name": spec.name, "facts": facts, "weights": weight_hashes(spec)}
    if spec.loras:
        hashes = lora_hashes(spec.loras)
        model["loras"] = [lora.facts | {"sha256": hashes[lora.path.name]} for lora in spec.loras]
    made_by = versions() | further_versions(spec)
    return {"model": model, "versions": made_by, "recipe": asdict(recipe_of(spec.adapter))}


def plan_facts(plan: Plan) -> dict[str, Any]:
    """Return what is planned of a film as a whole, as plain data."""
    cards = {"cards": [asdict(card) for card in plan.cards]} if plan.cards else {}
    return cards | {
        "title": plan.title,
        "story": plan.story,
        "story_sha256": digest(plan.story),
        "settings": plan.settings.facts
        | {"quantize": plan.spec.quantize}
        | {"fps": plan.spec.fps, "upscale": plan.spec.upscale},
        "frames": plan.frames,
        "seconds": plan.seconds,
    }


def film_facts(plan: Plan, of_model: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Return what it takes to make the film again, as plain data.

    ``of_model`` are the `ingredients` of its model, ``device`` is the kind that computes it, of `DEVICES`.
    """
    drawn: dict[str, Any] = {"drawn_by": drawn_by(plan)} if plan.cards else {}
    if any(segment.picture for segment in plan.segments):  # which is scaled, and has its colours converted
        drawn["pictures_by"] = f"pillow {metadata.version('pillow')}"
    facts = plan_facts(plan) | dict(of_model) | {"device": device} | drawn | plugin_facts(plan)
    facts |= {"loras": lora_hashes(plan.loras)} if plan.loras else {}
    return facts | {"sound": sound_facts(plan.sound)} if plan.sound else facts


def plugin_facts(plan: Plan) -> dict[str, Any]:
    """Return the plugins that shape a film, each with its source, as plain data; nothing without any."""
    used = plan.settings.method.plugged.values()
    named = {
        f"{plugin.kind}.{plugin.name}": {"place": plugin.place, "sources": plugin_sources(plugin.module)}
        for plugin in used
    }
    return {"plugins": named} if named else {}


def sound_facts(track: Soundtrack) -> dict[str, Any]:
    """Return what a film's sound is made from, with the source of what mixes it. No segment depends on it."""
    return track_facts(track) | {"recipe": fingerprints(MIXING)}


def scene_facts(plan: Plan) -> list[dict[str, Any]]:
    """Return every segment's plan as plain data; what a render decides is in the segments' records."""
    return [
        {"number": s.number, **{key: value for key, value in _plain(s).items() if key != "lead"}}
        for s in plan.segments
    ]


def film_keys(plan: Plan, facts: Mapping[str, Any]) -> Keys:
    """Return the keys of all segments, from the plan as it was made and the film's `film_facts`."""
    shared = digest(_shared(facts) | {"device": facts["device"]})
    hashes, first_takes = facts.get("loras", {}), list[str]()

    def key(segment: Segment) -> str:
        sources = [first_takes[source] for source in plan.sources(segment)]
        loras = [[lora.weight, lora.experts, hashes[lora.path.name]] for lora in segment.loras]
        used = [*([facts["pictures_by"]] if segment.picture else []), *([loras] if loras else [])]
        return digest([shared, _segment_digest(plan, segment), sources, *used])

    for segment in plan.first_takes:
        first_takes.append(key(segment))  # the next one's key may need it
    latents = [first_takes[s.index] if s.take == 1 else key(s) for s in plan.segments]
    of_pictures = {name: facts["settings"][name] for name in OF_PICTURES}
    pictures = digest([of_pictures, facts["recipe"]["pictures"], facts["versions"].get(ENCODER)])
    shown: list[list[str]] = [[own] for own in latents]
    for seam in plan.seams:
        shows_both = seam.transition == "dissolve" and seam.strength
        if shows_both and not plan.has_card_before(plan.segments[seam.after]):
            shown[seam.after - 1].append(latents[seam.after])
            shown[seam.after].append(latents[seam.after - 1])
    for segment in plan.segments:  # a fade changes what either side shows, whatever the other is
        if (transition := begins_with(plan, segment)) in GREY:
            shown[segment.index].append(f"from {transition}")
            if segment.index:
                shown[segment.index - 1].append(f"to {transition}")
    return Keys(tuple(latents), tuple(digest([pictures, *parts]) for parts in shown), tuple(first_takes))


def _shared(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a film's facts shapes the latents of all segments, but for the device."""
    elsewhere = (*OF_PICTURES, "seed")  # the film's seed is in every segment's own
    return {
        "model": facts["model"],
        "settings": {k: v for k, v in facts["settings"].items() if k not in elsewhere},
        "recipe": facts["recipe"]["latents"],
        "versions": {k: v for k, v in facts["versions"].items() if k not in ("storyreel", ENCODER)},
        **({"plugins": facts["plugins"]} if "plugins" in facts else {}),
    }


def settings_digest(facts: Mapping[str, Any]) -> str | None:
    """Return a digest of how a film is made, whatever its scenes are; None if the facts are damaged."""
    try:
        return digest([_shared(facts), facts["device"], facts["settings"]["seed"]])
    except (KeyError, TypeError, AttributeError):
        return None


def _segment_digest(plan: Plan, segment: Segment) -> str:
    """Return a digest of all that is planned of a segment, and of how it is blended with its neighbours.

    What the seam before it decides alone, its lead, is left out, and so is its place in the film. Another
    take is made to fit the scene after it too.
    """
    own = {name: value for name, value in own_facts(segment).items() if name != "loras"}
    seams = [plan.seam(segment) if segment.blended else None]
    if segment.take > 1:
        following = [seam for seam in plan.seams[segment.index : segment.index + 1] if seam.overlap]
        seams += following
        # How many latent frames are shared follows from both actions, where it may vary.
        own["before"] = [plan.first_takes[seam.after].phrase for seam in following if seam.overlap > 1]
    return digest(
        [own, *({k: v for k, v in asdict(s).items() if k != "after"} if s else None for s in seams)]
    )


def own_facts(segment: Segment) -> dict[str, Any]:
    """Return what is planned of a segment, but for its place in the film and for its lead."""
    return {name: value for name, value in _plain(segment).items() if name not in ("index", "start", "lead")}


def _plain(segment: Segment) -> dict[str, Any]:
    """Return a segment as plain data; what came later is there where it is used alone."""
    facts = asdict(segment) | {"loras": [lora.facts for lora in segment.loras]}
    return {name: value for name, value in facts.items() if value or name not in ("loras", "picture")}


def film_chapters(plan: Plan) -> list[Chapter]:
    """Return a chapter per scene: its scene prompt as title, both prompts as subtitle; per card, its text."""
    chapters = []
    for part in plan.parts():
        title, text = (
            (" ".join(part.text.split()), "\n".join(filter(None, part.text.splitlines())))
            if isinstance(part, Card)
            else (part.scene, "\n".join(dict.fromkeys([part.scene, part.action])))
        )
        chapters.append(Chapter(part.start, part.start + part.frames, title, text))
    return chapters


def film_tags(plan: Plan, version: str = __version__) -> dict[str, str]:
    """Return the tags that say where a film comes from. They hold no time and no path.

    ``version`` is that of the storyreel that joined it.
    """
    tags = {
        "title": plan.title,
        "comment": f"Generated by AI ({AI_GENERATED})",
        "storyreel_version": version,
        "storyreel_model": plan.spec.name,
        "storyreel_seed": str(plan.settings.seed),
        "storyreel_story_sha256": digest(plan.story),
        "storyreel_size": f"{plan.settings.width}x{plan.settings.height}",
        "storyreel_steps": str(plan.settings.steps),
        "storyreel_guidance": plan.settings.guidance_words,
    }
    if plan.sound and (voice := plan.sound.voice):
        tags["storyreel_voice"] = f"{voice.package} {voice.version} {voice.speaker}"
    return tags


def film_xmp(plan: Plan, version: str = __version__) -> bytes:
    """Return the XMP of a film: that it is generated, and by what from which prompts, a line a scene.

    ``version`` is that of the storyreel that joined it.
    """
    prompts = [" / ".join(dict.fromkeys([s.scene, s.action])) for s in plan.segments]
    return xmp_packet(plan.title, plan.spec.label, prompts, version)


def film_key(plan: Plan, facts: Mapping[str, Any], videos: Sequence[str]) -> str:
    """Return a key that covers all that makes a film of its segments' videos, given as SHA-256.

    storyreel's version is in tags and XMP, and no part of the key: another one joins nothing again. Nor is
    a signature. What is heard is a part of it, by the hashes of its files.
    """
    chapters = [asdict(chapter) for chapter in film_chapters(plan)]
    made_by = [facts["recipe"]["pictures"], facts["versions"].get(ENCODER)]
    says = [film_tags(plan, version=""), film_xmp(plan, version="").decode()]
    heard = [facts["sound"]] if plan.sound else []
    heard += [fingerprints(MIXING)] if plan.spec.sound else []  # the sounds themselves are in the videos
    cards = [[asdict(card) for card in plan.cards], facts["drawn_by"]] if plan.cards else []
    return digest([videos, chapters, says, made_by, *heard, *cards])
