"""A fake model for the flow of control; the real ones, at toy size, are in tiny.py."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import signal
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

with warnings.catch_warnings():  # of diffusers' own imports, before pytest counts warnings as failures
    warnings.simplefilter("ignore")
    from tests.tiny import CPU, FAMILIES, TINY, mochi

from storyreel.benchmark import run as bench
from storyreel.errors import StoryreelError
from storyreel.film import ffmpeg as film_ffmpeg
from storyreel.film import keys, provenance, reader, writer
from storyreel.film.recipe import Recipe, recipe_of
from storyreel.models.base import MemoryMode, Request, Text
from storyreel.models.loading import TextEncoder
from storyreel.models.lora import Lora
from storyreel.models.mochi import MochiAdapter
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.rendering import Engine
from storyreel.stopping import SIGNALS
from storyreel.story.plan import Plan, Segment
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import parse_story

ROOT = Path(__file__).parent.parent
FAKE_SIZE = (96, 64)

# No test fails because a machine is slow.
settings.register_profile("storyreel", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("storyreel")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that no process is alone with it in the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here; a sync is still asked for at its place, and may fail there."""
    monkeypatch.setattr(os, "fsync", os.fstat)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that would reach farther than this machine fails, also where a library swallows the error."""
    asked: list[object] = []
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def near(host: object) -> None:
        if host not in (None, "", "localhost", "127.0.0.1", "::1", socket.gethostname()):
            asked.append(host)
            raise OSError(errno.ENETUNREACH, "tests reach no network")

    def connected(self: socket.socket, address: Any) -> None:
        near(address[0] if isinstance(address, tuple) else None)
        connect(self, address)

    def resolved(host: Any, *rest: Any, **named: Any) -> Any:
        near(host.decode() if isinstance(host, bytes) else host)
        return resolve(host, *rest, **named)

    monkeypatch.setattr(socket.socket, "connect", connected)
    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    yield
    assert not asked


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """A stopped command no longer minds signals: its process is on its way out. Ours is not."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def fresh_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pretrained model scores films, as without storyreel[eval]: they take most of an `eval`."""
    monkeypatch.setattr("storyreel.evaluation.encoders.Encoders.folder", lambda self, name: None)


@pytest.fixture
def tiny() -> MochiAdapter:
    """A Mochi of real classes with random weights."""
    return mochi(TINY)


