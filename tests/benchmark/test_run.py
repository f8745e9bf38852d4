from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from storyreel.benchmark import run as bench
from storyreel.benchmark import variants as compared
from storyreel.benchmark.work import Work
from storyreel.cli.app import run
from storyreel.errors import UsageError
from storyreel.models.lora import Lora
from storyreel.models.specs import MODELS, find_model
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides
from tests.tiny import CPU


def measured(name: str, variants: list[str], steps: int = 6) -> dict[str, dict[str, float]]:
    lines: list[str] = []
    overrides = Overrides(name, steps=steps)
    report = bench.bench(MODELS[name], CPU, overrides, variants, 1, True, False, lines.append)
    json.dumps(report, allow_nan=False)
    return {row["variant"]: row for row in report["variants"]}


# What is the same for every family is tried with one of them.
one_family = pytest.mark.parametrize("spec_name", ["wan"], indirect=True)


@one_family
def test_every_variant_is_measured_with_random_weights(
    spec_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compared, "SCENES", compared.SCENES[:2])
    rows = measured(spec_name, [compared.STOCK, *compared.VARIANTS])
    assert list(rows) == [compared.STOCK, *compared.VARIANTS]
    for row in rows.values():
        assert row["seconds"] > 0
        assert row["tflops"] > 0
        assert row["peak_mb"] is None
    assert rows["stock"]["forwards"] == rows["plain"]["forwards"] == 6
    assert rows["full"]["forwards"] == 7  # with those that find the dog
    assert rows["fast"]["forwards"] < rows["balanced"]["forwards"] < 7
    assert rows["full"]["latents"] > rows["plain"]["latents"]  # overlaps are denoised twice


def test_random_weights_are_stored_in_fp8_too(spec_name: str) -> None:
    spec = MODELS[spec_name]
    whole, stored = (bench.load(s, CPU, True).offload.sizes() for s in (spec, spec.quantized("fp8")))
    assert stored[0] < 0.75 * whole[0]  # of these narrow layers the scales are much
    assert stored[1:] == whole[1:]


@one_family
def test_fewer_forwards_are_less_work(spec_name: str) -> None:
    work = Work(bench.load(MODELS[spec_name], CPU, True))
    found = {
        name: work.of(compared.planned(MODELS[spec_name], Overrides(spec_name, steps=10), name))
        for name in ("full", "balanced", "fast")
    }
    assert found["fast"] < 0.7 * found["full"]
    assert found["fast"] < found["balanced"] < 0.9 * found["full"]


@one_family
@pytest.mark.parametrize("steps", [1, 2, 10, 64])
def test_the_first_round_warms_up_all_that_is_timed(spec_name: str, steps: int) -> None:
    """Else a round would be timed that compiles."""
    for name in compared.VARIANTS:

        def in_steps(count: int, name: str = name) -> Plan:
            return compared.planned(MODELS[spec_name], Overrides(spec_name, steps=count), name)

        plan = in_steps(steps)
        few = bench.briefly(plan, in_steps)
        assert few.settings.steps <= max(4, steps // 4)
        forms = [
            {guided for guided, computed in zip(one.pace.guided, one.pace.computed, strict=True) if computed}
            for one in (few, plan)
        ]
        assert forms[0] == forms[1]


def test_few_steps_are_warmed_up_by_all_of_them() -> None:
    """Weights for few steps take no others."""
    plan = compared.planned(find_model("wan-1.3b:3-step"), Overrides("wan-1.3b:3-step"), "full")
    assert bench.briefly(plan, lambda count: pytest.fail(f"planned in {count} steps")) is plan


def test_random_weights_want_no_files_of_a_variant(
    spec_name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = replace(MODELS[spec_name], loras=(Lora(tmp_path / "gone.safetensors"),))
    assert bench.load(spec, CPU, True).spec.loras == ()


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(UsageError, match="warp"):
        bench.bench(MODELS["mini"], CPU, Overrides(), ["warp"], 1, False, False, print)


def test_the_embedded_model_needs_no_random_weights() -> None:
    with pytest.raises(UsageError, match="has its weights with it"):
        bench.load(MODELS["mini"], CPU, True)


@pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if spec.hub and name == spec.base])
def test_true_sizes_are_what_the_table_says(name: str) -> None:
    """Built on no device at all: parameters and latents of the real models."""
    from storyreel.models.loading import adapter_class

    spec = MODELS[name]
    family = adapter_class(spec)
    with torch.device("meta"):
        transformer = family.transformer_class(**spec.architecture)
        vae = family.vae_class(**spec.vae_architecture)
    millions = sum(p.numel() for p in transformer.parameters()) / 1e6
    known = {"mochi": 10_030, "wan-1.3b": 1_419, "wan-14b": 14_289, "wan-2.2-a14b": 14_289, "ltx-2b": 1_923}
    known |= {"wan-2.2-5b": 5_000, "hunyuan-1.5": 8_327}
    known["ltx-2.5"] = 18_990  # with what denoises sound
    assert millions == pytest.approx(known.get(name, 13_000), rel=0.03)
    given = spec.latent_channels + 1 if name == "hunyuan-1.5" else 0  # a first picture, and where it is
    assert transformer.config.in_channels == spec.latent_channels + given
    assert getattr(vae, "spatial_compression_ratio", 8) == spec.pixels_per_latent


def options(name: str, *more: str) -> list[str]:
    words = ["bench", "--model", name, "--random-weights", "--rounds", "1", "--device", "cpu", "--steps", "2"]
    return [*words, "--variants", "stock,plain", *more]


def test_every_family_is_measured_beside_its_stock_pipeline(
    spec_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(options(spec_name, "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in report["variants"]] == ["stock", "plain"]
    assert [row["forwards"] for row in report["variants"]] == [2, 2]
    assert min(row["tflops"] for row in report["variants"]) > 0


@one_family
def test_the_command_prints_a_table(spec_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(options(spec_name)) == 0
    table = capsys.readouterr().out
    assert "of stock" in table
    assert "plain" in table
    assert "fp8" not in table
    assert run(options(spec_name, "--quantize", "fp8")) == 0
    assert "random weights in fp8" in " ".join(capsys.readouterr().out.split())
    assert run(options(spec_name, "--quantize", "int3")) == 2
    assert "'int3' is not one of 'none', 'fp8'" in capsys.readouterr().err
