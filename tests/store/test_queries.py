"""The threads that read the database."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from service.store.queries import CAPACITY
from tests.store.conftest import OpenStore
from tests.store.harness import ask


def test_a_thread_that_does_not_start_takes_no_place(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the system has none to give: as soon as it has, what is asked then is answered."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    store = open_store()
    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", refuse)
        for _ in range(CAPACITY):
            with pytest.raises(RuntimeError):
                store.queries.submit(lambda connection: connection.scalar(sa.select(sa.literal(1))))
    assert ask(store, lambda connection: connection.scalar(sa.select(sa.literal(1)))) == 1