@pytest.fixture(params=["mochi", "wan", "wan of two experts", "ltx", "wan ti2v"])
def spec_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny model that can be built anew with random weights, as the true ones can."""
    adapter = FAMILIES[request.param]()
    config = {
        key: value
        for key, value in adapter.experts[0].config.items()
        if not key.startswith("_") and key != "torch_dtype"
    }
    (encoder,) = adapter.text_encoders
    (usual,) = adapter.reads_with
    spec = replace(
        adapter.spec,
        hub="someone/tiny",
        size=(32, 32),
        dtype="float32",
        vae_dtype="float32",
        architecture=config,
        vae_architecture={k: v for k, v in adapter.vae.config.items() if not k.startswith("_")},
        boundary_ratio=adapter.parts.options.get("boundary_ratio"),
        text_length=128,
    )
    monkeypatch.setitem(MODELS, spec.name, spec)
    names = ("d_model", "vocab_size", "d_kv", "d_ff", "num_layers", "num_heads")
    sizes = {name: getattr(encoder.config, name) for name in names}
    monkeypatch.setattr(type(adapter), "reads_with", (TextEncoder(usual.kind, sizes, usual.thin),))
    monkeypatch.setitem(bench.MATRIX, "cpu", 64)
    return spec.name


class FakeDecoder:
    """Each latent frame becomes its codec's frames of one grey: the mean of the last three.

    So a decoder that was pushed the wrong latents before shows it.
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
    """A model that wants every scene to be of one brightness, which its prompt decides.

    The more its words count, the nearer to grey. Half of what a scene wants is what its first frames show. So
    with other weights, or another lead, a scene looks otherwise.
    """

    device = CPU
    at_once = 1
    memory: MemoryMode = "high"
    compiled = was_compiled = False
    told: Callable[[str], None]

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.predicted: list[tuple[float, str]] = []
        self.on_predict: Callable[[int], None] = lambda count: None
        self.modes: list[MemoryMode] = ["balanced", "low"]
        self.loras: tuple[Lora, ...] = ()
        self.merged: list[tuple[Lora, ...]] = []
        self.chosen_for: tuple[tuple[int, int], int] | None = None

    def compile(self, said: Callable[[str], None] = lambda words: None) -> None:
        self.compiled, self.was_compiled, self.told = True, True, said

    def attend_by(self, backend: str) -> None:
        """Have no attention."""

    def merge_loras(self, loras: Sequence[Lora]) -> None:
        if tuple(loras) != self.loras:
            self.loras = tuple(loras)
            self.merged.append(self.loras)

    def prepare(self, prompts: Iterable[str]) -> None:
        for prompt in prompts:
            self.encode(prompt)

    def choose_memory_mode(self, size: tuple[int, int], latents: int) -> MemoryMode:
        self.chosen_for = (size, latents)
        return self.memory

    def lower_memory_mode(self) -> MemoryMode | None:
        if not self.modes:
            return None
        self.memory = self.modes.pop(0)
        return self.memory

    def encode(self, prompt: str) -> Text:
        codes = torch.tensor([float(b) for b in prompt.encode()] or [0.0])
        return Text((codes[None, :, None],), torch.ones(1, len(codes)))

    def tokens_in(self, prompt: str, spans: Sequence[tuple[int, int]]) -> Tensor:
        inside = torch.zeros(max(1, len(prompt.encode())), dtype=torch.bool)
        for begin, end in spans:
            inside[len(prompt[:begin].encode()) : len(prompt[:end].encode())] = True
        return inside

    def sigmas(self, steps: int, shape: Sequence[int] = (), shift: float | None = None) -> list[float]:
        return [1 - step / steps for step in range(steps + 1)]

    def expert_at(self, sigma: float) -> int:
        return 0

    def decode_sound(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def predict(self, requests: Sequence[Request]) -> Iterator[list[Tensor]]:
        return map(self.answer, requests)

    def answer(self, request: Request) -> list[Tensor]:
        x, sigma, texts, *_ = request
        self.on_predict(len(self.predicted))
        words = "".join(chr(int(c)) for c in texts[-1].states[0].flatten())
        self.predicted.append((sigma, words))
        each = x.expand(len(texts), -1, -1, -1, -1).split(1)
        return [(x - self._wanted(text, x)) / sigma for x, text in zip(each, texts, strict=True)]

    def _wanted(self, text: Text, x: Tensor) -> Tensor:
        value = (float(text.states[0].sum() % 101) / 50 - 1) * 2 / (1 + float(text.weights.mean()))
        value += sum(lora.weight for lora in self.loras) / 10
        return (value + x[:, :, :2].mean().clamp(-1, 1)) / 2

    def decode(self, latents: Tensor) -> Tensor:
        return FakeDecoder(self.spec).push(latents)

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Return latents of the pictures' brightness, of which each frame has as many as the codec takes."""
        count = self.spec.frames_per_latent
        each = [pictures[max(0, end - count) : end] for end in range(1, len(pictures) + 1, count)]
        rows, columns = (side // self.spec.pixels_per_latent for side in pictures.shape[1:3])
        means = torch.stack([part.float().mean() / 127.5 - 1 for part in each])
        return means.view(1, 1, -1, 1, 1).expand(1, self.spec.latent_channels, -1, rows, columns).clone()

    def preview(self, latents: Tensor) -> Tensor | None:
        width, height = self.spec.size
        greys = latents[0].mean((0, 2, 3)).clamp(-1, 1)
        return greys.view(-1, 1, 1, 1).expand(-1, 3, height, width)


class FakeScorer:
    """Finds its favourite text in bright pictures, and any other in dark ones."""

    def __init__(self, favourite: str) -> None:
        self._favourite = favourite
        self.seen: list[float] = []  # the pictures' brightness
        self.longest = 64

    def cut(self, prompts: Sequence[str]) -> int:
        return sum(len(prompt.split()) > self.longest for prompt in prompts)

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([[1.0, 0.0] if prompt == self._favourite else [0.0, 1.0] for prompt in prompts])

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        brightness = pictures.mean((1, 2, 3))
        self.seen += brightness.tolist()
        angles = (1 - brightness) * (math.pi / 4)
        return torch.stack([angles.cos(), angles.sin()], 1)


class FakeEngine(Engine):
    """Hands out the fake model, and a scorer if it has one; counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.asked = 0
        self.fake: FakeAdapter | None = None
        self.fake_scorer: FakeScorer | None = None

    def adapter(self, spec: ModelSpec, said: Callable[[str], None] = lambda words: None) -> FakeAdapter:
        self.asked += 1
        self.fake = self.fake or FakeAdapter(spec)
        self._said = said
        if self._compiles(spec, self.fake) and not self.fake.was_compiled:
            self.fake.compile(lambda words: self._said(words))
        return self.fake

    def scorer(self, spec: ModelSpec) -> FakeScorer | None:
        return self.fake_scorer


class Silent:
    """A progress that shows nothing and remembers what it was told."""

    def __init__(self) -> None:
        self.forwards = self.promised = 0
        self.finished: list[int] = []
        self.heard: list[str] = []

    def started(self, plan: Plan, scenes: int, done: int, forwards: int) -> None:
        self.promised = forwards

    def forward(self) -> None:
        self.forwards += 1

    def segment_finished(self, segment: Segment) -> None:
        self.finished.append(segment.index)

    def said(self, text: str) -> None:
        self.heard.append(text)


@pytest.fixture
def ffmpeg() -> None:
    """Have the fake model's films be encoded all the same; see `fake_model`."""


@pytest.fixture
def fake_model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """The table has a model ``fake`` with a weight file of its own.

    Starts of ffmpeg would take most of such a render. So films are their frames, but for tests that ask
    for `ffmpeg` too.
    """
    if "ffmpeg" not in request.fixturenames:
        encode_nothing(monkeypatch)
    weights = tmp_path / "fake-weights"
    (weights / "vae").mkdir(parents=True)
    (weights / "vae" / "model.safetensors").write_bytes(b"weights")
    spec = replace(MODELS["mini"], name="fake", weights=weights, steps=3, seconds=0.5, upscale=1)
    # Small pictures, whatever mini draws; and nobody knows what a fake can draw.
    spec = replace(spec, size=FAKE_SIZE, min_size=FAKE_SIZE, max_size=FAKE_SIZE, pixels_per_latent=8)
    spec = replace(spec, size_multiple=16, latent_channels=48, vocabulary=None, gallery=None)
    spec = replace(spec, guidance=3.0, portraits="shots", identity_weight=None, renoises=False, overlap=2)
    monkeypatch.setitem(MODELS, "fake", spec)
    monkeypatch.setattr(keys, "recipe_of", known_recipe)
    return spec


@cache
def known_recipe(adapter: str) -> Recipe:
    """The recipe, read once for all tests: nobody edits the package meanwhile."""
    return recipe_of(adapter)


@pytest.fixture
def fake_engine(fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Every command that renders does so with the fake model."""
    engine = FakeEngine()
    monkeypatch.setattr("storyreel.rendering.Engine", lambda *options, **others: engine)
    return engine


VERSIONS = {"storyreel": "0", "torch": "2", "diffusers": "0.4", "transformers": "5", "tokenizers": "0.2"}
VERSIONS["ffmpeg"] = "7"
SAYS = b"\nwhat it says of itself: "


def encode_nothing(patch: pytest.MonkeyPatch) -> None:
    """Have films be their frames, of the fake model's size, and behind them what else is said of a film."""
    from tests.film.test_decode import FakeWriter

    width, height = FAKE_SIZE

    def join(
        segments: Sequence[Path],
        path: Path,
        fps: int,
        chapters: Sequence[writer.Chapter],
        tags: dict[str, str],
        audio: writer.Audio | None = None,
    ) -> None:
        says = json.dumps({"fps": fps, "chapters": [vars(chapter) for chapter in chapters], "tags": tags})
        with path.open("wb") as film:
            for segment in segments:
                film.write(segment.read_bytes())
            film.write(SAYS + says.encode())

    def add_xmp(path: Path, packet: bytes) -> None:
        frames, says, told = path.read_bytes().partition(SAYS)
        path.write_bytes(frames + says + json.dumps(json.loads(told) | {"xmp": packet.decode()}).encode())

    def read_frames(path: Path, *size: object) -> Iterator[bytes]:
        assert size[:2] == (width, height)
        frames, _, says = path.read_bytes().partition(SAYS)
        if not says:
            raise StoryreelError(f"cannot read the film {path}")
        yield frames

    def probe(path: Path) -> reader.Facts:
        says = json.loads(path.read_bytes().partition(SAYS)[2] or "null")
        if says is None:
            raise StoryreelError(f"{path} is not a film")
        starts = tuple(chapter["start"] / says["fps"] for chapter in says["chapters"])
        return reader.Facts(width, height, says["fps"], says["tags"], starts)

    def count_frames(path: Path) -> int:
        return len(path.read_bytes().partition(SAYS)[0]) // (width * height * 3)

    patch.setattr(writer, "SegmentWriter", FakeWriter)
    patch.setattr(writer, "join", join)
    patch.setattr(provenance, "add_xmp", add_xmp)
    for function in (read_frames, probe, count_frames):
        patch.setattr(reader, function.__name__, function)
    patch.setattr(film_ffmpeg, "version", lambda: VERSIONS["ffmpeg"])
    patch.setattr(keys, "versions", lambda: VERSIONS)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that one process fills for all that run the tests. None of them may change it."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, made = base / name, base / f"{name}.made"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            made.touch()
    return folder


def plan_of(text: str, **overrides: object) -> Plan:
    story = parse_story("story.yaml", text.encode())
    return make_plan(story, "story", Overrides(**overrides))  # type: ignore[arg-type]
