"""From a plan to a film on disk: the life of a story, top to bottom.

torch and the model are loaded only when something is missing; a second run of a finished
story looks at hashes and is done.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, Protocol

from storyreel import __version__
from storyreel.errors import MissingError, OutputError, StoppedError, StoryreelError
from storyreel.files import file_hash, replacing, write_atomically, writing
from storyreel.film import video
from storyreel.film.clean import size_words, unneeded
from storyreel.film.differences import differences
from storyreel.film.folder import FilmFolder
from storyreel.film.hashes import RememberedHashes
from storyreel.film.inventory import Inventory, look
from storyreel.film.keys import (
    DEVICES,
    about_film,
    film_chapters,
    film_key,
    film_keys,
    film_tags,
    ingredients,
)
from storyreel.film.manifest import Manifest, wanted_film
from storyreel.film.page import film_page_of
from storyreel.film.store import Store
from storyreel.models.device_errors import device_error, lacks_memory
from storyreel.models.inventory import weight_files
from storyreel.models.specs import ModelSpec
from storyreel.stopping import Stop
from storyreel.story.plan import Plan, Segment

if TYPE_CHECKING:
    from storyreel.denoise.prompts import Scorer
    from storyreel.models.base import Adapter, MemoryMode


# Seconds of denoising that a killed render may lose. A window is some 100 MB, written in a second.
KEEP_EVERY = 120.0
LONG = 2 << 30  # bytes of weights: to read as many takes long enough to be told


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
        self._ingredients: dict[tuple[str, Path], dict[str, Any]] = {}

    def ingredients(self, spec: ModelSpec, said: Callable[[str], None]) -> dict[str, Any]:
        """Return what a model's films are made from; if it takes long to read its weights, say so."""
        if (spec.name, spec.weights) not in self._ingredients:
            unread = RememberedHashes().to_read(weight_files(spec))
            if unread >= LONG:
                said(f"reading {unread / 1e9:.0f} GB of weights once, to know them again")
            self._ingredients[spec.name, spec.weights] = ingredients(spec)
        return self._ingredients[spec.name, spec.weights]

    def device_kind(self) -> str:
        """Return the kind of device that computes: cpu or cuda. Raises MissingError."""
        if self.device != "auto":
            return self.device.partition(":")[0]
        from storyreel.models.devices import pick_device

        return pick_device(self.device).type

    def device_words(self, adapter: Adapter) -> str:
        """Return what computes, as records name it: it decides the last digits of a picture."""
        import torch

        if adapter.device.type == "cuda":
            words = torch.cuda.get_device_name(adapter.device)
        else:
            words = f"{adapter.device.type} with OMP_NUM_THREADS={torch.get_num_threads()}"
        return f"{words}, compiled" if self.compiled else words

    def adapter(self, spec: ModelSpec) -> Adapter:
        """Return the loaded model."""
        if spec.label not in self._adapters:
            adapter = self._loaded(spec)
            if self.compiled:
                adapter.compile()
            if self.crewed:
                from storyreel.models.workers import Workers

                adapter = Workers(adapter)
            self._adapters[spec.label] = adapter
        return self._adapters[spec.label]

    def _loaded(self, spec: ModelSpec) -> Adapter:
        """Load a model; what fits is an estimate, so that where it does not do, a lower mode is tried."""
        import torch

        from storyreel.models.devices import pick_device
        from storyreel.models.loading import load_adapter

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
            from storyreel.models.devices import pick_device
            from storyreel.models.scorer import Scorer

            self._scorers[folder] = Scorer.load(folder, pick_device(self.device))
        return self._scorers[folder]


def render(
    plan: Plan, name: str, out: Path, engine: Engine, progress: Progress, overwrite: bool = False
) -> Rendered:
    """Render what is missing of a film into ``out/name`` and join it.

    The film that is there stays until its successor is complete. Raises StoryreelError of every kind;
    what was finished before stays.
    """
    began = time.monotonic()
    made_of = engine.ingredients(plan.spec, progress.said)
    with FilmFolder(out / name, name) as folder:
        store = Store(folder.segments)
        about, there = _look(plan, made_of, engine, folder, store, overwrite)
        wanted = wanted_film(about, there)
        made = len(there.without_video)
        _tell_differences(folder, wanted, made, progress)
        progress.started(plan, len(plan.segments) - made, there.forwards())
        folder.log(
            "started", segments=len(plan.segments), done=len(plan.segments) - made, version=__version__
        )
        try:
            if made:
                video.temporary_file().close()  # ffmpeg's messages will need one, an hour later
                folder.begin(wanted)
                with telling_lost_devices():
                    _make(there, store, folder, engine, progress)
            _join(about, there, store, folder)
        except BaseException as error:
            kind = StoppedError if engine.stop.asked else type(error)
            told = error if isinstance(error, StoryreelError) and not engine.stop.asked else None
            message = {"message": told.message} if told else {}
            with suppress(OutputError):  # on a full disk, too, the reason is the first error
                folder.log("stopped", reason=kind.__name__, **message)
            raise
        if made:
            _tell_unused(folder, progress)
        seconds = time.monotonic() - began
        folder.log("finished", rendered=made, seconds=round(seconds, 3))
        return Rendered(folder.film_path, len(plan.segments), made, seconds)


