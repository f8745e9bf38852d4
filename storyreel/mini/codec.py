"""The codec: a linear autoencoder found by PCA, in diffusers' Mochi classes, with a trained decoder.

The encoder is an exact principal component analysis of patches of 3 frames of 8x8 pixels,
written into `AutoencoderKLMochi` as three nested orthonormal changes of basis. It needs no
training, so that the transformer can be trained at once on latents that will not move. The
decoder starts as the exact inverse and is then trained.

Pictures are (B, 3, T, H, W) in [-1, 1]; T = 3k + 1. Latents are (B, C, k + 1, H/8, W/8): the
first latent frame stands for the first picture alone, repeated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLMochi
from torch import Tensor

CHANNELS = 48
TIME, SPACE = (1, 1, 3), (2, 2, 2)  # expansions, outermost first
FRAMES_PER_LATENT, PIXELS_PER_LATENT = math.prod(TIME), math.prod(SPACE)
WIDTHS = (32, 32, 64, 192)  # of the encoder; each but the last holds its stage's basis whole
CALM = 30.0  # a constant that makes the encoder's last normalisation nearly linear


@dataclass(frozen=True)
class Stage:
    """One orthonormal change of basis: patches of (t, s, s) of C channels to K coefficients."""

    basis: Tensor  # (C·t·s·s, K)
    mean: Tensor  # (C·t·s·s,)
    variance: Tensor  # (K,), falling


def _to_patches(x: Tensor, t: int, s: int) -> Tensor:
    """Cut (B, C, T, H, W) into (B, T/t, H/s, W/s, C·t·s·s)."""
    b, c, frames, h, w = x.shape
    x = x.view(b, c, frames // t, t, h // s, s, w // s, s)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def _repeat_first(x: Tensor, times: int) -> Tensor:
    """Prepend the first frame ``times`` times, as a causal convolution does."""
    return torch.cat([x[:, :, :1].expand(-1, -1, times, -1, -1), x], dim=2)


def fit_stages(video: Tensor, owners: Tensor, generator: torch.Generator) -> list[Stage]:
    """Find the three nested bases on clips (N, 3, T, H, W); pixels of actors count more.

    ``owners`` (N, T, H, W) is 0 on the background. Only the last stage drops anything: it
    keeps the ``CHANNELS`` directions of largest variance.
    """
    x = _repeat_first(video, FRAMES_PER_LATENT - 1)
    stages = []
    for index, (t, s) in enumerate(zip(TIME, SPACE, strict=True)):
        patches = _to_patches(x, t, s)
        flat = patches.flatten(0, 3)
        weight = torch.ones(len(flat))
        if index == len(TIME) - 1:
            mask = _repeat_first((owners > 0).float()[:, None], FRAMES_PER_LATENT - 1)
            weight += 8 * _to_patches(mask, FRAMES_PER_LATENT, PIXELS_PER_LATENT).mean(-1).flatten()
        rows = torch.multinomial(weight, 60_000, replacement=True, generator=generator)
        mean = flat[rows].mean(0)
        centred = (flat[rows] - mean).double()
        variance, basis = torch.linalg.eigh(centred.T @ centred / len(rows))
        keep = CHANNELS if index == len(TIME) - 1 else basis.shape[1]
        basis = basis.flip(1)[:, :keep].float()
        stages.append(Stage(basis, mean, variance.flip(0)[:keep].float().clamp_min(1e-6)))
        x = ((patches - mean) @ basis).permute(0, 4, 1, 2, 3)
    return stages


def coefficients(stages: list[Stage], video: Tensor, depth: int) -> Tensor:
    """Return pictures after the first ``depth`` changes of basis: (B, K, T', H', W')."""
    x = _repeat_first(video, FRAMES_PER_LATENT - 1)
    for stage, t, s in list(zip(stages, TIME, SPACE, strict=True))[:depth]:
        x = ((_to_patches(x, t, s) - stage.mean) @ stage.basis).permute(0, 4, 1, 2, 3)
    return x


def linear_encode(stages: list[Stage], video: Tensor) -> Tensor:
    """Return what the built encoder returns, standardised coefficients, many times faster."""
    sd = stages[-1].variance.sqrt()
    return coefficients(stages, video, len(stages)) / sd[:, None, None, None]


def linear_decode(stages: list[Stage], latents: Tensor) -> Tensor:
    """Return the pictures (B, 3, 3F, H, W) whose `linear_encode` is ``latents``, all frames of each."""
    x = latents * stages[-1].variance.sqrt()[:, None, None, None]
    for stage, t, s in zip(reversed(stages), reversed(TIME), reversed(SPACE), strict=True):
        patches = x.permute(0, 2, 3, 4, 1) @ stage.basis.T + stage.mean
        b, frames, h, w, _ = patches.shape
        patches = patches.view(b, frames, h, w, -1, t, s, s).permute(0, 4, 1, 5, 2, 6, 3, 7)
        x = patches.reshape(b, -1, frames * t, h * s, w * s)
    return x


def preview(stages: list[Stage]) -> dict[str, Tensor]:
    """Return the linear map from a normalised latent to the middle one of its pictures.

    ``weight`` is (3·p·p, C, 1, 1) and ``bias`` (3·p·p,), as a convolution before a pixel shuffle takes
    them; see `MochiAdapter.preview`.
    """
    units = torch.cat([torch.zeros(1, CHANNELS), torch.diag(latent_scale(stages))])
    pictures = linear_decode(stages, units[:, :, None, None, None])[:, :, FRAMES_PER_LATENT // 2].flatten(1)
    return {
        "weight": (pictures[1:] - pictures[0]).T[..., None, None].contiguous(),
        "bias": pictures[0].clone(),
    }


def latent_scale(stages: list[Stage]) -> Tensor:
    """Return ``latents_std`` (C,): the diffusion sees coefficients to the power one half.

    Between raw coefficients (the first would drown the rest) and whitened ones (noise as
    large as the picture) the square root of the standard deviation worked best.
    """
    sd = stages[-1].variance.sqrt()
    power = sd.sqrt()
    return power.square().mean().sqrt() / power


@torch.no_grad()
def stages_of(vae: AutoencoderKLMochi) -> list[Stage]:
    """Read the bases back from a built autoencoder's encoder, which training never changes.

    Of the last stage's mean only the part within the basis is left, the part that encoding uses.
    """
    stages: list[Stage] = []
    channels = 3
    for block, t, s in zip(vae.encoder.down_blocks, TIME, SPACE, strict=True):
        conv, last = block.conv_in.conv, len(stages) == len(TIME) - 1
        rows = channels * t * s * s
        used = [6 * (j // 2) + 2 * (j % 2) for j in range(CHANNELS)] if last else list(range(rows))
        kernel = conv.weight[used, :channels].float().flatten(1)
        sd = 1 / kernel.norm(dim=1) if last else torch.ones(rows)
        basis = (kernel * sd[:, None]).T
        stages.append(Stage(basis, -basis @ (conv.bias[used].float() * sd), sd.square()))
        channels = rows
    return stages


@torch.no_grad()
def build(stages: list[Stage]) -> AutoencoderKLMochi:
    """Return the autoencoder that computes exactly this analysis and its inverse."""
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=WIDTHS,
        decoder_block_out_channels=(32, 64, 128, 128),
        latent_channels=CHANNELS,
        layers_per_block=(1, 2, 1, 0, 0),
        temporal_expansions=TIME,
        spatial_expansions=SPACE,
        add_attention_block=(False,) * 5,
        latents_mean=(0.0,) * CHANNELS,
        latents_std=tuple(latent_scale(stages).tolist()),
    )
    for name, parameter in vae.named_parameters():
        if "conv2.conv" in name:  # residual blocks start as the identity
            parameter.zero_()
    _build_encoder(vae, stages)
    _build_decoder(vae, stages)
    return vae


def _build_encoder(vae: AutoencoderKLMochi, stages: list[Stage]) -> None:
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
        # The end of the encoder is GroupNorm, SiLU, linear. Two coefficients a, b per group as
        # (a, -a, b, -b, K, -K) have mean 0 and, K being large, a variance of nearly K²/3; and
        # silu(a) - silu(-a) = a. So normalisation and SiLU undo each other.
        sd = stage.variance.sqrt()
        encoder.proj_out.weight.zero_()
        for j in range(count):
            first = 6 * (j // 2) + 2 * (j % 2)
            for sign, row in ((1.0, first), (-1.0, first + 1)):
                conv.weight[row, : kernel.shape[1]] = sign * kernel[j] / sd[j]
                conv.bias[row] = sign * offset[j] / sd[j]
                encoder.proj_out.weight[j, row] = sign * math.sqrt((CALM**2 + 2) / 3)
        for group in range(32):
            conv.bias[6 * group + 4], conv.bias[6 * group + 5] = CALM, -CALM


def _build_decoder(vae: AutoencoderKLMochi, stages: list[Stage]) -> None:
    decoder = vae.decoder
    decoder.conv_in.weight[:CHANNELS] = 0.0
    decoder.conv_in.bias.zero_()
    for j, sd in enumerate(stages[-1].variance.sqrt()):
        decoder.conv_in.weight[j, j] = sd
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
