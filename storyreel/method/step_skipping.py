"""Steps that need not be computed: what a preset saves, and which steps it saves it in.

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
    """From the share ``begin`` of all steps to ``end`` only every ``every``-th asks the transformer.

    From the share ``unguided`` on, guidance is left out, which halves a forward's work.
    """

    every: int = 1
    begin: float = 0.0
    end: float = 0.0
    unguided: float = 1.0

    def computes(self, step: int, steps: int) -> bool:
        """Tell whether a step, counted from 0, asks the transformer; the others go on as they were going."""
        first, behind = round(self.begin * steps), round(self.end * steps)
        return not (step and first <= step < behind) or (step - first) % self.every == self.every - 1

    def turns(self, step: int, steps: int) -> bool:
        """Tell whether a step is the first to ask without guidance: it has another velocity."""
        asked = [s for s in range(step) if self.computes(s, steps)]
        return bool(asked) and self.guides(asked[-1], steps) != self.guides(step, steps)

    def guides(self, step: int, steps: int) -> bool:
        """Tell whether a step is guided."""
        return step < round(self.unguided * steps)

    def forwards(self, steps: int) -> int:
        """Return how many of all steps ask the transformer."""
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
        raise UsageError(f"there is no speed {name!r}", f"Use one of: {', '.join(SPEEDS)}")
    return SPEEDS[name]


def continued(known: Sequence[tuple[float, Tensor]], sigma: float) -> Tensor:
    """Return the velocity at ``sigma`` on the line through the last two that are known, each with its σ.

    Of one alone, that one.
    """
    level, velocity = known[-1]
    if len(known) < 2:
        return velocity
    before, earlier = known[-2]
    return velocity + (velocity - earlier) * ((sigma - level) / (level - before))
