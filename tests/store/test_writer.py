"""The store's writer by itself: what it tries again, and what it tells."""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
import threading
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from service.errors import StartupError
from service.store import reference, writer
from service.store.backlog import Backlog, Batch, MemoryBacklog
from service.store.database import create_engine, parse_url
from service.store.journal import JournalBacklog
from service.store.migrate import migrate
from service.store.records import encode
from service.store.reference import Model, References
from service.store.schema import model_version, predictions_log
from service.store.writer import Writer
from tests.store.conftest import MakeRecord
from tests.store.harness import PATIENCE_S, create, eventually
from tests.store.journals import MODEL, files

ENSURE = partial(reference.ensure, descriptions={})


def open_writer(tmp_path: Path, backlog: Backlog) -> Writer:
    """Writes to a SQLite file of the test's, which is prepared with the first write."""
    engine = create(f"sqlite:///{tmp_path / 'predictions.db'}")
    writer = Writer(engine, backlog, {}, ENSURE, prepare=partial(migrate, engine))
    writer.start()
    return writer


def test_a_fault_while_closing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Closing tries again as long as it may, with a pause after each attempt that fails."""

    class Faulty(MemoryBacklog):
        """One with a mistake of ours in it."""

        def take(self, limit: int) -> Batch | None:
            raise ValueError("injected")

    writer = open_writer(tmp_path, Faulty(MODEL, limit=10))
    eventually(lambda: writer.state.failing)
    writer.close(timeout=1.0)
    assert 1 < writer.state.failed_attempts < 20
    [told] = caplog.records
    assert told.exc_info is not None


def test_what_comes_between_the_last_look_and_the_close_is_written(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    """The thread that has just found nothing looks again where it is told to end meanwhile."""
    found_nothing = threading.Event()

    class Slow(MemoryBacklog):
        """The writer is held up after it has found nothing, until it is told to end."""

        def take(self, limit: int) -> Batch | None:
            batch = super().take(limit)
            if batch is None and not found_nothing.is_set():
                found_nothing.set()
                assert thread._closing.wait(PATIENCE_S)
            return batch

    backlog = Slow(MODEL, limit=10)
    thread = open_writer(tmp_path, backlog)
    assert found_nothing.wait(PATIENCE_S)
    assert backlog.append(encode([make_record(emotion="happy")]), 1)
    thread.close(timeout=PATIENCE_S)
    assert backlog.pending == 0
    assert thread.state.written == 1


def test_a_journal_that_cannot_be_read_for_a_while(
    tmp_path: Path, make_record: MakeRecord, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, in a line that names the file; nothing in it is given up, and it is read when it can be."""
    backlog = JournalBacklog(tmp_path / "journal", MODEL, memory_records=2, segment_bytes=2000)
    for _ in range(20):
        assert backlog.append(encode([make_record(emotion="happy")]), 1)
    spilled = files(tmp_path / "journal")[1]
    aside = spilled.rename(tmp_path / "aside")
    spilled.symlink_to(spilled)
    writer = open_writer(tmp_path, backlog)
    eventually(lambda: writer.state.failing and writer.state.failed_attempts >= 3)
    assert writer.state.last_error == f"journal: {os.strerror(errno.ELOOP)}"
    [told] = caplog.records
    assert (told.levelname, told.exc_info) == ("ERROR", None)
    assert str(spilled) in told.getMessage()
    aside.replace(spilled)
    eventually(lambda: writer.state.written == 20 and not writer.state.failing)
    writer.close(timeout=PATIENCE_S)
    backlog.close()


def test_what_is_read_in_small_parts_is_stored_without_a_pause(
    tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of a journal, or another process's, does not wait for the next prediction or the next look."""
    monkeypatch.setattr(writer, "LOOK_S", 3600.0)
    backlog = JournalBacklog(tmp_path / "journal", MODEL, memory_records=1, segment_bytes=500)
    for _ in range(5):
        assert backlog.append(encode([make_record(emotion="happy")]), 1)
    opened = open_writer(tmp_path, backlog)
    eventually(lambda: opened.state.written == 5)
    opened.close(timeout=PATIENCE_S)
    backlog.close()


def test_what_is_undone_is_not_counted(tmp_path: Path, make_record: MakeRecord) -> None:
    """Rows of a transaction that was not committed are counted when they are: each of them once."""
    engine = create(f"sqlite:///{tmp_path / 'predictions.db'}")
    references = prepared(tmp_path / "predictions.db", MODEL)
    failures = iter([exc.OperationalError("COMMIT", {}, sqlite3.OperationalError("injected"))])

    def commit(_: sa.Connection) -> None:
        if (failure := next(failures, None)) is not None:
            raise failure

    backlog = MemoryBacklog(MODEL, limit=10)
    assert backlog.append(encode([make_record(emotion="happy") for _ in range(3)]), 3)
    writing = Writer(engine, backlog, {MODEL: references}, ENSURE, lambda: None)
    sa.event.listen(engine, "commit", commit)
    writing.start()
    eventually(lambda: backlog.pending == 0)
    writing.close(timeout=PATIENCE_S)
    assert (writing.state.failed_attempts, writing.state.written) == (1, 3)
    engine.dispose()


@pytest.mark.parametrize("waiting", ["LOOK_S", "GATHER_S"])
def test_closing_ends_a_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: str) -> None:
    """A writer that looks around, or lets records gather, does so no longer when it is closed."""
    monkeypatch.setattr(writer, waiting, 3600.0)
    opened = open_writer(tmp_path, MemoryBacklog(MODEL, limit=10))
    if waiting == "LOOK_S":
        eventually(lambda: not opened._arrived.is_set())
    opened.close(timeout=PATIENCE_S)
    assert not opened._thread.is_alive()


