"""Several devices for one film: ``torchrun --nproc-per-node N -m storyreel render …``.

The first process renders, as many segments at a time as there are processes. Its requests to the
transformer, one for every segment, are shared out; the other processes answer requests and do nothing else.
Any family can do that, no arithmetic changes, and so the film is the same as from one process. A segment
that goes on in the shot of the one before has to wait for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from storyreel.errors import MissingError
from storyreel.models.base import Adapter, Request
from storyreel.models.devices import pick_device
from storyreel.models.lora import Lora
from storyreel.models.memory import MODES, MemoryMode

PATIENCE = timedelta(days=30)  # a process without a request waits as long as the film takes


def members() -> int:
    """Return how many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def own_device(name: str) -> str:
    """Return the device of this process: of several GPUs, each its own."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return name


@contextmanager
def together(device: str) -> Iterator[None]:
    """Join the other processes; at the end the first process ends their `serve`.

    Raises MissingError in the first if any of them lacks its ``device``; the others exit at once.
    """
    # Requests are a few megabytes on their way to seconds of work, and go over the CPU: gloo does for all.
    dist.init_process_group("gloo", timeout=PATIENCE)
    lacking: list[str | None] = [None] * members()
    dist.all_gather_object(lacking, _lack_of(device))
    if found := [reason for reason in lacking if reason]:
        dist.destroy_process_group()
        if rank() == 0:
            raise MissingError(found[0], "Start as many processes as there are GPUs: --nproc-per-node N.")
        raise SystemExit(0)
    try:
        yield
    except Exception:
        _end_service()
        raise
    # An interrupt reaches all processes by itself: none of them waits for a message then.
    _end_service()
    dist.destroy_process_group()


def _lack_of(device: str) -> str | None:
    """Return why this process cannot have its device, and make it the usual one if it can."""
    try:
        picked = pick_device(device)
    except MissingError as error:
        return error.message
    if picked.type == "cuda":
        torch.cuda.set_device(picked)
    return None


def _end_service() -> None:
    if rank() == 0:
        for other in range(1, members()):
            with suppress(Exception):  # a process may have died
                _send(None, other)


def serve(adapter_of: Callable[[str], Adapter]) -> None:
    """Answer the first process's requests until it is done; ``adapter_of`` loads a model by its name."""
    while True:
        try:
            message = _receive(0)
        except RuntimeError:  # the first process is gone
            return
        if message is None:
            return
        _send(_answer(adapter_of, *message), 0)  # and keep nothing of it: after an error, memory is scarce


def _answer(
    adapter_of: Callable[[str], Adapter],
    name: str,
    mode: MemoryMode,
    loras: Sequence[Lora],
    request: Request,
) -> list[Tensor] | Exception:
    """Return the velocities for a request, or an error, which is raised in the first process.

    The memory mode is lowered as far as the first process has lowered its own, and LoRAs are merged as there.
    """
    try:
        adapter = adapter_of(name)
        while MODES.index(adapter.memory) < MODES.index(mode):
            adapter.lower_memory_mode()
        adapter.merge_loras(loras)
        with torch.inference_mode():
            (velocities,) = adapter.predict([request.to(adapter.device)])
        return [velocity.cpu() for velocity in velocities]
    except Exception as error:
        return error


class Workers:
    """An adapter whose requests are answered by all processes; everything else the first does alone."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self.at_once = members()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def predict(self, requests: Sequence[Request]) -> Iterator[list[Tensor]]:
        """Answer requests, dealt out in turn; the first process takes the first of every round."""
        name, mode, loras = self._adapter.spec.label, self._adapter.memory, self._adapter.loras
        for begin in range(0, len(requests), members()):
            first, *others = requests[begin : begin + members()]
            for worker, request in enumerate(others, 1):
                _send((name, mode, loras, request.to("cpu")), worker)
            answers: list[Any] = []
            try:
                answers += self._adapter.predict([first])
            except Exception as error:  # the others' answers must be fetched first
                answers.append(error)
            answers += [_receive(worker) for worker in range(1, len(others) + 1)]
            if failures := [answer for answer in answers if isinstance(answer, BaseException)]:
                raise failures[0]
            for answer in answers:
                yield [velocity.to(self._adapter.device) for velocity in answer]


def _send(message: Any, to: int) -> None:
    dist.send_object_list([message], dst=to)


def _receive(source: int) -> Any:
    box: list[Any] = [None]
    dist.recv_object_list(box, src=source)
    return box[0]
