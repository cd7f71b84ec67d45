"""Replicas behind HAProxy, with one PostgreSQL: what clients notice when a replica is lost, rolled or cut off.

Each client of the library sends at a steady rate, on one connection. Counted are requests that failed, acknowledged
predictions that are not in the database exactly once, and how long requests were slow after each event.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import sqlalchemy as sa

from benchmarks.hosts import Host, haproxy
from benchmarks.load import LoadPlan, LoadResult, answered, load
from benchmarks.percentiles import latency
from benchmarks.persistence import started_postgresql
from benchmarks.target import Target
from benchmarks.workload import Workload
from client import AsyncClient, VisionAIError
from service.store.database import parse_url

# Requests that take longer than this are late: by far more than any takes that is only waiting for its turn.
LATE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Sent:
    """One request: when it was sent and answered, in seconds of the monotonic clock, and its prediction's id."""

    at: float
    done: float
    prediction_id: UUID | None
    error: str | None

    @property
    def is_late(self) -> bool:
        """Whether it took longer than any that only waited for its turn."""
        return self.done - self.at > LATE_SECONDS


@dataclass(frozen=True, slots=True)
class Phase:
    """What clients saw from an event until the next.

    `recovery_s` is from the event to the answer of the last late request; 0 if none was late. Of an event in several
    parts, a replica after the other, it is the longest. Percentiles are in milliseconds, of the requests sent later
    than that.
    """

    event: str
    requests: int
    failed: int
    late: int
    recovery_s: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Failover:
    """All phases, and what the database has of what was acknowledged."""

    replicas: int
    phases: list[Phase]
    acknowledged: int
    missing: int
    twice: int
    errors: list[str]


@dataclass(slots=True)
class _Crowd:
    """Clients of the library that send at a steady rate until they are stopped."""

    url: str
    image: bytes
    clients: int
    rate: float
    sent: list[Sent] = field(default_factory=list)
    _stopped: bool = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self.clients):
                group.create_task(self._client(number / self.clients))

    def stop(self) -> None:
        self._stopped = True

    async def _client(self, offset: float) -> None:
        interval = self.clients / self.rate
        async with AsyncClient(self.url) as client:
            due = time.monotonic() + offset * interval
            while not self._stopped:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                began = time.monotonic()
                identifier = error = None
                try:
                    identifier = (await client.predict(self.image, detect="never")).prediction_id
                except VisionAIError as exc:
                    error = f"{type(exc).__name__}: {exc}"
                self.sent.append(Sent(began, time.monotonic(), identifier, error))
                # One that was late is not made up for: a camera sends its next frame, not those that it missed.
                due = max(due + interval, time.monotonic())


