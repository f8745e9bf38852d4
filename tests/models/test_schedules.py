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

from storyreel.errors import DamagedError
from storyreel.models.loading import load_adapter, load_scheduler
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.specs import MODELS
from tests.conftest import plan_of
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
