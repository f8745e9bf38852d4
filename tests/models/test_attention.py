from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from storyreel.models.attention import Remembering, added_logits, attend, merged_attention


def tensors(keys: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 3, n, 8, generator=generator) for n in (7, keys, keys))  # type: ignore[return-value]


MASKS = {
    "weights": torch.tensor([[0.3, 0.7, 0.0, 1.0], [2.0, 0.5, 0.5, 0.0]]),
    "which count": torch.tensor([[True, True, False, True], [False, True, False, False]]),
    "none of one text counts": torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]),
    "no text counts": torch.zeros(2, 4, dtype=torch.bool),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_merged_attention_is_one_softmax(mask: torch.Tensor) -> None:
    q, k, v = tensors()
    added = added_logits(mask, 8, q.dtype)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=added)
    merged = merged_attention(q, k, v, added, 8)
    assert merged.isfinite().all()
    assert float((merged - expected).abs().max() / expected.abs().max()) <= 1e-6


def test_merged_attention_compiles_to_one_graph() -> None:
    q, k, v = tensors()
    added = added_logits(MASKS["weights"], 8, q.dtype)
    compiled = torch.compile(merged_attention, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(q, k, v, added, 8), merged_attention(q, k, v, added, 8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_on_a_gpu_the_fast_way_is_as_near_as_rounding(mask: torch.Tensor) -> None:
    q, k, v = (x.cuda().bfloat16() for x in tensors())
    added = added_logits(mask.cuda(), 8, q.dtype)
    exact = scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=added.float())
    query, key, value = (x.transpose(1, 2) for x in (q, k, v))
    ours = attend(query, key, value, added, 8).transpose(1, 2)
    assert float((ours.float() - exact).abs().max()) <= 0.02


def test_a_memory_excludes_what_a_mask_of_booleans_excludes() -> None:
    layer = Remembering()
    key, value = torch.randn(1, 4, 1, 2), torch.randn(1, 4, 1, 2)
    layer.memory = (torch.randn(1, 2, 1, 2), torch.randn(1, 2, 1, 2), torch.tensor([1.0, 0.5]))
    mask = torch.tensor([[[[True, False, True, True]]]])
    keys, values, added = layer.extend(key, value, mask)
    assert keys.shape == values.shape == (1, 6, 1, 2)
    assert added is not None
    expected = torch.tensor([0.0, -torch.inf, 0.0, 0.0, 0.0, 0.5]).view(1, 1, 1, 6)
    expected[..., 5] = torch.tensor(0.5).log()
    assert torch.equal(added, expected)
