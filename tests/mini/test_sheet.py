"""What a sheet shows, and what the film then begins with: held against each other by the judge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from storyreel.film import reader
from storyreel.mini.judge import CHARACTERS, Opinion
from storyreel.mini.verdicts import shipped_judge
from storyreel.rendering import Engine, render
from storyreel.sheets import draw_sheet
from storyreel.story.planning import make_plan
from storyreel.story.schema import parse_story
from tests.conftest import Silent

STORY = b"""
cast: {first: {name: a corgi dog, possessive: its}}
scenes:
  - ["{first} is inside of the subway train", "{first} is sitting"]
  - ["{first} has arrived at Central Park", "{first} is sniffing the ground"]
  - ["{first} sees a red ball in Central Park", "{first} is looking up at the sky"]
"""
NEAR = 0.15  # of the picture's width


def centre(opinion: Opinion) -> float:
    """Where across the picture the corgi is, from 0 to 1."""
    shown = opinion.where.mean((0, 1))[:, [who.value for who in CHARACTERS].index("corgi")]
    places = (torch.arange(len(shown)) + 0.5) / len(shown)
    return float((shown * places).sum() / shown.sum())


@pytest.mark.slow
def test_the_film_begins_as_its_sheet_shows(tmp_path: Path) -> None:
    plan = make_plan(parse_story("s", STORY), "s")
    engine = Engine("cpu")
    made = draw_sheet(plan, {}, 1, "s", tmp_path, engine, Silent())
    film = render(plan, "s", tmp_path, engine, Silent()).film
    width, height = plan.settings.width, plan.settings.height
    frames = torch.frombuffer(bytearray(b"".join(reader.read_frames(film, width, height))), dtype=torch.uint8)
    frames = frames.view(-1, height, width, 3)
    for segment, listed in zip(plan.segments, made.sheet.content["pictures"], strict=True):
        with Image.open(made.sheet.picture) as sheet:
            picture = sheet.crop(listed["box"]).convert("RGB").resize((width, height), Image.Resampling.BOX)
        still: Tensor = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        still = still.view(1, height, width, 3).expand(plan.spec.fps, -1, -1, -1)
        shown = shipped_judge().judge(still)
        begun = shipped_judge().judge(frames[segment.start : segment.start + plan.spec.fps])
        assert shown.verdict.characters == begun.verdict.characters
        assert shown.verdict.place is begun.verdict.place
        assert abs(centre(shown) - centre(begun)) < NEAR
