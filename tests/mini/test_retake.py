"""A scene of a real film is taken again: mini, its VAE and ffmpeg, in few steps."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storyreel.film.reader import read_frames
from storyreel.models.specs import MODELS
from storyreel.rendering import Engine, render
from tests.conftest import Silent, plan_of

LINES = [
    ("{dog} is in Central Park", "{dog} is walking"),
    ("{dog} is in Central Park", "{dog} is looking up at the sky"),
    ("{dog} is at Times Square", "{dog} is sitting"),
]
TAKES = ["{take: 2, action: '{dog} is running'}", "{take: 3, seed: 5}", "2"]
ORDERS = [(0, 1, 2), (2, 1, 0), (1,)]  # in which they are made; the last as far as it tells something new
STEPS = 2
LENGTH = 12  # frames of a scene


def story(taken: tuple[int, ...] = ()) -> str:
    lines = ["cast: {dog: {name: a corgi dog}}", "scenes:"]
    for index, (scene, action) in enumerate(LINES):
        retake = f", retake: {TAKES[index]}" if index in taken else ""
        lines.append(f"  - {{scene: '{scene}', action: '{action}'{retake}}}")
    return "\n".join(lines)


def made(out: Path, engine: Engine, taken: tuple[int, ...] = ()) -> int:
    """Render, and return how many model evaluations that took."""
    progress = Silent()
    render(plan_of(story(taken), steps=STEPS, seconds=LENGTH / 12), "dog", out, engine, progress)
    return progress.forwards


def latents(out: Path) -> list[bytes]:
    manifest = json.loads((out / "dog" / "manifest.json").read_text())
    names = (name for s in manifest["segments"] for name in s["files"] if name.endswith(".safetensors"))
    return [(out / "dog" / "segments" / name).read_bytes() for name in names]


def sides(out: Path) -> list[float]:
    """How far the sides of the seams are apart where the shot goes on."""
    manifest = json.loads((out / "dog" / "manifest.json").read_text())
    seams = [s["decided"]["seam"] for s in manifest["segments"]]
    return [seam["sides"] for seam in seams if seam and seam["overlap"]]


def frames(out: Path) -> np.ndarray[Any, Any]:
    data = b"".join(read_frames(out / "dog" / "dog.mp4", 192, 128))
    return np.frombuffer(data, np.uint8).reshape(3, LENGTH, 128, 192, 3)


@pytest.mark.slow  # ten scenes are denoised
def test_three_retakes_give_one_film_in_either_order_and_leave_all_else_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each retake is made in a copy of the film with those before it."""
    monkeypatch.setitem(MODELS, "mini", replace(MODELS["mini"], upscale=1))  # to encode less
    engine = Engine("cpu")
    assert made(tmp_path, engine) == 3 * STEPS
    before, pictures, apart = latents(tmp_path), frames(tmp_path), sides(tmp_path)
    places: dict[tuple[int, ...], Path] = {(): tmp_path}
    for order in ORDERS:
        for count in range(1, len(order) + 1):
            taken = order[:count]
            index, earlier = taken[-1], places[taken[:-1]]
            out = places[taken] = tmp_path / "-".join(map(str, taken))
            shutil.copytree(earlier / "dog", out / "dog")
            shown = latents(out)
            assert made(out, engine, taken) == STEPS
            same = [a == b for a, b in zip(shown, latents(out), strict=True)]
            assert same == [i != index for i in range(3)]
            if count == 1:  # away from dissolves, no picture of another scene has changed
                changed = np.abs(frames(out).astype(int) - pictures).reshape(3, LENGTH, -1).max(2)
                others = [i for i in range(3) if i != index]
                assert not changed[others, 3:-3].any()
                assert changed[index, 3:-3].any()
                assert max(sides(out)) < max(apart) + 3  # without blending, some 40
    whole = [places[order] for order in ORDERS[:2]]
    assert all(latents(out) != before for out in whole)
    assert len({(out / "dog" / "dog.mp4").read_bytes() for out in whole}) == 1
