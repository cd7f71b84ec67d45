"""What processes that died left: taken over whole, damaged, in part, or not yet."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.store import folders, segments
from service.store.framing import frame
from service.store.orphans import Orphans
from service.store.reference import Model
from tests.store.journals import MODEL, OpenJournal, drain, kill_after_appending, payload


def test_a_dead_process_is_replayed(open_journal: OpenJournal, tmp_path: Path) -> None:
    """What a process that died had appended is taken over, with the model it was made with, and then deleted."""
    kill_after_appending(tmp_path, 25)
    backlog = open_journal(Model("v2", "other.onnx", ("calm",)))
    batch = backlog.take(10)
    assert batch is not None
    assert batch.model == MODEL
    assert batch.count == 10
    assert backlog.pending == 25
    assert drain(backlog) == [payload(number) for number in range(25)]
    assert backlog.pending == 0
    assert len(list(tmp_path.glob("journal-*"))) == 1


def test_a_process_that_dies_shortly_before_another_ends(open_journal: OpenJournal, tmp_path: Path) -> None:
    """What it had appended is given out by the other that is to be closed, though that looked a moment ago."""
    backlog = open_journal()
    assert backlog.take(7) is None
    kill_after_appending(tmp_path, 3)
    assert backlog.take(7) is None
    backlog.seal()
    assert drain(backlog) == [payload(number) for number in range(3)]


def test_a_replay_that_is_cut_short_begins_again(open_journal: OpenJournal, tmp_path: Path) -> None:
    """Orphans whose new owner ends in the middle of them go to the next one, whole."""
    kill_after_appending(tmp_path, 5)
    first = open_journal()
    batch = first.take(2)
    assert batch is not None
    first.acknowledge(batch)
    first.close()
    assert drain(open_journal()) == [payload(number) for number in range(5)]


def test_a_torn_tail_at_every_byte(open_journal: OpenJournal, tmp_path: Path) -> None:
    """Wherever the last record of a dead process's journal is cut, every record before it is replayed."""
    segment = kill_after_appending(tmp_path, 3)
    data = segment.read_bytes()
    last = frame(payload(2), 1)
    assert data.endswith(last)
    for cut in range(1, len(last) + 1):
        # The folder is gone after each replay: a dead process's journal is made anew, held by nobody.
        segment.parent.mkdir(exist_ok=True)
        (segment.parent / ".lock").touch()
        segment.write_bytes(data[:-cut])
        backlog = open_journal(fsync="never")
        assert drain(backlog) == [payload(0), payload(1)]
        backlog.close()
        assert not segment.exists()
    assert list(tmp_path.glob("damaged-*")) == []


