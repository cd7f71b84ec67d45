"""`python -m service` as users run it: a process, its exit codes, its database, its signals."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path

import orjson
import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as sync_connect

from tests.service.harness import (
    MODEL,
    ROOT,
    TIMEOUT,
    StartProcess,
    ask,
    closed_with,
    predict_message,
    read,
    run_service,
)
from tests.service.pictures import large_bitmap
from tests.service.reloading import reload


def stored(database: Path) -> list[tuple[str, str]]:
    """(prediction UUID, emotion) of the stored predictions."""
    with sqlite3.connect(database) as connection:
        rows = connection.execute(
            "SELECT prediction_uuid, emotion_name FROM predictions_log JOIN emotion_class USING (emotion_id)"
        ).fetchall()
    connection.close()
    return [(str(row[0]).replace("-", ""), row[1]) for row in rows]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_prediction_is_answered_and_stored_before_a_clean_exit(
    start_process: StartProcess, tmp_path: Path, number: signal.Signals
) -> None:
    """On either signal clients are closed with 1001, everything answered is in the database, and the exit is 0."""
    service = start_process()
    async with connect(service.url) as websocket:
        await read(websocket)
        replies = [await ask(websocket, predict_message()) for _ in range(20)]
        service.process.send_signal(number)
        assert await closed_with(websocket) == 1001
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0
    assert service.process.stderr is not None
    assert service.process.stderr.read() == ""
    answered = sorted((reply["prediction_id"].replace("-", ""), reply["emotion_name"]) for reply in replies)
    assert sorted(stored(tmp_path / "process.db")) == answered


async def test_a_shutdown_under_load_answers_what_was_admitted(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """Each pipelined request gets a prediction, a refusal, or the close; each prediction is stored."""
    service = start_process(MAX_WAIT_MS="1000000")
    ids = []
    async with connect(service.url) as websocket:
        await read(websocket)
        for number in range(300):
            await websocket.send(predict_message(id=number))
        ids.append((await read(websocket))["prediction_id"])
        service.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed):
            while True:
                reply = await read(websocket)
                if reply["type"] == "prediction":
                    ids.append(reply["prediction_id"])
                else:
                    assert reply["code"] == "shutting_down"
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0
    in_database = {uuid for uuid, _ in stored(tmp_path / "process.db")}
    assert {identifier.replace("-", "") for identifier in ids} <= in_database


async def test_the_serving_processes_import_no_tensorflow(start_process: StartProcess) -> None:
    """Neither TensorFlow, Keras nor the conversion step is imported to serve, by any of the processes."""
    service = start_process(PYTHONPROFILEIMPORTTIME="1")
    async with connect(service.url) as websocket:
        await read(websocket)
        assert (await ask(websocket, predict_message()))["status"] == "success"
    service.process.terminate()
    _, log = await asyncio.to_thread(service.process.communicate, timeout=TIMEOUT)
    packages = {
        line.rsplit("|", 1)[1].strip().split(".")[0] for line in log.splitlines() if line.count("|") == 2
    }
    assert {"onnxruntime", "sqlalchemy", "websockets"} <= packages
    assert not packages & {"tensorflow", "keras", "tf2onnx", "onnx", "conversion", "models"}


@pytest.mark.parametrize("streams", ["<&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full"])
def test_closed_and_broken_standard_streams_are_no_fault(tmp_path: Path, streams: str) -> None:
    """It serves, logs where it can, and ends with 0: what it prints is information, and nobody may read it."""
    service = subprocess.Popen(
        ["sh", "-c", f"exec {shlex.quote(sys.executable)} -m service {streams}"],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "MODEL_PATH": str(MODEL), "PORT": "0", "WORKERS": "1"}
        | {"XDG_CACHE_HOME": str(tmp_path.parent / "cache"), "DATABASE_URL": "sqlite:///p.db"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with sync_connect(f"ws://127.0.0.1:{port_of(service)}", open_timeout=TIMEOUT) as websocket:
            websocket.recv(TIMEOUT)
            websocket.send(predict_message())
            assert orjson.loads(websocket.recv(TIMEOUT))["status"] == "success"
        service.terminate()
        _, log = service.communicate(timeout=TIMEOUT)
        assert service.returncode == 0
        assert "Traceback" not in log
        assert ("database migrated" in log) == ("2>" not in streams)
    finally:
        service.kill()
        service.communicate()


def port_of(service: subprocess.Popen[str]) -> int:
    """Where a service listens that tells it nobody, as soon as it does."""
    deadline = time.monotonic() + TIMEOUT
    while service.poll() is None:
        assert time.monotonic() < deadline
        for each in psutil.Process(service.pid).net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN:
                return int(each.laddr.port)
        time.sleep(0.05)
    pytest.fail(f"the service ended with {service.returncode}")


def test_a_port_in_use_is_one_line(start_process: StartProcess, tmp_path: Path) -> None:
    """The second service on a port says so, and what to set."""
    service = start_process()
    second = run_service(cwd=tmp_path, PORT=str(service.port), DATABASE_URL="sqlite:///second.db")
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert str(service.port) in second.stderr
    assert "PORT" in second.stderr


@pytest.mark.parametrize(
    ("environment", "hint"),
    [
        ({"PORT": "many"}, "PORT"),
        ({"MODEL_PATH": ""}, "MODEL_PATH"),
        ({"MODEL_PATH": "missing.onnx"}, "missing.onnx"),
        ({"MODEL_PATH": "models/build/modelo_emociones.onnx"}, "MODEL_PATH names another"),
        ({"MODEL_PATH": "missing.keras"}, "python -m conversion"),
        ({"MODEL_PATH": "broken.onnx"}, "broken.onnx"),
        ({"THREADS": "5000"}, "THREADS=5000"),
        ({"PROVIDER": "cuda"}, "CUDAExecutionProvider"),
        ({"DATABASE_URL": "postgresql://nobody:secret@127.0.0.1:1/x"}, "127.0.0.1"),
        ({"DATABASE_URL": "not a url"}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://nobody:p@secret:x@127.0.0.1/x"}, "%40"),
        ({"DATABASE_URL": "sqlite:///."}, "its folder"),
    ],
    ids=lambda value: next(iter(value.values()))[:20] if isinstance(value, dict) else "",
)
def test_a_service_that_cannot_start_says_why_in_one_line(
    tmp_path: Path, environment: dict[str, str], hint: str
) -> None:
    """No traceback, no secret, exit code 2."""
    (tmp_path / "broken.onnx").write_bytes(b"this is no model")
    ended = run_service(cwd=tmp_path, **({"PORT": "0", "DATABASE_URL": "sqlite:///x.db"} | environment))
    assert ended.returncode == 2
    assert ended.stderr.startswith("VisionAI cannot start: ")
    assert ended.stderr.count("\n") == 1
    assert hint in ended.stderr
    assert "secret" not in ended.stderr


@pytest.mark.parametrize(
    "arguments", [["--port", "99999"], ["--port", "-1"], ["create-key", "anna", "--days", "99999999"]]
)
def test_a_number_out_of_range_on_the_command_line_is_told_in_one_line(
    tmp_path: Path, arguments: list[str]
) -> None:
    """As a wrong setting is."""
    ended = run_service(*arguments, cwd=tmp_path, API_KEYS_FILE="keys")
    assert ended.returncode == 2
    assert ended.stderr.startswith("VisionAI cannot start: ")
    assert ended.stderr.count("\n") == 1
    assert arguments[-1] in ended.stderr


@pytest.mark.parametrize("arguments", [[], ["--host", "127.0.0.1"]])
async def test_a_reload_tells_of_an_address_that_waits_for_a_restart(
    start_process: StartProcess, tmp_path: Path, arguments: list[str]
) -> None:
    """Unless the command line has set it: what is in the file would not hold then, either."""
    service = start_process(faults=f"import sys\nsys.argv += {arguments}", WORKERS="1")
    (tmp_path / ".env").write_text("HOST=127.0.0.2\n")
    assert (await reload(tmp_path))[0] == 0
    service.process.terminate()
    _, log = service.process.communicate(timeout=TIMEOUT)
    assert ("needs a restart: HOST" in log) == (not arguments)


@pytest.mark.parametrize("command", [[], ["tune"], ["create-key"]])
def test_help_has_examples(tmp_path: Path, command: list[str]) -> None:
    """A stranger sees how to start it."""
    ended = run_service(*command, "--help", cwd=tmp_path)
    assert ended.returncode == 0
    assert "examples:" in ended.stdout
    for name in re.findall(r"[\w/]+\.md", ended.stdout):
        assert "| `DATABASE_URL` " in (ROOT / name).read_text(), "that it lists the settings"


def test_migrating_only_makes_the_tables_and_ends(tmp_path: Path) -> None:
    """For a job that runs before the replicas start: it needs no journal, and does not say which model is served."""
    (tmp_path / "file").touch()
    environment = {"DATABASE_URL": "sqlite:///m.db", "JOURNAL_DIR": "file/journal"}
    ended = run_service("--migrate-only", cwd=tmp_path, **environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    with sqlite3.connect(tmp_path / "m.db") as connection:
        assert connection.execute("SELECT count(*) FROM emotion_class").fetchone() == (7,)
        assert connection.execute("SELECT model_status FROM model_version").fetchall() == [("00",)]
    connection.close()


def test_migrating_only_tells_the_log_where_processes_are_spawned(tmp_path: Path) -> None:
    """As on macOS and Windows: nothing is inherited there."""
    code = (
        "import multiprocessing, sys; spawning = multiprocessing.get_context('spawn');"
        "multiprocessing.get_context = lambda _: spawning;"
        "from service.__main__ import main; sys.exit(main())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "--migrate-only"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MODEL_PATH": str(MODEL), "LOG_LEVEL": "INFO"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert ended.returncode == 0
    assert "INFO service.store.migrate: database migrated from revision none to " in ended.stderr


def test_a_second_signal_hurries(start_process: StartProcess) -> None:
    """Two interrupts end the service without waiting for DRAIN_SECONDS, and still cleanly."""
    service = start_process(DRAIN_SECONDS="600")
    begun = time.monotonic()
    service.process.send_signal(signal.SIGINT)
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(TIMEOUT) == 0
    assert time.monotonic() - begun < TIMEOUT


async def test_a_worker_that_dies_is_replaced(start_process: StartProcess) -> None:
    """Its connections break, new ones are served, and no connection attempt is refused meanwhile."""
    service = start_process(WORKERS="2")
    before = service.workers
    assert len(before) == 2
    before[0].kill()
    await asyncio.to_thread(before[0].wait, TIMEOUT)
    for _ in range(20):
        async with connect(service.url, open_timeout=TIMEOUT) as websocket:
            assert (await read(websocket))["type"] == "welcome"
            assert (await ask(websocket, predict_message()))["status"] == "success"
    async with asyncio.timeout(TIMEOUT):
        while len(after := service.workers) < 2:
            await asyncio.sleep(0.01)
    assert before[0].pid not in {worker.pid for worker in after}
    service.process.terminate()
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0


# How long an empty place waits is written down. Whether a death was a quick one does not depend on this machine.
WRITTEN_DOWN = """
from pathlib import Path
import service.processes.supervisor
from service.processes.workers import Slot
service.processes.supervisor._QUICK_DEATH_SECONDS = {}
plan = Slot.plan
def written_down(slot, quick):
    plan(slot, quick)
    with Path("delays").open("a") as delays:
        delays.write(f"{{slot.delay}}\\n")
