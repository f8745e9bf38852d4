"""Weights stored in eight bits, half of what bfloat16 takes; on GPUs that can, products in eight bits too."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

STORED = torch.float8_e4m3fn
LARGEST = torch.finfo(STORED).max
CAPABILITY = (8, 9)  # of GPUs that multiply float8: Ada, Hopper and later
MULTIPLE = 16  # channels: what the kernels ask for


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is stored in float8, with a scale for each output channel.

    Unless it ``multiplies``, it computes in the dtype that it had: the weight is cast and scaled whenever it
    is called. With a row's largest weight at float8's largest number, the error is 2.7 % of the weights; the
    bare cast that diffusers' `enable_layerwise_casting` makes leaves those of wide layers among float8's
    subnormals (6 % at a standard deviation of 0.01), changes the dtype that a model seems to have, and breaks
    graphs.
    """

    multiplies = False  # float8 by float8

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / LARGEST
        scale[scale == 0] = 1  # rows of zeros stay zeros
        self.weight = nn.Parameter((weight.float() / scale.float()).to(STORED), requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map x (…, in) to (…, out)."""
        if self.multiplies and x.dtype == torch.bfloat16:  # kernels write nothing else
            return multiplied(x, self.weight, self.scale, self.bias)
        weight = self.weight.to(self.scale.dtype) * self.scale
        return nn.functional.linear(x, weight, self.bias)


def quantize(block: nn.Module) -> None:
    """Store the weights of a block's linear layers in float8, one after the other, where they are."""
    for parent in list(block.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, QuantizedLinear(child))


def multiplied(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Return x (…, in) by a stored weight (out, in) and its scale (out, 1), as (…, out) in x's dtype.

    Each row of x is scaled so that its largest number is float8's largest: (Σ x8·w8)·scale of x·scale of w.
    """
    rows = x.flatten(0, -2)
    largest = rows.abs().amax(1, keepdim=True).float()
    x_scale = (largest / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)  # rows of zeros stay zeros
    by_row = nn.functional.ScalingType.RowWise
    product = nn.functional.scaled_mm(
        rows.float().div_(x_scale).to(STORED),
        weight.t(),
        x_scale,
        by_row,
        scale.float().t(),
        by_row,
        bias=bias,
        output_dtype=x.dtype,
        use_fast_accum=_accumulates_fast(),
    )
    output: Tensor = product.unflatten(0, x.shape[:-1])
    return output


def _accumulates_fast() -> bool:
    # With the cuBLAS of CUDA 12.9, fast accumulation fails on few rows of many channels (pytorch/ao 4582).
    return not (torch.version.cuda or "").startswith("12.9")


def multiplies_float8(device: torch.device) -> bool:
    """Tell whether a device multiplies float8 by float8 with a scale for each row: it tries.

    Kernels depend on the GPU, on torch and on CUDA, and no table of all of them is right for long.
    """
    if device.type != "cuda" or not torch.cuda.is_available() or not hasattr(nn.functional, "scaled_mm"):
        return False  # which came with torch 2.10
    try:
        return torch.cuda.get_device_capability(device) >= CAPABILITY and products_are_right(device)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError):
        return False


def products_are_right(device: torch.device) -> bool:
    """Tell whether `multiplied` gives on a device what its formula says. Raises what kernels raise."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 256, generator=generator).bfloat16() for rows in (32, 64))
    layer = nn.Linear(256, 64, dtype=torch.bfloat16)
    layer.weight.data.copy_(weight)
    stored = QuantizedLinear(layer).to(device)
    expected = stored(x.to(device))
    stored.multiplies = True
    # Rounding x costs 2.6 % of the product; what does not belong there costs all.
    return bool((stored(x.to(device)) - expected).norm() < 0.05 * expected.norm())


def multiply_in_float8(transformer: nn.Module, left_out: Sequence[str]) -> None:
    """Let a transformer's stored layers multiply in float8, but for those with a pattern of their names.

    What modulates by the noise level is such a layer: it has a row or two, and all others follow it. Layers
    whose channels are no multiple of 16 are left out too.
    """
    for name, layer in transformer.named_modules():
        if not isinstance(layer, QuantizedLinear) or any(re.search(part, name) for part in left_out):
            continue
        layer.multiplies = all(count % MULTIPLE == 0 for count in layer.weight.shape)
