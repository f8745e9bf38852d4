"""From a plan to a film on disk: the life of a story, top to bottom.

torch and the model are loaded only when something is missing; a second run of a finished
story looks at hashes and is done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, Protocol, cast

from storyreel import __version__, video
from storyreel.checkpoint import (
    Decided,
    FilmFolder,
    content_hash,
    digest,
    file_hash,
    replacing,
    write_atomically,
    writing,
)
from storyreel.device_errors import device_error, lacks_memory
from storyreel.errors import DamagedError, MissingError, OutputError, StoppedError, StoryreelError
from storyreel.models.inventory import weight_files
from storyreel.models.specs import ModelSpec
from storyreel.page import film_page
from storyreel.plan import Plan, Segment, forwards_left
from storyreel.speed import SPEEDS
from storyreel.stopping import Stop

if TYPE_CHECKING:
    from torch import Tensor

    from storyreel.anchors import Anchors
    from storyreel.checkpoint import DecidedSeam
    from storyreel.models.base import Adapter, MemoryMode
    from storyreel.prompts import PromptWriter, Scorer
    from storyreel.sampling import State, Take
    from storyreel.stored import Stored


# Seconds of denoising that a killed render may lose. A window is some 100 MB, written in a second.
KEEP_EVERY = 120.0


# Raise it when the same plan comes to give other pictures, in the same version.
RECIPE = 3


class Progress(Protocol):
    """What a render tells whoever shows it."""

    def started(self, plan: Plan, done: int, forwards: int) -> None:
        """Rendering begins; ``done`` segments are there, ``forwards`` passes are to come."""

    def forward(self) -> None:
        """One forward pass of the transformer is over."""

    def segment_finished(self, segment: Segment) -> None:
        """A segment is on disk."""

    def said(self, text: str) -> None:
        """Something has happened that the user should know."""


@dataclass(frozen=True)
class Rendered:
    """What a render left. ``rendered`` counts the segments that had to be made."""

    film: Path
    segments: int
    rendered: int
    seconds: float


@dataclass
class Engine:
    """The model and its scorer, loaded when first needed and shared by all stories of one command."""

    device: str = "auto"
    memory: MemoryMode = "auto"
    crewed: bool = False  # whether other processes answer requests too
    compiled: bool = False
    stop: Stop = field(default_factory=Stop)  # asked for by a signal

    def __post_init__(self) -> None:
        self._adapters: dict[str, Adapter] = {}
        self._scorers: dict[Path, Scorer] = {}

    def adapter(self, spec: ModelSpec) -> Adapter:
        """Return the loaded model."""
        if spec.label not in self._adapters:
            adapter = self._loaded(spec)
            if self.compiled:
                adapter.compile()
            if self.crewed:
                from storyreel.crew import Crew

                adapter = Crew(adapter)
            self._adapters[spec.label] = adapter
        return self._adapters[spec.label]

    def _loaded(self, spec: ModelSpec) -> Adapter:
        """Load a model; what fits is an estimate, so that where it does not do, a lower mode is tried."""
        import torch

        from storyreel.models.base import load_adapter, pick_device

        device = pick_device(self.device)
        tries: list[MemoryMode] = [self.memory]
        if self.memory == "auto" and device.type == "cuda":
            tries += ["balanced", "low"]
        for mode in tries:
            try:
                return load_adapter(spec, device, mode)
            except Exception as error:
                if not lacks_memory(error):
                    raise
                if mode == tries[-1]:
                    raise self._too_large(spec, mode) from error
                clear_frames(error.__traceback__)
            torch.cuda.empty_cache()  # of what was half loaded
        raise AssertionError("there is always a mode to try")

    @staticmethod
    def _too_large(spec: ModelSpec, mode: MemoryMode) -> MissingError:
        message = f"the device has too little memory for model {spec.label} in mode {mode}"
        lighter = "--quantize fp8, " if spec.quantize == "none" else ""
        lower = {"low": "", "balanced": "--memory low, "}.get(mode, "--memory balanced or low, ")
        pinned = " (mode low also wants all weights in the machine's own memory)" if mode == "low" else ""
        return MissingError(message, f"Use {lower}{lighter}a smaller model or another --device{pinned}.")

    def scorer(self, spec: ModelSpec) -> Scorer | None:
        """Return the loaded text-image encoder that lies with a model's weights; None if none does."""
        folder = spec.weights / "scorer"
        if not folder.is_dir():
            return None
        if folder not in self._scorers:
            from storyreel.models.base import pick_device
            from storyreel.models.scorer import Scorer

            self._scorers[folder] = Scorer.load(folder, pick_device(self.device))
        return self._scorers[folder]


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
        work = Work(plan, about, keys, folder, engine.device, overwrite)
        made = len(work.without_video)
        progress.started(plan, len(plan.segments) - made, work.forwards())
        folder.log(
            "started", segments=len(plan.segments), done=len(plan.segments) - made, version=__version__
        )
        try:
            if made:
                folder.begin([plan.segments[index].number for index in sorted(work.with_latents)])
                folder.write_manifest(about, about_scenes(plan))
                with telling_lost_devices():
                    work.do(engine, progress)
            _join(plan, about, folder)
        except BaseException as error:
            kind = StoppedError if engine.stop.asked else type(error)
            told = error if isinstance(error, StoryreelError) and not engine.stop.asked else None
            message = {"message": told.message} if told else {}
            with suppress(OutputError):  # on a full disk, too, the reason is the first error
                folder.log("stopped", reason=kind.__name__, **message)
            raise
        seconds = time.monotonic() - began
        folder.log("finished", rendered=made, seconds=round(seconds, 3))
        return Rendered(folder.film_path, len(plan.segments), made, seconds)


