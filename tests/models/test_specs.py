"""The table of models against what their authors publish; models/README.md names each source."""

from __future__ import annotations

import hashlib
import inspect
import re
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest

from storyreel.models.loading import adapter_class
from storyreel.models.pipeline import T5_XXL
from storyreel.models.specs import MODELS, QUANTIZATIONS, WAN_NEGATIVE, ModelSpec, find_model
from storyreel.story.plan import Settings
from tests.conftest import plan_of

STORY = "scenes:\n  - [a fox in the park, a fox walks]\n"
LTX_WORDS = "worst quality, inconsistent motion, blurry, jittery, distorted"
# steps, guidance, guidance of the second expert, rescale, shift at the default size, negative prompt, fps
AUTHORS: dict[str, tuple[object, ...]] = {
    "mini": (16, 1.5, None, 0.0, None, "", 12),
    "mochi": (64, 4.5, None, 0.0, None, "", 30),
    "wan-1.3b": (50, 5.0, None, 0.0, 3.0, WAN_NEGATIVE, 16),
    "wan-14b": (50, 5.0, None, 0.0, 3.0, WAN_NEGATIVE, 16),
    "wan-2.2-a14b": (40, 4.0, 3.0, 0.0, 12.0, WAN_NEGATIVE, 16),
    "ltx-2b": (50, 3.0, None, 0.0, None, LTX_WORDS, 24),
    "ltx-13b": (30, 5.0, None, 0.7, None, LTX_WORDS, 24),
    "wan-2.2-5b": (50, 5.0, None, 0.0, 5.0, WAN_NEGATIVE, 24),
    "ltx-2.5": (8, 1.0, None, 0.0, None, "", 24),
    "hunyuan-1.5": (50, 6.0, None, 0.0, 5.0, "", 24),
    # Variants: nothing is guided, and noise levels are fixed.
    "wan-1.3b:3-step": (3, 1.0, None, 0.0, None, "", 16),
    "wan-2.2-5b:3-step": (3, 1.0, None, 0.0, None, "", 24),
    "wan-14b:4-step": (4, 1.0, None, 0.0, None, "", 16),
    "wan-2.2-a14b:4-step": (4, 1.0, None, 0.0, None, "", 16),
    "ltx-13b:distilled": (8, 1.0, None, 0.0, None, "", 24),
}


def of_defaults(name: str) -> Settings:
    return plan_of(STORY, model=name).settings


@pytest.mark.parametrize("name", MODELS)
def test_a_story_that_asks_for_nothing_has_the_authors_settings(name: str) -> None:
    found = of_defaults(name)
    guidance = (found.guidance, found.guidance_2, found.guidance_rescale)
    assert (found.steps, *guidance, found.shift, found.negative, MODELS[name].fps) == AUTHORS[name]


@pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if name != spec.base])
def test_a_variant_is_its_model_but_for_what_makes_it_one(name: str) -> None:
    variant = MODELS[name]
    facts = {
        *("name", "title", "hub", "revision", "licence", "added", "sigmas", "renoises", "unread"),
        *("steps", "guidance", "guidance_2", "guidance_rescale", "shifts"),
    }
    base = asdict(MODELS[variant.base])
    differing = {key for key, value in asdict(variant).items() if value != base[key]}
    assert differing <= facts
    assert variant.hub != MODELS[variant.base].hub or variant.added  # other weights, or some more
    assert len(variant.sigmas) == variant.steps
    assert variant.sigmas[0] == 1.0
    assert all(0 < lower < level for level, lower in pairwise(variant.sigmas))
    pinned = [variant.revision, *(one.revision for one in variant.added)]
    assert all(revision and re.fullmatch("[0-9a-f]{40}", revision) for revision in pinned)
    assert list(MODELS).index(name) > list(MODELS).index(variant.base)
    assert not any(spec.base != variant.base for spec in between(variant.base, name))


def between(first: str, last: str) -> list[ModelSpec]:
    names = list(MODELS)
    return [MODELS[name] for name in names[names.index(first) : names.index(last)]]


def test_each_expert_has_a_lora_of_its_own() -> None:
    high, low = MODELS["wan-2.2-a14b:4-step"].added
    assert (high.experts, low.experts) == ("high", "low")
    assert ("high_noise" in high.file, "low_noise" in low.file) == (True, True)
    assert [one.lora.experts for one in (high, low)] == ["high", "low"]
    found = find_model("wan-2.2-a14b:4-step").loras
    assert [lora.path.name for lora in found] == [high.file, low.file]
    assert find_model("wan-2.2-a14b").loras == ()


