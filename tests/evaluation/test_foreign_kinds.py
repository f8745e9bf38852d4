"""A film of another kind has the numbers of the film that it was made of, within stated tolerances."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storyreel.evaluation.evaluator import Evaluator
from storyreel.evaluation.films import collect, foreign_film
from storyreel.film import ffmpeg, writer
from tests.conftest import made_once

FPS, SECONDS, SCENES, WIDTH, HEIGHT = 12, 2, 3, 192, 128
STORY = """\
scenes:
  - ["a hill", "a ball rolls"]
  - ["a hill", "it rolls on"]
  - ["a lake", "it swims"]
"""
# How a film is made one of another kind: options before and behind its input, and where its scenes begin.
KINDS = {
    "twice as many frames": ([], ["-r", "24"], "chapters"),
    "25 frames a second": ([], ["-r", "25"], "chapters"),
    "twice the size": ([], ["-vf", "scale=384:256:flags=lanczos"], "chapters"),
    "stored on its side": (["-display_rotation", "90"], ["-vf", "transpose=clock"], "chapters"),
    "with sound that begins first": ([], [], "chapters"),
    "without chapters": ([], ["-map_chapters", "-1", "-c", "copy"], "2,4"),
    "in another container and codec": ([], ["-c:v", "libvpx-vp9", "-crf", "10", "-b:v", "0"], "chapters"),
}
# How far a number may be from the original's: a share of it, or so much.
EXACT = {"frozen", "black", "moving"}
NEAR = {"seam_ratio", "largest_step", "largest_step_max", "jump", "motion"}
SHARES = {"twice the size": 0.12, "in another container and codec": 0.04}  # else 0.01
ABOUT = {
    "flicker": 0.001,
    "drift_motion": 0.02,
    "ssim": 0.005,
    "double_exposure": 0.1,
    "colour_drift": 0.1,
    "clipped": 0.1,
}


def drawn(folder: Path) -> None:
    """Write the story, and a film of it: a ball that goes over a hill, on, and over a lake."""
    (folder / "ball.yaml").write_text(STORY)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    frames = []
    for frame in range(FPS * SECONDS * SCENES):
        lake = frame >= 2 * FPS * SECONDS
        ground = np.where(y > 80 + 10 * np.sin(x / 30), 90, 200)
        picture = np.stack(
            [ground * 0.4, ground * (0.5 if lake else 0.9), ground * (0.95 if lake else 0.5)], 2
        )
        picture += (8 * np.sin(x / 7) * np.cos(y / 9))[..., None]
        ball = (x - 20 - 2 * frame) ** 2 + (y - 60 - 8 * np.sin(frame / 3)) ** 2 < 14**2
        picture[ball] = (220, 60, 40)
        frames.append(picture.clip(0, 255).astype(np.uint8))
    segments = []
    for scene in range(SCENES):
        segments.append(folder / f"{scene}.mp4")
        with writer.SegmentWriter(segments[-1], WIDTH, HEIGHT, FPS, 1) as encoder:
            encoder.write(b"".join(f.tobytes() for f in frames[scene * FPS * SECONDS :][: FPS * SECONDS]))
    length = FPS * SECONDS
    chapters = [writer.Chapter(n * length, (n + 1) * length, f"{n}", f"{n}") for n in range(SCENES)]
    writer.join(segments, folder / "ball.mp4", FPS, chapters, {})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "ball", drawn)


def scores(place: Path, film: Path, segments: str) -> dict[str, Any]:
    """Return the scores of a film that anything made, of what needs no weights."""
    (seen,), errors = collect([], [partial(foreign_film, place / "ball.yaml", film, segments)])
    assert not errors
    evaluator = Evaluator(torch.device("cpu"), own=False)
    evaluator.names = set()
    return evaluator.score(seen, lambda count: None).scores


@pytest.fixture(scope="module")
def original(place: Path) -> dict[str, Any]:
    return scores(place, place / "ball.mp4", "chapters")


def converted(film: Path, kind: str, folder: Path) -> Path:
    before, behind, _ = KINDS[kind]
    place = folder / ("other.webm" if "codec" in kind else "other.mp4")
    middle = folder / "turned.mp4"
    sound = ["-itsoffset", "-0.2", "-f", "lavfi", "-i", "sine=440:d=6.2"] if "sound" in kind else []
    streams = ["-map", "0:v", *(["-map", "1:a", "-c:v", "copy", "-c:a", "aac"] if sound else [])]
    usual = ["-c:v", "libx264", "-crf", "10", "-pix_fmt", "yuv420p"] if "-c" not in behind else []
    usual = [] if "codec" in kind or sound else usual
    target = middle if before else place
    steps = [["-i", str(film), *sound, *streams, *usual, *behind, str(target)]]
    steps += [[*before, "-i", str(middle), "-c", "copy", str(place)]] if before else []
    for step in steps:
        subprocess.run([ffmpeg.program(), "-v", "error", "-y", *step], check=True)
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_has_the_same_numbers(
    kind: str, place: Path, original: dict[str, Any], tmp_path: Path
) -> None:
    found = scores(place, converted(place / "ball.mp4", kind, tmp_path), KINDS[kind][2])
    begins = [scene["seconds"][0] for scene in found["scenes"]]
    assert begins == pytest.approx([0, 2, 4], abs=0.05)
    film = original["film"]
    assert {name for name, value in film.items() if value is not None} >= {*EXACT, *NEAR, *ABOUT}
    for name, value in film.items():
        if value is None:
            assert found["film"][name] is None, name
            continue
        assert name in {*EXACT, *NEAR, *ABOUT}, name
        share = SHARES.get(kind, 0.01) if name in NEAR else 0
        assert found["film"][name] == pytest.approx(value, rel=share, abs=ABOUT.get(name, 0)), name
