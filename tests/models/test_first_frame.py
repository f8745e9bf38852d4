"""A clip that begins with a picture, of a file or of the scene before: as diffusers' own pipeline does it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image
from torch import Tensor

from storyreel.benchmark.stock import WanStock
from storyreel.denoise.lead import Leads
from storyreel.denoise.loop import begin, segment_noise
from storyreel.denoise.prompts import PromptWriter
from storyreel.errors import StoryreelError
from storyreel.models.base import Request
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.specs import SoundSpec
from storyreel.models.wan import WanAdapter
from storyreel.story.plan import Plan, Segment
from tests.denoise.test_loop import Film
from tests.models.test_families import difference, in_fp8, latents, plan_for
from tests.tiny import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers

SHOT = "scenes:\n  - [a fox in the park, a fox walks]\n  - [a fox in the park, a fox sleeps]\n"


@pytest.fixture(params=["none", "fp8"])
def adapter(request: pytest.FixtureRequest) -> PipelineAdapter:
    made = FAMILIES["wan ti2v"]()
    return made if request.param == "none" else in_fp8(made)


def drawn(seed: int = 0, size: tuple[int, int] = (64, 64)) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


class FromPicture(WanStock):
    """`WanImageToVideoPipeline`, which begins with a picture."""

    pipeline_class = WanImageToVideoPipeline

    def __init__(self, adapter: PipelineAdapter, picture: Image.Image) -> None:
        super().__init__(adapter)
        self._picture = picture

    def _arguments(self, pipeline: Any, noise: Tensor) -> dict[str, Any]:
        return {"latents": noise, "image": self._picture}


def stock(adapter: PipelineAdapter, plan: Plan, segment: Segment, picture: Image.Image) -> Tensor:
    noise = segment_noise(plan, segment)
    return FromPicture(adapter, picture).latents(segment.prompt, noise, plan.settings)


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_scene_with_a_picture_equals_the_stock_pipeline(
    adapter: PipelineAdapter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, guidance: float
) -> None:
    """From the file to the last step; with the method, which has nothing to add to the first scene."""
    drawn().save(tmp_path / "fox.png")
    text = f"scenes: [{{scene: a fox in the park, action: a fox walks, picture: {tmp_path / 'fox.png'}}}]"
    options: dict[str, Any] = {"guidance": guidance, "steps": 4, "method": ("weighting=false",)}
    plan = plan_for(adapter, monkeypatch, text, **options)
    made = Film(adapter, plan).made()
    ours, theirs = made.latents[0], stock(adapter, plan, plan.segments[0], drawn())
    assert apart(ours, theirs) <= 1e-5
    assert torch.equal(ours[:, :, :1], adapter.encode_pictures(torch.from_numpy(np.array(drawn()))[None]))
    assert difference(ours, stock(adapter, plan, plan.segments[0], drawn(1))) > 1e-2
    bare = plan_for(adapter, monkeypatch, text, **{**options, "method": ()}, without=frozenset({"all"}))
    assert torch.equal(Film(adapter, bare).made().latents[0], ours)


def test_a_shot_goes_on_as_the_stock_pipeline_from_its_last_picture(
    adapter: PipelineAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_for(adapter, monkeypatch, SHOT, steps=4, method=("weighting=false", "overlap=1"))
    made = Film(adapter, plan).made()
    last = Image.fromarray(adapter.decode(made.latents[0])[-1].numpy())
    assert [segment.lead for segment in plan.segments] == [1, 1]
    assert apart(made.latents[1], stock(adapter, plan, plan.segments[1], last)) <= 1e-5


def test_a_longer_overlap_is_a_clip_of_its_last_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoded as one: the first of them has a code of a first picture, and all are without noise."""
    adapter = FAMILIES["wan ti2v"]()
    plan = plan_for(adapter, monkeypatch, SHOT, steps=2, method=("overlap=2", "similarity=false"))
    made = Film(adapter, plan).made()
    lead = made.leads[1]
    assert lead is not None
    assert lead.clean == plan.segments[1].lead == 2
    shown = adapter.decode(made.latents[0])[-5:]
    assert torch.equal(lead.latents, adapter.encode_pictures(shown))
    assert torch.equal(made.latents[1][:, :, :2], lead.latents)


