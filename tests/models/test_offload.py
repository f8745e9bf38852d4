"""Where components are: the order in which they are read and freed, on tiny models of the real classes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from storyreel.errors import DamagedError, PromptError
from storyreel.models import loading, offload
from storyreel.models.base import Request
from storyreel.models.loading import adapter_class, load_adapter
from storyreel.models.memory import GB, MODES, MemoryMode, Needs, Working
from storyreel.models.offload import CHUNK, Component, Offload, pin, pinned_buffers, size_of
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.specs import MODELS, ModelSpec
from tests.models.test_families import latents, save
from tests.tiny import CPU, FAMILIES, velocities, wan_transformer

CUDA = torch.device("cuda", 0)  # of which nothing is asked here
PROMPTS = ["", "a fox in the park", "a dog sleeps"]


class Read:
    """What is read of folders, in order, and whether it is still there."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._parts: list[weakref.ref[Any]] = []

    def there(self) -> list[str]:
        gc.collect()
        return [name for name, part in zip(self.names, self._parts, strict=True) if part() is not None]

    def note(self, load: Callable[..., Any], folder: Path, kind: type[Any], *unread: Any) -> Any:
        part = REAL_LOAD(load, folder, kind, *unread)
        self.names.append(folder.name)
        self._parts.append(weakref.ref(part))
        return part


