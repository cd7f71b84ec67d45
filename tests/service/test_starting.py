"""Starts that take long: who asks, signals or waits meanwhile, on real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from websockets.asyncio.client import connect

from tests.service.harness import MODEL, ROOT, TIMEOUT, StartProcess, metric, read, run_service
from tests.service.reloading import reload

# A worker's start waits, as long as a file is there; successors' not for long.
HELD_START = """
import time
from pathlib import Path
import service.processes.supervisor
import service.processes.worker
service.processes.supervisor._START_SECONDS = 1.0
load_engine = service.processes.worker.load_engine
def load_when_let(settings):
    while Path("hold").exists():
        time.sleep(0.01)
    return load_engine(settings)
service.processes.worker.load_engine = load_when_let
"""

NO_SIGHUP = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGHUP")

LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({}, {}))"


async def test_a_reload_asked_for_during_the_start_is_done_after_it(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """Whoever asks early waits, and is answered."""
    hold, path = tmp_path / "hold", tmp_path / "visionai.sock"
    hold.touch()
    faults = HELD_START.replace("1.0", f"{TIMEOUT}")
    starting = asyncio.create_task(asyncio.to_thread(start_process, faults=faults, WORKERS="1"))
    async with asyncio.timeout(TIMEOUT):
        while not path.exists():
            await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_unix_connection(path)
    hold.unlink()
    await starting
    assert orjson.loads(await asyncio.wait_for(reader.readline(), TIMEOUT))["error"] is None
    writer.close()


# Somebody sends SIGHUP from within this function of a start, once.
ASKED_BY_SIGNAL = """
import os, signal
from pathlib import Path
import {module} as module
supervisor, function = os.getpid(), module.{function}
def ask(settings=None):
    if not Path("asked").exists():
        Path("asked").touch()
        os.kill(supervisor, signal.SIGHUP)
    return function(settings) if settings else function()
