from __future__ import annotations

from random import Random

import pytest
import torch

from storyreel.mini import codec
from storyreel.mini.lessons import sample_example
from storyreel.mini.training.clips import coverage, draw


@pytest.fixture(scope="module")
def clips() -> tuple[torch.Tensor, torch.Tensor]:
    rng = Random(0)
    drawn = [draw(sample_example(rng), 3) for _ in range(40)]
    return torch.stack([v for v, _ in drawn]), torch.stack([o for _, o in drawn])


@pytest.fixture(scope="module")
def stages(clips: tuple[torch.Tensor, torch.Tensor]) -> list[codec.Stage]:
    return codec.fit_stages(*clips, torch.Generator().manual_seed(0))


def test_bases_are_orthonormal_and_only_the_last_drops_anything(stages: list[codec.Stage]) -> None:
    for stage in stages:
        gram = stage.basis.T @ stage.basis
        assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-4)
        assert (stage.variance.diff() <= 1e-5 * stage.variance[0]).all()
    assert [s.basis.shape for s in stages] == [(12, 12), (48, 48), (576, codec.CHANNELS)]


@torch.no_grad()
def test_the_built_encoder_is_the_linear_analysis(
    stages: list[codec.Stage], clips: tuple[torch.Tensor, torch.Tensor]
) -> None:
    vae = codec.build(stages).eval()
    video = clips[0][:2]
    ours = codec.linear_encode(stages, video)
    theirs = vae.encode(video).latent_dist.mode()
    assert ours.shape == (2, codec.CHANNELS, 3, 8, 12)
    assert float((ours - theirs).norm() / ours.norm()) < 2e-3  # the normalisation is nearly linear


def test_the_bases_can_be_read_back(
    stages: list[codec.Stage], clips: tuple[torch.Tensor, torch.Tensor]
) -> None:
    again = codec.stages_of(codec.build(stages))
    assert torch.allclose(codec.latent_scale(again), codec.latent_scale(stages), rtol=1e-5)
    ours, theirs = (codec.linear_encode(found, clips[0][:2]) for found in (again, stages))
    assert torch.allclose(ours, theirs, atol=1e-4)


@torch.no_grad()
def test_the_built_decoder_is_its_inverse(
    stages: list[codec.Stage], clips: tuple[torch.Tensor, torch.Tensor]
) -> None:
    vae = codec.build(stages).eval()
    video = clips[0][:4]
    decoded = vae.decode(codec.linear_encode(stages, video), return_dict=False)[0]
    error = float((decoded - video).square().mean())
    grey = float((video - video.mean()).square().mean())
    assert error < 0.05 * grey  # 48 of 576 coefficients
    # Linear projection by hand, as the reference.
    x = codec._repeat_first(video, 2)
    for stage, t, s in zip(stages[:2], codec.TIME, codec.SPACE, strict=False):
        x = ((codec._to_patches(x, t, s) - stage.mean) @ stage.basis).permute(0, 4, 1, 2, 3)
    last = codec._to_patches(x, 3, 2) - stages[2].mean
    lost = last - last @ stages[2].basis @ stages[2].basis.T
    first_counts_thrice = float(lost[:, 1:].square().sum() + lost[:, :1].square().sum() / 3)
    assert error * video.numel() == pytest.approx(first_counts_thrice, rel=0.15)


def test_coverage_counts_actors_and_the_ball() -> None:
    owners = torch.zeros(4, 16, 16, dtype=torch.uint8)
    owners[1:, :8, :8] = 1
    owners[1:, 8:, 8:] = 255
    cover = coverage(owners)
    assert cover.shape == (2, 2, 2)
    assert cover[0].abs().max() == 0
    assert cover[1].tolist() == [[1, 0], [0, 2]]
