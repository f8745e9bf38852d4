"""From what was seen of a film to its scores: scene by scene, seam by seam, and of all of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import Any, Protocol

import torch
from torch import Tensor

from storyreel.evaluation.films import Film
from storyreel.evaluation.frames import Look, wanted_frames
from storyreel.evaluation.kept import looks_by_distance, looks_kept, places_kept
from storyreel.evaluation.metrics import known_metrics
from storyreel.evaluation.picture_measures import lab
from storyreel.evaluation.seams import FROZEN, quiet_parts, seam_steps, transition, usual_step
from storyreel.evaluation.tints import drifts
from storyreel.evaluation.verdicts import FilmVerdict
from storyreel.evaluation.weights import BLIP, CLIP, DINO, DINO1, LITE, OWN
from storyreel.evaluation.yardsticks import drift_between_ends, similarity_by_distance, to_centroid

BLACK = 10.0  # of 255
MOVES = 1.0  # of 255
# Prompts whose texts are nearer than this say nearly the same: no picture need tell them apart.
ALIKE = {OWN: 0.7, CLIP: 0.9}
# What pictures show that show none of a story's scenes, in words that CLIP knows.
NOTHING = (
    "a television test card with colour bars",
    "random noise",
    "a blank screen of one colour",
    "a smooth colour gradient",
    "an abstract pattern",
)

Scores = dict[str, float | None]


class TextReader(Protocol):
    """Reads texts, up to some length."""

    @property
    def longest(self) -> int:
        """How many tokens of a text it reads."""
        ...

    def cut(self, prompts: Sequence[str]) -> int:
        """Return how many prompts it does not read whole."""
        ...


class TextEncoder(TextReader, Protocol):
    """Turns texts into unit vectors."""

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Return unit vectors (P, D)."""
        ...


@torch.inference_mode()
def film_scores(
    film: Film,
    look: Look,
    texts: Mapping[str, TextEncoder],
    readers: Mapping[str, TextReader] | None = None,
    verdict: FilmVerdict | None = None,
) -> dict[str, Any]:
    """Return a film's scores as plain data: of every scene, of every border, and of the film.

    ``texts`` are the text-image encoders by name, ``readers`` what else was given the prompts, ``verdict`` is
    what the judge of the film's model says. What has no weights, or no meaning here, is absent.
    """
    scenes: list[dict[str, Any]] = [{} for _ in film.spans]
    seams: list[dict[str, Any]] = [{"after": after} for after in range(1, len(film.spans))]
    starts = [span.start for span in film.spans]
    inside = quiet_parts(starts, film.frames, film.fps)
    _from_frames(film, look, inside, scenes)
    yardsticks: Scores = {"drift_motion": drift_between_ends(_quiet_steps(look, inside), film.frames)}
    if CLIP in texts:
        yardsticks["drift_semantic"] = drift_between_ends(_semantic(film, look, texts[CLIP]), film.frames)
    _from_vectors(film, look, texts, scenes)
    shots = [seen.shot for seen in look.scenes if seen.shot is not None]
    if shots:
        _from_shots(film, shots, seams)
        yardsticks["shot_similarity"] = to_centroid(_middles(shots))
    for seam, found in zip(seams, seam_steps(look.frames.steps, starts, film.fps), strict=True):
        seam |= {"seam_ratio": found.ratio, "largest_step": found.largest}
    for seam, distances in zip(seams, look.distances, strict=True):
        span = film.spans[seam["after"]]
        seam["blended"] = span.blended
        if span.sides is not None:
            seam["sides"] = span.sides
        if distances is not None:
            seam |= dict(zip(("lpips", "lpips_seam"), distances, strict=True))
    for seam, plugged in zip(seams, look.plugged_seams, strict=False):
        seam |= plugged
    for seam, share in zip(seams, look.doubles, strict=True):
        if share is not None:
            seam["double_exposure"] = 100 * share
    if look.shots is not None:
        for seam in seams:
            first, last = transition(starts, film.frames, seam["after"], film.fps)
            seam["shot_cut_seam"] = max(look.shots[first:last])
        for scene, (start, stop) in zip(scenes, inside, strict=True):
            scene["shot_cut_inside"] = max(look.shots[start:stop], default=None)
    if verdict is not None:
        _from_verdict(verdict, scenes, seams)
    cut = [one for item in {**texts, **(readers or {})}.items() if (one := _cut(film, *item))]
    scores: dict[str, Any] = {
        "scenes": scenes,
        "seams": seams,
        "film": _whole(film, scenes, seams, yardsticks),
        "prompts_cut": cut,
    }
    if verdict is not None and (by_distance := looks_by_distance(verdict.seen)):
        scores["looks_by_distance"] = by_distance
    if len(shots) > 1:
        scores["similarity_by_distance"] = similarity_by_distance(_middles(shots))
    return scores


