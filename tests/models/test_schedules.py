"""The noise levels of the true models' schedulers: their configurations as the hub has them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from storyreel.denoise.loop import begin
from storyreel.denoise.prompts import PromptWriter
from storyreel.errors import DamagedError, ScriptError, UsageError
from storyreel.method.noise_levels import levels_of
from storyreel.method.step_skipping import SPEEDS
from storyreel.models.loading import load_adapter, load_scheduler
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.specs import MODELS
from storyreel.story.planning import notes_of
from tests.conftest import FakeAdapter, plan_of
from tests.models.test_families import save
from tests.tiny import CPU, FAMILIES

WAN = {  # 2.1 and 2.2
    "_class_name": "UniPCMultistepScheduler",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "disable_corrector": [],
    "dynamic_thresholding_ratio": 0.995,
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "predict_x0": True,
    "prediction_type": "flow_prediction",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "solver_order": 2,
    "solver_p": None,
    "solver_type": "bh2",
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "linspace",
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_flow_sigmas": True,
    "use_karras_sigmas": False,
}
LTX = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 1024,
    "base_shift": 0.95,
    "invert_sigmas": False,
    "max_image_seq_len": 4096,
    "max_shift": 2.05,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.1,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}


HUNYUAN = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0}
MOCHI = {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}
LATER_LTX = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": False}
# Of each model: its scheduler's configuration, its family, and from the public formulas, by hand, the levels
# of the second, the middle and the last step at its default size and length.
DEFAULTS: dict[str, tuple[dict[str, Any], str, tuple[float, float, float]]] = {
    # 1 - 0.025 / 32; 1 - 0.025; at u = 31 of 32 on the parabola from there to 0
    "mochi": (MOCHI, "mochi", (0.99921875, 0.975, 0.05922852)),
    # s t / (1 + (s - 1) t) at t = 1 - 0.999 i / steps
    "wan-1.3b": (WAN, "wan", (0.99325009, 0.75037481, 0.06040539)),
    "wan-14b": (WAN, "wan", (0.99325009, 0.75037481, 0.06040539)),
    "wan-2.2-a14b": (WAN, "wan of two experts", (0.99786999, 0.92321881, 0.24243131)),
    # 13 x 22 x 15 tokens: s = exp(0.95 + 1.1 (4290 - 1024) / 3072), then stretched to 0.1
    "ltx-2b": (LTX, "ltx", (0.99742563, 0.88710474, 0.1)),
    "ltx-13b": (LATER_LTX, "later ltx", (0.99833333, 0.975, 0.12411111)),
    "wan-2.2-5b": (WAN | {"flow_shift": 5.0}, "wan ti2v", (0.99593909, 0.83361093, 0.09677836)),
    "ltx-2.5": (LATER_LTX, "ltx 2", (0.99375, 0.975, 0.421875)),
    # s t / (1 + (s - 1) t) at t = 1 - i / steps
    "hunyuan-1.5": (HUNYUAN, "hunyuan", (0.99593496, 0.83333333, 0.09259259)),
}


def adapter_with(config: dict[str, Any], family: str, folder: Path) -> PipelineAdapter:
    (folder / "scheduler_config.json").write_text(json.dumps(config))
    adapter = FAMILIES[family]()
    adapter.parts.scheduler = load_scheduler(adapter.schedulers, folder)
    return adapter


@pytest.mark.parametrize("steps", [1, 6, 40, 50])
def test_wans_levels_are_even_ones_shifted(steps: int, tmp_path: Path) -> None:
    """As its authors' own sampler has them, and as an Euler scheduler makes them of the same even ones.

    What an Euler scheduler takes by itself is something else: it goes on to the smallest level it knows.
    """
    adapter = adapter_with(WAN, "wan of two experts", tmp_path)
    levels = adapter.sigmas(steps, (1, 16, 21, 60, 104))
    even = [1 - 0.999 * step / steps for step in range(steps)]
    assert levels == pytest.approx([*(3 * t / (1 + 2 * t) for t in even), 0], abs=2e-6)
    euler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    euler.set_timesteps(sigmas=even)
    assert levels == pytest.approx(euler.sigmas.tolist(), abs=2e-6)
    assert levels[-1] == 0
    assert all(lower < level for level, lower in pairwise(levels))
    # The pipeline rounds its timesteps down, and changes its expert by them.
    timesteps = adapter.parts.scheduler.timesteps.tolist()
    assert [adapter.expert_at(level) for level in levels[:-1]] == [int(t < 875) for t in timesteps]


@pytest.mark.parametrize("steps", [2, 50])
def test_ltxs_levels_are_shifted_by_the_number_of_tokens(steps: int, tmp_path: Path) -> None:
    """At the default size and length there are more than the 4096 of ``max_shift``: the line goes on."""
    adapter = adapter_with(LTX, "ltx", tmp_path)
    segment = plan_of("scenes: [[a, b], [a, c]]", model="ltx-2b").segments[1]
    width, height = (side // MODELS["ltx-2b"].pixels_per_latent for side in MODELS["ltx-2b"].size)
    tokens = (segment.lead + segment.latents) * height * width
    assert tokens > 4096
    shift = math.exp(0.95 + (2.05 - 0.95) * (tokens - 1024) / (4096 - 1024))
    even = [1 - (1 - 1 / steps) * step / (steps - 1) for step in range(steps)]
    shifted = [shift / (shift + 1 / t - 1) for t in even]
    stretched = [1 - 0.9 * (1 - level) / (1 - shifted[-1]) for level in shifted]
    levels = adapter.sigmas(steps, (1, 128, segment.lead + segment.latents, height, width))
    assert levels == pytest.approx([*stretched, 0], abs=1e-6)
    assert (levels[0], levels[-1]) == (1, 0)
    assert levels[-2] == pytest.approx(0.1)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
@pytest.mark.parametrize("name", DEFAULTS)
def test_a_models_own_levels_are_those_of_the_public_formulas(name: str, tmp_path: Path) -> None:
    """First, second, middle and last; and those that are planned with are those that are denoised with."""
    config, family, (second, middle, last) = DEFAULTS[name]
    plan = plan_of("scenes: [[a, b], [a, c]]", model=name)
    spec, settings = plan.spec, plan.settings
    adapter = adapter_with(config, family, tmp_path)
    adapter.spec = spec
    frames = round(spec.seconds * spec.fps / spec.frames_per_latent) + spec.overlap
    rows, columns = (side // spec.pixels_per_latent for side in (settings.height, settings.width))
    shift = () if settings.shift is None else (settings.shift,)
    levels = adapter.sigmas(settings.steps, (1, spec.latent_channels, frames, rows, columns), *shift)
    found = (levels[1], levels[settings.steps // 2], levels[-2])
    assert found == pytest.approx((second, middle, last), abs=2e-6)
    assert levels[0] == pytest.approx(1, abs=2e-6)  # UniPC stays a millionth below
    assert levels[-1] == 0
    planned = levels_of(spec.levels, settings.steps, settings.shift, frames * rows * columns)
    assert levels == pytest.approx(planned, abs=2e-6)


# By the authors' own settings: of LightX2V (configs/distill) denoising_step_list and sample_shift; of
# FastVideo (configs/pipelines/wan.py) dmd_denoising_steps, timesteps of a schedule with shift 8; of LTX-Video
# (configs/ltxv-13b-0.9.7-distilled.yaml) the timesteps of both passes.
LIGHTX2V = [5 * u / (1 + 4 * u) for u in (1.0, 0.75, 0.5, 0.25)]
FASTWAN = [t / 1000 for t in (1000, 757, 522)]
FIRST_PASS, SECOND_PASS = [1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725], [0.9094, 0.725, 0.4219]
FEW = {
    "wan-1.3b:3-step": FASTWAN,
    "wan-2.2-5b:3-step": FASTWAN,
    "wan-14b:4-step": LIGHTX2V,
    "wan-2.2-a14b:4-step": LIGHTX2V,
    "ltx-13b:distilled": sorted({*FIRST_PASS, *SECOND_PASS}, reverse=True),
}


@pytest.mark.parametrize("name", FEW)
def test_a_variant_is_denoised_at_the_levels_that_its_weights_were_trained_at(name: str) -> None:
    plan = plan_of("scenes: [[a, b], [a, c]]", model=name)
    adapter = FakeAdapter(plan.spec)
    begun = begin(
        adapter, plan, plan.segments[0], PromptWriter(adapter, plan, None).prompts(plan.segments[0])
    )
    assert begun.sigmas == pytest.approx([*FEW[name], 0], abs=1e-6)
    assert plan.pace.forwards == plan.settings.steps == len(FEW[name])
    assert not any(plan.pace.guided[step] and plan.settings.guidance != 1 for step in range(len(FEW[name])))


def test_fastwans_timesteps_lie_on_its_schedule() -> None:
    """Timesteps are whole there: at 280 and 120 of a thousand, shifted by 8, less than half of one away."""
    for level, u in zip(FASTWAN, (1.0, 0.28, 0.12), strict=True):
        assert 1000 * level == pytest.approx(8000 * u / (1 + 7 * u), abs=0.5)


def test_the_second_expert_begins_where_the_levels_fall_below_its_boundary() -> None:
    """Two steps each (``boundary_step_index`` 2), by the noise level alone."""
    spec = MODELS["wan-2.2-a14b:4-step"]
    assert spec.boundary_ratio is not None
    assert [level >= spec.boundary_ratio for level in spec.sigmas] == [True, True, False, False]


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("name", [*FEW, "ltx-2.5"])
def test_no_step_of_few_is_skipped_and_that_is_said(name: str, speed: str) -> None:
    """So that the film is that of every other speed, and no scene of it is rendered again."""
    plan, usual = (plan_of("scenes: [[a, b], [a, c]]", model=name, speed=s) for s in (speed, None))
    assert all(plan.pace.computed)
    assert plan.settings == usual.settings
    assert usual.notes == ()
    steps = plan.settings.steps
    said = f"speed {speed} changes nothing: model {name} takes {steps} steps without guidance, and all are"
    assert plan.notes == (() if speed == "exact" else (f"{said} computed",))
    assert list(notes_of(plan))[: len(plan.notes)] == list(plan.notes)


@pytest.mark.parametrize("name", FEW)
def test_fixed_levels_take_no_other_steps_and_no_shift(name: str) -> None:
    base, steps = MODELS[name].base, MODELS[name].steps
    words = f"model {name} was trained for {steps} steps at fixed noise levels, and cannot take 20"
    with pytest.raises(UsageError, match=f"{words}; leave the steps out, or take {base}"):
        plan_of("scenes: [[a, b]]", model=name, steps=20)
    with pytest.raises(ScriptError, match=words) as caught:
        plan_of(f"scenes: [[a, b]]\nrender: {{model: '{name}', steps: 20}}\n")
    assert [fault.line for fault in caught.value.faults] == [2]
    with pytest.raises(UsageError, match="takes no shift"):
        plan_of("scenes: [[a, b]]", model=name, shift=5.0)
    plan_of("scenes: [[a, b]]", model=name, steps=steps)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("name", DEFAULTS)
def test_planned_levels_are_the_schedulers_for_any_number_of_steps(
    name: str, steps: int, tmp_path: Path
) -> None:
    config, family, _ = DEFAULTS[name]
    adapter = adapter_with(config, family, tmp_path)
    shift = 8.0 if MODELS[name].shifts else None
    levels = adapter.sigmas(steps, (1, 16, 9, 10, 20), *(() if shift is None else (shift,)))
    assert levels == pytest.approx(levels_of(MODELS[name].levels, steps, shift, 1800), abs=2e-6)


@pytest.mark.parametrize("scheduler", [WAN, {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}])
def test_a_chosen_shift_counts_instead_of_the_folders_and_changes_nothing_there(
    scheduler: dict[str, Any], tmp_path: Path
) -> None:
    adapter = adapter_with(scheduler, "wan", tmp_path)
    shape = (1, 16, 21, 60, 104)
    own = adapter.sigmas(20, shape)
    shifted = adapter.sigmas(20, shape, 12.0)
    assert adapter.sigmas(20, shape, 3.0) == own
    assert adapter.sigmas(20, shape) == own
    pairs = list(zip(shifted, own, strict=True))[1:-1]
    assert all(far > near for far, near in pairs)
    # The experts of 2.2 change at 0.875: with 3 a third of the steps comes before, with 12 two thirds.
    assert [sum(level >= 0.875 for level in found) for found in (own, shifted)] in ([7, 13], [6, 13], [6, 12])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
@pytest.mark.parametrize("change", [{"use_flow_sigmas": False}, {"final_sigmas_type": "sigma_min"}])
def test_a_scheduler_of_other_levels_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    """Diffusion's levels begin far above 1, and a film whose last is not 0 would be left noisy."""
    adapter = FAMILIES["wan"]()
    save(adapter, tmp_path)
    config = tmp_path / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(WAN))
    load_adapter(replace(adapter.spec, weights=tmp_path), CPU)
    config.write_text(json.dumps(WAN | change))
    with pytest.raises(DamagedError, match=r"scheduler.*from 1 to 0"):
        load_adapter(replace(adapter.spec, weights=tmp_path), CPU)
