"""From a plan to a film on disk: the life of a story, top to bottom.

torch and the model are loaded only when something is missing; a second run of a finished
story looks at hashes and is done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from storyreel import __version__, video
from storyreel.checkpoint import FilmFolder, digest, file_hash, replacing, write_atomically, writing
from storyreel.errors import MissingError
from storyreel.models.specs import ModelSpec
from storyreel.page import film_page
from storyreel.plan import WINDOW, Plan, Segment

if TYPE_CHECKING:
    from torch import Tensor

    from storyreel.models.base import Adapter


# Raise it when the same plan comes to give other pictures, in the same version.
RECIPE = 1


class Progress(Protocol):
    """What a render tells whoever shows it."""

    def started(self, plan: Plan, done: int, forwards: int) -> None:
        """Rendering begins; ``done`` segments are there, ``forwards`` passes are to come."""

    def forward(self) -> None:
        """One forward pass of the transformer is over."""

    def segment_finished(self, segment: Segment) -> None:
        """A segment is on disk."""


@dataclass(frozen=True)
class Rendered:
    """What a render left. ``rendered`` counts the segments that had to be made."""

    film: Path
    segments: int
    rendered: int
    seconds: float


@dataclass
class Engine:
    """The model, loaded when first needed and shared by all stories of one command."""

    device: str = "auto"

    def __post_init__(self) -> None:
        self._adapters: dict[str, Adapter] = {}

    def adapter(self, spec: ModelSpec) -> Adapter:
        """Return the loaded model."""
        if spec.name not in self._adapters:
            from storyreel.models.base import load_adapter, pick_device

            self._adapters[spec.name] = load_adapter(spec, pick_device(self.device))
        return self._adapters[spec.name]


def render(
    plan: Plan, name: str, out: Path, engine: Engine, progress: Progress, overwrite: bool = False
) -> Rendered:
    """Render what is missing of a film into ``out/name`` and join it.

    Raises StoryreelError of every kind; what was finished before stays.
    """
    began = time.monotonic()
    about = about_film(plan)
    keys = segment_keys(plan, about)
    with FilmFolder(out / name, name) as folder:
        done = {
            segment.index
            for segment in plan.segments
            if not overwrite and folder.is_complete(segment.number, keys[segment.index], engine.device)
        }
        missing = [w for w in plan.windows() if not done.issuperset(s.index for s in w)]
        made = len(plan.segments) - len(done)
        progress.started(plan, len(done), sum(len(w) for w in missing) * plan.settings.steps)
        folder.log("started", segments=len(plan.segments), done=len(done), version=__version__)
        try:
            if missing:
                folder.begin([plan.segments[index].number for index in sorted(done)])
                folder.write_manifest(about, about_scenes(plan))
                _render_windows(plan, about, keys, missing, done, folder, engine, progress)
            _join(plan, about, folder)
        except BaseException as error:
            folder.log("stopped", reason=type(error).__name__)
            raise
        seconds = time.monotonic() - began
        folder.log("finished", rendered=made, seconds=round(seconds, 3))
        return Rendered(folder.film_path, len(plan.segments), made, seconds)


def _render_windows(
    plan: Plan,
    about: dict[str, Any],
    keys: Sequence[str],
    windows: Sequence[tuple[Segment, ...]],
    done: set[int],
    folder: FilmFolder,
    engine: Engine,
    progress: Progress,
) -> None:
    """Denoise the windows, then decode and encode those of their segments that are missing."""
    from storyreel.sampling import denoise

    adapter = engine.adapter(plan.spec)
    device = adapter.device.type
    negative = adapter.encode("")
    stream = _FilmStream(plan, folder, adapter)
    for window in windows:
        began = time.monotonic()
        texts = [adapter.encode(segment.prompt) for segment in window]
        before = stream.latents(window[0].index - 1) if window[0].blended else None
        latents = denoise(adapter, plan, window, texts, negative, before, progress.forward)
        share = (time.monotonic() - began) / len(window)
        for segment, z in zip(window, latents, strict=True):
            if segment.index in done:
                continue
            began = time.monotonic()
            stream.write(segment, z)
            seconds = share + time.monotonic() - began
            key = keys[segment.index]
            folder.record_segment(segment.number, key, segment.frames, device, seconds)
            folder.write_manifest(about, about_scenes(plan))
            folder.log("segment", number=segment.number, seconds=round(seconds, 3))
            progress.segment_finished(segment)


class _FilmStream:
    """Decodes the film's latents as one stream and encodes it segment by segment."""

    def __init__(self, plan: Plan, folder: FilmFolder, adapter: Adapter) -> None:
        self._plan, self._folder, self._adapter = plan, folder, adapter
        self._decoder = adapter.decoder()
        self._next = 0  # the segment that the decoder's memory is ready for

    def latents(self, index: int) -> Tensor:
        """Return a finished segment's latents (1, C, lead + own, H, W)."""
        from safetensors.torch import load

        data = self._folder.latents(self._plan.segments[index].number).read_bytes()
        return load(data)["latents"].to(self._adapter.device)

    def write(self, segment: Segment, latents: Tensor) -> None:
        """Write a segment's latents and its film."""
        from safetensors.torch import save

        if not segment.blended:
            self._decoder = self._adapter.decoder()
        elif self._next != segment.index:
            self._warm_up(segment)
        spec, settings = self._plan.spec, self._plan.settings
        path = self._folder.video(segment.number)
        count = 0
        with (
            writing(path),
            replacing(path) as part,
            video.SegmentWriter(part, settings.width, settings.height, spec.fps, spec.upscale) as writer,
        ):
            for frames in self._pictures(segment, latents):
                writer.write(frames.numpy().tobytes())
                count += len(frames)
        if count != segment.frames:
            raise RuntimeError(f"scene {segment.number} has {count} frames, planned were {segment.frames}")
        data = save({"latents": latents.cpu().contiguous()}, {"lead": str(segment.lead)})
        with writing(path):
            write_atomically(self._folder.latents(segment.number), data)
        self._next = segment.index + 1

    def _pictures(self, segment: Segment, latents: Tensor) -> Iterator[Tensor]:
        """Yield a segment's own pictures; what its lead shows is the segment before, or nothing."""
        if not segment.blended:
            self._decoder.push(latents[:, :, : segment.lead])
        for latent in latents[:, :, segment.lead :].split(1, dim=2):
            yield self._decoder.push(latent)

    def _warm_up(self, segment: Segment) -> None:
        """Fill a new decoder's memory with the segments before, as if it had never stopped."""
        self._decoder = self._adapter.decoder()
        first, memory = segment.index, self._adapter.decoder_memory()
        while memory > 0 and self._plan.segments[first].blended:
            first -= 1
            memory -= self._plan.segments[first].latents
        for index in range(first, segment.index):
            latents = self.latents(index)
            lead = self._plan.segments[index].lead
            self._decoder.push(latents if index == first else latents[:, :, lead:])


