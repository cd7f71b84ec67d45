"""Repeats of a measurement: the median, and how far apart they were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle, the lowest and the highest of some repeats, in the unit of what was measured."""

    median: float
    low: float
    high: float
    repeats: int

    def __format__(self, spec: str) -> str:
        """The median and the range: ``3,612 (3,540-3,698)``; the median alone if there was one repeat."""
        middle = format(self.median, spec)
        return middle if self.repeats == 1 else f"{middle} ({self.low:{spec}}-{self.high:{spec}})"


def spread(values: Sequence[float]) -> Spread:
    """Summarise at least one repeat. One that had no answers, and so no latency (NaN), is later than any."""
    ordered = sorted(math.inf if math.isnan(value) else value for value in values)
    return Spread(float(median(ordered)), ordered[0], ordered[-1], len(ordered))
