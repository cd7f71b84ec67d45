"""Load: many clients, closed loop or open loop, with every answer looked at.

Closed loop: each client keeps `depth` requests in flight; latency from send to reply.
Open loop: requests arrive by a Poisson process at a fixed rate, whatever the server does, and latency counts
from the moment a request was due, not from when it could be sent: a server that stalls is charged for all that
waited meanwhile (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
import orjson

from benchmarks.percentiles import Latency, latency
from benchmarks.target import Target, Usage
from benchmarks.wire import WireClient
from benchmarks.workload import Workload

_CONNECT_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How to load: a closed loop of `clients` x `depth`, or an open one at `rate` requests per second."""

    clients: int = 64
    depth: int = 1
    rate: float | None = None
    seconds: float = 5.0
    warmup: float = 1.0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What came of it. Counts and CPU are of the measured interval, after the warm-up."""

    clients: int
    rate: float | None
    seconds: float
    succeeded: int
    errors: dict[str, int]
    wrong: int
    throughput: float
    latency: Latency
    slowest_client_share: float
    server_cpu_seconds: float | None
    server_cpu_per_request_us: float | None
    server: Usage | None
    generator_cpu_seconds: float


@dataclass(slots=True)
class _Tally:
    """Counts replies while `measuring`."""

    expected: str
    measuring: bool = False
    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    wrong: int = 0

    def count(self, payload: bytes, seconds: float) -> bool:
        """Look at one reply; true for a success that counts."""
        if not self.measuring:
            return False
        reply = orjson.loads(payload)
        if reply.get("status") != "success":
            self.errors[reply.get("code", "?")] += 1
            return False
        if reply["emotion_name"] != self.expected:
            self.wrong += 1
        self.latencies.append(seconds)
        return True


class _Client:
    """One connection and the times of its requests in flight, oldest first: replies come in order."""

    def __init__(self, frame: bytes, tally: _Tally, resend: bool) -> None:
        self._frame = frame
        self._tally = tally
        self._resend = resend
        self._sent: deque[float] = deque()
        self.succeeded = 0
        self.wire: WireClient

    def send(self, due: float) -> None:
        """Send one request that was due at this time."""
        self._sent.append(due)
        self.wire.send(self._frame)

    def on_reply(self, payload: bytes) -> None:
        """Count a reply; in a closed loop, ask again."""
        now = time.perf_counter()
        self.succeeded += self._tally.count(payload, now - self._sent.popleft())
        if self._resend:
            self.send(time.perf_counter())

    def on_lost(self) -> None:
        """Every request in flight is an error of its own kind."""
        if self._tally.measuring:
            self._tally.errors["connection_lost"] += max(1, len(self._sent))
        self._sent.clear()
        self._resend = False


async def run_load(target: Target, workload: Workload, plan: LoadPlan) -> LoadResult:
    """Put a load on a server.

    Raises:
        ConnectionLost: the server cannot be reached.
    """
    tally = _Tally(workload.expected_emotion)
    closed = plan.rate is None
    clients = [_Client(workload.frame, tally, resend=closed) for _ in range(plan.clients)]
    gate = asyncio.Semaphore(_CONNECT_AT_ONCE)

    async def connect(client: _Client) -> None:
        async with gate:
            client.wire = await WireClient.connect(target.url, client.on_reply)
            client.wire.on_lost = client.on_lost

    await asyncio.gather(*(connect(client) for client in clients))
    stop = threading.Event()
    loop = asyncio.get_running_loop()
    arrivals = threading.Thread(target=_arrivals, args=(clients, plan, loop, stop), daemon=True)
    try:
        if closed:
            for client in clients:
                for _ in range(plan.depth):
                    client.send(time.perf_counter())
        else:
            arrivals.start()
        await asyncio.sleep(plan.warmup)
        usage_before, own_before, begun = target.usage(), time.process_time(), time.perf_counter()
        tally.measuring = True
        await asyncio.sleep(plan.seconds)
        tally.measuring = False
        elapsed = time.perf_counter() - begun
        usage, own = target.usage(), time.process_time() - own_before
    finally:
        stop.set()
        if not closed:
            arrivals.join()
        for client in clients:
            client.wire.close()
    succeeded = len(tally.latencies)
    cpu = None if usage is None or usage_before is None else usage.cpu_seconds - usage_before.cpu_seconds
    shares = [client.succeeded for client in clients]
    return LoadResult(
        clients=plan.clients,
        rate=plan.rate,
        seconds=elapsed,
        succeeded=succeeded,
        errors=dict(tally.errors),
        wrong=tally.wrong,
        throughput=succeeded / elapsed,
        latency=latency(tally.latencies),
        slowest_client_share=min(shares) / (sum(shares) / len(shares)) if succeeded else 0.0,
        server_cpu_seconds=cpu,
        server_cpu_per_request_us=None if cpu is None or not succeeded else cpu / succeeded * 1e6,
        server=usage,
        generator_cpu_seconds=own,
    )


def _arrivals(
    clients: list[_Client], plan: LoadPlan, loop: asyncio.AbstractEventLoop, stop: threading.Event
) -> None:
    """Send at Poisson times, from the clients in turn; in a thread, since event loops sleep in whole milliseconds.

    A late wake-up sends all that has become due, each counted from when it was due.
    """
    assert plan.rate is not None
    random = np.random.default_rng(0)
    due = time.perf_counter()
    turn = 0
    while not stop.is_set():
        now = time.perf_counter()
        if due > now:
            time.sleep(due - now)
            continue
        loop.call_soon_threadsafe(clients[turn].send, due)
        turn = (turn + 1) % len(clients)
        due += float(random.exponential(1 / plan.rate))