def test_damage_in_the_middle_is_reported(
    open_journal: OpenJournal, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A bad spot costs the record it is in, is logged as an error, and the file is kept for inspection by its owner."""
    segment = kill_after_appending(tmp_path, 3)
    data = bytearray(segment.read_bytes())
    data[data.index(payload(1)) + 5] ^= 0xFF
    segment.write_bytes(data)
    assert drain(open_journal()) == [payload(0), payload(2)]
    assert f"is damaged: {len(frame(payload(1), 1))} bytes" in caplog.text
    [copy] = tmp_path.glob("damaged-*")
    assert copy.read_bytes() == data
    assert copy.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "damage", ["a bit of the last record", "zeros behind half of it", "an older segment is cut"]
)
def test_damage_up_to_the_end_is_reported(
    open_journal: OpenJournal, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """Only what a process was writing when it died is left out without an error and a copy."""
    segment = kill_after_appending(tmp_path, 3)
    data = bytearray(segment.read_bytes())
    if damage == "a bit of the last record":
        data[-20] ^= 1
    elif damage == "zeros behind half of it":
        data[-20:] = bytes(4096)
    else:
        head = data[: data.index(frame(payload(0), 1))]
        segment.with_name("00000002.segment").write_bytes(head + frame(payload(3), 1))
        del data[-20:]
    segment.write_bytes(data)
    expected = [payload(0), payload(1)]
    if damage == "an older segment is cut":
        expected.append(payload(3))
    assert drain(open_journal()) == expected
    assert "is damaged" in caplog.text
    assert "unfinished" not in caplog.text
    [copy] = tmp_path.glob("damaged-*")
    assert copy.read_bytes() == data


def test_a_journal_of_another_format_is_left_alone(
    open_journal: OpenJournal, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A journal that a later release wrote is neither replayed nor deleted."""
    segment = kill_after_appending(tmp_path, 1)
    segment.write_bytes(frame(b'{"format":2}', 0) + frame(b"?", 1))
    backlog = open_journal()
    assert drain(backlog) == []
    assert "format 2 of the journal is not known" in caplog.text
    backlog.close()
    assert segment.exists()


def test_a_dead_processs_journal_that_cannot_be_read_for_a_while(
    open_journal: OpenJournal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is told once, fails as long as it fails, holds up no record, and is stored by whoever can read it first."""
    monkeypatch.setattr("service.store.orphans.LOOK_INTERVAL_S", 0.0)
    segment = kill_after_appending(tmp_path, 3)
    data = segment.read_bytes()
    segment.unlink()
    segment.mkdir()  # nobody can read it, not even root
    backlogs = [open_journal(), open_journal()]
    for backlog in backlogs:
        assert backlog.append(payload(9), 1)
        assert drain(backlog) == [payload(9)]
        assert str(backlog.error).startswith("journal: ")
    assert caplog.text.count(f"the journal {segment.parent} cannot be read, and is tried again") == 2
    segment.rmdir()
    segment.write_bytes(data)
    assert drain(backlogs[1]) == [payload(number) for number in range(3)]
    assert not segment.parent.exists()
    for backlog in backlogs:
        assert drain(backlog) == []
        assert backlog.error is None


def test_a_dead_processs_journal_that_can_be_read_in_part(open_journal: OpenJournal, tmp_path: Path) -> None:
    """What comes before the fault is stored, and deleted; the rest waits for a later look."""
    segment = kill_after_appending(tmp_path, 3)
    data = segment.read_bytes()
    second = segment.with_name("00000002.segment")
    backlog = open_journal()
    batch = backlog.take(7)
    second.mkdir()
    assert batch is not None
    backlog.acknowledge(batch)
    assert backlog.take(7) is None
    assert str(backlog.error).startswith("journal: ")
    assert not segment.exists()
    second.rmdir()
    second.write_bytes(data[: data.index(frame(payload(0), 1))] + frame(payload(3), 1))
    assert drain(open_journal()) == [payload(3)]


@pytest.mark.parametrize("segments", [1, 3])
def test_a_dead_processs_journal_that_cannot_be_deleted_for_a_while(
    open_journal: OpenJournal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    segments: int,
) -> None:
    """All of it is stored, once and by one process, which tells of it once and deletes it as soon as it can."""
    monkeypatch.setattr("service.store.orphans.LOOK_INTERVAL_S", 0.0)
    first = kill_after_appending(tmp_path, 3)
    head = first.read_bytes().partition(frame(payload(0), 1))[0]
    for number in range(2, segments + 1):
        first.with_name(f"{number:08d}.segment").write_bytes(head + frame(payload(number + 1), 1))
    expected = [payload(number) for number in range(segments + 2)]
    backlog, sibling = open_journal(), open_journal()
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.parent == first.parent:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        unlink(path, missing_ok)

    with monkeypatch.context() as context:
        context.setattr(Path, "unlink", refuse)
        assert drain(backlog) == expected
        assert (backlog.pending, backlog.error) == (0, None)
        assert (drain(backlog), drain(sibling)) == ([], [])
    assert len(list(first.parent.glob("*.segment"))) == segments
    [told] = [record.message for record in caplog.records]
    assert told.startswith(
        f"what is stored of the journal {first.parent} cannot be deleted, and is tried again: "
    )
    assert drain(sibling) == []
    assert first.exists()
    assert drain(backlog) == []
    assert not first.parent.exists()


def test_a_journal_with_a_damaged_head_behind_another_processs(
    open_journal: OpenJournal, tmp_path: Path
) -> None:
    """What its records were made with is not taken from the journal before it: they count as this process's."""
    kill_after_appending(tmp_path, 1)
    damaged = tmp_path / "journal-ffffffffffff" / "00000001.segment"
    damaged.parent.mkdir()
    damaged.write_bytes(b"no head" + frame(b'[{"emotion":"happy"}]', 1))
    ours = Model("v2", "other.onnx", MODEL.labels)
    backlog = open_journal(ours)
    for model in (MODEL, ours):
        batch = backlog.take(7)
        assert batch is not None
        assert batch.model == model
        backlog.acknowledge(batch)


def test_a_process_that_died_while_it_made_its_folder(open_journal: OpenJournal, tmp_path: Path) -> None:
    """A folder that a process had made, but not yet locked, when it died is removed."""
    (tmp_path / "journal-0123456789ab").mkdir()
    backlog = open_journal()
    assert drain(backlog) == []
    assert not (tmp_path / "journal-0123456789ab").exists()


def test_a_journal_that_cannot_be_opened_keeps_nobody_from_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What lies before and behind a bad entry is taken over, each look says nothing new, and no lock is lost."""
    for number in (1, 3):
        (tmp_path / f"journal-00000000000{number}").mkdir()
    bad = tmp_path / "journal-000000000002"
    bad.touch()  # a file: nobody can make a lock in it, not even root
    orphans = Orphans(tmp_path, MODEL)
    for _ in range(2):
        orphans.look()
        assert orphans.take(1) is None
        assert orphans.error == "journal: Not a directory"
    assert [path.name for path in tmp_path.glob("journal-*")] == [bad.name]
    assert caplog.text.count("cannot be taken over") == 1
    orphans.close()


def test_a_journal_that_cannot_be_read_keeps_nobody_from_the_others(
    open_journal: OpenJournal, tmp_path: Path
) -> None:
    """Of a later release's, one that cannot be read for a while and a sound one, the sound one is stored; the others
    are for other processes when this one closes.
    """
    segment = kill_after_appending(tmp_path, 1)
    data = segment.read_bytes()
    for number in range(3):
        (tmp_path / f"journal-00000000000{number}").mkdir()
    later, unreadable, sound = (folder / segment.name for folder in sorted(tmp_path.glob("journal-0000000*")))
    later.write_bytes(frame(b'{"format":2}', 0))
    unreadable.mkdir()
    sound.write_bytes(data)
    segment.unlink()
    backlog = open_journal()
    assert drain(backlog) == [payload(0)]
    assert later.exists()
    assert unreadable.exists()
    backlog.close()
    left, _ = folders.adopt(tmp_path, set())
    assert [folder.path for folder in left] == [later.parent, unreadable.parent]
    for folder in left:
        folder.release()


def test_a_journal_whose_files_cannot_be_listed_is_told_of(
    open_journal: OpenJournal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is not taken for an empty one."""
    segment = kill_after_appending(tmp_path, 1)
    listed = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path == segment.parent:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return listed(path)

    with monkeypatch.context() as context:
        context.setattr(Path, "iterdir", refuse)
        orphans = Orphans(tmp_path, MODEL)
        assert orphans.take(1) is None
        assert orphans.error == "journal: Permission denied"
        orphans.close()
    assert f"the journal {segment.parent} cannot be read, and is tried again" in caplog.text
    assert drain(open_journal()) == [payload(0)]


def test_records_that_could_not_be_read_for_a_while_are_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their journal is put back between being counted and being given out, and counted anew when it is read."""
    kill_after_appending(tmp_path, 3)
    orphans = Orphans(tmp_path, MODEL)
    orphans.look()
    assert orphans.pending == 3

    def refuse(_: Path) -> segments.Contents:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as context:
        context.setattr(segments, "read", refuse)
        context.setattr(orphans, "_next_look", float("inf"))
        assert orphans.take(1) is None
    assert orphans.error == f"journal: {os.strerror(errno.EIO)}"
    batch = orphans.take(7)
    assert batch is not None
    assert (batch.count, orphans.pending) == (3, 3)
    orphans.close()


def test_a_folder_of_journals_that_cannot_be_looked_through_is_told_of_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once while it lasts, and again when it comes back after a look that went well."""
    root = tmp_path / "root"
    orphans = Orphans(root, MODEL)
    for _ in range(2):
        orphans.look()
        orphans.look()
        root.mkdir()
        orphans.look()
        shutil.rmtree(root)
    assert caplog.text.count("cannot look for journals of other processes") == 2
    orphans.close()


def test_what_is_logged_is_no_content(
    open_journal: OpenJournal, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Taking over a journal logs how much it is and not what."""
    caplog.set_level(logging.DEBUG)
    kill_after_appending(tmp_path, 3)
    drain(open_journal())
    assert "taking over 3 records" in caplog.text
    assert "pad" not in caplog.text
