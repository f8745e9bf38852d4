"""From a look at a film to its scores, scene by scene and seam by seam, and what runs differ by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from storyreel.evaluation.films import Film
from storyreel.evaluation.look import Look
from storyreel.evaluation.pictures import lab
from storyreel.evaluation.registry import CLIP, DINO, DINO1, LITE, METRICS, OWN, Metric
from storyreel.evaluation.seams import smoothness, transition
from storyreel.evaluation.statistics import paired_difference, spread

FROZEN = 0.1  # of 255: less than this from one frame to the next is no movement; codecs leave none
BLACK = 10.0  # of 255
MOVES = 1.0  # of 255
# Prompts whose texts are nearer than this say nearly the same: no picture need tell them apart.
ALIKE = {OWN: 0.7, CLIP: 0.9}

Scores = dict[str, float | None]


class TextEncoder(Protocol):
    """Turns texts into unit vectors."""

    def cut(self, prompts: Sequence[str]) -> int:
        """Return how many prompts it does not read whole."""
        ...

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Return unit vectors (P, D)."""
        ...


@torch.inference_mode()
def film_scores(film: Film, look: Look, texts: Mapping[str, TextEncoder]) -> dict[str, Any]:
    """Return a film's scores as plain data: of every scene, of every seam, and of the film.

    ``texts`` are the text-image encoders by name. What has no weights, or no meaning here, is absent.
    """
    scenes: list[dict[str, Any]] = [{} for _ in film.spans]
    seams: list[dict[str, Any]] = [{"after": after} for after in range(1, len(film.spans))]
    inside, around = _without_transitions(film), _transitions(film)
    _from_frames(film, look, inside, scenes)
    _from_vectors(film, look, texts, scenes)
    steps = look.frames.steps
    blended = [after for after in range(1, len(film.spans)) if film.spans[after].blended]
    smooth = smoothness(steps, [span.start for span in film.spans], blended, film.fps)
    for found in smooth.seams:
        seams[found.after - 1] |= {"seam_ratio": found.ratio, "largest_step": found.largest}
    for seam, distances in zip(seams, look.distances, strict=True):
        seam["blended"] = film.spans[seam["after"]].blended
        if distances is not None:
            seam |= dict(zip(("lpips", "lpips_seam"), distances, strict=True))
    if look.shots is not None:
        for seam, (start, stop) in zip(seams, around, strict=True):
            seam["shot_cut_seam"] = max(look.shots[start:stop])
        for scene, (start, stop) in zip(scenes, inside, strict=True):
            scene["shot_cut_inside"] = max(look.shots[start:stop], default=None)
    prompts = {
        text for span in film.spans for text in (span.scene, span.action, f"{span.scene} {span.action}")
    }
    cut = {name: encoder.cut(sorted(prompts)) for name, encoder in texts.items()}
    return {"scenes": scenes, "seams": seams, "film": _whole(scenes, seams), "prompts_cut": cut}


def _transitions(film: Film) -> list[tuple[int, int]]:
    """Return the frames around every seam."""
    starts = [span.start for span in film.spans]
    return [transition(starts, film.frames, after, film.fps) for after in range(1, len(starts))]


def _without_transitions(film: Film) -> list[tuple[int, int]]:
    """Return each scene's frames that no transition reaches; where none are left, all of them."""
    around = _transitions(film)
    found = []
    for index, span in enumerate(film.spans):
        start = around[index - 1][1] if index else span.start
        stop = around[index][0] if index < len(around) else span.stop
        found.append((start, stop) if stop - start > 1 else (span.start, span.stop))
    return found


def _from_frames(
    film: Film, look: Look, inside: Sequence[tuple[int, int]], scenes: Sequence[dict[str, Any]]
) -> None:
    """Add what needs no weights."""
    frames, fps = look.frames, film.fps
    moving = [step for a, b in inside for step in frames.steps[a : b - 1] if step >= FROZEN]
    usual = median(moving) if moving else 0.0
    whites = lab(torch.tensor(frames.white))[:, 1:]  # without lightness
    first = whites[film.spans[0].start : film.spans[0].stop].mean(0)
    for span, (start, stop), scene in zip(film.spans, inside, scenes, strict=True):
        steps = frames.steps[span.start : span.stop - 1]
        quiet = frames.steps[start : stop - 1]
        similarity = [
            value for value in frames.similarity[span.start : span.stop - 1] if not math.isnan(value)
        ]
        white = whites[span.start : span.stop].mean(0)
        place = start + max(range(len(quiet)), key=quiet.__getitem__) + 1 if quiet else span.start
        still, still_from = _longest_run([step < FROZEN for step in steps])
        scene |= {
            "seconds": [span.start / fps, span.stop / fps],
            "motion": fmean(quiet) if quiet else None,
            "moving": float(fmean(quiet) > MOVES) if quiet else None,
            "flicker": (255 - fmean(steps)) / 255 if steps else None,
            "ssim": fmean(similarity) if similarity else None,
            "jump": max(quiet) / usual if quiet and usual else None,
            "jump_at": place / fps,
            "colour_drift": float((white - first).norm()),
            "frozen": (still + 1) / fps if still else 0.0,
            "frozen_at": (span.start + still_from) / fps if still else None,
            "black": sum(b < BLACK for b in frames.brightness[span.start : span.stop]) / fps,
            "clipped": 100 * fmean(frames.clipped[span.start : span.stop]),
        }


def _longest_run(flags: Sequence[bool]) -> tuple[int, int]:
    """Return the length of the longest run of True, and where it begins."""
    best = start = length = 0
    for index, flag in enumerate(flags):
        length = length + 1 if flag else 0
        if length > best:
            best, start = length, index - length + 1
    return best, start


