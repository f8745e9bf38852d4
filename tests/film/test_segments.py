"""What a segment begins with, of the files of those before it: the film on disk is the one in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from storyreel.denoise.loop import SegmentState, begin
from storyreel.denoise.prompts import similarities
from storyreel.film import segments as module
from storyreel.film.inventory import Inventory
from storyreel.film.keys import film_facts
from storyreel.film.segments import Segments
from storyreel.film.store import Store
from storyreel.models.specs import ModelSpec
from tests.conftest import FakeAdapter, FakeScorer, plan_of
from tests.denoise.test_loop import Film
from tests.film.test_keys import WITH_ENCODER

# Another place, which shows the fox as the first scene does; there the shot goes on, and then there is a cut.
STORY = """
render: {model: fake, steps: 8}
cast: {fox: {name: a fox}}
scenes:
  - ["{fox} in the park", "{fox} sits"]
  - ["{fox} at sea", "{fox} swims"]
  - ["{fox} at sea", "{fox} dives"]
  - {scene: "{fox} at home", action: "{fox} sleeps", transition: cut}
"""


@pytest.mark.parametrize(
    ("blending", "befores", "endings"),
    [("lead", "", "2"), ("published", "12", "12"), ("continuation", "", "12"), ("none", "", "")],
)
def test_a_segment_is_weighed_by_the_end_of_the_one_that_it_goes_on_from(
    fake_model: ModelSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    blending: str,
    befores: str,
    endings: str,
) -> None:
    """And of no other, also where that has to be there first: only its characters come of it."""
    plan, begun_with = plan_of(STORY, method=(f"blending={blending}", "weighting=true")), []

    def noted(*given: Any) -> SegmentState:
        _, _, segment, _, _, before, ending = given
        begun_with.append((segment.index, before is not None, ending is not None))
        return begin(*given)

    def forward(window: Sequence[SegmentState]) -> None:
        """Save nothing halfway."""

    monkeypatch.setattr(module, "begin", noted)
    inventory = Inventory(plan, film_facts(plan, WITH_ENCODER, "cpu"))
    scorer = FakeScorer("a fox swims")
    made = Segments(inventory, Store(tmp_path), FakeAdapter(fake_model), scorer, lambda: "cpu")
    for finished in made.denoise(plan.segments, forward):
        made.save(finished, 1.0)
    assert "".join(str(index) for index, before, _ in begun_with if before) == befores
    assert "".join(str(index) for index, _, ending in begun_with if ending) == endings
    adapter = FakeAdapter(fake_model)
    film = Film(adapter, plan.settled(similarities(plan, adapter, scorer)), scorer).made()
    for segment in made.plan.segments:
        assert torch.equal(made.latents(segment), film.latents[segment.index])
