"""From a plan to a film on disk: the life of a story, top to bottom.

torch and the model are loaded only when something is missing; a second run of a finished story
compares hashes and is done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from storyreel import __version__
from storyreel.engine import Engine, device_faults, memory_words, with_less_memory
from storyreel.errors import OutputError, StoppedError, StoryreelError
from storyreel.files import file_hash, replacing, writing
from storyreel.film import provenance, writer
from storyreel.film.cards import write_card
from storyreel.film.ffmpeg import temporary_file
from storyreel.film.folder import FilmFolder
from storyreel.film.hearing import keep_spoken
from storyreel.film.inventory import Inventory, take_inventory
from storyreel.film.keys import DEVICES, check_loras, film_chapters, film_facts, film_key, film_tags, film_xmp
from storyreel.film.manifest import SIGNED_BY, UNSIGNED, film_manifest
from storyreel.film.messages import device_messages, difference_messages, unused_messages
from storyreel.film.page import GrowingPage, film_page, write_page
from storyreel.film.stills import keep_still
from storyreel.film.store import Store
from storyreel.film.takes import begin_take, end_take, record_take
from storyreel.stopping import KEPT_AFRESH
from storyreel.story.plan import Plan, Segment

if TYPE_CHECKING:
    from storyreel.denoise.loop import SegmentState
    from storyreel.denoise.prompts import Scorer
    from storyreel.film.signature import Signer
    from storyreel.models.base import Adapter

__all__ = ["Engine", "Progress", "Rendered", "render"]

# Seconds of denoising that a killed render may lose. A state is some 30 MB, written in a second.
KEEP_EVERY = 120.0


class Progress(Protocol):
    """What a render reports, to whatever shows it."""

    def started(self, plan: Plan, scenes: int, done: int, forwards: int) -> None:
        """Rendering begins: of so many ``scenes`` that are asked for, ``done`` are there.

        ``forwards`` model evaluations are to come.
        """

    def forward(self) -> None:
        """One model evaluation is over."""

    def segment_finished(self, segment: Segment) -> None:
        """A segment's video is on disk."""

    def said(self, text: str) -> None:
        """The user should read this."""


@dataclass(frozen=True)
class Rendered:
    """What a render left: the film's file, its number of segments, and how many of them were missing.

    ``seconds`` is how long the render took. The film is not there unless it ``is_complete``: some scenes may
    not have been asked for. ``videos`` are the files of those that were, by index.
    """

    film: Path
    segments: int
    rendered: int
    seconds: float
    is_complete: bool
    videos: dict[int, Path]


def render(
    plan: Plan,
    name: str,
    out: Path,
    engine: Engine,
    progress: Progress,
    overwrite: bool = False,
    signer: Signer | None = None,
    only: frozenset[int] | None = None,
) -> Rendered:
    """Render what is missing of a film into ``out/name`` and join it; with ``overwrite``, all of it.

    With a ``signer``, the film is signed. With ``only`` some scenes, by index, and what they depend on are
    rendered, with ``overwrite`` these scenes alone again; then the film is joined if all of it is there. The
    film that is there stays until its successor is complete. Raises StoryreelError of every kind; finished
    segments stay.
    """
    began = time.monotonic()
    ingredients = engine.ingredients(plan.spec, progress.said)
    with FilmFolder(out / name, name) as folder:
        store = Store(folder.segments)
        inventory = _inventory(plan, ingredients, engine, folder, store, overwrite, only)
        missing, wanted = len(inventory.missing), film_manifest(inventory)
        for message in difference_messages(folder, wanted, inventory):
            progress.said(message)
        scenes = len(only or plan.segments)
        done = scenes - missing
        progress.started(plan, scenes, done, inventory.forwards())
        folder.log("started", segments=len(plan.segments), done=done, version=__version__)
        try:
            keep_spoken(plan.sound, store.folder)  # while the voice is known to be here
            if missing:
                temporary_file().close()  # ffmpeg's messages will need one, an hour later
                folder.begin(wanted)
                with device_faults():
                    _render_missing(inventory, store, folder, engine, progress, afresh=overwrite)
            was_signed = folder.present is not None and SIGNED_BY in folder.present.film
            complete = inventory.is_complete
            film = _join(inventory, store, folder, signer) if complete else {}
        except BaseException as error:
            _log_stop(folder, error, engine.stop.asked)
            raise
        for message in unused_messages(folder) if missing and complete else ():
            progress.said(message)
        if complete and was_signed and SIGNED_BY not in film:
            progress.said("the film that was there was signed; this one is not")
        seconds = time.monotonic() - began
        folder.log("finished" if complete else "parts", rendered=missing, seconds=round(seconds, 3))
        videos = _videos(inventory, store)
        return Rendered(folder.film_path, len(plan.segments), missing, seconds, complete, videos)


