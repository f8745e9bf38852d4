"""A baseline that any editor's program can make: a film's scenes, joined by plain crossfades.

    python -m tests.crossfade plain/nyc/nyc.mp4 crossfade/nyc.mp4

Of a film that was rendered `--without all`. Measures of seams that it wins say nothing of the method.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from storyreel import video
from storyreel.method.blending import dissolve, dissolve_weights

FRAMES = 12  # of a crossfade, half of them on either side of the border
SIZE, UPSCALE, FPS = (96, 64), 8, 12  # of mini's films


def crossfaded(film: Tensor, borders: list[int], frames: int = FRAMES) -> Tensor:
    """Return a film, uint8 (T, H, W, 3), whose scenes pass over into each other around ``borders``.

    Where one of them is not there yet or not any more, its picture at the border stands still.
    """
    half, mixed = frames // 2, film.clone()
    for border in borders:
        earlier = torch.cat([film[border - half : border], film[border - 1 :][:1].expand(half, -1, -1, -1)])
        later = torch.cat([film[border:][:1].expand(half, -1, -1, -1), film[border : border + half]])
        mixed[border - half : border + half] = dissolve(earlier, later, dissolve_weights(frames))
    return mixed


def main(source: Path, target: Path) -> None:
    """Read a rendered film, whose chapters are its scenes, and write it with crossfades."""
    width, height = SIZE
    data = b"".join(video.read_frames(source, width, height))
    film = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, height, width, 3)
    borders = [round(start * FPS) for start in video.probe(source).chapters[1:]]
    target.parent.mkdir(parents=True, exist_ok=True)
    with video.SegmentWriter(target, width, height, FPS, UPSCALE) as writer:
        writer.write(crossfaded(film, borders).numpy().tobytes())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
