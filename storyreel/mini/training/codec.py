"""The training of the codec's decoder; the encoder is exact and needs none."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import AutoencoderKLMochi
from torch import Tensor, nn

from storyreel.mini import codec
from storyreel.mini.lessons import sample_example

from .clips import draw, fitted_stages
from .loop import Average, AverageState, Run, autocast, cosine, save_sheet

COARSE = 0.35  # of the time


def trained_codec(folder: Path, stages: list[codec.Stage]) -> AutoencoderKLMochi:
    """Return the codec as far as it has been trained."""
    path = folder / "codec"
    return (
        AutoencoderKLMochi.from_pretrained(path, local_files_only=True)
        if path.exists()
        else codec.build(stages)
    )


def picture_loss(output: Tensor, video: Tensor, owners: Tensor) -> Tensor:
    """Return MSE + L1 + gradients in space and, most of all, in time; actors count four times."""
    weight = 1 + 3 * (owners > 0).float()[:, None]
    weight = weight / weight.mean()
    error = output - video
    loss = (weight * (0.5 * error.abs() + 3 * error.square())).mean()
    for axis, share in ((2, 0.6), (3, 0.2), (4, 0.2)):
        edge = weight.narrow(axis, 1, weight.shape[axis] - 1)
        loss = loss + share * (edge * error.diff(dim=axis).abs()).mean()
    return loss


def quarter_decode(decoder: Any, latents: Tensor) -> Tensor:
    """Return what the decoder has at a quarter of the size: (B, channels, T, H/4, W/4)."""
    first, second = decoder.up_blocks[:2]
    hidden: Tensor = first(decoder.block_in(decoder.conv_in(latents))[0])[0]
    for resnet in second.resnets:
        hidden = resnet(hidden)[0]
    return hidden


def quarter_loss(hidden: Tensor, exact: Tensor, owners: Tensor) -> Tensor:
    """Compare coefficients of the second basis: orthonormal, so this is the pictures' MSE."""
    count = exact.shape[1]
    cover = (owners > 0).float()[:, None]
    cover = torch.cat([cover[:, :, :1].expand(-1, -1, codec.FRAMES_PER_LATENT - 1, -1, -1), cover], dim=2)
    weight = 1 + 3 * nn.functional.avg_pool3d(cover, (1, 4, 4))
    return (weight * (hidden[:, :count] - exact).square()).mean() / weight.mean()


class Kernels:
    """Convolution kernels as matrices (out, in times size) in the same memory, which is what Muon takes."""

    def __init__(self, network: nn.Module) -> None:
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d)]
        self.kernels = [m.weight for m in convolutions if math.prod(m.kernel_size) > 1]
        self.matrices = [nn.Parameter(kernel.detach().flatten(1)) for kernel in self.kernels]

    def share_gradients(self) -> None:
        """Let the matrices have the kernels' gradients."""
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)


def train_codec(options: argparse.Namespace) -> None:
    """Train the decoder; the encoder stays the exact PCA that the transformer was trained on.

    The first part of the time goes to the layers at a quarter of the size, by themselves: they see
    five times as many clips in it, and find most of what can be found.
    """
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
    kernels = Kernels(decoder)
    chosen = {id(kernel) for kernel in kernels.kernels}
    rest = [p for p in decoder.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(kernels.matrices, lr=0.01, weight_decay=0.0)
    adam = torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    rates = [(group, group["lr"]) for optimiser in (muon, adam) for group in optimiser.param_groups]
    average = Average(list(decoder.parameters()))
    clips = [draw(sample_example(rng), length) for _ in range(options.pool)]
    unseen_rng = Random(options.seed + 3)
    unseen = [draw(sample_example(unseen_rng), length) for _ in range(16)]

    def batch_of(drawn: list[tuple[Tensor, Tensor]], most: float) -> tuple[Tensor, Tensor, Tensor]:
        """Stack clips as latents, pictures and owners; half of them are left as they are.

        The transformer's latents are off by some 0.15, another way in every frame, which would
        flicker: the decoder sees the frames before and learns to overlook that.
        """
        video, owners = (torch.stack(part) for part in zip(*drawn, strict=True))
        latents = codec.linear_encode(stages, video)
        levels = most * (2 * torch.rand(len(drawn), 1, 1, 1, 1, generator=noise) - 1).clamp_min(0)
        latents = latents + levels * scale * torch.randn(latents.shape, generator=noise)
        return latents.to(device), video.to(device), owners.to(device)

    def step_fn(step: int, progress: float) -> float:
        coarse = progress < COARSE
        begun, part = (0.0, COARSE) if coarse else (COARSE, 1 - COARSE)
        factor = (1.0 if coarse else 0.5) * cosine((progress - begun) / part)
        for group, rate in rates:
            group["lr"] = rate * options.rate * min(1.0, (step + 1) / 30) * factor
        for _ in range(options.fresh):
            clips[rng.randrange(len(clips))] = draw(sample_example(rng), length)
        latents, video, owners = batch_of(rng.choices(clips, k=options.batch), 0.25)
        with autocast(device):
            output = quarter_decode(decoder, latents) if coarse else decode(latents)
        if coarse:
            loss = quarter_loss(output.float(), codec.coefficients(stages, video, 2), owners)
        else:
            loss = picture_loss(output.float(), video, owners)
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        kernels.share_gradients()
        muon.step()
        adam.step()
        muon.zero_grad()
        decoder.zero_grad()
        average.update(step, 0.99)
        return float(loss.detach())

    def decode(latents: Tensor) -> Tensor:
        pictures: Tensor = decoder(latents)[0][:, :, codec.FRAMES_PER_LATENT - 1 :]
        return pictures

    @torch.no_grad()
    def sheet_fn(path: Path) -> None:
        average.swap()
        latents, video, owners = batch_of(unseen, 0.0)
        output = decode(latents)
        inside = (owners > 0)[:, None].expand_as(video)
        error = (output.clamp(-1, 1) - video).square()
        whole, actors = (10 * math.log10(4 / float(part.mean())) for part in (error, error[inside]))
        print(f"PSNR {whole:.2f} dB, inside actors {actors:.2f} dB", flush=True)
        save_sheet([row for pair in zip(video, output, strict=True) for row in pair], path)
        vae.save_pretrained(folder / "codec")
        average.swap()

    state = {"decoder": decoder, "muon": muon, "adam": adam, "average": AverageState(average)}
    run.loop(state, step_fn, sheet_fn)
