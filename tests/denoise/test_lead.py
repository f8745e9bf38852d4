"""What stands in a lead, and where: on a model that paints each character at a place of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from storyreel.denoise.lead import Leads
from storyreel.denoise.prompts import all_prompts
from storyreel.models.base import Request
from storyreel.models.specs import MODELS
from storyreel.story.plan import LOOKED_AT, Plan
from tests.conftest import FakeAdapter, plan_of
from tests.tiny import TINY

STORY = """
render: {model: tiny}
cast: {fox: {name: a fox}, dog: {name: a dog}}
scenes:
  - ["{fox} in the park", "{fox} walks"]
  - ["{fox} in the park", "{fox} sleeps"]
  - ["{dog} at home", "{dog} walks"]
  - ["{dog} and {fox} at home", they play]
  - {scene: "{fox} and {dog} at sea", action: they swim, transition: cut}
  - [a bus, drives]
"""
TOGETHER = STORY.replace("{fox} walks", "{fox} and {dog} walk", 1)
# Where a character is painted: one cell, which with those around it is what shows it.
CELLS = {"fox": (0, 0), "dog": (5, 5)}
SHOWN = {"fox": (slice(0, 2), slice(0, 2)), "dog": (slice(4, 7), slice(4, 7))}


class Painter(FakeAdapter):
    def __init__(self, cells: dict[str, tuple[int, int]] = CELLS) -> None:
        super().__init__(TINY)
        self._cells = cells
        self.requests: list[Request] = []

    def answer(self, request: Request) -> list[Tensor]:
        self.requests.append(request)
        return [self._painted(request.x, self.words(text.states[0])) for text in request.texts]

    def _painted(self, x: Tensor, words: str) -> Tensor:
        velocity = x.clone()
        for name, (row, column) in self._cells.items():
            velocity[..., row, column] += name in words
        return velocity

    @staticmethod
    def words(states: Tensor) -> str:
        return "".join(chr(int(code)) for code in states.flatten())


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setitem(MODELS, "tiny", TINY)
    return plan_of(STORY)


def finished(plan: Plan) -> dict[int, Tensor]:
    """Latents of every segment, no two of their numbers alike."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, TINY.latent_channels)
    return {
        s.index: torch.randn(*shape, s.lead + s.latents, 8, 8, generator=generator) for s in plan.segments
    }


def test_where_nothing_is_given_there_is_no_lead(plan: Plan) -> None:
    painter = Painter()
    nothing: dict[int, Tensor] = {}
    leads = Leads(painter, plan, nothing.__getitem__)
    assert [leads.of(plan.segments[index]) for index in (0, 2, 5)] == [None] * 3
    assert painter.requests == []