@contextmanager
def telling_lost_devices() -> Iterator[None]:
    """Turn what torch says of a GPU that no longer answers, or is full, into MissingError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if (told := device_error(error)) is None:
            raise
        raise told from error


class Work:
    """What is missing of a film, and the making of it.

    A segment's latents are kept when it leaves the denoising window, with the state of those
    behind it; its pictures when the segment after it has begun to show through them. Before it
    leaves, the window's state is kept now and then, and when a signal stops the render.
    """

    def __init__(
        self,
        plan: Plan,
        about: dict[str, Any],
        keys: Sequence[str],
        folder: FilmFolder,
        device: str,
        overwrite: bool,
    ) -> None:
        self.plan, self.about, self.keys, self.folder = plan, about, keys, folder
        self._device = device.partition(":")[0]  # as it is recorded: which of several does not matter
        self._kept = time.monotonic()
        if overwrite:
            folder.window = {}
        self._look(overwrite)

    def _look(self, overwrite: bool = False) -> None:
        """See what of the film is there; with ``overwrite``, nothing is."""
        folder, keys, device = self.folder, self.keys, self._device
        numbers = [segment.number for segment in self.plan.segments]
        everything = range(len(numbers))
        self.with_latents = {
            i for i in everything if not overwrite and folder.has_latents(numbers[i], keys[i], device)
        }
        self.without_video = {
            i
            for i in everything
            if i not in self.with_latents or not folder.has_video(numbers[i], self.video_key(i))
        }

    def video_key(self, index: int) -> str:
        """Return what covers all that shapes a segment's pictures: those of the next show through."""
        following = self.plan.segments[index + 1 : index + 2]
        blended = [self.keys[s.index] for s in following if s.blended]
        return digest([self.keys[index], blended])

    def forwards(self) -> int:
        """Return how many forward passes of the transformer are to come."""
        steps, window = self.plan.settings.steps, self.plan.settings.method.window
        speed, count = SPEEDS[self.plan.settings.speed], 0
        for run in self.plan.runs():
            for first, wanted in self._gaps(run):
                stored = self._before(run, first)
                begun = stored.steps_done() if stored else []
                following = run[-1].index + 1 - first.index - len(begun)
                count += forwards_left(begun, wanted, following, window, steps, speed)
        return count

    def _gaps(self, run: Sequence[Segment]) -> Iterator[tuple[Segment, int]]:
        """Yield the first of neighbouring segments without latents, and how many they are."""
        length = 0
        for segment in (*run, None):
            if segment is not None and segment.index not in self.with_latents:
                length += 1
            elif length:
                after = run[-1].index + 1 if segment is None else segment.index
                yield self.plan.segments[after - length], length
                length = 0

    def _stored(self, index: int) -> Stored:
        from storyreel.stored import Stored

        return Stored(self.folder.latents(self.plan.segments[index].number))

    def _before(self, run: Sequence[Segment], first: Segment) -> Stored | None:
        """Return what holds the state in which a segment comes first; None if it is as at the beginning."""
        from storyreel.stored import Stored

        if self.folder.has_window(self.keys[first.index], self._device):
            return Stored(self.folder.window_path)
        return None if first is run[0] else self._stored(first.index - 1)

    def do(self, engine: Engine, progress: Progress) -> None:
        """Make what is missing; where the device's memory does not do, try again with less of it."""
        from storyreel.prompts import all_prompts

        adapter, scorer = engine.adapter(self.plan.spec), engine.scorer(self.plan.spec)
        if adapter.device.type == "cuda" and engine.memory == "auto":
            progress.said(f"memory mode: {adapter.memory}{self._lighter(adapter.memory)}")
        while True:
            try:
                adapter.prepare(all_prompts(self.plan, scorer is not None))
                return self._make(adapter, scorer, progress, engine.stop)
            except Exception as error:
                if not lacks_memory(error):
                    raise
                clear_frames(error.__traceback__)  # of what the failed step held
                mode = adapter.economise()
                if mode is None:
                    remedy = "Use a smaller --size, shorter scenes, or a GPU with more memory."
                    raise MissingError(
                        "the device has too little memory; finished scenes are kept", remedy
                    ) from error
            self.folder.log("memory", mode=mode)
            progress.said(f"out of memory: going on with --memory {mode}{self._lighter(mode)}")
            self._look()

    def _lighter(self, mode: str) -> str:
        """Return what could be done instead of a lower memory mode.

        It is no remedy where the lowest mode does not do: hardly any weights are on the device there.
        """
        if mode == "high" or self.plan.spec.quantize != "none":
            return ""
        return " (--quantize fp8 would halve the transformer, and change the film)"

    def _make(self, adapter: Adapter, scorer: Scorer | None, progress: Progress, stop: Stop) -> None:
        """Make what is missing, segment by segment."""
        from storyreel.anchors import Anchors
        from storyreel.prompts import PromptWriter, similarities
        from storyreel.stream import FilmStream

        plan = self.plan.settled(similarities(self.plan, adapter, scorer))
        writer = PromptWriter(adapter, plan.settings, scorer)
        anchors = Anchors(adapter, plan, lambda index: self._stored(index).latents(adapter.device))

        def written(segment: Segment, seconds: float) -> None:
            self.folder.record_video(segment.number, self.video_key(segment.index), seconds)
            self.folder.write_manifest(self.about, about_scenes(self.plan))
            self.folder.log("segment", number=segment.number, seconds=round(seconds, 3))
            progress.segment_finished(segment)

        with FilmStream(plan, self.folder, adapter, self.without_video, written) as stream:
            for run in plan.runs():
                for segment, latents in self._latents(plan, run, adapter, writer, anchors, progress, stop):
                    stream.push(segment, latents)
                stream.finish()

    def _latents(
        self,
        plan: Plan,
        run: Sequence[Segment],
        adapter: Adapter,
        writer: PromptWriter,
        anchors: Anchors,
        progress: Progress,
        stop: Stop,
    ) -> Iterator[tuple[Segment, Tensor]]:
        """Yield the latents that any missing pictures need, from disk or newly denoised."""
        from storyreel.sampling import State, denoise

        gaps = {first.index: wanted for first, wanted in self._gaps(run)}
        index, device = run[0].index, adapter.device.type
        while index <= run[-1].index:
            wanted = gaps.get(index, 0)
            if not wanted:
                if self.without_video & {index - 1, index, index + 1}:
                    yield plan.segments[index], self._stored(index).latents(adapter.device)
                index += 1
                continue
            stored = self._before(run, plan.segments[index])
            state = stored.state(plan, adapter, writer, anchors) if stored else State(None, [])
            waiting = run[index + len(state.takes) - run[0].index :]
            on_forward = partial(self._after_forward, state, device, progress, stop)
            takes = denoise(adapter, plan, waiting, writer, anchors, state, on_forward)
            for _ in range(wanted):
                began = time.monotonic()
                with stop.held():
                    take, after = next(takes)
                    self._keep(plan, take, after, device, time.monotonic() - began)
                yield take.segment, take.x
            index += wanted

    def _keep(self, plan: Plan, take: Take, after: State, device: str, seconds: float) -> None:
        """Put a segment's latents on disk, with the state of those behind it."""
        from storyreel.prompts import EQUAL
        from storyreel.stored import Stored

        segment, seam = take.segment, plan.seam(take.segment)
        Stored(self.folder.latents(segment.number)).save(after)
        decided: Decided = {
            "lead": segment.lead,
            "seam": cast("DecidedSeam", asdict(seam)) if seam else None,
            "prompt_weights": take.prompts.decided() or [EQUAL] * plan.settings.steps,
        }
        self.folder.record_latents(segment.number, self.keys[segment.index], device, seconds, decided)
        self.folder.write_manifest(self.about, about_scenes(self.plan))
        self._kept = time.monotonic()

    def _after_forward(self, state: State, device: str, progress: Progress, stop: Stop) -> None:
        """Put the state of the segments under way on disk, if it is time to or the last chance."""
        from storyreel.stored import Stored

        progress.forward()
        if stop.asked or time.monotonic() - self._kept >= KEEP_EVERY:
            Stored(self.folder.window_path).save(state)
            self.folder.record_window(self.keys[state.takes[0].segment.index], device)
            self.folder.write_manifest(self.about, about_scenes(self.plan))
            self._kept = time.monotonic()
        stop.check()


