from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from storyreel.benchmark import calculate as calculation
from storyreel.benchmark import run as bench
from storyreel.benchmark import variants as compared
from storyreel.benchmark.calculate import (
    CALCULABLE,
    CARDS,
    META,
    TOKENS,
    GpuAttention,
    calculate,
    evaluation,
    fitted,
    memory_needed,
    operations,
    stock_evaluation,
    working,
)
from storyreel.benchmark.meter import Meter
from storyreel.benchmark.work import Work
from storyreel.cli.app import run
from storyreel.denoise.prompts import all_prompts
from storyreel.errors import UsageError
from storyreel.models.base import Request
from storyreel.models.loading import adapter_class
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.specs import MODELS, find_model
from storyreel.story.plan import LOOKED_AT, Plan
from storyreel.story.planning import Overrides
from tests.conftest import plan_of
from tests.tiny import CPU

REAL = [name for name, spec in MODELS.items() if spec.hub and name == spec.base]
GB = 1e9


# What is the same for every family is tried with one of them.
one_family = pytest.mark.parametrize("spec_name", ["mochi"], indirect=True)


def counted_work(adapter: PipelineAdapter, plan: Plan) -> tuple[float, int]:
    """Return the operations of denoising all segments, counted in doing so, and its evaluations.

    What a codec does where a shot goes on from a picture is decoding.
    """
    adapter.prepare(all_prompts(plan, scored=False))  # which is not denoising
    evaluations: list[None] = []
    meters: list[Meter] = []
    predict = adapter.predict

    def metered(requests: Sequence[Request]) -> Iterator[list[Tensor]]:
        with Meter() as meter:
            answers = list(predict(requests))
        meters.append(meter)
        return iter(answers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "predict", metered)
        for _ in bench.our_latents(adapter, plan, None, lambda: evaluations.append(None)):
            pass
    return float(sum(meter.operations for meter in meters)), len(evaluations)


# In bytes: up to 16 and 32. At one place, and of two characters, so that nobody has to be found.
SCENES = (("a fox in a park", "it runs home"), ("a dog in a park", "he walks by"))


def read_as_calculated(adapter: PipelineAdapter, joined: set[str], patch: pytest.MonkeyPatch) -> None:
    """Have prompts read as if they had as many tokens as in the calculation."""
    tokens = adapter._tokens

    def as_many(index: int, prompt: str) -> Any:
        found = tokens(index, prompt)
        found.attention_mask[:] = 0
        found.attention_mask[:, : 2 * TOKENS if prompt in joined else TOKENS] = 1
        return found

    patch.setattr(adapter, "_tokens", as_many)