Slot.plan = written_down
"""


@pytest.mark.parametrize(
    ("quick_seconds", "delays"), [(3600.0, ["0.1", "0.2", "0.4"]), (0.0, ["0.0", "0.0", "0.0"])]
)
def test_a_worker_that_dies_again_soon_waits_twice_as_long(
    start_process: StartProcess, tmp_path: Path, quick_seconds: float, delays: list[str]
) -> None:
    """One that has served for a while is replaced at once."""
    service = start_process(faults=WRITTEN_DOWN.format(quick_seconds), WORKERS="1")
    deadline = time.monotonic() + TIMEOUT
    killed: list[int] = []
    while len(killed) < len(delays):
        assert time.monotonic() < deadline
        for worker in service.workers:
            if worker.pid not in killed:
                worker.kill()
                killed.append(worker.pid)
        time.sleep(0.01)
    while (tmp_path / "delays").read_text().split() != delays:
        assert time.monotonic() < deadline
        time.sleep(0.01)


# What is to be stored takes a worker longer, at its end, than the supervisor takes to see that one hangs.
_LONG_FLUSH = """
import time
from pathlib import Path
import service.processes.supervisor, service.processes.worker
from service.processes.supervisor import Supervisor
service.processes.supervisor.LOOK_SECONDS = 0.1
close, look, looks = service.processes.worker._close_stores, Supervisor._look_for_hung_workers, []
def close_when_let(stores, timeout):
    Path("flushing").touch()
    while not Path("go").exists():
        time.sleep(0.01)
    return close(stores, timeout)
