"""What becomes of a look at a film: with a planted encoder, whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from storyreel.evaluation.films import Film, Span
from storyreel.evaluation.findings import findings
from storyreel.evaluation.look import FrameNumbers, Look, SceneLook
from storyreel.evaluation.registry import CLIP, DINO, DINO1, METRICS, OWN
from storyreel.evaluation.report import worst_places
from storyreel.evaluation.score import compare, film_scores

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}
SCENES = ("red", "green", "blue")


class Painter:
    """Knows what colours a text names."""

    def cut(self, prompts: Sequence[str]) -> int:
        return sum(len(prompt.split()) > 4 for prompt in prompts)

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        found = [
            sum((torch.tensor(COLOURS[w]) for w in p.split() if w in COLOURS), torch.zeros(3))
            for p in prompts
        ]
        return F.normalize(torch.stack(found) + 1e-3, dim=1)


def film(prompts: Sequence[str] = SCENES, length: int = 24) -> Film:
    others = {"a panda": "green"}
    spans = tuple(
        Span(
            prompt,
            f"a thing moves {prompt}",
            length * i,
            length * (i + 1),
            i > 0,
            others if prompt == "red" else {},
        )
        for i, prompt in enumerate(prompts)
    )
    return Film("run", "colours", Path("colours.mp4"), "Colours", 12.0, spans, "mini")


def look(frames: Tensor, vectors: Sequence[dict[str, Tensor]], length: int = 24) -> Look:
    numbers = FrameNumbers()
    for chunk in frames.split(7):
        numbers.see(chunk)
    scenes = [SceneLook(v, {}, b"", b"", b"") for v in vectors]
    return Look(numbers, scenes, [None] * (len(vectors) - 1), None)


def painted(colours: Sequence[str] = SCENES, length: int = 24) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Frames that move a little, and each scene's pictures as vectors."""
    base = torch.tensor([COLOURS[colour] for colour in colours]).repeat_interleave(length, 0) * 200
    flicker = torch.arange(len(base)) % 2 * 4
    frames = (base + flicker[:, None]).to(torch.uint8)[:, None, None].expand(-1, 16, 16, 3)
    vectors = [Painter().embed_texts([colour]).expand(4, -1) for colour in colours]
    return frames, [{OWN: v, CLIP: v, DINO: v, DINO1: v} for v in vectors]


def scored(prompts: Sequence[str] = SCENES, colours: Sequence[str] = SCENES) -> dict[str, Any]:
    return film_scores(film(prompts), look(*painted(colours)), {OWN: Painter(), CLIP: Painter()})


def test_right_prompts_beat_rotated_ones() -> None:
    right, rotated = scored()["film"], scored(("green", "blue", "red"))["film"]
    for metric in ("clip_add", "clip_combined", "clip_told_apart", "scene_fit", "action_fit", "told_apart"):
        assert right[metric] > rotated[metric] + 0.5, metric
    assert right["clip_add"] == pytest.approx(1, abs=0.01)


def test_prompts_that_an_encoder_cuts_are_counted() -> None:
    assert scored()["prompts_cut"] == {OWN: 3, CLIP: 3}  # scene and action together


def test_a_scene_is_told_from_the_one_it_looks_like() -> None:
    scores = scored(colours=("red", "blue", "blue"))
    entry = scores["scenes"][1]
    assert entry["told_apart"] < -0.9
    assert entry["told_apart_from"] == 3
    assert [f.scene for f in findings(film(), scores) if f.metric == "told_apart"] == [2]


def test_prompts_that_say_nearly_the_same_are_no_rivals() -> None:
    scores = scored(("red", "red , again", "blue"), ("red", "red", "blue"))
    assert [entry["told_apart_from"] for entry in scores["scenes"]] == [3, 3, 1]


def test_another_character_is_told_by_name() -> None:
    entry = scored(colours=("green", "green", "blue"))["scenes"][0]
    assert entry["identity"] < -0.9
    assert entry["identity_rival"] == "a panda"
    assert "identity" not in scored()["scenes"][1]  # nobody else is named there


