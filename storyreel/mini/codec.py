"""The codec: an autoencoder in diffusers' Mochi classes, begun as a principal component analysis.

The encoder starts as a PCA of patches of 3 frames of 16x16 pixels, written into
`AutoencoderKLMochi` as three nested orthonormal changes of basis, the decoder as its inverse; both
are then trained together (`training.codec`). That start is worth an hour of training.

Pictures are (B, 3, T, H, W) in [-1, 1]; T = 3k + 1. Latents are (B, C, k + 1, H/16, W/16): the
first latent frame stands for the first picture alone, repeated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLMochi
from torch import Tensor, nn

CHANNELS = 32
TIME, SPACE = (1, 1, 3), (4, 2, 2)  # expansions, outermost first
FRAMES_PER_LATENT, PIXELS_PER_LATENT = math.prod(TIME), math.prod(SPACE)
ENCODER_WIDTHS, DECODER_WIDTHS = (4, 32, 64, 96), (8, 64, 96, 96)
LAYERS = (0, 1, 1, 2, 0)  # residual blocks at each size, outermost first
CALM = 10.0  # a constant that makes the encoder's last normalisation nearly linear


@dataclass(frozen=True)
class BasisChange:
    """One orthonormal change of basis: patches of (t, s, s) of C channels to K coefficients."""

    basis: Tensor  # (C·t·s·s, K)
    mean: Tensor  # (C·t·s·s,)
    variance: Tensor  # (K,), falling


def _to_patches(x: Tensor, t: int, s: int) -> Tensor:
    """Cut (B, C, T, H, W) into (B, T/t, H/s, W/s, C·t·s·s)."""
    b, c, frames, h, w = x.shape
    x = x.view(b, c, frames // t, t, h // s, s, w // s, s)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def _repeat_first(x: Tensor) -> Tensor:
    """Repeat the first frame until it fills a latent frame, as a causal convolution does."""
    return torch.cat([x[:, :, :1].expand(-1, -1, FRAMES_PER_LATENT - 1, -1, -1), x], dim=2)


def fit_stages(video: Tensor, actors: Tensor, generator: torch.Generator) -> list[BasisChange]:
    """Find the three nested bases on clips (N, 3, T, H, W); pixels of ``actors`` (N, T, H, W) count more."""
    x = _repeat_first(video)
    inside = _repeat_first(actors.float()[:, None])
    stages = []
    for t, s, keep in zip(TIME, SPACE, (*ENCODER_WIDTHS[1:-1], CHANNELS), strict=True):
        patches = _to_patches(x, t, s)
        flat = patches.flatten(0, 3)
        weight = torch.ones(len(flat))
        if keep == CHANNELS and s is SPACE[-1]:
            weight += 8 * _to_patches(inside, FRAMES_PER_LATENT, PIXELS_PER_LATENT).mean(-1).flatten()
        rows = torch.multinomial(weight, min(60_000, len(flat)), replacement=True, generator=generator)
        mean = flat[rows].mean(0)
        centred = (flat[rows] - mean).double()
        variance, basis = torch.linalg.eigh(centred.T @ centred / len(rows))
        basis = basis.flip(1)[:, :keep].float()
        stages.append(BasisChange(basis, mean, variance.flip(0)[:keep].float().clamp_min(1e-6)))
        x = ((patches - mean) @ basis).permute(0, 4, 1, 2, 3)
    return stages


def linear_encode(stages: Sequence[BasisChange], video: Tensor) -> Tensor:
    """Return the coefficients (B, C, L, H', W') of a video's patches.

    The built, untrained encoder finds those of the video moved by a pixel: diffusers pads a kernel of
    four pixels by one on every side. Training mends that.
    """
    x = _repeat_first(video)
    for stage, t, s in zip(stages, TIME, SPACE, strict=True):
        x = ((_to_patches(x, t, s) - stage.mean) @ stage.basis).permute(0, 4, 1, 2, 3)
    return x / latent_scale(stages)[:, None, None, None]


def latent_scale(stages: Sequence[BasisChange]) -> Tensor:
    """Return what the last coefficients (C,) are divided by.

    Between raw coefficients (the first would drown the rest) and whitened ones (noise as large as
    the picture) the square root of the standard deviation worked best.
    """
    sd = stages[-1].variance.sqrt()
    return sd.sqrt() * sd.sqrt().square().mean().sqrt()


@torch.no_grad()
def build(stages: Sequence[BasisChange]) -> AutoencoderKLMochi:
    """Return the autoencoder whose decoder is the inverse of this analysis, and its encoder nearly this."""
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=ENCODER_WIDTHS,
        decoder_block_out_channels=DECODER_WIDTHS,
        latent_channels=CHANNELS,
        layers_per_block=LAYERS,
        temporal_expansions=TIME,
        spatial_expansions=SPACE,
        add_attention_block=(False,) * 5,
        latents_mean=(0.0,) * CHANNELS,
        latents_std=(1.0,) * CHANNELS,
    )
    for name, parameter in vae.named_parameters():
        if "conv2.conv" in name:  # residual blocks start as the identity
            parameter.zero_()
    _build_encoder(vae, stages)
    _build_decoder(vae, stages)
    return vae


def _build_encoder(vae: AutoencoderKLMochi, stages: Sequence[BasisChange]) -> None:
    encoder = vae.encoder
    encoder.proj_in.weight.zero_()
    encoder.proj_in.bias.zero_()
    encoder.proj_in.weight[:3, :3] = torch.eye(3)  # the Fourier features stay mute
    for stage, block, t, s in zip(stages, encoder.down_blocks, TIME, SPACE, strict=True):
        conv = block.conv_in.conv
        conv.weight.zero_()
        conv.bias.zero_()
        count = len(stage.variance)
        kernel = stage.basis.T.view(count, -1, t, s, s)
        offset = -(stage.basis.T @ stage.mean)
        if stage is not stages[-1]:
            conv.weight[:count, : kernel.shape[1]] = kernel
            conv.bias[:count] = offset
            continue
        # The end of the encoder is GroupNorm (32 groups of 3), SiLU, linear. A coefficient a as the
        # group (a, -a, K), K being large, has mean K/3 and a variance of nearly 2K²/9; the
        # normalisation's bias takes the mean away; and silu(a) - silu(-a) = a. So it is linear.
        sd, scale = stage.variance.sqrt(), latent_scale(stages)
        encoder.proj_out.weight.zero_()
        for j in range(count):
            for sign, row in ((1.0, 3 * j), (-1.0, 3 * j + 1)):
                conv.weight[row, : kernel.shape[1]] = sign * kernel[j] / sd[j]
                conv.bias[row] = sign * offset[j] / sd[j]
                encoder.proj_out.weight[j, row] = sign * CALM * math.sqrt(2) / 3 * sd[j] / scale[j]
        norm = encoder.norm_out.norm_layer
        conv.bias[2::3] = CALM
        norm.bias[0::3] = norm.bias[1::3] = 1 / math.sqrt(2)
        norm.bias[2::3] = -20.0  # the constant itself is mute


def _build_decoder(vae: AutoencoderKLMochi, stages: Sequence[BasisChange]) -> None:
    decoder = vae.decoder
    decoder.conv_in.weight[:CHANNELS] = 0.0
    decoder.conv_in.bias.zero_()
    for j, scale in enumerate(latent_scale(stages)):
        decoder.conv_in.weight[j, j] = scale
    for stage, block in zip(reversed(stages), decoder.up_blocks, strict=True):
        proj = block.proj
        rows, count = stage.basis.shape
        proj.weight[:, :count] *= 0.1  # free channels carry a little of everything
        proj.weight *= 0.5
        proj.bias.zero_()
        proj.weight[:rows] = 0.0
        proj.weight[:rows, :count] = stage.basis
        proj.bias[:rows] = stage.mean
        if stage is stages[0]:  # the last layers are SiLU and linear: silu(x) - silu(-x) = x
            proj.weight[rows : 2 * rows] = -proj.weight[:rows]
            proj.bias[rows : 2 * rows] = -stage.mean
    out = decoder.proj_out
    out.weight *= 0.05
    out.bias.zero_()
    out.weight[:, :6] = 0.0
    for c in range(3):
        out.weight[c, c], out.weight[c, c + 3] = 1.0, -1.0


def raw_latents(vae: AutoencoderKLMochi, video: Tensor) -> Tensor:
    """Return the encoder's latents (B, C, L, H', W'), as the decoder takes them."""
    latents: Tensor = vae.encoder(video)[0][:, :CHANNELS]
    return latents