def test_a_scene_that_goes_on_from_a_picture_begins_with_the_last_one_that_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The picture is shown, so the last one of that scene is not."""
    adapter = FAMILIES["wan ti2v"]()
    drawn().save(tmp_path / "fox.png")
    text = SHOT.replace("[a fox in the park, a fox walks]", "{scene: a fox in the park, picture: fox.png}")
    monkeypatch.chdir(tmp_path)
    plan = plan_for(adapter, monkeypatch, text, steps=2, method=("overlap=1",))
    first = plan.segments[0]
    assert (plan.unseen(first), plan.unseen(plan.segments[1])) == (0, 1)
    made = Film(adapter, plan).made()
    lead = made.leads[1]
    assert lead is not None
    pictures = adapter.decode(made.latents[0])
    assert len(pictures) == first.frames + 1
    assert torch.equal(lead.latents, adapter.encode_pictures(pictures[-2:-1]))


def test_less_strength_is_noisy_as_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given by half is of no noise level of its own."""
    adapter = FAMILIES["wan ti2v"]()
    plan = plan_for(adapter, monkeypatch, SHOT, steps=2, method=("strength=0.5",))
    lead = Film(adapter, plan).made().leads[1]
    assert lead is not None
    assert lead.clean == 0
    assert set(lead.weights.unique().tolist()) == {0.5}


@torch.no_grad()
def test_each_token_is_told_its_own_noise_level() -> None:
    """Of clean frames 0. Where there are none, one level for all is the same."""
    adapter = FAMILIES["wan ti2v"]()
    x, text, seen = latents(adapter, 3), adapter.encode("a fox"), list[Tensor]()
    hook = adapter.experts[0].register_forward_pre_hook(
        lambda module, inputs, named: seen.append(named["timestep"]), with_kwargs=True
    )
    for clean in (0, 1, 2):
        list(adapter.predict([Request(x, 0.5, [text, text], clean)]))
    hook.remove()
    assert [levels.tolist() for levels in seen] == [
        [[0.0] * 4 * clean + [500.0] * 4 * (3 - clean)] for clean in (0, 1, 2)
    ]
    (alike,) = next(iter(adapter.predict([Request(x, 0.5, [text])])))
    usual = WanAdapter(FAMILIES["wan"]().spec, adapter.device, adapter.parts)
    (one_level,) = next(iter(usual.predict([Request(x, 0.5, [text])])))
    assert difference(alike, one_level) <= 1e-5


def test_a_request_says_so_on_any_device() -> None:
    adapter = FAMILIES["wan ti2v"]()
    asked = Request(latents(adapter), 0.5, [adapter.encode("a fox")], 1)
    assert asked.to("meta").clean == 1


def test_a_picture_that_changes_while_a_film_is_rendered_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    adapter, path = FAMILIES["wan ti2v"](), tmp_path / "fox.png"
    drawn().save(path)
    plan = plan_for(adapter, monkeypatch, f"scenes: [{{scene: a fox, picture: {path}}}]")
    drawn(1).save(path)
    with pytest.raises(StoryreelError, match="has changed meanwhile"):
        Leads(adapter, plan, dict[int, Tensor]().__getitem__).of(plan.segments[0])


def test_a_picture_is_not_heard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a model that makes sound, a scene with a picture of its own begins in silence."""
    adapter, path = FAMILIES["wan ti2v"](), tmp_path / "fox.png"
    drawn().save(path)
    plan = plan_for(adapter, monkeypatch, f"scenes: [{{scene: a fox, picture: {path}}}]")
    plan = replace(plan, spec=replace(plan.spec, sound=SoundSpec()))
    nothing: dict[int, Tensor] = {}
    lead = Leads(adapter, plan, nothing.__getitem__, nothing.__getitem__).of(plan.segments[0])
    assert lead is not None
    assert lead.sound is None


def test_a_state_is_taken_up_with_its_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is given clean stands there at every level, also in the state that is saved."""
    adapter, path = FAMILIES["wan ti2v"](), tmp_path / "fox.png"
    drawn().save(path)
    plan = plan_for(adapter, monkeypatch, f"scenes: [{{scene: a fox, picture: {path}}}]")
    (segment,) = plan.segments
    lead = Leads(adapter, plan, dict[int, Tensor]().__getitem__).of(segment)
    assert lead is not None
    begun = begin(adapter, plan, segment, PromptWriter(adapter, plan, None).prompts(segment), lead)
    for sigma in (1.0, 0.4, 0.0):
        assert torch.equal(begun.at(sigma)[:, :, :1], lead.latents)
    assert torch.equal(begun.at(1.0)[:, :, 1:], segment_noise(plan, segment)[:, :, 1:])
