from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from storyreel.models import quantized
from storyreel.models.base import Request
from storyreel.models.quantized import QuantizedLinear, products_are_right, quantize
from tests.tiny import CPU, FAMILIES


def bytes_of(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def linear(std: float, dtype: torch.dtype, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(1024, 64, bias=bias)
    nn.init.normal_(layer.weight, std=std)
    return layer.to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("std", [1e-4, 0.01, 1.0, 100.0])
def test_the_error_does_not_depend_on_how_large_weights_are(std: float, dtype: torch.dtype) -> None:
    layer = linear(std, dtype)
    weight = layer.weight.double()
    stored = QuantizedLinear(layer)
    restored = stored.weight.double() * stored.scale.double()
    assert 0.02 < float((restored - weight).norm() / weight.norm()) < 0.03
    x = torch.randn(3, 5, 1024).to(dtype)
    assert stored(x).dtype == dtype
    expected = nn.functional.linear(x.double(), restored, layer.bias.double())
    bar = 1e-2 if dtype == torch.bfloat16 else 1e-5
    assert float((stored(x).double() - expected).norm() / expected.norm()) < bar


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.5), (torch.float32, 0.25)], ids=str)
def test_it_takes_one_byte_a_weight(dtype: torch.dtype, share: float) -> None:
    layer = linear(0.02, dtype)
    whole = bytes_of(layer)
    assert share < bytes_of(QuantizedLinear(layer)) / whole < share + 0.005


@torch.no_grad()
def test_rows_of_zeros_and_lone_large_weights_survive() -> None:
    layer = linear(0.02, torch.bfloat16, bias=False)
    layer.weight[0] = 0
    layer.weight[1, 7] = 3e4
    out = QuantizedLinear(layer)(torch.eye(1024, dtype=torch.bfloat16))
    assert out.isfinite().all()
    assert not out[:, 0].any()
    assert float(out[7, 1]) == pytest.approx(3e4, rel=0.01)


def test_only_linear_layers_change_wherever_they_are() -> None:
    block = nn.ModuleDict(
        {
            "deep": nn.Sequential(nn.LayerNorm(8), nn.ModuleList([nn.Linear(8, 8), nn.Dropout(0.0)])),
            "convolution": nn.Conv1d(8, 8, 1),
        }
    )
    quantize(block)
    quantize(block)  # what is stored so already stays as it is
    kinds = [type(m).__name__ for m in block.modules() if not list(m.children())]
    assert kinds == ["LayerNorm", "QuantizedLinear", "Dropout", "Conv1d"]


def in_float8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows (N, C) rounded to float8 with a scale (N, 1) each, both in float64."""
    scale = rows.double().abs().amax(1, keepdim=True) / 448
    return (rows.double() / scale).float().to(torch.float8_e4m3fn).double(), scale


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_products_in_float8_are_those_of_rounded_rows(size: float, bias: bool) -> None:
    """By torch's own kernel, which a CPU has too, against the formula in float64."""
    layer = linear(0.02, torch.bfloat16, bias)
    stored = QuantizedLinear(layer)
    stored.multiplies = True
    x = (size * torch.randn(2, 7, 1024)).bfloat16()
    x[0, 0] *= 1000  # every row has a scale of its own
    rows, scale = in_float8(x.flatten(0, 1))
    expected = (rows @ stored.weight.double().t()) * scale * stored.scale.double().t()
    expected = (expected + layer.bias.double() if bias else expected).unflatten(0, (2, 7))
    found = stored(x)
    assert found.dtype == torch.bfloat16
    assert found.shape == (2, 7, 64)
    for row, wanted in zip(found.flatten(0, 1), expected.flatten(0, 1), strict=True):
        assert float((row.double() - wanted).norm() / wanted.norm()) < 4e-3  # bfloat16's own rounding


@torch.no_grad()
def test_products_of_zeros_are_zeros() -> None:
    stored = QuantizedLinear(linear(0.02, torch.bfloat16, bias=False))
    stored.multiplies = True
    x = torch.randn(3, 1024).bfloat16()
    x[1] = 0
    found = stored(x)
    assert found.isfinite().all()
    assert not found[1].any()
    assert found[0].any()


