"""What tests of journals share."""

from __future__ import annotations

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


def drain(backlog: Backlog, limit: int = 7) -> list[bytes]:
    found: list[bytes] = []
    while (batch := backlog.take(limit)) is not None:
        found.extend(batch.payloads)
        backlog.acknowledge(batch)
    return found


def files(root: Path) -> list[Path]:
    return sorted(root.glob("journal-*/*.segment"))
