"""The sound that a model makes with its pictures: cut to a segment's own frames, beside which it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from storyreel.film.writer import RATE
from storyreel.story.plan import Plan, Segment


def own_samples(plan: Plan, segment: Segment, decoded: Tensor) -> Tensor:
    """Return the samples (T, 2) of a segment's own frames, exactly as long, of all that was decoded of it.

    What was decoded begins with the segment's lead, of which is heard what is seen: a picture of its own. At
    its end some milliseconds may lack: there it goes back as it came, which is no click.
    """
    fps = plan.spec.fps
    first, count = (round(n * RATE / fps) for n in (plan.unseen(segment), segment.frames))
    own = decoded[first : first + count]
    if not len(own):
        raise RuntimeError(
            f"scene {segment.number} has {len(decoded)} samples of sound, all before its frames"
        )
    while len(own) < count:
        own = torch.cat([own, own.flip(0)])[:count]
    return own


@contextmanager
def raw_sound(path: Path, samples: Tensor) -> Iterator[Path]:
    """Give samples (T, 2) as a file for ffmpeg, fp32, which goes afterwards. Raises OSError."""
    try:
        path.write_bytes(samples.contiguous().numpy().astype("<f4").tobytes())
        yield path
    finally:
        path.unlink(missing_ok=True)
