"""A new model is one file and one table entry: here both are in this file, and differ in all that can.

It predicts v at the noise levels of DDIM, as CogVideoX does, reads with two text encoders, as HunyuanVideo
1.5 does, and has latents and a VAE of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from storyreel import rendering
from storyreel.benchmark.calculate import META, memory_needed
from storyreel.benchmark.stock import stock_of
from storyreel.denoise.loop import sample, segment_noise
from storyreel.errors import MissingError, UsageError
from storyreel.mini.nets import build_tokenizer
from storyreel.models.attention import masked
from storyreel.models.base import Text, side_by_side, stacked
from storyreel.models.hub import needed
from storyreel.models.inventory import check_inventory
from storyreel.models.loading import TextEncoder, load_adapter
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.specs import COMPONENTS, MODELS, ModelSpec
from storyreel.rendering import Engine, render
from tests.conftest import SAYS, Silent, encode_nothing, plan_of
from tests.tiny import CPU, TEXTS, velocities

STORY = """
render: {model: own}
cast: {fox: {name: a fox}}
scenes:
  - ["{fox} in the park", "{fox} sleeps"]
  - ["{fox} in the park", a dog walks]
"""


class OwnProcessor:
    def __call__(self, attn: Any, video: Tensor, text: Tensor, weights: Tensor) -> Tensor:
        query, *pair = (x.unflatten(2, (2, -1)) for x in attn.to_qkv(video).chunk(3, 2))
        others = (x.unflatten(2, (2, -1)) for x in attn.to_kv(text).chunk(2, 2))
        key, value = (torch.cat(x, 1) for x in zip(pair, others, strict=True))
        count = video.shape[1]
        return masked(query, key, value, weights, count).flatten(2)


class OwnAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_qkv, self.to_kv = nn.Linear(width, 3 * width), nn.Linear(width, 2 * width)
        self.processor: Any = None

    def forward(self, video: Tensor, text: Tensor, weights: Tensor) -> Tensor:
        attended: Tensor = self.processor(self, video, text, weights)
        return attended


class OwnBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn1 = OwnAttention(width)


class OwnTransformer(ModelMixin, ConfigMixin):  # type: ignore[misc]
    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, channels: int = 4, width: int = 16) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(channels, width), nn.Linear(width, channels)
        self.time, self.text, self.text_2 = nn.Linear(1, width), nn.Linear(8, width), nn.Linear(12, width)
        self.layers: Any = nn.ModuleList([OwnBlock(width) for _ in range(2)])

    def forward(self, z: Tensor, time: Tensor, states: Sequence[Tensor], weights: Tensor) -> Tensor:
        text = torch.cat([self.text(states[0]), self.text_2(states[1])], 1)
        video = self.enter(z.flatten(2).transpose(1, 2)) + self.time(time.view(1, 1, 1) / 1000)
        for block in self.layers:
            video = video + block.attn1(video, text, weights)
        predicted: Tensor = self.leave(video).transpose(1, 2).unflatten(2, z.shape[2:])
        return predicted


class OwnVAE(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Of its latents the first is one picture, every other two; a latent is four times four pixels."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, scaling_factor: float = 0.5) -> None:
        super().__init__()
        self.decoder = nn.Conv3d(4, 3 * 16, 1)


class OwnAdapter(PipelineAdapter):
    transformer_class = OwnTransformer
    vae_class = OwnVAE
    reads_with = (
        TextEncoder(
            T5EncoderModel, {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}, {}
        ),
        TextEncoder(
            CLIPTextModel,
            {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
            {"num_hidden_layers": 1},
        ),
    )
    stack = "layers"
    schedulers = (DDIMScheduler,)
    schedule: ClassVar[dict[str, Any]] = {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "clip_sample": False,
    }

    def sigmas(self, steps: int, shape: Sequence[int], shift: float | None = None) -> list[float]:
        self.parts.scheduler.set_timesteps(steps)
        return [*(self._level(int(time)) for time in self.parts.scheduler.timesteps), 0.0]

    def _level(self, time: int) -> float:
        """σ of z / (√ᾱ + √(1-ᾱ)), which is (1 - σ)·x0 + σ·ε, for z = √ᾱ·x0 + √(1-ᾱ)·ε."""
        signal, noise = self._shares(time)
        return noise / (signal + noise)

    def _shares(self, time: int) -> tuple[float, float]:
        alpha = float(self.parts.scheduler.alphas_cumprod[time])
        return alpha**0.5, (1 - alpha) ** 0.5

    def _prepare(self, transformer: Any) -> None:
        for block in transformer.layers:
            block.attn1.processor = OwnProcessor()

    def _velocities(self, transformer: Any, x: Tensor, sigma: float, texts: Sequence[Text]) -> Tensor:
        time = min(range(1000), key=lambda time: abs(self._level(time) - sigma))
        signal, noise = self._shares(time)
        z = ((signal + noise) * x).expand(len(texts), -1, -1, -1, -1)
        (first, one), (second, two) = stacked(texts, 0), stacked(texts, 1)
        v = transformer(
            z, torch.tensor(float(time), device=x.device), [first, second], torch.cat([one, two], 1)
        )
        predicted: Tensor = (signal + noise) * v + (noise - signal) * z
        return predicted

    def _raw(self, latents: Tensor) -> Tensor:
        scaled: Tensor = latents / self.vae.config.scaling_factor
        return scaled

    def _decoded(self, latents: Tensor) -> Iterator[Tensor]:
        for index, frame in enumerate(latents.split(1, 2)):
            pictures = nn.functional.pixel_shuffle(self.vae.decoder(frame)[:, :, 0].tanh(), 4)[:, :, None]
            yield pictures.expand(-1, -1, 2 if index else 1, -1, -1)


OWN = ModelSpec(
    name="own",
    title="a model of somebody's own",
    adapter=f"{__name__}:OwnAdapter",
    components=(*COMPONENTS, "text_encoder_2", "tokenizer_2"),
    licence="none",
    fps=8,
    frames_per_latent=2,
    pixels_per_latent=4,
    latent_channels=4,
    size=(32, 16),
    size_multiple=8,
    min_size=(8, 8),
    max_size=(64, 64),
    seconds=0.5,
    max_latents=8,
    decoded_at_once=1,
    overlap=1,
    text_length=32,
    steps=4,
    guidance=3.0,
    dtype="float32",
    vae_dtype="float32",
)


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """The model in a folder, as diffusers saves a pipeline."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TEXTS)
    made = OwnAdapter.random(OWN, CPU).parts
    for name, part in replace(made, tokenizers=[tokenizer] * 2).by_name().items():
        part.save_pretrained(tmp_path / "weights" / name)
    index = {name: ["a library", "a class"] for name in made.by_name()}
    (tmp_path / "weights" / "model_index.json").write_text(json.dumps(index))
    spec = replace(OWN, weights=tmp_path / "weights")
    monkeypatch.setitem(MODELS, "own", spec)
    return spec


