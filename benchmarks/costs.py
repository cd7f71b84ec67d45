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

import psutil
import sqlalchemy as sa

from benchmarks.capacity import Costs
from benchmarks.hosts import haproxy
from benchmarks.idle import measure_idle
from benchmarks.load import LoadPlan, answered, load
from benchmarks.persistence import started_postgresql
from benchmarks.target import Target, started_service
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
        database, forwarding = _postgresql_seconds(url), _cpu_seconds(balancer.pid)
        result = answered(load(target, workload, plan))
        forwarding = _cpu_seconds(balancer.pid) - forwarding
        time.sleep(_FLUSH_SECONDS)
        database = _postgresql_seconds(url) - database
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


def _postgresql_seconds(url: str) -> float:
    """CPU time of the server's processes, which run in the folder of its data."""
    folder = str(sa.make_url(url).query["host"])
    seconds = 0.0
    for process in psutil.process_iter(["name"]):
        try:
            if process.info["name"].startswith("postgres") and process.cwd() == folder:
                seconds += _cpu_seconds(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it has ended, or is none of ours
    return seconds


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def _reply(url: str, workload: Workload) -> bytes:
    """What one request is answered with."""
    answers: asyncio.Queue[bytes] = asyncio.Queue()
    client = await WireClient.connect(url, answers.put_nowait)
    client.send(workload.requests[0].frame)
    try:
        return await answers.get()
    finally:
        client.close()
