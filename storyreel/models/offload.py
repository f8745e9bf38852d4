"""Where a model's components are between their uses: on disk, in the machine's memory, on the device."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor, nn

from storyreel.models.device_errors import lacks_memory
from storyreel.models.host import available_memory
from storyreel.models.memory import MODES, USUAL, MemoryMode, Weights, Working, highest_mode

SPARE = 1_000_000_000  # bytes of a device that encoding a prompt may take
SCRATCH = 500_000_000  # bytes of a device for kernels and gaps, which no calculation sees: a guess
KEPT_FREE = 4_000_000_000  # bytes of the machine's memory that are never pinned
CHUNK = 1 << 30  # bytes that are pinned at a time, at most
ALIGNED = 256


class Component:
    """A network of a model: on disk until it is used, and again after that.

    ``read`` returns it anew; ``skeleton`` is the same without data, for its size.
    """

    def __init__(self, read: Callable[[], nn.Module], skeleton: nn.Module, given: bool = False) -> None:
        self.read, self.skeleton, self.given = read, skeleton, given

    @classmethod
    def of(cls, part: nn.Module | Component) -> Component:
        """Return a component; a network that is given is there for good."""
        return part if isinstance(part, Component) else cls(lambda: part, part, given=True)

    def then(self, prepare: Callable[[nn.Module], nn.Module]) -> Component:
        """Return the same network as ``prepare`` makes it."""
        if self.given:
            return Component.of(prepare(self.skeleton))
        return Component(lambda: prepare(self.read()), prepare(self.skeleton))

    @property
    def size(self) -> int:
        """The bytes of its parameters."""
        return size_of(self.skeleton)


class Offload:
    """Reads, moves and frees components, as the memory mode wants it.

    Texts are encoded before the transformers are read: in modes balanced and low the text encoders are freed
    then, and read again when there are other texts. ``mode`` auto is the highest that fits into the device's
    free memory, beside what is needed for ``working``.
    """

    def __init__(
        self,
        device: torch.device,
        experts: Sequence[Component],
        text_encoders: Sequence[Component],
        vae: nn.Module,
        mode: MemoryMode,
        working: Working | None = None,
    ) -> None:
        self._device, self._vae = device, vae
        self._experts, self._text_encoders = tuple(experts), tuple(text_encoders)
        self._loaded_experts: list[Any] = []
        self._loaded_encoders: list[Any] = []
        # Whose parts come and go: they must not be moved as a whole.
        self._in_pieces: WeakSet[nn.Module] = WeakSet()
        self._encoding = False
        self._short = False  # the device had too little memory
        self._automatic = mode == "auto"
        self.mode: MemoryMode = mode
        if self._automatic:
            self.mode = "high"
            self.mode = self._fitting(working)
        self._place_all()

    @property
    def experts(self) -> list[Any]:
        """The transformers, which are read where they are not there."""
        # The next is read when this one is in its place. One that failed is read again, and no other.
        for expert in self._experts[len(self._loaded_experts) :]:
            module = expert.read()
            self._place_expert(module)
            self._loaded_experts.append(module)
        return self._loaded_experts

    @property
    def text_encoders(self) -> list[Any]:
        """The text encoders, which are read where they are not there."""
        if not self._loaded_encoders:
            self._loaded_encoders += [encoder.read() for encoder in self._text_encoders]
            if self.mode == "high":
                self._move(self._loaded_encoders, self._device)
        return self._loaded_encoders

    @property
    def loaded_experts(self) -> list[Any]:
        """The transformers that are there."""
        return self._loaded_experts

    def sizes(self) -> tuple[int, int, int]:
        """Return the bytes of the transformers, the text encoders and the VAE."""
        experts, encoders = (
            sum(part.size for part in parts) for parts in (self._experts, self._text_encoders)
        )
        return experts, encoders, size_of(self._vae)

    def weights(self) -> Weights:
        """Return the bytes of the weights, as they are needed to choose a mode."""
        _, encoders, vae = self.sizes()
        experts = tuple(float(expert.size) for expert in self._experts)
        parts = max(parts_of(expert.skeleton) for expert in self._experts)
        matrices = [size_of(p) for part in self._text_encoders for p in part.skeleton.parameters()]
        return Weights(experts, max(experts), encoders, vae, parts, max(matrices, default=0))

    def choose(self, working: Working | None) -> MemoryMode:
        """Where the mode is for us to choose, take the highest that fits a film; return it.

        ``working`` is what the film's size and length want. A mode that was too high once is not tried again.
        """
        if self._automatic and (chosen := self._fitting(working)) != self.mode:
            self._become(chosen)
        return self.mode

    def read_experts_again(self) -> None:
        """Free the transformers that are there, so that they are read anew. Raises RuntimeError if given."""
        if any(expert.given for expert in self._experts):
            raise RuntimeError("networks that were given cannot be read again")
        self._loaded_experts.clear()
        give_back(self._device)

    def lower(self) -> MemoryMode | None:
        """Go to the next lower mode, since memory was short, and return it; None if there is none."""
        if self.mode == "low":
            return None
        self._automatic, self._short = False, True
        self._become(MODES[MODES.index(self.mode) + 1])
        return self.mode

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Have the text encoders at work for a while, together; then free them, but in mode high."""
        if self._encoding or self.mode == "high":
            yield
            return
        self._encoding = True
        try:
            self._bring_encoders()
            yield
        finally:
            self._encoding = False
            self._put_encoders_away()

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Have the VAE on the device for a while."""
        with self._on_device(self._vae):
            yield

    def _fitting(self, working: Working | None) -> MemoryMode:
        """Return the highest mode that fits into the device's memory."""
        if self._device.type == "cuda":
            free = self._free_with_ours() - SCRATCH
            return highest_mode(self.weights().on_device(working or USUAL), free)
        if self._device.type != "cpu" or working is None:
            return "high"
        needed, ours = self.weights().on_device(working), self._ours()
        return "high" if needed["high"] <= available_memory() + ours else "balanced"

    def _free_with_ours(self) -> float:
        """Return the bytes of a GPU that are free, or would be if no component were there."""
        return free_memory(self._device) + self._ours()

    def _ours(self) -> int:
        """Return the bytes of the components that are on the device."""
        modules = (*self._loaded_experts, *self._loaded_encoders, self._vae)
        tensors = [p for module in modules for p in module.parameters() if p.device == self._device]
        return sum(map(size_of, tensors))

    def _become(self, mode: MemoryMode) -> None:
        """Be in another mode. What can be read again is freed: files take less memory than moving."""
        in_parts = "low" in (self.mode, mode)
        self.mode = mode
        if in_parts and not any(expert.given for expert in self._experts):
            self._loaded_experts.clear()
        if mode != "high" and not any(encoder.given for encoder in self._text_encoders):
            self._loaded_encoders.clear()
        give_back(self._device)
        self._place_all()
        give_back(self._device)

    def _place_all(self) -> None:
        """Put what is there, and what is given, where the mode wants it between its uses."""
        self._vae.to(self._device if self.mode == "high" else "cpu")
        for components, loaded, place in (
            (self._text_encoders, self._loaded_encoders, self._place_encoder),
            (self._experts, self._loaded_experts, self._place_expert),
        ):
            if not loaded and all(component.given for component in components):
                loaded += [component.read() for component in components]
            for module in loaded:
                place(module)

    def _place_encoder(self, encoder: nn.Module) -> None:
        self._move([encoder], self._device if self.mode == "high" else torch.device("cpu"))

    def _place_expert(self, expert: nn.Module) -> None:
        if self.mode != "low":
            self._move([expert], self._device)
            return
        if expert in self._in_pieces:
            return
        expert.to("cpu")
        streams = self._device.type == "cuda"
        pinned = streams and pin(expert)
        self._in_parts(
            expert, offload_type="block_level", num_blocks_per_group=1, low_cpu_mem_usage=not pinned
        )

    def _bring_encoders(self) -> None:
        """Have the text encoders on the device: whole, or where that is too small in parts, unpinned."""
        encoders = self.text_encoders
        if not self._has_room(sum(map(size_of, encoders)) + SPARE):
            for encoder in encoders:
                if encoder not in self._in_pieces:
                    self._in_parts(encoder, offload_type="leaf_level", low_cpu_mem_usage=True)
        self._move(encoders, self._device)

    def _put_encoders_away(self) -> None:
        if not any(encoder.given for encoder in self._text_encoders):
            self._loaded_encoders.clear()
        self._move(self._loaded_encoders, torch.device("cpu"))
        give_back(self._device)

    def _has_room(self, size: int) -> bool:
        if self._device.type != "cuda":
            return True
        return not (self._short and self.mode == "low") and size <= free_memory(self._device)

    def _move(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        for module in modules:
            if module not in self._in_pieces:
                module.to(device)

    @contextmanager
    def _on_device(self, module: nn.Module) -> Iterator[None]:
        if next(module.parameters()).device == self._device:
            yield
            return
        module.to(self._device)
        try:
            yield
        finally:
            module.to("cpu")

    def _in_parts(self, module: nn.Module, **options: Any) -> None:
        """Have the parts of a component on the device only while they work."""
        stream = self._device.type == "cuda"
        apply_group_offloading(module, onload_device=self._device, use_stream=stream, **options)
        self._in_pieces.add(module)


def size_of(what: nn.Module | Tensor) -> int:
    """Return the bytes of a network's parameters, or of a tensor."""
    tensors = [what] if isinstance(what, Tensor) else what.parameters()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def parts_of(transformer: nn.Module) -> int:
    """Return the bytes of a transformer that are on the device at a time in mode low.

    That are two blocks, the second on its way, and whatever is no block.
    """
    blocks = [size_of(block) for stack in _stacks(transformer) for block in stack.children()]
    return size_of(transformer) - sum(blocks) + 2 * max(blocks, default=0)


def pinned_buffers(sizes: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Return buffers in which tensors of so many bytes lie side by side: their bytes, and which they hold.

    torch rounds what it pins up to a power of two. So buffers are powers of two, and filled with the largest
    tensors first: one by one, tensors would take half as much again.
    """
    left, buffers = sorted(range(len(sizes)), key=lambda index: -sizes[index]), []
    while left:
        everything, largest = sum(aligned(sizes[index]) for index in left), aligned(sizes[left[0]])
        room = max(min(CHUNK, 1 << (everything.bit_length() - 1)), 1 << (largest - 1).bit_length(), 1 << 20)
        inside, rest, used = [], [], 0
        for index in left:
            if used + aligned(sizes[index]) <= room:
                inside.append(index)
                used += aligned(sizes[index])
            else:
                rest.append(index)
        buffers.append((room, inside))
        left = rest
    return buffers


def aligned(size: int) -> int:
    """Return a size with what keeps the next tensor aligned."""
    return max(1, -(-size // ALIGNED)) * ALIGNED


def pin(transformer: nn.Module) -> bool:
    """Have the blocks of a transformer, which is on the CPU, in pinned memory; return whether they are.

    They are not where too little of the machine's memory would be left: then each is pinned on its way.
    """
    blocks = [block for stack in _stacks(transformer) for block in stack.children()]
    tensors = {id(t): t for block in blocks for t in (*block.parameters(), *block.buffers())}
    buffers = pinned_buffers([size_of(tensor) for tensor in tensors.values()])
    if sum(size for size, _ in buffers) + KEPT_FREE > available_memory():
        return False
    every = list(tensors.values())
    for size, inside in buffers:
        try:
            flat, place = _pinned(size), 0
        except RuntimeError as error:  # systems have limits of their own
            if not lacks_memory(error):
                raise
            return False
        for tensor in (every[index] for index in inside):
            there = flat[place : place + size_of(tensor)].view(tensor.dtype).view(tensor.shape)
            tensor.data = there.copy_(tensor.data)
            place += aligned(size_of(tensor))
    return True


def _pinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def free_memory(device: torch.device) -> int:
    """Return the bytes of a GPU that are free, with those that torch keeps to itself and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + unused)


def give_back(device: torch.device) -> None:
    """Give the memory of what was freed back to the device."""
    gc.collect()  # networks refer to themselves
    if device.type == "cuda":
        torch.cuda.empty_cache()
        empty = getattr(torch.accelerator, "empty_host_cache", None)  # of what was pinned; not in torch 2.9
        if empty is not None and torch.accelerator.is_available():
            empty()


def _stacks(module: nn.Module) -> list[nn.Module]:
    """Return what diffusers takes for rows of blocks, of which it offloads one after the other."""
    return [child for child in module.children() if isinstance(child, nn.ModuleList | nn.Sequential)]
