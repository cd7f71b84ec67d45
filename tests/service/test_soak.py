"""The service near saturation while clients come and go. ``VISIONAI_SOAK`` is for how many seconds."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from itertools import pairwise

import psutil
import pytest
from websockets.asyncio.client import connect

from tests.service.harness import ServiceProcess, StartProcess, ask, predict_message, read

pytestmark = pytest.mark.endurance

SECONDS = float(os.environ.get("VISIONAI_SOAK", "60"))
CLIENTS = 16
LOAD = 0.8

# What the allocators' and SQLite's caches still take after the first quarter, and noise: less than a leak of 50 bytes
# per request would take in the short form.
GROWTH_BYTES = 8_000_000


class _Load:
    """Clients that ask at a given pace, and leave and come again about every second. Counts what they were answered."""

    def __init__(self, url: str, rate: float) -> None:
        self._url = url
        self._pause = CLIENTS / rate
        self.answers = 0
        self.errors: list[dict[str, object]] = []

    async def client(self, until: float) -> None:
        due = time.perf_counter()
        while time.perf_counter() < until:
            async with connect(self._url) as websocket:
                await read(websocket)
                leaves = time.perf_counter() + random.uniform(0.5, 1.5)
                while (now := time.perf_counter()) < min(leaves, until):
                    reply = await ask(websocket, predict_message())
                    if reply["status"] == "success":
                        self.answers += 1
                    else:
                        self.errors.append(reply)
                    due = max(due + self._pause, now)
                    await asyncio.sleep(due - time.perf_counter())


def _account(service: ServiceProcess) -> tuple[int, int]:
    """Bytes of memory that are the service's own, and open files, over all its processes."""
    main = psutil.Process(service.process.pid)
    processes = [main, *main.children(recursive=True)]
    return sum(each.memory_full_info().uss for each in processes), sum(each.num_fds() for each in processes)


async def _load(service: ServiceProcess, rate: float, seconds: float) -> _Load:
    load = _Load(service.url, rate)
    until = time.perf_counter() + seconds
    await asyncio.gather(*(load.client(until) for _ in range(CLIENTS)))
    return load


async def test_memory_and_files_stay_flat_at_four_fifths_of_saturation(start_process: StartProcess) -> None:
    """With connects and disconnects all the time no request fails, and neither memory nor open files grow."""
    service = start_process(WORKERS="2", MAX_WAIT_MS="1000000")
    saturated = await _load(service, float("inf"), 3.0)
    rate = LOAD * saturated.answers / 3.0
    soaking = asyncio.create_task(_load(service, rate, SECONDS))
    memory: list[int] = []
    while not soaking.done():
        memory.append(_account(service)[0])
        await asyncio.wait([soaking], timeout=max(SECONDS / 120, 0.25))
    load = await soaking
    assert load.errors == []
    assert load.answers > CLIENTS * SECONDS  # or the machine did something else
    quarter = len(memory) // 4
    first, last = (statistics.median(memory[start : start + quarter]) for start in (quarter, 3 * quarter))
    assert last - first < GROWTH_BYTES, [f"{each / 1e6:.1f}" for each in memory[:: max(quarter // 4, 1)]]
    files = []
    for _ in range(3):
        await _load(service, rate, 1.0)
        async with connect(service.url) as watcher:
            await read(watcher)
            async with asyncio.timeout(30):
                while (await ask(watcher, '{"command": "health"}'))["clients_connected"] > 1:
                    await asyncio.sleep(0.05)
            files.append(_account(service)[1])
    # A journal's segment, or a connection of the pool, may be open in one moment and not in the next.
    assert all(after - before <= 2 for before, after in pairwise(files)), files