def test_wans_negative_prompt_keeps_it_from_still_pictures() -> None:
    """Sign for sign what wan/configs/shared_config.py of Wan-Video/Wan2.2 (and 2.1) has."""
    assert {"静态", "静止", "静止不动的画面"} <= set(WAN_NEGATIVE.split("，"))
    digest = hashlib.sha256(WAN_NEGATIVE.encode()).hexdigest()
    assert digest == "ce96e0324e4b54ce4b6e867f669ca520952e1a34cc116543516b1897f0d3c47e"


@pytest.mark.parametrize(
    ("model", "size", "shift"),
    [
        ("wan-1.3b", "832x480", 3.0),
        ("wan-1.3b", "480x832", 3.0),
        ("wan-1.3b", "832x832", 5.0),  # nearer to 720p's area than to 480p's
        ("wan-14b", "832x480", 3.0),
        ("wan-14b", "256x256", 3.0),
        ("wan-14b", "960x544", 3.0),
        ("wan-14b", "1024x640", 5.0),
        ("wan-14b", "1280x720", 5.0),
        ("wan-14b", "720x1280", 5.0),
        ("wan-14b", "1280x1280", 5.0),
        ("wan-2.2-a14b", "832x480", 12.0),
        ("wan-2.2-a14b", "1280x720", 12.0),
        ("wan-2.2-5b", "832x480", 3.0),
        ("wan-2.2-5b", "704x1280", 5.0),
    ],
)
def test_wans_shift_is_that_of_the_nearest_size_that_its_authors_name(
    model: str, size: str, shift: float
) -> None:
    assert plan_of(STORY, model=model, size=size).settings.shift == shift
    assert plan_of(STORY, model=model, size=size, shift=7.0).settings.shift == 7.0


# As scripts/convert_{wan,ltx,mochi,hunyuan_video1_5}_to_diffusers.py of huggingface/diffusers have it: they
# made the folders
WAN_14B = {
    "attention_head_dim": 128,
    "cross_attn_norm": True,
    "ffn_dim": 13824,
    "freq_dim": 256,
    "in_channels": 16,
    "num_attention_heads": 40,
    "num_layers": 40,
    "out_channels": 16,
    "patch_size": (1, 2, 2),
    "qk_norm": "rms_norm_across_heads",
    "text_dim": 4096,
    "added_kv_proj_dim": None,
    "eps": 1e-6,
}
LTX_2B = {
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "patch_size_t": 1,
    "num_attention_heads": 32,
    "attention_head_dim": 64,
    "cross_attention_dim": 2048,
    "num_layers": 28,
    "activation_fn": "gelu-approximate",
    "qk_norm": "rms_norm_across_heads",
    "norm_eps": 1e-6,
    "norm_elementwise_affine": False,
    "caption_channels": 4096,
    "attention_bias": True,
    "attention_out_bias": True,
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "mochi": {"num_attention_heads": 24, "attention_head_dim": 128, "num_layers": 48, "in_channels": 12},
    "wan-1.3b": WAN_14B | {"ffn_dim": 8960, "num_attention_heads": 12, "num_layers": 30},
    "wan-14b": WAN_14B,
    "wan-2.2-a14b": WAN_14B,
    "ltx-2b": LTX_2B,
    "ltx-13b": LTX_2B | {"attention_head_dim": 128, "cross_attention_dim": 4096, "num_layers": 48},
    "wan-2.2-5b": WAN_14B
    | {"ffn_dim": 14336, "num_attention_heads": 24, "num_layers": 30, "in_channels": 48, "out_channels": 48},
    "hunyuan-1.5": {
        "in_channels": 65,
        "out_channels": 32,
        "num_attention_heads": 16,
        "attention_head_dim": 128,
        "num_layers": 54,
        "num_refiner_layers": 2,
        "mlp_ratio": 4.0,
        "patch_size": 1,
        "patch_size_t": 1,
        "qk_norm": "rms_norm",
        "text_embed_dim": 3584,
        "text_embed_2_dim": 1472,
        "image_embed_dim": 1152,
        "rope_theta": 256.0,
        "rope_axes_dim": (16, 56, 56),
        "use_meanflow": False,
        "target_size": 640,
        "task_type": "t2v",
    },
}
WAN_2_1_CODEC = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "attn_scales": (),
    "temperal_downsample": (False, True, True),
}
LTX_CODEC = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "patch_size": 4,
    "patch_size_t": 1,
    "resnet_norm_eps": 1e-6,
    "scaling_factor": 1.0,
    "encoder_causal": True,
    "decoder_causal": False,
}
CODECS: dict[str, dict[str, Any]] = {
    "mochi": {"latent_channels": 12, "out_channels": 3},
    "wan-1.3b": WAN_2_1_CODEC,
    "wan-14b": WAN_2_1_CODEC,
    "wan-2.2-a14b": WAN_2_1_CODEC,  # the two experts have the codec of 2.1
    "wan-2.2-5b": {
        **WAN_2_1_CODEC,
        "base_dim": 160,
        "decoder_base_dim": 256,
        "z_dim": 48,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "scale_factor_temporal": 4,
    },
    "ltx-2b": {
        **LTX_CODEC,
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("LTXVideoDownBlock3D",) * 4,
        "decoder_block_out_channels": (128, 256, 512, 512),
        "layers_per_block": (4, 3, 3, 3, 4),
        "decoder_layers_per_block": (4, 3, 3, 3, 4),
        "spatio_temporal_scaling": (True, True, True, False),
        "decoder_spatio_temporal_scaling": (True, True, True, False),
        "decoder_inject_noise": (False,) * 5,
        "downsample_type": ("conv",) * 4,
        "upsample_residual": (False,) * 4,
        "upsample_factor": (1,) * 4,
        "timestep_conditioning": False,
    },
    "ltx-13b": {
        **LTX_CODEC,
        "block_out_channels": (128, 256, 512, 1024, 2048),
        "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
        "decoder_block_out_channels": (256, 512, 1024),
        "layers_per_block": (4, 6, 6, 2, 2),
        "decoder_layers_per_block": (5, 5, 5, 5),
        "spatio_temporal_scaling": (True,) * 4,
        "decoder_spatio_temporal_scaling": (True,) * 3,
        "decoder_inject_noise": (False,) * 4,
        "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        "upsample_residual": (True,) * 3,
        "upsample_factor": (2,) * 3,
        "timestep_conditioning": True,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    },
    "hunyuan-1.5": {
        "latent_channels": 32,
        "block_out_channels": (128, 256, 512, 1024, 1024),
        "spatial_compression_ratio": 16,
        "temporal_compression_ratio": 4,
    },
}


