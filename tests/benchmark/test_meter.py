from __future__ import annotations

import pytest
import torch
from torch import nn

from storyreel.benchmark.meter import Meter

KILO = 250  # floats to a thousand bytes


def test_matrices_and_attention_are_counted_by_their_closed_forms() -> None:
    x, layer = torch.randn(2, 5, 8), nn.Linear(8, 3)
    with Meter() as meter, torch.inference_mode():
        layer(x)
    assert meter.operations == 2 * (2 * 5) * 8 * 3
    query, key = torch.randn(1, 2, 10, 8), torch.randn(1, 2, 6, 8)
    with Meter() as meter:
        nn.functional.scaled_dot_product_attention(query, key, key)
    assert meter.operations == 2 * 2 * (2 * 10 * 6 * 8)  # for both products


def test_the_peak_is_what_is_alive_at_once() -> None:
    known = torch.zeros(100 * KILO)
    with Meter([known]) as meter:
        first = known[: 2 * KILO] + 1  # 2 kB
        first = first + 1  # beside them 2 more
        del first
        last = torch.zeros(3 * KILO)  # 3 kB alone
        last.view(3, -1).add_(known[0])  # in place, and a view: nothing new
    assert meter.peak == 4000


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_tensors_without_data_cost_the_same(mode: type[torch.no_grad]) -> None:
    found = []
    for device in ("cpu", "meta"):
        layers = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)).to(device)
        with Meter(layers.parameters()) as meter, mode():
            layers(torch.zeros(7, 16, device=device))
        found.append((meter.operations, meter.peak))
    assert found[0] == found[1]
    assert found[0][0] == 2 * 2 * 7 * 16 * 64
