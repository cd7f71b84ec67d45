"""Slices of work in the event loop: what they mean for a deadline, and what lies between them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

from service.batching.executors import InlineExecutor, ThreadExecutors
from service.batching.predictor import Request
from service.errors import DeadlineExceeded, Overloaded
from tests.service.doubles import Inbox, Peer, fail
from tests.service.harness import TIMEOUT


class Steady:
    """Batches of which each request takes the same time, by a clock that only work and reading move."""

    def __init__(self, seconds: float) -> None:
        self.now = 1.0
        self.seconds = seconds
        self.free = threading.Event()
        self.free.set()

    def perf_counter(self) -> float:
        """The time."""
        return self.now

    def make_buffer(self, max_batch: int) -> npt.NDArray[np.uint8]:
        """Nothing is put into it."""
        return np.empty((max_batch, 0), np.uint8)

    def serve(self, requests: list[Request], buffer: npt.NDArray[np.uint8]) -> None:
        """Answer."""
        assert self.free.wait(TIMEOUT)
        for request in requests:
            request.started = self.now
            self.now += self.seconds
            request.decoded = self.now
            request.reply = b"{}"


def one_by_one(monkeypatch: pytest.MonkeyPatch, steady: Steady, inbox: Inbox) -> InlineExecutor:
    """An executor whose slices have one request, by the clock of `steady`."""
    monkeypatch.setattr("service.batching.executors.time", SimpleNamespace(perf_counter=steady.perf_counter))
    return InlineExecutor(
        steady, max_batch=1, capacity=100, max_wait=100.0, deliver=inbox.deliver, on_failure=fail
    )


@pytest.mark.parametrize(("slice_work", "is_refused"), [(0.5, True), (0.1, False)])
async def test_a_deadline_within_the_slice_is_refused_at_once(slice_work: float, is_refused: bool) -> None:
    """Replies go out when the slice is done, however soon a request has its turn in it."""
    executor = InlineExecutor(
        Steady(0.001),
        max_batch=1000,
        capacity=1000,
        max_wait=100.0,
        deliver=Inbox().deliver,
        on_failure=fail,
        slice_of=lambda _: slice_work,
    )
    busy = Peer()
    for number in range(400):
        executor.submit(Request(busy, number, b"image", 1.0))
    assert executor._queue.predicted_wait() > 0.3
    soon = Request(Peer(), 400, b"image", 1.0, deadline=1.2)
    if is_refused:
        with pytest.raises(DeadlineExceeded):
            executor.submit(soon)
    else:
        executor.submit(soon)
    assert executor.waiting == (400 if is_refused else 401)
    await executor.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Let the executors work until the condition holds."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0)


async def delivered(inbox: Inbox, count: int) -> None:
    """Let them work until so many replies are delivered."""
    await until(lambda: len(inbox.delivered) >= count)


async def wait_of_ten(monkeypatch: pytest.MonkeyPatch, work: float, reading: float) -> float:
    """The predicted wait of ten requests behind ten that were worked on, with so much reading between each two."""
    steady, inbox, loop = Steady(work), Inbox(), asyncio.get_running_loop()
    executor = one_by_one(monkeypatch, steady, inbox)
    for number in range(20):
        executor.submit(Request(Peer(), number, b"image", steady.now))

    def read() -> None:
        steady.now += reading
        if len(inbox.delivered) < 20:
            loop.call_soon(read)

    read()
    await delivered(inbox, 10)
    wait = executor._queue.predicted_wait()
    await executor.stop()
    return wait


async def test_what_is_read_between_two_slices_delays_those_that_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where reading takes as long as the work, the wait that is predicted is twice as long."""
    waits = [await wait_of_ten(monkeypatch, 0.025, reading) for reading in (0.0, 0.025)]
    assert waits == pytest.approx([0.25, 0.5], rel=0.01)


async def test_reading_a_burst_does_not_delay_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came at once has been read: the wait that is predicted for it is that of the work."""
    steady, inbox = Steady(0.025), Inbox()
    executor = one_by_one(monkeypatch, steady, inbox)
    client = Peer()
    for number in range(2):
        executor.submit(Request(client, number, b"image", steady.now))
    await delivered(inbox, 1)
    steady.now += 50 * 0.01
    for number in range(2, 52):
        executor.submit(Request(client, number, b"image", steady.now))
    await delivered(inbox, 2)
    assert executor._queue.predicted_wait() == pytest.approx(50 * 0.025, rel=0.25)
    await executor.stop()


async def test_the_time_between_two_slices_delays_nobody_where_nobody_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long a service had nothing to do: the wait that is predicted is that of the work."""
    steady, inbox = Steady(0.025), Inbox()
    executor = one_by_one(monkeypatch, steady, inbox)
    for number in range(20):
        executor.submit(Request(Peer(), number, b"image", steady.now))
        await delivered(inbox, number + 1)
        steady.now += 10.0
    executor.submit(Request(Peer(), 20, b"image", steady.now))
    assert executor._queue.predicted_wait() == pytest.approx(0.025)
    await executor.stop()


