from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from torch import Tensor
from torch._dynamo.utils import counters

from storyreel.errors import StoppedError
from storyreel.models import compilation
from storyreel.models.base import Text, side_by_side
from storyreel.models.compilation import LIMITS, Compilation
from storyreel.models.pipeline import PipelineAdapter
from tests.models.test_families import difference, in_fp8, latents
from tests.tiny import CPU, FAMILIES, ltx, velocities, wan

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_:DeprecationWarning")  # of torch's own

# Graphs of one block for all kinds of requests: lengths, texts, guidance. Mochi's last block is another one.
GRAPHS = {"mochi": 24, "ltx": 12, "later ltx": 12, "ltx 2": 12}
GRAPHS |= dict.fromkeys(("wan", "wan of two experts", "wan ti2v", "hunyuan"), 16)


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch.compiler.reset()
    counters.clear()


def text(adapter: PipelineAdapter, tokens: int, weight: float = 1.0) -> Text:
    generator = torch.Generator().manual_seed(tokens)
    first, *others = adapter.encode("a fox").states
    words = torch.randn(1, tokens, first.shape[2], generator=generator)
    return Text((words, *(states[:, :0] for states in others)), torch.full((1, tokens), weight))


def kinds(adapter: PipelineAdapter) -> list[tuple[Tensor, list[Text]]]:
    """Return a request of every kind that films have, and of some lengths each."""
    weighted = side_by_side((text(adapter, 16), text(adapter, 16)), (0.3, 0.7))
    found = []
    for frames in (3, 4, 5):
        x = latents(adapter, frames)
        found += [(x, [text(adapter, tokens)] * 2) for tokens in (16, 32, 48)]
        found += [(x, [text(adapter, 16), weighted]), (x, [weighted]), (x, [text(adapter, 16)])]
        found.append((x, [text(adapter, 16)] * 3))
    wide = torch.cat([latents(adapter), latents(adapter)], 4)
    return [*found, (wide, [text(adapter, 16)] * 2)]


@torch.inference_mode()
def ask_all(adapter: PipelineAdapter) -> list[Tensor]:
    return [velocities(adapter, x, sigma, t)[-1] for x, t in kinds(adapter) for sigma in (0.95, 0.5)]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_all_kinds_of_requests_make_few_graphs_without_breaks(family: str) -> None:
    adapter, said = FAMILIES[family](), list[str]()
    expected = ask_all(adapter)
    adapter.compile(said.append)
    with torch.compiler.set_stance("default", force_backend="eager"):
        found = ask_all(adapter)
    assert adapter.compiled
    assert not said
    assert not counters["graph_break"]
    assert 2 <= counters["stats"]["unique_graphs"] <= GRAPHS[family], family
    assert max(difference(a, b) for a, b in zip(found, expected, strict=True)) <= 1e-5


@pytest.mark.slow
def test_several_models_in_one_process_stay_below_the_limit() -> None:
    """In every memory mode, and with weights in fp8: their graphs are of the same code of torch's."""
    said: list[str] = []
    adapters = [make() for make in FAMILIES.values()]
    adapters += [in_fp8(wan()), type(adapters[0])(adapters[0].spec, CPU, FAMILIES["mochi"]().parts, "low")]
    with torch.compiler.set_stance("default", force_backend="eager"):
        for adapter in adapters:
            adapter.compile(said.append)
            with torch.inference_mode():
                for x, texts in kinds(adapter)[::6]:
                    velocities(adapter, x, 0.5, texts)
    assert not said
    assert all(adapter.compiled for adapter in adapters)
    assert counters["stats"]["unique_graphs"] < LIMITS["recompile_limit"] / 2


@torch.inference_mode()
def test_beyond_the_limit_it_says_so_and_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, "recompile_limit", 1)
    adapter, said = ltx(), list[str]()
    requests = [(latents(adapter, frames), [text(adapter, 16)]) for frames in (3, 4, 5)]
    expected = [velocities(adapter, x, 0.5, texts)[0] for x, texts in requests]
    adapter.compile(said.append)
    with torch.compiler.set_stance("default", force_backend="eager"):
        found = [velocities(adapter, x, 0.5, texts)[0] for x, texts in requests]
    assert not adapter.compiled
    assert len(said) == 1
    assert "limit" in said[0]
    assert counters["stats"]["unique_graphs"] == 1
    assert max(difference(a, b) for a, b in zip(found, expected, strict=True)) <= 1e-5


