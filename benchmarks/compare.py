"""The service against the bare loop, taken in turns so that both see the same machine.

The load generator runs on the same cores as the server. What it uses, the server cannot have; so the loop's rate is
scaled by the cores that the generator leaves: ``limit x (1 - generator's cores / cores)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.limit import LimitBench, LimitResult
from benchmarks.load import LoadPlan, LoadResult, load
from benchmarks.target import Target
from benchmarks.workload import Workload


@dataclass(frozen=True, slots=True)
class Paired:
    """One measurement of the loop and one of the service, right after it."""

    limit: LimitResult
    load: LoadResult

    @property
    def share(self) -> float:
        """The service's rate as a share of the limit that the generator leaves."""
        left = 1 - self.load.generator_cores / self.limit.count
        return self.load.throughput / (self.limit.throughput * left)

    @property
    def plain_share(self) -> float:
        """The service's rate as a share of the limit, with the generator's use held against the service."""
        return self.load.throughput / self.limit.throughput

    @property
    def cpu_ratio(self) -> float | None:
        """The service's CPU time per request over the loop's per image."""
        cpu = self.load.server_cpu_per_request_us
        return None if cpu is None else cpu / self.limit.cpu_per_image_us


def against_limit(
    bench: LimitBench, target: Target, workload: Workload, plan: LoadPlan, repeats: int
) -> Iterator[Paired]:
    """The loop in threads, then the service; once per repeat."""
    for _ in range(repeats):
        limit = bench.measure("threads", workload.size, 1, workload.detect, plan.seconds / 2)
        yield Paired(limit, load(target, workload, plan))
