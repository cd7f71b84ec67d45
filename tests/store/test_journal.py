"""The backlog on disk: order, bounds, spilling, reading back and deletion."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from service.settings import Fsync
from service.store import journal, segments
from service.store.framing import frame
from tests.store.journals import TIMEOUT, OpenJournal, drain, files, payload

OPEN_FILES = Path("/proc/self/fd")


@pytest.mark.parametrize("fsync", ["never", "interval", "always"])
def test_in_order_and_gone_when_acknowledged(open_journal: OpenJournal, tmp_path: Path, fsync: Fsync) -> None:
    """What is appended is taken in order, once; closed with nothing left, the journal leaves no file behind."""
    backlog = open_journal(fsync=fsync)
    expected = [payload(number) for number in range(50)]
    for data in expected:
        assert backlog.append(data, 1)
    assert backlog.pending == 50
    assert drain(backlog) == expected
    assert backlog.pending == 0
    backlog.close()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_taken_again_until_acknowledged(open_journal: OpenJournal) -> None:
    """A batch that is not acknowledged is given again; it is of the oldest, and as large as it is to be."""
    backlog = open_journal()
    for number in range(3):
        backlog.append(payload(number), 1)
    first, second = backlog.take(2), backlog.take(2)
    assert first == second
    assert first is not None
    assert first.payloads == [payload(0), payload(1)]


def test_it_is_on_disk_before_append_returns(open_journal: OpenJournal, tmp_path: Path) -> None:
    """The file holds the frame when append has returned."""
    backlog = open_journal()
    backlog.append(payload(1), 1)
    [path] = files(tmp_path)
    assert path.read_bytes().endswith(frame(payload(1), 1))


def test_more_than_memory_is_read_back_from_disk(open_journal: OpenJournal, tmp_path: Path) -> None:
    """Beyond its memory the backlog is on disk alone, comes back in order, and its segments go one by one."""
    backlog = open_journal(memory_records=20, segment_bytes=1000)
    expected = [payload(number) for number in range(300)]
    for data in expected:
        assert backlog.append(data, 1)
    count = len(files(tmp_path))
    assert count > 30
    assert backlog.size_bytes == sum(path.stat().st_size for path in files(tmp_path))
    found: list[bytes] = []
    remaining = [count]
    while (batch := backlog.take(7)) is not None:
        found.extend(batch.payloads)
        backlog.acknowledge(batch)
        remaining.append(len(files(tmp_path)))
    assert found == expected
    assert remaining == sorted(remaining, reverse=True)
    assert remaining[-1] == 1
    assert backlog.pending == 0

    late = [payload(number) for number in range(300, 310)]
    for data in late:
        assert backlog.append(data, 1)
    assert drain(backlog) == late


def test_what_is_not_stored_yet_stays_on_the_disk(open_journal: OpenJournal, tmp_path: Path) -> None:
    """Of what is in memory too: a process that dies leaves to the next all that was not acknowledged."""
    backlog = open_journal(segment_bytes=1000)
    left = [payload(number) for number in range(30)]
    assert all(backlog.append(data, 1) for data in left)
    while (batch := backlog.take(7)) is not None:
        on_disk = b"".join(path.read_bytes() for path in files(tmp_path))
        assert all(data in on_disk for data in left)
        assert backlog.size_bytes == len(on_disk)
        backlog.acknowledge(batch)
        del left[: len(batch.payloads)]
        assert backlog.pending == len(left)
    assert not left


def test_what_is_stored_in_time_is_not_read_back(
    open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much there is in all: only what piles up beyond the memory comes from the disk."""
    monkeypatch.delattr(segments, "read")
    backlog = open_journal(memory_records=4)
    for start in range(0, 30, 3):
        expected = [payload(number) for number in range(start, start + 3)]
        assert all(backlog.append(data, 1) for data in expected)
        assert drain(backlog) == expected


