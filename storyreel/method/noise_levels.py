"""How noise levels lie over the steps, as plain numbers: what is planned needs them, and loads no model.

Denoising takes them from diffusers' schedulers, as a model's folder configures them; tests hold that the two
are equal for every model of the table. Here, as there, σ is 1 for noise and 0 for a clean picture.
"""

from __future__ import annotations

import math
from itertools import pairwise

from storyreel.errors import StoryreelError, UsageError
from storyreel.plugins import FAULTS, Plugin

KEPT = 0.001  # the last of a thousand levels of training: Wan's steps begin to fall towards it
LINEAR_TO = 0.025  # how far the linear half of linear-quadratic levels comes down
# LTX's: with so many tokens the logarithm of the shift is so much, on a line; its last level before 0.
TOKENS, LOG_SHIFTS, TERMINAL = (1024, 4096), (0.95, 2.05), 0.1
# Those that LTX-2's distilled weights were made for (Lightricks/LTX-2, ltx_pipelines/utils/constants.py).
DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)


def even(steps: int) -> list[float]:
    """Return the levels (steps + 1) from 1 to 0 with equal distances."""
    return [1 - step / steps for step in range(steps + 1)]


def shifted(level: float, shift: float) -> float:
    """Return a level nearer to noise for a ``shift`` above 1 (arXiv 2403.03206)."""
    return shift * level / (1 + (shift - 1) * level)


def evenly_shifted(steps: int, shift: float) -> list[float]:
    """Return Wan's levels (steps + 1): even ones, shifted."""
    return [*(shifted(1 - (1 - KEPT) * step / steps, shift) for step in range(steps)), 0.0]


def linear_quadratic(steps: int) -> list[float]:
    """Return Mochi's levels (steps + 1), and LTX's of 0.9.7 (arXiv 2410.13720).

    The first half of the steps falls evenly to 1 - `LINEAR_TO`, the others on a parabola that begins as
    steeply and ends at 0.
    """
    if steps == 1:
        return [1.0, 0.0]
    linear = steps // 2
    slope, rest = LINEAR_TO / linear, steps - linear
    curve = (1 - LINEAR_TO - slope * rest) / rest**2
    falls = [slope * step + curve * max(0, step - linear) ** 2 for step in range(steps)]
    return [*(1 - fall for fall in falls), 0.0]


def shifted_by_tokens(steps: int, tokens: int) -> list[float]:
    """Return LTX's levels (steps + 1): even ones, shifted the more the more tokens there are.

    They are stretched so that the last before 0 is `TERMINAL`.
    """
    if steps == 1:
        return [1.0, 0.0]
    slope = (LOG_SHIFTS[1] - LOG_SHIFTS[0]) / (TOKENS[1] - TOKENS[0])
    shift = math.exp(LOG_SHIFTS[0] + slope * (tokens - TOKENS[0]))
    levels = [shifted(1 - step / steps, shift) for step in range(steps)]
    stretch = (1 - TERMINAL) / (1 - levels[-1])
    return [*(1 - stretch * (1 - level) for level in levels), 0.0]


def distilled(steps: int) -> list[float]:
    """Return LTX-2's levels (steps + 1): its eight, and for other counts of steps what lies between them."""
    levels = []
    for step in range(steps + 1):
        first, rest = divmod(step * (len(DISTILLED) - 1), steps)
        second = min(first + 1, len(DISTILLED) - 1)
        levels.append(DISTILLED[first] + (DISTILLED[second] - DISTILLED[first]) * (rest / steps))
    return levels


def levels_of(kind: str, steps: int, shift: float | None, tokens: int) -> list[float]:
    """Return levels (steps + 1) of a kind, as `ModelSpec.levels` names it, of clips with so many tokens."""
    if kind == "shifted":
        return evenly_shifted(steps, 1.0 if shift is None else shift)
    if kind == "linear-quadratic":
        return linear_quadratic(steps)
    if kind == "distilled":
        return distilled(steps)
    if kind == "by tokens":
        return shifted_by_tokens(steps, tokens)
    return [shifted(level, 1.0 if shift is None else shift) for level in even(steps)]


def plugged_levels(plugin: Plugin, steps: int, tokens: int) -> list[float]:
    """Return a plugin's levels (steps + 1) of clips with so many ``tokens``, which are latent cells.

    Raises UsageError if they do not fall from 1 to 0.
    """
    words = f"{plugin.words} gives no noise levels for {steps} steps"
    try:
        levels = [float(level) for level in plugin.function()(steps, tokens)]
    except StoryreelError:
        raise
    except FAULTS as error:
        raise UsageError(f"{words}: {type(error).__name__}: {error}", "Correct that.") from error
    falling = all(lower < level for level, lower in pairwise(levels))
    if len(levels) != steps + 1 or not falling or abs(levels[0] - 1) > 1e-5 or levels[-1] != 0:
        shown = ", ".join(f"{level:.4g}" for level in levels[:6]) + (", …" if len(levels) > 6 else "")
        remedy = f"Have it return {steps + 1} numbers that fall from 1 to 0."
        raise UsageError(f"{words}, but {len(levels)} numbers: {shown}", remedy)
    return levels
