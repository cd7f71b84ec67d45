"""SQLite's file: made, moved away, damaged, without room, and opened by several at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.errors import Internal, StartupError
from service.settings import Fsync
from service.store.history import ByUser, latest
from tests.store.conftest import MakeRecord, OpenStore
from tests.store.harness import PATIENCE_S, ask, create, eventually


@pytest.fixture
def database_url() -> str:
    """These tests bring their own."""
    return ""


@contextmanager
def told_of_each(event: str, tell: Callable[..., None]) -> Iterator[None]:
    """Each engine calls it meanwhile when it connects, or begins a transaction."""
    sa.event.listen(sa.Engine, event, tell)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, event, tell)


def test_the_folder_of_a_sqlite_file_is_made(open_store: OpenStore, tmp_path: Path) -> None:
    """A database file in a folder that does not exist yet is created with its folder."""
    file = tmp_path / "data" / "deep" / "predictions.db"
    open_store(url=f"sqlite:///{file}")
    assert file.is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="a file's mode says nothing there")
def test_no_sqlite_file_is_made_beside_the_log_of_another(open_store: OpenStore, tmp_path: Path) -> None:
    """SQLite would delete what was committed there: the start says what to do, and loses nothing when it was done."""
    file, away = tmp_path / "predictions.db", tmp_path / "away.db"
    url = f"sqlite:///{file}"
    code = f"""
import os, signal
from service.store import prepare
from service.store.database import create_engine, parse_url
prepare({url!r}, labels=["happy"], version_tag="v1", model_filename="m.onnx")
engine = create_engine(parse_url({url!r}))
with engine.begin() as connection:
    connection.exec_driver_sql("INSERT INTO emotion_class VALUES (99, 'calm', '')")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    file.rename(away)
    with pytest.raises(
        StartupError, match=r"predictions\.db is not there, and its log predictions\.db-wal is"
    ):
        open_store(url=url)
    assert not file.exists()
    away.rename(file)
    open_store(url=url).close(timeout=PATIENCE_S)
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM emotion_class WHERE emotion_id = 99").fetchone() == (
            1,
        )


def test_a_new_sqlite_file_is_for_this_user_alone(
    open_store: OpenStore, make_record: MakeRecord, tmp_path: Path
) -> None:
    """As the journal is, and so are the files that SQLite puts beside it; a file that is there keeps its mode."""
    file = tmp_path / "predictions.db"

    def modes_of_an_open_store() -> set[str]:
        store = open_store(url=f"sqlite:///{file}")
        assert store.record([make_record()])
        eventually(lambda: store.status().written == 1)
        found = {
            f"{path.suffix} {path.stat().st_mode & 0o777:o}" for path in tmp_path.glob("predictions.db*")
        }
        store.close(timeout=PATIENCE_S)
        return found

    mask = os.umask(0o022)
    try:
        assert modes_of_an_open_store() == {".db 600", ".db-wal 600", ".db-shm 600"}
        file.chmod(0o644)
        assert modes_of_an_open_store() == {".db 644", ".db-wal 644", ".db-shm 644"}
    finally:
        os.umask(mask)