def test_torch_keeps_its_own_limits() -> None:
    before = torch._dynamo.config.recompile_limit
    within: list[int] = []
    Compilation([], pytest.fail).run(lambda: within.append(torch._dynamo.config.recompile_limit))
    assert within == [compilation.MOST_GRAPHS]
    assert torch._dynamo.config.recompile_limit == before


def test_what_torchs_compiler_advises_is_not_told() -> None:
    def warn(module: str) -> None:
        warnings.warn_explicit("Consider less precision", UserWarning, "compile_fx.py", 1, module)

    Compilation([], pytest.fail).run(lambda: warn("torch._inductor.compile_fx"))
    with pytest.raises(UserWarning, match="less precision"):
        Compilation([], pytest.fail).run(lambda: warn("storyreel.models.pipeline"))


@torch.inference_mode()
def test_without_a_compiler_the_film_is_made_without_compilation() -> None:
    """torch's own compiler, and a machine that has no other."""
    adapter, said = wan(), list[str]()
    (expected,) = velocities(adapter, latents(adapter), 0.5, [text(adapter, 16)])
    adapter.compile(said.append)
    assert adapter.compiled
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        for _ in range(2):
            (found,) = velocities(adapter, latents(adapter), 0.5, [text(adapter, 16)])
            assert torch.equal(found, expected)
            assert not adapter.compiled
    assert len(said) == 1
    assert "cannot be compiled here" in said[0]
    assert "compiler" in said[0].partition("(")[2]
    assert "\n" not in said[0]


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("CUDA error: invalid argument")])
def test_an_error_that_is_not_the_compilers_is_raised_as_it_is(error: Exception) -> None:
    calls: list[None] = []

    def compute() -> None:
        calls.append(None)
        raise error

    compiling = Compilation([], pytest.fail)
    with pytest.raises(type(error), match=str(error)):
        compiling.run(compute)
    assert compiling.works
    assert len(calls) == 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), StoppedError("stopped")])
def test_a_lack_of_memory_or_a_signal_is_for_others(error: Exception) -> None:
    calls: list[None] = []

    def compute() -> None:
        calls.append(None)
        raise error

    compiling = Compilation([], pytest.fail)
    with pytest.raises(type(error)):
        compiling.run(compute)
    assert compiling.works
    assert len(calls) == 1


def test_a_platform_without_compilation_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("torch.compile is not supported on Python 3.99+")

    monkeypatch.setattr(torch, "compile", refuse)
    adapter, said = ltx(), list[str]()
    adapter.compile(said.append)
    assert not adapter.compiled
    assert said == [
        "the model cannot be compiled here (torch.compile is not supported on Python 3.99+); it goes on "
        "without, slower"
    ]
    (found,) = velocities(adapter, latents(adapter), 0.5, [text(adapter, 16)])
    assert found.isfinite().all()


@pytest.mark.slow
@torch.inference_mode()
def test_torchs_own_compiler_computes_the_same() -> None:
    """On a CPU, which takes a C++ compiler; of two lengths."""
    adapter, said = ltx(), list[str]()
    clips, texts = [latents(adapter, frames) for frames in (3, 4)], [text(adapter, 16)] * 2
    expected = [velocities(adapter, x, 0.5, texts)[1] for x in clips]
    adapter.compile(said.append)
    found = [velocities(adapter, x, 0.5, texts)[1] for x in clips]
    assert not said
    assert max(difference(a, b) for a, b in zip(found, expected, strict=True)) <= 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.inference_mode()
def test_a_gpu_computes_the_same_with_compilation() -> None:
    """In bfloat16, with torch's own compiler; where that does not work, one message says so."""
    made, said = wan(), list[str]()
    for module in (*made.experts, *made.text_encoders):
        module.to(torch.bfloat16)
    adapter = type(made)(replace(made.spec, dtype="bfloat16"), torch.device("cuda"), made.parts)
    texts = [adapter.encode("a fox"), adapter.encode("a dog sleeps")]
    clips = [latents(adapter, frames).cuda() for frames in (3, 4)]
    expected = [velocities(adapter, x, 0.5, texts)[1] for x in clips]
    adapter.compile(said.append)
    found = [velocities(adapter, x, 0.5, texts)[1] for x in clips]
    assert adapter.compiled != bool(said)
    assert max(difference(a, b) for a, b in zip(found, expected, strict=True)) <= 0.05
