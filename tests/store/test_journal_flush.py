"""What of a journal is on the disk when, and a disk to which nothing can be flushed."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.settings import Fsync
from service.store import folders, journal, segments
from service.store.folders import Folder
from service.store.segments import SegmentWriter
from tests.store.journals import MODEL, TIMEOUT, OpenJournal, drain, fail, files, payload


@pytest.mark.skipif(sys.platform != "linux", reason="other systems flush by other calls")
@pytest.mark.parametrize(("fsync", "flushes", "folders_flushed"), [("always", 3, 1), ("never", 0, 0)])
def test_what_is_acknowledged_is_on_the_disk(
    open_journal: OpenJournal,
    monkeypatch: pytest.MonkeyPatch,
    fsync: Fsync,
    flushes: int,
    folders_flushed: int,
) -> None:
    """With "always" each append is flushed, once, before it returns, and so is a segment's name; "never" flushes
    nothing.
    """
    sizes: list[int] = []
    folders_of_segments: list[int] = []

    def flush_data(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fdatasync", flush_data)
    monkeypatch.setattr(os, "fsync", folders_of_segments.append)
    backlog = open_journal(fsync=fsync)
    for number in range(3):
        assert backlog.append(payload(number), 1)
        assert not sizes or sizes[-1] == backlog.size_bytes
    backlog.close()
    assert (len(sizes), len(folders_of_segments)) == (flushes, folders_flushed)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does that by itself")
def test_the_name_of_each_segment_is_on_the_disk(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A record that is acknowledged is in a file that is found after a power loss, also where it is the first in it."""
    named: list[int] = []
    monkeypatch.setattr(Folder, "flush_names", lambda _: named.append(len(files(tmp_path))))
    backlog = open_journal(fsync="always", segment_bytes=400)
    for number in range(6):
        assert backlog.append(payload(number), 1)
        assert named[-1] == len(files(tmp_path))
    assert named == list(range(1, len(files(tmp_path)) + 1))
    assert len(named) > 1


def test_what_cannot_be_flushed_is_not_acknowledged(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each record is to be on the disk: it may be lost, is told so, and what follows is taken again."""
    backlog = open_journal(fsync="always")
    with monkeypatch.context() as context:
        context.setattr(segments, "_flush", fail)
        assert not backlog.append(payload(1), 1)
        assert backlog.error == "journal: injected"
    assert backlog.append(payload(2), 1)
    assert backlog.error is None


def test_a_flush_in_intervals_that_fails_is_remembered_and_repeated(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Appends go on meanwhile and do not hide it; it is forgotten when a flush succeeds, without another append."""
    monkeypatch.setattr(journal, "FSYNC_INTERVAL_S", 0.01)
    backlog = open_journal()

    def wait_until_error(expected: str | None) -> None:
        deadline = time.monotonic() + TIMEOUT
        while backlog.error != expected:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with monkeypatch.context() as context:
        context.setattr(segments, "_flush", fail)
        assert backlog.append(payload(1), 1)
        wait_until_error("journal: injected")
        assert backlog.append(payload(2), 1)
        assert backlog.error == "journal: injected"
    wait_until_error(None)


@pytest.mark.parametrize("what", ["the folder", "the segment"])
def test_a_journal_that_somebody_deletes_while_records_wait(
    open_journal: OpenJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The next flush in intervals notices, and what comes then survives the process: no segment need be full."""
    monkeypatch.setattr(journal, "FSYNC_INTERVAL_S", 0.01)
    root = tmp_path / "journal"
    backlog = open_journal(root=root, fsync="interval")
    assert backlog.append(payload(0), 1)
    [segment] = files(root)
    if what == "the folder":
        shutil.rmtree(root)
    else:
        segment.unlink()
    deadline = time.monotonic() + TIMEOUT
    while not files(root):
        assert time.monotonic() < deadline
        assert backlog.append(payload(1), 1)
        time.sleep(0.01)
    assert backlog.append(payload(2), 1)
    assert files(root)[-1].read_bytes().endswith(payload(2))
    assert drain(backlog)[0] == payload(0)


@pytest.mark.parametrize(("needed", "flushes"), [(True, 1), (False, 0)])
def test_what_is_closed_is_on_the_disk_where_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needed: bool, flushes: int
) -> None:
    """A service that ends leaves what the database lacks to the next, also where the power fails then."""
    flushed: list[int] = []
    monkeypatch.setattr(segments, "_flush", flushed.append)
    folder = folders.create(tmp_path)
    writer = SegmentWriter(folder, MODEL, segment_bytes=1000, synced=True)
    writer.append(b"x" * 500)
    writer.close(flush=needed)
    assert len(flushed) == flushes
    folder.release()


def test_a_flush_that_fails_at_the_end_holds_up_nobody(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is let go of nevertheless, and the next process stores what it holds."""
    backlog = open_journal(fsync="interval")
    with monkeypatch.context() as context:
        context.setattr(segments, "_flush", fail)
        assert backlog.append(payload(1), 1)
        backlog.close()
    assert drain(open_journal()) == [payload(1)]


def test_what_another_thread_has_flushed_is_not_flushed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that come together share a flush: whoever's record it reached does not wait for those that came later."""
    flushed: list[int] = []
    monkeypatch.setattr(segments, "_flush", flushed.append)
    folder = folders.create(tmp_path)
    writer = SegmentWriter(folder, MODEL, segment_bytes=1000, synced=True)
    marks = []
    for _ in range(3):
        writer.append(b"x" * 100)
        marks.append(writer.position)
    writer.flush(marks[0])
    writer.append(b"x" * 100)
    for mark in marks:
        writer.flush(mark)
    assert len(flushed) == 1
    writer.close()
    folder.release()


@pytest.mark.parametrize("failing", ["the segment is full", "a thread waits"])
def test_a_failed_flush_is_told_to_every_thread_that_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """A record is not acknowledged when another thread's flush of it failed, whichever thread that was."""
    folder = folders.create(tmp_path)
    writer = SegmentWriter(folder, MODEL, segment_bytes=1000, synced=True)
    writer.append(b"x" * 500)
    mark = writer.position
    entered, released = threading.Event(), threading.Event()

    def fail_when_told(_: int) -> None:
        if entered.is_set():
            return  # the kernel tells of a failure once
        entered.set()
        assert released.wait(TIMEOUT)
        raise OSError(errno.ENOSPC, "injected")

    with monkeypatch.context() as context, ThreadPoolExecutor() as threads:
        context.setattr(segments, "_flush", fail_when_told)
        if failing == "the segment is full":
            first = threads.submit(writer.append, b"y" * 900)
        else:
            first = threads.submit(writer.flush, mark)  # type: ignore[arg-type]
        assert entered.wait(TIMEOUT)
        second = threads.submit(writer.flush, mark)
        released.set()
        assert isinstance(first.exception(TIMEOUT), OSError)
        assert isinstance(second.exception(TIMEOUT), OSError)
    # What comes later is on the disk, and says so.
    writer.append(b"z" * 900)
    writer.flush(writer.position)
    assert [path.name for path in folder.segments()] == ["00000001.segment", "00000002.segment"]
    writer.close()
    folder.release()
