"""With a journal: what ``record`` took is stored exactly once, whatever dies. ``VISIONAI_KILLS`` makes it longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa

from service.errors import StartupError
from service.store.schema import predictions_log
from tests.store.conftest import MakeRecord, OpenStore
from tests.store.harness import eventually, stored

KILLS = int(os.environ.get("VISIONAI_KILLS", "20"))

# Forks writers that record from two threads and note what was acknowledged; kills each with SIGKILL at a random
# instant of its life, every second once it records, two at a time so that the living take over from the dead.
KILLER = """
import os, random, signal, sys, threading, time, uuid
from datetime import UTC, datetime
from pathlib import Path
from service.store import PredictionRecord, Store

url, root, kills, fsync = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
labels = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")

def open_store():
    return Store.open(url, labels=labels, version_tag="v1", model_filename="emotion.onnx",
                      journal_dir=root / "journal", fsync=fsync)

def write():
    store = open_store()
    notes = os.open(root / f"acknowledged-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def work():
        while True:
            batch = [PredictionRecord(prediction_id=uuid.uuid4(), emotion=random.choice(labels), confidence=0.5,
                                      probabilities=(1 / 7,) * 7, processing_ms=0.7, timestamp=datetime.now(UTC),
                                      source_ip="192.0.2.1", request_id=None, user=None, face_index=0, face_box=None,
                                      detection_score=None) for _ in range(random.randint(1, 8))]
            assert store.record(batch)
            os.write(notes, b"".join(record["prediction_id"].bytes for record in batch))
            time.sleep(0.0005)

    for _ in range(2):
        threading.Thread(target=work).start()

def kill(child, number):
    notes = root / f"acknowledged-{child}"
    while number % 2 and not (notes.exists() and notes.stat().st_size):
        assert os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None, "a writer ended by itself"
        time.sleep(0.001)
    time.sleep(random.uniform(0.005, 0.3))
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, "a writer ended by itself"

alive = []
killer = os.getpid()
for number in range(kills):
    child = os.fork()
    if child == 0:
        write()
        while os.getppid() == killer:  # or it would go on for ever where the killer has failed
            time.sleep(0.1)
        os._exit(1)
    alive.append(child)
    if len(alive) == 2:
        kill(alive.pop(random.randrange(2)), number)
kill(*alive, kills)
"""


@pytest.mark.parametrize("fsync", ["interval", "always"])
def test_killed_at_any_instant(open_store: OpenStore, database_url: str, tmp_path: Path, fsync: str) -> None:
    """Of processes that are killed under load, every acknowledged prediction is in the table once."""
    open_store().close(timeout=5)
    arguments = [sys.executable, "-c", KILLER, database_url, str(tmp_path), str(KILLS), fsync]
    subprocess.run(arguments, check=True, timeout=60 + 10 * KILLS)

    last = open_store(journal_dir=tmp_path / "journal")
    assert last.close(timeout=60) == 0
    journal = tmp_path / "journal"
    assert [path.relative_to(journal) for path in journal.rglob("*")] == [Path(".lock")]

    notes = b"".join(path.read_bytes() for path in tmp_path.glob("acknowledged-*"))
    acknowledged = {UUID(bytes=notes[at : at + 16]) for at in range(0, len(notes), 16)}
    found = stored(database_url)
    assert len(acknowledged) >= KILLS // 2
    assert acknowledged - set(found) == set()
    assert len(found) == len(set(found))


def test_a_journal_that_cannot_be_written(open_store: OpenStore, tmp_path: Path) -> None:
    """A journal folder that cannot be used stops the start with one line that names the setting."""
    (tmp_path / "journal").touch()
    with pytest.raises(StartupError, match=r"cannot write a journal in .*journal: .*; check JOURNAL_DIR"):
        open_store(journal_dir=tmp_path / "journal")


def test_a_journal_that_can_be_written_later(
    open_store: OpenStore, make_record: MakeRecord, tmp_path: Path
) -> None:
    """A worker that is replaced while the journal has no room starts, and takes records once it has."""
    (tmp_path / "journal").touch()
    open_store().close(timeout=10)
    store = open_store(journal_dir=tmp_path / "journal", during_outage=True)
    assert not store.record([make_record()])
    assert (store.status().taking, store.status().last_error) == (False, "journal: File exists")
    (tmp_path / "journal").unlink()
    eventually(lambda: store.record([make_record()]))
    assert store.status().taking
    assert store.close(timeout=10) == 0
    assert store.status().written == 1


def test_lone_surrogates(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord, tmp_path: Path
) -> None:
    """A text that no encoding can hold is stored with a question mark, and stops nothing."""
    store = open_store(journal_dir=tmp_path / "journal")
    assert store.record([make_record(user="a\ud800b", request_id="half \udc00")])
    assert store.close(timeout=10) == 0
    assert store.status().written == 1
    with engine.connect() as connection:
        stored = connection.execute(sa.select(predictions_log.c.user_id, predictions_log.c.request_id)).one()
    assert tuple(stored) == ("a?b", "half ?")