def _cut(film: Film, name: str, reader: TextReader) -> dict[str, Any] | None:
    """Say how many of the texts that an encoder was given it did not read whole; None if it did."""
    joined = [span.prompt for span in film.spans]
    parts = [text for span in film.spans for text in (span.scene, span.action)]
    texts = sorted({*joined, *parts} if name != BLIP else set(joined))
    count = reader.cut(texts)
    return {"encoder": name, "cut": count, "of": len(texts), "reads": reader.longest} if count else None


def _from_frames(
    film: Film, look: Look, inside: Sequence[tuple[int, int]], scenes: Sequence[dict[str, Any]]
) -> None:
    """Add what needs no weights."""
    frames, fps = look.frames, film.fps
    usual = usual_step(frames.steps, inside)
    colours = torch.cat([lab(chunk)[..., 1:] for chunk in frames.patches])  # without lightness
    drifted = drifts(film.spans, inside, colours, fps)
    for span, (start, stop), drift, scene in zip(film.spans, inside, drifted, scenes, strict=True):
        steps = frames.steps[span.start : span.stop - 1]
        quiet = frames.steps[start : stop - 1]
        similarity = [
            value for value in frames.similarity[span.start : span.stop - 1] if not math.isnan(value)
        ]
        seen = span.clear(fps)
        clear = slice(seen.start, seen.stop)
        place = start + max(range(len(quiet)), key=quiet.__getitem__) + 1 if quiet else span.start
        still, still_from = _longest_run([step < FROZEN for step in steps])
        scene |= {
            "seconds": [film.time_of(span.start / fps), film.time_of(span.start / fps) + span.frames / fps],
            "motion": fmean(quiet) if quiet else None,
            "moving": float(fmean(quiet) > MOVES) if quiet else None,
            "flicker": (255 - fmean(steps)) / 255 if steps else None,
            "ssim": fmean(similarity) if similarity else None,
            "jump": max(quiet) / usual if quiet and usual else None,
            "jump_at": place / fps,
            "colour_drift": None if drift is None else drift.distance,
            "colour_drift_since": None if drift is None else drift.since + 1,
            "frozen": (still + 1) / fps if still else 0.0,
            "frozen_at": (span.start + still_from) / fps if still else None,
            "black": sum(b < BLACK for b in frames.brightness[clear]) / fps,
            "clipped": 100 * fmean(frames.clipped[clear]),
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
        scene |= seen.plugged
    if CLIP in texts:
        _from_texts(film, look, texts[CLIP], CLIP, scenes)
    if OWN in texts:
        _from_texts(film, look, texts[OWN], OWN, scenes)


def _from_shots(film: Film, shots: Sequence[Tensor], seams: Sequence[dict[str, Any]]) -> None:
    """Add how alike the two sides of a border are, where the story lets the shot go on across it.

    ``shots`` are unit vectors (3, D) of each scene's first, middle and last picture.
    """
    for seam, before, behind in zip(seams, shots, shots[1:], strict=False):
        if film.spans[seam["after"]].blended and film.spans[seam["after"]].goes_on:
            seam["boundary_similarity"] = float(before[2] @ behind[0])
            seam["boundary_of_stills"] = float(before[0] @ behind[0])


def _middles(shots: Sequence[Tensor]) -> Tensor:
    return torch.stack([shot[1] for shot in shots])


def _quiet_steps(look: Look, inside: Sequence[tuple[int, int]]) -> Iterator[tuple[int, float]]:
    """Yield the steps to the next frame, transitions left out, each with the frame's place."""
    for start, stop in inside:
        yield from enumerate(look.frames.steps[start : stop - 1], start)


def _semantic(film: Film, look: Look, clip: TextEncoder) -> Iterator[tuple[int, float]]:
    """Yield how well each sampled picture fits its scene's whole prompt, with its place."""
    for span, seen in zip(film.spans, look.scenes, strict=True):
        (text,) = clip.embed_texts([span.prompt])
        fits = (seen.vectors[CLIP].to(text.device) @ text).tolist()
        yield from zip(wanted_frames(span.clear(film.fps))[1:-1], fits, strict=False)


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
    scenes: Sequence[dict[str, Any]],
) -> None:
    """Add the cosines of a scene's pictures with its prompts, and how far other prompts lie behind.

    Where the pictures show none of all that, nothing is said of who and what they show.
    """
    prefix = "clip_" if name == CLIP else ""
    prompts = [span.scene for span in film.spans]
    embedded = dict(
        zip(different := list(dict.fromkeys(prompts)), encoder.embed_texts(different), strict=True)
    )
    for span, seen, scene in zip(film.spans, look.scenes, scenes, strict=True):
        vectors = seen.vectors[name].to(embedded[span.scene].device)
        action, both = encoder.embed_texts([span.action, span.prompt])
        fits = {text: float((vectors @ vector).mean()) for text, vector in embedded.items()}
        fit, act = fits.pop(span.scene), float((vectors @ action).mean())
        if name == CLIP:
            scene |= {"clip_add": (fit + act) / 2, "clip_combined": float((vectors @ both).mean())}
        else:
            scene |= {"scene_fit": fit, "action_fit": act}
        rivals = encoder.embed_texts(list(span.others.values())) if span.others else ()
        others = {
            who: float((vectors @ rival).mean()) for who, rival in zip(span.others, rivals, strict=True)
        }
        if name == CLIP:
            nothing = float((vectors @ encoder.embed_texts(NOTHING).T).mean(0).max())
            scene["clip_shown"] = float(nothing <= max(fit, act, *fits.values(), *others.values()))
        elif seen.strangeness is not None:
            scene["shown"] = float(seen.strangeness <= 1)
        if scene.get(f"{prefix}shown") == 0:  # a choice among what is known finds somebody in a test card
            continue
        near = {text for text in fits if float(embedded[text] @ embedded[span.scene]) > ALIKE[name]}
        if fits := {text: value for text, value in fits.items() if text not in near}:
            best = max(fits, key=fits.__getitem__)
            scene[f"{prefix}told_apart"] = fit - fits[best]
            scene[f"{prefix}told_apart_from"] = prompts.index(best) + 1
        if others:
            rival = max(others, key=others.__getitem__)
            scene |= {f"{prefix}identity": fit - others[rival], f"{prefix}identity_rival": rival}


