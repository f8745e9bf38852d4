"""Attention by groups of keys, against one softmax over all of them in double precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.embeddings import MochiAttentionPool
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from storyreel.errors import MissingError
from storyreel.models.attention import Keys, Row, added_logits, attend, masked, merged
from storyreel.models.kernels import Kernel, check_backend, lse_kernel
from storyreel.models.mochi_attention import WeightedPool
from tests.tiny import CPU

VIDEO = 8


def tensors(keys: int, dim: int = 8, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and as many keys and values, (B, N, heads, D)."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(batch, keys, 3, dim, generator=generator) for _ in range(3))  # type: ignore[return-value]


def exact(query: Tensor, key: Tensor, value: Tensor, weights: Sequence[float]) -> Tensor:
    """One softmax over keys that count by their weights, written out in double precision."""
    q, k, v = (x.double().transpose(1, 2) for x in (query, key, value))
    shares = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).exp() * torch.tensor(weights, dtype=torch.float64)
    output: Tensor = shares @ v / shares.sum(-1, keepdim=True)
    return output.transpose(1, 2)


def on_cpu(dim: int = 8) -> Kernel:
    kernel = lse_kernel(None, CPU, torch.float32, dim)
    assert kernel is not None
    return kernel


def keys_for(rows: Sequence[tuple[int, Sequence[int], Sequence[float]]], kernel: Kernel | None) -> Keys:
    """Rows of (plain tokens, sizes of groups, their weights), padded to one length."""
    made, tokens = [], []
    for plain, sizes, weights in rows:
        made.append(Row(plain, tuple(sizes), torch.tensor([1.0, *weights]) if sizes else None))
        of_groups = [weight for size, weight in zip(sizes, weights, strict=True) for _ in range(size)]
        tokens.append([1.0] * plain + of_groups)
    longest = max(map(len, tokens))
    return Keys(tuple(made), torch.tensor([row + [0.0] * (longest - len(row)) for row in tokens]), kernel)


ROWS: dict[str, list[tuple[int, list[int], list[float]]]] = {
    "no weights, one length": [(4, [], []), (4, [], [])],
    "no weights, two lengths": [(2, [], []), (5, [], [])],
    "no text in one row": [(0, [], []), (3, [], [])],
    "one row weighted": [(1, [], []), (2, [3, 1], [2.5, 0.3])],
    "both weighted": [(2, [1], [0.5]), (1, [2, 2, 1], [0.0, 4.0, 1.0])],
    "nothing counts once": [(0, [2, 3], [0.7, 0.3]), (1, [], [])],
    "no text counts": [(0, [2, 2], [0.0, 0.0]), (0, [], [])],
}


@pytest.mark.parametrize("how", ["groups", "mask"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_joint_attention_is_one_softmax_with_exactly_the_tokens_of_a_row(
    rows: list[tuple[int, list[int], list[float]]], how: str
) -> None:
    keys = keys_for(rows, on_cpu() if how == "groups" else None)
    query, key, value = tensors(VIDEO + keys.weights.shape[1])
    outputs = attend(query, key, value, keys, VIDEO)
    single = [row for output in outputs for row in output.split(1)]
    assert len(single) == len(rows)
    for index, ((plain, sizes, _), output) in enumerate(zip(rows, single, strict=True)):
        count = VIDEO + plain + sum(sizes)  # behind it may be padding, which nobody reads
        q, k, v = (x[index : index + 1, :count] for x in (query, key, value))
        expected = exact(q, k, v, [1.0] * VIDEO + keys.weights[index, : count - VIDEO].tolist())
        assert float((output[:, :count] - expected).abs().max() / expected.abs().max()) <= 2e-6


@pytest.mark.parametrize("how", ["groups", "mask"])
@pytest.mark.parametrize("name", [name for name in ROWS if "no text" not in name])
def test_cross_attention_is_one_softmax(name: str, how: str) -> None:
    rows = ROWS[name]
    keys = keys_for(rows, on_cpu() if how == "groups" else None)
    query = tensors(7)[0]
    _, key, value = tensors(keys.weights.shape[1])
    output = torch.cat(attend(query, key, value, keys))
    assert output.shape == query.shape
    for index, (plain, sizes, _) in enumerate(rows):
        count = plain + sum(sizes)
        k, v = key[index : index + 1, :count], value[index : index + 1, :count]
        expected = exact(query[index : index + 1], k, v, keys.weights[index, :count].tolist())
        assert float((output[index] - expected[0]).abs().max() / expected.abs().max()) <= 2e-6


@pytest.mark.parametrize("dim", [5, 12, 64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_groups_merge_in_every_precision_and_width(dtype: torch.dtype, dim: int) -> None:
    query, key, value = (x.to(dtype) for x in tensors(9, dim))
    kernel = lse_kernel(None, CPU, dtype, dim)
    assert kernel is not None
    output = merged(query, key, value, (4, 3, 2), torch.tensor([1.0, 2.5, 0.0]), kernel)
    expected = exact(query, key, value, [1.0] * 4 + [2.5] * 3 + [0.0] * 2)
    assert output.dtype == dtype
    assert float((output - expected).abs().max()) <= {torch.bfloat16: 0.02}.get(dtype, 2e-6)


def test_weights_change_without_a_new_graph_and_lengths_with_one_at_most() -> None:
    """Weights are tensors, sizes are numbers, which become variables as soon as they change."""
    compiled: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    function = torch.compile(attend, fullgraph=True, backend=backend)
    counts = []
    for size in (3, 4, 6, 9):
        for weight in (0.5, 2.0, 0.0):
            keys = keys_for([(1, [], []), (4, [size, 2], [weight, 3.0])], on_cpu())
            query, key, value = tensors(VIDEO + keys.weights.shape[1])
            outputs = function(query, key, value, keys, VIDEO)
            for ours, theirs in zip(outputs, attend(query, key, value, keys, VIDEO), strict=True):
                assert torch.allclose(ours, theirs, atol=1e-6)
        counts.append(len(compiled))
    assert counts == [1, 2, 2, 2]


def test_weights_of_0_and_1_are_the_mask_of_booleans() -> None:
    """Bit for bit, so that training and pooling are what a stock pipeline makes of a mask."""
    query, key, value = tensors(4)
    mask = torch.tensor([[True, True, False, True], [False, True, False, False]])
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    theirs = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None]).transpose(1, 2)
    assert torch.equal(masked(query, key, value, mask.float(), 0), theirs)
    torch.manual_seed(0)
    pool = MochiAttentionPool(2, 8, 6)
    x = torch.randn(2, 4, 8)
    assert torch.equal(WeightedPool(pool)(x, mask.float()), pool(x, mask))
    keys = Keys((Row(4), Row(4)), mask.float())
    assert torch.equal(WeightedPool(pool)(x, keys), pool(x, mask))


ON_GPU = [None, "_native_cudnn", "_native_flash", "_native_efficient", "native", "flash", "_flash_3", "sage"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ON_GPU)
def test_every_kernel_of_a_gpu_returns_the_sums_of_its_softmax(name: str | None, dtype: torch.dtype) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    backend = None if name is None else AttentionBackendName(name)
    if name is not None:
        try:
            check_backend(name, device, dtype)
        except MissingError as error:
            pytest.skip(str(error))
    query, key, value = (x.to(device, dtype) for x in tensors(77, 64))
    kernel = lse_kernel(backend, device, dtype, 64)
    assert kernel is not None
    output = merged(query, key, value, (50, 20, 7), torch.tensor([1.0, 2.5, 0.0], device=device), kernel)
    expected = exact(query.cpu(), key.cpu(), value.cpu(), [1.0] * 50 + [2.5] * 20 + [0.0] * 7)
    assert float((output.cpu() - expected).abs().max()) <= (0.05 if name == "sage" else 0.02)


def test_the_mask_is_the_logarithm_of_the_weights() -> None:
    assert added_logits(torch.tensor([[0.0, 1.0, 2.0]]), 1, torch.float32).exp().tolist() == [
        [[pytest.approx([1.0, 0.0, 1.0, 2.0])]]
    ]


def test_video_that_counts_twice_is_as_if_it_stood_there_twice() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 7, 3, 8, generator=generator) for _ in range(3))
    weights, counts = torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.tensor([1.0, 2.0, 1.0, 1.0, 3.0])
    keys = Keys((Row(2), Row(1)), weights, video=counts)
    (found,) = attend(query, key, value, keys, 5)
    often = torch.tensor([0, 1, 1, 2, 3, 4, 4, 4, 5, 6])
    expected = masked(query, key[:, often], value[:, often], weights, 8)
    assert torch.allclose(found, expected, atol=1e-6)
    once = attend(query, key, value, keys._replace(video=torch.ones(5)), 5)[0]
    assert torch.allclose(once, masked(query, key, value, weights, 5), atol=1e-6)
    assert not torch.allclose(once, found, atol=1e-3)