@pytest.mark.skipif(sys.platform == "win32", reason="not every folder may have such a name there")
def test_a_question_makes_no_file_where_the_database_was_moved_away(
    open_store: OpenStore, make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite would delete the log of writes beside an empty file: what is committed there is found after the return."""
    folder = tmp_path / "what? 100%20 & #1=ñ"
    folder.mkdir()
    monkeypatch.chdir(folder)
    store = open_store(url="sqlite:///predictions.db")
    assert store.record([make_record(user="ana")])
    eventually(lambda: store.status().written == 1)
    file = folder / "predictions.db"
    log = file.with_name("predictions.db-wal").read_bytes()
    file.rename(folder / "elsewhere.db")

    def question() -> int:
        return len(ask(store, lambda connection: latest(connection, ByUser("ana"), 1)))

    with pytest.raises(Internal, match="cannot be read now"):
        question()
    assert not file.exists()
    assert file.with_name("predictions.db-wal").read_bytes() == log
    (folder / "elsewhere.db").rename(file)
    assert question() == 1


def test_a_folder_that_cannot_be_made(open_store: OpenStore, tmp_path: Path) -> None:
    """A file in the place of the folder is named in one line."""
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StartupError, match=r"cannot create the folder of the database, .*data"):
        open_store(url=f"sqlite:///{tmp_path}/data/deep/predictions.db")


def test_a_file_that_is_not_a_database(open_store: OpenStore, tmp_path: Path) -> None:
    """Another file in the database's place is left as it is and named in one line."""
    file = tmp_path / "notes.txt"
    file.write_text("not a database, " * 100)
    with pytest.raises(
        StartupError,
        match=r"cannot use the SQLite database .*notes.txt: file is not a database; check DATABASE_URL",
    ):
        open_store(url=f"sqlite:///{file}")
    assert file.read_text().startswith("not a database")


def test_a_damaged_database_is_told_how_to_mend(open_store: OpenStore, tmp_path: Path) -> None:
    """Neither its URL nor its rights are at fault."""
    file = tmp_path / "predictions.db"
    open_store(url=f"sqlite:///{file}").close(timeout=10)
    file.write_bytes(file.read_bytes()[:100] + b"x" * (file.stat().st_size - 100))
    with pytest.raises(StartupError, match=r"malformed; put a copy back in its place, or recover"):
        open_store(url=f"sqlite:///{file}")


def test_a_disk_without_room_for_a_sqlite_file(open_store: OpenStore, tmp_path: Path) -> None:
    """Making room is the advice: neither its URL nor its rights are at fault."""

    def allow_no_page(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA max_page_count = 1").close()

    full = pytest.raises(StartupError, match=r"predictions\.db: .* is full; make room on its disk$")
    with told_of_each("connect", allow_no_page), full:
        open_store(url=f"sqlite:///{tmp_path / 'predictions.db'}")


@pytest.mark.skipif(
    sys.platform != "linux", reason="the limit stands for a full disk, and is not the same elsewhere"
)
def test_a_disk_without_room_for_what_lies_beside_a_sqlite_file(tmp_path: Path) -> None:
    """SQLite takes that for an error of the disk: the advice is the same."""
    code = f"""
import resource
from service.store import prepare
resource.setrlimit(resource.RLIMIT_FSIZE, (16384, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
prepare("sqlite:///{tmp_path}/predictions.db", labels=["happy"], version_tag="v1", model_filename="m.onnx")
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.endswith("disk I/O error; make room on its disk\n")


def test_only_the_writer_keeps_what_undoes_a_statement_in_memory(
    open_store: OpenStore, make_record: MakeRecord, tmp_path: Path
) -> None:
    """The writer's statements make no temporary files, and a migration, of whatever size, is not held in memory."""
    in_memory: dict[str, set[bool]] = {}

    def note(connection: sa.Connection) -> None:
        kept = connection.exec_driver_sql("PRAGMA temp_store").scalar_one() == 2
        in_memory.setdefault(threading.current_thread().name, set()).add(kept)

    with told_of_each("begin", note):
        store = open_store(url=f"sqlite:///{tmp_path / 'predictions.db'}")
        assert store.record([make_record()])
        assert store.close(timeout=10) == 0
    assert in_memory == {"MainThread": {False}, "store-writer": {True}}


@pytest.mark.parametrize(
    ("fsync", "flushed"), [("always", True), ("interval", True), ("never", False), (None, False)]
)
def test_a_commit_to_sqlite_survives_a_power_loss_where_the_journal_does(
    open_store: OpenStore,
    make_record: MakeRecord,
    tmp_path: Path,
    fsync: Fsync | None,
    flushed: bool,
) -> None:
    """Else what the journal lets go of could be lost; without one that does, nobody waits for the disk."""
    levels: list[int] = []

    def note(connection: sa.Connection) -> None:
        if threading.current_thread().name == "store-writer":
            levels.append(connection.exec_driver_sql("PRAGMA synchronous").scalar_one())

    with told_of_each("begin", note):
        journal = {} if fsync is None else {"journal_dir": tmp_path / "journal", "fsync": fsync}
        store = open_store(url=f"sqlite:///{tmp_path / 'predictions.db'}", **journal)
        assert store.record([make_record()])
        assert store.close(timeout=10) == 0
    assert set(levels) == {2 if flushed else 1}


def _open_new_files(folder: Path, gate: Barrier) -> None:
    for number in range(25):
        engine = create(f"sqlite:///{folder / f'{number}.db'}")
        gate.wait()
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        engine.dispose()


def test_a_new_file_can_be_opened_by_several_processes_at_once(tmp_path: Path) -> None:
    """Switching a new SQLite file to write-ahead logging does not fail whoever comes second."""
    spawn = multiprocessing.get_context("spawn")
    gate = spawn.Barrier(2, timeout=60)
    processes = [spawn.Process(target=_open_new_files, args=(tmp_path, gate)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
