"""LoRAs merged into a transformer's weights, where they cost nothing while it works."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from storyreel.errors import DamagedError, MissingError
from storyreel.models.lora import Lora
from storyreel.models.lora_files import Change, UnfitError, changes_of

DAMAGED = "Get the file again; if it is so at its source, the LoRA cannot be used."
REMEDY = "Name the file of a LoRA that was trained for this model, or leave it out."


def merge(
    transformer: nn.Module, loras: Sequence[Lora], authors_names: Sequence[tuple[str, str]] = ()
) -> None:
    """Add what LoRAs change to a transformer's weights: W + Σ weight·(alpha/rank)·up·down, in fp32.

    The sum is rounded once, to the dtype that the weight has. The weights must be those that were loaded:
    nothing is ever taken away again, which would not be exact. ``authors_names`` as in `ModelSpec`. Raises
    MissingError or DamagedError before the first weight is changed.
    """
    parameters = dict(transformer.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    of_target: dict[str, list[tuple[Lora, Change]]] = {}
    for lora in loras:
        for change in _changes(lora.path, shapes, authors_names):
            of_target.setdefault(change.target, []).append((lora, change))
    with ExitStack() as opened:
        files = {path: opened.enter_context(safe_open(path, "pt")) for path in {lora.path for lora in loras}}
        for lora, change in (pair for pairs in of_target.values() for pair in pairs):
            _check_finite(lora.path, files[lora.path], change)
        for target, changes in of_target.items():
            parameter = parameters[target]
            merged = parameter.data.float()
            for lora, change in changes:
                difference = lora.weight * _difference(files[lora.path], change)
                merged = merged + difference.view(merged.shape).to(merged.device)
            parameter.data = merged.to(
                parameter.dtype
            )  # and not into the old one, which may be a mapped file


def _changes(
    path: Path, shapes: dict[str, tuple[int, ...]], authors_names: Sequence[tuple[str, str]]
) -> list[Change]:
    try:
        return changes_of(path, shapes, authors_names)
    except UnfitError as error:
        raise DamagedError(f"{path}: {error}", REMEDY) from None
    except FileNotFoundError:
        raise MissingError(f"there is no file {path}", REMEDY) from None
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror}", REMEDY) from None


def _check_finite(path: Path, file: Any, change: Change) -> None:
    """Raise DamagedError for NaN or infinity, of which no step would make a picture."""
    for key in filter(None, (change.up, change.down, change.difference, change.alpha)):
        if not file.get_tensor(key).float().isfinite().all():
            raise DamagedError(f"{path} is damaged: {key} has numbers that are not finite", DAMAGED)


def _difference(file: Any, change: Change) -> Tensor:
    """Return what a change adds at weight 1, in fp32, on the CPU."""
    scale = float(file.get_tensor(change.alpha)) / change.rank if change.alpha else change.scale
    if change.difference:
        difference: Tensor = file.get_tensor(change.difference).float()
    else:
        up, down = (file.get_tensor(key).float().flatten(1) for key in (change.up, change.down))
        difference = up @ down
    return scale * difference
