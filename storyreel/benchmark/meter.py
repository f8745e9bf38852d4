"""Counts what tensors' operations cost: arithmetic, and memory alive at once."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop

# Of attention on a CPU, torch itself counts nothing.
COUNTED = {**flop_registry, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop}


class Meter(TorchDispatchMode):
    """Within it, ``operations`` are the floating-point operations of matrices, convolutions and attention.

    ``peak`` are the most bytes of tensors alive at once that were made within it; ``known`` ones, as
    weights, do not count. Kernels' scratch space is not seen.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._whole: set[Any] = set()
        self._alive = 0
        self.peak = 0
        self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self._whole:  # in inference mode, what consists of other operations comes undivided
            with self:
                divided = func.decompose(*args, **kwargs)
            if divided is not NotImplemented:
                return divided
            self._whole.add(func)
        output = func(*args, **kwargs)
        if func.overloadpacket in COUNTED:
            self.operations += COUNTED[func.overloadpacket](*args, **kwargs, out_val=output)
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        self.peak = max(self.peak, self._alive)
        return output

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self._alive += size
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._alive -= size
