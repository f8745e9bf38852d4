"""Step skipping: which steps a preset computes and which it continues, an addition of storyreel's.

Early steps decide what is there and late ones how it looks; between them the velocity changes little
from one step to the next, and late ones hardly need guidance. What a preset costs in quality stands
in the models' README, with the command that measured it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from storyreel.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Speed:
    """A preset: from the share ``begin`` of all steps to ``end`` every ``every``-th step is computed.

    From the share ``unguided`` on, guidance is left out, which halves an evaluation's work.
    """

    every: int = 1
    begin: float = 0.0
    end: float = 0.0
    unguided: float = 1.0

    def computes(self, step: int, steps: int) -> bool:
        """Tell whether a step, counted from 0, evaluates the transformer; in the others see `continued`."""
        first, behind = round(self.begin * steps), round(self.end * steps)
        return not (step and first <= step < behind) or (step - first) % self.every == self.every - 1

    def turns(self, step: int, steps: int) -> bool:
        """Tell whether a step is the first to be computed without guidance: its velocity is another one."""
        computed = [s for s in range(step) if self.computes(s, steps)]
        return bool(computed) and self.guides(computed[-1], steps) != self.guides(step, steps)

    def guides(self, step: int, steps: int) -> bool:
        """Tell whether a step is guided."""
        return step < round(self.unguided * steps)

    def forwards(self, steps: int) -> int:
        """Return how many of all steps evaluate the transformer."""
        return sum(self.computes(step, steps) for step in range(steps))


EXACT = Speed()
SPEEDS = {
    "exact": EXACT,
    "balanced": Speed(every=2, begin=0.3, end=0.9),
    "fast": Speed(every=3, begin=0.2, end=0.95, unguided=0.7),
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
