"""What tests of journals share."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from service.store.backlog import Backlog
from service.store.journal import JournalBacklog
from service.store.reference import Model

MODEL = Model("v1", "emotion.onnx", ("happy", "sad"))

OpenJournal = Callable[..., JournalBacklog]

TIMEOUT = 30


def payload(number: int) -> bytes:
    return b'[{"n":%d,"pad":"%s"}]' % (number, b"x" * 80)


def drain(backlog: Backlog) -> list[bytes]:
    found: list[bytes] = []
    while (batch := backlog.take(7)) is not None:
        found.extend(batch.payloads)
        backlog.acknowledge(batch)
    return found


def files(root: Path) -> list[Path]:
    return sorted(root.glob("journal-*/*.segment"))


def fail(*_: object) -> int:
    """In place of a call of the system's."""
    raise OSError(errno.ENOSPC, "injected")


APPENDER = """
import os, signal, sys
from pathlib import Path
from service.store.journal import JournalBacklog
from service.store.reference import Model
backlog = JournalBacklog(Path(sys.argv[1]), Model("v1", "emotion.onnx", ("happy", "sad")), fsync="never")
for number in range(int(sys.argv[2])):
    assert backlog.append(b'[{"n":%d,"pad":"%s"}]' % (number, b"x" * 80), 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_after_appending(root: Path, count: int) -> Path:
    """A process appends and dies; its segment."""
    done = subprocess.run([sys.executable, "-c", APPENDER, root, str(count)], check=False)
    assert done.returncode == -9
    return files(root)[-1]
