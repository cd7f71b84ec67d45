"""Other processes: how they begin, what comes back from them, and what stays in them."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.errors import StartupError
from service.processes.apart import Progress, run_apart
from tests.client.harness import run_command
from tests.service.harness import MODEL, ROOT, run_service
from tests.store.older_server import make_older_server


def doubled(number: int, progress: Progress) -> tuple[int, int]:
    """Tells of half and whole on its way."""
    progress(0.5)
    progress(1.0)
    return os.getpid(), 2 * number


def refuses(_: Progress) -> None:
    """Cannot be done."""
    raise StartupError("there is no such thing")


def ends(_: Progress) -> None:
    """As a fault in a library would."""
    os._exit(3)


def lasts(_: Progress) -> None:
    """Longer than anybody waits."""
    time.sleep(600)


def test_work_is_done_in_another_process_and_its_result_comes_back() -> None:
    """With its progress on the way."""
    told: list[float] = []
    pid, result = run_apart(partial(doubled, 21), unfinished="it has ended", progress=told.append)
    assert pid != os.getpid()
    assert (result, told) == (42, [0.5, 1.0])


def test_work_that_cannot_be_done_says_why() -> None:
    """In its own words where it has some, and in its caller's where it just ended."""
    with pytest.raises(StartupError, match="there is no such thing"):
        run_apart(refuses, unfinished="it has ended")
    with pytest.raises(StartupError, match="it has ended"):
        run_apart(ends, unfinished="it has ended")


@pytest.mark.skipif(sys.platform == "win32", reason="there Ctrl-C cannot be sent to one process")
def test_ctrl_c_while_the_work_is_begun_leaves_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process would be waited for at the end."""
    start = BaseProcess.start

    def start_and_interrupt(process: BaseProcess) -> None:
        start(process)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(BaseProcess, "start", start_and_interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_apart(lasts, unfinished="it has ended")
    finally:
        signal.signal(signal.SIGINT, before)
        left = multiprocessing.active_children()
        for process in left:
            process.kill()
    assert not left


async def test_what_a_migration_imports_is_in_no_process_that_serves(tmp_path: Path) -> None:
    """The database is there afterwards, and who had it made has not imported Alembic."""
    script = (
        "import sqlite3, sys\n"
        "from service.store import bring_up_to_date\n"
        "bring_up_to_date('sqlite:///made.db', list)\n"
        "print(sqlite3.connect('made.db').execute('SELECT count(*) FROM predictions_log').fetchone())\n"
        "print('alembic' in sys.modules)\n"
    )
    done = await run_command([sys.executable, "-c", script], folder=tmp_path)
    assert done.out.splitlines() == ["(0,)", "False"], done.err


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"MODEL_PATH": MODEL.name}, "face_short"),
        ({"TLS_CERTIFICATE": "none.pem", "TLS_KEY": "none.pem"}, "TLS_CERTIFICATE"),
        ({"AUTH": "required"}, "AUTH=required needs"),
        ({"JOURNAL_DIR": "older.db"}, "cannot write a journal in older.db: File exists; check JOURNAL_DIR"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, "OTEL_"),
    ],
    ids=["a model without its detectors", "TLS", "authentication", "a journal", "OpenTelemetry"],
)
def test_a_start_that_cannot_serve_changes_no_older_database(
    tmp_path: Path, wrong: dict[str, str], why: str
) -> None:
    """Older releases refuse one that was migrated: there would be no way back to the one that served."""
    for name in (MODEL.name, f"{MODEL.name}.manifest.json"):
        shutil.copy(MODEL.parent / name, tmp_path / name)  # and no face detector beside it
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'older.db'}")
    make_older_server(engine, ["happy"])
    before = set(sa.inspect(engine).get_table_names())
    engine.dispose()
    done = run_service(
        cwd=tmp_path,
        DATABASE_URL="sqlite:///older.db",
        PORT="0",
        WORKERS="1",
        THREADS="1",
        MAX_BATCH="8",
        **wrong,
    )
    assert done.returncode == 2
    assert why in done.stderr
    assert done.stderr.count("\n") == 1
    assert set(sa.inspect(engine).get_table_names()) == before
    engine.dispose()


# A supervisor as far as a worker knows it that was just forked.
_SUPERVISOR = """
import os, signal, time
from types import SimpleNamespace
from service.processes import workers

def start():
    settings = SimpleNamespace(drain_seconds=1, log_level="INFO", log_format="console")
    return workers.start_worker(settings, [], None, 0, None, [])
"""

# It tells the worker to stop before that has done anything; and the fork takes its time.
_STOPPED_AT_ONCE = """
os.register_at_fork(after_in_child=lambda: time.sleep(0.3))
signal.signal(signal.SIGTERM, lambda *_: None)
workers.run_worker = lambda *_: time.sleep(60)
worker = start()
worker.process.terminate()
worker.process.join(10)
print(worker.process.exitcode)
worker.process.kill()
"""

# Its handler tells it of a signal; and one to the whole process group finds the worker at once.
_SIGNALLED_AT_ONCE = """
heard, tell = os.pipe()
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.{0}))
signal.signal(signal.{0}, lambda *_: os.write(tell, b"a second time"))
workers.run_worker = lambda *_: 0
worker = start()
worker.process.join(10)
os.close(tell)
print(worker.process.exitcode, os.read(heard, 100).decode())
"""


async def told_by_supervisor(script: str) -> list[str]:
    """The words that it prints."""
    done = await run_command([sys.executable, "-c", _SUPERVISOR + script], folder=ROOT)
    assert done.code == 0, done.err
    return done.out.split()


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
async def test_a_worker_that_is_told_to_stop_as_soon_as_it_is_forked_does() -> None:
    """It has the supervisor's handler at first, which must not take the signal: a stop amid a reload would hang."""
    assert await told_by_supervisor(_STOPPED_AT_ONCE) == ["-15"]


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
@pytest.mark.parametrize("number", ["SIGINT", "SIGHUP"])
async def test_a_signal_to_the_process_group_is_not_heard_again_from_a_worker_just_forked(
    number: str,
) -> None:
    """With the supervisor's handler it would write to the supervisor's pipe: a second Ctrl-C, which hurries."""
    assert await told_by_supervisor(_SIGNALLED_AT_ONCE.format(number)) == ["0"]
