"""Which kernel of attention computes: diffusers' names for them, and those that return log-sum-exps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from diffusers.models.attention_dispatch import (
    HF_HUB_OFFLINE,
    AttentionBackendName,
    attention_backend,
    dispatch_attention_fn,
)
from torch import Tensor
from torch.backends import cuda, cudnn

from storyreel.errors import MissingError, UsageError

# Attends with queries (B, N, heads, D) to several groups of keys and values, (B, M, heads, D) each, and
# returns for each its output (B, N, heads, D) and the logarithms of its sums (B, N, heads).
Kernel = Callable[[Tensor, Sequence[tuple[Tensor, Tensor]]], list[tuple[Tensor, Tensor]]]

CUDNN_FIXED = 91500  # 9.15: as of this version torch prefers it, on cards of `HOPPER_ON`
HOPPER_ON = (9, 10)  # major compute capability
# Those that return log-sum-exps through diffusers, and whether heads stand before queries there. Of torch's
# own, diffusers (0.42) returns none without a parallel configuration: their operators are named below.
DISPATCHED = {
    AttentionBackendName.FLASH: True,
    AttentionBackendName.FLASH_HUB: True,
    AttentionBackendName._FLASH_3: False,
    AttentionBackendName.SAGE: True,
    AttentionBackendName.SAGE_HUB: True,
}


def check_backend(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Try one of diffusers' attention backends on a device, with a few numbers.

    Raises UsageError for an unknown one and for one that would be downloaded, MissingError for one that is
    not installed or does not work there.
    """
    known = [backend.value for backend in AttentionBackendName]
    if name not in known:
        raise UsageError(f"unknown attention backend {name!r:.60}", f"Known: {', '.join(known)}.")
    if name.endswith("_hub") and not HF_HUB_OFFLINE:
        raise UsageError(
            f"attention backend {name} would fetch its kernel from the hub, and rendering fetches nothing",
            "With the kernel in the hub's cache, set HF_HUB_OFFLINE=1; or choose another --attention.",
        )
    some = torch.ones(1, 64, 2, 64, device=device, dtype=dtype)
    try:
        with attention_backend(AttentionBackendName(name)):
            works = bool(dispatch_attention_fn(some, some, some).isfinite().all())
        reason = "" if works else "it returns no numbers"
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if reason:
        kind = str(dtype).removeprefix("torch.")
        raise MissingError(
            f"attention backend {name} does not work on {device} in {kind}: {reason:.300}",
            "Install what it needs, or choose another with --attention or DIFFUSERS_ATTN_BACKEND.",
        )


@lru_cache
def lse_kernel(
    backend: AttentionBackendName | None, device: torch.device, dtype: torch.dtype, head_dim: int
) -> Kernel | None:
    """Return the best kernel at hand that returns log-sum-exps: the chosen backend's if it does.

    None where there is none.
    """
    if device.type == "cpu":
        return _of_cpu
    if device.type == "meta":  # for calculations, which stand for a GPU
        return _flash
    if device.type != "cuda":
        return None
    if backend in DISPATCHED:
        return partial(_dispatched, backend)
    if head_dim % 8:  # the operators want rows of whole 16 bytes
        return None
    some = torch.empty(1, 1, 64, head_dim, device=device, dtype=dtype)
    params = cuda.SDPAParams(some, some, some, None, 0.0, False, False)
    usable: dict[AttentionBackendName, Kernel] = {}
    if cuda.can_use_cudnn_attention(params):
        usable[AttentionBackendName._NATIVE_CUDNN] = _cudnn
    if cuda.can_use_flash_attention(params):
        usable[AttentionBackendName._NATIVE_FLASH] = _flash
    if cuda.can_use_efficient_attention(params):
        usable[AttentionBackendName._NATIVE_EFFICIENT] = _efficient
    if backend in usable:
        return usable[backend]
    major, _ = torch.cuda.get_device_capability(device)
    if major not in HOPPER_ON or (cudnn.version() or 0) < CUDNN_FIXED:
        cudnn_last = usable.pop(AttentionBackendName._NATIVE_CUDNN, None)
        return next(iter(usable.values()), cudnn_last)
    return next(iter(usable.values()), None)


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def _cudnn(query: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    # Called by name it wants contiguous tensors: with others it was seen to be wrong (diffusers says so).
    q, answers = _heads_first(query).contiguous(), []
    for k, v in pairs:
        if k.shape[1] == 1:  # which cuDNN does not support
            answers += _flash(query, [(k, v)])
            continue
        k, v = (_heads_first(x).contiguous() for x in (k, v))
        output, sums = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[:2]
        answers.append((_heads_first(output), sums.flatten(2).transpose(1, 2)))
    return answers


def _flash(query: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return _of_torch(torch.ops.aten._scaled_dot_product_flash_attention, query, pairs)


def _of_cpu(query: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return _of_torch(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, query, pairs)


def _efficient(query: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    operator = torch.ops.aten._scaled_dot_product_efficient_attention
    count = query.shape[1]  # its sums are padded to a multiple of 32
    answers = _of_torch(operator, query, pairs, None, True)
    return [(output, sums[:, :count]) for output, sums in answers]


def _of_torch(
    operator: Any, query: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], *options: Any
) -> list[tuple[Tensor, Tensor]]:
    q, answers = _heads_first(query), []
    for k, v in pairs:
        output, sums = operator(q, _heads_first(k), _heads_first(v), *options)[:2]
        answers.append((_heads_first(output), sums.transpose(1, 2)))
    return answers


def _dispatched(
    backend: AttentionBackendName, query: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    answers = []
    for k, v in pairs:
        asked = {"return_lse": True}
        output, sums = dispatch_attention_fn(query, k, v, attention_kwargs=asked, backend=backend)
        answers.append((output, sums.transpose(1, 2) if DISPATCHED[backend] else sums))
    return answers
