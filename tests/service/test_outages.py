"""A real PostgreSQL, or the room on the disk, goes away under a service that is asked all the while, and comes back."""

from __future__ import annotations

import asyncio
import os
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING
from uuid import UUID

import psutil
import pytest
import sqlalchemy as sa
from websockets.asyncio.client import ClientConnection, connect

from tests.service.harness import TIMEOUT, StartProcess, ask, fetch, metric, predict_message, read

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

pytestmark = pytest.mark.endurance

READY = '{"status":"ready"}'
HEALTH = '{"command": "health"}'
PREDICTIONS = 300

# The backlog at which the journal stops to keep what it is given in memory, and some more; and that at which the outage
# ends. 300,000 are some minutes at full speed.
IN_MEMORY = 11_000
OUTAGE_RECORDS = int(os.environ.get("VISIONAI_OUTAGE", "14000"))


def _processes(server: PostgresServer) -> list[psutil.Process]:
    postmaster = psutil.Process(server.pid)
    return [postmaster, *postmaster.children(recursive=True)]


def _stop(server: PostgresServer) -> Callable[[], None]:
    server.stop()
    return server.start


def _kill(server: PostgresServer) -> Callable[[], None]:
    processes = _processes(server)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, TIMEOUT)
    return server.start


def _freeze(server: PostgresServer) -> Callable[[], None]:
    processes = _processes(server)
    for process in processes:
        process.suspend()

    def thaw() -> None:
        for process in processes:
            process.resume()

    return thaw


@pytest.fixture
def database(restartable_postgres: PostgresServer) -> Iterator[str]:
    """A database on the server that these tests may stop."""
    name = restartable_postgres.create_database()
    yield name
    restartable_postgres.drop_database(name)