def look_and_count(supervisor):
    look(supervisor)
    if Path("flushing").exists():
        looks.append(None)
    if len(looks) > 15:
        Path("looked").touch()
service.processes.worker._close_stores, Supervisor._look_for_hung_workers = close_when_let, look_and_count
"""


async def test_a_worker_that_ends_by_itself_has_its_time_to_store(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """Its event loop turns no longer: it is not taken for one that hangs."""
    service = start_process(faults=_LONG_FLUSH, WORKERS="1")
    (worker,) = service.workers
    worker.terminate()
    async with asyncio.timeout(TIMEOUT):
        while not (tmp_path / "looked").exists():
            await asyncio.sleep(0.01)
    (tmp_path / "go").touch()
    await asyncio.to_thread(worker.wait, TIMEOUT)
    service.process.terminate()
    _, log = await asyncio.to_thread(service.process.communicate, timeout=TIMEOUT)
    assert "worker 0 ended with exit code 0; it is replaced" in log
    assert "has not moved" not in log


async def test_workers_end_with_their_supervisor(start_process: StartProcess) -> None:
    """A supervisor that is killed leaves no process behind, and what was answered is stored."""
    service = start_process(WORKERS="2")
    workers = service.workers
    service.process.kill()
    _, alive = await asyncio.to_thread(psutil.wait_procs, workers, TIMEOUT)
    assert not alive


async def test_health_and_metrics_are_those_of_all_workers(start_process: StartProcess) -> None:
    """Whichever worker is asked, it answers for the service."""
    service = start_process(WORKERS="2")
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(service.url)) for _ in range(16)]
        for client in clients:
            await read(client)
            await ask(client, predict_message())
        assert {(await ask(client, '{"command": "health"}'))["clients_connected"] for client in clients} == {
            16
        }

        def scrape() -> str:
            with urllib.request.urlopen(
                service.url.replace("ws:", "http:") + "/metrics", timeout=TIMEOUT
            ) as response:
                return str(response.read(), "utf-8")

        for _ in range(6):
            text = await asyncio.to_thread(scrape)
            assert 'visionai_predictions_total{emotion="happy"} 16.0' in text
            assert "visionai_workers_ready 2.0" in text


def test_without_a_journal_records_wait_in_memory(start_process: StartProcess, tmp_path: Path) -> None:
    """JOURNAL_DIR set to nothing: no file is made for it, and what was answered is stored at the end."""
    service = start_process(WORKERS="1", JOURNAL_DIR="", CONTROL_SOCKET="")
    with sync_connect(service.url) as websocket:
        websocket.recv(TIMEOUT)
        websocket.send(predict_message())
        assert orjson.loads(websocket.recv(TIMEOUT))["status"] == "success"
    service.process.terminate()
    assert service.process.wait(TIMEOUT) == 0
    assert len(stored(tmp_path / "process.db")) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["process.db"]


@pytest.mark.parametrize("layout", [{"WORKERS": "1"}, {"WORKERS": "1", "EXECUTORS": "2"}, {"WORKERS": "3"}])
async def test_every_layout_serves_and_stops_cleanly(
    start_process: StartProcess, tmp_path: Path, layout: dict[str, str]
) -> None:
    """One worker or several, inline or with threads: the same answers, all stored."""
    service = start_process(**layout)
    async with connect(service.url) as websocket:
        await read(websocket)
        for _ in range(5):
            assert (await ask(websocket, predict_message()))["emotion_name"] == "happy"
    service.process.terminate()
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0
    assert len(stored(tmp_path / "process.db")) == 5


def test_threads_that_cannot_be_made_nicer_work_all_the_same(start_process: StartProcess) -> None:
    """Those for large images, for questions and for storing: a sandbox may forbid it."""
    faults = "import os\ndef refuse(*_):\n    raise PermissionError\nos.nice = refuse"
    service = start_process(faults=faults, WORKERS="1")
    with sync_connect(service.url, max_size=None) as websocket:
        websocket.recv(TIMEOUT)
        for request in (large_bitmap(), '{"command": "history"}'):
            websocket.send(request)
            assert orjson.loads(websocket.recv(TIMEOUT))["status"] == "success"