def _join(plan: Plan, about: dict[str, Any], folder: FilmFolder) -> None:
    """Make the film of the segments, and the page and manifest around it, where they changed."""
    scenes, key, page = about_scenes(plan), film_key(plan, folder), film_page_of(plan, folder)
    if folder.film_is_complete(key) and folder.holds(folder.page_path, page):
        if not folder.holds(folder.manifest_path, folder.manifest(about, scenes)):
            folder.write_manifest(about, scenes)  # it was damaged where it speaks of no segment
        return
    with writing(folder.film_path):
        with replacing(folder.film_path) as part:
            segments = [folder.video(segment.number) for segment in plan.segments]
            video.join(segments, part, plan.spec.fps, film_chapters(plan), film_tags(plan))
        write_atomically(folder.page_path, page)
    folder.window = {}
    folder.film = {"file": folder.film_path.name, "key": key, "sha256": file_hash(folder.film_path)}
    folder.write_manifest(about, scenes)
    folder.remove_strangers([segment.number for segment in plan.segments])


def film_key(plan: Plan, folder: FilmFolder) -> str:
    """Return a key that covers all that makes a film of its segments."""
    files = [folder.records[segment.number].files for segment in plan.segments]
    return digest([files, about_scenes(plan), film_tags(plan)])


def film_page_of(plan: Plan, folder: FilmFolder) -> str:
    """Return the film's page."""
    decided = {number: record.decided for number, record in folder.records.items()}
    return film_page(plan, folder.name, film_tags(plan), decided)


