"""Staying awake for a client that asks again at once."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable

import pytest

from service.batching import lingering as module
from service.batching.executors import InlineExecutor
from service.batching.lingering import LINGER, Lingering
from service.batching.predictor import Request
from service.engine import Engine
from tests.service.doubles import Inbox, Peer, fail, make_predictor
from tests.service.harness import FACE

# The clock of these tests is far ahead of the machine's, so that no moment passes by itself, however long what runs
# before them takes.
NOW = time.perf_counter() + 1e6


class Turns:
    """What the event loop has to call."""

    def __init__(self) -> None:
        self.ready: deque[Callable[[], None]] = deque()

    def pass_one(self) -> None:
        """Call what is ready, and not what that makes ready."""
        for _ in range(len(self.ready)):
            self.ready.popleft()()


def test_a_client_that_asks_again_at_once_is_waited_for_awake() -> None:
    """The loop polls after the reply until the next request, of whomever, is read."""
    turns, client = Turns(), Peer()
    lingering = Lingering(turns.ready.append)
    lingering.asked(client, NOW)
    lingering.answered(client, NOW)
    assert not turns.ready  # it is not known yet that it will
    lingering.asked(client, NOW + LINGER / 2)
    lingering.answered(client, NOW + LINGER)
    for _ in range(10):
        turns.pass_one()
        assert len(turns.ready) == 1
    lingering.asked(Peer(), NOW + LINGER)
    turns.pass_one()
    assert not turns.ready


def test_a_client_that_takes_its_time_is_not_waited_for() -> None:
    turns, client = Turns(), Peer()
    lingering = Lingering(turns.ready.append)
    for number in range(4):
        lingering.asked(client, NOW + number * 2 * LINGER)
        lingering.answered(client, NOW + number * 2 * LINGER)
    assert not turns.ready


def test_clients_in_turns_are_not_waited_for() -> None:
    """Where several ask, polling would take time from others and gain none."""
    turns, clients = Turns(), (Peer(), Peer())
    lingering = Lingering(turns.ready.append)
    for number in range(4):
        lingering.asked(clients[number % 2], NOW)
        lingering.answered(clients[number % 2], NOW)
    for _ in range(2):
        lingering.asked(clients[0], NOW)
        lingering.answered(None, NOW)  # in one batch
    assert not turns.ready


def test_polling_ends_by_itself() -> None:
    """A client that stops asking leaves the loop to sleep."""
    turns, client, past = Turns(), Peer(), time.perf_counter() - 1000.0
    lingering = Lingering(turns.ready.append)
    for _ in range(2):
        lingering.asked(client, past)
        lingering.answered(client, past)
    assert len(turns.ready) == 1
    turns.pass_one()
    assert not turns.ready


def test_a_client_is_waited_for_on_windows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which has no `sched_yield`: each reply to such a client ended in a traceback in the log."""
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.delattr("os.sched_yield")
    turns, client = Turns(), Peer()
    lingering = Lingering(turns.ready.append)
    for _ in range(2):
        lingering.asked(client, NOW)
        lingering.answered(client, NOW)
    for _ in range(2):
        turns.pass_one()
        assert len(turns.ready) == 1


def test_nobody_is_waited_for_who_has_gone() -> None:
    """Polling ends when its client leaves, and goes on when another does."""
    turns, client = Turns(), Peer()
    lingering = Lingering(turns.ready.append)
    for _ in range(2):
        lingering.asked(client, NOW)
        lingering.answered(client, NOW)
    lingering.stop(Peer())
    turns.pass_one()
    assert len(turns.ready) == 1
    lingering.stop(client)
    turns.pass_one()
    assert not turns.ready


async def test_an_executor_waits_awake_for_a_client_alone_until_it_leaves(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one that was answered by itself and asked again, and not for two in one batch; nor when it stops."""
    polls, sched_yield = 0, os.sched_yield

    def counted() -> None:
        nonlocal polls
        polls += 1
        sched_yield()

    async def polls_in_a_few_turns() -> int:
        before = polls
        for _ in range(4):
            await asyncio.sleep(0)
        return polls - before

    monkeypatch.setattr(os, "sched_yield", counted)
    monkeypatch.setattr(module, "LINGER", 1000.0)  # no moment passes by itself
    inbox, client = Inbox(), Peer()
    executor = InlineExecutor(
        make_predictor(engine),
        max_batch=8,
        capacity=100,
        max_wait=100.0,
        deliver=inbox.deliver,
        on_failure=fail,
        slice_of=lambda _: 1000.0,
    )

    async def ask(*clients: Peer) -> None:
        answered = len(inbox.delivered)
        for number, each in enumerate(clients, answered):
            executor.submit(Request(each, number, FACE, time.perf_counter()))
        await inbox.wait_for(answered + len(clients))

    await ask(client)
    assert not await polls_in_a_few_turns()  # it is not known yet that it will ask again
    await ask(client)
    assert await polls_in_a_few_turns()
    await ask(client, Peer())
    assert not await polls_in_a_few_turns()
    for _ in range(2):
        await ask(client)
    assert await polls_in_a_few_turns()
    executor.discard(client)
    assert not await polls_in_a_few_turns()
    for _ in range(2):
        await ask(client)
    assert await polls_in_a_few_turns()
    await executor.stop()
    assert not await polls_in_a_few_turns()
