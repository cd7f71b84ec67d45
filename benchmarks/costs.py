"""Measure what one request costs the service, HAProxy and PostgreSQL, for `benchmarks.capacity`.

All of them run on this machine, and are charged by their own processes' CPU time, which what runs beside them changes
little.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import sqlalchemy as sa

from benchmarks.capacity import Costs
from benchmarks.hosts import haproxy
from benchmarks.idle import measure_idle
from benchmarks.load import LoadPlan, answered, load
from benchmarks.persistence import started_postgresql
from benchmarks.target import Target, of_ours, started_service
from benchmarks.wire import WireClient
from benchmarks.workload import Workload
from service.store.database import parse_url

# What the service has answered is in the database within this time.
_FLUSH_SECONDS = 5.0


def measure_costs(model: Path, workload: Workload, clients: int, seconds: float) -> Costs:
    """Load the service through HAProxy, with its predictions in PostgreSQL.

    Raises:
        RuntimeError: HAProxy is not installed, or something did not start.
        Unanswered: the load had no right answer.
    """
    plan = LoadPlan(clients=clients, seconds=seconds)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="visionai-costs-")))
        url = stack.enter_context(started_postgresql())
        service = stack.enter_context(started_service(model, {"DATABASE_URL": url}))
        address = service.url.removeprefix("ws://")
        balancer = stack.enter_context(haproxy({"replica": address}, folder))
        target = Target(balancer.url, service.pid)
        load(target, workload, LoadPlan(clients=clients, seconds=0.5))  # what is done once is done
        time.sleep(_FLUSH_SECONDS)
        rows, size = _rows(url)
        postgresql = server_of(url)
        database, forwarding = of_ours(postgresql.cpu_seconds()), of_ours(balancer.cpu_seconds())
        result = answered(load(target, workload, plan))
        forwarding = of_ours(balancer.cpu_seconds()) - forwarding
        time.sleep(_FLUSH_SECONDS)
        database = of_ours(postgresql.cpu_seconds()) - database
        more_rows, more_size = _rows(url)
        reply = asyncio.run(_reply(service.url, workload))
    if result.server_cpu_per_request_us is None or more_rows == rows:
        raise RuntimeError("nothing was predicted or stored")
    idle = measure_idle(model, connections=1000, seconds=0.5)
    stored = more_rows - rows
    return Costs(
        service_us=result.server_cpu_per_request_us,
        haproxy_us=forwarding / stored * 1e6,
        database_us=database / stored * 1e6,
        request_bytes=len(workload.requests[0].frame),
        reply_bytes=len(reply),
        row_bytes=(more_size - size) / stored,
        connection_bytes=idle.connection_kb * 1024,
    )


def _rows(url: str) -> tuple[int, int]:
    """Rows of predictions, and the bytes that they and their indexes take."""
    engine = sa.create_engine(parse_url(url))
    with engine.connect() as connection:
        count = connection.scalar(sa.text("SELECT count(*) FROM predictions_log"))
        size = connection.scalar(sa.text("SELECT pg_total_relation_size('predictions_log')"))
    engine.dispose()
    return int(count or 0), int(size or 0)


def server_of(url: str) -> Target:
    """The PostgreSQL server, whose first process a file in the folder of its data and its socket names."""
    file = Path(str(sa.make_url(url).query["host"])) / "postmaster.pid"
    return Target(url, int(file.read_text().split()[0]))


async def _reply(url: str, workload: Workload) -> bytes:
    """What one request is answered with."""
    answers: asyncio.Queue[bytes] = asyncio.Queue()
    client = await WireClient.connect(url, answers.put_nowait)
    client.send(workload.requests[0].frame)
    try:
        return await answers.get()
    finally:
        client.close()