def test_what_fails_again_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once it has worked in between: a journal's disk that comes and goes is not taken for one that stays away."""
    monkeypatch.setattr(writer, "_RETRY_AFTER_FAULT_S", 0.01)

    class Unreadable(MemoryBacklog):
        """One whose disk is away now and then."""

        away = False

        def take(self, limit: int) -> Batch | None:
            if self.away:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().take(limit)

    backlog = Unreadable(MODEL, limit=10)
    opened = open_writer(tmp_path, backlog)
    for _ in range(2):
        backlog.away = True
        opened.notify()
        eventually(lambda: opened.state.failing)
        backlog.away = False
        eventually(lambda: not opened.state.failing)
    opened.close(timeout=PATIENCE_S)
    assert len([record for record in caplog.records if "the journal cannot be read" in record.message]) == 2


def test_attempts_come_at_growing_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that comes back soon is found soon, one that stays away is asked every five seconds."""
    pauses: list[float] = []

    def pause(_: Writer, seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) < 8

    def refuse() -> None:
        raise StartupError("refused")

    monkeypatch.setattr(Writer, "_pause", pause)
    monkeypatch.setattr("random.uniform", lambda *_: 1.0)
    backlog = MemoryBacklog(MODEL, limit=10)
    assert backlog.append(b"", 1)
    engine = create(f"sqlite:///{tmp_path / 'predictions.db'}")
    refused = Writer(engine, backlog, {}, ENSURE, prepare=refuse)
    refused.start()
    refused._thread.join(PATIENCE_S)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def prepared(file: Path, model: Model) -> References:
    """A SQLite file whose first model is this one."""
    engine = create(f"sqlite:///{file}")
    migrate(engine)
    with engine.begin() as connection:
        references = reference.ensure(connection, model, {})
    engine.dispose()
    return references


@pytest.mark.parametrize("moment", ["before the writer", "in its first write"])
@pytest.mark.parametrize("back", ["the file", "another"])
def test_a_sqlite_file_that_is_away_when_the_writer_looks_for_it(
    tmp_path: Path, make_record: MakeRecord, moment: str, back: str
) -> None:
    """Its tables were there a moment before: when a file is back it is prepared, and written to under our model."""
    file, away, other = (tmp_path / f"{name}.db" for name in ("predictions", "away", "other"))
    references = prepared(file, MODEL)
    prepared(other, Model("v0", "older.onnx", MODEL.labels))
    engine = create(f"sqlite:///{file}")

    def prepare() -> None:
        migrate(engine)
        engine.dispose()
        if not away.exists():
            file.rename(away)

    backlog = MemoryBacklog(MODEL, limit=10)
    assert backlog.append(encode([make_record(emotion="happy")]), 1)
    if moment == "before the writer":
        file.rename(away)
        writer = Writer(engine, backlog, {MODEL: references}, ENSURE, prepare)
    else:
        writer = Writer(engine, backlog, {}, ENSURE, prepare)
    writer.start()
    eventually(lambda: writer.state.failed_attempts >= 2)
    os.link(away if back == "the file" else other, file)
    eventually(lambda: writer.state.written == 1)
    with engine.connect() as connection:
        query = sa.select(model_version.c.model_version_tag).join(predictions_log)
        assert connection.execute(query).scalars().all() == [MODEL.version_tag]
    writer.close(timeout=PATIENCE_S)
    engine.dispose()


def test_a_sqlite_file_that_the_url_opens_its_own_way(tmp_path: Path, make_record: MakeRecord) -> None:
    """One whose place only SQLite knows is prepared once, not for each write."""
    calls = itertools.count()
    engine = create_engine(parse_url(f"sqlite:///file:{tmp_path / 'predictions.db'}?uri=true"))
    backlog = MemoryBacklog(MODEL, limit=10)

    def prepare() -> None:
        next(calls)
        migrate(engine)

    writer = Writer(engine, backlog, {}, ENSURE, prepare)
    writer.start()
    for number in (1, 2):
        assert backlog.append(encode([make_record(emotion="happy")]), 1)
        writer.notify()
        eventually(partial(lambda expected: writer.state.written == expected, number))
    writer.close(timeout=PATIENCE_S)
    assert next(calls) == 1
    engine.dispose()


def test_an_outage_of_many_reasons_does_not_fill_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There may be a number in each: ten are told, and the state has the newest."""
    monkeypatch.setattr(writer, "_LONGEST_RETRY_S", 0.001)
    reasons = (f"refused for the {number}th time" for number in itertools.count())

    def refuse() -> None:
        raise StartupError(next(reasons))

    backlog = MemoryBacklog(MODEL, limit=10)
    assert backlog.append(b"", 1)
    engine = create(f"sqlite:///{tmp_path / 'predictions.db'}")
    refused = Writer(engine, backlog, {}, ENSURE, prepare=refuse)
    refused.start()
    eventually(lambda: refused.state.failed_attempts >= 20)
    refused.close(timeout=0)
    assert f"{refused.state.failed_attempts - 1}th" in (refused.state.last_error or "")
    assert len([record for record in caplog.records if "is retried" in record.message]) == 10
