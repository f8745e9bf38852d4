from __future__ import annotations

import pytest
import torch
from torch import nn

from storyreel.models.quantized import QuantizedLinear, quantize


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
