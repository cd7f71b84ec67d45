"""What the service uses while nobody asks: start-up time, memory, memory per idle connection, CPU time."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import LoadPlan, allow_open_files, load
from benchmarks.target import Target, started_service
from benchmarks.wire import WireClient
from benchmarks.workload import make_workload

_SETTLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class IdleResult:
    """Seconds from start to readiness; memory as PSS over all processes, in MB, in KB per idle connection.

    `cpu_share` is of one core, with the idle connections open.
    """

    ready_seconds: float
    fresh_mb: float
    loaded_mb: float
    connections: int
    connection_kb: float
    cpu_share: float


def measure_idle(model: Path, connections: int = 1000, seconds: float = 3.0) -> IdleResult:
    """Start the service, load it with 64 clients, then leave it alone with many connections."""
    allow_open_files(connections)
    begun = time.perf_counter()
    with started_service(model) as target:
        ready = time.perf_counter() - begun
        fresh = _memory(target)
        load(target, make_workload("64x64"), LoadPlan(clients=64, seconds=2.0, warmup=0.2))
        return asyncio.run(_hold(target, connections, seconds, ready, fresh))


async def _hold(target: Target, connections: int, seconds: float, ready: float, fresh: float) -> IdleResult:
    await asyncio.sleep(_SETTLE_SECONDS)  # what the load left is closed and written by then
    loaded = _memory(target)
    clients: list[WireClient] = []
    try:
        for _ in range(connections):
            clients.append(await WireClient.connect(target.url, lambda _: None))
        await asyncio.sleep(_SETTLE_SECONDS)
        held = _memory(target)
        before = _cpu(target)
        begun = time.perf_counter()
        await asyncio.sleep(seconds)
        share = (_cpu(target) - before) / (time.perf_counter() - begun)
    finally:
        for client in clients:
            client.close()
    return IdleResult(ready, fresh, loaded, connections, (held - loaded) * 1024 / connections, share)


def _memory(target: Target) -> float:
    usage = target.usage()
    assert usage is not None
    return usage.pss_mb


def _cpu(target: Target) -> float:
    usage = target.usage()
    assert usage is not None
    return usage.cpu_seconds
