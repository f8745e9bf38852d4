"""Lessons drawn as pictures, and as the latents of the codec."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderKLMochi
from torch import Tensor

from storyreel.mini import codec
from storyreel.mini.lessons import FPS, HEIGHT, WIDTH, Example, portrait, sample_example
from storyreel.mini.world import Clip, draw_clip

from .layout import Facts, Layout, facts_of, layout_of

LENGTHS = ((5, 0.3), (9, 0.3), (11, 0.25), (14, 0.15))  # latent frames of a lesson, and how often
BACKSTAGE = 1  # seed of the clips that the bases are fitted on
BASIS_CLIPS = 160
CALIBRATION_CLIPS = 96
ENCODED = 8  # clips that are encoded together


def draw(clip: Clip, latent_frames: int) -> tuple[Tensor, Tensor]:
    """Draw a clip's pictures, uint8 (T, H, W, 3), and tags (T, H, W)."""
    frames = codec.FRAMES_PER_LATENT * (latent_frames - 1) + 1
    images, tags = draw_clip(clip, frames, FPS, WIDTH, HEIGHT)
    return torch.from_numpy(images), torch.from_numpy(tags)


def as_video(images: Tensor) -> Tensor:
    """Turn pictures uint8 (N, T, H, W, 3) into (N, 3, T, H, W) in [-1, 1]."""
    return images.movedim(-1, 1).float() / 127.5 - 1


def drawn_videos(seed: int, count: int, latent_frames: int) -> tuple[Tensor, Tensor]:
    """Draw ``count`` lessons as one batch of `as_video`, and where their actors are (N, T, H, W)."""
    rng = Random(seed)
    drawn = [draw(sample_example(rng).clip, latent_frames) for _ in range(count)]
    images, tags = (torch.stack(part) for part in zip(*drawn, strict=True))
    return as_video(images), tags > 0


def trained_codec(folder: Path) -> AutoencoderKLMochi:
    """Return the codec as far as it has been trained; a new one begins as a PCA, and that is said."""
    path = folder / "codec"
    if path.exists():
        return AutoencoderKLMochi.from_pretrained(path, local_files_only=True)
    print(f"{path} is not there: this is an untrained codec, the inverse of a PCA", flush=True)
    stages = codec.fit_stages(
        *drawn_videos(BACKSTAGE, BASIS_CLIPS, 3), torch.Generator().manual_seed(BACKSTAGE)
    )
    return codec.build(stages)


@dataclass
class Drawn:
    """A drawn example: normalised latents (C, L, H, W) in half precision, and what is true of it.

    ``portrait`` (C, 1, H, W) is one picture of its characters elsewhere, with its own layout.
    """

    example: Example
    latents: Tensor
    layout: Layout
    facts: Facts
    portrait: Tensor
    portrait_layout: Layout


class Pool:
    """A reservoir of drawn lessons of which a few are drawn anew at every step."""

    def __init__(self, vae: AutoencoderKLMochi, size: int, seed: int) -> None:
        self._rng = Random(seed)
        self._vae = vae
        self._lessons: dict[int, list[Drawn]] = {}
        for length, share in LENGTHS:
            count = max(1, round(size * share))
            parts = [self._draw(length, min(ENCODED, count - i)) for i in range(0, count, ENCODED)]
            self._lessons[length] = [lesson for part in parts for lesson in part]

    @torch.no_grad()
    def _draw(self, length: int, count: int) -> list[Drawn]:
        """Draw lessons of one length. One clip alone would take torch's slow way through the codec."""
        examples = [sample_example(self._rng) for _ in range(count)]
        clips = [example.clip for example in examples]
        return [
            Drawn(example, latents, layout, facts_of(example.clip), *shown)
            for example, (latents, layout), shown in zip(
                examples,
                self._seen(clips, length),
                self._seen([portrait(self._rng, clip) for clip in clips], 1),
                strict=True,
            )
        ]

    def _seen(self, clips: list[Clip], length: int) -> list[tuple[Tensor, Layout]]:
        drawn = [draw(clip, length) for clip in clips]
        video = as_video(torch.stack([images for images, _ in drawn]))
        device = next(self._vae.parameters()).device
        latents = codec.normalised(self._vae, codec.raw_latents(self._vae, video.to(device))).cpu().half()
        return [
            (one.clone(), layout_of(tags, clip))
            for clip, one, (_, tags) in zip(clips, latents, drawn, strict=True)
        ]

    def batch(self, size: int, fresh: int, going_on: bool = False) -> list[Drawn]:
        """Return ``size`` lessons of one random length after drawing ``fresh`` new ones.

        Either all go on from another scene or none does, if there are such.
        """
        shares = [share for _, share in LENGTHS]
        length = self._rng.choices([length for length, _ in LENGTHS], shares)[0]
        lessons = self._lessons[length]
        for lesson in self._draw(length, fresh) if fresh else ():
            lessons[self._rng.randrange(len(lessons))] = lesson
        fitting = [one for one in lessons if (one.example.clip.former is not None) == going_on]
        return [self._rng.choice(fitting or lessons) for _ in range(size)]
