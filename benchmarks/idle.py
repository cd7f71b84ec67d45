"""What the service uses while nobody asks: start-up time, memory, memory per idle connection, CPU time."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import LoadPlan, allow_open_files, answered, load
from benchmarks.target import Target, of_ours, started_service
from benchmarks.wire import WireClient
from benchmarks.workload import SIZES, make_workload
from service.engine.calibration import measure_apart
from service.modelfile import resolve_model
from service.processes.cpus import available_cpus
from service.settings import Detect

_SETTLE_SECONDS = 1.0
_MIXED_ROUNDS = 3
_MIXED_DETECT: tuple[Detect, ...] = ("never", "auto")


@dataclass(frozen=True, slots=True)
class IdleResult:
    """Seconds from start to readiness; memory as PSS over all processes, in MB, in KB per idle connection.

    `calibration_seconds` is what the first start on a machine takes more than any later one. `mixed_mb` is after rounds
    of photos of every size, with and without a search for faces, whose tensors ONNX Runtime's arena has to hold.
    `cpu_share` is of one core, with the idle connections open.
    """

    ready_seconds: float
    calibration_seconds: float
    fresh_mb: float
    loaded_mb: float
    mixed_mb: list[float]
    connections: int
    connection_kb: float
    cpu_share: float


def measure_idle(model: Path, connections: int = 1000, seconds: float = 3.0) -> IdleResult:
    """Start the service, load it with 64 clients, then leave it alone with many connections.

    Raises:
        Unanswered: a load had no right answer, so that the memory is not of one that worked.
        RuntimeError: the service did not become ready, or has ended.
    """
    allow_open_files(connections)
    begun = time.perf_counter()
    measure_apart(resolve_model(model, "--model"), "cpu", available_cpus(), thorough=False)
    calibration = time.perf_counter() - begun
    begun = time.perf_counter()
    with started_service(model) as target:
        ready = time.perf_counter() - begun
        fresh = _memory(target)
        answered(load(target, make_workload("64x64"), LoadPlan(clients=64, seconds=2.0, warmup=0.2)))
        time.sleep(_SETTLE_SECONDS)  # what the load left is closed and written by then
        loaded = _memory(target)
        kb, share = asyncio.run(_hold(target, connections, seconds, loaded))
        mixed = [_mixed(target) for _ in range(_MIXED_ROUNDS)]
    return IdleResult(ready, calibration, fresh, loaded, mixed, connections, kb, share)


def _mixed(target: Target) -> float:
    """Photos of every size, with and without a search for faces; the memory in use after them."""
    for size in SIZES:
        for detect in _MIXED_DETECT:
            plan = LoadPlan(clients=16, seconds=1.0, warmup=0.2)
            answered(load(target, make_workload(size, detect=detect), plan))
    time.sleep(_SETTLE_SECONDS)
    return _memory(target)


async def _hold(target: Target, connections: int, seconds: float, loaded: float) -> tuple[float, float]:
    """KB per idle connection, and CPU seconds per second with all of them open."""
    clients: list[WireClient] = []
    try:
        for _ in range(connections):
            clients.append(await WireClient.connect(target.url, lambda _: None))
        await asyncio.sleep(_SETTLE_SECONDS)
        held = _memory(target)
        before = of_ours(target.cpu_seconds())
        begun = time.perf_counter()
        await asyncio.sleep(seconds)
        share = (of_ours(target.cpu_seconds()) - before) / (time.perf_counter() - begun)
    finally:
        for client in clients:
            client.close()
    return (held - loaded) * 1024 / connections, share


def _memory(target: Target) -> float:
    return of_ours(target.usage()).pss_mb
