"""Counts what tensors' operations cost: arithmetic, memory moved, and memory alive at once."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop

# Of attention on a CPU, torch itself counts nothing.
COUNTED = {**flop_registry, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop}
ATEN = torch.ops.aten
UNWRITTEN = {ATEN.empty, ATEN.empty_like, ATEN.empty_strided, ATEN.new_empty, ATEN.new_empty_strided}
OVERWRITING = {ATEN.copy_, ATEN.fill_, ATEN.zero_}  # what they are given first they do not read
PICKING = {ATEN.embedding, ATEN.gather, ATEN.index, ATEN.index_select}  # of that they read what they return


class Meter(TorchDispatchMode):
    """Within it, ``operations`` are the floating-point operations of matrices, convolutions and attention.

    ``traffic`` are the bytes that operations read and write, each by itself, as a GPU does without a compiler
    that joins them: a view moves nothing, and an operator of attention moves no logits. ``kinds`` counts
    operations by their arithmetic and traffic. ``peak`` are the most bytes of tensors alive at once that were
    made within it; ``known`` ones, as weights, do not count. Kernels' scratch space is not seen.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._whole: set[Any] = set()
        self._alive = 0
        self.peak = 0
        self.operations = 0
        self.kinds: Counter[tuple[int, int]] = Counter()

    @property
    def traffic(self) -> int:
        """The bytes that were read and written."""
        total: int = sum(count * moved for (_, moved), count in self.kinds.items())
        return total

    def seconds(self, operations: float, traffic: float) -> float:
        """Return a lower bound of the time that a device takes, by what it can do in a second at most.

        Of every operation, the longer of its arithmetic and its traffic; one after the other.
        """
        kinds = self.kinds.items()
        return sum(count * max(work / operations, moved / traffic) for (work, moved), count in kinds)

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
        work = 0
        if func.overloadpacket in COUNTED:
            work = COUNTED[func.overloadpacket](*args, **kwargs, out_val=output)
        self.operations += work
        self.kinds[work, moved_by(func, args, kwargs, output)] += 1
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


def moved_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """Return the bytes that an operation reads and writes; 0 for a view."""
    packet, given = func.overloadpacket, [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    made = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
    there = {x.untyped_storage()._cdata for x in given}
    if packet in UNWRITTEN or (
        not func._schema.is_mutable and all(x.untyped_storage()._cdata in there for x in made)
    ):
        return 0
    if packet in OVERWRITING or packet in PICKING:
        given = given[1:]
    if packet in PICKING:
        given += made
    read = {id(x): _bytes(x) for x in given}
    return sum(read.values()) + sum(map(_bytes, made))


def _bytes(x: Tensor) -> int:
    """Return the size of what a tensor refers to: an expanded one is there once."""
    sides = (side for side, stride in zip(x.shape, x.stride(), strict=True) if stride)
    return math.prod(sides) * x.element_size()
