"""The service against the bare loop, taken in turns so that both see the same machine.

The load generator runs on the same cores as the server. What it uses, the server cannot have; and so it is with
whatever else runs on the machine. So the loop's rate is taken per core that it had, and scaled by the cores that the
server had: ``limit / (cores - others then) x (cores - generator - others now)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.limit import LimitBench, LimitResult
from benchmarks.load import LoadPlan, LoadResult, load
from benchmarks.percentiles import Latency
from benchmarks.quiet import wait_until_quiet
from benchmarks.target import Target
from benchmarks.workload import Workload


@dataclass(frozen=True, slots=True)
class Paired:
    """One measurement of the loop and one of the service, right after it.

    With one client `call` is how long an image takes in one thread of this process, with nothing beside it.
    """

    limit: LimitResult
    load: LoadResult
    call: Latency | None = None

    @property
    def share(self) -> float | None:
        """The service's rate as a share of the limit that the generator leaves.

        None where others took as many cores as the loop and the service may use. Others' are counted over the whole
        machine, of which a container or an affinity mask may leave us a part only.
        """
        had = self.limit.count - self.limit.others_cores
        left = self.limit.count - self.load.generator_cores - (self.load.others_cores or 0.0)
        if had <= 0 or left <= 0:
            return None
        return self.load.throughput / (self.limit.throughput / had * left)

    @property
    def plain_share(self) -> float:
        """The service's rate as a share of the limit, with the generator's use held against the service."""
        return self.load.throughput / self.limit.throughput

    @property
    def cpu_ratio(self) -> float | None:
        """The service's CPU time per request over the loop's per image."""
        cpu = self.load.server_cpu_per_request_us
        return None if cpu is None else cpu / self.limit.cpu_per_image_us

    @property
    def beyond_call_ms(self) -> float | None:
        """What a client waits beyond the call itself, in the median; None with more than one client."""
        return None if self.call is None else self.load.latency.p50 - self.call.p50


def against_limit(
    bench: LimitBench, target: Target, workload: Workload, plan: LoadPlan, repeats: int, patience: float = 0.0
) -> Iterator[Paired]:
    """The loop in threads, then the service; once per repeat, after waiting for a quiet moment for that long.

    The loop runs one image at a time and in batches of 8; the faster counts.
    """
    for _ in range(repeats):
        wait_until_quiet(patience)
        limits = [
            bench.measure("threads", workload.size, batch, workload.detect, plan.seconds / 2)
            for batch in (1, 8)
        ]
        limit = max(limits, key=lambda each: each.throughput)
        alone = plan.clients == 1
        call = bench.call(workload.size, workload.detect, plan.seconds / 2) if alone else None
        yield Paired(limit, load(target, workload, plan), call)