def test_identical_pictures_are_consistent_and_shuffled_ones_less() -> None:
    ramp = F.normalize(torch.stack([torch.linspace(0.1, 1, 12), torch.linspace(1, 0.1, 12)], 1), dim=1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    frames, same = painted()
    looks = [same, *([{DINO: v, DINO1: v, CLIP: v}] * 3 for v in (ramp, ramp[order]))]
    values = [film_scores(film(), look(frames, vectors), {})["film"] for vectors in looks]
    assert values[0]["dino"] == pytest.approx(1)
    for metric in ("dino", "subject_consistency", "background_consistency"):
        assert values[1][metric] > values[2][metric] + 0.01, metric


def test_frames_tell_where_they_stand_still_jump_and_are_black() -> None:
    frames, vectors = painted()
    spoilt = frames.clone()
    spoilt[6:17] = spoilt[6]  # eleven frames of scene 1
    spoilt[36:] = 5  # the film is black from the middle of scene 2 on
    scores = film_scores(film(), look(spoilt, vectors), {})
    first, second, third = scores["scenes"]
    assert (first["frozen"], first["frozen_at"]) == (11 / 12, 0.5)
    assert second["black"] == 1.0
    assert third["black"] == 2.0
    assert second["jump_at"] == 3.0
    assert second["jump"] > 10
    assert {f.metric for f in findings(film(), scores)} >= {"frozen", "black", "jump"}
    assert film_scores(film(), look(frames, vectors), {})["film"]["frozen"] == 0


def test_smoothness_comes_with_motion() -> None:
    """A still is perfectly smooth: that it does not move is beside it."""
    frames, vectors = painted()
    still = film_scores(film(), look(frames[:1].expand(72, -1, -1, -1), vectors), {})["film"]
    assert still["flicker"] == 1
    assert still["ssim"] == pytest.approx(1, abs=1e-5)
    assert still["motion"] == still["moving"] == 0
    moving = film_scores(film(), look(frames, vectors), {})["film"]
    assert moving["motion"] > 1
    assert moving["flicker"] < 1


def test_cuts_that_are_meant_are_no_bad_seams() -> None:
    cut = film()
    spans = (cut.spans[0], *(Span(s.scene, s.action, s.start, s.stop, False) for s in cut.spans[1:]))
    cut = Film(cut.run, cut.name, cut.path, cut.title, cut.fps, spans, cut.model)
    scores = film_scores(cut, look(*painted()), {})
    assert scores["film"]["seam_ratio"] is None
    assert "seam_ratio" not in {f.metric for f in findings(cut, scores)}
    assert worst_places("seam", scores["seams"]) == []
    blended = scored()
    assert blended["film"]["seam_ratio"] > 10
    assert "seam_ratio" in {f.metric for f in findings(film(), blended)}


def test_runs_are_paired_by_film() -> None:
    def row(run: str, name: str, motion: float | None) -> dict[str, Any]:
        return {"run": run, "name": name, "scores": {"film": dict.fromkeys(METRICS) | {"motion": motion}}}

    found = compare([row("a", "x", 1.0), row("a", "y", 2.0), row("b", "y", 5.0), row("b", "z", 9.0)])
    assert found["summary"]["a"]["motion"] == {"mean": 1.5, "std": pytest.approx(0.5**0.5), "count": 2}
    assert found["differences"]["b"]["motion"] == {"mean": 3.0, "low": None, "high": None, "pairs": 1}
    assert found["summary"]["a"]["lpips"] is None


def test_the_worst_places_are_those_furthest_from_the_usual() -> None:
    jumps = [1.0, 1.1, 0.9, 9.0, 1.0]
    entries = [{"jump": jump, "frozen": 0.0, "motion": 50.0 * i} for i, jump in enumerate(jumps)]
    entries[1]["frozen"] = 0.5
    found = [(index, metric.name) for index, metric in worst_places("scene", entries)]
    assert set(found[:2]) == {(3, "jump"), (1, "frozen")}
    assert "motion" not in [name for _, name in found]
