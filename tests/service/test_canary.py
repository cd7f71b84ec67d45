"""Two versions of the model at once: a canary beside the active one."""

from __future__ import annotations

import asyncio
import math
import re
import signal
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect

from client import AsyncClient
from service.batching.predictor import Request
from service.canary import Chooser, VersionsPredictor
from service.versions import SharedVersions
from tests.service.harness import (
    FACE,
    TIMEOUT,
    ServiceProcess,
    StartProcess,
    ask,
    fetch,
    metric,
    predict_message,
    read,
    run_service,
)
from tests.service.reloading import LABEL, OTHER_LABEL, OTHER_VERSION, VERSION, change, copy_model, reload


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """The served model under another version's tag."""
    folder = tmp_path / "canary"
    folder.mkdir()
    path = copy_model(folder)
    change(path, VERSION, OTHER_VERSION)
    return path


def stored_versions(database: Path) -> dict[UUID, str]:
    """Which version each stored prediction is of."""
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "SELECT prediction_uuid, model_version_tag FROM predictions_log JOIN model_version USING (model_id)"
        ).fetchall()
    assert len(rows) == len({uuid for uuid, _ in rows})
    return {UUID(uuid): tag for uuid, tag in rows}


async def open_clients(service: ServiceProcess, stack: AsyncExitStack, count: int) -> list[ClientConnection]:
    """So many connections, one after the other, each greeted."""
    clients = [await stack.enter_async_context(connect(service.url)) for _ in range(count)]
    for client in clients:
        await read(client)
    return clients


async def test_a_share_of_the_connections_is_served_by_the_canary(
    start_process: StartProcess, tmp_path: Path, canary: Path
) -> None:
    """Exactly the share; replies, rows, `models`, `model_info`, health and metrics all name the versions."""
    service = start_process(
        WORKERS="1", CANARY_MODEL_PATH=str(canary), CANARY_PERCENT="25", MAX_WAIT_MS="1000000"
    )
    replies = []
    async with AsyncExitStack() as stack:
        clients = await open_clients(service, stack, 8)
        for client in clients:
            # Together, so that batches are of both versions.
            await client.send(predict_message(id=1))
            await client.send(predict_message(id=2))
        for client in clients:
            own = [await read(client), await read(client)]
            info = (await ask(client, '{"command": "model_info"}'))["info"]
            assert {reply["model_version_tag"] for reply in own} == {info["model_version_tag"]}
            replies += own
        models = (await ask(clients[0], '{"command": "models"}'))["models"]
        health = await ask(clients[0], '{"command": "health"}')
    expected = [(VERSION, True, 0.75), (OTHER_VERSION, False, 0.25)]
    assert [(model["version_tag"], model["active"], model["share"]) for model in models] == expected
    async with AsyncClient(service.url) as typed:
        served = await typed.models()
    assert [(version.version_tag, version.active, version.share) for version in served] == expected
    assert [(model["version_tag"], model["active"], model["share"]) for model in health["models"]] == expected
    assert Counter(reply["model_version_tag"] for reply in replies) == {VERSION: 12, OTHER_VERSION: 4}
    for version, count in ((VERSION, 12), (OTHER_VERSION, 4)):
        assert metric(service, f'visionai_version_predictions_total{{version="{version}"}}') == count
        assert metric(service, f'visionai_version_inference_seconds_total{{version="{version}"}}') > 0
        assert metric(service, f'visionai_version_failures_total{{version="{version}"}}') == 0
    service.process.terminate()
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0
    assert stored_versions(tmp_path / "process.db") == {
        UUID(reply["prediction_id"]): reply["model_version_tag"] for reply in replies
    }
    with closing(sqlite3.connect(tmp_path / "process.db")) as connection:
        active = "SELECT model_version_tag FROM model_version WHERE model_status = '01'"
        assert connection.execute(active).fetchall() == [(VERSION,)]