REAL_LOAD = loading.load_component


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    found = Read()
    monkeypatch.setattr(loading, "load_component", found.note)
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A model of two experts in a folder."""
    folder = tmp_path_factory.mktemp("weights")
    adapter = FAMILIES["wan of two experts"]()
    save(adapter, folder)
    return replace(adapter.spec, weights=folder)


def loaded(spec: ModelSpec, mode: MemoryMode = "high") -> PipelineAdapter:
    adapter = load_adapter(spec, CPU, mode)
    assert isinstance(adapter, PipelineAdapter)
    return adapter


@torch.no_grad()
def step(adapter: PipelineAdapter) -> list[Tensor]:
    """Ask both experts."""
    x, texts = latents(adapter), [adapter.encode(prompt) for prompt in PROMPTS[:2]]
    return [v for sigma in (0.95, 0.5) for v in next(iter(adapter.predict([Request(x, sigma, texts)])))]


@pytest.mark.parametrize("mode", ["balanced", "low"])
def test_text_encoders_are_gone_when_the_transformers_come(
    saved: ModelSpec, read: Read, mode: MemoryMode
) -> None:
    adapter = loaded(saved, mode)
    assert read.there() == ["vae"]
    adapter.prepare(PROMPTS)
    assert read.names == ["vae", "text_encoder"]
    assert read.there() == ["vae"]
    step(adapter)
    adapter.decode(latents(adapter))
    assert read.names == ["vae", "text_encoder", "transformer", "transformer_2"]
    assert read.there() == ["vae", "transformer", "transformer_2"]
    adapter.prepare(PROMPTS[:2])  # of the same film again, or of one with the same texts
    assert read.names.count("text_encoder") == 1
    adapter.prepare([*PROMPTS, "a cat"])
    assert read.names.count("text_encoder") == 2
    assert read.there() == ["vae", "transformer", "transformer_2"]


def test_in_mode_high_everything_stays(saved: ModelSpec, read: Read) -> None:
    adapter = loaded(saved)
    adapter.prepare(PROMPTS)
    step(adapter)
    adapter.prepare(["a cat"])
    assert read.names == ["vae", "text_encoder", "transformer", "transformer_2"] == read.there()


def test_what_is_read_again_answers_as_before(saved: ModelSpec) -> None:
    whole = loaded(saved)
    expected = step(whole)
    texts = {prompt: whole.encode(prompt) for prompt in PROMPTS}
    for mode in MODES[1:]:
        adapter = loaded(saved, mode)
        adapter.prepare(PROMPTS)
        adapter.prepare([*PROMPTS, "a cat"])
        assert all(torch.equal(a, b) for a, b in zip(step(adapter), expected, strict=True))
        assert torch.equal(whole.encode("a cat").states[0], adapter.encode("a cat").states[0])
        adapter.prepare([])
        assert torch.equal(texts["a dog sleeps"].states[0], adapter.encode("a dog sleeps").states[0])


def test_a_prompt_that_is_too_long_is_said_before_a_text_encoder_is_read(
    saved: ModelSpec, read: Read
) -> None:
    adapter = loaded(saved, "low")
    with pytest.raises(PromptError):
        adapter.prepare(["a fox", "a fox " * 100])
    assert read.names == ["vae"]


def test_an_error_while_texts_are_encoded_keeps_no_text_encoder(
    saved: ModelSpec, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = loaded(saved, "balanced")

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(adapter, "_encoded", full)
    with pytest.raises(torch.OutOfMemoryError):
        adapter.prepare(PROMPTS)
    assert read.there() == ["vae"]
    monkeypatch.undo()
    adapter.prepare(PROMPTS)


def test_a_lower_mode_frees_what_can_be_read_again(saved: ModelSpec, read: Read) -> None:
    adapter = loaded(saved)
    adapter.prepare(PROMPTS)
    expected = step(adapter)
    assert adapter.lower_memory_mode() == "balanced"
    assert read.there() == ["vae", "transformer", "transformer_2"]  # those stay where they are
    assert adapter.lower_memory_mode() == "low"
    assert read.there() == ["vae"]
    assert all(torch.equal(a, b) for a, b in zip(step(adapter), expected, strict=True))
    assert read.names.count("text_encoder") == 1  # the film's texts are known
    assert adapter.lower_memory_mode() is None


def test_blocks_are_compiled_when_they_are_read(saved: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []

    def compiles(forward: Any) -> Any:
        compiled.append(forward.__self__)
        return forward

    monkeypatch.setattr(torch, "compile", compiles)
    adapter = loaded(saved)
    adapter.compile()
    assert not compiled
    blocks = [block for expert in adapter.experts for block in adapter.blocks(expert)]
    assert compiled == blocks
    adapter.lower_memory_mode()
    adapter.lower_memory_mode()
    assert len(adapter.experts) == 2
    assert len(compiled) == 2 * len(blocks)


def test_fp8_is_known_before_a_transformer_is_read(saved: ModelSpec, read: Read) -> None:
    whole, stored = loaded(saved), loaded(saved.quantized("fp8"))
    sizes = stored.offload.sizes()
    assert sizes[0] < 0.75 * whole.offload.sizes()[0]
    assert sizes[1:] == whole.offload.sizes()[1:]
    assert "transformer" not in read.names
    assert sum(map(size_of, stored.experts)) == sizes[0]


def spoil(spec: ModelSpec, tmp_path: Path, part: str, name: str) -> Path:
    """Add a weight to a component; return the model's folder."""
    folder = tmp_path / "weights"
    save(FAMILIES["wan"](), folder)
    (path,) = (folder / part).glob("*.safetensors")
    save_file({**load_file(path), name: torch.zeros(1)}, path, {"format": "pt"})
    return folder


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_weights_that_do_not_belong_there_are_named(tmp_path: Path, part: str) -> None:
    spec = FAMILIES["wan"]().spec
    folder = spoil(spec, tmp_path, part, "strange.weight")
    with pytest.raises(DamagedError, match=r"unexpected_keys strange\.weight"):
        load_adapter(replace(spec, weights=folder), CPU)


def test_shards_that_do_not_fit_are_found_before_anything_is_read(tmp_path: Path, read: Read) -> None:
    adapter = FAMILIES["wan"]()
    save(adapter, tmp_path)
    folder = tmp_path / "transformer"
    for path in folder.glob("*.safetensors"):
        path.unlink()
    adapter.experts[0].save_pretrained(folder, max_shard_size="20KB")
    spec = replace(adapter.spec, weights=tmp_path)
    loaded(spec)
    assert read.names == ["vae"]
    shards = sorted(folder.glob("*-of-*.safetensors"))
    assert len(shards) > 2
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    with pytest.raises(DamagedError, match="transformer"):
        loaded(spec)


