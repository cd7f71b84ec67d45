"""Load: many clients, in a closed or an open loop, with every answer looked at.

Closed loop: each client keeps `depth` requests in flight; latency from send to reply.
Open loop: requests arrive at times of their own (see `arrivals`), whatever the server does, and latency counts from
the moment a request was due, not from when it could be sent: a server that stalls is charged for all that waited
meanwhile (no coordinated omission).

After the measured interval nothing more becomes due, and what is in flight is waited for. In an open loop its latencies
count, too: they were due in the interval. Errors and wrong answers count in both loops, and with codes of
their own:

* ``unanswered``: what never had a reply;
* ``unsent``: what was due in an open loop and never sent, about: the generator cannot keep the rate;
* ``connection_lost``: what was in flight or due on a connection that was lost; in a closed loop, once for each client
  that had lost it before;
* ``unreadable``: a reply that is none, of a server that speaks something else;
* ``unasked``: a message that answers nothing.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle

from benchmarks.arrivals import Arrivals, OpenLoop
from benchmarks.clients import Client, Tally
from benchmarks.http_wire import HTTPClient
from benchmarks.percentiles import Latency, latency
from benchmarks.quiet import busy_seconds
from benchmarks.target import Target, Usage
from benchmarks.wire import Connection, WireClient
from benchmarks.workload import Workload

_CONNECT_AT_ONCE = 64

# Files that a process has open beside its connections.
_SPARE_FILES = 64


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How to load: a closed loop of `clients` x `depth`, or an open one at `rate` requests per second over all.

    In an open loop `deadline_ms` is when an answer is still good for something; `goodput` counts those. What is in
    flight at the end has `grace` seconds to be answered. With `polling` the generator never sleeps: it takes a core,
    and a latency holds nothing of the time that it takes to wake up.
    """

    clients: int = 64
    depth: int = 1
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    deadline_ms: float | None = None
    seconds: float = 5.0
    warmup: float = 1.0
    grace: float = 10.0
    polling: bool = False


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What came of it. Counts and CPU are of the measured interval, after the warm-up; `errors` and `wrong` are also of
    what was in flight at its end, and so is `latency` in an open loop.

    `throughput` is in right answers per second, `goodput` in those of them within the deadline, of all if there was
    none; `succeeded` counts wrong ones, too, which took as long. `slowest_client_share` is of the mean client's
    answers; `bursts_ms` are the times of each burst's last answer; `others_cores` were busy with neither the server nor
    the generator (None if the server is not ours, or has ended). `arrivals` is None in a closed loop.
    """

    size: str
    framing: str
    detect: str
    clients: int
    depth: int
    rate: float | None
    arrivals: Arrivals | None
    deadline_ms: float | None
    polling: bool
    seconds: float
    succeeded: int
    errors: dict[str, int]
    wrong: int
    throughput: float
    goodput: float
    latency: Latency
    bursts_ms: list[float]
    slowest_client_share: float
    server_cpu_seconds: float | None
    server_cpu_per_request_us: float | None
    server: Usage | None
    generator_cpu_seconds: float
    others_cores: float | None

    @property
    def generator_cores(self) -> float:
        """Cores that the generator kept busy."""
        return self.generator_cpu_seconds / self.seconds

    @property
    def failed(self) -> int:
        """Errors and wrong answers."""
        return sum(self.errors.values()) + self.wrong


class Unanswered(Exception):
    """A load had no right answer, so that nothing was measured."""


def answered(result: LoadResult) -> LoadResult:
    """The result of a load that had a right answer.

    Raises:
        Unanswered: it had none; holds the codes of its errors.
    """
    if result.throughput:
        return result
    codes = [*sorted(result.errors), *(["wrong"] if result.wrong else [])]
    raise Unanswered("no request was answered: " + (", ".join(codes) or "none was due, or none in time"))


def allow_open_files(connections: int) -> None:
    """Let this process, and those it starts from now on, hold this many connections.

    Raises:
        RuntimeError: the system's hard limit is lower.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise RuntimeError(f"{connections} clients need {wanted} open files; the hard limit is {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def open_wire(url: str, on_reply: Callable[[bytes], None]) -> Connection:
    """Connect by the URL's scheme: ``ws`` or ``http``.

    Raises:
        ConnectionLost: the server cannot be reached.
    """
    if url.startswith("http://"):
        return await HTTPClient.connect(url, on_reply)
    return await WireClient.connect(url, on_reply)


async def _connect(clients: list[Client], url: str) -> None:
    """Connect all clients, some at a time.

    Raises:
        ConnectionLost: the server cannot be reached.
    """
    gate = asyncio.Semaphore(_CONNECT_AT_ONCE)

    async def connect(client: Client) -> None:
        async with gate:
            client.wire = await open_wire(url, client.on_reply)
            client.wire.on_lost = client.on_lost

    # Where the first cannot connect, none can: the others are not left behind half way.
    await connect(clients[0])
    await asyncio.gather(*(connect(client) for client in clients[1:]))