def film_chapters(plan: Plan) -> list[video.Chapter]:
    """Return a chapter per scene: its scene prompt as title, both prompts as subtitle."""
    return [
        video.Chapter(s.start, s.start + s.frames, s.scene, "\n".join(dict.fromkeys([s.scene, s.action])))
        for s in plan.segments
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
        "storyreel_guidance": plan.settings.guidance_words,
    }


def about_scenes(plan: Plan) -> list[dict[str, Any]]:
    """Return every segment's plan as plain data; what a render decides is added by its record."""
    return [
        {"number": s.number, **{key: value for key, value in asdict(s).items() if key != "lead"}}
        for s in plan.segments
    ]


def weight_hashes(spec: ModelSpec) -> dict[str, str]:
    """Return the SHA-256 of each file of a model. Raises MissingError or DamagedError."""
    files = weight_files(spec)
    try:
        return {path.relative_to(spec.weights).as_posix(): content_hash(path) for path in files}
    except OSError as error:
        raise DamagedError(f"{error.filename} cannot be read: {error.strerror}", spec.remedy) from error


def versions() -> dict[str, str]:
    """Return the versions of what shapes a picture, without importing it."""
    packages = ("torch", "diffusers", "transformers", "tokenizers")
    installed = {name: metadata.version(name) for name in packages}
    return {"storyreel": __version__, **installed, "ffmpeg": video.encoder_version()}


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
        "recipe": RECIPE,
    }


def about_film(plan: Plan) -> dict[str, Any]:
    """Return what it takes to make the film again, as plain data."""
    model = {"name": plan.spec.name, "weights": weight_hashes(plan.spec)}
    return about_plan(plan) | {"model": model, "versions": versions()}


def segment_keys(plan: Plan, about: dict[str, Any]) -> list[str]:
    """Return a key per segment that covers all that shapes it.

    That is its own part of the story, the segments it is denoised with, those it grows out of
    or remembers, the model and its weights, the settings, and the versions that compute it. The title, its
    place in the film, and everything that only decorates the film are no part of it. Nor is
    the device, which is recorded beside the key.
    """
    common = {part: about[part] for part in ("model", "settings", "recipe", "versions")}
    keys: list[str] = []
    for run in plan.runs():
        before = None
        for position in range(len(run)):
            together = run[position : position + plan.settings.method.window]
            scenes = [{k: v for k, v in asdict(s).items() if k not in ("start", "lead")} for s in together]
            remembered = [keys[index] for s in together for index in plan.anchors(s)]
            before = digest([common, scenes, before, remembered])
            keys.append(before)
    return keys