def _look(
    plan: Plan,
    made_of: dict[str, Any],
    engine: Engine,
    folder: FilmFolder,
    store: Store,
    overwrite: bool,
) -> tuple[dict[str, Any], Inventory]:
    """Return what the film is made from, and what of it is there; with ``overwrite``, nothing is.

    A film's segments are computed by one kind of device. ``auto`` takes a film that another kind has
    completed as it is, and begins a new one otherwise.
    """

    def of(device: str) -> tuple[dict[str, Any], Inventory]:
        about = about_film(plan, made_of, device)
        keys = film_keys(plan, about)
        return about, Inventory(plan, keys) if overwrite else look(plan, keys, store.find)

    if engine.device != "auto" or overwrite:
        return of(engine.device_kind())
    seen = {device: of(device) for device in DEVICES}
    present = folder.present.about.get("device") if folder.present else None
    for device in sorted(DEVICES, key=lambda device: device != present):
        if not seen[device][1].without_video:
            return seen[device]
    return seen[engine.device_kind()]


def _tell_differences(folder: FilmFolder, wanted: Manifest, made: int, progress: Progress) -> None:
    """Say what the film is to be that the one that is there is not."""
    stays = "; what is there stays until the new film is complete" if made else ""
    before = folder.present or folder.unfinished
    if folder.present is None and folder.film_path.exists() and made:
        progress.said(f"the film that is there is of an earlier version, or its manifest is damaged{stays}")
    elif before is not None and (found := differences(before, wanted)):
        what = "the film that is there" if folder.present else "the film that was begun"
        progress.said(f"other than {what}: {'; '.join(found)}{stays}")


@contextmanager
def telling_lost_devices() -> Iterator[None]:
    """Turn what torch says of a GPU that no longer answers, or is full, into MissingError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if (told := device_error(error)) is None:
            raise
        raise told from error


def _make(there: Inventory, store: Store, folder: FilmFolder, engine: Engine, progress: Progress) -> None:
    """Make what is missing; where the device's memory does not do, try again with less of it."""
    from storyreel.denoise.prompts import all_prompts
    from storyreel.making import Making

    def on_video(segment: Segment, seconds: float) -> None:
        folder.log("segment", number=segment.number, seconds=round(seconds, 3))
        progress.segment_finished(segment)

    spec = there.plan.spec
    adapter, scorer = engine.adapter(spec), engine.scorer(spec)
    if adapter.device.type == "cuda" and engine.memory == "auto":
        progress.said(f"memory mode: {adapter.memory}{_lighter(adapter.memory, spec)}")
    device = engine.device_words(adapter)
    _tell_other_devices(there, device, progress)
    while True:
        try:
            adapter.prepare(all_prompts(there.plan, scorer is not None))
            making = Making(
                there, store, adapter, scorer, device, engine.stop, progress.forward, on_video, KEEP_EVERY
            )
            making.run()
            return
        except Exception as error:
            if not lacks_memory(error):
                raise
            clear_frames(error.__traceback__)  # of what the failed step held
            mode = adapter.lower_memory_mode()
            if mode is None:
                remedy = "Use a smaller --size, shorter scenes, or a GPU with more memory."
                raise MissingError(
                    "the device has too little memory; finished scenes are kept", remedy
                ) from error
        folder.log("memory", mode=mode)
        progress.said(f"out of memory: going on with --memory {mode}{_lighter(mode, spec)}")


def _lighter(mode: str, spec: ModelSpec) -> str:
    """Return what could be done instead of a lower memory mode.

    It is no remedy where the lowest mode does not do: hardly any weights are on the device there.
    """
    if mode == "high" or spec.quantize != "none":
        return ""
    return " (--quantize fp8 would halve the transformer, and change the film)"


def _tell_unused(folder: FilmFolder, progress: Progress) -> None:
    """Say what is kept of former films, and how to be rid of it."""
    if size := sum(unneeded(folder).values()):
        progress.said(
            f"{size_words(size)} of former scenes are kept: to go back to them renders nothing. What no film "
            f"uses can go: storyreel clean {shlex.quote(str(folder.path))}"
        )


def _tell_other_devices(there: Inventory, device: str, progress: Progress) -> None:
    """Say if a film goes on on another machine: its last digits are not as from one alone."""
    others = sorted({record.device for record in there.latents.values()} - {device})
    if others and len(there.latents) < len(there.plan.segments):
        progress.said(
            f"{len(there.latents)} scenes that are kept were computed on {' and '.join(others)}, the others "
            f"will be on {device}: that makes another film than either alone, in its last digits "
            "(--overwrite makes all of it as here)"
        )


def _join(about: dict[str, Any], there: Inventory, store: Store, folder: FilmFolder) -> None:
    """Make the film of the segments, and the page and manifest around it, where they changed."""
    plan = there.plan
    key = film_key(plan, about, [there.video[segment.index].sha256 for segment in plan.segments])
    if folder.film_is_complete(key) and folder.present is not None:
        film = folder.present.film
    else:
        with writing(folder.film_path), replacing(folder.film_path) as part:
            pictures = [store.folder / there.video[segment.index].file for segment in plan.segments]
            video.join(pictures, part, plan.spec.fps, film_chapters(plan), film_tags(plan, __version__))
        film = {"file": folder.film_path.name, "key": key, "sha256": file_hash(folder.film_path)}
        film["storyreel"] = __version__
    page = film_page_of(folder.name, film, there)
    if not folder.holds(folder.page_path, page):
        with writing(folder.page_path):
            write_atomically(folder.page_path, page)
    folder.publish(wanted_film(about, there, film))
    for segment, latents_key in zip(plan.segments, there.keys.latents, strict=True):
        store.drop("window", segment.number, latents_key)  # of a render that was killed just then