async def _until(websocket: ClientConnection, wanted: Callable[[dict[str, object]], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not wanted(await ask(websocket, HEALTH)):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("outage", [_stop, _kill, _freeze])
async def test_predictions_go_on_without_the_database_and_are_stored_once_it_is_back(
    outage: Callable[[PostgresServer], Callable[[], None]],
    start_process: StartProcess,
    restartable_postgres: PostgresServer,
    database: str,
) -> None:
    """All are answered with ids, health is degraded with the backlog, readiness stays; then each id is there once."""
    service = start_process(DATABASE_URL=restartable_postgres.url(database), WORKERS="1")
    async with connect(service.url) as websocket:
        await read(websocket)
        answered = [(await ask(websocket, predict_message()))["prediction_id"] for _ in range(20)]
        recover = await asyncio.to_thread(outage, restartable_postgres)
        try:
            for _ in range(PREDICTIONS):
                answered.append((await ask(websocket, predict_message()))["prediction_id"])
            await _until(websocket, lambda health: health["status"] == "degraded")
            health = await ask(websocket, HEALTH)
            assert health["store"]["failing"] == ["database"]
            assert health["store"]["pending"] >= PREDICTIONS
            assert await asyncio.to_thread(fetch, service, "/readyz") == READY
        finally:
            await asyncio.to_thread(recover)
        await _until(
            websocket,
            lambda health: health["status"] == "healthy" and health["store"]["pending"] == 0,  # type: ignore[index]
        )
    rows = restartable_postgres.execute("SELECT prediction_uuid FROM predictions_log", database)
    assert Counter(UUID(str(row[0])) for row in rows) == Counter(UUID(each) for each in answered)


# Nobody is to wait for half a minute.
IMPATIENT = "import service.store.queries as queries\nqueries.PATIENCE_S = 0.5"


async def _until_told(websocket: ClientConnection) -> None:
    async with asyncio.timeout(TIMEOUT):
        while (await ask(websocket, '{"command": "stats"}'))["type"] != "stats":
            await asyncio.sleep(0.05)


async def test_a_question_to_a_database_that_hangs_is_answered(
    start_process: StartProcess, restartable_postgres: PostgresServer, database: str
) -> None:
    """Once, and so is the prediction behind it; when the database goes on, there are statistics again."""
    url = restartable_postgres.url(database)
    service = start_process(DATABASE_URL=url, WORKERS="1", faults=IMPATIENT)
    async with connect(service.url) as websocket:
        await read(websocket)
        await _until_told(websocket)
        thaw = await asyncio.to_thread(_freeze, restartable_postgres)
        try:
            await websocket.send('{"command": "stats"}')
            await websocket.send(predict_message())
            assert [(await read(websocket)).get("code") for _ in range(2)] == ["deadline_exceeded", None]
        finally:
            thaw()
        await _until_told(websocket)
        assert (await ask(websocket, predict_message()))["type"] == "prediction"


async def _ask_until(websocket: ClientConnection, enough: asyncio.Event) -> int:
    """How many predictions were answered with an id, one after the other."""
    count = 0
    while not enough.is_set():
        reply = await ask(websocket, predict_message(detect="never"))
        assert reply.get("prediction_id") is not None, reply
        count += 1
    return count


async def test_memory_is_bounded_however_long_the_database_is_away(
    start_process: StartProcess, restartable_postgres: PostgresServer, database: str
) -> None:
    """What memory is not meant for waits on the disk: of ten thousand records on, the backlog takes no more of it."""
    service = start_process(DATABASE_URL=restartable_postgres.url(database), WORKERS="1")
    worker = service.workers[0]
    enough = asyncio.Event()
    recover = await asyncio.to_thread(_stop, restartable_postgres)
    try:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connect(service.url)) for _ in range(32)]
            for client in clients:
                await read(client)
            asking = [asyncio.create_task(_ask_until(client, enough)) for client in clients]
            watch = await stack.enter_async_context(connect(service.url))
            await read(watch)
            memory = {}
            for backlog in (IN_MEMORY, OUTAGE_RECORDS):
                while (await ask(watch, HEALTH))["store"]["pending"] < backlog:
                    await asyncio.gather(*(each for each in asking if each.done()))  # raises what went wrong
                    await asyncio.sleep(0.2)
                memory[backlog] = worker.memory_full_info().uss
            enough.set()
            answered = sum(await asyncio.gather(*asking))
    finally:
        await asyncio.to_thread(recover)
    grown = (memory[OUTAGE_RECORDS] - memory[IN_MEMORY]) / 2**20
    print(f"{answered} records waited; memory grew by {grown:.1f} MB beyond the first {IN_MEMORY}")
    assert grown < 8
    async with connect(service.url) as websocket:
        await read(websocket)
        async with asyncio.timeout(TIMEOUT + answered / 1000):
            while (await ask(websocket, HEALTH))["store"]["pending"]:
                await asyncio.sleep(0.2)
    ((rows, ids),) = restartable_postgres.execute(
        "SELECT count(*), count(DISTINCT prediction_uuid) FROM predictions_log", database
    )
    assert (rows, ids) == (answered, answered)


async def test_predictions_go_on_with_a_full_disk_and_say_that_they_are_not_stored(
    start_process: StartProcess, postgres_url: str
) -> None:
    """Without room for the journal an answer has no id, and health and metrics say why; with room it has one again.

    Files that may not grow fail writes as a full disk does.
    """
    service = start_process(DATABASE_URL=postgres_url, WORKERS="1")
    main = psutil.Process(service.process.pid)
    processes = [main, *main.children(recursive=True)]
    async with connect(service.url) as websocket:
        await read(websocket)
        stored = [(await ask(websocket, predict_message()))["prediction_id"] for _ in range(20)]
        for process in processes:
            process.rlimit(psutil.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        for _ in range(20):
            reply = await ask(websocket, predict_message())
            assert reply["status"] == "success"
            assert reply["prediction_id"] is None
        health = await ask(websocket, HEALTH)
        assert health["status"] == "degraded"
        assert health["store"]["failing"] == ["journal"]
        assert "journal" in health["store"]["error"]
        assert await asyncio.to_thread(fetch, service, "/readyz") == READY
        failing = await asyncio.to_thread(metric, service, 'visionai_store_failing{part="journal"}')
        assert failing == 1
        for process in processes:
            process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        stored += [(await ask(websocket, predict_message()))["prediction_id"] for _ in range(20)]
        await _until(websocket, lambda health: health["status"] == "healthy")
    service.process.terminate()
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0
    engine = sa.create_engine(sa.make_url(postgres_url).set(drivername="postgresql+psycopg2"))
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT prediction_uuid FROM predictions_log")).scalars().all()
    engine.dispose()
    assert Counter(UUID(str(each)) for each in found) == Counter(UUID(each) for each in stored)