def configured(kind: type[Any], architecture: dict[str, Any]) -> dict[str, Any]:
    """Return a class's configuration with its defaults, lists as tuples, without building it."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    given = {p.name: p.default for p in parameters if p.default is not p.empty} | architecture
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_random_weights_have_the_true_architecture(name: str) -> None:
    spec = MODELS[name]
    family = adapter_class(spec)
    for kind, ours, theirs in (
        (family.transformer_class, spec.architecture, TRANSFORMERS[name]),
        (family.vae_class, spec.vae_architecture, CODECS[name]),
    ):
        found = configured(kind, ours)
        assert {key: found[key] for key in theirs} == theirs


def test_random_weights_read_with_the_true_text_encoders() -> None:
    """google/t5-v1_1-xxl, google/umt5-xxl and HunyuanVideo 1.5's two: their config.json."""
    known = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    assert known.items() <= T5_XXL.items()
    read = {name: adapter_class(MODELS[name]).reads_with for name in TRANSFORMERS}
    language, letters = read.pop("hunyuan-1.5")
    sizes = {name: encoder.sizes["vocab_size"] for name, (encoder,) in read.items()}
    assert set(sizes.values()) == {32128, 256384}
    assert {name for name, size in sizes.items() if size == 256384} == {n for n in sizes if "wan" in n}
    # Qwen/Qwen2.5-VL-7B-Instruct's text, and google/byt5-small with Glyph-SDXL-v2's tokens
    assert (language.sizes["hidden_size"], language.sizes["num_hidden_layers"]) == (3584, 28)
    assert (letters.sizes["d_model"], letters.sizes["vocab_size"]) == (1472, 1510)
    assert [encoder.most(MODELS["hunyuan-1.5"]) for encoder in (language, letters)] == [1000, 256]
    assert language.template == 108


def test_quantizing_changes_no_setting() -> None:
    for how in QUANTIZATIONS:
        assert plan_of(STORY, model="wan-14b", quantize=how).settings == of_defaults("wan-14b")