def _begin(clients: list[Client], plan: LoadPlan) -> OpenLoop | None:
    """Send the first requests: of a closed loop, whose replies send the next, or of the open one that is returned."""
    if plan.rate is None:
        for client in clients:
            for _ in range(plan.depth):
                client.send(time.perf_counter())
        return None
    open_loop = OpenLoop(
        plan.arrivals, plan.rate, [client.send for client in clients], asyncio.get_running_loop()
    )
    open_loop.start()
    return open_loop


async def run_load(target: Target, workload: Workload, plan: LoadPlan) -> LoadResult:
    """Put a load on a server.

    Raises:
        ConnectionLost: the server cannot be reached.
    """
    tally = Tally(float("inf") if plan.deadline_ms is None else plan.deadline_ms / 1000)
    loop = asyncio.get_running_loop()
    awake = plan.polling

    def poll() -> None:
        # An event loop with something to call asks the network without waiting for it.
        if awake:
            loop.call_soon(poll)

    clients = []
    for number in range(plan.clients):
        # Each begins with another one: the same of all at once would come in waves.
        turn = number % len(workload.requests)
        requests = cycle(workload.requests[turn:] + workload.requests[:turn])
        clients.append(Client(requests, tally, resend=plan.rate is None))
    open_loop: OpenLoop | None = None
    try:
        await _connect(clients, target.url)
        open_loop = _begin(clients, plan)
        poll()
        await asyncio.sleep(plan.warmup)
        # In a thread: what this looks at takes milliseconds, for which every request would be late.
        cpu_before = await asyncio.to_thread(target.cpu_seconds)
        own_before, begun = time.process_time(), time.perf_counter()
        busy_before = busy_seconds()
        tally.measuring = True
        if plan.rate is None:
            # Nobody asks for them any more: a server that is gone would have no errors.
            tally.fail("connection_lost", sum(client.lost for client in clients))
        await asyncio.sleep(plan.seconds)
        tally.measuring = False
        elapsed = time.perf_counter() - begun
        busy = busy_seconds() - busy_before
        own = time.process_time() - own_before
        tally.ending = True
        if open_loop is not None:
            tally.fail("unsent", open_loop.stop())
        cpu_after = await asyncio.to_thread(target.cpu_seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(plan.grace):
                await asyncio.gather(*(client.finish() for client in clients))
        if unanswered := sum(client.waiting for client in clients):
            tally.errors["unanswered"] = unanswered
        usage = target.usage()
    finally:
        awake = False
        if open_loop is not None:
            open_loop.close()
        for client in clients:
            if hasattr(client, "wire"):  # one that could not connect has none
                client.wire.close()
    cpu = None if cpu_after is None or cpu_before is None else cpu_after - cpu_before
    spent = _Spent(elapsed, cpu, own, busy, usage)
    return _result(plan, workload, tally, [client.succeeded for client in clients], spent)


@dataclass(frozen=True, slots=True)
class _Spent:
    """What the measured interval took, in seconds: by the clock, and in CPU time of the server (None if it is not ours,
    or has ended), the generator and the whole machine."""

    elapsed: float
    server: float | None
    generator: float
    machine: float
    usage: Usage | None


def _result(
    plan: LoadPlan, workload: Workload, tally: Tally, of_clients: list[int], spent: _Spent
) -> LoadResult:
    """The figures; `of_clients` are the successes of each client."""
    succeeded, cpu, closed = len(tally.latencies), spent.server, plan.rate is None
    return LoadResult(
        size=workload.size,
        framing=workload.framing,
        detect=workload.detect,
        clients=plan.clients,
        depth=plan.depth,
        rate=plan.rate,
        arrivals=None if closed else plan.arrivals,
        deadline_ms=plan.deadline_ms,
        polling=plan.polling,
        seconds=spent.elapsed,
        succeeded=succeeded,
        errors=dict(tally.errors),
        wrong=tally.wrong,
        throughput=tally.right / spent.elapsed,
        goodput=tally.in_time / spent.elapsed,
        latency=latency(tally.latencies if closed else tally.latencies + tally.late),
        # The first and the last may have been cut by the interval's ends.
        bursts_ms=[1000 * seconds for seconds in list(tally.last_of_due.values())[1:-1]]
        if plan.arrivals == "burst" and not closed
        else [],
        slowest_client_share=min(of_clients) / (sum(of_clients) / len(of_clients)) if succeeded else 0.0,
        server_cpu_seconds=cpu,
        server_cpu_per_request_us=None if cpu is None or not succeeded else cpu / succeeded * 1e6,
        server=spent.usage,
        generator_cpu_seconds=spent.generator,
        others_cores=None if cpu is None else max(0.0, spent.machine - cpu - spent.generator) / spent.elapsed,
    )


def load(target: Target, workload: Workload, plan: LoadPlan) -> LoadResult:
    """`run_load` in an event loop of its own, uvloop's where there is one.

    Raises:
        ConnectionLost: the server cannot be reached.
        RuntimeError: this many connections are not allowed.
    """
    allow_open_files(plan.clients)
    if sys.platform == "win32":
        return asyncio.run(run_load(target, workload, plan))
    import uvloop

    return uvloop.run(run_load(target, workload, plan))
