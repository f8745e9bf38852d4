"""A baseline that any editor's program can make: a film's scenes, joined by plain crossfades.

    python -m tests.crossfade plain/nyc plain/dc crossfade

Of films that were rendered `--without all`, into the last folder. Measures of seams that it wins say
nothing of the method.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from storyreel.film import reader, writer
from storyreel.method.blending import dissolve

FRAMES = 12  # of a crossfade, half of them on either side of the border


def crossfaded(film: Tensor, borders: Sequence[int], frames: int = FRAMES) -> Tensor:
    """Return a film, uint8 (T, H, W, 3), whose scenes pass over into each other around ``borders``.

    Where one of them is not there yet or not any more, its picture at the border stands still.
    """
    half, mixed = frames // 2, film.clone()
    weights = ((torch.arange(frames) + 0.5) / frames).view(-1, 1, 1, 1)
    for border in borders:
        earlier = torch.cat([film[border - half : border], film[border - 1 :][:1].expand(half, -1, -1, -1)])
        later = torch.cat([film[border:][:1].expand(half, -1, -1, -1), film[border : border + half]])
        mixed[border - half : border + half] = dissolve(earlier, later, weights)
    return mixed


def main(folders: Sequence[Path], target: Path) -> None:
    """Read the films that renders left in ``folders``, and write them with crossfades."""
    target.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        manifest = json.loads((folder / "manifest.json").read_text())
        settings, source = manifest["settings"], folder / manifest["film"]["file"]
        width, height = settings["width"], settings["height"]
        data = b"".join(reader.read_frames(source, width, height))
        film = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, height, width, 3)
        borders = [segment["start"] for segment in manifest["segments"][1:]]
        made = target / source.name
        with writer.SegmentWriter(made, width, height, settings["fps"], settings["upscale"]) as encoder:
            encoder.write(crossfaded(film, borders).numpy().tobytes())


if __name__ == "__main__":
    *sources, into = map(Path, sys.argv[1:])
    main(sources, into)
