"""The training of the decoder alone, on latents as the transformer leaves them.

The encoder stays as it is, and with it what the transformer has learned. In a film the decoder gets latents
that no encoder made, worst where somebody turns from one pose into another within a few pictures. So it
learns from the transformer's one-step estimates of such clips too, with the pictures that they stand for.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn

from storyreel.denoise.loop import denoised
from storyreel.mini import codec
from storyreel.mini.lessons import HEIGHT, WIDTH, Example, sample_example
from storyreel.models.base import Request
from storyreel.models.loading import Parts
from storyreel.models.mochi import MochiAdapter
from storyreel.models.specs import MODELS
from storyreel.story.plan import joined_prompt

from .clips import as_video, draw, trained_codec
from .codec import CROP, NEAR_ACTORS, NOISE, WHOLE_FROM, optimisers, picture_loss
from .loop import Average, AverageState, Run, autocast, cosine, save_sheet
from .transformer import LEAD_NOISE, fitted_tokenizer, networks

LENGTH = 7  # latent frames of a clip
WINDOW = 4  # of a step; the first is there for those behind it, but where it is the clip's first
TURNING = 0.6  # share of the clips that do not go on from another that are drawn again
ESTIMATED, NOISY = 0.45, 0.25  # shares of the windows; the rest are as encoded
LEVELS = 0.15, 0.5  # noise levels σ of the estimates
CLIPS = 1000  # at most: each takes two megabytes
UNSEEN = 8


@dataclass(frozen=True)
class Decoded:
    """A clip: pictures uint8 (T, H, W, 3), where actors are (T, H, W), latents and estimates (C, L, h, w)."""

    pictures: Tensor
    inside: Tensor
    latents: Tensor
    estimates: Tensor
    goes_on: bool


def turning_example(rng: Random) -> Example:
    """Draw a lesson; most go on from another scene, since what turns is hardest."""
    example = sample_example(rng)
    while example.clip.former is None and rng.random() < TURNING:
        example = sample_example(rng)
    return example


@torch.no_grad()
def decoded_clip(rng: Random, adapter: MochiAdapter, noise: torch.Generator) -> Decoded:
    """Draw a clip and have the transformer estimate it from some noise, behind a lead if it goes on."""
    example = turning_example(rng)
    goes_on = example.clip.former is not None
    pictures, tags = draw(example.clip, LENGTH)
    latents = adapter.encode_pictures(pictures)
    given = latents[:, :, 1:] if goes_on else latents  # the end of a scene is no codec's first frame
    sigma = LEVELS[0] + (LEVELS[1] - LEVELS[0]) * rng.random()
    eps = torch.randn(given.shape, generator=noise).to(given)
    noisy = torch.lerp(given, eps, sigma)
    if goes_on:
        noisy[:, :, :1] = torch.lerp(given, eps, 0.5 * LEAD_NOISE * sigma)[:, :, :1]
    text = adapter.encode(joined_prompt(example.scene, example.action) if example.scene else example.action)
    ((velocity,),) = adapter.predict([Request(noisy, sigma, [text])])
    found = denoised(noisy, velocity, sigma)
    if goes_on:
        found = torch.cat([latents[:, :, :2], found[:, :, 1:]], 2)
    return Decoded(pictures, tags > 0, latents[0].half(), found[0].half(), goes_on)


def window(rng: Random, clip: Decoded, whole: bool) -> tuple[slice, slice, slice]:
    """Choose latent frames, rows and columns of a clip, most of them round an actor and where it turns."""
    start = rng.choice((0, 0, 1, 1, 2)) if clip.goes_on else rng.randrange(LENGTH - WINDOW + 1)
    frames = slice(start, start + WINDOW)
    side = CROP // codec.PIXELS_PER_LATENT
    high, wide = HEIGHT // codec.PIXELS_PER_LATENT, WIDTH // codec.PIXELS_PER_LATENT
    if whole:
        return frames, slice(0, high), slice(0, wide)
    rows, columns = clip.inside[codec.FRAMES_PER_LATENT * (start + 2)].nonzero(as_tuple=True)
    y, x = rng.randrange(HEIGHT), rng.randrange(WIDTH)
    if len(rows) and rng.random() < NEAR_ACTORS:
        index = rng.randrange(len(rows))
        y, x = int(rows[index]), int(columns[index])
    top, left = (
        max(0, min(cells - side, at // codec.PIXELS_PER_LATENT - rng.randint(1, side - 2)))
        for cells, at in ((high, y), (wide, x))
    )
    return frames, slice(top, top + side), slice(left, left + side)


def pictures_in(clip: Decoded, frames: slice, rows: slice, columns: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Return a window's pictures (T, h, w, 3), where actors are (T, h, w), and which pictures count (T,).

    Every latent frame is three pictures; the first of a clip is its first picture alone, and what the decoder
    makes before that, or of a frame whose past it is not shown, counts in nothing.
    """
    shown = [
        max(0, codec.FRAMES_PER_LATENT * (frame - 1) + 1 + i)
        for frame in range(frames.start, frames.stop)
        for i in range(codec.FRAMES_PER_LATENT)
    ]
    if frames.start == 0:
        shown[: codec.FRAMES_PER_LATENT] = [0] * codec.FRAMES_PER_LATENT
    counts = torch.ones(len(shown), dtype=torch.bool)
    counts[: codec.FRAMES_PER_LATENT - (frames.start == 0)] = False
    high, wide = (
        slice(codec.PIXELS_PER_LATENT * cells.start, codec.PIXELS_PER_LATENT * cells.stop)
        for cells in (rows, columns)
    )
    return clip.pictures[shown, high, wide], clip.inside[shown, high, wide], counts


