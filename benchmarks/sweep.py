"""Sweep: latency against throughput, over rates in an open loop and over clients in a closed one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.load import LoadPlan, LoadResult, load
from benchmarks.target import Target
from benchmarks.workload import Workload

CLIENTS = (1, 2, 4, 8, 16, 64, 256)
SHARES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Points of the curves. `saturation` is the closed loop's best rate, of which the open loop's rates are shares."""

    size: str
    saturation: float
    closed: list[LoadResult]
    open: list[LoadResult]

    @property
    def knee(self) -> LoadResult | None:
        """The last point before latency runs away; see `find_knee`."""
        return find_knee(self.open)


def find_knee(points: Sequence[LoadResult]) -> LoadResult | None:
    """The highest rate that is served (95 % of it, without errors) with a p99 within four times the lowest rate's.

    None where not even the lowest rate is served.
    """
    ordered = sorted((point for point in points if point.rate is not None), key=lambda point: point.rate or 0)
    knee = None
    for point in ordered:
        assert point.rate is not None
        due = point.rate * point.seconds
        # Of Poisson arrivals fewer than the mean may have come: three standard deviations are not held against it.
        served = point.succeeded >= 0.95 * due - 3 * math.sqrt(due) and not point.failed
        if not served or point.latency.p99 > 4 * ordered[0].latency.p99:
            break
        knee = point
    return knee


def sweep_clients(
    target: Target, workload: Workload, clients: Sequence[int], seconds: float
) -> Iterator[LoadResult]:
    """The closed loop: as many requests as the clients can."""
    for count in clients:
        yield load(target, workload, LoadPlan(clients=count, seconds=seconds, warmup=0.3))


def sweep_rates(
    target: Target, workload: Workload, rates: Sequence[float], seconds: float
) -> Iterator[LoadResult]:
    """The open loop: Poisson arrivals at each rate, from 64 clients."""
    for rate in rates:
        yield load(target, workload, LoadPlan(clients=64, rate=rate, seconds=seconds, warmup=0.3))