@pytest.mark.parametrize("layout", [{"WORKERS": "1", "EXECUTORS": "2"}, {"WORKERS": "2"}])
async def test_every_layout_serves_both(
    start_process: StartProcess, tmp_path: Path, canary: Path, layout: dict[str, str]
) -> None:
    """With threads and with several workers: each row is of the version that its reply names."""
    service = start_process(
        CANARY_MODEL_PATH=str(canary), CANARY_PERCENT="50", MAX_WAIT_MS="1000000", **layout
    )
    answered: dict[UUID, str] = {}
    async with AsyncExitStack() as stack:
        clients = await open_clients(service, stack, 12)
        for client in clients:
            for number in range(4):
                await client.send(predict_message(id=number))
        for client in clients:
            for _ in range(4):
                reply = await read(client)
                assert reply["status"] == "success", reply
                answered[UUID(reply["prediction_id"])] = reply["model_version_tag"]
    assert set(answered.values()) == {VERSION, OTHER_VERSION}
    service.process.terminate()
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0
    assert stored_versions(tmp_path / "process.db") == answered


async def connect_and_predict(
    stopped: asyncio.Event, service: ServiceProcess, answered: dict[UUID, str]
) -> None:
    """Connect, ask a few times, and connect anew. An error ends the test."""
    while not stopped.is_set():
        async with AsyncClient(service.url) as client:
            for _ in range(5):
                prediction = await client.predict(FACE, detect="never")
                assert prediction.prediction_id is not None
                answered[prediction.prediction_id] = prediction.model_version_tag


async def test_a_canary_starts_grows_is_promoted_and_ends_under_load(
    start_process: StartProcess, tmp_path: Path, canary: Path
) -> None:
    """By reloads alone; no request fails, and each row is of the version that its reply names."""
    model = copy_model(tmp_path)
    service = start_process(WORKERS="2", MODEL_PATH=str(model))
    stopped, answered = asyncio.Event(), dict[UUID, str]()
    clients = [asyncio.create_task(connect_and_predict(stopped, service, answered)) for _ in range(3)]

    async def served_from_here(count: int) -> set[str]:
        """The versions of the next answers."""
        begin = len(answered)
        while len(answered) < begin + count:
            for client in clients:
                if client.done():
                    client.result()
            await asyncio.sleep(0.01)
        return set(list(answered.values())[begin:])

    async def roll(percent: int | None) -> str:
        settings = "" if percent is None else f"CANARY_MODEL_PATH={canary}\nCANARY_PERCENT={percent}\n"
        (tmp_path / ".env").write_text(settings)
        code, said = await reload(tmp_path)
        assert code == 0, said
        return said

    assert await served_from_here(20) == {VERSION}
    assert await roll(50) == f"reloaded: model {VERSION}, canary {OTHER_VERSION}\n"
    assert await served_from_here(100) == {VERSION, OTHER_VERSION}
    assert await roll(100) == f"reloaded: model {VERSION}, canary {OTHER_VERSION}\n"
    assert await served_from_here(20) == {OTHER_VERSION}
    assert await roll(None) == f"reloaded: model {VERSION}\n"  # it is taken back
    assert await served_from_here(20) == {VERSION}
    change(model, VERSION, OTHER_VERSION)  # it is promoted
    assert await roll(None) == f"reloaded: model {OTHER_VERSION}\n"
    assert await served_from_here(20) == {OTHER_VERSION}
    stopped.set()
    await asyncio.gather(*clients)
    predicted = re.findall(
        r'^visionai_version_predictions_total\{version="(.*)"\} (\S+)$', fetch(service, "/metrics"), re.M
    )
    counted = {version: float(count) for version, count in predicted}
    service.process.terminate()
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0
    stored = stored_versions(tmp_path / "process.db")
    assert stored.items() >= answered.items()  # what was sent again is stored again
    # Counted is what was answered, by workers that have ended, too; what was cut off in a drain may not be.
    for version, count in Counter(answered.values()).items():
        assert counted[version] >= count
    assert service.process.stderr is not None
    assert "ERROR" not in service.process.stderr.read()


FAULTS = {
    "missing": "missing.onnx does not exist",
    "manifest": "is not the file that its manifest describes",
    "labels": "answers",
    "version": "could not be told apart",
}


