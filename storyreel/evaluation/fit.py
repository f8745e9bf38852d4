"""How well a film's pictures show its prompts, by the model's own text-image encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from storyreel.evaluation.clips import clips
from storyreel.plan import Segment
from storyreel.prompts import Scorer

PICTURES = 4  # of a segment


@torch.inference_mode()
def text_fit(
    scorer: Scorer, device: torch.device, segments: Sequence[Segment], frames: Iterable[Tensor]
) -> list[tuple[float, float]]:
    """Return each segment's mean cosine with its scene prompt and with its action prompt.

    ``frames`` are chunks uint8 (T, H, W, 3). The pictures are spread evenly over the segment,
    away from its ends. ``device`` is the scorer's.
    """
    found: dict[int, tuple[float, float]] = {}
    for index, clip in clips(frames, [(s.start, s.start + s.frames) for s in segments]):
        places = ((torch.arange(PICTURES) + 0.5) * len(clip) / PICTURES).long()
        pictures = clip[places].to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        wanted = scorer.embed_texts([segments[index].scene, segments[index].action])
        scene, action = (wanted @ scorer.embed_pictures(pictures).T).mean(1).tolist()
        found[index] = (scene, action)
    return [found[index] for index in range(len(segments))]