@pytest.fixture
def adapter(spec: ModelSpec) -> OwnAdapter:
    adapter = load_adapter(spec, CPU)
    assert isinstance(adapter, OwnAdapter)
    return adapter


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@torch.no_grad()
def test_the_loop_makes_what_its_own_scheduler_makes(adapter: OwnAdapter) -> None:
    plan = plan_of(STORY, without=frozenset({"all"}))
    segment = plan.segments[1]
    ours = sample(adapter, plan, segment, adapter.encode(segment.prompt))
    scheduler = DDIMScheduler.from_config(adapter.parts.scheduler.config)
    scheduler.set_timesteps(4)
    texts = [adapter.encode(""), adapter.encode(segment.prompt)]
    states, weights = zip(*(stacked(texts, encoder) for encoder in (0, 1)), strict=True)
    z = segment_noise(plan, segment)
    for time in scheduler.timesteps:
        v = adapter.experts[0](z.expand(2, -1, -1, -1, -1), time.float(), states, torch.cat(weights, 1))
        without, with_text = v.split(1)
        z = scheduler.step(without + 3 * (with_text - without), time, z).prev_sample
    assert difference(ours, z) <= 1e-5


@torch.no_grad()
def test_weights_reach_both_text_encoders(adapter: OwnAdapter) -> None:
    x = torch.randn(1, 4, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    scene, action = adapter.encode("a fox in the park"), adapter.encode("a dog sleeps")
    assert [states.shape[2] for states in scene.states] == [8, 12]
    (alone,) = velocities(adapter, x, 0.7, [scene])
    (both,) = velocities(adapter, x, 0.7, [side_by_side((scene, action), (1, 0))])
    assert difference(both, alone) <= 1e-5
    for encoder in (0, 1):
        joined = side_by_side((scene, action), (0.5, 0.5))
        (half,) = velocities(adapter, x, 0.7, [joined])
        joined.weights_by_encoder()[encoder].zero_()
        (other,) = velocities(adapter, x, 0.7, [joined])
        assert difference(other, half) > 1e-4


def test_it_renders(spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_nothing(monkeypatch)
    monkeypatch.setattr(rendering, "keep_still", lambda *_: None)  # of files that are no videos
    plan = plan_of(STORY, method=("weighting=true", "emphasis=4"))
    check_inventory(spec)
    result = render(plan, "film", tmp_path / "out", Engine("cpu"), Silent())
    assert result.rendered == 2
    frames = result.film.read_bytes().partition(SAYS)[0]
    assert len(frames) == plan.frames * 32 * 16 * 3


def test_all_its_components_are_fetched_and_missed(spec: ModelSpec) -> None:
    files = [p.relative_to(spec.weights).as_posix() for p in spec.weights.rglob("*") if p.is_file()]
    assert set(needed(files, None, spec.components)) == set(files)
    (spec.weights / "tokenizer_2").rename(spec.weights / "elsewhere")
    with pytest.raises(MissingError, match="no tokenizer_2"):
        check_inventory(spec)
    with pytest.raises(MissingError, match="no tokenizer_2"):
        load_adapter(spec, CPU)


def test_its_memory_can_be_calculated_and_it_is_compared_with_no_pipeline(adapter: OwnAdapter) -> None:
    thin, true = OwnAdapter.random(OWN, CPU), OwnAdapter.random(OWN, META)
    assert [len(a.text_encoders[1].encoder.layers) for a in (thin, true)] == [1, 2]
    found = memory_needed(true, plan_of(STORY))
    assert found["high"] > found["balanced"] > 0
    with pytest.raises(UsageError, match="no pipeline to compare with"):
        stock_of(adapter)
