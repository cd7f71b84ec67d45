"""A reload that the system or a worker fails leaves who serves, and is told."""

from __future__ import annotations

import asyncio
import itertools
import resource
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from websockets.asyncio.client import connect

from service.errors import StartupError
from service.processes.reload import request_reload
from service.processes.worker import Served, _open_stores
from service.settings import Settings
from service.store.database import create_engine, parse_url
from service.store.schema import ACTIVE, model_version
from tests.service.harness import TIMEOUT, StartProcess, ask, metric, predict_message, read
from tests.service.reloading import OTHER_VERSION, VERSION, change, copy_model, reload

# No process can be started, as long as a file is there.
FAILING_FORK = """
import errno, os
from pathlib import Path
fork = os.fork
def fail_while_told_so():
    if Path("fault").exists():
        raise OSError(errno.EAGAIN, "injected")
    return fork()
os.fork = fail_while_told_so
"""


async def test_a_worker_that_cannot_be_started_costs_no_other(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """A dead worker is replaced when the system can, and a reload that it cannot do leaves who serves."""
    service = start_process(faults=FAILING_FORK, WORKERS="2", MAX_BATCH="8", THREADS="1")
    dead, alive = service.workers
    fault = tmp_path / "fault"
    fault.touch()
    dead.kill()
    await asyncio.to_thread(dead.wait, TIMEOUT)
    code, said = await reload(tmp_path)
    assert code == 1
    assert "a process cannot be started: injected" in said
    assert [each for each in service.workers if each != dead] == [alive]
    fault.unlink()
    async with asyncio.timeout(TIMEOUT):
        while await asyncio.to_thread(metric, service, "visionai_workers_ready") != 2:
            await asyncio.sleep(0.05)
    assert (await reload(tmp_path))[0] == 0


async def test_a_worker_that_cannot_be_started_leaves_no_file_open(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """However often it is tried: the supervisor would have none left for the time when the system can again.

    The same holds for the process that reads the settings of a reload.
    """
    service = start_process(faults=FAILING_FORK, WORKERS="1", MAX_BATCH="8", THREADS="1")
    supervisor = psutil.Process(service.process.pid)
    opened = supervisor.num_fds()
    (tmp_path / "fault").touch()
    supervisor.children()[0].kill()
    assert service.process.stderr is not None
    failed = 0
    while failed < 3:
        failed += "cannot be started" in await asyncio.to_thread(service.process.stderr.readline)
    for _ in range(3):
        assert (await reload(tmp_path))[0] == 1
    async with asyncio.timeout(TIMEOUT):
        while supervisor.num_fds() > opened:  # more while it tries
            await asyncio.sleep(0.01)


# A reload's settings are being read as long as a file is there.
SLOW_READING = """
import time
from pathlib import Path
import service.processes.reload
load_settings = service.processes.reload.load_settings
def load_slowly():
    while Path("slow").exists():
        time.sleep(0.05)
    return load_settings()
service.processes.reload.load_settings = load_slowly
"""


async def reading_begins(supervisor: psutil.Process) -> None:
    """Wait until there is a process beside the only worker: that which reads a reload's settings."""
    async with asyncio.timeout(TIMEOUT):
        while len(supervisor.children()) == 1:
            await asyncio.sleep(0.01)


async def test_a_reload_that_takes_long_keeps_the_supervisor_from_nothing(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """While its settings are read, or a model is measured, a worker that dies is replaced; then the reload goes on."""
    slow = tmp_path / "slow"
    slow.touch()
    service = start_process(faults=SLOW_READING, WORKERS="1")
    supervisor = psutil.Process(service.process.pid)
    (worker,) = supervisor.children()
    asked = asyncio.create_task(reload(tmp_path))
    await reading_begins(supervisor)
    worker.kill()
    async with asyncio.timeout(TIMEOUT):
        while await asyncio.to_thread(metric, service, "visionai_workers_ready") != 1:
            await asyncio.sleep(0.05)
    assert not asked.done()
    slow.unlink()
    code, said = await asked
    assert code == 0, said


async def test_a_reload_whose_settings_cannot_be_read_is_given_up(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """As from a network drive that is gone. Once what they name is corrected, the next reload is done."""
    slow = tmp_path / "slow"
    slow.touch()
    impatient = "import service.processes.supervisor\nservice.processes.supervisor._READING_SECONDS = 1.0"
    service = start_process(faults=f"{SLOW_READING}\n{impatient}", WORKERS="1")
    before = service.workers
    code, said = await reload(tmp_path)
    assert code == 1
    assert "the settings could not be read within 1 s" in said
    assert service.workers == before
    slow.unlink()
    async with asyncio.timeout(TIMEOUT):
        while (await reload(tmp_path))[0] != 0:  # a second is little on a busy machine
            pass


# As of one that waits for a file system in user space whose server hangs: it does not end either when it is killed.
UNKILLABLE = """
from multiprocessing.process import BaseProcess
import service.processes.apart
import service.processes.supervisor
BaseProcess.kill = lambda _: None
service.processes.apart._END_SECONDS = 0.5
service.processes.supervisor._READING_SECONDS = {}
"""


@pytest.mark.parametrize("reading_seconds", [1.0, 3600.0], ids=["given up", "stopped meanwhile"])
async def test_a_reload_that_cannot_be_ended_keeps_no_worker_from_stopping(
    start_process: StartProcess, tmp_path: Path, reading_seconds: float
) -> None:
    """Nor does it keep the supervisor from giving it up, and from telling so."""
    slow = tmp_path / "slow"
    slow.touch()
    service = start_process(faults=SLOW_READING + UNKILLABLE.format(reading_seconds), WORKERS="1")
    (worker,) = service.workers
    asked = asyncio.create_task(reload(tmp_path))
    await reading_begins(psutil.Process(service.process.pid))
    if reading_seconds == 1.0:
        code, said = await asked
        assert code == 1, said
    service.process.terminate()
    await asyncio.to_thread(worker.wait, TIMEOUT)
    slow.unlink()
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0
    await asked


async def test_a_stop_does_not_wait_for_a_reload(start_process: StartProcess, tmp_path: Path) -> None:
    """What it reads or measures is given up, and nothing of it stays."""
    (tmp_path / "slow").touch()
    service = start_process(faults=SLOW_READING, WORKERS="1")
    supervisor = psutil.Process(service.process.pid)
    asked = asyncio.create_task(reload(tmp_path))
    await reading_begins(supervisor)
    processes = supervisor.children()
    service.process.terminate()
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0
    code, said = await asked
    assert code == 2
    assert "ended before it had reloaded" in said
    assert not any(each.is_running() for each in processes)


# A forked process stays as it was forked as long as a file is there, as on a machine that is busy.
SLOW_FORK = """
import os, time
from pathlib import Path
fork = os.fork
def fork_slowly():
    pid = fork()
    while not pid and Path("slow").exists():
        time.sleep(0.05)
    return pid
os.fork = fork_slowly
"""


async def test_a_signal_to_a_reloads_process_is_not_the_supervisors(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """However early it comes: one to the whole process group would count twice, and cut the drain short."""
    service = start_process(faults=SLOW_FORK, WORKERS="1")
    (tmp_path / "slow").touch()
    supervisor = psutil.Process(service.process.pid)
    (worker,) = supervisor.children()
    asked = asyncio.create_task(reload(tmp_path))
    async with asyncio.timeout(TIMEOUT):
        while not (reading := [each for each in supervisor.children() if each != worker]):
            await asyncio.sleep(0.01)
    reading[0].terminate()
    await asyncio.sleep(0.2)  # more than one of its turns
    (tmp_path / "slow").unlink()
    code, said = await asked
    assert (code, "reading the settings came to no end" in said) == (1, True)
    assert (await reload(tmp_path))[0] == 0


async def test_a_successor_that_cannot_be_started_leaves_who_serves(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """The settings were read, and the system has no process for a worker."""
    service = start_process(faults=FAILING_FORK + SLOW_READING, WORKERS="1")
    (tmp_path / "slow").touch()
    supervisor = psutil.Process(service.process.pid)
    (worker,) = supervisor.children()
    asked = asyncio.create_task(reload(tmp_path))
    await reading_begins(supervisor)
    (tmp_path / "fault").touch()
    (tmp_path / "slow").unlink()
    code, said = await asked
    assert (code, "a worker cannot be started: injected" in said) == (1, True)
    assert supervisor.children() == [worker]
    (tmp_path / "fault").unlink()
    assert (await reload(tmp_path))[0] == 0


def next_descriptor(pid: int) -> int:
    """What a process' next open file will be numbered."""
    taken = {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in itertools.count() if number not in taken)


async def test_a_request_to_reload_waits_while_no_file_can_be_opened(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """The supervisor says so, and goes on; the request is served when it can be."""
    service = start_process(WORKERS="1")
    pid = service.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (next_descriptor(pid), limits[1]))
    asked = asyncio.create_task(asyncio.to_thread(request_reload, tmp_path / "visionai.sock"))
    assert service.process.stderr is not None
    assert "cannot be taken" in await asyncio.to_thread(service.process.stderr.readline)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert (await asyncio.wait_for(asked, TIMEOUT)).error is None


# As long as a file is there, the first worker starts that is started, and no other.
FAILING_LATER = """
from pathlib import Path
import service.processes.worker
from service.errors import StartupError
load_engine = service.processes.worker.load_engine
def fail_later(settings):
    if Path("fault").exists():
        if Path("first").exists():
            raise StartupError("injected")
        Path("first").touch()
    return load_engine(settings)
service.processes.worker.load_engine = fail_later
"""


async def test_a_reload_that_fails_half_way_tells_what_is_served(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """One worker serves the new model already, and the other the old one."""
    model = copy_model(tmp_path)
    service = start_process(faults=FAILING_LATER, MODEL_PATH=str(model), WORKERS="2")
    (tmp_path / "fault").touch()
    change(model, VERSION, OTHER_VERSION)
    code, said = await reload(tmp_path)
    assert code == 1
    assert f"model {VERSION} is still served: injected" in said
    assert f"1 of 2 workers had been replaced, by model {OTHER_VERSION}" in said
    assert await asyncio.to_thread(metric, service, "visionai_workers_ready") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all names of files are Unicode")
async def test_a_model_whose_name_is_no_utf_8_is_served_and_told_of(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """Its bytes can neither be stored nor sent: they are escapes there, and cost neither the start nor the service."""
    model = copy_model(tmp_path)
    model = model.rename(tmp_path / "m\udcff.onnx")
    service = start_process(MODEL_PATH=str(model), WORKERS="1")
    model.write_bytes(b"this is no model")
    code, said = await reload(tmp_path)
    assert code == 1
    assert r"m\udcff.onnx cannot be loaded" in said
    async with connect(service.url) as websocket:
        await read(websocket)
        assert (await ask(websocket, predict_message()))["status"] == "success"
        assert r"m\udcff.onnx cannot be" in (await ask(websocket, '{"command": "health"}'))["reload_error"]
        described = await ask(websocket, '{"command": "model_info"}')
        assert described["info"]["model_path"].endswith(r"m\udcff.onnx")


# Once a worker has loaded its model, the file is replaced by `next`, where there is one.
SWAPPING = """
from pathlib import Path
import service.processes.worker
load_engine = service.processes.worker.load_engine
def load_and_swap(settings):
    engine = load_engine(settings)
    if Path("next").exists():
        Path("next").replace(settings.model_path)
    return engine
service.processes.worker.load_engine = load_and_swap
"""


async def test_a_model_that_is_replaced_amid_a_reload_is_told(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """Half of the workers would serve another version than the first: that is no reload, and says what serves."""
    model = copy_model(tmp_path)
    service = start_process(faults=SWAPPING, MODEL_PATH=str(model), WORKERS="2", MAX_BATCH="8", THREADS="1")
    old = model.read_bytes()
    change(model, VERSION, OTHER_VERSION)
    (tmp_path / "next").write_bytes(old)
    code, said = await reload(tmp_path)
    assert code == 1
    assert f"a worker serves model {VERSION}, where others serve model {OTHER_VERSION}" in said
    assert f"1 of 2 workers had been replaced, by model {OTHER_VERSION}" in said
    assert await asyncio.to_thread(metric, service, "visionai_workers_ready") == 2
    code, said = await reload(tmp_path)
    assert (code, said.strip()) == (0, f"reloaded: model {VERSION}")


async def test_a_replacement_that_serves_another_version_is_told(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """The file was replaced without a reload, and then a worker died: the log says so."""
    model = copy_model(tmp_path)
    service = start_process(MODEL_PATH=str(model), WORKERS="2", MAX_BATCH="8", THREADS="1")
    change(model, VERSION, OTHER_VERSION)
    service.workers[0].kill()
    assert service.process.stderr is not None
    async with asyncio.timeout(TIMEOUT):
        while "where others serve" not in (line := await asyncio.to_thread(service.process.stderr.readline)):
            pass
    assert f"serves model {OTHER_VERSION}, where others serve model {VERSION}" in line


@pytest.mark.parametrize(
    ("tags", "journal", "why"),
    [
        (("v2",), "file/journal", "cannot write a journal"),
        (("v2", "v" * 101), "journal", "value too long"),
    ],
)
def test_who_cannot_store_makes_no_version_active(
    tmp_path: Path, postgres_url: str, tags: tuple[str, ...], journal: str, why: str
) -> None:
    """Where there is no place for its journal, or for its canary: who serves goes on, and so the table says."""
    (tmp_path / "file").touch()
    settings = Settings(database_url=postgres_url, journal_dir=tmp_path / journal)
    engines: list[Any] = [
        SimpleNamespace(card=SimpleNamespace(labels=("happy", "sad"), version_tag=tag, path=Path("a.onnx")))
        for tag in ("v1", *tags)
    ]
    [serving] = _open_stores(Settings(database_url=postgres_url, journal_dir=None), engines[:1], None)
    with pytest.raises(StartupError, match=why):
        _open_stores(settings, engines[1:], Served(("happy", "sad"), postgres_url, None))
    assert serving.close(timeout=TIMEOUT) == 0
    database = create_engine(parse_url(postgres_url))
    with database.connect() as connection:
        active = sa.select(model_version.c.model_version_tag).where(model_version.c.model_status == ACTIVE)
        assert connection.execute(active).scalars().all() == ["v1"]
    database.dispose()
