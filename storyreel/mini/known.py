"""Whether pictures can be of the cartoon world at all.

A text-image encoder and a judge choose among what they know, whatever they are shown: to them a picture of
one grey is a man in the subway, with as high a cosine as true pictures have. This looks, without any weights,
at how edges are spread over a picture, and compares with pictures that the world's own program draws.
"""

from __future__ import annotations

from functools import cache
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F

from .world import Character, Place, Stage, sample_clip

WIDTH, HEIGHT = 96, 64
DRAWN = 600  # pictures to compare with, and as many that are a little blurred, as a model's are
SEED = 5_000_011
BLUR = 0.7
CELLS = 8, 12
ENOUGH = 1500  # places of a picture that tell how strong its edges are
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.97)
WEIGHT = 1.5  # of how strong edges are, beside where they are
NEAREST = 3
USUAL_CONTRAST, FAINT = 55.0, 8.0  # deviations of brightness, of 255
LIMIT = 3.3  # farther than this from all of them is nothing of this world (tests/mini/test_known.py)


def strangeness(pictures: Tensor) -> float:
    """Return how unlike the cartoon world pictures uint8 (N, H, W, 3) are: above 1 they show nothing of it.

    Of a clip some pictures, spread over it, are enough; the mean over them counts.
    """
    small = F.interpolate(pictures.permute(0, 3, 1, 2).float(), (HEIGHT, WIDTH), mode="area")
    distances = torch.cdist(_edges(small), _drawn().to(pictures.device))
    return float(distances.topk(NEAREST, dim=1, largest=False).values.mean()) / LIMIT


def _edges(pictures: Tensor) -> Tensor:
    """Return where edges are in pictures (N, 3, H, W), 0 to 255, and how strong, at two sizes: (N, D)."""
    contrast = pictures.std((1, 2, 3), keepdim=True) + FAINT
    pictures = pictures * (USUAL_CONTRAST / contrast)  # a darker or paler film shows the same
    found: list[Tensor] = []
    for size in ((HEIGHT, WIDTH), (HEIGHT // 4, WIDTH // 4)):
        x = F.interpolate(pictures, size, mode="area") / 255
        across = (x[:, :, :-1, 1:] - x[:, :, :-1, :-1]).abs().mean(1)
        down = (x[:, :, 1:, :-1] - x[:, :, :-1, :-1]).abs().mean(1)
        edges = across + down
        if not found:
            cells = F.adaptive_avg_pool2d(edges[:, None], CELLS).flatten(1)
            found.append((cells + 0.01).log() / 3)
        places = edges.flatten(1)
        some = places[:, :: max(1, places.shape[1] // ENOUGH)]
        strong = some.quantile(torch.tensor(SHARES, device=edges.device), 1).T
        found.append((strong + 0.005).log() * WEIGHT)
    return torch.cat(found, 1)


@cache
def _drawn() -> Tensor:
    """Draw pictures of every place, with every character and with pairs, and return their edges."""
    rng, places, characters = Random(SEED), tuple(Place), tuple(Character)
    pictures = []
    for index in range(DRAWN):
        place = places[index % len(places)]
        alone = (characters[index // len(places) % len(characters)],)
        clip = sample_clip(rng, place, alone if index % 3 else rng.sample(characters, 2))
        frame, _ = Stage(clip, WIDTH, HEIGHT).frame(2 * rng.random())
        pictures.append(torch.from_numpy(frame))
    sharp = torch.stack(pictures).permute(0, 3, 1, 2).float()
    soft = F.interpolate(sharp, scale_factor=BLUR, mode="area")
    soft = F.interpolate(soft, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)
    return torch.cat([_edges(few) for few in torch.cat([sharp, soft]).split(50)])