def _from_vectors(
    film: Film, look: Look, texts: Mapping[str, TextEncoder], scenes: Sequence[dict[str, Any]]
) -> None:
    """Add what encoders say of the pictures, and of pictures and prompts."""
    for name, metric in ((DINO, "dino"), (LITE, "features")):
        for scene, seen in zip(scenes, look.scenes, strict=True):
            if name in seen.vectors and len(vectors := seen.vectors[name]) > 1:
                scene[metric] = float((vectors[1:] * vectors[:-1]).sum(1).mean())
    for name, metric in ((DINO1, "subject_consistency"), (CLIP, "background_consistency")):
        if all(name in seen.vectors for seen in look.scenes):
            for scene, value in zip(
                scenes, _consistency([s.vectors[name] for s in look.scenes]), strict=True
            ):
                scene[metric] = value
    for scene, seen in zip(scenes, look.scenes, strict=True):
        scene |= {f"blip_{key}": value for key, value in seen.blip.items()}
    if CLIP in texts:
        _from_texts(film, look, texts[CLIP], CLIP, ("clip_told_apart", "clip_identity"), scenes)
    if OWN in texts:
        _from_texts(film, look, texts[OWN], OWN, ("told_apart", "identity"), scenes)


def _consistency(scenes: Sequence[Tensor]) -> list[float | None]:
    """Return each scene's consistency, of its pictures (n, D) with the one before and the film's first."""
    found: list[float | None] = []
    first, before = scenes[0][0], None
    for vectors in scenes:
        values = []
        for vector in vectors:
            if before is not None:
                values.append((max(0.0, float(vector @ before)) + max(0.0, float(vector @ first))) / 2)
            before = vector
        found.append(fmean(values) if values else None)
    return found


def _from_texts(
    film: Film,
    look: Look,
    encoder: TextEncoder,
    name: str,
    margins: tuple[str, str],
    scenes: Sequence[dict[str, Any]],
) -> None:
    """Add the cosines of a scene's pictures with its prompts, and how far other prompts lie behind."""
    prompts = [span.scene for span in film.spans]
    embedded = dict(
        zip(different := list(dict.fromkeys(prompts)), encoder.embed_texts(different), strict=True)
    )
    for span, seen, scene in zip(film.spans, look.scenes, scenes, strict=True):
        vectors = seen.vectors[name].to(embedded[span.scene].device)
        action, both = encoder.embed_texts([span.action, f"{span.scene} {span.action}"])
        fits = {text: float((vectors @ vector).mean()) for text, vector in embedded.items()}
        fit, act = fits.pop(span.scene), float((vectors @ action).mean())
        if name == CLIP:
            scene |= {"clip_add": (fit + act) / 2, "clip_combined": float((vectors @ both).mean())}
        else:
            scene |= {"scene_fit": fit, "action_fit": act}
        near = {text for text in fits if float(embedded[text] @ embedded[span.scene]) > ALIKE[name]}
        if fits := {text: value for text, value in fits.items() if text not in near}:
            best = max(fits, key=fits.__getitem__)
            scene[margins[0]] = fit - fits[best]
            scene[f"{margins[0]}_from"] = prompts.index(best) + 1
        if span.others:
            rivals = encoder.embed_texts(list(span.others.values()))
            fitting = (vectors @ rivals.T).mean(0)
            scene[margins[1]] = fit - float(fitting.max())
            scene[f"{margins[1]}_rival"] = list(span.others)[int(fitting.argmax())]


def _whole(scenes: Sequence[Mapping[str, Any]], seams: Sequence[Mapping[str, Any]]) -> Scores:
    """Return the film's own value of every metric: means over scenes, medians over blended seams."""
    found: Scores = {}
    for metric in METRICS.values():
        if metric.scope == "scene":
            values = [scene[metric.name] for scene in scenes if scene.get(metric.name) is not None]
            found[metric.name] = fmean(values) if values else None
        else:
            kept = [seam for seam in seams if seam["blended"]]
            values = [seam[metric.name] for seam in kept if seam.get(metric.name) is not None]
            found[metric.name] = median(values) if values else None
    return found


def worst(metric: Metric, scores: Mapping[str, Any], count: int = 1) -> list[int]:
    """Return the positions of a metric's worst scenes or seams, the worst first; of cuts, none."""
    entries = scores["scenes"] if metric.scope == "scene" else scores["seams"]
    sign = 1 if metric.better == "lower" else -1
    ranked = [
        (sign * entry[metric.name], index)
        for index, entry in enumerate(entries)
        if entry.get(metric.name) is not None and entry.get("blended", True)
    ]
    return [index for _, index in sorted(ranked, key=lambda pair: (-pair[0], pair[1]))[:count]]


def compare(films: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and spread of every metric over a run's films, and runs' paired differences to the first.

    Films are paired by name; a number that one of a pair lacks leaves the pair out.
    """
    runs: dict[str, dict[str, Mapping[str, float | None]]] = {}
    for film in films:
        runs.setdefault(film["run"], {})[film["name"]] = film["scores"]["film"]
    summary = {
        run: {
            name: asdict(found)
            if (found := spread([v for f in of.values() if (v := f[name]) is not None]))
            else None
            for name in METRICS
        }
        for run, of in runs.items()
    }
    first, *others = runs
    differences: dict[str, Any] = {}
    for run in others:
        differences[run] = {}
        for name in METRICS:
            pairs = (
                (of[name], runs[first][film][name]) for film, of in runs[run].items() if film in runs[first]
            )
            values = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
            found_difference = paired_difference(values, np.random.default_rng(0))
            differences[run][name] = asdict(found_difference) if found_difference else None
    return {"summary": summary, "differences": differences}
