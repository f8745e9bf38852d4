"""The layout of a lesson: which part of whom covers which token, and what is true of the clip."""

from __future__ import annotations

from random import Random

import numpy as np
import torch

from storyreel.mini.training.layout import (
    CELLS,
    CHANNELS,
    KINDS,
    LOOKS,
    TAGS,
    LayoutHead,
    Predicted,
    facts_of,
    layout_loss,
    layout_of,
)
from storyreel.mini.training.transformer import covered
from storyreel.mini.world import (
    BALL_TAG,
    COLOURS,
    Action,
    Character,
    Light,
    Look,
    Part,
    Place,
    draw_clip,
    owners_of,
    stage_clip,
    tag_of,
)

CLIP = stage_clip(
    Random(0),
    Place.CAPITOL,
    (Character.CORGI, Character.WOMAN),
    Action.MEET,
    looks=(Look("grey", "blue collar"), Look("red")),
    light=Light.NIGHT,
    arrangement=1,
)
HEAD = TAGS.index(tag_of(1, Part.HEAD))


def test_facts_are_of_the_whole_clip() -> None:
    action, place, light, arrangement = facts_of(CLIP).tolist()
    assert tuple(Action)[action] is Action.MEET
    assert tuple(Place)[place] is Place.CAPITOL
    assert tuple(Light)[light] is Light.NIGHT
    assert arrangement == 1


def test_a_layout_has_the_shares_of_cells_and_of_latent_frames() -> None:
    """One picture for the first latent, three for the second; tokens of 32 pixels, cells of 8."""
    tags = torch.zeros(4, 64, 64, dtype=torch.uint8)
    tags[0, :8, 8:16] = tag_of(1, Part.HEAD)  # the second cell of the first token
    tags[1, 32:40, 32:36] = tag_of(1, Part.HEAD)  # half a cell of the last token, in one picture of three
    tags[1:, 32:64, :32] = BALL_TAG  # all of the third
    layout = layout_of(tags, CLIP)
    assert layout.shape == (2, 4, CHANNELS)
    assert layout.dtype == torch.uint8
    shares = layout[..., : len(TAGS) * CELLS].unflatten(-1, (len(TAGS), CELLS)).float() / 255
    expected = torch.zeros(2, 4, len(TAGS), CELLS)
    expected[0, 0, HEAD, 1] = 1
    expected[1, 3, HEAD, 0] = 1 / 6
    expected[1, 2, -1] = 1
    assert torch.allclose(shares, expected, atol=0.003)


def test_a_layout_tells_looks_where_their_owner_is() -> None:
    images, tags = draw_clip(CLIP, 4, 12.0, 192, 128)
    assert images.shape == (4, 128, 192, 3)
    looks = (
        layout_of(torch.from_numpy(tags), CLIP)[..., len(TAGS) * CELLS :].unflatten(-1, (2, LOOKS)).float()
    )
    assert looks.shape == (2, 24, 2, LOOKS)
    for index, (who, colour, wear) in enumerate(((Character.CORGI, "grey", 2), (Character.WOMAN, "red", 0))):
        there = {
            tuple(Character).index(who),
            len(Character) + COLOURS[who].index(colour),
            len(Character) + 4 + wear,
        }
        said = looks[0, :, index]
        assert set(said.amax(0).nonzero().flatten().tolist()) == there
        mine = (owners_of(tags[0]) == index + 1).reshape(4, 32, 6, 32).mean((1, 3)).reshape(-1)
        assert np.array_equal(said.amax(1).numpy() > 0, np.round(3 * 255 * mine) > 0)


def test_a_right_prediction_costs_least() -> None:
    layout = torch.randint(0, 2, (2, 3, 5, CHANNELS), dtype=torch.uint8) * 255
    facts = torch.tensor([[1, 2, 0, 1], [0, 9, 2, 0]])
    sure = 20 * (layout.flatten(1, 2).float() / 127.5 - 1)
    said = tuple(
        20 * torch.nn.functional.one_hot(column, kinds).float()
        for column, kinds in zip(facts.unbind(1), KINDS, strict=True)
    )
    assert float(layout_loss(Predicted(sure, said), layout, facts)) < 1e-3
    assert float(layout_loss(Predicted(-sure, said), layout, facts)) > 10
    wrong = (said[0], said[1].roll(1, 1), *said[2:])
    assert float(layout_loss(Predicted(sure, wrong), layout, facts)) > 0.3


def test_a_wrong_look_counts_where_its_owner_is_and_by_itself() -> None:
    """One token of a hundred shows somebody, in the wrong colour."""
    layout = torch.zeros(1, 1, 100, CHANNELS, dtype=torch.uint8)
    looks = len(TAGS) * CELLS
    layout[..., 7, looks] = 255
    layout[..., 7, looks + len(Character)] = 255
    facts = torch.zeros(1, len(KINDS), dtype=torch.long)
    said = tuple(20 * torch.nn.functional.one_hot(torch.tensor([0]), kinds).float() for kinds in KINDS)
    sure = 20 * (layout.flatten(1, 2).float() / 127.5 - 1)
    wrong = sure.clone()
    wrong[0, 7, looks + len(Character) : looks + len(Character) + 4] = torch.tensor([-20.0, 20, -20, -20])
    assert float(layout_loss(Predicted(sure, said), layout, facts)) < 1e-3
    assert float(layout_loss(Predicted(wrong, said), layout, facts)) > 0.3


def test_the_head_reads_every_token() -> None:
    torch.manual_seed(0)
    head = LayoutHead(8)
    predicted = head(torch.randn(2, 15, 8))
    assert predicted.layout.shape == (2, 15, CHANNELS)
    assert [part.shape for part in predicted.facts] == [(2, kinds) for kinds in KINDS]


def test_latents_under_an_actor_count_more_and_under_the_ball_twice() -> None:
    tags = torch.zeros(4, 64, 64, dtype=torch.uint8)
    tags[1:, 16:32, :16] = tag_of(2, Part.LEG)
    tags[1:, 48:, 32:40] = BALL_TAG  # half of a latent
    cover = covered(layout_of(tags, CLIP)[None], torch.Size((1, 32, 2, 4, 4)))
    assert cover.shape == (1, 1, 2, 4, 4)
    expected = torch.zeros(2, 4, 4)
    expected[1, 1, 0] = 1
    expected[1, 3, 2] = 1
    assert torch.allclose(cover[0, 0], expected, atol=0.01)
