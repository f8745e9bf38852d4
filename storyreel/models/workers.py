"""Several devices for one film: ``torchrun --nproc-per-node N -m storyreel render …``.

The first process renders as ever. What it asks the transformer, one request for every segment of the
window, is shared out: the others do nothing but answer. Any family can do that, no arithmetic changes,
and so the film is the same as from one process. (Splitting one segment's tokens over devices instead,
as diffusers' context parallelism does, has a plan for Wan and LTX alone, and none for a memory's keys.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from storyreel.errors import MissingError
from storyreel.models.base import Adapter, Memory, Request, Text, pick_device

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
    """Meet the other processes, and part at the end: the first sends the others home.

    Raises MissingError in the first if any of them lacks its ``device``; the others part at once.
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
        _send_home()
        raise
    # An interrupt reaches all processes by itself; nobody waits for a farewell then.
    _send_home()
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


def _send_home() -> None:
    if rank() == 0:
        for other in range(1, members()):
            with suppress(Exception):  # whoever has died needs no farewell
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
        name, task, content = message
        answer: Any
        try:
            adapter = adapter_of(name)
            if task == "economise":
                answer = adapter.economise()
            else:
                with torch.inference_mode():
                    answer = [_moved(v, "cpu") for v in adapter.predict(*_on(content, adapter.device))]
        except Exception as error:  # the first process says it, and decides what to do
            answer = error
        _send(answer, 0)


class Crew:
    """An adapter whose requests are answered by all processes."""

    def __init__(self, adapter: Adapter) -> None:
        self._own = adapter
        self.spec, self.device = adapter.spec, adapter.device

    @property
    def memory(self) -> Any:
        """The memory mode of the first process."""
        return self._own.memory

    def predict_all(self, requests: Sequence[Request]) -> Iterator[list[Tensor]]:
        """Answer requests, shared out in turn; the first process takes the first of every round."""
        others = members()
        for begin in range(0, len(requests), others):
            shared = range(begin, min(begin + others, len(requests)))
            for index in shared[1:]:
                _send((self.spec.label, "predict", _away(requests[index])), index - begin)
            answers: list[Any] = []
            try:
                answers.append(self._own.predict(*requests[begin]))
            except Exception as error:  # the others' answers must be fetched first
                answers.append(error)
            answers += [_receive(index - begin) for index in shared[1:]]
            if failures := [answer for answer in answers if isinstance(answer, BaseException)]:
                raise failures[0]
            for answer in answers:
                yield [velocity.to(self.device) for velocity in answer]

    def economise(self) -> str | None:
        """Go to the next lower memory mode, everywhere."""
        for other in range(1, members()):
            _send((self.spec.label, "economise", None), other)
            _receive(other)
        return self._own.economise()

    def predict(
        self, x: Tensor, sigma: float, texts: Sequence[Text], memory: Memory | None = None
    ) -> list[Tensor]:
        """Answer one request."""
        return self._own.predict(x, sigma, texts, memory)

    def compile(self) -> None:
        """Compile the first process's model; the others compile their own as they load it."""
        self._own.compile()

    def prepare(self, prompts: Iterable[str]) -> None:
        """Encode prompts in advance."""
        self._own.prepare(prompts)

    def encode(self, prompt: str) -> Text:
        """Encode a prompt."""
        return self._own.encode(prompt)

    def sigmas(self, steps: int, shape: Sequence[int]) -> list[float]:
        """Return noise levels."""
        return self._own.sigmas(steps, shape)

    def expert_at(self, sigma: float) -> int:
        """Return which transformer is made for a noise level."""
        return self._own.expert_at(sigma)

    def remember(self, latents: Tensor, text: Text) -> Memory:
        """Return what the model sees in clean latents."""
        return self._own.remember(latents, text)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pictures of a clip's latents."""
        return self._own.decode(latents)

    def preview(self, latents: Tensor) -> Tensor | None:
        """Return a cheap picture of each latent frame."""
        return self._own.preview(latents)


def _away(request: Request) -> tuple[Any, ...]:
    return tuple(_moved(part, "cpu") for part in request)


def _on(content: tuple[Any, ...], device: torch.device) -> tuple[Any, ...]:
    return tuple(_moved(part, device) for part in content)


def _moved(part: Any, device: torch.device | str) -> Any:
    """Return tensors, texts and memories on a device, and anything else as it is."""
    if isinstance(part, Tensor):
        return part.to(device)
    if isinstance(part, Text):
        return Text(part.states.to(device), part.mask.to(device))
    if isinstance(part, Memory):
        layers = tuple((keys.to(device), values.to(device)) for keys, values in part.layers)
        return Memory(layers, part.weights.to(device))
    return [_moved(item, device) for item in part] if isinstance(part, list | tuple) else part


def _send(message: Any, to: int) -> None:
    dist.send_object_list([message], dst=to)


def _receive(source: int) -> Any:
    box: list[Any] = [None]
    dist.recv_object_list(box, src=source)
    return box[0]