def pictures_of(vae: AutoencoderKLMochi, raw: Tensor) -> Tensor:
    """Return the pictures (B, 3, 3(L-1) + 1, H, W) of the encoder's latents."""
    pictures: Tensor = vae.decoder(raw)[0][:, :, FRAMES_PER_LATENT - 1 :]
    return pictures


def normalised(vae: AutoencoderKLMochi, raw: Tensor) -> Tensor:
    """Return the latents that the transformer sees, of mean 0 and, over all channels, variance 1."""
    mean, std = (
        torch.tensor(vae.config[f"latents_{name}"], device=raw.device)[:, None, None, None]
        for name in ("mean", "std")
    )
    return (raw - mean) / std


@torch.no_grad()
def calibrate(vae: AutoencoderKLMochi, video: Tensor) -> None:
    """Note in the autoencoder's configuration how its latents are normalised, by clips (N, 3, T, H, W).

    One standard deviation for all channels: what a channel's size says of its importance, the training
    has found by making all of them stand the same noise.
    """
    raw = torch.cat([raw_latents(vae, part) for part in video.split(4)])
    mean = raw.mean((0, 2, 3, 4))
    std = float((raw - mean[:, None, None, None]).square().mean().sqrt())
    vae.register_to_config(latents_mean=tuple(mean.tolist()), latents_std=(std,) * CHANNELS)


@torch.no_grad()
def fit_preview(vae: AutoencoderKLMochi, video: Tensor) -> dict[str, Tensor]:
    """Return the linear map from a normalised latent to the middle one of its pictures, by least squares.

    ``weight`` is (3·p·p, C, 1, 1) and ``bias`` (3·p·p,), as a convolution before a pixel shuffle takes
    them; see `MochiAdapter.preview`.
    """
    latents = normalised(vae, torch.cat([raw_latents(vae, part) for part in video.split(4)]))
    middle = _repeat_first(video)[:, :, FRAMES_PER_LATENT // 2 :: FRAMES_PER_LATENT]
    shuffled = nn.functional.pixel_unshuffle(middle.transpose(1, 2).flatten(0, 1), PIXELS_PER_LATENT)
    targets = shuffled.permute(0, 2, 3, 1).flatten(0, 2)
    inputs = latents.permute(0, 2, 3, 4, 1).flatten(0, 3)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    solved = torch.linalg.lstsq(inputs.double(), targets.double()).solution.float()
    return {"weight": solved[:-1].T[..., None, None].contiguous(), "bias": solved[-1].clone()}