async def at_once(executor: InlineExecutor | ThreadExecutors, steady: Steady, count: int) -> float:
    """Submit so many before any of them is worked on; the wait that is predicted for them."""
    steady.free.clear()
    for number in range(count):
        executor.submit(Request(Peer(), number, b"image", steady.now))
    wait = executor._queue.predicted_wait()
    steady.free.set()
    return wait


async def after_a_quiet_time(
    executor: InlineExecutor | ThreadExecutors, steady: Steady, inbox: Inbox
) -> None:
    """Twenty at once, of a hundredth of a second each, and then a hundred alone, of three."""

    async def done(count: int) -> None:
        await delivered(inbox, count)
        await until(lambda: isinstance(executor, InlineExecutor) or executor._idle > 0)

    await at_once(executor, steady, 20)
    await done(20)
    steady.seconds = 0.03
    for number in range(20, 120):
        executor.submit(Request(Peer(), number, b"image", steady.now))
        await done(number + 1)
    assert executor._queue._pace == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["inline", "threads"])
async def test_a_quiet_time_makes_no_burst_wait_for_longer(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Alone a request takes three times as long as behind others; one burst teaches what the next will take.

    One that is alone is still priced as such: it would not be done in twice what it takes behind others.
    """
    steady, inbox = Steady(0.01), Inbox()
    executor: InlineExecutor | ThreadExecutors = one_by_one(monkeypatch, steady, inbox)
    if kind == "threads":
        executor = ThreadExecutors(
            steady, count=1, max_batch=1, capacity=100, max_wait=100.0, deliver=inbox.deliver, on_failure=fail
        )
        executor.start()
    await after_a_quiet_time(executor, steady, inbox)
    steady.now += 1.0
    with pytest.raises(DeadlineExceeded):
        executor.submit(Request(Peer(), 120, b"image", steady.now, steady.now + 0.02))
    assert 0.17 < await at_once(executor, steady, 20) < 0.3
    await executor.stop()


async def test_what_waits_is_priced_anew_as_behind_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst that takes twice as long as the last one did is not taken to be what came one by one in between."""
    steady, inbox = Steady(0.01), Inbox()
    executor = one_by_one(monkeypatch, steady, inbox)
    await after_a_quiet_time(executor, steady, inbox)
    steady.seconds = 0.02
    await at_once(executor, steady, 100)
    await until(lambda: executor.waiting <= 90)
    assert 90 * 0.015 < executor._queue.predicted_wait() < 90 * 0.02
    await executor.stop()


async def test_what_is_read_while_others_wait_may_have_come_as_the_slice_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long the reading takes: the event loop has not slept meanwhile."""
    steady, inbox = Steady(0.01), Inbox()
    executor = one_by_one(monkeypatch, steady, inbox)
    began = steady.now
    for number in range(2):
        executor.submit(Request(Peer(), number, b"image", began))
    await delivered(inbox, 1)
    steady.now += 0.1
    late = Request(Peer(), 2, b"image", steady.now, deadline=steady.now + 100.0)
    executor.submit(late)
    assert late.deadline == pytest.approx(began + 100.0)
    await executor.stop()


async def test_a_request_is_not_tried_for_what_others_make_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one that is late by its own price is: that others were worked on while it came says nothing of its price."""
    steady, inbox = Steady(0.0095), Inbox()
    executor = one_by_one(monkeypatch, steady, inbox)
    executor.submit(Request(Peer(), 0, b"image", steady.now, detect="always"))
    await delivered(inbox, 1)
    for number in range(1, 21):
        late = Request(Peer(), number, b"image", steady.now, deadline=steady.now + 0.01)
        with pytest.raises(DeadlineExceeded):  # half a millisecond is left, and its price is one
            executor.submit(late)
    await executor.stop()


async def test_what_a_request_overtakes_is_not_in_its_way() -> None:
    """A queue that is full of a camera's frame takes its newest."""
    executor = InlineExecutor(
        Steady(0.001), max_batch=1, capacity=1, max_wait=100.0, deliver=Inbox().deliver, on_failure=fail
    )
    first, newest = (Request(Peer(), number, b"image", 1.0) for number in range(2))
    executor.submit(first)
    with pytest.raises(Overloaded):
        executor.submit(newest)
    executor.submit(newest, first)
    assert executor.withdraw(first)
    assert executor.waiting == 1
    await executor.stop()
