"""A journal whose disk is full or cannot be written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.settings import Fsync
from service.store import journal
from service.store.journal import JournalBacklog
from tests.store.journals import MODEL, OpenJournal, drain, fail, files, payload

# A limit on the size of files fails writes as a full disk does: with some bytes of the frame written, then an error.
FULL_DISK = """
import resource, sys
from pathlib import Path
from service.store.journal import JournalBacklog
from service.store.reference import Model
backlog = JournalBacklog(Path(sys.argv[1]), Model("v1", "emotion.onnx", ("happy", "sad")), fsync="always")
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
taken = 0
while backlog.append(b"[%03d]" % taken + b" " * 95, 1):
    taken += 1
assert not backlog.append(b"x" * 200, 1)
print(taken, backlog.error)
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
assert backlog.append(b"[999]" + b" " * 95, 1)
found = []
while (batch := backlog.take(100)) is not None:
    found += batch.payloads
    backlog.acknowledge(batch)
print(len(found), found[-1][:5].decode(), backlog.error)
"""


def test_a_full_disk(tmp_path: Path, open_journal: OpenJournal) -> None:
    """A write that fails half-way is undone, answered with False, explained, and does not spoil what follows."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path], check=False, capture_output=True, text=True
    )
    assert done.stderr.count("\n") == 1
    assert f"the journal in {tmp_path} cannot be written: File too large" in done.stderr
    first, second = done.stdout.splitlines()
    taken, _, reason = first.partition(" ")
    assert int(taken) > 3
    assert reason == "journal: File too large"
    kept, last, error = second.split()
    assert int(kept) == int(taken) + 1
    assert (last, error) == ("[999]", "None")
    # The process ended without closing: what it wrote is intact on disk as well.
    replayed = drain(open_journal())
    assert len(replayed) == int(kept)
    assert replayed[-1].startswith(b"[999]")
    assert list(tmp_path.glob("damaged-*")) == []


def test_what_follows_half_a_record_that_stays_is_in_another_segment(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A write that fails half-way, and cannot be undone either, costs that record and none that comes later."""
    backlog = open_journal()
    assert backlog.append(payload(1), 1)
    write = os.write
    attempts = iter([lambda descriptor, data: write(descriptor, data[:20]), fail])
    with monkeypatch.context() as context:
        context.setattr(os, "write", lambda descriptor, data: next(attempts)(descriptor, data))
        context.setattr(os, "ftruncate", fail)
        assert not backlog.append(payload(2), 1)
    assert backlog.append(payload(3), 1)
    assert len(files(tmp_path)) == 2
    backlog.close()
    assert drain(open_journal()) == [payload(1), payload(3)]


def test_a_write_that_is_cut_short_goes_on_where_it_ended(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system may write less than it was given, without an error: the records are whole all the same."""
    backlog = open_journal()
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:20]))
    assert all(backlog.append(payload(number), 1) for number in range(2))
    monkeypatch.undo()
    backlog.close()
    assert drain(open_journal()) == [payload(0), payload(1)]


