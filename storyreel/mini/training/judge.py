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
    CELL,
    CHARACTERS,
    LIGHTS,
    PLACES,
    SIZE,
    STRIDE,
    WEIGHTS,
    Judge,
    Scores,
    Verdict,
    as_seen,
    load_judge,
    loosened,
    truth,
)
from storyreel.mini.lessons import ALL_PAIRS, FPS, going_on, sample_example
from storyreel.mini.spoiling import Footage, filmed, foreign, spoilt
from storyreel.mini.world import (
    COLOURS,
    LEAVER,
    Character,
    Clip,
    Place,
    owners_of,
    sample_clip,
    stage_clip,
    wear_of,
)

from .loop import Average, AverageState, Run, autocast, cosine

SEED = 7_000_003  # far from the seeds of the model's lessons
FRAMES = 13
Truth = tuple[Verdict, Tensor]  # and who is in each of the judge's cells
PAIR_SHARE = 0.35
GOING_ON = 0.25
SPOILT_SHARE = 0.25
FOREIGN_SHARE = 0.15  # of the spoilt
UNSEEN = 400  # true clips that a save measures, and half as many spoilt ones


def any_clip(rng: Random) -> Clip:
    """Draw a clip of the model's lessons, or of any combination at all; loosened.

    Some go on from another, as a film's scenes do.
    """
    if rng.random() < 0.4:
        return loosened(rng, sample_example(rng).clip)
    place = rng.choice(tuple(Place))
    who = rng.choice(ALL_PAIRS) if rng.random() < PAIR_SHARE else (rng.choice(tuple(Character)),)
    clip = stage_clip(rng, place, who, sample_clip(rng, place, who).action)
    return loosened(rng, going_on(rng, clip) if rng.random() < GOING_ON else clip)


def footage_of(rng: Random, clip: Clip) -> Footage:
    """Draw what the judge looks at, from a start within the first beat."""
    start = rng.uniform(0.0, 0.3)
    return filmed(clip, [start + STRIDE * i / FPS for i in range(FRAMES)])


def worsened(videos: Tensor, rng: Random, noise: torch.Generator) -> Tensor:
    """Blur, brighten and speckle videos (B, 3, T, H, W), as a model does; they stay readable."""
    if rng.random() < 0.4:
        b, c, t, h, w = videos.shape
        flat = videos.transpose(1, 2).reshape(b * t, c, h, w)
        small = F.interpolate(flat, scale_factor=rng.uniform(0.45, 0.9), mode="area")
        flat = F.interpolate(small, (h, w), mode="bilinear", align_corners=False)
        videos = flat.view(b, t, c, h, w).transpose(1, 2)
    speckle = torch.randn(videos.shape, generator=noise) * rng.uniform(0.0, 0.1)
    return videos * rng.uniform(0.92, 1.05) + rng.uniform(-0.06, 0.06) + speckle


