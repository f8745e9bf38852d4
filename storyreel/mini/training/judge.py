"""The training of the judge, on true clips with other seeds and more jitter than the model's."""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from storyreel.mini.judge import (
    ACTIONS,
    CHARACTERS,
    PLACES,
    STRIDE,
    WEIGHTS,
    Judge,
    Verdict,
    load_judge,
    loosened,
    truth,
)
from storyreel.mini.lessons import ALL_PAIRS, FPS, HEIGHT, WIDTH, sample_example
from storyreel.mini.world import Character, Clip, Place, Stage, sample_clip, stage_clip

from .loop import Average, AverageState, Run, autocast, cosine

SEED = 7_000_003  # far from the seeds of the model's lessons
FRAMES = 13
PAIR_SHARE = 0.35
UNSEEN = 400  # true clips that a save measures


def any_clip(rng: Random) -> Clip:
    """Draw a clip of the model's lessons, or of any combination at all; loosened."""
    if rng.random() < 0.4:
        return loosened(rng, sample_example(rng).clip)
    place = rng.choice(tuple(Place))
    who = rng.choice(ALL_PAIRS) if rng.random() < PAIR_SHARE else (rng.choice(tuple(Character)),)
    return loosened(rng, stage_clip(rng, place, who, sample_clip(rng, place, who).action))


def pictures(rng: Random, clip: Clip) -> Tensor:
    """Draw what the judge looks at, uint8 (T, H, W, 3), from a start within the first beat."""
    stage, start = Stage(clip, WIDTH, HEIGHT), rng.uniform(0.0, 0.3)
    frames = [stage.frame(start + STRIDE * i / FPS)[0] for i in range(FRAMES)]
    return torch.stack([torch.from_numpy(frame) for frame in frames])


def spoilt(videos: Tensor, rng: Random, noise: torch.Generator) -> Tensor:
    """Blur, brighten and speckle videos (B, 3, T, H, W): a model's pictures are not so clean."""
    if rng.random() < 0.4:
        b, c, t, h, w = videos.shape
        flat = videos.transpose(1, 2).reshape(b * t, c, h, w)
        small = F.interpolate(flat, scale_factor=rng.uniform(0.45, 0.9), mode="area")
        flat = F.interpolate(small, (h, w), mode="bilinear", align_corners=False)
        videos = flat.view(b, t, c, h, w).transpose(1, 2)
    speckle = torch.randn(videos.shape, generator=noise) * rng.uniform(0.0, 0.1)
    return videos * rng.uniform(0.92, 1.05) + rng.uniform(-0.06, 0.06) + speckle


def targets(verdicts: list[Verdict]) -> tuple[Tensor, Tensor, Tensor]:
    """Return who is there (B, characters), place (B,) and action (B,)."""
    return (
        torch.tensor([[float(c in v.characters) for c in CHARACTERS] for v in verdicts]),
        torch.tensor([PLACES.index(v.place) for v in verdicts]),
        torch.tensor([ACTIONS.index(v.action) for v in verdicts]),
    )


def train_judge(options: argparse.Namespace) -> None:
    """Train the judge; every save prints how it does on unseen true clips."""
    device, folder = torch.device(options.device), Path(options.out)
    run = Run("judge", folder, options.steps, options.minutes)
    torch.manual_seed(options.seed)
    seed = run.fresh_seed(options.seed + SEED)
    rng, noise = Random(seed), torch.Generator().manual_seed(seed)
    weights = folder / WEIGHTS.name
    judge = (load_judge(weights).train() if weights.exists() else Judge()).to(device)
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.03)
    average = Average(list(judge.parameters()))

    def drawn() -> tuple[Tensor, Verdict]:
        clip = any_clip(rng)
        return pictures(rng, clip), truth(clip)

    pool = [drawn() for _ in range(min(options.pool, 800))]

    def step_fn(step: int, progress: float) -> float:
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * options.rate * min(1.0, (step + 1) / 100) * cosine(progress)
        for _ in range(4 * options.fresh):
            pool[rng.randrange(len(pool))] = drawn()
        clips, verdicts = zip(*rng.choices(pool, k=options.batch), strict=True)
        shown = rng.choice((FRAMES, FRAMES, 9))
        videos = torch.stack(clips)[:, :shown].permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        with autocast(device):
            scores = judge(spoilt(videos, rng, noise).to(device))
        who, where, what = (part.to(device) for part in targets(list(verdicts)))
        loss = F.cross_entropy(scores[1].float(), where) + F.cross_entropy(scores[2].float(), what)
        loss = loss + 3 * F.binary_cross_entropy_with_logits(scores[0].float(), who)
        loss.backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        average.update(step, 0.995)
        return float(loss.detach())

    def save_fn(_: Path) -> None:
        average.swap()
        save_file(judge.cpu().state_dict(), weights)
        unseen = Random(options.seed + SEED + 1)
        clips = [sample_example(unseen).clip for _ in range(UNSEEN)]
        shown = [pictures(unseen, clip).repeat_interleave(STRIDE, 0) for clip in clips]
        verdicts = [judge.judge(frames).verdict for frames in shown]
        right = [
            (v.characters == t.characters, v.place is t.place, v.action is t.action)
            for v, t in zip(verdicts, map(truth, clips), strict=True)
        ]
        shares = [100 * sum(column) / len(right) for column in zip(*right, strict=True)]
        print("characters {:.1f}, place {:.1f}, action {:.1f} %".format(*shares), flush=True)
        judge.to(device)
        average.swap()

    run.loop({"judge": judge, "optimiser": optimiser, "average": AverageState(average)}, step_fn, save_fn)