def spoil(canary: Path, fault: str) -> Path:
    """Make a canary unfit; the path that it is given by."""
    if fault == "missing":
        return canary.with_name("missing.onnx")
    if fault == "manifest":
        canary.with_name(canary.name + ".manifest.json").write_text('{"model_sha256": "0"}')
    elif fault == "labels":
        change(canary, LABEL, OTHER_LABEL)
    else:
        change(canary, OTHER_VERSION, VERSION)
    return canary


@pytest.mark.parametrize("fault", FAULTS)
def test_a_service_does_not_start_with_a_canary_that_is_unfit(
    tmp_path: Path, canary: Path, fault: str
) -> None:
    """One line, which says that it is about the canary, and why."""
    ended = run_service(cwd=tmp_path, PORT="0", CANARY_MODEL_PATH=str(spoil(canary, fault)))
    assert ended.returncode == 2
    *log, said = ended.stderr.splitlines()
    assert said.startswith("VisionAI cannot start: CANARY_MODEL_PATH: ")
    assert FAULTS[fault] in said
    assert all(" WARNING " in line for line in log)


@pytest.mark.parametrize("fault", ["missing", "labels"])
async def test_a_reload_with_a_canary_that_is_unfit_changes_nothing(
    start_process: StartProcess, tmp_path: Path, canary: Path, fault: str
) -> None:
    """Found with the settings or by the first successor: the same workers go on; command, health and log say why."""
    service = start_process(WORKERS="2")
    before = {each.pid for each in service.workers}
    (tmp_path / ".env").write_text(f"CANARY_MODEL_PATH={spoil(canary, fault)}\n")
    code, said = await reload(tmp_path)
    assert code == 1
    assert f"model {VERSION} is still served: CANARY_MODEL_PATH: " in said
    assert FAULTS[fault] in said
    assert {each.pid for each in service.workers} == before
    async with connect(service.url) as websocket:
        await read(websocket)
        assert (await ask(websocket, predict_message()))["model_version_tag"] == VERSION
        health = await ask(websocket, '{"command": "health"}')
        assert FAULTS[fault] in health["reload_error"]
        assert [model["version_tag"] for model in health["models"]] == [VERSION]


async def test_what_a_killed_service_left_is_stored_under_the_version_that_made_it(
    start_process: StartProcess, tmp_path: Path, canary: Path
) -> None:
    """The database takes nothing, all processes are killed, and the next service has another model and no canary."""
    service = start_process(WORKERS="2", CANARY_MODEL_PATH=str(canary), CANARY_PERCENT="50")
    answered: dict[UUID, str] = {}
    with closing(sqlite3.connect(tmp_path / "process.db", isolation_level=None)) as blocking:
        blocking.execute("BEGIN IMMEDIATE")
        async with AsyncExitStack() as stack:
            for client in await open_clients(service, stack, 8):
                for _ in range(5):
                    reply = await ask(client, predict_message())
                    answered[UUID(reply["prediction_id"])] = reply["model_version_tag"]
        processes = service.workers
        service.process.send_signal(signal.SIGKILL)
        for process in processes:
            process.kill()
        await asyncio.to_thread(psutil.wait_procs, processes, TIMEOUT)
        blocking.execute("ROLLBACK")
    assert set(answered.values()) == {VERSION, OTHER_VERSION}
    assert stored_versions(tmp_path / "process.db") == {}
    third = copy_model(tmp_path)
    change(third, VERSION, VERSION[:-1] + "7")
    last = start_process(WORKERS="1", MODEL_PATH=str(third))
    last.process.terminate()
    assert await asyncio.to_thread(last.process.wait, TIMEOUT) == 0
    assert stored_versions(tmp_path / "process.db") == answered