def where_of(footage: Footage) -> Tensor:
    """Return how much of each of the judge's cells nobody covers, and each character: (T, h, w, 7)."""
    clip = footage.clip
    numbers = torch.zeros(256, dtype=torch.long)  # of owners; the ball is nobody
    for owner, who in enumerate(clip.cast, 1):
        numbers[owner] = 1 + CHARACTERS.index(who)
    for who in clip.former.cast if clip.former else ():
        if who not in clip.cast:
            numbers[LEAVER] = 1 + CHARACTERS.index(who)
    owners = torch.from_numpy(owners_of(footage.tags)).long()
    shown = F.one_hot(numbers[owners], 1 + len(CHARACTERS)).permute(0, 3, 1, 2).float()
    cells = F.adaptive_avg_pool2d(shown, (SIZE[1] // CELL, SIZE[0] // CELL))
    return cells.permute(0, 2, 3, 1)


def judge_loss(scores: Scores, truths: list[Truth | None]) -> Tensor:
    """Compare with what is true; None is a spoilt clip, of which nothing else is asked."""
    device = scores.ruin.device
    verdicts = [None if known is None else known[0] for known in truths]
    ruin = torch.tensor([float(v is None) for v in verdicts], device=device)
    loss = 2 * F.binary_cross_entropy_with_logits(scores.ruin.float(), ruin)
    kept = [i for i, v in enumerate(verdicts) if v is not None]
    true = [v for v in verdicts if v is not None]
    if not true:
        return loss

    def classes(logits: Tensor, numbers: list[int]) -> Tensor:
        return F.cross_entropy(logits.float(), torch.tensor(numbers, device=device))

    shown = scores.where.shape[1]
    cells = torch.stack([known[1][:shown] for known in truths if known is not None]).to(device)
    chances = scores.where[kept].float().log_softmax(-1)
    # A cell in ten shows somebody: those weigh as much as all the others.
    weight = 1 + 8 * (1 - cells[..., 0].float())
    loss = loss - 4 * (weight * (cells * chances).sum(-1)).mean() / weight.mean()
    who = torch.tensor([[float(c in v.characters) for c in CHARACTERS] for v in true], device=device)
    loss = loss + 3 * F.binary_cross_entropy_with_logits(scores.characters[kept].float(), who)
    loss = loss + classes(scores.places[kept], [PLACES.index(v.place) for v in true])
    loss = loss + classes(scores.actions[kept], [ACTIONS.index(v.action) for v in true])
    loss = loss + classes(scores.lights[kept], [LIGHTS.index(v.light) for v in true])
    loss = loss + classes(scores.arrangements[kept], [v.arrangement for v in true])
    seen = [(i, who, look) for i, v in zip(kept, true, strict=True) for who, look in v.looks.items()]
    rows = [i for i, _, _ in seen], [CHARACTERS.index(who) for _, who, _ in seen]
    colours = [COLOURS[who].index(look.colour) for _, who, look in seen]
    return (
        loss
        + classes(scores.colours[rows], colours)
        + classes(scores.wear[rows], [wear_of(who).index(look.wear) for _, who, look in seen])
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

    def drawn() -> tuple[Tensor, Truth | None]:
        footage = footage_of(rng, any_clip(rng))
        if rng.random() >= SPOILT_SHARE:
            return torch.from_numpy(footage.pictures), (truth(footage.clip), where_of(footage).half())
        if rng.random() < FOREIGN_SHARE:
            return torch.from_numpy(foreign(rng, FRAMES)), None
        return torch.from_numpy(spoilt(rng, footage, footage_of(rng, any_clip(rng)))), None

    def seen(clip: Tensor) -> Tensor:
        return ((as_seen(clip) + 1) * 127.5).round().to(torch.uint8)

    def entry() -> tuple[Tensor, Truth | None]:
        clip, known = drawn()
        return seen(clip), known

    pool = [entry() for _ in range(min(options.pool, 2000))]

    def step_fn(step: int, progress: float) -> float:
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * options.rate * min(1.0, (step + 1) / 100) * cosine(progress)
        for _ in range(4 * options.fresh):
            pool[rng.randrange(len(pool))] = entry()
        clips, truths = zip(*rng.choices(pool, k=options.batch), strict=True)
        shown = rng.choice((9, 9, FRAMES))
        videos = torch.stack(clips)[:, :, :shown].float() / 127.5 - 1
        with autocast(device, options.precision):
            scores = judge(worsened(videos, rng, noise).to(device))
        loss = judge_loss(scores, list(truths))
        loss.backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        average.update(step, 0.995)
        return float(loss.detach())

    def save_fn(_: Path) -> None:
        average.swap()
        save_file(judge.cpu().state_dict(), weights)
        print(judge_report(judge, Random(options.seed + SEED + 1), UNSEEN), flush=True)
        judge.to(device)
        average.swap()

    run.loop({"judge": judge, "optimiser": optimiser, "average": AverageState(average)}, step_fn, save_fn)


def judge_report(judge: Judge, rng: Random, count: int) -> str:
    """Say how a judge does on unseen true clips, and on half as many spoilt ones."""
    right: list[tuple[bool, ...]] = []
    true_ruins, spoilt_ruins = [], []
    for index in range(count):
        footage = footage_of(rng, sample_example(rng).clip)
        opinion = judge.judge(torch.from_numpy(footage.pictures).repeat_interleave(STRIDE, 0))
        said, true = opinion.verdict, truth(footage.clip)
        looks = [said.looks.get(who) for who in true.looks]
        right.append(
            (
                said.characters == true.characters,
                said.place is true.place,
                said.action is true.action,
                looks == list(true.looks.values()),
                said.light is true.light,
                said.arrangement == true.arrangement,
            )
        )
        true_ruins.append(opinion.ruin)
        if index % 2:
            pictures = spoilt(rng, footage, footage_of(rng, any_clip(rng)))
            spoilt_ruins.append(judge.judge(torch.from_numpy(pictures).repeat_interleave(STRIDE, 0)).ruin)
    shares = [100 * sum(column) / len(right) for column in zip(*right, strict=True)]
    limit = torch.tensor(true_ruins).quantile(0.995)
    caught = 100 * float((torch.tensor(spoilt_ruins) > limit).float().mean()) if spoilt_ruins else 0.0
    return (
        "characters {:.1f}, place {:.1f}, action {:.1f}, looks {:.1f}, light {:.1f}, set {:.1f} %".format(
            *shares
        )
        + f"; above {limit:.2f}, half a per cent of the true: {caught:.1f} % of the spoilt"
    )