def train_decoder(options: argparse.Namespace) -> None:
    """Train the decoder alone; codec and transformer must have been trained."""
    device, folder = torch.device(options.device), Path(options.out)
    run = Run("decoder", folder, options.steps, options.minutes)
    torch.manual_seed(options.seed)
    seed = run.fresh_seed(options.seed)
    rng, noise = Random(seed + 5), torch.Generator().manual_seed(seed)
    vae = trained_codec(folder).to(device)
    tokenizer = fitted_tokenizer(folder, options.seed)
    text_encoder, transformer = (network.to(device).eval() for network in networks(folder, len(tokenizer)))
    adapter = MochiAdapter(MODELS["mini"], device, Parts([transformer], vae, [text_encoder], [tokenizer]))
    vae.requires_grad_(False)
    decoder = vae.decoder.requires_grad_(True)
    parameters = list(decoder.parameters())
    muon, adam, rates = optimisers(decoder, device, options.precision)
    average = Average(parameters)
    mean, std = (
        torch.tensor(vae.config[f"latents_{name}"], device=device)[:, None, None, None]
        for name in ("mean", "std")
    )
    unseen = [decoded_clip(Random(options.seed + i), adapter, noise) for i in range(UNSEEN)]
    clips = [decoded_clip(rng, adapter, noise) for _ in range(min(options.pool, CLIPS))]

    def step_fn(step: int, progress: float) -> float:
        for group, rate in rates:
            group["lr"] = rate * options.rate * min(1.0, (step + 1) / 20) * cosine(progress)
        for _ in range(options.fresh):
            clips[rng.randrange(len(clips))] = decoded_clip(rng, adapter, noise)
        whole = progress > WHOLE_FROM
        windows = []
        for clip in rng.choices(clips, k=max(2, options.batch // 3) if whole else options.batch):
            frames, rows, columns = window(rng, clip, whole)
            kind = rng.random()
            latents = (clip.estimates if kind < ESTIMATED else clip.latents)[:, frames, rows, columns]
            level = NOISE * rng.random() if kind > 1 - NOISY else 0.0
            spoilt = latents.float() + level * torch.randn(latents.shape, generator=noise).to(device)
            windows.append((mean + std * spoilt, *pictures_in(clip, frames, rows, columns)))
        latents, pictures, inside, counts = (torch.stack(part) for part in zip(*windows, strict=True))
        video = as_video(pictures).to(device)
        with autocast(device, options.precision):
            output = decoder(latents)[0]
        output = torch.where(counts[:, None, :, None, None].to(device), output.float(), video)
        loss = picture_loss(output, video, inside.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        muon.step()
        adam.step()
        decoder.zero_grad()
        average.update(step, 0.995)
        return float(loss.detach())

    @torch.no_grad()
    def sheet_fn(path: Path) -> None:
        average.swap()
        rows = []
        for clip in unseen:
            found = codec.pictures_of(vae, (mean + std * clip.estimates.float())[None])[0]
            rows += [as_video(clip.pictures[None])[0], found.cpu()]
        save_sheet(rows, path)
        vae.save_pretrained(folder / "codec")
        average.swap()

    run.loop(
        {"decoder": decoder, "muon": muon, "adam": adam, "average": AverageState(average)}, step_fn, sheet_fn
    )