def _join(plan: Plan, about: dict[str, Any], folder: FilmFolder) -> None:
    """Make the film of the segments, and the page and manifest around it, where they changed."""
    scenes = about_scenes(plan)
    files = [folder.records[segment.number].files for segment in plan.segments]
    tags = film_tags(plan)
    key = digest([files, scenes, tags])
    page = film_page(plan, folder.name, tags)
    if folder.film_is_complete(key) and folder.holds(folder.page_path, page):
        return
    with writing(folder.film_path):
        with replacing(folder.film_path) as part:
            segments = [folder.video(segment.number) for segment in plan.segments]
            video.join(segments, part, plan.spec.fps, film_chapters(plan), tags)
        write_atomically(folder.page_path, page)
    folder.film = {"file": folder.film_path.name, "key": key, "sha256": file_hash(folder.film_path)}
    folder.write_manifest(about, scenes)
    folder.remove_strangers([segment.number for segment in plan.segments])


def film_chapters(plan: Plan) -> list[video.Chapter]:
    """Return a chapter per scene: its scene prompt as title, both prompts as subtitle."""
    return [
        video.Chapter(s.start, s.start + s.frames, s.scene, f"{s.scene}\n{s.action}") for s in plan.segments
    ]


def film_tags(plan: Plan) -> dict[str, str]:
    """Return the tags that say where a film comes from. They hold no time and no path."""
    return {
        "title": plan.title,
        "comment": f"Generated by AI ({video.AI_GENERATED})",
        "storyreel_version": __version__,
        "storyreel_model": plan.spec.name,
        "storyreel_seed": str(plan.settings.seed),
        "storyreel_story_sha256": digest(plan.story),
        "storyreel_size": f"{plan.settings.width}x{plan.settings.height}",
        "storyreel_steps": str(plan.settings.steps),
        "storyreel_guidance": f"{plan.settings.guidance:g}",
    }


def about_scenes(plan: Plan) -> list[dict[str, Any]]:
    """Return every segment's plan as plain data."""
    return [{"number": s.number, **asdict(s)} for s in plan.segments]


def weight_hashes(spec: ModelSpec) -> dict[str, str]:
    """Return the SHA-256 of each file of a model. Raises MissingError if there are none."""
    files = sorted(p for p in spec.weights.rglob("*") if p.suffix in (".safetensors", ".json"))
    if not files:
        remedy = "Reinstall storyreel: pip install --force-reinstall storyreel"
        raise MissingError(f"the weights of model {spec.name} are missing", remedy)
    return {path.relative_to(spec.weights).as_posix(): file_hash(path) for path in files}


def versions() -> dict[str, str]:
    """Return the versions of what shapes a picture, without importing it."""
    packages = ("torch", "diffusers", "transformers", "tokenizers")
    installed = {name: metadata.version(name) for name in packages}
    return {"storyreel": __version__, **installed, "ffmpeg": video.encoder_version()}


def about_film(plan: Plan) -> dict[str, Any]:
    """Return what it takes to make the film again, as plain data."""
    return {
        "title": plan.title,
        "story": plan.story,
        "story_sha256": digest(plan.story),
        "model": {"name": plan.spec.name, "weights": weight_hashes(plan.spec)},
        "settings": asdict(plan.settings)
        | {"window": WINDOW, "fps": plan.spec.fps, "upscale": plan.spec.upscale},
        "frames": plan.frames,
        "seconds": plan.seconds,
        "recipe": RECIPE,
        "versions": versions(),
        "seams": [asdict(seam) for seam in plan.seams],
    }


def segment_keys(plan: Plan, about: dict[str, Any]) -> list[str]:
    """Return a key per segment that covers all that shapes it.

    That is its own part of the story, the segments it is denoised with, those it grows out of,
    the model and its weights, the settings, and the versions that compute it. The title, its
    place in the film, and everything that only decorates the film are no part of it. Nor is
    the device, which is recorded beside the key.
    """
    common = {part: about[part] for part in ("model", "settings", "recipe", "versions")}
    keys: list[str] = []
    for window in plan.windows():
        before = keys[-1] if window[0].blended else None
        scenes = [{k: v for k, v in asdict(segment).items() if k != "start"} for segment in window]
        shared = digest([common, scenes, before])
        keys += [digest([shared, segment.index]) for segment in window]
    return keys
