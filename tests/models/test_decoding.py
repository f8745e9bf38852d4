"""Clips come out of every codec in small pieces, and what is alive meanwhile does not grow with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor, nn

from storyreel.benchmark.calculate import META, GpuAttention
from storyreel.benchmark.meter import Meter
from storyreel.models import wan_decoder
from storyreel.models.loading import adapter_class
from storyreel.models.ltx_decoder import ltx_decoder
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.specs import LATER_LTX_VAE, MODELS
from storyreel.models.streaming import channels_last, folded, stream
from tests.tiny import CPU, FAMILIES


@pytest.fixture(params=FAMILIES)
def adapter(request: pytest.FixtureRequest) -> PipelineAdapter:
    return FAMILIES[request.param]()


def noise(*shape: int, device: torch.device = CPU) -> Tensor:
    if device == META:
        return torch.empty(shape, device=META)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def decoded(vae: nn.Module, pieces: Callable[[], Iterator[Tensor]]) -> tuple[list[int], int]:
    """Return the pictures of every piece, and the most bytes alive at once while they come and go."""
    counts = []
    with Meter([*vae.parameters(), *vae.buffers()]) as meter, GpuAttention():
        for piece in pieces():
            counts.append(piece.shape[2])
            del piece
    return counts, meter.peak


def of_clip(adapter: PipelineAdapter, *shape: int) -> tuple[list[int], int]:
    adapter.vae.to(META)
    raw = adapter.raw(noise(1, adapter.spec.latent_channels, *shape, device=META))
    return decoded(adapter.vae, lambda: adapter._decoded(raw))


# Of LTX's, all layers are at work only when each of them holds its frame back.
@pytest.mark.parametrize(
    ("family", "long"), [("mochi", 4), ("wan", 2), ("ltx", 12), ("later ltx", 12), ("wan ti2v", 2)]
)
def test_pieces_are_small_and_a_longer_clip_takes_no_more_memory(family: str, long: int) -> None:
    adapter = FAMILIES[family]()
    adapter.spec = replace(adapter.spec, decoded_at_once=1)
    peaks = []
    for latents in (long, 2 * long):
        counts, peak = of_clip(adapter, latents, 4, 4)
        assert max(counts) <= adapter.spec.frames_per_latent
        assert sum(counts) == adapter.spec.frames_per_latent * (latents - 1) + 1
        peaks.append(peak)
    sample = noise(1, adapter.spec.latent_channels, long, 4, 4)
    assert peaks[1] <= peaks[0] + 3 * sample.nbytes  # what is as long as the clip is latents alone


NARROW = {"latent_channels": 4, "patch_size": 1}
LTX_CODECS = {
    "0.9": {"block_out_channels": (4,) * 4, "decoder_block_out_channels": (4,) * 4},
    "0.9.7": LATER_LTX_VAE | {"block_out_channels": (8,) * 5, "decoder_block_out_channels": (8, 16, 32)},
}


@torch.no_grad()
@pytest.mark.parametrize("codec", LTX_CODECS)
def test_ltx_with_all_its_layers_neither_waits_nor_ends_with_all(codec: str) -> None:
    """Each of its layers holds a frame back, some 22 latent frames in all: they come out one by one."""
    vae = AutoencoderKLLTXVideo(**LTX_CODECS[codec] | NARROW)
    time = torch.tensor([0.05]) if vae.config.timestep_conditioning else None
    for latents in (13, 32):
        raw = noise(1, 4, latents, 1, 1)
        pieces = [piece.shape[2] for piece in stream(ltx_decoder(vae.decoder, time, raw), raw, 1)]
        assert max(pieces) == 8
        assert sum(pieces) == 8 * (latents - 1) + 1


def later_wan() -> AutoencoderKLWan:
    """As of TI2V-5B, whose decoder makes 2x2 pixels a channel each, and goes round its upsampling."""
    return AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        num_res_blocks=1,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )


@torch.no_grad()
@pytest.mark.parametrize("cells", [1, 40, 90, 10**6])
@pytest.mark.parametrize("codec", [later_wan, lambda: AutoencoderKLWan(base_dim=4, num_res_blocks=1)])
def test_wan_in_strips_is_wan(codec: Callable[[], AutoencoderKLWan], cells: int) -> None:
    """Strips of 2 rows, of odd numbers of them, and of all."""
    torch.manual_seed(2)
    vae = codec().eval()
    z = noise(1, 16, 4, 5, 3)
    once = vae.decode(z, return_dict=False)[0]
    pictures = torch.cat(list(wan_decoder.stream(vae.decoder, vae.post_quant_conv(z), cells)), 2)
    if vae.config.patch_size:
        pictures = unpatchify(pictures, 2)
    assert pictures.shape == once.shape
    assert float((pictures.clamp(-1, 1) - once).abs().max() / once.abs().max()) <= 1e-5


@torch.no_grad()
def test_channels_last_changes_no_picture(adapter: PipelineAdapter) -> None:
    """As codecs lie on a GPU. Whether it is faster there, only a GPU can tell."""
    raw = adapter.raw(noise(1, adapter.spec.latent_channels, 4, 4, 4))
    usual = torch.cat(list(adapter._decoded(raw)), 2)
    channels_last(adapter.vae)
    pieces = list(adapter._decoded(raw.contiguous(memory_format=torch.channels_last_3d)))
    assert float((torch.cat(pieces, 2) - usual).abs().max() / usual.abs().max()) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("size", "padding"), [((3, 3, 3), (0, 1, 1)), ((3, 3, 3), 0), ((1, 1, 1), 0)])
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_a_convolution_in_two_dimensions_is_that_in_three(
    size: tuple[int, int, int], padding: tuple[int, int, int] | int, dtype: torch.dtype, bar: float
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(5, 7, size, padding=padding).to(dtype)
    for form in (torch.contiguous_format, torch.channels_last_3d):
        x = noise(1, 5, 6, 4, 3).to(dtype).contiguous(memory_format=form)
        expected, found = layer(x), folded(layer, x)
        assert found.shape == expected.shape
        assert float((found - expected).abs().max() / expected.abs().max()) <= bar


BARS = [("ltx-2b", 2.5, (33, 22, 40)), ("ltx-13b", 2.5, (33, 22, 40)), ("mochi", 7.0, (4, 60, 106))]
BARS += [("wan-14b", 9.0, (2, 90, 160)), ("wan-2.2-5b", 7.5, (2, 44, 80))]
BARS += [("hunyuan-1.5", 4.3, (31, 30, 53))]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "gigabytes", "shape"), BARS)
def test_the_largest_codecs_fit(name: str, gigabytes: float, shape: tuple[int, int, int]) -> None:
    """At 1280x704 x 10.7 s, 848x480 and 1280x720, of any length but the last: calculated without data."""
    spec = MODELS[name]
    _, peak = of_clip(adapter_class(spec).random(spec, META), *shape)
    assert peak <= gigabytes * 1e9