def failover(
    workload: Workload,
    *,
    replicas: int,
    clients: int,
    rate: float,
    seconds: float,
    tell: Callable[[str], None],
) -> Failover:
    """Run the events one after the other, `seconds` apart, under `rate` requests per second in all."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="visionai-replicas-")))
        database = stack.enter_context(started_postgresql())
        hosts = _hosts(replicas, folder, database)
        _start(hosts, stack)
        balancer = stack.enter_context(haproxy(_addresses(hosts), folder))
        crowd = _Crowd(balancer.url, workload.requests[0].image, clients, rate)
        events = asyncio.run(_play(crowd, hosts, seconds, tell))
        for host in hosts:
            host.stop()
        acknowledged = [each.prediction_id for each in crowd.sent if each.prediction_id is not None]
        counts = _stored(database, acknowledged)
    return Failover(
        replicas,
        [_phase(name, moments, crowd.sent) for name, moments in events],
        len(acknowledged),
        sum(count == 0 for count in counts),
        sum(count > 1 for count in counts),
        sorted({each.error for each in crowd.sent if each.error is not None}),
    )


async def _play(
    crowd: _Crowd, hosts: Sequence[Host], seconds: float, tell: Callable[[str], None]
) -> list[tuple[str, list[float]]]:
    """The events, with when each of their parts began, and when the last ended."""
    # After the roll the first has clients again: those of replicas that went after it. The last has none.
    first = hosts[0]
    moments: list[float] = []

    async def settle() -> None:
        await asyncio.sleep(seconds)

    def part() -> None:
        moments.append(time.monotonic())

    async def do(action: Callable[[], None]) -> None:
        await asyncio.to_thread(action)
        await settle()

    async def reload() -> None:
        for host in hosts:
            part()
            host.signal(signal.SIGHUP)
            await settle()

    async def roll() -> None:
        for host in hosts:
            part()
            await asyncio.to_thread(host.stop)
            part()
            await do(host.start)

    running = asyncio.create_task(crowd.run())
    events = []
    for name, play in (
        ("nothing", settle),
        ("a replica is killed (SIGKILL)", partial(do, first.kill)),
        ("it is started again", partial(do, first.start)),
        ("each reloads (SIGHUP)", reload),
        ("each is stopped and started (SIGTERM)", roll),
        ("a replica's network is cut", partial(do, first.cut)),
        ("it is mended", partial(do, first.mend)),
    ):
        tell(name)
        moments = []
        part()
        await play()
        part()
        events.append((name, moments))
    crowd.stop()
    await running
    return events


def _phase(event: str, moments: Sequence[float], sent: Sequence[Sent]) -> Phase:
    """What came of an event; `moments` are when its parts began, and when the last one ended."""
    own = _under_way(sent, moments[0], moments[-1])
    recovery = 0.0
    calm: list[float] = []
    for begin, end in pairwise(moments):
        part = _under_way(sent, begin, end)
        recovered = max((each.done for each in part if each.is_late), default=begin)
        recovery = max(recovery, recovered - begin)
        calm += [each.done - each.at for each in part if each.at >= recovered]
    after = latency(calm)
    failed, late = sum(each.error is not None for each in own), sum(each.is_late for each in own)
    return Phase(event, len(own), failed, late, recovery, after.p50, after.p99)


def _under_way(sent: Sequence[Sent], begin: float, end: float) -> list[Sent]:
    """With those that were under way at the beginning: they are what an event hits."""
    return [each for each in sent if begin <= each.done and each.at < end]


def _hosts(count: int, folder: Path, database: str) -> list[Host]:
    settings = {
        "DATABASE_URL": database,
        # As the replicas of compose.yaml do, they share a volume for their journals.
        "JOURNAL_DIR": str(folder / "journal"),
        "CONTROL_SOCKET": "",
        "LOG_LEVEL": "WARNING",
        "WORKERS": "1",
        "DETECT": "never",
    }
    return [Host(number, folder / f"replica{number}", settings) for number in range(count)]


def _start(hosts: Sequence[Host], stack: ExitStack) -> None:
    """Start them all at once; they are stopped with the stack."""
    for host in hosts:
        stack.callback(host.stop)
    with ThreadPoolExecutor(len(hosts)) as threads:
        list(threads.map(Host.start, hosts))


def _addresses(hosts: Sequence[Host]) -> dict[str, str]:
    return {f"replica{host.number}": host.address for host in hosts}


def _stored(database: str, identifiers: Sequence[UUID]) -> list[int]:
    """How many rows each prediction has: `detect` is never, so one is right."""
    engine = sa.create_engine(parse_url(database))
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT prediction_uuid, count(*) FROM predictions_log GROUP BY 1"))
        counts = {UUID(str(identifier)): int(count) for identifier, count in rows}
    engine.dispose()
    return [counts.get(identifier, 0) for identifier in identifiers]


def scaling(workload: Workload, plan: LoadPlan, replicas: Sequence[int]) -> list[tuple[int, LoadResult]]:
    """Throughput through HAProxy by the number of replicas, of one worker each, in a closed loop.

    Raises:
        Unanswered: a load had no right answer.
    """
    results = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="visionai-replicas-")))
        database = stack.enter_context(started_postgresql())
        hosts = _hosts(max(replicas), folder, database)
        _start(hosts, stack)
        for count in replicas:
            with haproxy(_addresses(hosts[:count]), folder) as balancer:
                results.append((count, answered(load(Target(balancer.url), workload, plan))))
    return results