def render_take(plan: Plan, index: int, name: str, out: Path, engine: Engine, progress: Progress) -> Rendered:
    """Render one scene of a film that is planned with another take of it; ``index`` is the scene's.

    The film that is there, its manifest and its page stay as they are. Raises as `render` does.
    """
    began = time.monotonic()
    ingredients = engine.ingredients(plan.spec, progress.said)
    with FilmFolder(out / name, name) as folder:
        store, only = Store(folder.segments), frozenset({index})
        inventory = _inventory(plan, ingredients, engine, folder, store, False, only)
        missing = len(inventory.missing)
        progress.started(plan, len(only), len(only) - missing, inventory.forwards())
        if missing:
            begin_take(folder.path, inventory)
            with device_faults():
                _render_missing(inventory, store, folder, engine, progress, beside=True)
        keep_still(store, inventory, index)
        record_take(folder.path, plan, inventory, index)
        end_take(folder.path)
        seconds = time.monotonic() - began
        videos = _videos(inventory, store)
        return Rendered(folder.film_path, len(plan.segments), missing, seconds, False, videos)


def _videos(inventory: Inventory, store: Store) -> dict[int, Path]:
    wanted = inventory.only or range(len(inventory.plan.segments))
    return {index: store.folder / inventory.video[index].file for index in sorted(wanted)}


def _inventory(
    plan: Plan,
    ingredients: dict[str, Any],
    engine: Engine,
    folder: FilmFolder,
    store: Store,
    overwrite: bool,
    only: frozenset[int] | None,
) -> Inventory:
    """Return what of a film is there; with ``overwrite``, nothing is of what was asked for.

    A film's segments are computed by one kind of device. Device auto takes a film that another kind has
    completed as it is, and begins a new one otherwise.
    """

    def on(device: str) -> Inventory:
        facts = film_facts(plan, ingredients, device)
        if overwrite and only is None:  # nothing need be read
            return Inventory(plan, facts)
        inventory = take_inventory(plan, facts, store.claim, only)
        if overwrite:
            inventory.forget(only)
        return inventory

    if engine.device != "auto" or overwrite:
        return on(engine.device_kind(plan.spec))
    found = {device: on(device) for device in DEVICES}
    present = folder.present.facts.get("device") if folder.present else None
    for device in sorted(DEVICES, key=lambda device: device != present):
        if not found[device].missing:
            return found[device]
    return found[engine.device_kind(plan.spec)]


def _render_missing(
    inventory: Inventory,
    store: Store,
    folder: FilmFolder,
    engine: Engine,
    progress: Progress,
    beside: bool = False,
    afresh: bool = False,
) -> None:
    """Load the model and render what is missing; if memory runs out, go on in a lower memory mode.

    What is rendered ``beside`` the film is neither on its page nor in its log. What is rendered ``afresh``
    is removed first, once there is a model to make it: a render that is stopped can go on then.
    """
    from storyreel.denoise.prompts import all_prompts

    spec = inventory.plan.spec
    if inventory.plan.settings.method.scorer is not None:
        engine.scorer_for(inventory.plan)  # first: a plugin may be none
    adapter = engine.adapter_for(inventory.plan, progress.said)
    scorer = engine.scorer_for(inventory.plan)
    if adapter.device.type == "cuda" and engine.memory == "auto":
        progress.said(f"memory mode: {memory_words(adapter.memory, spec)}")
    for message in device_messages(inventory, engine.device_words(adapter)):
        progress.said(message)
    if afresh:
        _remove(inventory, store)
        engine.stop.remedy = KEPT_AFRESH.format(name=folder.name)

    def compute() -> None:
        adapter.prepare(all_prompts(inventory.plan, scorer is not None))
        page = None if beside else GrowingPage(folder, inventory)
        _render_segments(inventory, store, folder, engine, adapter, scorer, progress, page)

    def on_mode(mode: str) -> None:
        folder.log("memory", mode=mode)
        progress.said(f"out of memory: going on with --memory {memory_words(mode, spec)}")

    with_less_memory(adapter, compute, on_mode)


def _remove(inventory: Inventory, store: Store) -> None:
    """Remove the files of all that is to be made. Raises OutputError."""
    plan, keys = inventory.plan, inventory.keys
    for segment in inventory.undone:
        store.drop("latents", segment.number, keys.of(segment))
        store.drop("state", segment.number, keys.of(segment))
    for index in inventory.missing:
        store.drop("video", plan.segments[index].number, keys.video[index])


