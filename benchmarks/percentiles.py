"""Summaries of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles in milliseconds."""

    p50: float
    p90: float
    p99: float
    p999: float
    worst: float


def latency(seconds: Sequence[float]) -> Latency:
    """Percentiles of latencies given in seconds; NaN where there are none."""
    if not seconds:
        return Latency(*[float("nan")] * 5)
    p50, p90, p99, p999, worst = np.percentile(np.asarray(seconds) * 1000, [50, 90, 99, 99.9, 100]).tolist()
    return Latency(p50, p90, p99, p999, worst)