def test_tied_weights_may_stand_under_either_name(tmp_path: Path, read: Read) -> None:
    """As in the files of T5 and UMT5: one embedding of two names."""
    adapter = FAMILIES["wan"]()
    save(adapter, tmp_path)
    (path,) = (tmp_path / "text_encoder").glob("*.safetensors")
    tensors = load_file(path)
    for names in (["encoder.embed_tokens.weight"], ["shared.weight"]):
        embedding = next(tensors.pop(n) for n in list(tensors) if "embed_tokens" in n or "shared" in n)
        tensors |= dict.fromkeys(names, embedding)
        save_file(tensors, path, {"format": "pt"})
        again = loaded(replace(adapter.spec, weights=tmp_path))
        assert "text_encoder" not in read.names  # it was only looked at
        assert torch.equal(again.encode("a fox").states[0], adapter.encode("a fox").states[0])
        read.names.clear()
        read._parts.clear()


# Pinned memory


@given(st.lists(st.integers(0, 3 * CHUNK), max_size=60))
def test_buffers_hold_every_tensor_once_and_little_else(sizes: list[int]) -> None:
    buffers = pinned_buffers(sizes)
    assert sorted(index for _, inside in buffers for index in inside) == list(range(len(sizes)))
    for room, inside in buffers:
        assert room & (room - 1) == 0
        assert sum(offload.aligned(sizes[index]) for index in inside) <= room
    assert sum(room for room, _ in buffers) < 2 * sum(map(offload.aligned, sizes)) + (2 << 20)


def pins_of(spec: ModelSpec) -> tuple[int, int]:
    """Return the bytes that mode low pins of a model, and those of the larger of its two large parts."""
    adapter = adapter_class(spec).random(spec, torch.device("meta"))
    experts, encoders, _ = adapter.offload.sizes()
    pinned = 0
    for expert in adapter.experts:
        tensors = [t for block in adapter.blocks(expert) for t in (*block.parameters(), *block.buffers())]
        pinned += sum(size for size, _ in pinned_buffers([size_of(tensor) for tensor in tensors]))
    return pinned, max(experts, encoders)


@pytest.mark.slow  # large models, if without data
@pytest.mark.parametrize("quantize", ["none", "fp8"])
@pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if spec.hub and name == spec.base])
def test_no_model_pins_more_than_a_tenth_above_its_largest_part(name: str, quantize: str) -> None:
    pinned, largest = pins_of(MODELS[name].quantized(quantize))
    assert pinned <= 1.1 * largest


