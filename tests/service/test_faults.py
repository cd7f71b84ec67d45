"""Faults inside the service: every request gets an answer, the part is replaced, and readiness tells the truth."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from service.batching.predictor import Request
from service.engine import Engine
from service.errors import Internal
from service.faces import Face, FaceDetector
from service.store import Store
from tests.service.harness import (
    FACE,
    TIMEOUT,
    Serve,
    StartProcess,
    ask,
    fetch,
    metric,
    predict_message,
    read,
)
from tests.service.pictures import encode

# What is tested here is noticed after 3 and after 10 seconds.
PATIENCE = 2 * TIMEOUT


async def eventually(condition: Callable[[], bool]) -> None:
    """Fail unless the condition, which may block, comes true."""
    deadline = time.monotonic() + PATIENCE
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_an_image_that_the_model_fails_on_spares_its_batch_mates(serve: Serve, engine: Engine) -> None:
    """ONNX Runtime raises on one input: that request is answered `internal`, those beside it their predictions."""

    class Faulty(Engine):
        def __init__(self) -> None:
            self.card, self.provider = engine.card, engine.provider
            self.failures = 0

        def warm(self, batch: int) -> None:
            engine.warm(batch)

        def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            if (images == 255).all(axis=(1, 2, 3)).any():
                self.failures += 1
                raise RuntimeError("injected")
            return engine.run(images)

    poison = encode(np.full((64, 64), 255, np.uint8), ".png")
    faulty = Faulty()
    async with serve(faulty, max_in_flight=200) as running, running.client() as client:
        for number in range(60):
            await client.send(
                predict_message(poison if number % 10 == 5 else FACE, id=number, detect="never")
            )
        for number in range(60):
            reply = await read(client)
            assert reply["id"] == number
            assert reply.get("code") == ("internal" if number % 10 == 5 else None)
    assert faulty.failures >= 6


async def test_an_image_that_the_search_fails_on_spares_its_batch_mates(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody expected is answered `internal`, and logged, for the request alone that it befell."""

    def explode(detector: FaceDetector, image: npt.NDArray[np.uint8], max_faces: int) -> list[Face]:
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(FaceDetector, "detect", explode)
    async with serve(max_in_flight=200) as running, running.client() as client:
        for number in range(60):
            detect = "always" if number % 10 == 5 else "never"
            await client.send(predict_message(id=number, detect=detect))
        for number in range(60):
            reply = await read(client)
            assert reply["id"] == number
            assert reply.get("code") == ("internal" if number % 10 == 5 else None)


async def test_a_batch_that_cannot_be_stored_is_answered_and_counted_as_failed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is raised after the model has run: `internal`, no prediction, and the next batch goes well."""

    def explode(store: Store, records: object) -> bool:
        raise ZeroDivisionError("injected")

    async with serve() as running, running.client() as client:
        with monkeypatch.context() as fault:
            fault.setattr(Store, "record", explode)
            assert (await ask(client, predict_message()))["code"] == "internal"
        assert (await ask(client, predict_message()))["status"] == "success"
        told = running.service._metrics.exposition()
        assert b'visionai_errors_total{code="internal"} 1.0' in told
        assert b'visionai_predictions_total{emotion="happy"} 1.0' in told


async def test_a_reply_that_cannot_be_sent_ends_its_connection_only(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of one connection keeps no batch-mate from its answer, and the drain from nothing."""
    async with serve() as running, running.client() as broken, running.client() as other:
        (unlucky,) = (
            each for each in running.service._connections if each.remote_address == broken.local_address
        )

        def explode(_: Request) -> None:
            raise RuntimeError("injected")

        monkeypatch.setattr(unlucky, "settle", explode)
        for _ in range(3):
            await broken.send(predict_message())
            await other.send(predict_message())
        for _ in range(3):
            assert (await read(other))["status"] == "success"
        with pytest.raises(ConnectionClosed):
            await read(broken)
        assert running.service.not_ready() is None


