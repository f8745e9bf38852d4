"""Training of the embedded model, one command per part, on a CPU or a GPU.

    python -m storyreel.mini.train codec --out run        # encoder and decoder
    python -m storyreel.mini.train transformer --out run  # text encoder and transformer
    python -m storyreel.mini.train decoder --out run      # the decoder, on what the transformer leaves
    python -m storyreel.mini.train scorer --out run       # text-image encoder
    python -m storyreel.mini.train judge --out run        # for measuring only
    python -m storyreel.mini.train limit --out run        # above which the judge calls clips unreadable
    python -m storyreel.mini.train export --out run       # fp16 weights for the package
    python -m storyreel.mini.train import --out run       # begin with the package's weights

Clips are drawn on the fly. Every part that is trained keeps ``run/<part>.pt`` (weights, optimisers, step) and
goes on from there when it is started again; ``run/<part>.log`` holds the loss, and
``run/<part>.png``, of codec, transformer and decoder, what they draw. A loss of NaN ends it, and the
checkpoint stays. ``--minutes`` ends the learning rate's schedule in time on a slow machine.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch

from storyreel.errors import StoryreelError
from storyreel.models.specs import MINI_WEIGHTS

from .training.codec import train_codec
from .training.decoder import train_decoder
from .training.export import export, import_weights
from .training.judge import train_judge
from .training.limit import set_limit
from .training.loop import PRECISIONS
from .training.scorer import train_scorer
from .training.transformer import train_transformer

PARTS = {
    "codec": train_codec,
    "transformer": train_transformer,
    "decoder": train_decoder,
    "scorer": train_scorer,
    "judge": train_judge,
    "limit": set_limit,
    "export": export,
    "import": import_weights,
}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", default="run", help="folder of checkpoints, logs and sheets")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end the schedule by then")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rate", type=float, default=1.0, help="factor of the learning rates")
    parser.add_argument("--pool", type=int, default=4000, help="clips kept in memory")
    parser.add_argument("--fresh", type=int, default=4, help="clips drawn anew at every step")
    parser.add_argument(
        "--drawers",
        type=int,
        default=0,
        help="processes that draw the transformer's clips, in place of --fresh",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="bf16 where it is native")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--leads", type=float, default=0.5, help="share of steps whose lessons begin with something given"
    )
    parser.add_argument("--to", default=str(MINI_WEIGHTS), help="export, import: the folder of the weights")
    return parser.parse_args()


def main() -> None:
    """Train one part."""
    options = parse()
    Path(options.out).mkdir(parents=True, exist_ok=True)
    try:
        PARTS[options.part](options)
    except StoryreelError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    torch.set_flush_denormal(True)  # of the whole process, so not where a test would meet it
    main()
