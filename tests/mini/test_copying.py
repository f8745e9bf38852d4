"""What is measured of a lead: all of a look from a model that knows, nothing from one that does not look."""

from __future__ import annotations

from itertools import islice
from random import Random
from typing import Any

import pytest
import torch

from storyreel.mini import copying
from storyreel.mini.copying import (
    copied,
    estimates_apart,
    from_another_pose,
    in_another_colour,
    latents_of,
    look_taken,
    portraits_of,
    pose_taken,
    scenes,
    where_apart,
)
from storyreel.mini.evaluate import Studio
from storyreel.mini.world import Clip
from storyreel.models.base import Request
from storyreel.models.specs import MINI_WEIGHTS


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio(MINI_WEIGHTS, torch.device("cpu"))


@pytest.fixture(scope="module")
def told() -> list[tuple[Clip, str]]:
    return list(islice(scenes(Random(5)), 6))


class Model:
    """Answers every request with the velocity of an estimate that it is told to make of the first frame."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.counts: list[Any] = []

    def encode(self, prompt: str) -> str:
        return prompt

    def predict(self, requests: list[Request]) -> Any:
        for request in requests:
            self.counts.append(request.counts)
            estimate = self.share * request.x[:, :, :1].expand_as(request.x)
            yield [(request.x - estimate) / request.sigma]


def test_scenes_go_on_from_another_pose_and_leave_looks_open(told: list[tuple[Clip, str]]) -> None:
    for clip, prompt in told:
        assert clip.former is not None
        assert clip.cast == clip.former.cast
        assert clip.actors[0].look == clip.former.actors[0].look
        assert clip.actors[0].look.colour not in prompt.split()


def test_another_colour_is_all_that_differs(told: list[tuple[Clip, str]]) -> None:
    rng = Random(0)
    for clip, _ in told:
        other = in_another_colour(rng, clip)
        assert clip.former is not None
        assert other.former is not None
        for mine, its in ((clip, other), (clip.former, other.former)):
            assert its.actors[0].look.colour != mine.actors[0].look.colour
            assert its.actors[0].look.wear == mine.actors[0].look.wear
        back = in_another_colour(rng, other)
        while back.actors[0].look != clip.actors[0].look:
            back = in_another_colour(rng, other)
        assert back == clip


def test_another_pose_is_that_of_the_former_clip_alone(told: list[tuple[Clip, str]]) -> None:
    rng = Random(0)
    for clip, _ in told:
        other = from_another_pose(rng, clip)
        assert clip.former is not None
        assert other.former is not None
        assert other.former.action is not clip.former.action
        assert other.former.actors[0].look == clip.former.actors[0].look
        assert (other.actors, other.backdrop, other.began, other.turn) == (
            clip.actors,
            clip.backdrop,
            clip.began,
            clip.turn,
        )


def test_a_look_is_taken_up_in_the_share_in_which_the_estimates_show_it_wherever_that_is() -> None:
    apart = torch.zeros(1, 4, 6, 3, 3)
    apart[:, 1, :, 0, 0] = 2.0
    assert where_apart(apart).sum() == 6
    elsewhere = 0.3 * apart[:, :, 1:].roll(2, dims=-1)
    taken, whole = look_taken(elsewhere, apart)
    assert taken / whole == pytest.approx(0.3)
    assert look_taken(apart[:, :, 1:], apart)[0] == pytest.approx(whole)
    other_way = torch.zeros_like(elsewhere)
    other_way[:, 2] = 1.0
    assert look_taken(other_way, apart)[0] == 0


def test_a_pose_counts_in_later_frames_alone() -> None:
    apart = torch.ones(1, 4, copying.FRAMES, 3, 3)
    estimated = torch.zeros(1, 4, copying.FRAMES - 1, 3, 3)
    estimated[:, :, : copying.LATER - 1] = 9.0
    assert pose_taken(estimated, apart) == (0, 1)
    estimated[:, :, copying.LATER - 1 :] = 0.5
    assert pose_taken(estimated, apart) == (0.25, 1)


def test_estimates_differ_by_what_is_taken_of_the_first_frame(
    studio: Studio, told: list[tuple[Clip, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, prompt = told[0]
    clips = latents_of(studio, clip), latents_of(studio, in_another_colour(Random(0), clip))
    assert clips[0].shape == (1, 32, copying.FRAMES, 8, 12)
    leads, behind = (clips[0][:, :, :1], clips[1][:, :, :1]), clips[0][:, :, 1:]
    cells = torch.zeros(1, 1, 1, 8, 12)
    cells[..., :6] = 1
    model = Model(0.5)
    monkeypatch.setattr(studio, "adapter", model)
    estimated = estimates_apart(studio, prompt, leads, cells, behind, 0.9, 0)
    seen = torch.where(cells > 0, 1 - 0.9 * studio.plan.settings.method.lead_noise, 1 - 0.9)
    wanted = 0.5 * seen * (leads[0] - leads[1]).expand_as(behind)
    torch.testing.assert_close(estimated, wanted, rtol=1e-3, atol=1e-3)
    assert model.counts == [None, None]
    monkeypatch.setattr(studio, "adapter", Model(0))
    assert estimates_apart(studio, prompt, leads, cells, behind, 0.9, 0).abs().max() < 1e-5
    monkeypatch.setattr(studio, "adapter", model)
    estimates_apart(studio, prompt, leads, cells, behind, 0.9, 0, 1 + 2 * cells)
    assert set(model.counts[-1].unique().tolist()) == {1, 3}


def test_a_portrait_is_one_picture_in_two_looks_and_the_cells_round_somebody(
    studio: Studio, told: list[tuple[Clip, str]]
) -> None:
    for index, (clip, _) in enumerate(told[:3]):
        other = in_another_colour(Random(0), clip)
        first, second, cells = portraits_of(studio, index, clip, other)
        assert first.shape == second.shape == (1, 32, 1, 8, 12)
        assert set(cells.unique().tolist()) == {0, 1}
        apart = (first - second).square().sum(1, keepdim=True)
        assert (apart * cells).sum() > 0.95 * apart.sum()  # the place is the same
        assert torch.equal(portraits_of(studio, index, clip, clip)[1], first)


def test_the_bundled_model_takes_part_of_a_look_and_more_of_what_counts_more(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "LEVELS", (0.88,))
    once, thrice = (copied(studio, 1, counts)[0.88] for counts in (1, 3))
    assert 0.1 < once.look < thrice.look < 1.5
    assert 0 < once.pose < thrice.pose < 1
    assert 0.1 < once.portrait < thrice.portrait < 1.5
