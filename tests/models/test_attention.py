from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import MochiAttentionPool
from torch.nn.functional import scaled_dot_product_attention

from storyreel.models.attention import added_logits, attend, merged_attention
from storyreel.models.mochi_attention import WeightedPool


def tensors(keys: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 3, n, 8, generator=generator) for n in (7, keys, keys))  # type: ignore[return-value]


WEIGHTS = {
    "weights": torch.tensor([[0.3, 0.7, 0.0, 1.0], [2.0, 0.5, 0.5, 0.0]]),
    "all or nothing": torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]]),
    "none of one text counts": torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]),
    "no text counts": torch.zeros(2, 4),
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_merged_attention_is_one_softmax(weights: torch.Tensor) -> None:
    q, k, v = tensors()
    added = added_logits(weights, 8, q.dtype)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=added)
    merged = merged_attention(q, k, v, added, 8)
    assert merged.isfinite().all()
    assert float((merged - expected).abs().max() / expected.abs().max()) <= 1e-6


def test_merged_attention_compiles_to_one_graph() -> None:
    q, k, v = tensors()
    added = added_logits(WEIGHTS["weights"], 8, q.dtype)
    compiled = torch.compile(merged_attention, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(q, k, v, added, 8), merged_attention(q, k, v, added, 8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_on_a_gpu_the_fast_way_is_as_near_as_rounding(weights: torch.Tensor) -> None:
    q, k, v = (x.cuda().bfloat16() for x in tensors())
    added = added_logits(weights.cuda(), 8, q.dtype)
    exact = scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=added.float())
    query, key, value = (x.transpose(1, 2) for x in (q, k, v))
    ours = attend(query, key, value, added, 8).transpose(1, 2)
    assert float((ours.float() - exact).abs().max()) <= 0.02


def test_weights_of_0_and_1_are_the_mask_of_booleans() -> None:
    """Bit for bit, so that a text whose tokens are not weighed is what a stock pipeline makes of it."""
    q, k, v = tensors(4)
    mask = torch.tensor([[True, True, False, True], [False, True, False, False]])
    weighed = scaled_dot_product_attention(q, k, v, attn_mask=added_logits(mask.float(), 0, q.dtype))
    assert torch.equal(weighed, scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None]))
    torch.manual_seed(0)
    pool = MochiAttentionPool(2, 8, 6)
    x = torch.randn(2, 4, 8)
    assert torch.equal(WeightedPool(pool)(x, mask.float()), pool(x, mask))
