"""Step skipping: which steps a preset computes and which it continues, an addition of storyreel's.

Early steps decide what is there and late ones how it looks; between them the velocity changes little
from one step to the next, and late ones hardly need guidance. Early and late are noise levels: models space
their levels differently, and a step's number says nothing of what happens in it. What a preset costs in
quality stands in the models' README, with the command that measured it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from storyreel.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


ROUNDING = 1e-9  # no step more or less by how a level was rounded


@dataclass(frozen=True)
class Pace:
    """What a preset does in every step of a film's noise levels.

    A step that is not ``computed`` goes on along the line of those before, see `continued`; one that is not
    ``guided`` has no guidance.
    """

    computed: tuple[bool, ...]
    guided: tuple[bool, ...]

    def turns(self, step: int) -> bool:
        """Tell whether a step is the first to be computed without guidance: its velocity is another one."""
        before = [s for s in range(step) if self.computed[s]]
        return bool(before) and self.guided[before[-1]] != self.guided[step]

    @property
    def forwards(self) -> int:
        """How many steps evaluate the transformer."""
        return len(self.guided_when_computed)

    @property
    def guided_when_computed(self) -> list[bool]:
        """Of each step that evaluates the transformer, whether it is guided."""
        return [guided for guided, computed in zip(self.guided, self.computed, strict=True) if computed]


@dataclass(frozen=True)
class Speed:
    """A preset, by noise levels σ.

    Above ``begin`` a step is computed if what there is of the picture, 1 - σ, has grown by the share
    ``growth`` since the last step that was: with levels as close as Mochi's first ones, it hardly has. From
    ``begin`` down to ``end`` every ``every``-th step is computed, below ``end`` all. From ``unguided`` down,
    guidance is left out, which halves an evaluation's work.
    """

    growth: float = 0.0
    every: int = 1
    begin: float = 0.0
    end: float = 0.0
    unguided: float = 0.0

    def pace(self, levels: Sequence[float], boundary: float | None = None) -> Pace:
        """Return what is done in each step, given the noise level at which each begins.

        Below ``boundary`` a second expert works: its first step is computed, since no velocity of the first
        expert's tells anything of its own.
        """
        computed = [0]  # there is nothing to go on from
        for step, level in enumerate(levels):
            last = levels[computed[-1]]
            new_expert = boundary is not None and last >= boundary > level
            if level > self.begin:
                due = 1 - level >= (1 + self.growth) * (1 - last) - ROUNDING
            else:
                due = level <= self.end or step - computed[-1] >= self.every
            if step and (due or new_expert):
                computed.append(step)
        asked = frozenset(computed)
        return Pace(
            tuple(step in asked for step in range(len(levels))),
            tuple(level > self.unguided for level in levels),
        )


SPEEDS = {
    "exact": Speed(),
    "balanced": Speed(growth=0.1, every=2, begin=0.7, end=0.15),
    "fast": Speed(growth=0.25, every=3, begin=0.85, end=0.1, unguided=0.35),
}


def find_speed(name: str) -> Speed:
    """Return a preset. Raises UsageError."""
    if name not in SPEEDS:
        raise UsageError(f"unknown speed {name!r}", f"Use one of: {', '.join(SPEEDS)}")
    return SPEEDS[name]


def continued(known: Sequence[tuple[float, Tensor]], sigma: float) -> Tensor:
    """Return the velocity at ``sigma`` on the line through the last two that are known, each with its σ.

    If only one is known, that one.
    """
    level, velocity = known[-1]
    if len(known) < 2:
        return velocity
    before, earlier = known[-2]
    return velocity + (velocity - earlier) * ((sigma - level) / (level - before))
