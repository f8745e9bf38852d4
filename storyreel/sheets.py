"""A contact sheet of a story: a draft of every scene is denoised and shown, before the film is rendered.

Drafts are kept under keys as segments are, in a folder of their own: what is there is not made again, and
nothing of the film is touched.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storyreel.engine import Engine, device_faults, with_less_memory
from storyreel.files import writing
from storyreel.film.folder import FilmFolder
from storyreel.film.inventory import take_inventory
from storyreel.film.keys import DEVICES, film_facts, film_keys
from storyreel.film.sheet import Sheet, Shown, find_sheet, sheet_key, write_sheet
from storyreel.film.store import Store
from storyreel.rendering import Progress
from storyreel.story.draft import draft_of
from storyreel.story.plan import Plan

if TYPE_CHECKING:
    from PIL import Image

    from storyreel.denoise.loop import SegmentState


@dataclass(frozen=True)
class Drawn:
    """What `draw_sheet` left: the sheet, how many model evaluations it took, and how many seconds."""

    sheet: Sheet
    forwards: int
    seconds: float


@dataclass(frozen=True)
class _Wanted:
    """A sheet that is wanted, computed by one kind of device: the draft and what is shown of it.

    ``noises`` are the segments' seeds of what is shown.
    """

    draft: Plan
    facts: dict[str, Any]
    shown: list[Shown]
    noises: list[int]

    @property
    def key(self) -> str:
        """What covers all of it."""
        return sheet_key(self.draft.title, self.shown, self.facts)


def draw_sheet(
    plan: Plan,
    others: Mapping[int, Plan],
    most: int,
    name: str,
    out: Path,
    engine: Engine,
    progress: Progress,
) -> Drawn:
    """Draw the sheet of a film into ``out/name``: of every scene one picture, or ``most``.

    ``others`` are plans of the same story in which every scene has a seed of its own, by that seed. Of a
    scene only its own noise is another one in such a picture: all other scenes are as the film has them.
    Raises StoryreelError of every kind; drafts that are finished stay.
    """
    began = time.monotonic()
    ingredients = engine.ingredients(plan.spec, progress.said)
    with FilmFolder(out / name, name) as folder:
        for device in DEVICES if engine.device == "auto" else (engine.device_kind(plan.spec),):
            wanted = _wanted(plan, others, most, ingredients, device)
            if (sheet := find_sheet(folder.path, wanted.key)) is not None:
                return Drawn(sheet, 0, time.monotonic() - began)
        wanted = _wanted(plan, others, most, ingredients, engine.device_kind(plan.spec))
        with writing(folder.drafts):
            folder.drafts.mkdir(exist_ok=True)
        with device_faults():
            pictures, forwards = _pictures(wanted, Store(folder.drafts), engine, progress)
        settings, of_film = wanted.draft.settings, plan.settings
        note = (
            f"{plan.spec.label}, {settings.steps} of {of_film.steps} steps, "
            f"{settings.width}x{settings.height}, seed {settings.seed}"
        )
        sheet = write_sheet(folder.path, wanted.key, plan.title, note, wanted.shown, pictures)
        return Drawn(sheet, forwards, time.monotonic() - began)


def _wanted(
    plan: Plan, others: Mapping[int, Plan], most: int, ingredients: dict[str, Any], device: str
) -> _Wanted:
    draft = draft_of(plan)
    facts = film_facts(draft, ingredients, device)
    keys = film_keys(draft, facts).latents
    shown, noises = [], []
    for segment, key in zip(draft.segments, keys, strict=True):
        index = segment.index
        own = plan.story["scenes"][index].get("seed")
        shown.append(Shown(index + 1, segment.scene, segment.action, own, True, key))
        noises.append(segment.seed)
        # A scene may have one of these seeds already, or noise that no seed of its own changes.
        noises_of = {seed: other.segments[index].seed for seed, other in others.items()}
        other_noises = [(seed, noise) for seed, noise in noises_of.items() if noise != segment.seed]
        for seed, noise in other_noises[: most - 1]:
            alone = (*draft.segments[:index], replace(segment, seed=noise))
            key = film_keys(replace(draft, segments=alone, seams=draft.seams[:index]), facts).latents[index]
            shown.append(Shown(index + 1, segment.scene, segment.action, seed, False, key))
            noises.append(noise)
    return _Wanted(draft, facts, shown, noises)


def _pictures(
    wanted: _Wanted, store: Store, engine: Engine, progress: Progress
) -> tuple[list[Image.Image], int]:
    """Return the pictures of what is shown, and how many model evaluations they took."""
    from PIL import Image

    from storyreel.denoise.prompts import all_prompts
    from storyreel.film.drafts import Drafts

    inventory = take_inventory(wanted.draft, wanted.facts, store.find)
    missing = [
        one.number for one in wanted.shown if store.find("latents", f"{one.number:02d}", one.key) is None
    ]
    scenes = len(wanted.draft.segments)
    forwards_to_come = len(missing) * wanted.draft.settings.steps
    progress.started(wanted.draft, scenes, scenes - len(set(missing)), forwards_to_come)
    adapter, scorer = engine.adapter_for(wanted.draft, progress.said), engine.scorer_for(wanted.draft)
    pictures: list[Image.Image] = []
    forwards = 0

    def after_forward(window: Sequence[SegmentState]) -> None:
        nonlocal forwards
        forwards += 1
        progress.forward()
        engine.stop.check()

    def compute() -> None:
        adapter.prepare(all_prompts(wanted.draft, scorer is not None))
        with engine.stop.held():  # a draft is finished in no time, and saved before a signal stops all
            draft(Drafts(inventory, store, adapter, scorer, lambda: engine.device_words(adapter)))

    def draft(drafts: Drafts) -> None:
        began = time.monotonic()
        for finished in drafts.denoise(inventory.undone, after_forward):
            drafts.save(finished, time.monotonic() - began)
            began = time.monotonic()
        pictures.clear()
        for one, noise in zip(wanted.shown, wanted.noises, strict=True):
            segment = replace(drafts.plan.segments[one.number - 1], seed=noise)
            latents = drafts.drafted(segment, one.key, after_forward)
            pictures.append(Image.fromarray(drafts.picture(segment, latents).numpy()))
            engine.stop.check()
            if one.number in missing:
                missing.remove(one.number)
                if one.number not in missing:
                    progress.segment_finished(segment)

    with_less_memory(
        adapter, compute, lambda mode: progress.said(f"out of memory: going on with --memory {mode}")
    )
    return pictures, forwards
