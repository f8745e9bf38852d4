"""Tiny real components for the adapters, and a fake model for the flow of control."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():  # of diffusers' own imports, before pytest counts warnings as failures
    warnings.simplefilter("ignore")
    from diffusers import AutoencoderKLMochi, MochiTransformer3DModel
    from transformers import T5Config, T5EncoderModel

from storyreel.mini.nets import build_tokenizer
from storyreel.models.base import Text
from storyreel.models.mochi import MochiAdapter
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.plan import Overrides, Plan, Segment, make_plan
from storyreel.render import Engine
from storyreel.story import parse_story

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")

TINY = replace(
    MODELS["mini"],
    name="tiny",
    frames_per_latent=6,
    latent_channels=12,
    fps=12,
    size=(64, 64),
    min_size=(16, 16),
    max_size=(128, 128),
    text_length=16,
    seconds=1.0,
    steps=3,
)


def tiny_transformer() -> MochiTransformer3DModel:
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


def tiny_vae() -> AutoencoderKLMochi:
    torch.manual_seed(2)
    widths = (32,) * 4
    return AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        layers_per_block=(1, 1, 1, 1, 1),
    ).eval()


@pytest.fixture
def tiny() -> MochiAdapter:
    """A Mochi of real classes with random weights."""
    tokenizer = build_tokenizer(["a fox sleeps in the park", "a dog walks"])
    torch.manual_seed(3)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0
    )
    text_encoder = T5EncoderModel(config)
    return MochiAdapter(TINY, CPU, tiny_transformer(), tiny_vae(), text_encoder, tokenizer)


class FakeDecoder:
    """Each latent frame becomes its codec's frames of one grey: the mean of the last three.

    So a decoder that was warmed up with the wrong latents shows it.
    """

    MEMORY = 3

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._means: list[Tensor] = []

    def push(self, latents: Tensor) -> Tensor:
        width, height = self._spec.size
        frames = []
        for mean in latents[0].mean((0, 2, 3)):
            count = self._spec.frames_per_latent if self._means else 1
            self._means = [*self._means, mean][-self.MEMORY :]
            grey = ((torch.stack(self._means).mean().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            frames.append(grey.expand(count, height, width, 3))
        return torch.cat(frames)


class FakeAdapter:
    """A model that wants every scene to be of one brightness, which its prompt decides."""

    device = CPU

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.predicted: list[tuple[float, str]] = []
        self.on_predict: Callable[[int], None] = lambda count: None

    def encode(self, prompt: str) -> Text:
        codes = torch.tensor([float(b) for b in prompt.encode()] or [0.0])
        return Text(codes[None, :, None], torch.ones(1, len(codes), dtype=torch.bool))

    def sigmas(self, steps: int) -> list[float]:
        return [1 - step / steps for step in range(steps + 1)]

    def predict(self, x: Tensor, sigma: float, texts: Sequence[Text]) -> list[Tensor]:
        self.on_predict(len(self.predicted))
        words = "".join(chr(int(c)) for c in texts[-1].states.flatten())
        self.predicted.append((sigma, words))
        wanted = [float(text.states.sum() % 101) / 50 - 1 for text in texts]
        return [(x - value) / sigma for value in wanted]

    def decoder(self) -> FakeDecoder:
        return FakeDecoder(self.spec)

    def decoder_memory(self) -> int:
        return FakeDecoder.MEMORY - 1


class FakeEngine(Engine):
    """Hands out the fake model and counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.asked = 0
        self.fake: FakeAdapter | None = None

    def adapter(self, spec: ModelSpec) -> FakeAdapter:
        self.asked += 1
        self.fake = self.fake or FakeAdapter(spec)
        return self.fake


class Silent:
    """A progress that shows nothing and remembers what it was told."""

    def __init__(self) -> None:
        self.forwards = self.promised = 0
        self.finished: list[int] = []

    def started(self, plan: Plan, done: int, forwards: int) -> None:
        self.promised = forwards

    def forward(self) -> None:
        self.forwards += 1

    def segment_finished(self, segment: Segment) -> None:
        self.finished.append(segment.index)


@pytest.fixture
def fake_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """The table has a model ``fake`` with a weight file of its own."""
    weights = tmp_path / "fake-weights"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"weights")
    spec = replace(MODELS["mini"], name="fake", weights=weights, steps=3, seconds=0.5, upscale=1)
    monkeypatch.setitem(MODELS, "fake", spec)
    return spec


def plan_of(text: str, **overrides: object) -> Plan:
    story = parse_story("story.yaml", text.encode())
    return make_plan(story, "story", Overrides(**overrides))  # type: ignore[arg-type]
