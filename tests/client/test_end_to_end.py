"""The client and the command line against the real service, as a process, with a real face."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from contextlib import closing
from itertools import repeat
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from client import AsyncClient, Client, InvalidImage, Retry
from client.protocol import parse_reply
from tests.client.harness import FACE, QUICK, TIMEOUT, ServiceProcess, VisionAI
from tests.contract import check_reply

# Tries until a request's time is over, however long a service takes to start.
PATIENT = Retry(attempts=1_000_000, first_delay=0.01, max_delay=0.1)


@pytest.fixture(autouse=True)
def _described(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reply that the service sends to a client of these tests fits docs/asyncapi.yaml."""

    def checked(frame: str | bytes) -> dict[str, Any]:
        check_reply(frame)
        return parse_reply(frame)

    monkeypatch.setattr("client.connection.parse_reply", checked)


def stored(service: ServiceProcess) -> list[UUID]:
    """The ids of the rows in the service's database, which it has closed."""
    with closing(sqlite3.connect(service.database)) as database:
        rows = database.execute("SELECT prediction_uuid FROM predictions_log").fetchall()
    return [UUID(text) for (text,) in rows]


async def test_a_face_is_recognised_and_stored(service: ServiceProcess, visionai: VisionAI) -> None:
    """`visionai predict` on a real face prints its emotion, and its row is in the database."""
    done = await visionai("predict", FACE, "--json", "--url", service.url)
    assert done.code == 0, done.err
    (reply,) = json.loads(done.out)
    assert reply["emotion_name"] == "happy"
    await asyncio.to_thread(service.stop)
    assert stored(service) == [UUID(reply["prediction_id"])]


async def test_the_queries_are_answered(service: ServiceProcess, visionai: VisionAI) -> None:
    """emotions, model-info and health of the real service are understood."""
    emotions = await visionai("emotions", "--json", "--url", service.url)
    assert [entry["name"] for entry in json.loads(emotions.out)][3] == "happy"
    info = await visionai("model-info", "--json", "--url", service.url)
    assert json.loads(info.out)["num_classes"] == 7
    health = await visionai("health", "--url", service.url)
    assert (health.code, "healthy" in health.out) == (0, True)


async def test_the_history_of_the_real_service(service: ServiceProcess, visionai: VisionAI) -> None:
    """A client reads what it made; the command line counts what everybody without a name made."""
    async with AsyncClient(service.url) as client:
        made = [(await client.predict(FACE)).prediction_id for _ in range(3)]
        while (page := await client.history(limit=2)).pending:
            await asyncio.sleep(0.01)
        rest = await client.history(limit=2, cursor=page.next)
        assert [row.prediction_id for row in (*page.predictions, *rest.predictions)] == made[::-1]
        row = page.predictions[0]
        assert (row.face_index, row.box is not None, row.request_id is not None) == (0, True, True)
        stats = await client.stats(window_s=600, buckets=2)
        assert (stats.bucket_s, stats.since is not None, stats.pending) == (300, True, 0)
        assert (stats.count, stats.emotions["happy"].count, stats.scope) == (3, 3, "anonymous")
        assert [dict(bucket) for bucket in stats.buckets] == [{}, {"happy": 3}]
    done = await visionai("stats", "--json", "--url", service.url)
    assert json.loads(done.out)["count"] == 3
    done = await visionai("history", "--url", service.url)
    assert (done.code, "--token" in done.err) == (0, True)


async def test_typed_results_of_the_real_service(service: ServiceProcess) -> None:
    """The fields of protocol 2 that the service sends are read."""
    async with AsyncClient(service.url) as client:
        assert (await client.connect()).protocol == 2
        found = await client.predict(FACE)
    assert found.emotion_name == "happy"
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-3)
    assert found.timing is not None
    assert found.timing.total > 0
    assert found.prediction_id is not None


async def test_many_faces_with_a_bad_one(service: ServiceProcess) -> None:
    """A hundred images in flight sixteen at a time; the one that is no image fails alone."""
    sources = [FACE.read_bytes()] * 50 + [b"\xff\xd8 not an image"] + [FACE.read_bytes()] * 50
    async with AsyncClient(service.url) as client:
        outcomes = [outcome async for outcome in client.predict_many(sources)]
    assert [type(outcome.error) for outcome in outcomes if outcome.error] == [InvalidImage]
    assert isinstance(outcomes[50].error, InvalidImage)
    assert {outcome.prediction.emotion_name for outcome in outcomes if outcome.prediction} == {"happy"}


async def test_no_request_is_lost_when_the_service_restarts(service: ServiceProcess) -> None:
    """The service is killed under load and started again: every image still gets its prediction."""
    async with AsyncClient(service.url, retry=PATIENT, timeout=TIMEOUT) as client:
        outcomes = client.predict_many(repeat(FACE.read_bytes(), 600), concurrency=16)
        answered = 0
        async for outcome in outcomes:
            assert outcome.prediction is not None, outcome.error
            answered += 1
            if answered == 100:
                await asyncio.to_thread(service.stop, signal.SIGKILL)
                restart = asyncio.create_task(asyncio.to_thread(service.start))
        await restart
    assert answered == 600


async def test_no_request_is_lost_when_the_service_drains(service: ServiceProcess) -> None:
    """The service is asked to stop under load: what it refuses for its shutdown the next one answers."""
    async with AsyncClient(service.url, retry=PATIENT, timeout=TIMEOUT) as client:
        seen: list[UUID | None] = []
        async for outcome in client.predict_many(repeat(FACE.read_bytes(), 600), concurrency=16):
            assert outcome.prediction is not None, outcome.error
            seen.append(outcome.prediction.prediction_id)
            if len(seen) == 100:
                restart = asyncio.create_task(asyncio.to_thread(_restart, service))
        await restart
    assert len(seen) == 600
    service.stop()
    assert set(seen) <= set(stored(service))


def _restart(service: ServiceProcess) -> None:
    service.stop()
    service.start()


async def test_the_blocking_client_works_on_the_real_service(service: ServiceProcess) -> None:
    """A program without asyncio."""

    def program() -> list[str]:
        with Client(service.url, retry=QUICK) as client:
            return [client.predict(FACE).emotion_name for _ in range(3)]

    assert await asyncio.to_thread(program) == ["happy"] * 3


async def test_serve_starts_the_service(tmp_path: Path, visionai: VisionAI) -> None:
    """`visionai serve` runs the service, its options go before the environment, and SIGTERM reaches it."""
    database = tmp_path / "served.db"
    serve = ServiceProcess(tmp_path, ("-m", "client", "serve", "--database", f"sqlite:///{database}"))
    try:
        serve.start()
        done = await visionai("predict", FACE, "--url", serve.url)
        assert (done.code, "happy" in done.out) == (0, True), done.err
    finally:
        serve.stop()
    assert database.is_file()
    assert not serve.database.exists()