module.{function} = ask
"""


@NO_SIGHUP
@pytest.mark.parametrize(
    ("module", "function"),
    [("service.settings", "load_settings"), ("service.processes.worker", "load_engine")],
    ids=["before there are workers", "while they start"],
)
def test_a_signal_to_reload_during_the_start_is_heard_after_it(
    start_process: StartProcess, module: str, function: str
) -> None:
    """SIGHUP ends no service that starts, and is not forgotten: the reload begins when it is ready."""
    faults = ASKED_BY_SIGNAL.format(module=module, function=function)
    service = start_process(faults=faults, WORKERS="1", LOG_LEVEL="INFO")
    deadline = time.monotonic() + TIMEOUT
    while metric(service, 'visionai_reloads_total{result="done"}') != 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    service.process.terminate()
    _, log = service.process.communicate(timeout=TIMEOUT)
    assert "reloaded: all workers serve" in log
    assert service.process.returncode == 0


# As a program does that starts the service, and passes on.
INHERITED = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_signals_that_its_parent_ignores_or_blocks_are_heard(
    start_process: StartProcess, number: str
) -> None:
    """A worker that dies is replaced, and the service ends when it is told to."""
    service = start_process(faults=INHERITED, WORKERS="1")
    supervisor = psutil.Process(service.process.pid)
    (worker,) = supervisor.children()
    worker.kill()
    worker.wait(TIMEOUT)
    deadline = time.monotonic() + TIMEOUT
    while supervisor.children() in ([], [worker]):
        assert service.process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    service.process.send_signal(getattr(signal, number))
    _, log = service.process.communicate(timeout=TIMEOUT)
    assert service.process.returncode == 0
    assert "Traceback" not in log


async def test_the_usual_limit_of_open_files_is_no_limit_of_connections(start_process: StartProcess) -> None:
    """Where the system allows more, it is taken."""
    service = start_process(faults=LIMITED.format(64, 1024), WORKERS="1", MAX_CONNECTIONS="900")
    async with AsyncExitStack() as clients:
        for _ in range(100):
            assert await read(await clients.enter_async_context(connect(service.url)))
    service.process.terminate()
    _, log = await asyncio.to_thread(service.process.communicate, timeout=TIMEOUT)
    assert log == ""


def test_a_limit_of_open_files_that_is_too_low_is_told(start_process: StartProcess) -> None:
    """How many connections there can be, and what to raise."""
    service = start_process(faults=LIMITED.format(64, 128), WORKERS="2", MAX_CONNECTIONS="500")
    service.process.terminate()
    _, log = service.process.communicate(timeout=TIMEOUT)
    assert "MAX_CONNECTIONS=500" in log
    assert "ulimit" in log


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        (LIMITED.format(30, 30), "a worker needs more than 64 open files, and may have 30; raise the limit"),
        # As where /dev/shm is read-only, or too small and there is no other folder to write to.
        (
            "from multiprocessing.heap import Arena\nArena._choose_dir = lambda *_: 'nowhere'",
            "the workers can share no memory: No such file or directory; make /dev/shm writable",
        ),
    ],
    ids=["open files", "shared memory"],
)
def test_what_the_system_lacks_is_one_line(tmp_path: Path, lacks: str, said: str) -> None:
    """No traceback, and what to do."""
    code = f"{lacks}\nimport sys, service.__main__\nsys.exit(service.__main__.main())"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ
        | {"PORT": "0", "MODEL_PATH": str(MODEL), "PYTHONPATH": str(ROOT)}
        | {"WORKERS": "1", "THREADS": "1", "MAX_BATCH": "8"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"VisionAI cannot start: {said}")
    assert ended.stderr.count("\n") == 1


def begin(folder: Path, faults: str, settings: dict[str, str], **streams: Any) -> subprocess.Popen[str]:
    """A service that begins to start in this folder."""
    code = f"{faults}\nimport sys, service.__main__\nsys.exit(service.__main__.main())"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ
        | {"PORT": "0", "LOG_LEVEL": "WARNING", "MODEL_PATH": str(MODEL), "PYTHONPATH": str(ROOT)}
        # All of it, or calibration would have a process of its own, before there is a worker.
        | {"THREADS": "1", "MAX_BATCH": "8"}
        | settings,
        text=True,
        **streams,
    )


@pytest.mark.parametrize("hangs_up", [False, pytest.param(True, marks=NO_SIGHUP)])
def test_a_signal_during_the_start_ends_it_cleanly(tmp_path: Path, hangs_up: bool) -> None:
    """A service that is stopped before it is ready, or whose terminal is closed, waits for no start, and says so by
    nothing but its exit code, 0.
    """
    hold = tmp_path / "hold"
    hold.touch()
    ours, terminal = os.openpty() if hangs_up else os.pipe()
    service = begin(
        tmp_path,
        HELD_START,
        {"WORKERS": "1"},
        stdin=terminal if hangs_up else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + TIMEOUT
        while not psutil.Process(service.pid).children():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.close(ours)
        service.send_signal(signal.SIGHUP if hangs_up else signal.SIGTERM)
        said, log = service.communicate(timeout=TIMEOUT)
        assert (service.returncode, said, log) == (0, "", "")
    finally:
        os.close(terminal)
        hold.unlink()  # a worker that was left behind ends
        service.kill()
        service.communicate()


def start_and_kill(
    folder: Path, begun: Callable[[], bool], faults: str = ""
) -> tuple[list[psutil.Process], Path]:
    """Start a service, and kill its supervisor at this moment of the start: the workers that are left, and the log."""
    path = folder / "log"
    with path.open("w") as log:
        settings = {"WORKERS": "2", "DATABASE_URL": "sqlite:///locked.db"}
        service = begin(folder, faults, settings, stderr=log)
    deadline = time.monotonic() + TIMEOUT
    try:
        while not begun():
            assert service.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        workers: list[psutil.Process] = psutil.Process(service.pid).children()
    finally:
        service.kill()
        service.wait()
    return workers, path


# As when somebody locks it between its migration and the start of the workers.
MIGRATED = "import service.store\nservice.store.bring_up_to_date = lambda *_: None"


@pytest.mark.skipif(sys.platform == "win32", reason="workers end there when they have loaded")
@pytest.mark.parametrize(("faults", "waiting"), [("", 1), (MIGRATED, 2)])
def test_who_waits_for_a_database_ends_with_the_supervisor(tmp_path: Path, faults: str, waiting: int) -> None:
    """While it is locked, too: else they would keep the port, and the next start would find it taken."""
    assert run_service("--migrate-only", cwd=tmp_path, DATABASE_URL="sqlite:///locked.db").returncode == 0
    with closing(sqlite3.connect(tmp_path / "locked.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        log = tmp_path / "log"
        workers, _ = start_and_kill(
            tmp_path, lambda: log.exists() and log.read_text().count("locked") >= waiting, faults
        )
        assert len(workers) == waiting
        _, alive = psutil.wait_procs(workers, TIMEOUT)
        assert not alive
    assert "Traceback" not in log.read_text()


# Past what a worker's start waits for, and before it says that it is ready.
LOADED = """
import os, time
from pathlib import Path
import service.processes.worker
start_tracing = service.processes.worker.start_tracing
def start_when_let(version):
    Path(f"loaded.{os.getpid()}").touch()
    while not Path("go").exists():
        time.sleep(0.01)
    return start_tracing(version)