@pytest.fixture
def plenty(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine of much memory; the list has the sizes of what is pinned."""
    sizes: list[int] = []

    def pinned(size: int) -> Tensor:
        sizes.append(size)
        return torch.empty(size, dtype=torch.uint8)

    monkeypatch.setattr(offload, "_pinned", pinned)
    monkeypatch.setattr(offload, "available_memory", lambda: 10**12)
    return sizes


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantize", ["none", "fp8"])
def test_pinned_blocks_are_what_they_were(plenty: list[int], family: str, quantize: str) -> None:
    made = FAMILIES[family]()
    adapter = type(made)(made.spec.quantized(quantize), CPU, made.parts)
    x, texts = latents(adapter), [adapter.encode("a fox in the park")]
    (before,) = velocities(adapter, x, 0.5, texts)
    for expert in adapter.experts:
        assert pin(expert)
        blocks = [t for block in adapter.blocks(expert) for t in (*block.parameters(), *block.buffers())]
        assert len({t.untyped_storage().data_ptr() for t in blocks}) <= len(plenty)
        assert sum(map(size_of, blocks)) <= sum(plenty)
        assert all(t.data_ptr() % 64 == 0 for t in blocks)
    assert torch.equal(velocities(adapter, x, 0.5, texts)[0], before)


def test_nothing_is_pinned_where_memory_is_short(plenty: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "available_memory", lambda: offload.KEPT_FREE)
    transformer = wan_transformer()
    there = [parameter.data_ptr() for parameter in transformer.parameters()]
    assert not pin(transformer)
    assert plenty == []
    assert [parameter.data_ptr() for parameter in transformer.parameters()] == there


# A GPU, as far as that can be told without one


class Moving(nn.Module):
    """A network that says where it is sent, and goes nowhere."""

    def __init__(self, name: str, size: float, told: list[str]) -> None:
        super().__init__()
        self.name, self.told = name, told
        self.weight = nn.Parameter(
            torch.empty(int(size), dtype=torch.uint8, device="meta"), requires_grad=False
        )

    def to(self, device: Any) -> Moving:  # type: ignore[override]
        self.told.append(f"{self.name} to {torch.device(device).type}")
        return self


class Card:
    """A GPU of so many bytes, and what is done with it."""

    def __init__(self, free: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.free = free
        monkeypatch.setattr(offload, "free_memory", lambda device: int(self.free))
        monkeypatch.setattr(offload, "apply_group_offloading", self._in_parts)

    def _in_parts(
        self, module: Moving, onload_device: torch.device, use_stream: bool, **options: Any
    ) -> None:
        assert onload_device == CUDA
        assert use_stream
        pinned = "on its way" if options.get("low_cpu_mem_usage") else "all of it"
        self.told.append(f"{module.name} by {options['offload_type']}, pinned {pinned}")

    def offload(self, mode: MemoryMode, working: Working | None = None) -> Offload:
        def component(name: str, size: float) -> Component:
            def read() -> nn.Module:
                self.told.append(f"read {name}")
                return Moving(name, size, self.told)

            return Component(read, Moving(name, size, []))

        experts, encoders = [component("expert", 20 * GB)], [component("encoder", 10 * GB)]
        made = Offload(CUDA, experts, encoders, Moving("vae", GB, self.told), mode, working)
        assert self.told.pop(0) == f"vae to {'cuda' if made.mode == 'high' else 'cpu'}"
        return made

    def film(self, components: Offload) -> list[str]:
        """Encode a film's texts, and denoise it."""
        with components.encoding():
            assert components.text_encoders
        assert components.experts
        told, self.told = self.told, []
        return told


def test_on_a_large_gpu_everything_is_moved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(80 * GB, monkeypatch)
    components = card.offload("auto", Working(4 * GB, 6 * GB))
    assert components.mode == "high"
    wanted = ["read encoder", "encoder to cuda", "read expert", "expert to cuda"]
    assert card.film(components) == wanted
    assert card.film(components) == []


def test_of_two_experts_the_one_that_did_not_fit_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(80 * GB, monkeypatch)
    full = True

    def component(name: str) -> Component:
        def read() -> nn.Module:
            if name == "second" and full:
                raise torch.OutOfMemoryError("CUDA out of memory")
            card.told.append(f"read {name}")
            return Moving(name, 20 * GB, card.told)

        return Component(read, Moving(name, 20 * GB, []))

    experts = [component("first"), component("second")]
    components = Offload(CUDA, experts, [], Moving("vae", GB, card.told), "high")
    with pytest.raises(torch.OutOfMemoryError):
        assert components.experts
    assert components.lower() == "balanced"
    full, card.told = False, []
    assert [expert.name for expert in components.experts] == ["first", "second"]
    assert card.told == ["read second", "second to cuda"]


def test_balanced_has_the_transformer_there_and_the_text_encoder_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Card(28 * GB, monkeypatch)  # 20 + 1 + 6: the text encoder's 10 do not count
    components = card.offload("auto", Working(4 * GB, 6 * GB))
    assert components.mode == "balanced"
    assert card.film(components) == ["read encoder", "encoder to cuda", "read expert", "expert to cuda"]
    card.free = 8 * GB  # beside the transformer
    wanted = ["read encoder", "encoder by leaf_level, pinned on its way"]
    assert card.film(components) == wanted  # of a second film


@pytest.mark.parametrize(("pinned", "words"), [(True, "all of it"), (False, "on its way")])
def test_low_pins_the_transformer_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, pinned: bool, words: str
) -> None:
    monkeypatch.setattr(offload, "pin", lambda expert: pinned)
    card = Card(16 * GB, monkeypatch)
    components = card.offload("auto", Working(4 * GB, 6 * GB))
    assert components.mode == "low"
    assert card.film(components) == [
        "read encoder",
        "encoder to cuda",  # whole: nothing else is there yet
        "read expert",
        "expert to cpu",
        f"expert by block_level, pinned {words}",
    ]