def _from_verdict(
    verdict: FilmVerdict, scenes: Sequence[dict[str, Any]], seams: Sequence[dict[str, Any]]
) -> None:
    """Add what a judge says: what is right is 100, what is wrong 0."""
    for scene, said in zip(scenes, verdict.scenes, strict=True):
        found = asdict(said)
        if missing := found.pop("looks_missing"):
            scene["looks_missing"] = missing
        scene |= {name: 100.0 * right for name, right in found.items() if right is not None}
    for seam in verdict.seams:
        seams[seam.after - 1] |= {
            "transition_characters": 100.0 * seam.characters,
            "same_place": seam.same_place,
            "twice": None if seam.twice is None else 100 * seam.twice,
            "pose_jump": seam.jump,
            "pose_turn": seam.turn,
        }
    for scene, looks, place in zip(scenes, looks_kept(verdict.seen), places_kept(verdict.seen), strict=False):
        scene |= looks | place


def _whole(
    film: Film,
    scenes: Sequence[Mapping[str, Any]],
    seams: Sequence[Mapping[str, Any]],
    yardsticks: Scores,
) -> Scores:
    """Return the film's own value of every metric: means over scenes, medians or means over seams.

    Seams are the borders that the story wants smooth; where it wants none, all borders are. ``yardsticks``
    are made of the whole film already.
    """

    def values(entries: Sequence[Mapping[str, Any]], name: str) -> list[float]:
        return [entry[name] for entry in entries if entry.get(name) is not None]

    def middle(found: Sequence[float]) -> float | None:
        return median(found) if found else None

    def mean(found: Sequence[float]) -> float | None:
        return fmean(found) if found else None

    smooth = [seam for seam in seams if seam["blended"]]
    staying, changing = ([s for s in smooth if s.get("same_place") is same] for same in (True, False))
    of_film: Scores = {
        "transition_characters": mean(values(smooth, "transition_characters")),
        "sides_same_place": middle(values(staying, "sides")),
        "double_exposure_same_place": mean(values(staying, "double_exposure")),
        "seam_ratio_same_place": middle(values(staying, "seam_ratio")),
        "pose_jump_same_place": middle(values(staying, "pose_jump")),
        **{
            name: mean(values(scenes, name))
            for name in ("look_kept_absent", "light_same", "arrangement_same")
        },
        "largest_step_place_change": middle(values(changing, "largest_step")),
        "largest_step_max": max(values(smooth, "largest_step"), default=None),
        **yardsticks,
        **film.cost,
    }
    found: Scores = {}
    for name, metric in known_metrics().items():
        if metric.scope == "scene":
            found[name] = mean(values(scenes, name))
        elif metric.scope == "seam":
            of_seams = values(smooth or seams, name)
            found[name] = mean(of_seams) if metric.over_seams == "mean" else middle(of_seams)
        else:
            found[name] = of_film.get(name)
    return found
