"""Lessons drawn as pictures, and as the latents of the codec's bases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from storyreel.mini import codec
from storyreel.mini.lessons import FPS, HEIGHT, WIDTH, Example, sample_example
from storyreel.mini.world import BALL_TAG, draw_clip

LENGTHS = ((9, 0.55), (5, 0.35), (13, 0.1))  # latent frames of a lesson, and how often
BACKSTAGE = 1  # seed of the clips that the bases are fitted on
BASIS_CLIPS = 320


def draw(example: Example, latent_frames: int) -> tuple[Tensor, Tensor]:
    """Draw a lesson's pictures (3, T, H, W) in [-1, 1] and owners (T, H, W)."""
    frames = codec.FRAMES_PER_LATENT * (latent_frames - 1) + 1
    images, owners = draw_clip(example.clip, frames, FPS, WIDTH, HEIGHT)
    video = torch.from_numpy(images).permute(3, 0, 1, 2).float() / 127.5 - 1
    return video, torch.from_numpy(owners)


def coverage(owners: Tensor) -> Tensor:
    """Return how much of each latent cell belongs to an actor: (T, H, W) to (L, H/8, W/8)."""
    mask = (owners > 0).float() + (owners == BALL_TAG).float()
    mask = torch.cat([mask[:1].expand(codec.FRAMES_PER_LATENT - 1, -1, -1), mask])
    return torch.nn.functional.avg_pool3d(
        mask[None], (codec.FRAMES_PER_LATENT, codec.PIXELS_PER_LATENT, codec.PIXELS_PER_LATENT)
    )[0]


def fitted_stages(folder: Path) -> list[codec.Stage]:
    """Return the codec's bases from ``folder``, or fit and keep them there."""
    path = folder / "bases.pt"
    if path.exists():
        return [codec.Stage(*parts) for parts in torch.load(path, weights_only=True)]
    rng = Random(BACKSTAGE)
    drawn = [draw(sample_example(rng), 9) for _ in range(BASIS_CLIPS)]
    video, owners = (torch.stack(part) for part in zip(*drawn, strict=True))
    stages = codec.fit_stages(video, owners, torch.Generator().manual_seed(BACKSTAGE))
    save_stages(stages, folder)
    return stages


def save_stages(stages: list[codec.Stage], folder: Path) -> None:
    """Keep bases where `fitted_stages` finds them."""
    torch.save([(s.basis, s.mean, s.variance) for s in stages], folder / "bases.pt")


@dataclass
class Lesson:
    """A drawn example: latents (C, L, H, W) in half precision and the actors' coverage."""

    example: Example
    latents: Tensor
    coverage: Tensor


class Pool:
    """A reservoir of drawn lessons of which a few are drawn anew at every step."""

    def __init__(self, stages: list[codec.Stage], size: int, seed: int) -> None:
        self._rng = Random(seed)
        self._stages = stages
        self._scale = codec.latent_scale(stages)[:, None, None, None]
        self._lessons = {
            length: [self._draw(length) for _ in range(max(1, round(size * share)))]
            for length, share in LENGTHS
        }

    def _draw(self, length: int) -> Lesson:
        example = sample_example(self._rng)
        video, owners = draw(example, length)
        latents = codec.linear_encode(self._stages, video[None])[0] / self._scale
        return Lesson(example, latents.half(), coverage(owners)[None].half())

    def batch(self, size: int, fresh: int) -> list[Lesson]:
        """Return ``size`` lessons of one random length after drawing ``fresh`` new ones."""
        shares = [share for _, share in LENGTHS]
        length = self._rng.choices([length for length, _ in LENGTHS], shares)[0]
        lessons = self._lessons[length]
        for _ in range(fresh):
            lessons[self._rng.randrange(len(lessons))] = self._draw(length)
        return [self._rng.choice(lessons) for _ in range(size)]
