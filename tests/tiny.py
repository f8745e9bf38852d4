"""A tiny model of every family: diffusers' real classes with random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    LTX2VideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    MochiTransformer3DModel,
    WanTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE
from torch import Tensor
from transformers import (
    ByT5Tokenizer,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from storyreel.mini.nets import build_tokenizer
from storyreel.models.base import Adapter, Request, Text
from storyreel.models.hunyuan import HunyuanAdapter, TextTransformer
from storyreel.models.loading import Parts
from storyreel.models.ltx import LaterLTXAdapter, LTXAdapter
from storyreel.models.ltx2 import LTX2Adapter
from storyreel.models.mochi import MochiAdapter
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.specs import COMPONENTS, MODELS, ModelSpec, SoundSpec
from storyreel.models.wan import WanAdapter

CPU = torch.device("cpu")


def velocities(adapter: Adapter, x: Tensor, sigma: float, texts: Sequence[Text]) -> list[Tensor]:
    """Return the answer to one request."""
    (answer,) = adapter.predict([Request(x, sigma, texts)])
    return answer


TEXTS = ["a fox sleeps in the park", "a dog walks"]
TEXT = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "pad_token_id": 0}

TINY = replace(
    MODELS["mini"],
    name="tiny",
    frames_per_latent=6,
    pixels_per_latent=8,
    latent_channels=12,
    fps=12,
    size=(64, 64),
    min_size=(16, 16),
    max_size=(128, 128),
    text_length=16,
    seconds=1.0,
    steps=3,
    weighting=True,
    renoises=False,
    portraits="shots",
    identity_weight=None,
    overlap=2,
)
MOCHI = replace(TINY, even_steps=False)
WAN = replace(
    TINY,
    name="tiny-wan",
    adapter="storyreel.models.wan:WanAdapter",
    frames_per_latent=4,
    latent_channels=16,
    text_length=32,
    decoded_at_once=1,
    first_alike=False,
    negative="a dog sleeps,  there",  # which Wan's pipeline cleans
    shifts=((64 * 64, 5.0),),  # not that of its scheduler
    levels="shifted",
)
TI2V = replace(WAN, name="tiny-wan-ti2v", pixels_per_latent=16, latent_channels=16, pictures=True)
LTX = replace(
    TINY,
    name="tiny-ltx",
    adapter="storyreel.models.ltx:LTXAdapter",
    frames_per_latent=4,
    pixels_per_latent=4,
    latent_channels=8,
    text_length=32,
    decoded_at_once=2,
    negative="a dog sleeps",
)

HUNYUAN = replace(
    TINY,
    name="tiny-hunyuan",
    adapter="storyreel.models.hunyuan:HunyuanAdapter",
    components=(*COMPONENTS, "text_encoder_2", "tokenizer_2"),
    frames_per_latent=4,
    latent_channels=4,
    text_length=64,
    decoded_at_once=1,
    first_alike=False,
    shifts=((64 * 64, 7.0),),  # not that of its scheduler
)


LTX_2 = replace(
    LTX,
    name="tiny-ltx-2",
    adapter="storyreel.models.ltx2:LTX2Adapter",
    levels="distilled",
    steps=8,
    guidance=1.0,
    negative="",
    sound=SoundSpec(channels=2, bands=2),
)


def mochi_transformer() -> MochiTransformer3DModel:
    torch.manual_seed(1)
    model = MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=32,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    torch.nn.init.normal_(model.pos_frequencies, std=0.5)
    return model.eval()


def mochi_vae() -> AutoencoderKLMochi:
    torch.manual_seed(2)
    widths = (32,) * 4
    return AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        layers_per_block=(1, 1, 1, 1, 1),
    ).eval()


def wan_transformer(seed: int = 1) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    ).eval()


def wan_vae() -> AutoencoderKLWan:
    torch.manual_seed(2)
    return AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()


def wan_vae_of_the_small_model() -> AutoencoderKLWan:
    """A codec that makes 2x2 pixels a channel each."""
    torch.manual_seed(2)
    return AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    ).eval()


def ltx_transformer() -> LTXVideoTransformer3DModel:
    torch.manual_seed(1)
    return LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    ).eval()


def ltx_vae(late: bool = False) -> AutoencoderKLLTXVideo:
    """A codec as of 0.9, or as of 0.9.7: told a timestep, and with a way round its upsampling."""
    torch.manual_seed(2)
    return AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 16) if late else (8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1) if late else (1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True) if late else (True, True, False, False),
        decoder_inject_noise=(False,) * (3 if late else 5),
        upsample_residual=(late,) * (2 if late else 4),
        upsample_factor=(2,) * 2 if late else (1,) * 4,
        timestep_conditioning=late,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    ).eval()


def text_encoder(universal: bool, size: int) -> Any:
    torch.manual_seed(3)
    if universal:
        return UMT5EncoderModel(UMT5Config(vocab_size=size, **TEXT)).eval()
    return T5EncoderModel(T5Config(vocab_size=size, **TEXT)).eval()


def mochi(spec: ModelSpec = MOCHI) -> MochiAdapter:
    tokenizer = build_tokenizer(TEXTS)
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    text = text_encoder(False, len(tokenizer))
    return MochiAdapter(spec, CPU, Parts([mochi_transformer()], mochi_vae(), [text], [tokenizer], scheduler))


def wan() -> WanAdapter:
    tokenizer = build_tokenizer(TEXTS)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    text = text_encoder(True, len(tokenizer))
    return WanAdapter(WAN, CPU, Parts([wan_transformer()], wan_vae(), [text], [tokenizer], scheduler))


def wan_of_two_experts() -> WanAdapter:
    one = wan().parts
    experts, options = [wan_transformer(), wan_transformer(7)], {"boundary_ratio": 0.875}
    spec = replace(WAN, guidance=4.0, guidance_2=2.5)
    return WanAdapter(spec, CPU, replace(one, experts=experts, options=options))


def wan_of_a_timestep_a_token() -> WanAdapter:
    parts = replace(wan().parts, vae=wan_vae_of_the_small_model(), options={"expand_timesteps": True})
    return WanAdapter(TI2V, CPU, parts)


def ltx(late: bool = False) -> LTXAdapter:
    tokenizer = build_tokenizer(TEXTS)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    text = text_encoder(False, len(tokenizer))
    return LTXAdapter(LTX, CPU, Parts([ltx_transformer()], ltx_vae(late), [text], [tokenizer], scheduler))


def later_ltx() -> LaterLTXAdapter:
    parts = replace(ltx(late=True).parts, scheduler=FlowMatchEulerDiscreteScheduler())
    spec = replace(LTX, adapter="storyreel.models.ltx:LaterLTXAdapter", guidance_rescale=0.7)
    return LaterLTXAdapter(spec, CPU, parts)


def ltx_2_transformer() -> LTX2VideoTransformer3DModel:
    torch.manual_seed(1)
    return LTX2VideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        vae_scale_factors=(4, 4, 4),
        gated_attn=True,
        cross_attn_mod=True,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        audio_gated_attn=True,
        audio_cross_attn_mod=True,
        num_layers=2,
        caption_channels=32,
        rope_type="split",
        use_prompt_embeddings=False,
        perturbed_attn=True,
        ff_bias=False,
        use_keyframes_abs_pos_embedding=True,
    ).eval()


def ltx_2_vae() -> AutoencoderKLLTX2Video:
    torch.manual_seed(2)
    return AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 8),
        down_block_types=("LTX2VideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 16),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3,
        downsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_residual=(True, False),
        upsample_factor=(1, 2),
        patch_size=1,
        decoder_causal=False,
        decoder_spatial_padding_mode="reflect",
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    ).eval()


def ltx_2_sound() -> dict[str, torch.nn.Module]:
    """A codec of 2 channels in 2 bands, and a vocoder that makes 48,000 samples a second of it."""
    torch.manual_seed(4)
    codec = AutoencoderKLLTX2Audio(base_channels=4, ch_mult=(1, 1, 1), latent_channels=2, mel_bins=8)
    codec.latents_mean.normal_()
    codec.latents_std.uniform_(0.5, 1.5)
    sizes = {"resnet_kernel_sizes": [3], "resnet_dilations": [[1]]}
    vocoder = LTX2VocoderWithBWE(
        in_channels=16,
        hidden_channels=64,
        bwe_in_channels=16,
        bwe_hidden_channels=32,
        num_mel_channels=8,
        **sizes,
        **{f"bwe_{name}": value for name, value in sizes.items()},
    )
    for name, buffer in vocoder.named_buffers():
        if "basis" in name:
            buffer.uniform_(0, 0.1)
    return {"audio_vae": codec.eval(), "vocoder": vocoder.eval()}


def gemma(size: int) -> Gemma4UnifiedForConditionalGeneration:
    torch.manual_seed(3)
    text = {
        "vocab_size": size,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "global_head_dim": 16,
    }
    return Gemma4UnifiedForConditionalGeneration(Gemma4UnifiedConfig(text_config=text)).eval()


def ltx_2() -> LTX2Adapter:
    tokenizer = build_tokenizer(TEXTS)
    text = gemma(len(tokenizer))
    torch.manual_seed(5)
    connectors = LTX2TextConnectors(
        caption_channels=32,
        text_proj_in_factor=3,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=16,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=16,
        video_gated_attn=True,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=16,
        audio_gated_attn=True,
        rope_type="split",
        per_modality_projections=True,
        video_hidden_dim=32,
        audio_hidden_dim=16,
        proj_bias=True,
    ).eval()
    parts = Parts(
        [ltx_2_transformer()],
        ltx_2_vae(),
        [text],
        [tokenizer],
        FlowMatchEulerDiscreteScheduler(),
        connectors=connectors,
        sound=ltx_2_sound(),
    )
    return LTX2Adapter(LTX_2, CPU, parts)


def hunyuan_transformer() -> TextTransformer:
    torch.manual_seed(1)
    model = TextTransformer(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=32,
        text_embed_2_dim=24,
        image_embed_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    model.eval()
    return model


def hunyuan_vae() -> AutoencoderKLHunyuanVideo15:
    torch.manual_seed(2)
    return AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        spatial_compression_ratio=8,
    ).eval()


def hunyuan() -> HunyuanAdapter:
    """With a chat template of as many tokens as the true one has before a prompt."""
    tokenizer, letters = build_tokenizer(TEXTS), ByT5Tokenizer()
    tokenizer.chat_template = "{{ 'a ' * 108 }}{{ messages[-1].content }} there"
    torch.manual_seed(3)
    reader = Qwen2_5_VLTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    )
    glyphs = T5Config(vocab_size=len(letters), **{**TEXT, "d_model": 24})
    encoders = [Qwen2_5_VLTextModel(reader).eval(), T5EncoderModel(glyphs).eval()]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    parts = Parts([hunyuan_transformer()], hunyuan_vae(), encoders, [tokenizer, letters], scheduler)
    return HunyuanAdapter(HUNYUAN, CPU, parts)


FAMILIES: dict[str, Callable[[], PipelineAdapter]] = {
    "mochi": mochi,
    "wan": wan,
    "wan of two experts": wan_of_two_experts,
    "ltx": ltx,
    "later ltx": later_ltx,
    "wan ti2v": wan_of_a_timestep_a_token,
    "ltx 2": ltx_2,
    "hunyuan": hunyuan,
}
