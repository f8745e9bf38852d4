"""The film's page: one HTML file beside the film, readable from disk without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from storyreel.film.inventory import Inventory
from storyreel.film.keys import film_tags
from storyreel.film.store import Decided, DecidedSeam
from storyreel.pages import filled
from storyreel.story.plan import Plan, Segment

SEAMS = {"fade": "fade through black", "dip": "dip to white"}
TEMPLATE = Path(__file__).with_name("film.html.j2")


def film_page(plan: Plan, name: str, tags: dict[str, str], decided: Mapping[str, Decided]) -> str:
    """Return the page: player, scenes to jump to, seams, and where the film comes from.

    ``decided`` is what the manifest says of each segment's seam and prompt weights.
    """
    scenes = [_scene(segment, decided.get(segment.number, {}), plan.spec.fps) for segment in plan.segments]
    return filled(TEMPLATE, title=plan.title, name=name, scenes=scenes, facts=tags)


def _scene(segment: Segment, made: Decided, fps: int) -> dict[str, str]:
    """Return what the page shows of a scene; nothing where there is nothing to show."""
    seam = made.get("seam")
    start, end = segment.start / fps, (segment.start + segment.frames) / fps
    return {
        "start": f"{start:g}",
        "end": f"{end:g}",
        "clock": f"{int(start) // 60}:{int(start) % 60:02d}",
        "scene": segment.scene,
        "action": "" if segment.action == segment.scene else segment.action,
        "seam": _seam(seam) if seam else "",
        "curve": _curve([] if segment.action == segment.scene else made.get("prompt_weights") or []),
    }


def _seam(seam: DecidedSeam) -> str:
    if not seam["overlap"]:
        return SEAMS.get(seam["transition"], seam["transition"])
    alike = "" if seam["similarity"] is None else f", actions {100 * seam['similarity']:.0f} % alike"
    return f"goes on in the shot from {seam['overlap']} latent frames{alike}"


def _curve(weights: Sequence[tuple[float, float]]) -> str:
    """Return the action prompt's weight over the denoising steps, as points from 0 at the bottom to 1."""
    if len(weights) < 2:
        return ""
    return " ".join(
        f"{100 * i / (len(weights) - 1):.1f},{100 - 100 * w:.1f}" for i, (_, w) in enumerate(weights)
    )


def film_page_of(name: str, film: dict[str, str], there: Inventory) -> str:
    """Return the page of a film."""
    decided = {
        s.number: there.latents[s.slot].decided for s in there.plan.segments if s.slot in there.latents
    }
    return film_page(there.plan, name, film_tags(there.plan, film.get("storyreel", "")), decided)
