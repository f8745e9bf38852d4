from __future__ import annotations

from collections.abc import Callable

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


def test_traffic_is_what_operations_read_and_write() -> None:
    x, picked = torch.zeros(4 * KILO), torch.tensor([3, 5])  # 4 kB, 16 bytes

    def moved(compute: Callable[[], object]) -> int:
        meter = Meter()
        with meter:
            compute()
        return meter.traffic

    assert moved(lambda: x + 1) == 8000
    assert moved(lambda: x * x) == 8000  # read once
    assert moved(lambda: x.mul_(2)) == 8000
    assert moved(lambda: x.copy_(x[:1].expand(4 * KILO))) == 4004  # one number, and what it is copied to
    assert moved(lambda: x.view(2, -1).transpose(0, 1)[1:].expand(-1, 2)) == 0  # views
    assert moved(lambda: torch.empty(100)) == 0
    assert moved(lambda: torch.cat([x, x[:KILO]])) == 10000
    assert moved(lambda: x[picked]) == 16 + 8 + 8  # what is picked, and where: not all of x
    query = torch.zeros(1, 2, 50, 8)
    pair = query[:, :, :5], query[:, :, 5:10]
    attended = moved(lambda: nn.functional.scaled_dot_product_attention(query, *pair))
    assert attended == 4 * (2 * 800 + 2 * 80 + 2 * 50)  # queries and output, keys and values, sums: no logits


def test_the_time_is_bound_by_arithmetic_or_memory_operation_by_operation() -> None:
    side = 1000
    x = torch.empty(side, side, device="meta")
    with Meter() as meter:
        x @ x  # 2e9 operations, 12 MB
        x + x  # none, 8 MB
    assert meter.seconds(1e9, 1e9) == pytest.approx(2 + 0.008)
    assert meter.seconds(1e15, 1e9) == pytest.approx(0.008 + 0.008)  # x is read once


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