def test_a_text_encoder_that_was_too_large_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "pin", lambda expert: False)
    card = Card(12 * GB, monkeypatch)
    components = card.offload("balanced")
    assert components.lower() == "low"
    assert card.film(components)[2:4] == ["encoder by leaf_level, pinned on its way", "read expert"]


def test_auto_goes_by_what_a_film_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(40 * GB, monkeypatch)
    components = card.offload("auto", Working(4 * GB, 6 * GB))
    assert components.mode == "high"
    assert components.choose(Working(12 * GB, 6 * GB)) == "balanced"  # larger pictures
    assert components.choose(Working(12 * GB, 22 * GB)) == "low"
    assert components.choose(Working(4 * GB, 6 * GB)) == "high"
    assert components.lower() == "balanced"
    assert components.choose(Working(GB, GB)) == "balanced"  # it was too much once
    card = Card(40 * GB, monkeypatch)
    assert card.offload("balanced").choose(Working(GB, GB)) == "balanced"  # as it was asked for


def test_on_a_cpu_auto_frees_text_encoders_where_memory_is_short(
    saved: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Needs(2, 0.0, 0.0, 0.0, {"none": (0.0, 0.0)}, (0.0, 1.0), (0.0, 0.0, 1.0))  # a byte a pixel
    spec = replace(saved, needs=line)
    for there, wanted in ((10**10, "high"), (10**5, "balanced")):
        monkeypatch.setattr(offload, "available_memory", lambda there=there: there)
        adapter = loaded(spec, "auto")
        assert adapter.choose_memory_mode((1024, 1024), 8) == wanted
        assert adapter.memory == wanted
    assert loaded(saved, "auto").choose_memory_mode((1024, 1024), 8) == "high"  # nothing is known of it


# Straight lines


def test_what_a_film_needs_grows_with_its_size_and_length() -> None:
    needs = Needs(2, 10.0, 1.0, 0.5, {"none": (20.0, 2.0), "fp8": (10.0, 1.0)}, (1.0, 2.0), (0.5, 1.0, 0.25))
    working = needs.working((1000, 1000), 10)
    assert working == Working(21 * GB, 4 * GB)
    assert needs.weights("none").on_device(working) == {
        "high": (40 + 10 + 1 + 21) * GB,
        "balanced": (40 + 21) * GB,
        "low": (2 + 21) * GB,
    }
    assert needs.weights("none").on_host() == {"high": 20 * GB, "balanced": 21 * GB, "low": 41 * GB}
    stored = needs.weights("fp8")
    assert stored.on_host() == {"high": 20 * GB, "balanced": 21 * GB, "low": 31 * GB}  # one is being stored
    assert stored.on_device(Working(GB, GB))["balanced"] == 22 * GB


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_blocks_are_pinned_once_on_a_gpu(tmp_path: Path) -> None:
    """And every mode answers alike."""
    made = FAMILIES["wan"]()
    save(made, tmp_path)
    spec = replace(made.spec, weights=tmp_path)
    answers: list[Tensor] = []
    for mode in MODES:
        adapter = load_adapter(spec, torch.device("cuda"), mode)
        assert isinstance(adapter, PipelineAdapter)
        adapter.prepare(PROMPTS)
        x = latents(adapter).cuda()
        for _ in range(2):  # the second is prefetched
            answers += velocities(adapter, x, 0.5, [adapter.encode("a fox in the park")])
        if mode == "low":
            blocks = [t for block in adapter.blocks(adapter.experts[0]) for t in block.parameters()]
            assert all(t.is_pinned() for t in blocks)
            assert len({t.untyped_storage().data_ptr() for t in blocks}) <= 2
    assert all(torch.equal(answer, answers[0]) for answer in answers)