def test_a_disk_that_has_room_again_is_noticed_without_a_client(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error stays as long as nothing can be written, and goes when the writer finds that it can."""
    backlog = open_journal()
    with monkeypatch.context() as context:
        context.setattr(os, "write", fail)
        assert not backlog.append(payload(1), 1)
        assert backlog.take(1) is None
        assert backlog.error == "journal: injected"
    assert backlog.take(1) is None
    assert backlog.error is None
    assert backlog.append(payload(2), 1)
    assert drain(backlog) == [payload(2)]


def test_a_disk_that_the_journal_itself_has_filled_has_room_again(
    open_journal: OpenJournal,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the database has by then is deleted, and the next record is taken; the log tells of both, once."""
    backlog = open_journal()
    write = os.write

    def write_where_room_is(descriptor: int, data: bytes) -> int:
        """As on a disk of 500 bytes, where what is deleted while it is open still has its place."""
        newest = backlog._writer._descriptor
        deleted = 0 if newest < 0 or os.fstat(newest).st_nlink else os.fstat(newest).st_size
        if deleted + sum(path.stat().st_size for path in tmp_path.rglob("*.segment")) + len(data) > 500:
            raise OSError(errno.ENOSPC, "injected")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", write_where_room_is)
    caplog.set_level("INFO")
    taken = 0
    while backlog.append(payload(taken), 1):
        taken += 1
    assert not backlog.append(payload(taken), 1)
    assert len(drain(backlog)) == taken > 0
    assert backlog.take(1) is None
    assert backlog.error is None
    assert backlog.append(payload(taken), 1)
    assert drain(backlog) == [payload(taken)]
    assert [record.message for record in caplog.records] == [
        f"predictions are answered and not stored, since the journal in {tmp_path} cannot be written: injected",
        "the journal can be written again: predictions are stored",
    ]


@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_a_process_without_a_file_left_stores_as_before(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fsync: Fsync
) -> None:
    """What is in the database is deleted another time: the place of a file that is closed would be another's."""
    monkeypatch.setattr(journal, "RENEW_INTERVAL_S", 0.0)

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    backlog = open_journal(fsync=fsync)
    assert backlog.append(payload(0), 1)
    backlog._writer.flush_again()
    assert drain(backlog) == [payload(0)]
    with monkeypatch.context() as context:
        context.setattr(os, "open", refuse)
        context.setattr(os, "listdir", refuse)
        for number in range(1, 4):
            assert backlog.append(payload(number), 1)
            backlog._writer.flush_again()
            batch = backlog._orphans.take(1) or backlog.take(1)
            assert batch is not None
            assert batch.payloads == [payload(number)]
            backlog.acknowledge(batch)
            assert backlog.error is None
    assert len(files(tmp_path)) == 1
    before = files(tmp_path)
    assert backlog.take(1) is None
    assert len(files(tmp_path)) == 1
    assert files(tmp_path) != before


@contextmanager
def read_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a disk becomes that has failed: what is open for writing stays so, and nothing can be changed."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    open_file = os.open

    def open_to_read(path: str, flags: int, mode: int = 0o777, **arguments: int) -> int:
        return refuse() if flags & (os.O_WRONLY | os.O_RDWR) else open_file(path, flags, mode, **arguments)

    with monkeypatch.context() as context:
        context.setattr(os, "open", open_to_read)
        for name in ("write", "ftruncate", "unlink", "rmdir", "mkdir"):
            context.setattr(os, name, refuse)
        yield


def test_a_disk_that_is_read_only_by_now(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Records are refused, told once, and the journal can be closed: what it leaves there is stored by the next."""
    backlog = open_journal()
    assert backlog.append(payload(1), 1)
    with read_only(monkeypatch):
        assert not backlog.append(payload(2), 1)
        assert drain(backlog) == [payload(1)]
        for _ in range(3):
            assert backlog.take(1) is None
            monkeypatch.setattr(backlog._orphans, "_next_look", 0.0)
        assert backlog.error == f"journal: {os.strerror(errno.EROFS)}"
        backlog.close()
    refused, blind = [record.message for record in caplog.records]
    assert "predictions are answered and not stored" in refused
    assert "cannot look for journals of other processes" in blind
    assert drain(open_journal()) == [payload(1)]


def test_a_journal_that_was_taken_over_and_cannot_be_deleted_holds_up_no_other(
    open_journal: OpenJournal,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is stored and told, and deleted later; what this process has recorded comes after it."""
    dead = open_journal()
    dead.append(payload(1), 1)
    dead.close()
    (left,) = files(tmp_path)
    backlog = open_journal()
    backlog.append(payload(2), 1)
    batch = backlog.take(7)
    assert batch is not None
    backlog.acknowledge(batch)
    with read_only(monkeypatch):
        assert drain(backlog) == [payload(2)]
    assert batch.payloads == [payload(1)]
    assert f"what is stored of the journal {left.parent} cannot be deleted, and is tried again" in caplog.text
    monkeypatch.setattr(backlog._orphans, "_next_look", 0.0)
    assert drain(backlog) == []
    assert not left.exists()


def test_a_damaged_journal_on_a_full_disk(
    open_journal: OpenJournal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is intact of a segment is read though there is no room for a copy of it, which is told."""
    backlog = open_journal(memory_records=1, segment_bytes=1000)
    assert all(backlog.append(payload(number), 1) for number in range(20))
    segment = files(tmp_path)[1]
    data = bytearray(segment.read_bytes())
    data[data.index(b'"pad"')] ^= 0xFF
    segment.write_bytes(data)
    monkeypatch.setattr(shutil, "copyfile", fail)
    assert len(drain(backlog)) == 19
    assert [record.message for record in caplog.records][1:] == ["no copy of it can be kept: injected"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in the place of the folder is an error at once."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        JournalBacklog(tmp_path / "file", MODEL)


@pytest.mark.parametrize("write", [fail, lambda _, data: len(data) - 1], ids=["no byte", "all but one"])
def test_a_disk_that_is_full_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[int, bytes], int]
) -> None:
    """It is an error at once, and leaves nothing: neither a segment without its head nor a folder that is held."""
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match=f"injected|{os.strerror(errno.ENOSPC)}"):
        JournalBacklog(tmp_path, MODEL)
    assert list(tmp_path.glob("journal-*")) == []
