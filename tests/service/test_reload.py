"""A reload: model and settings are taken up anew by rolling the workers, and no client of the library notices."""

from __future__ import annotations

import asyncio
import re
import signal
import sqlite3
from collections import Counter
from pathlib import Path

import orjson
import psutil
import pytest
from websockets.asyncio.client import connect

from client import AsyncClient
from service.processes.reload import request_reload
from tests.service.harness import (
    FACE,
    HELD,
    TIMEOUT,
    ServiceProcess,
    StartProcess,
    ask,
    closed_with,
    metric,
    predict_message,
    read,
)
from tests.service.reloading import (
    LABEL,
    OTHER_LABEL,
    OTHER_VERSION,
    VERSION,
    change,
    copy_model,
    reload,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that may be changed."""
    return copy_model(tmp_path)


async def predict_until(stopped: asyncio.Event, service: ServiceProcess, versions: Counter[str]) -> None:
    """One client after the other's answer, without a pause. An error ends the test."""
    async with AsyncClient(service.url) as client:
        while not stopped.is_set():
            prediction = await client.predict(FACE)
            assert prediction.prediction_id is not None
            versions[prediction.model_version_tag] += 1


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_new_model_is_swapped_in_under_load_without_a_failed_request(
    start_process: StartProcess, tmp_path: Path, model: Path, workers: str
) -> None:
    """Every request of the library's clients is answered, and each row says which model made it."""
    service = start_process(MODEL_PATH=str(model), WORKERS=workers)
    stopped, versions = asyncio.Event(), Counter[str]()
    clients = [asyncio.create_task(predict_until(stopped, service, versions)) for _ in range(2)]
    while sum(versions.values()) < 20:
        await asyncio.sleep(0.01)
    change(model, VERSION, OTHER_VERSION)
    assert await reload(tmp_path) == (0, f"reloaded: model {OTHER_VERSION}\n")
    count = versions[OTHER_VERSION]
    while versions[OTHER_VERSION] < count + 20:
        await asyncio.sleep(0.01)
    stopped.set()
    await asyncio.gather(*clients)
    service.process.terminate()
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0
    with sqlite3.connect(tmp_path / "process.db") as connection:
        rows = connection.execute(
            "SELECT model_version_tag, count(DISTINCT prediction_uuid) FROM predictions_log"
            " JOIN model_version USING (model_id) GROUP BY 1"
        ).fetchall()
    connection.close()
    in_database = Counter(dict(rows))
    assert versions.keys() == {VERSION, OTHER_VERSION}
    assert in_database >= versions  # a request that was sent again is stored again
    assert service.process.stderr is not None
    assert "ERROR" not in service.process.stderr.read()


async def test_a_plain_client_is_closed_with_1001_between_its_requests(start_process: StartProcess) -> None:
    """What the library does for its users, others do themselves: connect again when told that the worker goes."""
    service = start_process(WORKERS="1")
    async with connect(service.url) as websocket:
        await read(websocket)
        assert (await ask(websocket, predict_message()))["status"] == "success"
        service.process.send_signal(signal.SIGHUP)
        assert await closed_with(websocket) == 1001
    async with connect(service.url) as websocket:
        await read(websocket)
        assert (await ask(websocket, predict_message()))["status"] == "success"


@pytest.mark.parametrize("fault", ["manifest", "labels"])
async def test_a_model_that_fails_verification_leaves_the_old_one_serving(
    start_process: StartProcess, tmp_path: Path, model: Path, fault: str
) -> None:
    """The same processes go on; the exit code, the log, health and the metrics say it, until a reload goes well."""
    service = start_process(MODEL_PATH=str(model), WORKERS="2")
    before = {each.pid for each in service.workers}
    manifest = model.with_name(model.name + ".manifest.json")
    if fault == "manifest":
        manifest.write_text('{"model_sha256": "0"}')
        expected = "is not the file that its manifest describes"
    else:
        change(model, LABEL, OTHER_LABEL)
        expected = "that needs a restart"
    code, said = await reload(tmp_path)
    assert code == 1
    assert f"model {VERSION} is still served" in said
    assert expected in said
    assert {each.pid for each in service.workers} == before
    async with connect(service.url) as websocket:
        await read(websocket)
        assert (await ask(websocket, predict_message()))["status"] == "success"
        health = await ask(websocket, '{"command": "health"}')
        assert health["status"] == "healthy"
        assert expected in health["reload_error"]
    if fault == "manifest":
        manifest.unlink()
    else:
        change(model, OTHER_LABEL, LABEL)
    assert (await reload(tmp_path))[0] == 0
    async with connect(service.url) as websocket:
        await read(websocket)
        assert "reload_error" not in await ask(websocket, '{"command": "health"}')
    service.process.terminate()
    _, log = await asyncio.to_thread(service.process.communicate, timeout=TIMEOUT)
    assert expected in log


async def test_settings_come_from_the_file_as_it_is_now(start_process: StartProcess, tmp_path: Path) -> None:
    """What an earlier version of .env said is forgotten; what is wrong in it leaves the old settings.

    The log names what has changed, and no values: one is a password.
    """
    dotenv = tmp_path / ".env"
    dotenv.write_text("EMOTIONS_LANGUAGE=es\nDETECT=always\n")
    service = start_process(WORKERS="1", LOG_LEVEL="INFO")

    async def description() -> str:
        async with connect(service.url) as websocket:
            await read(websocket)
            emotions = await ask(websocket, '{"command": "emotions"}')
            return str(emotions["emotions"][3]["description"])

    spanish = await description()
    dotenv.write_text("EMOTIONS_LANGUAGE=en\n")
    assert (await reload(tmp_path))[0] == 0
    english = await description()
    assert english != spanish
    async with connect(service.url) as websocket:
        await read(websocket)
        configured = await ask(websocket, '{"command": "configure", "max_faces": 3}')
        assert configured["configuration"]["detect"] == "auto"
    dotenv.write_text("EMOTIONS_LANGUAGE=xx\n")
    code, said = await reload(tmp_path)
    assert code == 1
    assert f"not reloaded, model {VERSION} is still served: a setting is wrong" in said
    assert "EMOTIONS_LANGUAGE" in said
    dotenv.write_bytes(b"EMOTIONS_LANGUAGE=\xff\n")
    elsewhere = tmp_path / "elsewhere"  # the command reads the same file, for CONTROL_SOCKET
    elsewhere.mkdir()
    assert (await reload(tmp_path))[0] == 2
    code, said = await reload(elsewhere, CONTROL_SOCKET=str(tmp_path / "visionai.sock"))
    assert (code, ".env cannot be read" in said) == (1, True)
    assert await description() == english
    service.process.terminate()
    _, log = await asyncio.to_thread(service.process.communicate, timeout=TIMEOUT)
    assert re.findall(r"changed: (.*)", log) == ["DETECT, EMOTIONS_LANGUAGE"]


async def test_what_is_stored_is_counted_through_a_reload(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """Counters never go back: a successor counts on, from all that its predecessor has written."""
    service = start_process(WORKERS="1")
    async with connect(service.url) as websocket:
        await read(websocket)
        for _ in range(20):
            await ask(websocket, predict_message())
    assert (await reload(tmp_path))[0] == 0
    async with asyncio.timeout(TIMEOUT):
        while metric(service, "visionai_store_written_total") < 20:
            await asyncio.sleep(0.05)
    async with connect(service.url) as websocket:
        await read(websocket)
        assert (await ask(websocket, '{"command": "health"}'))["store"]["written"] == 20
    assert metric(service, "visionai_store_rejected_total") == 0


@pytest.mark.parametrize(
    ("right", "wrong", "why"),
    [
        (
            "DATABASE_URL=sqlite:///old.db",
            "DATABASE_URL=postgresql://somebody@127.0.0.1:1/nothing",
            "PostgreSQL",
        ),
        ("JOURNAL_DIR=old", "JOURNAL_DIR=old.db/journal", "cannot write a journal in old.db/journal: Not a "),
    ],
)
async def test_a_place_to_store_that_is_wrong_leaves_the_old_one(
    start_process: StartProcess, tmp_path: Path, right: str, wrong: str, why: str
) -> None:
    """A reload that names another database, or folder for the journal, needs it, as a start does."""
    dotenv = tmp_path / ".env"
    dotenv.write_text(f"{right}\n")
    (tmp_path / "old.db").touch()
    service = start_process(faults=f"import os\ndel os.environ['{right.partition('=')[0]}']", WORKERS="1")
    dotenv.write_text(f"{wrong}\n")
    code, said = await reload(tmp_path)
    assert code == 1
    assert why in said
    async with connect(service.url) as websocket:
        await read(websocket)
        assert (await ask(websocket, predict_message()))["prediction_id"] is not None


async def test_an_env_file_that_cannot_be_read_leaves_the_old_settings(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """The workers serve on, and whoever asked is told."""
    service = start_process(WORKERS="1")
    before = service.workers
    (tmp_path / ".env").write_bytes(b"HOST=\xff\n")
    said = await asyncio.to_thread(request_reload, tmp_path / "visionai.sock")
    assert ".env cannot be read" in str(said.error)
    assert service.workers == before


# A worker that has read its model waits, as long as a file is there.
HELD_WORKER = """
import time
from pathlib import Path
import service.processes.worker
load_engine = service.processes.worker.load_engine
def wait_when_loaded(settings):
    engine = load_engine(settings)
    Path("loaded").touch()
    while Path("hold").exists():
        time.sleep(0.01)
    return engine
service.processes.worker.load_engine = wait_when_loaded
"""


async def test_who_asks_during_a_reload_gets_what_was_changed_by_then(
    start_process: StartProcess, tmp_path: Path, model: Path
) -> None:
    """What the reload under way has read may be older: it is done again."""
    start_process(faults=HELD_WORKER, MODEL_PATH=str(model), WORKERS="1")
    hold, loaded = tmp_path / "hold", tmp_path / "loaded"
    hold.touch()
    loaded.unlink()

    async def ask_to_reload() -> asyncio.StreamReader:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "visionai.sock")
        writers.append(writer)
        return reader

    writers: list[asyncio.StreamWriter] = []
    async with asyncio.timeout(TIMEOUT):
        first = await ask_to_reload()
        while not loaded.exists():
            await asyncio.sleep(0.01)
        change(model, VERSION, OTHER_VERSION)
        second = await ask_to_reload()
        hold.unlink()
        for reader in (first, second):
            outcome = orjson.loads(await reader.readline())
            assert (outcome["version_tag"], outcome["error"]) == (OTHER_VERSION, None)
    for writer in writers:
        writer.close()


async def test_a_shutdown_during_a_reload_is_clean(start_process: StartProcess) -> None:
    """The successor that is being loaded stops, too."""
    service = start_process(WORKERS="2")
    service.process.send_signal(signal.SIGHUP)
    supervisor = psutil.Process(service.process.pid)
    while len(supervisor.children()) == 2:
        await asyncio.sleep(0.001)
    service.process.terminate()
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0


def test_a_control_socket_that_cannot_be_made_is_logged(start_process: StartProcess, tmp_path: Path) -> None:
    """As in a read-only folder, where what was not made cannot be removed either: the service serves without it."""
    (tmp_path / "file").touch()
    service = start_process(WORKERS="1", CONTROL_SOCKET="file/visionai.sock")
    service.process.terminate()
    _, log = service.process.communicate(timeout=TIMEOUT)
    assert "no control socket at file/visionai.sock" in log
    assert service.process.returncode == 0


def test_a_control_socket_that_cannot_be_removed_is_left(start_process: StartProcess, tmp_path: Path) -> None:
    """As on a disk that has become read-only: the end is as good as any."""
    (tmp_path / "folder").mkdir()
    service = start_process(WORKERS="1", CONTROL_SOCKET="folder/visionai.sock")
    (tmp_path / "folder").rename(tmp_path / "elsewhere")
    (tmp_path / "folder").touch()
    service.process.terminate()
    _, log = service.process.communicate(timeout=TIMEOUT)
    assert (service.process.returncode, log) == (0, "")


def test_a_file_in_the_place_of_the_control_socket_stays(start_process: StartProcess, tmp_path: Path) -> None:
    """It may be a database: what is no socket is not replaced, and the log says which setting to check."""
    (tmp_path / "kept").write_text("data")
    service = start_process(WORKERS="1", CONTROL_SOCKET="kept")
    service.process.terminate()
    _, log = service.process.communicate(timeout=TIMEOUT)
    assert "no control socket at kept (what is there is no socket; check CONTROL_SOCKET)" in log
    assert (tmp_path / "kept").read_text() == "data"
    assert not list(tmp_path.glob("kept.*"))


async def test_a_shutdown_during_a_reload_does_not_hurry_the_predecessor(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """The reload told it to stop, and a signal is the service's first: what is in flight there is answered."""
    service = start_process(faults=HELD, WORKERS="1", EXECUTORS="1", DRAIN_SECONDS="600")
    supervisor = psutil.Process(service.process.pid)
    (predecessor,) = supervisor.children()
    hold, entered = tmp_path / "hold", tmp_path / "entered"
    hold.touch()
    async with connect(service.url) as websocket, connect(service.url) as other, asyncio.timeout(TIMEOUT):
        await read(websocket)
        await read(other)
        await websocket.send(predict_message(id="held"))
        while not entered.exists():
            await asyncio.sleep(0.01)
        service.process.send_signal(signal.SIGHUP)
        while (await ask(other, '{"command": "health"}'))["status"] != "unhealthy":
            await asyncio.sleep(0.01)
        service.process.send_signal(signal.SIGTERM)
        while supervisor.children() != [predecessor]:
            await asyncio.sleep(0.01)
        hold.unlink()
        assert (await read(websocket))["id"] == "held"
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0


# The second worker tells that it is ready once it is told to stop: it became ready just then.
_READY_TOO_LATE = """
import time
from pathlib import Path
import service.processes.worker
from service.processes.supervisor import Supervisor
stop, tell = Supervisor._stop, service.processes.worker._tell
def stop_and_say_so(supervisor, worker):
    stop(supervisor, worker)
    Path("stopped").touch()
def tell_in_time_or_late(pipe, word):
    with open("started", "a") as file:
        file.write("x")
    is_second = Path("started").read_text() == "xx"
    while is_second and not Path("stopped").exists():
        time.sleep(0.01)
    tell(pipe, word)
Supervisor._stop, service.processes.worker._tell = stop_and_say_so, tell_in_time_or_late
"""


async def test_a_predecessor_that_becomes_ready_when_it_is_to_stop_is_not_what_is_served(
    start_process: StartProcess, model: Path, tmp_path: Path
) -> None:
    """It replaced a worker that died, and its successor was quicker: what that serves is told."""
    service = start_process(
        faults=_READY_TOO_LATE, MODEL_PATH=str(model), WORKERS="1", THREADS="1", MAX_BATCH="8"
    )
    service.workers[0].kill()
    async with asyncio.timeout(TIMEOUT):
        while (tmp_path / "started").read_text() != "xx":
            await asyncio.sleep(0.01)
    change(model, VERSION, OTHER_VERSION)
    assert await reload(tmp_path) == (0, f"reloaded: model {OTHER_VERSION}\n")


# The second worker loads for long.
_LOADING_FOR_LONG = """
import time
import service.processes.worker
load = service.processes.worker.load_models
def load_or_wait(settings):
    with open("started", "a") as file:
        file.write("x")
    if open("started").read() == "xx":
        time.sleep(600)
    return load(settings)
service.processes.worker.load_models = load_or_wait
"""


async def test_a_predecessor_that_still_loads_is_ended_without_a_word(
    start_process: StartProcess, model: Path, tmp_path: Path
) -> None:
    """It replaced a worker that died, and its successor was quicker: the signal that ends it is no fault of its own."""
    service = start_process(
        faults=_LOADING_FOR_LONG, MODEL_PATH=str(model), WORKERS="1", THREADS="1", MAX_BATCH="8"
    )
    service.workers[0].kill()
    async with asyncio.timeout(TIMEOUT):
        while (tmp_path / "started").read_text() != "xx":
            await asyncio.sleep(0.01)
    assert await reload(tmp_path) == (0, f"reloaded: model {VERSION}\n")
    service.process.terminate()
    _, log = await asyncio.to_thread(service.process.communicate, timeout=TIMEOUT)
    assert "with exit code -9; it is replaced" in log
    assert "which was to be replaced" not in log
