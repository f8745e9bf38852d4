"""Which samples of a segment's own sound are heard: those of the pictures that are shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from storyreel.film.dissolve import Part, film_frames
from storyreel.film.own_sound import own_samples
from storyreel.film.writer import RATE
from storyreel.models.specs import ModelSpec
from tests.conftest import plan_of

STORY = """
render: {model: fake}
scenes:
  - [a park, a fox sits]
  - {scene: a park, action: a dog sits, transition: continue}
"""


@pytest.mark.parametrize(("index", "picture"), [(0, None), (1, None), (0, "its SHA-256")])
def test_a_picture_is_heard_when_it_is_seen(fake_model: ModelSpec, index: int, picture: str | None) -> None:
    """Also the first one of a scene with a picture of its own, which is shown although it is its lead."""
    plan = plan_of(STORY)
    segment = replace(plan.segments[index], picture=picture)
    assert segment.lead > index
    plan = replace(plan, segments=tuple(segment if s.index == index else s for s in plan.segments))
    a_frame = RATE // fake_model.fps
    # Every sample is the number of its picture.
    numbered = torch.arange(100).repeat_interleave(a_frame)[:, None].expand(-1, 2)
    shown = film_frames(plan, segment)
    own = own_samples(plan, segment, numbered)
    assert len(own) == len(shown) * a_frame
    assert [(Part(index, int(number), 1.0),) for number in own[::a_frame, 0]] == shown