@torch.no_grad()
def test_a_device_that_multiplies_wrongly_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert products_are_right(torch.device("cpu"))
    right = nn.functional.scaled_mm
    monkeypatch.setattr(nn.functional, "scaled_mm", lambda *given, **more: 1.1 * right(*given, **more))
    assert not products_are_right(torch.device("cpu"))


@pytest.mark.parametrize(
    ("capability", "works", "expected"),
    [((9, 0), True, True), ((8, 9), True, True), ((12, 0), False, False), ((8, 6), True, False)],
)
def test_what_a_gpu_can_is_tried(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], works: bool, expected: bool
) -> None:
    def tried(device: torch.device) -> bool:
        if not works:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED")
        return True

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(quantized, "products_are_right", tried)
    assert quantized.multiplies_float8(torch.device("cuda")) is expected
    assert not quantized.multiplies_float8(torch.device("cpu"))


def test_layers_that_modulate_and_narrow_ones_are_left_out() -> None:
    block = nn.ModuleDict(
        {
            "norm1": nn.ModuleDict({"linear": nn.Linear(32, 32)}),
            "to_q": nn.Linear(32, 48),
            "narrow": nn.Linear(24, 32),
            "low": nn.Linear(32, 8),
        }
    )
    quantize(block)
    quantized.multiply_in_float8(block, ["patch_embed", "norm"])
    found = [name for name, m in block.named_modules() if isinstance(m, QuantizedLinear) and m.multiplies]
    assert found == ["to_q"]


@pytest.mark.gpu
@torch.no_grad()
def test_a_gpu_multiplies_float8_as_the_formula_says() -> None:
    device = torch.device("cuda")
    if not quantized.multiplies_float8(device):
        pytest.skip("this GPU, or this torch, does not multiply float8 by rows")
    stored = QuantizedLinear(linear(0.02, torch.bfloat16))
    stored.multiplies = True
    x = torch.randn(300, 1024).bfloat16()
    expected = stored(x).double()
    found = stored.to(device)(x.to(device)).double().cpu()
    assert float((found - expected).norm() / expected.norm()) < 1e-2


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:(?s).*autocast:UserWarning")  # Mochi's
@pytest.mark.parametrize("family", ["mochi", "ltx"])  # tiny Wan's layers are too narrow
def test_models_that_multiply_in_float8_are_near_those_that_cast(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch's product on a CPU; what it takes of memory is the same."""
    adapter = FAMILIES[family]()
    for module in (*adapter.experts, *adapter.text_encoders):
        module.to(torch.bfloat16)
    whole = type(adapter)(replace(adapter.spec, dtype="bfloat16"), CPU, adapter.parts)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, adapter.spec.latent_channels, 4, 4, 4, generator=generator)
    texts = [whole.encode("a fox"), whole.encode("a dog sleeps")]
    (exact,) = whole.predict([Request(x, 0.5, texts)])
    exact = [velocity.clone() for velocity in exact]
    spec = whole.spec.quantized("fp8")
    cast = type(adapter)(spec, CPU, whole.parts)
    (stored,) = cast.predict([Request(x, 0.5, texts)])
    monkeypatch.setattr("storyreel.models.pipeline.multiplies_float8", lambda device: True)
    multiplying = type(adapter)(spec, CPU, whole.parts)
    named = [(n, m) for n, m in multiplying.experts[0].named_modules() if isinstance(m, QuantizedLinear)]
    for name, layer in named:
        fits = all(count % 16 == 0 for count in layer.weight.shape)
        assert layer.multiplies == (fits and "norm" not in name)
    assert any(layer.multiplies for _, layer in named)
    assert multiplying.offload.sizes() == cast.offload.sizes()
    (found,) = multiplying.predict([Request(x, 0.5, texts)])
    for velocity, other, wanted in zip(found, stored, exact, strict=True):
        assert not torch.equal(velocity, other)
        assert float((velocity - wanted).norm() / wanted.norm()) < 0.08


def test_a_product_in_float8_is_one_graph() -> None:
    stored = QuantizedLinear(linear(0.02, torch.bfloat16))
    stored.multiplies = True
    compiled = torch.compile(stored, fullgraph=True, backend="eager")
    x = torch.randn(2, 5, 1024).bfloat16()
    assert torch.equal(compiled(x), stored(x))
