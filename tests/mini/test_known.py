"""None of them: what is no picture of the cartoon world is told from what is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from storyreel.mini.known import strangeness
from storyreel.mini.lessons import ALL_PAIRS
from storyreel.mini.world import Character, Place, Stage, sample_clip

H, W, FRAMES = 64, 96, 13
BARS = ((192, 192, 192), (192, 192, 0), (0, 192, 192), (0, 192, 0), (192, 0, 192), (192, 0, 0), (0, 0, 192))


def still(picture: np.ndarray[Any, Any]) -> Tensor:
    """A clip, uint8 (T, H, W, 3), of one picture (H, W) or (H, W, 3) of any numbers."""
    if picture.ndim == 2:
        picture = picture[..., None].repeat(3, 2)
    clip = np.broadcast_to(np.clip(picture, 0, 255).astype(np.uint8), (FRAMES, H, W, 3))
    return torch.from_numpy(clip.copy())


def nothings(seed: int) -> dict[str, Tensor]:
    """Clips that show nothing, by name: test patterns, noise, single colours, gradients as in photographs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:H, :W]
    found = {f"grey {level}": still(np.full((H, W), level)) for level in (0, 64, 128, 255)}
    found |= {f"colour {i}": still(np.full((H, W, 3), rng.integers(0, 256, 3))) for i in range(4)}
    found["colour bars"] = still(np.array(BARS)[x * len(BARS) // W])
    found["moving bars"] = torch.stack([found["colour bars"][0].roll(4 * t, 1) for t in range(FRAMES)])
    for size in (2, 8, 16):
        found[f"checkers {size}"] = still((x // size + y // size) % 2 * 255)
    found["stripes"] = still(x // 6 % 2 * 255)
    found["circles"] = still(np.hypot(y - H / 2, x - W / 2) // 4 % 2 * 255)
    found["zone plate"] = still(128 + 127 * np.cos((x**2 + y**2) / 60))
    for deviation in (8, 25, 64):
        noise = rng.normal(128, deviation, (FRAMES, H, W, 3)).clip(0, 255)
        found[f"noise {deviation}"] = torch.from_numpy(noise.astype(np.uint8))
    found["still noise"] = still(rng.integers(0, 256, (H, W, 3)))
    for i in range(6):
        a, b = rng.integers(0, 256, (2, 3))
        share = (x / W if i % 2 else y / H)[..., None]
        found[f"gradient {i}"] = still(a * (1 - share) + b * share)
    for i in range(6):  # the spectrum of photographs, mostly of one colour
        falling = np.hypot(np.fft.fftfreq(H)[:, None], np.fft.rfftfreq(W)[None])
        falling[0, 0] = 1
        layers = [np.fft.irfft2(np.fft.rfft2(rng.normal(size=(H, W))) / falling**1.2, (H, W)) for _ in "lrgb"]
        light, *colours = (layer / layer.std() for layer in layers)
        found[f"clouds {i}"] = still(np.stack([128 + 50 * (0.8 * light + 0.4 * c) for c in colours], 2))
    for i in range(6):  # a sky over a meadow with something on it, and a camera's noise
        ground = np.where(y[..., None] < 40, (150, 190, 235), (90 + 20 * i, 110, 60)) - 2 * (
            y[..., None] - 40
        )
        blob = np.hypot(y - rng.integers(20, 50), x - rng.integers(20, 76)) < 12
        picture = np.where(blob[..., None], rng.integers(0, 256, 3), ground)
        found[f"meadow {i}"] = still(picture + rng.normal(0, 12, (H, W, 3)))
    return found


def true_pictures(count: int, seed: int) -> Iterator[Tensor]:
    """Draw pictures, uint8 (4, H, W, 3), of clips of everybody at every place, every fourth of a pair."""
    rng, places, characters = Random(seed), tuple(Place), tuple(Character)
    for index in range(count):
        who = (characters[index // len(places) % len(characters)],)
        if index % 4 == 3:
            who = rng.choice(ALL_PAIRS)  # type: ignore[assignment]
        stage = Stage(sample_clip(rng, places[index % len(places)], who), W, H)
        yield torch.stack([torch.from_numpy(stage.frame(0.25 + 0.5 * i)[0]) for i in range(4)])


@pytest.fixture(scope="module")
def pictures() -> list[Tensor]:
    return list(true_pictures(60, 31))


def test_true_pictures_of_everybody_everywhere_are_known(pictures: list[Tensor]) -> None:
    """Of 1,200 others two were not (0.2 %), the farther of them at 1.03. Here the farthest lies at 0.84."""
    found = sorted(strangeness(clip) for clip in pictures)
    assert found[-2] < 1
    assert found[30] < 0.75


@pytest.mark.parametrize("seed", range(2))
def test_patterns_noise_and_gradients_are_not(seed: int) -> None:
    """Of 380 such clips of ten seeds none was taken for a picture of this world; the nearest lay at 1.16."""
    found = {name: strangeness(clip[::4]) for name, clip in nothings(seed).items()}
    assert {name for name, value in found.items() if value <= 1.05} == set()


def half(x: Tensor) -> Tensor:
    small = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=0.5, mode="area")
    return F.interpolate(small, (H, W), mode="bilinear").permute(0, 2, 3, 1)


SPOILT: dict[str, Callable[[Tensor], Tensor]] = {
    "half as bright": lambda x: x * 0.5,
    "a quarter as bright": lambda x: x * 0.25,
    "pale": lambda x: 128 + 0.6 * (x - 128),
    "tinted": lambda x: x * torch.tensor([1.15, 0.95, 0.75]),
    "grey": lambda x: x.mean(3, keepdim=True).expand(-1, -1, -1, 3),
    "blurred": half,
    "enlarged": lambda x: x.repeat_interleave(3, 1).repeat_interleave(3, 2),
}


@pytest.mark.parametrize("how", sorted(SPOILT))
def test_a_spoilt_picture_of_the_world_is_still_one(pictures: list[Tensor], how: str) -> None:
    clips = [SPOILT[how](clip.float()).clamp(0, 255) for clip in pictures]
    assert sum(strangeness(clip) > 1 for clip in clips) <= 1
