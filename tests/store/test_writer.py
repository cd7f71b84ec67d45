"""The store's writer by itself: what it tries again, and what it tells."""

from __future__ import annotations

import errno
import itertools
import os
from functools import partial
from pathlib import Path

import pytest

from service.errors import StartupError
from service.store import database, writer
from service.store.backlog import Backlog, Batch, MemoryBacklog
from service.store.database import parse_url
from service.store.journal import JournalBacklog
from service.store.migrate import migrate
from service.store.records import encode
from service.store.writer import Writer
from tests.store.conftest import MakeRecord
from tests.store.harness import PATIENCE_S, eventually
from tests.store.journals import MODEL, files


def open_writer(tmp_path: Path, backlog: Backlog) -> Writer:
    """Writes to a SQLite file of the test's, which is prepared with the first write."""
    engine = database.create_engine(parse_url(f"sqlite:///{tmp_path / 'predictions.db'}"))
    writer = Writer(engine, backlog, {}, {}, prepare=partial(migrate, engine))
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
    assert 1 < writer.state.attempts_failed < 20
    [told] = caplog.records
    assert told.exc_info is not None


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
    eventually(lambda: writer.state.failing and writer.state.attempts_failed >= 3)
    assert writer.state.last_error == f"journal: {os.strerror(errno.ELOOP)}"
    [told] = caplog.records
    assert (told.levelname, told.exc_info) == ("ERROR", None)
    assert str(spilled) in told.getMessage()
    aside.replace(spilled)
    eventually(lambda: writer.state.written == 20 and not writer.state.failing)
    writer.close(timeout=PATIENCE_S)
    backlog.close()


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
    engine = database.create_engine(parse_url(f"sqlite:///{tmp_path / 'predictions.db'}"))
    refused = Writer(engine, backlog, {}, {}, prepare=refuse)
    refused.start()
    eventually(lambda: refused.state.attempts_failed >= 20)
    refused.close(timeout=0)
    assert f"{refused.state.attempts_failed - 1}th" in (refused.state.last_error or "")
    assert len([record for record in caplog.records if "is retried" in record.message]) == 10
