"""From a plan to a film on disk: the life of a story, top to bottom.

torch and the model are loaded only when something is missing; a second run of a finished
story looks at hashes and is done.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
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

    from storyreel.models.base import Adapter, Text


class Progress(Protocol):
    """What a render tells whoever shows it."""

    def started(self, plan: Plan, done: int) -> None:
        """Rendering begins; ``done`` segments are there from before."""

    def forward(self) -> None:
        """One forward pass of the transformer is over."""

    def segment_finished(self, segment: Segment) -> None:
        """A segment is on disk."""

    def note(self, text: str) -> None:
        """Something worth a line."""


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
    keys = segment_keys(plan, about, engine.device)
    with FilmFolder(out / name, name) as folder:
        if overwrite:
            folder.records, folder.film = {}, {}
        done = {s.index for s in plan.segments if folder.is_complete(s.number, keys[s.index])}
        progress.started(plan, len(done))
        folder.log("started", segments=len(plan.segments), done=len(done), version=__version__)
        if len(done) < len(plan.segments):
            _render_segments(plan, about, keys, done, folder, engine, progress)
        _join(plan, about, folder)
        seconds = time.monotonic() - began
        made = len(plan.segments) - len(done)
        folder.log("finished", rendered=made, seconds=round(seconds, 3))
        return Rendered(folder.film_path, len(plan.segments), made, seconds)


def _render_segments(
    plan: Plan,
    about: dict[str, Any],
    keys: Sequence[str],
    done: set[int],
    folder: FilmFolder,
    engine: Engine,
    progress: Progress,
) -> None:
    """Denoise, decode and encode every window that is not complete."""
    from storyreel.sampling import denoise

    adapter = engine.adapter(plan.spec)
    negative = adapter.encode("")
    # All prompts are read before the first step, so that a bad one costs no work.
    texts: list[Text] = [adapter.encode(segment.prompt) for segment in plan.segments]
    stream = _FilmStream(plan, folder, adapter)
    for window in plan.windows():
        if all(segment.index in done for segment in window):
            continue
        began = time.monotonic()
        first = window[0]
        before = stream.latents(first.index - 1) if first.blended else None
        latents = denoise(
            adapter, plan, window, [texts[s.index] for s in window], negative, before, progress.forward
        )
        for segment, z in zip(window, latents, strict=True):
            frames = stream.write(segment, z)
            seconds, began = time.monotonic() - began, time.monotonic()
            folder.record_segment(segment.number, keys[segment.index], frames, seconds)
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

    def write(self, segment: Segment, latents: Tensor) -> int:
        """Write a segment's latents and film; return its number of frames."""
        from safetensors.torch import save

        if segment.blended and self._next != segment.index:
            self._warm_up(segment)
        elif not segment.blended:
            self._decoder = self._adapter.decoder()
        spec, settings = self._plan.spec, self._plan.settings
        path = self._folder.video(segment.number)
        with writing(path), replacing(path) as part:
            size = (settings.width, settings.height)
            with video.SegmentWriter(part, *size, spec.fps, spec.upscale) as writer:
                count = 0
                for frames in self._pictures(segment, latents):
                    writer.write(frames.numpy().tobytes())
                    count += len(frames)
        data = save({"latents": latents.cpu().contiguous()}, {"key_frames": str(segment.lead)})
        with writing(path):
            write_atomically(self._folder.latents(segment.number), data)
        self._next = segment.index + 1
        return count

    def _pictures(self, segment: Segment, latents: Tensor) -> Any:
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
    scenes = [about | asdict(folder.records[about["number"]]) for about in about_scenes(plan)]
    tags = film_tags(plan)
    key = digest([[scene["files"] for scene in scenes], about_scenes(plan), tags])
    page = film_page(plan, folder.name, tags)
    page_path = folder.path / "index.html"
    if folder.film_is_complete(key) and page_path.exists() and page_path.read_text("utf-8") == page:
        return
    with writing(folder.film_path):
        with replacing(folder.film_path) as part:
            segments = [folder.video(segment.number) for segment in plan.segments]
            video.join(segments, part, plan.spec.fps, film_chapters(plan), tags)
        write_atomically(page_path, page)
    folder.film = {"file": folder.film_path.name, "key": key, "sha256": file_hash(folder.film_path)}
    folder.write_manifest(about, about_scenes(plan))
    _remove_strangers(plan, folder)


def _remove_strangers(plan: Plan, folder: FilmFolder) -> None:
    """Remove segments of scenes that the story no longer has."""
    kept = {path.name for s in plan.segments for path in (folder.video(s.number), folder.latents(s.number))}
    with writing(folder.segments):
        for path in folder.segments.iterdir():
            if path.suffix in (".mp4", ".safetensors") and path.name not in kept:
                path.unlink()


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
        "encoder": f"storyreel {__version__}",
        "storyreel_model": plan.spec.name,
        "storyreel_seed": str(plan.settings.seed),
        "storyreel_story_sha256": digest(about_scenes(plan)),
        "storyreel_size": f"{plan.settings.width}x{plan.settings.height}",
        "storyreel_steps": str(plan.settings.steps),
        "storyreel_guidance": f"{plan.settings.guidance:g}",
    }


def about_scenes(plan: Plan) -> list[dict[str, Any]]:
    """Return every segment's plan as plain data."""
    return [{"number": s.number, **asdict(s)} for s in plan.segments]


def versions() -> dict[str, str]:
    """Return the versions of what shapes a picture, without importing it."""
    packages = ("torch", "diffusers", "transformers")
    return {"storyreel": __version__} | {name: metadata.version(name) for name in packages}


def weight_hashes(spec: ModelSpec) -> dict[str, str]:
    """Return the SHA-256 of each file of a model. Raises MissingError if there are none."""
    files = sorted(p for p in spec.weights.rglob("*") if p.suffix in (".safetensors", ".json"))
    if not files:
        remedy = "Reinstall storyreel: pip install --force-reinstall storyreel"
        raise MissingError(f"the weights of model {spec.name} are missing", remedy)
    return {path.relative_to(spec.weights).as_posix(): file_hash(path) for path in files}


def about_film(plan: Plan) -> dict[str, Any]:
    """Return what it takes to make the film again, as plain data."""
    return {
        "title": plan.title,
        "story_sha256": digest(about_scenes(plan)),
        "model": {"name": plan.spec.name, "weights": weight_hashes(plan.spec)},
        "settings": asdict(plan.settings) | {"window": WINDOW, "fps": plan.spec.fps},
        "frames": plan.frames,
        "seconds": plan.seconds,
        "versions": versions() | {"ffmpeg": video.encoder_version()},
        "seams": [asdict(seam) for seam in plan.seams],
    }


def segment_keys(plan: Plan, about: dict[str, Any], device: str) -> list[str]:
    """Return a key per segment that covers all that shapes it.

    That is its own part of the story, the segments it is denoised with, those it grows out of,
    the model and its weights, the settings, and the versions and device that compute it. The
    title and everything that only decorates the film are no part of it.
    """
    common = {part: about[part] for part in ("model", "settings", "versions")} | {"device": device}
    keys: list[str] = []
    for window in plan.windows():
        before = keys[-1] if window[0].blended else None
        shared = digest([common, [asdict(segment) for segment in window], before])
        keys += [digest([shared, segment.index]) for segment in window]
    return keys
