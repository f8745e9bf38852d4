"""The codec begins as a principal component analysis, whose figures and preview are exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLMochi

from storyreel.mini import codec
from storyreel.mini.nets import build_tokenizer
from storyreel.mini.training.clips import drawn_videos
from storyreel.models.loading import Parts
from storyreel.models.mochi import MochiAdapter
from tests.tiny import CPU, TEXTS, TINY, mochi_transformer, text_encoder

Clips = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def clips() -> Clips:
    """Pictures of 96x64 with the actors in them, cut out of a few lessons', and where those are."""
    video, actors = drawn_videos(0, 20, 3)
    window = (..., slice(56, 120), slice(48, 144))
    return video[window].contiguous(), actors[window].contiguous()


@pytest.fixture(scope="module")
def stages(clips: Clips) -> list[codec.BasisChange]:
    return codec.fit_stages(*clips, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vae(stages: list[codec.BasisChange], clips: Clips) -> AutoencoderKLMochi:
    torch.manual_seed(0)
    built = codec.build(stages).eval()
    codec.calibrate(built, clips[0][:12])
    return built


def share_lost(ours: torch.Tensor, true: torch.Tensor) -> float:
    """Return which share of the pictures' variance is not there."""
    return float((ours - true).square().mean() / (true - true.mean()).square().mean())


def test_bases_are_orthonormal_and_sorted(stages: list[codec.BasisChange]) -> None:
    for stage in stages:
        gram = stage.basis.T @ stage.basis
        assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-4)
        assert (stage.variance.diff() <= 1e-5 * stage.variance[0]).all()
    assert [s.basis.shape for s in stages] == [(48, 32), (128, 64), (768, codec.CHANNELS)]


@torch.no_grad()
def test_the_built_encoder_is_the_linear_analysis(
    stages: list[codec.BasisChange], vae: AutoencoderKLMochi, clips: Clips
) -> None:
    """Of the picture moved by a pixel: diffusers pads a kernel of four by one on every side."""
    video = clips[0][:2]
    ours = codec.linear_encode(stages, video)
    theirs = codec.raw_latents(vae, video.roll((-1, -1), (3, 4)))
    assert ours.shape == theirs.shape == (2, codec.CHANNELS, 3, 4, 6)
    inner = (..., slice(1, None), slice(1, None))
    error = (ours[inner] - theirs[inner]).norm() / ours[inner].norm()
    assert float(error) < 2e-2  # the normalisation is nearly linear


@torch.no_grad()
def test_the_built_decoder_is_its_inverse(
    stages: list[codec.BasisChange], vae: AutoencoderKLMochi, clips: Clips
) -> None:
    video = clips[0][:2]
    decoded = codec.pictures_of(vae, codec.linear_encode(stages, video))
    assert decoded.shape == video.shape
    # The same by hand: back through the transposed bases.
    x = codec._repeat_first(video)
    for stage, t, s in zip(stages, codec.TIME, codec.SPACE, strict=True):
        x = ((codec._to_patches(x, t, s) - stage.mean) @ stage.basis).permute(0, 4, 1, 2, 3)
    for stage, t, s in zip(reversed(stages), reversed(codec.TIME), reversed(codec.SPACE), strict=True):
        flat = x.permute(0, 2, 3, 4, 1) @ stage.basis.T + stage.mean
        cut = flat.unflatten(4, (-1, t, s, s)).permute(0, 4, 1, 5, 2, 6, 3, 7)
        x = cut.flatten(6, 7).flatten(4, 5).flatten(2, 3)
    expected = x[:, :, codec.FRAMES_PER_LATENT - 1 :]
    assert share_lost(decoded, expected) < 1e-3
    assert share_lost(decoded, video) < 0.15  # 32 of 2,304 coefficients


@torch.no_grad()
def test_calibration_makes_latents_of_unit_variance(vae: AutoencoderKLMochi, clips: Clips) -> None:
    raw = codec.raw_latents(vae, clips[0][:12])
    z = codec.normalised(vae, raw)
    assert z.mean((0, 2, 3, 4)).abs().max() < 1e-4
    assert float(z.square().mean()) == pytest.approx(1, abs=1e-3)
    spread = vae.config["latents_std"]
    assert len(spread) == codec.CHANNELS
    assert len(set(spread)) == 1  # one for all channels
    assert raw.std() != pytest.approx(1, abs=0.05)  # or there was nothing to do


@torch.no_grad()
def test_the_preview_is_the_best_linear_map_to_a_latents_middle_picture(
    vae: AutoencoderKLMochi, clips: Clips
) -> None:
    tokenizer = build_tokenizer(TEXTS)
    parts = Parts([mochi_transformer()], vae, [text_encoder(False, len(tokenizer))], [tokenizer])
    spec = replace(
        TINY, frames_per_latent=3, pixels_per_latent=codec.PIXELS_PER_LATENT, latent_channels=codec.CHANNELS
    )
    video = clips[0][:12]
    images = ((video + 1) * 127.5).round().to(torch.uint8)

    def error(preview: dict[str, torch.Tensor]) -> float:
        """Which share of the middle pictures an adapter with this preview does not show."""
        adapter = MochiAdapter(spec, CPU, replace(parts, preview=preview))
        lost = []
        for pictures, true in zip(images[:4], video[:4], strict=True):
            z = adapter.encode_pictures(pictures.permute(1, 2, 3, 0))
            seen = adapter.preview(z)
            assert seen is not None
            assert seen.shape == (3, 3, 64, 96)
            middle = true[:, [0, 2, 5]].transpose(0, 1)  # the first latent is the first picture's alone
            lost.append(share_lost(seen, middle))
        return sum(lost) / len(lost)

    found = codec.fit_preview(vae, video)
    best = error(found)
    assert best < 0.15
    generator = torch.Generator().manual_seed(0)
    scale = 0.05 * found["weight"].abs().mean()
    other = found["weight"] + scale * torch.randn(found["weight"].shape, generator=generator)
    assert error(found | {"weight": other}) > best
    assert error(found | {"bias": torch.zeros_like(found["bias"])}) > best