# The third batch of each worker ends its executor.
DYING_EXECUTOR = """
import itertools
from service.batching.predictor import Predictor
serve, served = Predictor.serve, itertools.count(1)
def fail_once(self, requests, buffer):
    if next(served) == 3:
        raise MemoryError("injected")
    serve(self, requests, buffer)
Predictor.serve = fail_once
"""


@pytest.mark.parametrize("executors", ["0", "1"], ids=["inline", "threads"])
async def test_a_worker_whose_executor_fails_answers_and_is_replaced(
    start_process: StartProcess, executors: str
) -> None:
    """Every request is answered or its connection closed with 1001; the successor serves on the same port."""
    service = start_process(faults=DYING_EXECUTOR, WORKERS="1", EXECUTORS=executors)
    (before,) = service.workers
    async with connect(service.url) as websocket:
        await read(websocket)
        for number in range(2):
            assert (await ask(websocket, predict_message(id=number)))["status"] == "success"
        for number in range(2, 8):
            await websocket.send(predict_message(id=number))
        replies = []
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                replies.append(await read(websocket))
        assert [reply["id"] for reply in replies] == list(range(2, 8))
        assert replies[0]["code"] == Internal.code
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
    async with connect(service.url, open_timeout=TIMEOUT) as websocket:
        await read(websocket)
        assert (await ask(websocket, predict_message()))["status"] == "success"
    assert [worker.pid for worker in service.workers] != [before.pid]


async def test_a_worker_that_hangs_is_replaced(start_process: StartProcess) -> None:
    """First it is not counted as ready, then it is killed; its siblings serve all the while."""
    service = start_process(WORKERS="2")
    before = service.workers
    before[0].suspend()
    await eventually(lambda: metric(service, "visionai_workers_ready") == 1)
    async with connect(service.url, open_timeout=TIMEOUT) as websocket:
        await read(websocket)
        assert (await ask(websocket, predict_message()))["status"] == "success"
    await eventually(lambda: not before[0].is_running())
    await eventually(lambda: metric(service, "visionai_workers_ready") == 2)
    after = {worker.pid for worker in service.workers}
    assert before[1].pid in after
    assert before[0].pid not in after


async def test_a_service_that_was_paused_as_a_whole_goes_on(start_process: StartProcess) -> None:
    """A container that is paused for longer than a worker may hang loses no worker."""
    service = start_process(WORKERS="1")
    (worker,) = service.workers
    async with connect(service.url) as websocket:
        await read(websocket)
        for process in (psutil.Process(service.process.pid), worker):
            process.suspend()
        await asyncio.sleep(11)
        for process in (psutil.Process(service.process.pid), worker):
            process.resume()
        assert (await ask(websocket, predict_message()))["status"] == "success"
    assert service.workers == [worker]


# The writer's thread meets an error that nobody expected, as long as a file is there.
FAILING_WRITER = """
from pathlib import Path
from service.store.journal import JournalBacklog
take = JournalBacklog.take
def fail_while_told_so(self, limit):
    if Path("fault").exists():
        raise RuntimeError("injected")
    return take(self, limit)
JournalBacklog.take = fail_while_told_so
"""


async def test_a_writer_that_fails_goes_on(start_process: StartProcess, tmp_path: Path) -> None:
    """Predictions are answered meanwhile, health tells, and all are stored once the fault is gone."""
    service = start_process(faults=FAILING_WRITER, WORKERS="1")
    fault = tmp_path / "fault"
    async with AsyncExitStack() as stack:
        websocket = await stack.enter_async_context(connect(service.url))
        await read(websocket)
        fault.touch()
        ids = {(await ask(websocket, predict_message()))["prediction_id"] for _ in range(20)}
        assert None not in ids
        health = await ask(websocket, '{"command": "health"}')
        deadline = time.monotonic() + PATIENCE
        while health["status"] != "degraded":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
            health = await ask(websocket, '{"command": "health"}')
        assert "injected" in health["store"]["error"]
        assert health["store"]["failing"] == ["database"]
        assert "ready" in await asyncio.to_thread(fetch, service, "/readyz")
        fault.unlink()
        while health["status"] != "healthy" or health["store"]["written"] < 20:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
            health = await ask(websocket, '{"command": "health"}')
    service.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0