@pytest.mark.parametrize(
    ("sigmas", "levels"),
    [
        ((), LOOKED_AT),
        ((1.0, 0.757, 0.522), (0.522, 0.757, 0.757)),
        ((1.0, 0.9375, 0.8333, 0.625), (0.625, 0.8333, 0.9375)),
        ((1.0, 0.5), (0.5, 0.5, 0.5)),
        ((1.0,), LOOKED_AT),
    ],
)
def test_a_character_is_looked_for_at_a_noise_level_that_the_weights_know(
    sigmas: tuple[float, ...], levels: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tiny", replace(TINY, sigmas=sigmas, steps=len(sigmas) or 3))
    plan, painter = plan_of(STORY), Painter()
    latents = finished(plan)
    Leads(painter, plan, latents.__getitem__).of(plan.segments[3])
    first = painter.requests[: len(LOOKED_AT)]
    assert tuple(request.sigma for request in first) == levels
    clean = latents[0][:, :, :1]
    noises = [(request.x - (1 - request.sigma) * clean) / request.sigma for request in first]
    assert all(0.8 < float(noise.std()) < 1.2 for noise in noises)
    assert len({float(noise.sum()) for noise in noises}) == len(noises)


def test_the_end_of_the_shot_stands_whole(plan: Plan) -> None:
    latents, painter = finished(plan), Painter()
    lead = Leads(painter, plan, latents.__getitem__).of(plan.segments[1])
    assert lead is not None
    assert torch.equal(lead.latents, latents[0][:, :, -2:])
    assert torch.equal(lead.weights, torch.ones(1, 1, 2, 8, 8))
    assert painter.requests == []  # who goes on is there


def test_characters_as_first_shown_count_as_often_as_is_asked_for(plan: Plan) -> None:
    """And the end of a shot, which stands behind them, once."""
    latents = finished(plan)
    lead = Leads(Painter(), plan, latents.__getitem__).of(plan.segments[3])
    assert lead is not None
    assert lead.counts(None) is lead.counts(1.0) is None
    counts = lead.counts(3.0)
    assert counts is not None
    expected = torch.ones(1, 1, 3, 8, 8)
    for place in SHOWN.values():
        expected[(..., 0, *place)] = 3
    assert torch.equal(counts, expected)
    end = Leads(Painter(), plan, latents.__getitem__).of(plan.segments[1])
    assert end is not None
    assert end.counts(3.0) is None


def test_behind_a_first_frame_of_its_own_kind_the_end_of_the_shot_stands_whole(plan: Plan) -> None:
    """As Wan's VAE has it: the characters' cells come first."""
    spec = replace(plan.spec, first_alike=False)
    plan = replace(plan, spec=spec).settled([None] * len(plan.seams))
    latents = finished(plan)
    lead = Leads(Painter(), plan, latents.__getitem__).of(plan.segments[1])
    assert lead is not None
    assert (lead.latents.shape, lead.weights.shape) == ((1, 12, 3, 8, 8), (1, 1, 3, 8, 8))
    assert torch.equal(lead.latents[:, :, 1:], latents[0][:, :, -2:])
    assert (lead.weights[:, :, 1:] == 1).all()
    expected = torch.zeros(8, 8)
    expected[SHOWN["fox"]] = 1
    assert torch.equal(lead.weights[0, 0, 0], expected)
    assert torch.equal(lead.latents[:, :, 0], latents[0][:, :, 0] * expected)


def test_characters_come_from_the_first_scene_that_shows_each(plan: Plan) -> None:
    """The dog is first shown in scene 3; the same in a shot that goes on and behind a cut."""
    latents = finished(plan)
    leads = Leads(Painter(), plan, latents.__getitem__)
    for index, lead_frames in ((3, 3), (4, 2)):
        lead = leads.of(plan.segments[index])
        assert lead is not None
        assert lead.latents.shape[2] == lead_frames
        for name, source in (("fox", 0), ("dog", 2)):
            place = (..., 0, *SHOWN[name])
            assert torch.equal(lead.latents[place], latents[source][place])
            assert (lead.weights[place] == 1).all()
        assert int(lead.weights[:, :, 0].sum()) == 4 + 9
    behind_the_cut = leads.of(plan.segments[4])
    assert behind_the_cut is not None
    assert not behind_the_cut.weights[:, :, 1].any()  # the frame that leads over is free
    tail = leads.of(plan.segments[3])
    assert tail is not None
    assert torch.equal(tail.latents[:, :, 1:], latents[2][:, :, -2:])


COMES = """
render: {model: tiny}
cast: {fox: {name: a fox}, dog: {name: a dog}}
scenes:
  - ["{fox} in the park", "{fox} walks"]
  - ["{fox} in the park", "{dog} comes to {fox}"]
  - {scene: "{dog} at sea", action: "{dog} swims", transition: cut}
"""


def test_who_came_into_a_shot_is_shown_as_in_the_middle_of_that_scene(plan: Plan) -> None:
    plan = plan_of(COMES)
    latents, painter = finished(plan), Painter()
    lead = Leads(painter, plan, latents.__getitem__).of(plan.segments[2])
    assert lead is not None
    place = (..., 0, *SHOWN["dog"])
    assert torch.equal(lead.latents[place], latents[1][:, :, plan.segments[1].middle][(..., *SHOWN["dog"])])
    assert int(lead.weights.sum()) == 9


def test_a_later_frame_is_encoded_anew_where_a_first_one_is_unlike(plan: Plan) -> None:
    """Of a model that goes on from pictures; a portrait is no whole frame, so it has noise."""
    plan = plan_of(COMES)
    spec = replace(plan.spec, first_alike=False, pictures=True)
    plan = replace(plan, spec=spec).settled([None] * len(plan.seams))
    latents, decoded = finished(plan), list[Tensor]()

    class Encoder(Painter):
        def decode(self, latents: Tensor) -> Tensor:
            decoded.append(latents)
            return torch.arange(2 * latents.shape[2], dtype=torch.uint8)[:, None, None, None]

        def encode_pictures(self, pictures: Tensor) -> Tensor:
            return torch.full((1, 12, 1, 8, 8), float(pictures.flatten()[-1]))

    lead = Leads(Encoder(), plan, latents.__getitem__).of(plan.segments[2])
    assert lead is not None
    middle = plan.segments[1].middle
    assert torch.equal(decoded[-1], latents[1][:, :, : middle + 1])
    assert (lead.latents[(..., 0, *SHOWN["dog"])] == 2 * middle + 1).all()
    assert lead.clean == 0


def test_of_two_characters_on_one_cell_the_first_stays(plan: Plan) -> None:
    latents = finished(plan)
    painter = Painter({"fox": (0, 0), "dog": (1, 1)})
    lead = Leads(painter, plan, latents.__getitem__).of(plan.segments[4])
    assert lead is not None
    fox, dog = torch.zeros(8, 8), torch.zeros(8, 8)
    fox[:2, :2] = 1
    dog[:3, :3] = 1
    assert torch.equal(
        lead.weights[0, 0, 0], dog
    )  # which has all of the fox's cells, and no cell counts twice
    assert torch.equal(
        lead.latents[..., 0, :, :], latents[0][..., 0, :, :] * fox + latents[2][..., 0, :, :] * (dog - fox)
    )


@pytest.mark.parametrize("strength", [1.0, 0.25, 1e-6])
def test_a_weaker_lead_is_the_same_with_less_weight(plan: Plan, strength: float) -> None:
    latents = finished(plan)
    whole = Leads(Painter(), plan, latents.__getitem__).of(plan.segments[3])
    weaker_plan = plan_of(STORY, method=(f"strength={strength}",))
    weaker = Leads(Painter(), weaker_plan, latents.__getitem__).of(weaker_plan.segments[3])
    assert whole is not None
    assert weaker is not None
    assert torch.equal(weaker.latents, whole.latents)
    assert torch.equal(weaker.weights, whole.weights * strength)


def test_a_character_is_looked_for_once(plan: Plan) -> None:
    latents, painter = finished(plan), Painter()
    recalled: list[int] = []

    def recall(index: int) -> Tensor:
        recalled.append(index)
        return latents[index]

    leads = Leads(painter, plan, recall)
    for segment in plan.segments:
        leads.of(segment)
    first = len(painter.requests)
    assert first == 2 * len(LOOKED_AT)  # the fox in scene 1, the dog in scene 3
    before = [leads.of(plan.segments[3]), leads.of(plan.segments[4])]
    assert len(painter.requests) == first
    assert recalled == [0, 0, 2, 2, 2]  # each for its portrait once, and for the ends of shots
    again = Leads(Painter(), plan, latents.__getitem__)  # as when a render goes on
    for known, index in zip(before, (3, 4), strict=True):
        made = again.of(plan.segments[index])
        assert known is not None
        assert made is not None
        assert torch.equal(made.latents, known.latents)
        assert torch.equal(made.weights, known.weights)


def test_what_is_asked_are_the_scenes_words_with_the_names_and_without(plan: Plan) -> None:
    latents, painter = finished(plan), Painter()
    Leads(painter, plan, latents.__getitem__).of(plan.segments[4])
    assert len(painter.requests) == 2 * len(LOOKED_AT)
    of_the_fox = painter.requests[: len(LOOKED_AT)]
    assert len({float(request.x.sum()) for request in of_the_fox}) == len(LOOKED_AT)  # of as many noises
    for request, level in zip(of_the_fox, LOOKED_AT, strict=True):
        assert request.sigma == level
        assert request.x.shape == (1, 12, 1, 8, 8)
        told = [Painter.words(text.states[0]) for text in request.texts]
        assert told == ["a fox in the park. a fox walks", "in the park. walks"]
        noise = (request.x - (1 - level) * latents[0][:, :, :1]) / level
        assert abs(float(noise.mean())) < 0.15
        assert abs(float(noise.std()) - 1) < 0.1


def test_each_of_two_who_are_first_shown_together_has_cells_of_its_own(plan: Plan) -> None:
    plan = plan_of(TOGETHER)
    latents, painter = finished(plan), Painter()
    lead = Leads(painter, plan, latents.__getitem__).of(plan.segments[4])
    assert lead is not None
    assert len(painter.requests) == 2 * len(LOOKED_AT)
    told = {Painter.words(request.texts[1].states[0]) for request in painter.requests}
    assert len(told) == 2
    assert int(lead.weights[:, :, 0].sum()) == 4 + 9


@pytest.mark.parametrize("text", [STORY, TOGETHER], ids=["apart", "together"])
def test_every_text_that_a_lead_asks_for_is_encoded_in_advance(plan: Plan, text: str) -> None:
    """The text encoder may be gone from the device by then."""
    plan, painter = plan_of(text), Painter()
    latents = finished(plan)
    leads = Leads(painter, plan, latents.__getitem__)
    for segment in plan.segments:
        leads.of(segment)
    told = {Painter.words(text.states[0]) for request in painter.requests for text in request.texts}
    assert len(told) >= 2
    assert told <= set(all_prompts(plan, scored=True))
