"""The training of the codec's decoder; the encoder is exact and needs none."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderKLMochi
from torch import Tensor, nn

from storyreel.mini import codec
from storyreel.mini.lessons import sample_example

from .clips import draw, fitted_stages
from .loop import Average, AverageState, Run, cosine, save_sheet


def trained_codec(folder: Path, stages: list[codec.Stage]) -> AutoencoderKLMochi:
    """Return the codec as far as it has been trained."""
    path = folder / "codec"
    return AutoencoderKLMochi.from_pretrained(path) if path.exists() else codec.build(stages)


def picture_loss(output: Tensor, video: Tensor, owners: Tensor) -> Tensor:
    """Return L1 + MSE + gradients in space and, most of all, in time; actors count four times."""
    weight = 1 + 3 * (owners > 0).float()[:, None]
    weight = weight / weight.mean()
    error = output - video
    loss = (weight * (error.abs() + error.square())).mean()
    for axis, share in ((2, 0.6), (3, 0.3), (4, 0.3)):
        edge = weight.narrow(axis, 1, weight.shape[axis] - 1)
        loss = loss + share * (edge * error.diff(dim=axis).abs()).mean()
    return loss


def train_codec(options: argparse.Namespace) -> None:
    """Train the decoder; the encoder stays the exact PCA that the transformer was trained on."""
    device, folder = torch.device(options.device), Path(options.out)
    run = Run("codec", folder, options.steps, options.minutes)
    torch.manual_seed(options.seed)
    seed = run.fresh_seed(options.seed)
    rng = Random(seed + 2)
    noise = torch.Generator().manual_seed(seed)
    stages = fitted_stages(folder)
    vae = trained_codec(folder, stages).to(device)
    decoder, length = vae.decoder, 5
    scale = codec.latent_scale(stages)[:, None, None, None]
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    average = Average(list(decoder.parameters()))
    clips = [draw(sample_example(rng), length) for _ in range(options.pool)]
    unseen_rng = Random(options.seed + 3)
    unseen = [draw(sample_example(unseen_rng), length) for _ in range(16)]

    def decode(batch: list[tuple[Tensor, Tensor]], level: float) -> tuple[Tensor, Tensor, Tensor]:
        video, owners = (torch.stack(part) for part in zip(*batch, strict=True))
        latents = codec.linear_encode(stages, video)
        # The transformer's latents are off by some 0.15, another way in every frame, which would
        # flicker: the decoder sees the frames before and learns to overlook that.
        latents = latents + level * scale * torch.randn(latents.shape, generator=noise)
        with torch.autocast(device.type, torch.bfloat16, enabled=level > 0):
            output = decoder(latents.to(device))[0][:, :, codec.FRAMES_PER_LATENT - 1 :]
        return output.float(), video.to(device), owners.to(device)

    def step_fn(step: int, progress: float) -> float:
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * options.rate * min(1.0, (step + 1) / 30) * cosine(progress)
        for _ in range(options.fresh):
            clips[rng.randrange(len(clips))] = draw(sample_example(rng), length)
        loss = picture_loss(*decode(rng.choices(clips, k=options.batch), 0.2 * rng.random() + 1e-3))
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        average.update(step, 0.99)
        return float(loss.detach())

    @torch.no_grad()
    def sheet_fn(path: Path) -> None:
        average.swap()
        output, video, owners = decode(unseen, 0.0)
        inside = (owners > 0)[:, None].expand_as(video)
        error = (output.clamp(-1, 1) - video).square()
        whole, actors = (10 * math.log10(4 / float(part.mean())) for part in (error, error[inside]))
        print(f"PSNR {whole:.2f} dB, inside actors {actors:.2f} dB", flush=True)
        save_sheet([row for pair in zip(video, output, strict=True) for row in pair], path)
        vae.save_pretrained(folder / "codec")
        average.swap()

    state = {"decoder": decoder, "optimiser": optimiser, "average": AverageState(average)}
    run.loop(state, step_fn, sheet_fn)