def test_what_is_stored_does_not_stay_on_the_disk(
    open_journal: OpenJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nothing waits any more the newest segment goes too, and not before; what follows is in another."""
    monkeypatch.setattr(journal, "RENEW_INTERVAL_S", 0.0)
    backlog = open_journal(memory_records=2)
    assert all(backlog.append(payload(number), 1) for number in range(5))
    [first] = files(tmp_path)
    found: list[bytes] = []
    while (batch := backlog.take(2)) is not None:
        assert files(tmp_path) == [first]
        found.extend(batch.payloads)
        backlog.acknowledge(batch)
    assert found == [payload(number) for number in range(5)]
    [second] = files(tmp_path)
    assert b"pad" not in second.read_bytes()
    assert backlog.append(payload(5), 1)
    assert second.read_bytes().endswith(frame(payload(5), 1))
    assert backlog.size_bytes == second.stat().st_size
    assert drain(backlog) == [payload(5)]


def test_what_is_stored_goes_where_there_is_more_at_each_look(
    open_journal: OpenJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that predicts something every moment never finds that nothing waits, but right after it has stored."""
    monkeypatch.setattr(journal, "RENEW_INTERVAL_S", 0.0)
    backlog = open_journal()
    for number in range(3):
        assert backlog.append(payload(number), 1)
        batch = backlog.take(7)
        assert batch is not None
        backlog.acknowledge(batch)
        [path] = files(tmp_path)
        assert b"pad" not in path.read_bytes()


def test_what_was_stored_in_between_goes_at_a_later_look(
    open_journal: OpenJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with each record is a segment begun, nor where none came; what is left is deleted when its time comes, though
    nobody records.
    """
    backlog = open_journal()
    kept = files(tmp_path)
    for number in range(2):
        assert backlog.append(payload(number), 1)
        assert drain(backlog) == [payload(number)]
        assert files(tmp_path) == kept
        monkeypatch.setattr(backlog, "_next_renewal", 0.0)
        assert backlog.take(7) is None
        [second] = files(tmp_path)
        assert [second] != kept
        assert b"pad" not in second.read_bytes()
        kept = [second]
    monkeypatch.setattr(backlog, "_next_renewal", 0.0)
    assert backlog.take(7) is None
    assert files(tmp_path) == kept


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="the system does not list a process's open files")
def test_only_the_newest_segment_is_open(open_journal: OpenJournal, tmp_path: Path) -> None:
    """A deleted one that was open still would keep its place on the disk for as long as the process lives."""

    def open_segments() -> list[Path]:
        opened = [path.readlink() for path in OPEN_FILES.iterdir() if path.is_symlink()]
        return [path for path in opened if path.suffix == ".segment"]

    backlog = open_journal(segment_bytes=1000)
    for number in range(50):
        assert backlog.append(payload(number), 1)
    assert len(files(tmp_path)) > 3
    assert open_segments() == [files(tmp_path)[-1]]
    backlog.close()
    assert open_segments() == []


def test_segments_that_somebody_deletes(
    open_journal: OpenJournal, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A deleted journal costs what was only there; it is told, and nothing more is taken into files that are gone."""
    backlog = open_journal(memory_records=2, segment_bytes=200)
    assert all(backlog.append(payload(number), 1) for number in range(20))
    deleted = files(tmp_path)
    for path in deleted:
        path.unlink()
    assert drain(backlog) == [payload(0), payload(1)]
    assert backlog.pending == 0
    told = f"the segment {deleted[-1].name} of the journal in {tmp_path} was deleted: the records that were only there"
    assert f"{told} are lost" in caplog.messages

    assert backlog.append(payload(20), 1)
    assert [path.read_bytes()[-len(payload(20)) :] for path in files(tmp_path)] == [payload(20)]
    assert drain(backlog) == [payload(20)]
    shutil.rmtree(files(tmp_path)[0].parent)
    backlog.close()


@pytest.mark.parametrize("begun", ["where nothing waits", "where a segment is full"])
@pytest.mark.parametrize("fsync", ["never", "always"])
def test_a_folder_that_somebody_deletes(
    open_journal: OpenJournal, tmp_path: Path, caplog: pytest.LogCaptureFixture, fsync: Fsync, begun: str
) -> None:
    """The next segment is in a folder of the process's own again: the log says so, once, and what follows it survives
    the process.
    """
    root = tmp_path / "journal"
    backlog = open_journal(root=root, segment_bytes=400, fsync=fsync)
    first = payload(0)
    assert backlog.append(first, 1)
    deleted = files(root)[0].parent
    shutil.rmtree(root)
    if begun == "where nothing waits":
        assert drain(backlog) == [first]
        backlog._next_renewal = 0.0
        assert backlog.take(7) is None
    later = [payload(number) for number in range(1, 8)]
    assert all(backlog.append(data, 1) for data in later)
    [told] = [record.message for record in caplog.records if "deleted or moved away" in record.message]
    assert told == f"the journal {deleted} was deleted or moved away, and goes on in {files(root)[-1].parent}"
    sibling = open_journal(root=root)
    assert sibling.take(7) is None  # it is held: its process lives
    backlog.close()
    sibling._orphans._next_look = 0.0
    assert drain(sibling)[-4:] == later[-4:]


def test_a_folder_that_somebody_deletes_before_it_is_flushed(
    open_journal: OpenJournal, tmp_path: Path
) -> None:
    """A service that has had nothing to store yet takes all the same what comes then, and the rest is in a folder."""
    root = tmp_path / "journal"
    backlog = open_journal(root=root, segment_bytes=400)
    shutil.rmtree(root)
    assert all(backlog.append(payload(number), 1) for number in range(8))
    assert files(root)


@pytest.mark.parametrize("renew", [0.0, journal.RENEW_INTERVAL_S])
@pytest.mark.parametrize("fsync", ["never", "always"])
def test_appended_while_read_back(
    open_journal: OpenJournal, fsync: Fsync, monkeypatch: pytest.MonkeyPatch, renew: float
) -> None:
    """Threads that append while the writer reads from disk, or begins segments, lose nothing, and keep their order."""
    monkeypatch.setattr(journal, "RENEW_INTERVAL_S", renew)
    backlog = open_journal(memory_records=10, segment_bytes=2000, fsync=fsync)
    amount = 60 if fsync == "always" else 300

    def work(part: int) -> None:
        for number in range(amount):
            assert backlog.append(b"[%d,%d]" % (part, number), 1)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    found: list[bytes] = []
    while any(thread.is_alive() for thread in threads) or backlog.pending:
        found.extend(drain(backlog))
    for part in range(4):
        mine = [data for data in found if data.startswith(b"[%d," % part)]
        assert mine == [b"[%d,%d]" % (part, number) for number in range(amount)]
    assert len(found) == 4 * amount


def test_a_living_process_is_left_alone(open_journal: OpenJournal) -> None:
    """The journal of a process that lives is its own."""
    first, second = open_journal(), open_journal()
    assert first.append(payload(1), 1)
    assert second.take(10) is None
    assert drain(first) == [payload(1)]


def test_closed_with_something_left(open_journal: OpenJournal) -> None:
    """What is not in the database at close is there for the next process, and for nobody else."""
    first = open_journal()
    first.append(payload(1), 1)
    first.append(payload(2), 1)
    first.close()
    assert not first.append(payload(3), 1)
    assert first.take(7) is None
    assert drain(open_journal()) == [payload(1), payload(2)]


def test_closed_twice(open_journal: OpenJournal) -> None:
    """The second time nothing happens: what the first has let go of may be another's by then. No thread is left."""
    before = set(threading.enumerate())
    backlog = open_journal(fsync="interval")
    threads = set(threading.enumerate()) - before
    backlog.close()
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(10)]
    backlog.close()
    for descriptor in others:
        os.close(descriptor)  # an error where it is closed
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert threads


def test_the_limit_of_the_journal(open_journal: OpenJournal) -> None:
    """A journal that has reached its size takes no more, says so, and takes again when there is room."""
    backlog = open_journal(journal_bytes=2000, segment_bytes=500)
    taken = 0
    while backlog.append(payload(taken), 1):
        taken += 1
    assert 10 < taken < 20
    assert backlog.size_bytes <= 2000
    assert backlog.error == "journal: its limit of 2000 bytes is reached"
    assert drain(backlog) == [payload(number) for number in range(taken)]
    assert backlog.append(payload(taken), 1)
    assert backlog.error is None


def test_other_files_in_the_folder_are_left_alone(open_journal: OpenJournal, tmp_path: Path) -> None:
    """A journal in a folder that holds other things touches none of them."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "00000001.segment").write_text("mine")
    (tmp_path / "journal-of-the-captain").mkdir()
    backlog = open_journal()
    assert drain(backlog) == []
    backlog.close()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        ".lock",
        "00000001.segment",
        "journal-of-the-captain",
        "photos",
    ]


def test_nothing_in_the_journal_is_readable_by_others(open_journal: OpenJournal, tmp_path: Path) -> None:
    """Segments and their folder belong to the service's user alone: they hold addresses and users."""
    open_journal().append(payload(1), 1)
    [path] = files(tmp_path)
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