async def test_a_canary_that_fails_fails_its_own_requests_only(
    start_process: StartProcess, canary: Path
) -> None:
    """In a batch of both versions the active one's are answered, and the metrics say whose fault it was."""
    service = start_process(
        WORKERS="1",
        CANARY_MODEL_PATH=str(canary),
        CANARY_PERCENT="50",
        MAX_WAIT_MS="1000000",
        faults=f"""
from service.engine import Engine
run = Engine.run
def fail(engine, images):
    if images.any() and engine.card.version_tag == {OTHER_VERSION!r}:  # the warm-up's are all zeros
        raise RuntimeError("a fault of the canary's")
    return run(engine, images)
Engine.run = fail
""",
    )
    async with AsyncExitStack() as stack:
        clients = await open_clients(service, stack, 4)
        for client in clients:
            for number in range(3):
                await client.send(predict_message(id=number))
        replies = [await read(client) for client in clients for _ in range(3)]
    assert Counter(reply["type"] for reply in replies) == {"prediction": 6, "error": 6}
    assert {reply["code"] for reply in replies if reply["type"] == "error"} == {"internal"}
    assert metric(service, f'visionai_version_failures_total{{version="{OTHER_VERSION}"}}') == 6
    assert metric(service, f'visionai_version_failures_total{{version="{VERSION}"}}') == 0


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0])
def test_any_run_of_connections_has_its_share(share: float) -> None:
    """Rounded up or down, wherever a worker starts and whichever connections are looked at."""
    for start in (0.0, 0.3, 0.999):
        chooser = Chooser(share, start)
        chosen = [chooser.next() for _ in range(1000)]
        for length in (1, 7, 100):
            for begin in range(0, 1000 - length, 37):
                count = sum(chosen[begin : begin + length])
                assert math.floor(length * share - 1e-6) <= count <= math.ceil(length * share + 1e-6)


class Recording:
    """A predictor that keeps what it is given, for models whose inputs differ."""

    def __init__(self, *shape: int) -> None:
        self.input_shape = shape
        self.served: list[Request] = []

    def make_buffer(self, max_batch: int) -> npt.NDArray[np.uint8]:
        """As `Predictor` makes it."""
        return np.empty((max_batch, *self.input_shape), np.uint8)

    def serve(self, requests: Sequence[Request], buffer: npt.NDArray[np.uint8]) -> None:
        """Keep the requests."""
        assert buffer.shape == (4, *self.input_shape)
        buffer[:] = 1  # all of it is there to be written
        self.served += requests


def test_a_mixed_batch_is_run_as_one_of_each_version() -> None:
    """Each predictor is given its own requests and a buffer of its own input's form, whichever is larger."""
    small, large = Recording(2, 3, 1), Recording(5, 5, 3)
    predictors: list[Any] = [small, large]
    versions = VersionsPredictor(predictors)
    client: Any = object()
    requests = [Request(client, number, b"", 0.0, version=number % 3 == 0) for number in range(6)]
    versions.serve(requests, versions.make_buffer(4))
    assert [request.id for request in small.served] == [1, 2, 4, 5]
    assert [request.id for request in large.served] == [0, 3]


def test_counts_of_versions_outlive_the_processes_that_made_them() -> None:
    """A row's next writer goes on where the last one ended; the version claimed longest ago makes room."""
    shared = SharedVersions(2)
    for row in range(2):
        counter = shared.counting(row, ["one", "two"])
        counter.predicted(0, 0.5)
        counter.failed(1)
    counter = shared.counting(1, ["two", "three"])
    counter.predicted(0, 0.25)
    counter.predicted(1, 0.25)
    found = {
        tag: (counts.predictions, counts.failures, counts.seconds) for tag, counts in shared.totals().items()
    }
    assert found == {"one": (2, 0, 1.0), "two": (1, 2, 0.25), "three": (1, 0, 0.25)}
    for number in range(20):
        counter = shared.counting(1, ["two", str(number)])
        counter.predicted(1, 0.25)
        counter.failed(1)
    totals = shared.totals()
    assert totals["two"].failures == 2
    assert totals["one"].predictions == 1  # that of the other row
    assert "three" not in totals
    last = totals["19"]
    assert (last.predictions, last.failures, last.seconds) == (1, 1, 0.25)  # its place had counted others
