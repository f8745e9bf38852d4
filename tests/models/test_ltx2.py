"""LTX-2: a picture and its sound from one transformer, on tiny models of diffusers' real classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from storyreel.benchmark.stock import LTX2Stock, stock_of
from storyreel.benchmark.work import without_data
from storyreel.denoise.loop import SegmentState, begin, denoise, segment_noise, sound_noise
from storyreel.denoise.prompts import PromptWriter
from storyreel.denoise.state import Stored
from storyreel.models.base import Request
from storyreel.models.ltx2 import LTX2Adapter
from storyreel.models.specs import MODELS
from storyreel.models.workers import _answer
from storyreel.story.plan import Plan
from tests.conftest import plan_of
from tests.tiny import ltx_2

STORY = "scenes:\n  - [a fox in the park, a fox walks]\n  - [a dog in the park, a dog sleeps]\n"


@pytest.fixture
def adapter() -> LTX2Adapter:
    return ltx_2()


def plan_for(adapter: LTX2Adapter, monkeypatch: pytest.MonkeyPatch, text: str = STORY, **more: Any) -> Plan:
    monkeypatch.setitem(MODELS, adapter.spec.name, adapter.spec)
    return plan_of(text, model=adapter.spec.name, **more)


def both(adapter: LTX2Adapter, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return the latents of the first segment, and those of its sound."""
    writer, segment = PromptWriter(adapter, plan, None), plan.segments[0]
    begun = begin(adapter, plan, segment, writer.prompts(segment))
    (done,) = denoise(adapter, plan.settings, [segment], writer, lambda _: begun, lambda _: None)
    assert done.sound is not None
    return done.x, done.sound.x


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' pipeline
@pytest.mark.parametrize("guidance", [None, 4.0])  # None is the table's own
@pytest.mark.parametrize("steps", [8, 3])
def test_without_the_method_picture_and_sound_equal_the_stock_pipelines(
    adapter: LTX2Adapter, monkeypatch: pytest.MonkeyPatch, guidance: float | None, steps: int
) -> None:
    plan = plan_for(adapter, monkeypatch, without=frozenset({"all"}), guidance=guidance, steps=steps)
    segment = plan.segments[0]
    stock = stock_of(adapter)
    assert isinstance(stock, LTX2Stock)
    stock.sound = noise = sound_noise(plan, segment)
    theirs = stock.latents(segment.prompt, segment_noise(plan, segment), plan.settings)
    picture, sound = both(adapter, plan)
    assert difference(picture, theirs) <= 1e-5
    assert stock.sound.shape == sound.shape == noise.shape
    assert difference(sound, stock.sound) <= 1e-5
    assert difference(noise, stock.sound) > 0.1


@pytest.mark.parametrize("speed", ["exact", "balanced"])
def test_an_interrupted_scene_goes_on_in_its_sound_too(
    adapter: LTX2Adapter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, speed: str
) -> None:
    plan = plan_for(adapter, monkeypatch, speed=speed)
    writer, segment, stored = PromptWriter(adapter, plan, None), plan.segments[0], Stored(tmp_path / "state")
    kept: list[int] = []

    def finished(begun: SegmentState) -> SegmentState:
        def keep(window: Sequence[SegmentState]) -> None:
            if window[0].step >= 4 and not kept:
                stored.save_state(window[0])
                kept.append(window[0].step)

        (done,) = denoise(adapter, plan.settings, [segment], writer, lambda _: begun, keep)
        return done

    whole = finished(begin(adapter, plan, segment, writer.prompts(segment)))
    again = begin(adapter, plan, segment, writer.prompts(segment))
    stored.restore(again, kept[0])
    rest = finished(again)
    assert whole.sound is not None
    assert rest.sound is not None
    assert torch.equal(rest.x, whole.x)
    assert torch.equal(rest.sound.x, whole.sound.x)


def test_another_process_is_asked_for_the_sound_too(adapter: LTX2Adapter) -> None:
    """What several processes exchange: two processes make the same film as one."""
    with torch.no_grad():
        request = Request(
            torch.randn(1, 8, 3, 4, 4), 0.5, [adapter.encode("a fox")], sound=torch.randn(1, 2, 19, 1, 2)
        )
        (mine,) = adapter.predict([request])
        theirs = _answer(lambda name: adapter, adapter.spec.label, "high", (), request.to("cpu"))
    assert isinstance(theirs, list)
    assert len(theirs) == 2
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@torch.no_grad()
def test_picture_and_sound_hear_of_each_other(adapter: LTX2Adapter) -> None:
    x, text = torch.randn(1, 8, 3, 4, 4), adapter.encode("a fox walks")
    heard = [torch.randn(1, 2, 19, 1, 2) for _ in range(2)]
    (first, sound), (second, _) = adapter.predict([Request(x, 0.5, [text], sound=s) for s in heard])
    assert difference(first, second) > 1e-5
    ((_, other),) = adapter.predict([Request(x.flip(2), 0.5, [text], sound=heard[0])])
    assert difference(other, sound) > 1e-5
    ((alone,),) = adapter.predict([Request(x, 0.5, [text])])
    assert alone.shape == x.shape


@torch.no_grad()
def test_sound_is_decoded_as_the_stock_pipeline_decodes_it(adapter: LTX2Adapter) -> None:
    latents = torch.randn(1, 2, 19, 1, 2)
    codec: Any = adapter.parts.sound["audio_vae"]
    vocoder: Any = adapter.parts.sound["vocoder"]
    tokens: Tensor = latents[:, :, :, 0].transpose(1, 2).flatten(2) * codec.latents_std + codec.latents_mean
    spectrogram = codec.decode(tokens.unflatten(2, (2, 2)).transpose(1, 2), return_dict=False)[0]
    samples = adapter.decode_sound(latents)
    assert samples.shape == ((4 * 19 - 3) * 480, 2)
    assert torch.equal(samples, vocoder(spectrogram)[0].T)


def test_its_arithmetic_is_counted_with_its_connectors(adapter: LTX2Adapter) -> None:
    counted = without_data(adapter, 1)
    texts = [one.blank_text(3) for one in (adapter, counted)]
    assert [state.shape for state in texts[0].states] == [state.shape for state in texts[1].states]


def test_what_makes_waves_of_sound_computes_in_fp32() -> None:
    sound = LTX2Adapter.random(MODELS["ltx-2.5"], torch.device("meta")).parts.sound
    dtypes = {name: {parameter.dtype for parameter in part.parameters()} for name, part in sound.items()}
    assert dtypes == {"audio_vae": {torch.bfloat16}, "vocoder": {torch.float32}}


def test_sound_goes_with_its_pictures(adapter: LTX2Adapter) -> None:
    """As many latents as the pipeline takes: of the true model, at its 24 frames a second."""
    spec = MODELS["ltx-2.5"]
    assert [spec.sound_latents(count) for count in (0, 1, 2, 16)] == [0, 1, 9, 126]
    assert [replace(spec, fps=25).sound_latents(count) for count in (1, 2, 16)] == [1, 9, 121]
    assert MODELS["ltx-13b"].sound_latents(16) == 0
