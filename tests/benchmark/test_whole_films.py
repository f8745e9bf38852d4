"""What whole films cost: counted in this process with models that cost nothing, and once in a real one."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from storyreel.benchmark import run as bench
from storyreel.benchmark import whole_films
from storyreel.benchmark.variants import planned
from storyreel.benchmark.whole_films import Cost, check_stock, film_cost, measured
from storyreel.engine import Engine
from storyreel.errors import MissingError, StoryreelError, UsageError
from storyreel.models.host import peak_resident
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.stopping import Stop
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides
from tests.conftest import FakeEngine, plan_of
from tests.tiny import CPU

TEXT = """\
render: {model: fake}
scenes: [["a park", "a fox sits"], ["a park", "it walks"], ["a bus", "it looks"]]
"""


@pytest.mark.usefixtures("fake_model")
def test_a_film_is_rendered_whole_and_counted(tmp_path: Path) -> None:
    engine = FakeEngine()
    plan = plan_of(TEXT)
    cost = film_cost(plan, False, engine, tmp_path)
    manifest = json.loads((tmp_path / "film" / "manifest.json").read_text())
    assert engine.fake is not None
    assert cost.forwards == len(engine.fake.predicted) > 0
    assert cost.latents == sum(s["decided"]["lead"] + s["latents"] for s in manifest["segments"])
    assert cost.seconds > 0
    assert cost.memory_gb == cost.host_gb > 0.02
    assert "CPU" in cost.device


@pytest.mark.usefixtures("fake_model")
def test_a_model_without_a_pipeline_has_no_stock(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pipeline to compare with"):
        film_cost(plan_of(TEXT), True, FakeEngine(), tmp_path)


@pytest.mark.parametrize("spec_name", ["wan"], indirect=True)
def test_stock_makes_every_scene_by_the_pipeline(
    spec_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = MODELS[spec_name]
    check_stock(spec)
    adapter = bench.load(spec, CPU, True)
    plan = planned(spec, Overrides(spec_name, steps=2), "plain", 2)
    written: list[str] = []

    class Stream:
        def __init__(self, plan: Plan, *others: object) -> None:
            self.plan = plan

        def __enter__(self) -> Stream:
            return self

        def __exit__(self, *error: object) -> None: ...

        def push(self, segment: Any, latents: Any) -> None:
            assert latents.shape[2] == segment.lead + segment.latents
            written.append(segment.number)

        def finish(self) -> None: ...

    class Loaded(Engine):
        def ingredients(self, spec: ModelSpec, said: Callable[[str], None]) -> dict[str, Any]:
            return {}

        def adapter(self, spec: ModelSpec, said: Callable[[str], None] = lambda words: None) -> Any:
            return adapter

    monkeypatch.setattr("storyreel.film.decode.FilmStream", Stream)
    cost = film_cost(plan, True, Loaded("cpu"), tmp_path)
    assert written == ["01", "02"]
    assert (cost.forwards, cost.latents) == (4, plan.latents)

    monkeypatch.setattr(type(adapter), "memory", "low")
    with pytest.raises(MissingError, match="all of the model on the device") as caught:
        film_cost(plan, True, Loaded("cpu"), tmp_path)
    assert "--variants" in caught.value.remedy


class Pipe:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, value: object) -> None:
        self.sent.append(value)


def test_what_is_wrong_in_the_other_process_is_told_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> Cost:
        raise MissingError("the device has too little memory", "Use a smaller --size.")

    monkeypatch.setattr(whole_films, "film_cost", fail)
    pipe = Pipe()
    whole_films._in_its_own(cast(Any, pipe), cast(Plan, None), False, "cpu", tmp_path)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # Ctrl-C is for the process that waits
    ((_, told),) = pipe.sent
    error = whole_films._error("", *told)
    assert (error.message, error.remedy, error.exit_code) == (
        "the device has too little memory",
        "Use a smaller --size.",
        69,
    )


def test_the_peak_holds_what_was_there() -> None:
    held = bytearray(b"x" * (64 << 20))
    peak = peak_resident()
    del held
    slack = 4 << 20  # Linux counts pages for each CPU apart, and adds them up roughly
    assert 64 << 20 < peak <= peak_resident() + slack < 1 << 40


@pytest.mark.slow
def test_each_film_has_a_process_of_its_own(tmp_path: Path) -> None:
    """Real ones: a short film costs what it costs, whatever this process holds; its folder is removed."""
    text = TEXT.replace("fake}", "mini, seconds: 0.5, steps: 2}").replace("a park", "Central Park")
    plan = plan_of(text)
    held = bytearray(b"x" * (1 << 30))  # no other process has it
    ours = measured(plan, False, "cpu", tmp_path, Stop())
    stock = measured(plan_of(text, without=frozenset({"all"})), True, "cpu", tmp_path, Stop())
    assert len(held) / 1e9 > ours.memory_gb > 0.3
    assert stock.memory_gb > 0.3
    assert ours.forwards >= stock.forwards == 6
    assert ours.latents == stock.latents  # a shot that goes on from one latent frame costs none
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_process_that_dies_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_films, "_in_its_own", signal.raise_signal)  # which is not given a signal
    with pytest.raises(StoryreelError, match="ended without a result"):
        measured(cast(Plan, None), False, "cpu", tmp_path, Stop())
    assert not any(tmp_path.iterdir())
