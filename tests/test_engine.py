"""The one model that an engine holds, and what it says before that is read."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from storyreel import engine as engines
from storyreel.engine import Engine, with_less_memory
from storyreel.models.memory import Needs
from storyreel.models.specs import MODELS, ModelSpec
from tests.conftest import FakeAdapter, FakeEngine, plan_of
from tests.test_rendering import make

STORY = """
scenes:
  - [a fox in the park, a fox walks]
  - {scene: a dog in the park, action: a dog sleeps, seconds: 1.0}
render: {model: fake, seconds: 0.5}
"""
NEEDS = Needs(1, 10.0, 1.0, 0.5, {"none": (20.0, 2.0), "fp8": (10.0, 1.0)}, (1.0, 0.0), (1.0, 0.0, 0.0))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[FakeAdapter]]:
    """What is loaded instead of models, in order."""
    found: list[weakref.ref[FakeAdapter]] = []

    def load(spec: ModelSpec, *_: Any) -> FakeAdapter:
        adapter = FakeAdapter(spec)
        found.append(weakref.ref(adapter))
        return adapter

    monkeypatch.setattr("storyreel.models.loading.load_adapter", load)
    return found


@pytest.mark.usefixtures("fake_model")
def test_one_model_is_held_at_a_time(loaded: list[weakref.ref[FakeAdapter]]) -> None:
    engine, spec = Engine("cpu"), MODELS["fake"]
    assert engine.adapter(spec) is engine.adapter(spec)
    engine.adapter(spec.quantized("fp8"))
    gc.collect()
    assert [adapter() is not None for adapter in loaded] == [False, True]
    engine.adapter(spec)
    gc.collect()
    assert [adapter() is not None for adapter in loaded] == [False, False, True]


@pytest.mark.usefixtures("fake_model")
def test_other_weights_are_another_model(loaded: list[weakref.ref[FakeAdapter]], tmp_path: Path) -> None:
    engine, spec = Engine("cpu"), MODELS["fake"]
    other = replace(spec, weights=tmp_path / "other")
    adapters: list[Any] = [engine.adapter(one) for one in (spec, other, other)]
    assert [adapter.spec.weights for adapter in adapters] == [spec.weights, other.weights, other.weights]
    assert len(loaded) == 2


@pytest.mark.usefixtures("loaded", "fake_model")
def test_the_mode_is_chosen_for_the_films_size_and_longest_scene() -> None:
    plan = plan_of(STORY)
    adapter: Any = Engine("cpu").adapter_for(plan, print)
    settings = plan.settings
    assert adapter.chosen_for == ((settings.width, settings.height), plan.longest)
    assert plan.longest == max(segment.lead + segment.latents for segment in plan.segments)
    assert plan.longest > min(segment.lead + segment.latents for segment in plan.segments)


@pytest.mark.usefixtures("fake_model")
def test_a_render_asks_for_its_film(tmp_path: Path) -> None:
    engine = FakeEngine()
    make(tmp_path, engine=engine)
    assert engine.fake is not None
    assert engine.fake.chosen_for is not None


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("device", "mode", "wanted"),
    [("cuda", "high", 22), ("cuda", "balanced", 23), ("cuda", "low", 23), ("cpu", "high", 34)],
)
def test_a_lack_of_the_machines_memory_is_said_once_before_weights_are_read(
    fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch, device: str, mode: str, wanted: int
) -> None:
    plan = plan_of(STORY)
    plan = replace(plan, spec=replace(fake_model, needs=NEEDS))
    monkeypatch.setattr(FakeAdapter, "device", torch.device(device))
    monkeypatch.setattr(FakeAdapter, "memory", mode)
    said: list[str] = []
    for there in (wanted * 1e9, (wanted - 0.5) * 1e9):
        monkeypatch.setattr(engines, "available_memory", lambda there=there: there)
        engine = Engine("cpu")
        engine.adapter_for(plan, said.append)
        engine.adapter_for(plan, said.append)
    (words,) = said
    assert f"fake in mode {mode} wants {wanted} GB of the machine's own memory" in words


@pytest.mark.usefixtures("loaded", "fake_model")
def test_nothing_is_said_of_a_model_whose_needs_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "available_memory", lambda: 0)
    said: list[str] = []
    Engine("cpu").adapter_for(plan_of(STORY), said.append)
    assert said == []


@pytest.mark.parametrize(("device", "modes"), [("cuda", []), ("cpu", ["balanced"])])
def test_on_a_gpu_no_lower_mode_helps_a_machine_that_lacks_memory(
    fake_model: ModelSpec, device: str, modes: list[str]
) -> None:
    """Balanced and low keep more in the machine's own memory."""
    adapter, tried = FakeAdapter(fake_model), list[str]()
    adapter.device = torch.device(device)
    adapter.modes = ["balanced"]

    def compute() -> None:
        if not tried:
            raise MemoryError

    if modes:
        with_less_memory(adapter, compute, tried.append)
    else:
        with pytest.raises(MemoryError):
            with_less_memory(adapter, compute, tried.append)
    assert tried == modes
