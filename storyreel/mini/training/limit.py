"""The judge's limit: the score above which nobody can tell what a clip shows.

It is set on true clips, with seeds that neither the training nor the evaluation has, and kept in the weights:
`judge.UNREADABLE` stays where it is, and the network's last bias moves.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from torch import Tensor

from storyreel.mini.judge import STRIDE, UNREADABLE, WEIGHTS, Judge, load_judge
from storyreel.mini.lessons import sample_example
from storyreel.mini.spoiling import spoilt
from storyreel.mini.world import ByteArray

from .judge import any_clip, footage_of

SEED = 8_000_009
CLIPS = 1000  # true ones, and half as many spoilt ones
REFUSED = 0.005  # share of the true ones that may be called unreadable; the bar is twice that


def set_limit(options: argparse.Namespace) -> None:
    """Move the limit of a trained judge to where one true clip in two hundred is called unreadable.

    To be run after every training of the judge: saving its weights undoes it. ``--pool`` bounds the clips.
    """
    path = Path(options.out) / WEIGHTS.name
    judge = load_judge(path)
    true, ruined = ruins(judge, Random(options.seed + SEED), min(options.pool, CLIPS))
    limit = float(true.quantile(1 - REFUSED))
    with torch.no_grad():
        judge.head.bias[-1] += UNREADABLE - limit
    save_file(judge.state_dict(), path)
    caught = 100 * float((ruined > limit).float().mean())
    print(
        f"{path}: {limit:.2f} is the limit now; above it are {100 * REFUSED:g} % of {len(true)} true clips "
        f"and {caught:.1f} % of {len(ruined)} spoilt ones"
    )


def ruins(judge: Judge, rng: Random, count: int) -> tuple[Tensor, Tensor]:
    """Return the scores of ``count`` true clips, and of half as many that are spoilt."""

    def score(pictures: ByteArray) -> float:
        return judge.judge(torch.from_numpy(pictures).repeat_interleave(STRIDE, 0)).ruin

    true, ruined = [], []
    for index in range(count):
        footage = footage_of(rng, sample_example(rng).clip)
        true.append(score(footage.pictures))
        if index % 2:
            ruined.append(score(spoilt(rng, footage, footage_of(rng, any_clip(rng)))))
    return torch.tensor(true), torch.tensor(ruined)
