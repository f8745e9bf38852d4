from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from storyreel.benchmark import run as bench
from storyreel.benchmark import variants as compared
from storyreel.benchmark.calculate import (
    CALCULABLE,
    META,
    GpuAttention,
    calculate,
    evaluation,
    memory_needed,
    operations,
)
from storyreel.benchmark.meter import Meter
from storyreel.benchmark.work import Work
from storyreel.cli.app import run
from storyreel.denoise.prompts import all_prompts
from storyreel.errors import UsageError
from storyreel.models.loading import adapter_class
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.specs import MODELS, find_model
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides
from tests.tiny import CPU

REAL = [name for name, spec in MODELS.items() if spec.hub]
GB = 1e9


# What is the same for every family is tried with one of them.
one_family = pytest.mark.parametrize("spec_name", ["mochi"], indirect=True)


def counted_work(adapter: PipelineAdapter, plan: Plan) -> tuple[float, int]:
    """Return the operations of denoising all segments, counted in doing so, and its evaluations."""
    adapter.prepare(all_prompts(plan, scored=False))  # which is not denoising
    evaluations: list[None] = []
    with Meter() as meter:
        for _ in bench.our_latents(adapter, plan, None, lambda: evaluations.append(None)):
            pass
    return float(meter.operations), len(evaluations)


def work(name: str, variants: list[str], patch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return the calculated work of variants, which must be what a film of real tensors takes.

    Of the same prompts, each of which has 16 tokens to the calculation; so here too.
    """
    spec = MODELS[name]
    # In bytes: up to 16 and 32. At one place, and of two characters, so that nobody has to be found.
    scenes = (("a fox in a park", "it runs home"), ("a dog in a park", "he walks by"))
    patch.setattr(compared, "SCENES", scenes)
    overrides = Overrides(name, steps=4)
    report = calculate(spec, overrides, variants)
    adapter = bench.load(spec, CPU, True)
    for row in report["variants"]:
        plan = compared.planned(spec, overrides, row["variant"])
        assert row["forwards"] == plan.forwards / 2
        assert row["latents"] == plan.latents / 2
        operations, _ = counted_work(adapter, plan)
        assert 1e15 * row["pflop"] == pytest.approx(operations / 2, rel=1e-3)
        assert Work(adapter).of(plan) == pytest.approx(operations, rel=1e-3)
    return {row["variant"]: row["pflop"] for row in report["variants"]}


def test_work_is_what_a_film_of_real_tensors_takes(spec_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert work(spec_name, ["full"], monkeypatch)["full"] > 0


@one_family
def test_variants_that_do_less_are_less_work(spec_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = work(spec_name, ["plain", "full", "fast"], monkeypatch)
    assert found["fast"] < found["plain"] < found["full"]


def test_memory_is_weights_and_what_is_alive_beside_them(spec_name: str) -> None:
    spec = MODELS[spec_name]
    adapter = adapter_class(spec).random(spec, META)
    found = memory_needed(adapter, compared.planned(spec, Overrides(spec_name), "full"))
    assert sum(adapter.offload.sizes()) < found["high"]
    assert found["low"] < found["balanced"] < found["high"]
    longer = memory_needed(adapter, compared.planned(spec, Overrides(spec_name, size="128x128"), "full"))
    assert longer["high"] > found["high"]


def test_a_gpu_never_holds_all_pairs() -> None:
    query = torch.empty(1, 2, 5000, 8, device="meta")
    for mask in (None, torch.zeros(1, 1, 1, 5000, device="meta")):
        with Meter() as meter, GpuAttention():
            torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=mask)
        assert meter.peak < 2 * 5000 * 5000
        assert meter.operations == 2 * 2 * (2 * 5000 * 5000 * 8)


@pytest.mark.parametrize("blocks", [2, 3, 5])
def test_few_blocks_say_what_all_of_them_take(spec_name: str, blocks: int) -> None:
    """Of every family: also where the last block is of its own kind."""
    spec = MODELS[spec_name]
    spec = replace(spec, architecture={**spec.architecture, "num_layers": blocks})
    adapter = adapter_class(spec).random(spec, CPU)
    plan = compared.planned(spec, Overrides(spec_name, steps=4), "fast")
    whole = adapter_class(spec).random(spec, META)
    known = operations(plan, lambda *shape: evaluation(whole, plan, *shape).operations)
    assert Work(adapter).of(plan) == known > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_table_holds_what_is_calculated(name: str) -> None:
    spec = find_model(name)
    adapter = adapter_class(spec).random(spec, META)
    found = memory_needed(adapter, compared.planned(spec, Overrides(name), "full"))
    assert spec.memory_gb == {mode: round(size / GB, 1) for mode, size in found.items()}


def test_what_cannot_be_calculated_is_refused() -> None:
    spec = find_model("ltx-2b")
    with pytest.raises(UsageError, match="stock"):
        calculate(spec, Overrides(spec.name), ["stock"])
    with pytest.raises(UsageError, match="it is here"):
        calculate(MODELS["mini"], Overrides("mini"), CALCULABLE)


@one_family
def test_the_command_prints_it(
    spec_name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["bench", "--model", spec_name, "--calculate", "--steps", "2", "--variants", "plain,full"]
    assert run([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in report["variants"]] == ["plain", "full"]
    assert run(command) == 0
    out = capsys.readouterr().out
    assert "PFLOP" in out
    assert f"high {report['memory_gb']['high']:.1f}" in out