def work(name: str, variants: list[str], patch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return the calculated work of variants, which must be what a film of real tensors takes.

    Of prompts that have as many tokens as in the calculation.
    """
    spec = MODELS[name]
    patch.setattr(compared, "SCENES", SCENES)
    overrides = Overrides(name, steps=4)
    report = calculate(spec, overrides, variants)
    adapter = bench.load(spec, CPU, True)
    joined: set[str] = set()
    read_as_calculated(adapter, joined, patch)
    for row in report["variants"]:
        plan = compared.planned(spec, overrides, row["variant"])
        joined |= {segment.prompt for segment in plan.segments}
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


@one_family
def test_evaluations_that_find_a_character_are_work_too(
    spec_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of one latent frame, of the prompt with the name and of one without it, as a film takes them."""
    spec, overrides = MODELS[spec_name], Overrides(spec_name, steps=4)
    monkeypatch.setattr(
        compared, "SCENES", (("a fox in a park", "a fox runs"), ("a fox at sea", "a fox swims"))
    )
    adapter = bench.load(spec, CPU, True)
    plan = compared.planned(spec, overrides, "full")
    assert plan.looks(plan.segments) == len(LOOKED_AT)
    read_as_calculated(adapter, {segment.prompt for segment in plan.segments}, monkeypatch)
    counted, _ = counted_work(adapter, plan)
    asked: list[tuple[int, int]] = []

    def one(latents: int, texts: int, weighting: str) -> int:
        asked.append((latents, texts))
        return evaluation(true, plan, latents, texts, weighting).operations

    true = adapter_class(spec).random(spec, META)
    found = operations(plan, one)
    assert found == pytest.approx(counted, rel=1e-3)
    alone = len(LOOKED_AT) * evaluation(true, plan, 1, 2, "none").operations
    assert asked[0] == (1, 2)
    assert abs(found - alone - counted) > 0.5 * alone


def test_memory_is_of_the_texts_that_a_plan_reads(spec_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three side by side where the plan weighs texts, else one, with its words in groups or not."""
    spec, read = MODELS[spec_name], list[str]()
    adapter = adapter_class(spec).random(spec, META)

    def watched(adapter: PipelineAdapter, plan: Plan, latents: int, texts: int, weighting: str) -> Meter:
        read.append(weighting)
        return evaluation(adapter, plan, latents, texts, weighting)

    monkeypatch.setattr(calculation, "evaluation", watched)
    for way in ("texts", "true", "false"):
        story = "scenes:\n  - [a park, it rains]\n"
        memory_needed(adapter, plan_of(story, model=spec_name, method=(f"weighting={way}",)))
    assert read == ["texts", "words", "none"]


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


def test_stock_is_counted_by_its_own_attention(spec_name: str) -> None:
    """Its texts are padded, and masked or cut, as in its pipeline: the work is plain's, and a little more."""
    report = calculate(MODELS[spec_name], Overrides(spec_name, steps=2), ["stock", "plain"])
    stock, plain = report["variants"]
    assert stock["forwards"] == plain["forwards"]
    assert stock["latents"] == plain["latents"]
    assert 0.2 < plain["pflop"] / stock["pflop"] <= 1 + 1e-9
    assert 0.2 < plain["terabytes"] / stock["terabytes"] <= 1.05
    for row in report["variants"]:
        slow, fast = row["bound_s"]["RTX 4090"], row["bound_s"]["H100 SXM"]
        arithmetic = 1e15 * row["pflop"] / CARDS["H100 SXM"].operations
        memory = 1e12 * row["terabytes"] / CARDS["H100 SXM"].traffic
        assert slow > fast >= max(arithmetic, memory) * 0.999


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_attention_moves_no_more_than_stock(name: str) -> None:
    """At the default size and length; without weighting, as every large model is by default, and with it."""
    spec = find_model(name)
    adapter = adapter_class(spec).random(spec, META)
    plan = compared.planned(spec, Overrides(name), "plain")
    latents = plan.segments[0].latents
    stock = stock_evaluation(adapter, plan, latents, 2)
    for weighting in ("none", "words"):
        ours = evaluation(adapter, plan, latents, 2, weighting)
        assert ours.traffic / stock.traffic <= 1.05
        assert ours.operations / stock.operations <= 1.001


@one_family
def test_lines_go_through_what_is_calculated(spec_name: str) -> None:
    """At sizes and lengths that they were not drawn through; a tiny model's are megabytes."""
    spec = replace(MODELS[spec_name], min_size=(32, 32), size=(64, 64), max_size=(128, 128))
    needs = fitted(spec)
    adapter = adapter_class(spec).random(spec, META)
    assert needs.experts == len(adapter.experts)
    for size, latents in (((96, 96), spec.usual_latents), ((64, 64), spec.usual_latents + 2)):
        overrides = Overrides(spec_name, size=f"{size[0]}x{size[1]}")
        found = working(adapter, compared.planned(spec, overrides, "full"), latents)
        line = needs.working(size, latents)
        assert line.denoising == pytest.approx(found.denoising, rel=0.2, abs=1e6)
        assert line.decoding == pytest.approx(found.decoding, rel=0.2, abs=1e6)


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
    """Made anew by `storyreel bench --calculate --fit`."""
    spec = find_model(name)
    assert spec.needs is not None
    adapter = adapter_class(spec).random(spec, META)
    found = memory_needed(adapter, compared.planned(spec, Overrides(name), "full"))
    assert spec.memory_gb == {mode: round(size / GB, 1) for mode, size in found.items()}
    weights, sizes = spec.needs.weights("none"), adapter.offload.weights()
    assert weights.experts == pytest.approx(sizes.experts, rel=1e-3)
    alike = {name: size for name, size in vars(sizes).items() if name != "experts"}
    assert {name: vars(weights)[name] for name in alike} == pytest.approx(alike, rel=1e-3)
    between = tuple((low + high) // 2 // 32 * 32 for low, high in zip(spec.size, spec.max_size, strict=True))
    plan = compared.planned(spec, Overrides(name, size="{}x{}".format(*between)), "full")
    there, line = working(adapter, plan, 8), spec.needs.working((between[0], between[1]), 8)
    assert line.denoising == pytest.approx(there.denoising, rel=0.05)
    # Of LTX, a clip that is as short as that takes less: its decoder holds more frames back than there are.
    assert 0.9 * there.decoding <= line.decoding <= 1.5 * there.decoding


def test_what_cannot_be_calculated_is_refused() -> None:
    spec = find_model("ltx-2b")
    with pytest.raises(UsageError, match="without-sar"):
        calculate(spec, Overrides(spec.name), ["without-sar"])
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
    assert "s, H100 SXM" in out
    assert f"high {report['memory_gb']['high']:.1f}" in out


@one_family
def test_the_command_prints_an_entry_of_the_table(spec_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--model", spec_name, "--calculate", "--fit"]
    assert run(command) == 0
    assert re.fullmatch(r"memory_gb=\{.+\},\nneeds=Needs\(experts=1, .+\),\n", capsys.readouterr().out)
    assert run([*command, "--json"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert run(["bench", "--model", spec_name, "--fit"]) == 2
    assert "Add --calculate" in capsys.readouterr().err