service.processes.worker.start_tracing = start_when_let
"""


def test_workers_that_are_ready_for_nobody_end_without_a_word(tmp_path: Path) -> None:
    """Their supervisor was killed before they could tell: that is no fault of theirs."""
    workers, log = start_and_kill(tmp_path, lambda: len(list(tmp_path.glob("loaded.*"))) == 2, LOADED)
    (tmp_path / "go").touch()
    _, alive = psutil.wait_procs(workers, TIMEOUT)
    assert not alive
    assert log.read_text() == ""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 0)])
@pytest.mark.parametrize(
    ("library", "arguments"),
    [
        ("dotenv", ("service",)),  # for the settings
        ("onnxruntime", ("service",)),
        ("orjson", ("service", "--reload")),
        ("onnxruntime", ("benchmarks", "limit")),
    ],
)
def test_a_signal_while_libraries_load_is_one_of_the_start(
    tmp_path: Path, library: str, arguments: tuple[str, ...], number: str, code: int
) -> None:
    """One in C that is interrupted in its first moment says that it cannot be imported, which was a traceback.

    And process 1 of a container would not hear it, if nobody listened yet.
    """
    if number == "SIGTERM" and arguments != ("service",):
        code = -signal.SIGTERM  # nothing was begun yet
    loading = f"""
import runpy, signal, sys
class Loading:
    def find_spec(self, name, *_):
        if name == "{library}":
            try:
                signal.raise_signal(signal.{number})
            except BaseException:
                raise ImportError("initialization failed") from None
sys.meta_path.insert(0, Loading())
runpy.run_module("{arguments[0]}", run_name="__main__", alter_sys=True)
"""
    ended = subprocess.run(
        [sys.executable, "-c", loading, *arguments[1:]],
        cwd=tmp_path,
        env=os.environ | {"MODEL_PATH": str(MODEL), "PYTHONPATH": str(ROOT), "PORT": "0"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")


async def test_a_successor_that_does_not_start_is_given_up(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """The reload fails after so many seconds, and the old worker serves on."""
    service = start_process(faults=HELD_START, WORKERS="1")
    before = service.workers
    (tmp_path / "hold").touch()
    code, said = await reload(tmp_path)
    assert code == 1
    assert "a worker did not start within 1 s" in said
    assert service.workers == before
