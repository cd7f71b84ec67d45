"""A journal that cannot be opened yet, since the disk is full of what a process that died left there."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from service.errors import StartupError
from service.store import late, writer
from service.store.late import LateJournal
from tests.store.conftest import MakeRecord, OpenStore
from tests.store.harness import eventually, ids, stored
from tests.store.journals import MODEL, OpenJournal, drain, files, payload


def fill(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """From now on segments under ``root`` may not take more room than they do."""
    write, size = os.write, sum(path.stat().st_size for path in root.rglob("*.segment"))

    def write_where_room_is(descriptor: int, data: bytes) -> int:
        if sum(path.stat().st_size for path in root.rglob("*.segment")) + len(data) > size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", write_where_room_is)


@pytest.fixture
def left(open_journal: OpenJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What a process left that has filled the disk."""
    dead = open_journal()
    payloads = [payload(number) for number in range(20)]
    assert all(dead.append(each, 1) for each in payloads)
    dead.close()
    fill(monkeypatch, tmp_path)
    monkeypatch.setattr(late, "_RETRY_S", 0.0)
    return payloads


def test_what_fills_the_disk_is_given_out_while_no_journal_is_open(
    left: list[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted as pending; when it is stored a journal is opened, though nobody records, which the log tells."""
    caplog.set_level("INFO")
    journal = LateJournal(tmp_path, MODEL, fsync="interval")
    assert not journal.append(payload(20), 1)
    assert journal.error == f"journal: {os.strerror(errno.ENOSPC)}"
    first = journal.take(7)
    assert first is not None
    assert journal.take(7) == first
    assert journal.pending == 20
    assert drain(journal) == left
    assert journal.take(7) is None
    assert not journal.pending
    assert not journal.error
    assert journal.append(payload(20), 1)
    assert drain(journal) == [payload(20)]
    journal.close()
    assert files(tmp_path) == []
    refused, taking, works = [record.message for record in caplog.records]
    assert refused.startswith("no journal can be opened, and predictions are not stored until it can: ")
    assert taking.startswith("taking over 20 records")
    assert works == "a journal is open: predictions are stored"


def test_a_journal_that_is_opened_before_a_batch_is_acknowledged(
    left: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch counts for where it came from, the rest of that follows, and then what was recorded meanwhile."""
    journal = LateJournal(tmp_path, MODEL, fsync="interval")
    batch = journal.take(7)
    assert batch is not None
    monkeypatch.undo()
    assert journal.append(payload(20), 1)
    assert journal.pending == 21
    journal.acknowledge(batch)
    assert journal.pending == 14
    assert batch.payloads + drain(journal) == [*left, payload(20)]
    journal.close()
    assert files(tmp_path) == []


def test_closed_before_a_journal_could_be_opened(
    left: list[bytes], tmp_path: Path, open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it did not give out, another process takes over: no journal is opened any more, though there is room."""
    journal = LateJournal(tmp_path, MODEL, fsync="interval")
    assert journal.take(7) is not None
    journal.close()
    monkeypatch.undo()
    assert journal.take(7) is None
    assert not journal.append(payload(20), 1)
    assert drain(open_journal()) == left


def test_a_process_that_dies_shortly_before_one_without_a_journal_ends(
    tmp_path: Path, open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had appended is given out by the other that is to be closed, though that looked a moment ago."""
    dying = open_journal()
    assert dying.append(payload(0), 1)
    fill(monkeypatch, tmp_path)
    journal = LateJournal(tmp_path, MODEL, fsync="interval")
    assert journal.take(7) is None
    dying.close()
    assert journal.take(7) is None
    journal.seal()
    assert drain(journal) == [payload(0)]
    journal.close()


def test_no_journal_is_tried_with_each_record(
    left: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full costs a prediction nothing: what another attempt takes, it does not wait for."""
    monkeypatch.setattr(late, "_RETRY_S", 3600.0)
    journal = LateJournal(tmp_path, MODEL, fsync="interval")
    monkeypatch.delattr(late, "JournalBacklog")
    assert not journal.append(payload(20), 1)
    assert drain(journal) == left
    journal.close()


def test_no_journal_is_open_without_a_thread_to_flush_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system has none to give, records are refused, and nothing is left of what was tried."""
    monkeypatch.setattr(late, "_RETRY_S", 0.0)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", refuse)
        journal = LateJournal(tmp_path, MODEL, fsync="interval")
        assert not journal.append(payload(0), 1)
        assert journal.error == "journal: can't start new thread"
        assert list(tmp_path.glob("journal-*")) == []
    assert journal.append(payload(0), 1)
    assert drain(journal) == [payload(0)]
    journal.close()


def test_one_journal_is_opened(tmp_path: Path) -> None:
    """Also for whoever comes while it is: in another, which nobody reads, records would wait for the next process.

    It takes nothing more when it is to be closed.
    """
    journal = LateJournal(tmp_path, MODEL, fsync="interval")
    assert journal._opened() is journal._opened() is not None
    assert journal.append(payload(0), 1)
    journal.seal()
    assert not journal.append(payload(1), 1)
    assert drain(journal) == [payload(0)]
    journal.close()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("during_outage", [False, True])
def test_a_start_on_a_full_disk(
    open_store: OpenStore,
    make_record: MakeRecord,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    during_outage: bool,
) -> None:
    """What an earlier process left there is stored, by which there is room, and predictions are taken again."""
    root = tmp_path / "journal"
    earlier = open_store(journal_dir=root, url=f"sqlite:///{tmp_path / 'gone.db'}")
    for path in tmp_path.glob("gone.db*"):
        path.unlink()  # nothing is written to a database that is gone
    left = [make_record() for _ in range(20)]
    assert earlier.record(left)
    assert earlier.close(timeout=0.1) == 20
    open_store().close(timeout=10)  # by now there is a database: a service that is restarted makes none
    fill(monkeypatch, root)
    monkeypatch.setattr(late, "_RETRY_S", 0.0)
    monkeypatch.setattr(writer, "LOOK_S", 0.1)
    store = open_store(journal_dir=root, during_outage=during_outage)
    eventually(lambda: store.status().written == 20 and store.status().healthy)
    later = make_record()
    assert store.record([later])
    eventually(lambda: store.status().written == 21)
    assert set(stored(database_url)) == ids([*left, later])


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_start_on_a_disk_that_something_else_fills(
    open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where storing would make no room, the start is refused."""
    fill(monkeypatch, tmp_path)
    with pytest.raises(StartupError, match=r"cannot write a journal in .*journal: .*; check JOURNAL_DIR"):
        open_store(journal_dir=tmp_path / "journal")
