"""The whole service dies by SIGKILL, again and again, under load. ``VISIONAI_KILLS`` makes it longer."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from uuid import UUID

import psutil
import pytest
import sqlalchemy as sa
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from service.store.database import create_engine, parse_url
from tests.service.harness import TIMEOUT, ServiceProcess, StartProcess, ask, predict_message, read

pytestmark = pytest.mark.endurance

KILLS = int(os.environ.get("VISIONAI_KILLS", "20"))
CLIENTS = 8


async def _ask_until_cut(websocket: ClientConnection, answered: list[UUID]) -> None:
    with suppress(ConnectionClosed):
        while True:
            reply = await ask(websocket, predict_message())
            if reply["status"] == "success":
                answered.append(UUID(reply["prediction_id"]))


async def _die_under_load(service: ServiceProcess, answered: list[UUID]) -> None:
    """Clients ask; a random time after the first answer every process of the service is killed, in a random order."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(service.url)) for _ in range(CLIENTS)]
        for client in clients:
            await read(client)
        asking = [asyncio.create_task(_ask_until_cut(client, answered)) for client in clients]
        before = len(answered)
        async with asyncio.timeout(TIMEOUT):
            while len(answered) == before:
                await asyncio.sleep(0.001)
        await asyncio.sleep(random.uniform(0.0, 0.4))
        processes = psutil.Process(service.process.pid).children(recursive=True)
        processes.append(psutil.Process(service.process.pid))
        for process in random.sample(processes, len(processes)):
            # A worker that sees its supervisor die first may be gone by itself.
            with suppress(psutil.NoSuchProcess):
                process.kill()
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*asking)
    await asyncio.to_thread(service.process.wait, TIMEOUT)


def _stored(url: str) -> Counter[UUID]:
    engine = create_engine(parse_url(url))
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT prediction_uuid FROM predictions_log")).scalars().all()
    engine.dispose()
    return Counter(row if isinstance(row, UUID) else UUID(row) for row in rows)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_a_service_killed_again_and_again_stores_each_acknowledged_prediction_once(
    database: str, start_process: StartProcess, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Every id that a client holds is in the table once after the last restart, and no row is there twice."""
    url = (
        f"sqlite:///{tmp_path / 'kills.db'}"
        if database == "sqlite"
        else request.getfixturevalue("postgres_url")
    )
    answered: list[UUID] = []
    for _ in range(KILLS // 2):
        await _die_under_load(start_process(DATABASE_URL=url, WORKERS="2"), answered)
    last = start_process(DATABASE_URL=url, WORKERS="1")
    last.process.terminate()
    assert await asyncio.to_thread(last.process.wait, TIMEOUT) == 0
    stored = await asyncio.to_thread(_stored, url)
    assert [identifier for identifier in answered if stored[identifier] != 1] == []
    assert set(stored.values()) == {1}
