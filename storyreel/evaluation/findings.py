"""What is wrong with a film, in plain words: what its scores say where they leave the usual range.

The limits were set on films of the embedded model, unspoiled ones and ones with planted faults, and leave a
wide margin to both. They are for pointing at places to look at, not for judging methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storyreel.evaluation.films import Film


@dataclass(frozen=True)
class Finding:
    """Something wrong: in which scene or at which seam (from 1; a seam is before its scene), and where."""

    metric: str
    scene: int
    seconds: float
    words: str


@dataclass(frozen=True)
class _Rule:
    """``wrong`` tells whether a value is; ``words`` says so, of the scene's or seam's own scores."""

    metric: str
    wrong: Callable[[float], bool]
    words: Callable[[Mapping[str, Any]], str]
    at: str | None = None  # the score that says when
    since: str | None = None  # the score that is the same where one fault goes on: it is said once


_SCENE_RULES = (
    _Rule("shown", lambda v: v == 0, lambda s: "cannot be recognised"),
    _Rule("clip_shown", lambda v: v == 0, lambda s: "shows nothing that the story tells of"),
    _Rule("told_apart", lambda v: v < -0.05, lambda s: f"looks like scene {s['told_apart_from']}"),
    _Rule("clip_told_apart", lambda v: v < -0.03, lambda s: f"looks like scene {s['clip_told_apart_from']}"),
    _Rule(
        "identity", lambda v: v < 0, lambda s: f"shows another character, most likely {s['identity_rival']}"
    ),
    _Rule(
        "clip_identity",
        lambda v: v < -0.02,
        lambda s: f"shows another character, most likely {s['clip_identity_rival']}",
    ),
    _Rule("looks", lambda v: v == 0, lambda s: f"should show {s['looks_missing']}"),
    _Rule(
        "frozen", lambda v: v >= 0.5, lambda s: f"stands still for {s['frozen']:.2g} s from here", "frozen_at"
    ),
    _Rule("black", lambda v: v >= 0.2, lambda s: f"is black for {s['black']:.2g} s"),
    _Rule(
        "jump",
        lambda v: v > 6,
        lambda s: f"has a hard cut inside: {s['jump']:.0f} times the usual change of a frame",
        "jump_at",
    ),
    _Rule(
        "colour_drift",
        lambda v: v > 8,
        lambda s: (
            f"has another tint at its end than where its shot begins, in scene {s['colour_drift_since']} "
            f"(ΔE {s['colour_drift']:.0f})"
        ),
        since="colour_drift_since",
    ),
)
# What is said instead where a rule holds for every scene.
WHOLE = {
    "shown": "No scene can be recognised: no characters and scenes are told apart.",
    "clip_shown": "No scene shows anything that the story tells of: no characters and scenes are told apart.",
}
_SEAM_RULES = (
    _Rule(
        "seam_ratio",
        lambda v: v > 4,
        lambda s: f"the film jumps: {s['seam_ratio']:.0f} times the usual change of a frame",
    ),
)


def findings(film: Film, scores: Mapping[str, Any]) -> list[Finding]:
    """Return what is wrong, in the order of the film."""
    found = [*_of_scenes(film, scores["scenes"]), *_of_seams(film, scores["seams"])]
    return sorted(found, key=lambda finding: finding.seconds)


def _of_scenes(film: Film, scenes: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    strangers = [name for name in WHOLE if len(scenes) > 1 and all(s.get(name) == 0 for s in scenes)]
    for name in strangers:  # said once, not of every scene
        yield Finding(name, 1, 0.0, WHOLE[name])
    told: set[tuple[str, Any]] = set()
    for number, (span, scene) in enumerate(zip(film.spans, scenes, strict=True), 1):
        for rule in (rule for rule in _SCENE_RULES if rule.metric not in strangers):
            value = scene.get(rule.metric)
            if value is not None and rule.wrong(value):
                if rule.since and (fault := (rule.metric, scene[rule.since])) in told:
                    continue
                elif rule.since:
                    told.add(fault)
                seconds = scene[rule.at] if rule.at else span.start / film.fps
                yield Finding(
                    rule.metric, number, film.time_of(seconds), f"Scene {number} {rule.words(scene)}."
                )


def _of_seams(film: Film, seams: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for seam in seams:
        after = seam["after"]
        if not (seam["blended"] and film.spans[after].goes_on):
            continue  # a cut or a dissolve that is meant is no fault
        for rule in _SEAM_RULES:
            value = seam.get(rule.metric)
            if value is not None and rule.wrong(value):
                words = f"Between scenes {after} and {after + 1} {rule.words(seam)}."
                at = film.time_of(film.spans[after].start / film.fps)
                yield Finding(rule.metric, after + 1, at, words)