def _render_segments(
    inventory: Inventory,
    store: Store,
    folder: FilmFolder,
    engine: Engine,
    adapter: Adapter,
    scorer: Scorer | None,
    progress: Progress,
    page: GrowingPage | None,
) -> None:
    """The main loop: segment by segment, denoise what is missing, save it, decode it, write its video."""
    from storyreel.film.segments import Segments
    from storyreel.film.sides import MeasuringStream

    segments = Segments(inventory, store, adapter, scorer, lambda: engine.device_words(adapter))
    if page is not None:
        page.write()

    def after_forward(window: Sequence[SegmentState]) -> None:
        progress.forward()
        if engine.stop.asked or segments.unsaved_seconds >= KEEP_EVERY:
            segments.save_states(window)
        engine.stop.check()

    def after_video(segment: Segment, seconds: float) -> None:
        segments.record_video(segment, seconds, stream.apart.get(segment.index))
        keep_still(store, inventory, segment.index)
        if page is not None:
            folder.log("segment", number=segment.number, seconds=round(seconds, 3))
            page.write()
        progress.segment_finished(segment)

    shown = {segment.index for segment in inventory.shown}
    denoising = segments.denoise(inventory.undone, after_forward)
    with MeasuringStream(
        segments.plan, adapter, inventory.missing, segments.video_path, after_video
    ) as stream:
        for segment in segments.plan.segments:
            if segment.index not in shown:
                continue
            latents = None
            while segment.slot not in inventory.latents:
                began = time.monotonic()
                with engine.stop.held():  # what is finished is saved before a signal stops the render
                    finished = next(denoising)
                    check_loras(finished.segment, inventory.facts)
                    segments.save(finished, time.monotonic() - began)
                latents = finished.x
            sound = None if inventory.plan.spec.sound is None else segments.sound(segment)
            stream.push(segment, segments.latents(segment) if latents is None else latents, sound)
        stream.finish()
    for index, apart in stream.apart.items():
        if index in inventory.video:
            segments.record_sides(index, apart)


def _join(inventory: Inventory, store: Store, folder: FilmFolder, signer: Signer | None) -> dict[str, str]:
    """Make the film of the segments, and the page and the manifest around it, where they changed.

    A film that only lacks the signer's signature is joined again, which gives the same bytes, and signed.
    Return what the manifest says of the film's file.
    """
    plan = inventory.plan
    videos = [inventory.video[segment.index] for segment in plan.segments]
    key = film_key(plan, inventory.facts, [video.sha256 for video in videos])
    film = folder.present.film if folder.present is not None and folder.film_is_complete(key) else {}
    if not film or (signer is not None and film.get(SIGNED_BY) != signer.fingerprint):
        signature = {}
        with (
            writing(folder.film_path),
            _soundtrack(plan, store.folder, [store.folder / video.file for video in videos]) as audio,
            replacing(folder.film_path) as part,
            _all_parts(inventory, store) as paths,
        ):
            chapters, tags = film_chapters(plan), film_tags(plan, __version__)
            writer.join(paths, part, plan.spec.fps, chapters, tags, audio)
            provenance.add_xmp(part, film_xmp(plan, __version__))
            if signer is not None:
                signature = {UNSIGNED: file_hash(part), SIGNED_BY: signer.fingerprint}
                signer.sign(part, plan.title, plan.spec.label)
        film = {"file": folder.film_path.name, "key": key, "sha256": file_hash(folder.film_path)}
        film |= {"storyreel": __version__, **signature}
    for segment in plan.segments:
        keep_still(store, inventory, segment.index)  # of videos that were made before pages had them
    write_page(folder, film_page(folder, inventory, film))
    folder.publish(film_manifest(inventory, film))
    for segment in plan.takes:  # of a render that was killed just then
        store.drop("state", segment.number, inventory.keys.of(segment))
    return film


def _soundtrack(
    plan: Plan, folder: Path, videos: Sequence[Path]
) -> AbstractContextManager[writer.Audio | None]:
    """Give the mixed sound of a film; None where nothing is heard, which loads nothing.

    A model that makes sound has left it in the segments' ``videos``.
    """
    if plan.sound is None and plan.spec.sound is None:
        return nullcontext()
    from storyreel.film.mix import soundtrack

    return soundtrack(plan, folder) if plan.spec.sound is None else soundtrack(plan, folder, videos)


@contextmanager
def _all_parts(inventory: Inventory, store: Store) -> Iterator[list[Path]]:
    """Give the files of all that a film shows, in order; its cards are drawn for this and removed again."""
    plan, cards = inventory.plan, list[Path]()
    paths = []
    try:
        for shown in plan.parts():
            if isinstance(shown, Segment):
                paths.append(store.folder / inventory.video[shown.index].file)
                continue
            cards.append(store.folder / f"card-{len(cards) + 1}.mp4")
            paths.append(cards[-1])
            write_card(plan, shown, cards[-1])
        yield paths
    finally:
        for card in cards:
            card.unlink(missing_ok=True)


def _log_stop(folder: FilmFolder, error: BaseException, asked: bool) -> None:
    """Log why a render stopped: an error, or a signal that ``asked`` for it."""
    kind = StoppedError if asked else type(error)
    message = {"message": error.message} if isinstance(error, StoryreelError) and not asked else {}
    with suppress(OutputError):  # on a full disk, too, the first error is the one to raise
        folder.log("stopped", reason=kind.__name__, **message)
