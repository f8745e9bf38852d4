"""The training of the codec: encoder and decoder together."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from storyreel.mini import codec
from storyreel.mini.lessons import HEIGHT, WIDTH, sample_example

from .clips import CALIBRATION_CLIPS, as_video, draw, drawn_videos, trained_codec
from .loop import Average, AverageState, Muon, Run, autocast, cosine, in_bf16, save_sheet

LENGTH = 5  # latent frames of a clip
CROP = 96  # pixels on a side of what most steps look at
WHOLE_FROM = 0.85  # of the time: from then on whole pictures, as the norms will see them
NEAR_ACTORS = 0.8  # share of the crops
NOISE = 0.25  # at most, relative to the latents; the transformer leaves about as much
UNSEEN = 16


def picture_loss(output: Tensor, video: Tensor, inside: Tensor) -> Tensor:
    """Return MSE + L1 + gradients in space and, most of all, in time; actors count four times."""
    weight = 1 + 3 * inside.float()[:, None]
    weight = weight / weight.mean()
    error = output - video
    loss = (weight * (0.5 * error.abs() + 3 * error.square())).mean()
    for axis, share in ((2, 0.4), (3, 0.2), (4, 0.2)):
        edge = weight.narrow(axis, 1, weight.shape[axis] - 1)
        loss = loss + share * (edge * error.diff(dim=axis).abs()).mean()
    return loss


def cropped(rng: Random, video: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Cut windows of a few frames out of clips (B, 3, T, H, W), most of them round an actor.

    Backgrounds are learned soon; a window costs an eighth of a clip.
    """
    frames = codec.FRAMES_PER_LATENT * (rng.choice((2, 3, 3)) - 1) + 1
    windows = []
    for clip, mask in zip(video, inside, strict=True):
        start = rng.randrange(clip.shape[1] - frames + 1)
        rows, columns = mask[start].nonzero(as_tuple=True)
        if len(rows) and rng.random() < NEAR_ACTORS:
            index = rng.randrange(len(rows))
            x, y = int(columns[index]), int(rows[index])
        else:
            x, y = rng.randrange(WIDTH), rng.randrange(HEIGHT)
        x = max(0, min(WIDTH - CROP, x - CROP // 2 + rng.randint(-24, 24)))
        y = max(0, min(HEIGHT - CROP, y - CROP // 2 + rng.randint(-16, 16)))
        window = (slice(start, start + frames), slice(y, y + CROP), slice(x, x + CROP))
        windows.append((clip[:, *window], mask[window]))
    clips, masks = (torch.stack(part) for part in zip(*windows, strict=True))
    return clips, masks


def optimisers(
    module: nn.Module, device: torch.device, precision: str
) -> tuple[Muon, torch.optim.AdamW, list[tuple[dict[str, Any], float]]]:
    """Return Muon for a module's kernels, AdamW for the rest, and every group with its own learning rate."""
    kernels = [
        m.weight for m in module.modules() if isinstance(m, nn.Conv3d) and math.prod(m.kernel_size) > 1
    ]
    chosen = {id(kernel) for kernel in kernels}
    muon = Muon(kernels, lr=3e-3, bf16=in_bf16(device, precision))
    adam = torch.optim.AdamW(
        [p for p in module.parameters() if id(p) not in chosen], lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0
    )
    rates = [(group, group["lr"]) for optimiser in (muon, adam) for group in optimiser.param_groups]
    return muon, adam, rates


def train_codec(options: argparse.Namespace) -> None:
    """Train encoder and decoder together; half of the latents are noisy.

    The transformer's latents are off by some 0.2, another way in every frame, which would flicker: the
    decoder learns to overlook that, and the encoder to say what matters loudest.
    """
    device, folder = torch.device(options.device), Path(options.out)
    run = Run("codec", folder, options.steps, options.minutes)
    torch.manual_seed(options.seed)
    seed = run.fresh_seed(options.seed)
    rng = Random(seed + 2)
    noise = torch.Generator().manual_seed(seed)
    vae = trained_codec(folder).to(device)
    parameters = list(vae.parameters())
    muon, adam, rates = optimisers(vae, device, options.precision)
    average = Average(parameters)
    clips = [draw(sample_example(rng).clip, LENGTH) for _ in range(min(options.pool, 96))]
    unseen, unseen_inside = drawn_videos(options.seed + 3, UNSEEN, LENGTH)

    def step_fn(step: int, progress: float) -> float:
        for group, rate in rates:
            group["lr"] = rate * options.rate * min(1.0, (step + 1) / 20) * cosine(progress)
        for _ in range(2 * options.fresh):
            clips[rng.randrange(len(clips))] = draw(sample_example(rng).clip, LENGTH)
        whole = progress > WHOLE_FROM
        drawn = rng.choices(clips, k=max(2, options.batch // 4) if whole else options.batch)
        images, tags = (torch.stack(part) for part in zip(*drawn, strict=True))
        video, inside = as_video(images), tags > 0
        if not whole:
            video, inside = cropped(rng, video, inside)
        levels = NOISE * (2 * torch.rand(len(video), 1, 1, 1, 1, generator=noise) - 1).clamp_min(0)
        video, inside, levels = video.to(device), inside.to(device), levels.to(device)
        with autocast(device, options.precision):
            raw = codec.raw_latents(vae, video)
            size = raw.detach().float().square().mean().sqrt()
            spoilt = raw + levels * size * torch.randn(raw.shape, generator=noise).to(device)
            output = codec.pictures_of(vae, spoilt)
        loss = picture_loss(output.float(), video, inside)
        (loss + 1e-3 * (raw.float().square().mean() - 1).relu()).backward()  # their size is of no use
        nn.utils.clip_grad_norm_(parameters, 1.0)
        muon.step()
        adam.step()
        vae.zero_grad()
        average.update(step, 0.99)
        return float(loss.detach())

    @torch.no_grad()
    def sheet_fn(path: Path) -> None:
        average.swap()
        vae.cpu()
        codec.calibrate(vae, drawn_videos(options.seed + 4, min(options.pool, CALIBRATION_CLIPS), 3)[0])
        output = torch.cat([codec.pictures_of(vae, codec.raw_latents(vae, v)) for v in unseen.split(4)])
        error = (output.clamp(-1, 1) - unseen).square()
        inside = unseen_inside[:, None].expand_as(unseen)
        whole, actors = (10 * math.log10(4 / float(part.mean())) for part in (error, error[inside]))
        print(f"PSNR {whole:.2f} dB, inside actors {actors:.2f} dB", flush=True)
        save_sheet([row for pair in zip(unseen, output, strict=True) for row in pair], path)
        vae.save_pretrained(folder / "codec")
        vae.to(device)
        average.swap()

    state = {"vae": vae, "muon": muon, "adam": adam, "average": AverageState(average)}
    run.loop(state, step_fn, sheet_fn)
