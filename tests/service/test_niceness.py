"""Threads that give way to the event loops."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from service.processes.niceness import give_way


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_a_thread_gives_way_in_a_service_that_is_nice_itself() -> None:
    """By as much as in another: it was as nice as the event loops where a unit's `Nice=` was what it was made."""
    found: list[int] = []

    def give_way_and_tell() -> None:
        give_way(5)
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    def be_the_service() -> None:
        os.nice(5)  # this thread alone, and what it starts
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        thread = threading.Thread(target=give_way_and_tell)
        thread.start()
        thread.join()

    service = threading.Thread(target=be_the_service)
    service.start()
    service.join()
    before, after = found
    assert after == min(before + 5, 19)
