"""Which device computes."""

from __future__ import annotations

import torch

from storyreel.errors import MissingError


def pick_device(name: str) -> torch.device:
    """Return the device called ``auto``, ``cpu`` or ``cuda``. Raises MissingError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise MissingError("no CUDA device is at hand", "Use --device cpu, or check nvidia-smi.")
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())  # as tensors there call it
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise MissingError(f"there is no {name}: this machine has {count}", "Count from cuda:0.")
    return device
