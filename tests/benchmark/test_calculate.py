from __future__ import annotations

import json

import pytest
import torch

from storyreel.benchmark import calculate as calculation
from storyreel.benchmark import run as bench
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
from storyreel.cli.app import run
from storyreel.errors import UsageError
from storyreel.models.loading import adapter_class
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.specs import MODELS, find_model
from storyreel.story.plan import LOOKS, Plan
from storyreel.story.planning import Overrides
from tests.conftest import plan_of
from tests.tiny import CPU

REAL = [name for name, spec in MODELS.items() if spec.hub]
GB = 1e9


# What is the same for every family is tried with one of them.
one_family = pytest.mark.parametrize("spec_name", ["mochi"], indirect=True)


# In bytes: up to 16 and 32. At one place, and of two characters, so that nobody has to be found.
SCENES = (("a fox in a park", "it runs home"), ("a dog in a park", "he walks by"))


def work(name: str, variants: list[str], patch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return the calculated work of variants, which must be what a film of real tensors takes.

    Of the same prompts, each of which has 16 tokens to the calculation; so here too.
    """
    spec = MODELS[name]
    patch.setattr(bench, "SCENES", SCENES)
    overrides = Overrides(name, steps=4)
    report = calculate(spec, overrides, variants)
    adapter = bench.load(spec, CPU, True)
    for row in report["variants"]:
        plan = bench.planned(spec, overrides, row["variant"])
        assert row["forwards"] == plan.forwards / 2
        assert row["latents"] == plan.latents / 2
        operations, _ = bench.counted_work(adapter, plan)
        assert 1e15 * row["pflop"] == pytest.approx(operations / 2, rel=1e-3)
    return {row["variant"]: row["pflop"] for row in report["variants"]}


def test_work_is_what_a_film_of_real_tensors_takes(spec_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert work(spec_name, ["full"], monkeypatch)["full"] > 0


@one_family
def test_variants_that_do_less_are_less_work(spec_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = work(spec_name, ["plain", "full", "fast"], monkeypatch)
    assert found["fast"] < found["plain"] < found["full"]


@one_family
def test_evaluations_that_find_a_character_are_work_too(
    spec_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of one latent frame, of the prompt with the name and of one without it, as a film takes them."""
    spec, overrides = MODELS[spec_name], Overrides(spec_name, steps=4)
    monkeypatch.setattr(bench, "SCENES", (("a fox in a park", "a fox runs"), ("a fox at sea", "a fox swims")))
    adapter = bench.load(spec, CPU, True)
    plan = bench.planned(spec, overrides, "full")
    assert plan.looks(plan.segments) == LOOKS
    counted, _ = bench.counted_work(adapter, plan)
    asked: list[tuple[int, int]] = []

    def one(latents: int, texts: int, weighted: bool) -> int:
        asked.append((latents, texts))
        return evaluation(true, plan, latents, texts, weighted).operations

    true = adapter_class(spec).random(spec, META)
    found = operations(plan, one)
    assert found == pytest.approx(counted, rel=0.02)  # its prompts have fewer than 16 tokens
    alone = LOOKS * evaluation(true, plan, 1, 2, False).operations
    assert asked[0] == (1, 2)
    assert abs(found - alone - counted) > 0.5 * alone


def test_memory_is_of_the_texts_that_a_plan_reads(spec_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three side by side where the plan weighs texts, else one."""
    spec, read = MODELS[spec_name], list[bool]()
    adapter = adapter_class(spec).random(spec, META)

    def watched(adapter: PipelineAdapter, plan: Plan, latents: int, texts: int, weighted: bool) -> Meter:
        read.append(weighted)
        return evaluation(adapter, plan, latents, texts, weighted)

    monkeypatch.setattr(calculation, "evaluation", watched)
    for way in ("texts", "true", "false"):
        story = "scenes:\n  - [a park, it rains]\n"
        memory_needed(adapter, plan_of(story, model=spec_name, method=(f"weighting={way}",)))
    assert read == [True, False, False]


def test_memory_is_weights_and_what_is_alive_beside_them(spec_name: str) -> None:
    spec = MODELS[spec_name]
    adapter = adapter_class(spec).random(spec, META)
    found = memory_needed(adapter, bench.planned(spec, Overrides(spec_name), "full"))
    assert sum(adapter.offload.sizes()) < found["high"]
    assert found["low"] < found["balanced"] < found["high"]
    longer = memory_needed(adapter, bench.planned(spec, Overrides(spec_name, size="128x128"), "full"))
    assert longer["high"] > found["high"]


def test_a_gpu_never_holds_all_pairs() -> None:
    query = torch.empty(1, 2, 5000, 8, device="meta")
    for mask in (None, torch.zeros(1, 1, 1, 5000, device="meta")):
        with Meter() as meter, GpuAttention():
            torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=mask)
        assert meter.peak < 2 * 5000 * 5000
        assert meter.operations == 2 * 2 * (2 * 5000 * 5000 * 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_table_holds_what_is_calculated(name: str) -> None:
    spec = find_model(name)
    adapter = adapter_class(spec).random(spec, META)
    found = memory_needed(adapter, bench.planned(spec, Overrides(name), "full"))
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
