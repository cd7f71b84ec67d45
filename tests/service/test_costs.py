"""What requests are taken to cost, by what those before them took."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from service.batching.costs import CostModel
from service.batching.executors import LONGEST_SLICE, InlineExecutor, ThreadExecutors
from service.batching.predictor import Predictor, Request
from service.batching.scheduler import HIGH, NORMAL
from service.engine import Engine
from service.errors import DeadlineExceeded, Overloaded
from service.faces import Face, FaceDetector
from tests.service.doubles import FaultyEngine, Inbox, Peer, fail, make_predictor
from tests.service.harness import FACE, TIMEOUT
from tests.service.pictures import encode


def slow(engine: Engine, seconds: float) -> Any:
    """The engine, with runs that take so long at least."""

    def wait(_: npt.NDArray[np.uint8]) -> bool:
        time.sleep(seconds)
        return False

    return FaultyEngine(engine, wait)


def stalling(engine: Engine, stalls: Iterator[float]) -> Any:
    """The engine, with first runs that take so long at least."""

    def wait(_: npt.NDArray[np.uint8]) -> bool:
        time.sleep(next(stalls, 0.0))
        return False

    return FaultyEngine(engine, wait)


def make(kind: str, predictor: Predictor, inbox: Inbox, **options: Any) -> InlineExecutor | ThreadExecutors:
    """Executors of a kind, started."""
    chosen: dict[str, Any] = {
        "max_batch": 1,
        "capacity": 100,
        "max_wait": 100.0,
        "deliver": inbox.deliver,
        "on_failure": fail,
    } | options
    if kind == "inline":
        return InlineExecutor(predictor, **chosen)
    threads = ThreadExecutors(predictor, count=1, **chosen)
    threads.start()
    return threads


async def test_an_image_that_cannot_be_read_says_nothing_of_those_that_can(engine: Engine) -> None:
    """They are taken to cost what they were before it."""
    inbox = Inbox()
    predictor = make_predictor(engine)
    executor = InlineExecutor(
        predictor, max_batch=1, capacity=100, max_wait=100.0, deliver=inbox.deliver, on_failure=fail
    )
    costs = []
    for number, image in enumerate((bytes(len(FACE)), FACE)):
        request = Request(Peer(), number, image, time.perf_counter())
        executor.submit(request)
        costs.append(request.cost)
        await inbox.wait_for(number + 1)
    assert costs[1] == costs[0] > 0


async def test_a_search_that_finds_no_face_counts_as_work(engine: Engine) -> None:
    """Of frames without a face, too, those are refused that would be done after their deadline."""

    class Slow(FaceDetector):
        def __init__(self) -> None:
            pass

        def detect(self, image: npt.NDArray[np.uint8], max_faces: int) -> list[Face]:
            time.sleep(0.01)
            return []

    inbox, empty = Inbox(), encode(np.zeros((120, 120), np.uint8), ".png")
    predictor = make_predictor(engine, detector=Slow())
    executor = InlineExecutor(
        predictor, max_batch=1, capacity=100, max_wait=100.0, deliver=inbox.deliver, on_failure=fail
    )

    def frame(number: int, **fields: Any) -> Request:
        return Request(Peer(), number, empty, time.perf_counter(), detect="always", **fields)

    for number in range(10):
        executor.submit(frame(number))
    assert {reply["code"] for reply in await inbox.wait_for(10)} == {"no_face"}
    for number in range(10):
        executor.submit(frame(number))
    with pytest.raises(DeadlineExceeded):
        executor.submit(frame(10, deadline=time.perf_counter() + 0.05))
    await inbox.wait_for(20)


@pytest.mark.parametrize("kind", ["inline", "threads"])
async def test_work_that_is_done_makes_nobody_wait(engine: Engine, kind: str) -> None:
    """Requests one after the other are all admitted, however many, where far fewer at once would be too many."""
    inbox = Inbox()
    predictor = make_predictor(slow(engine, 0.005))
    executors = make(kind, predictor, inbox, max_wait=0.1)
    for number in range(100):
        executors.submit(Request(Peer(), number, FACE, time.perf_counter()))
        await inbox.wait_for(number + 1)
    with pytest.raises(Overloaded):
        for number in range(100):
            executors.submit(Request(Peer(), number, FACE, time.perf_counter()))
    await executors.stop()


async def test_a_newcomer_has_its_turn_though_others_were_taken_for_cheap(engine: Engine) -> None:
    """What waits when it is learnt what such a request takes counts as much from then on, as what comes later."""
    inbox = Inbox()
    predictor = make_predictor(slow(engine, 0.01))
    executor = InlineExecutor(
        predictor, max_batch=1, capacity=100, max_wait=100.0, deliver=inbox.deliver, on_failure=fail
    )
    clients = [Peer() for _ in range(5)]
    for number in range(50):
        executor.submit(Request(clients[number % 5], number, FACE, time.perf_counter()))
    while not inbox.delivered:
        await asyncio.sleep(0)
    executor.submit(Request(Peer(), 50, FACE, time.perf_counter()))
    await inbox.wait_for(51)
    answered = [request.id for request in inbox.delivered]
    assert answered.index(50) < 15


def test_the_cost_of_a_kind_and_size_is_learnt() -> None:
    """A prediction follows what was observed for sizes alike, and takes the nearest size for one not seen."""
    model = CostModel()
    assert model.predict("crop", 1000) > 0
    for _ in range(100):
        model.observe([("crop", 1000, 0.0005)])
        model.observe([("crop", 1_000_000, 0.02)])
        model.observe([("photo", 1000, 0.1)])
    assert model.predict("crop", 1023) == pytest.approx(0.0005)
    assert model.predict("crop", 900_000) == pytest.approx(0.02)
    assert model.predict("crop", 10) == pytest.approx(0.0005)
    assert model.predict("crop", 50_000_000) == pytest.approx(0.02)
    assert model.predict("photo", 1000) == pytest.approx(0.1)
    for _ in range(100):
        model.observe([("crop", 1000, 0.001)])
    assert model.predict("crop", 1000) == pytest.approx(0.001, rel=0.01)
    model.observe([("crop", 1000, 10.0)])  # a machine that stood still for ten seconds
    assert model.predict("crop", 1000) < 0.0014


def test_a_batch_that_was_held_up_counts_as_one() -> None:
    """However many its requests are, and for however long: those that wait are not taken to wait for so long each."""
    model = CostModel()
    for _ in range(100):
        model.observe([("crop", 1000, 0.001)])
    model.observe([("crop", 1000, 0.1)] * 16)
    assert model.predict("crop", 1000) == pytest.approx(0.0025)
    for _ in range(5):
        model.observe([("crop", 1000, 0.001)] * 16)
    assert model.predict("crop", 1000) < 0.0011
    model.observe([("crop", 1000, 0.002), ("crop", 900, 0.001), ("photo", 1000, 0.1)])
    assert model.predict("crop", 1000) == pytest.approx(0.001 + 0.2 * 0.0005, rel=0.05)
    assert model.predict("photo", 1000) == pytest.approx(0.1)


def test_what_is_far_from_what_was_predicted_is_news() -> None:
    """Once: what waits need not be priced anew with every request that takes a little more, or less."""
    model = CostModel()
    assert model.observe([("photo", 1000, 0.01)])  # where the first guess was a millisecond
    assert not any(model.observe([("photo", 1000, seconds)]) for seconds in [0.009, 0.01, 0.011] * 10)
    assert sum(model.observe([("photo", 1000, 0.02)]) for _ in range(50)) == 1
    assert not model.observe([("photo", 100_000, 0.02)])  # as one of the nearest size
    assert model.observe([("photo", 10, 0.001)])


def test_a_quiet_time_makes_no_backlog_dear() -> None:
    """What waits behind others is priced as such were, not as those that had the machine wake up for them."""
    model = CostModel()
    for _ in range(20):
        model.observe([("crop", 1000, 0.001)] * 8, behind=True)
    for _ in range(1000):
        assert not model.observe([("crop", 1000, 0.003)])  # what would wait is to cost what it did
    assert model.predict("crop", 1000) == pytest.approx(0.003)
    assert model.predict("crop", 1000, behind=True) == pytest.approx(0.001)
    assert model.predict("crop", 100_000, behind=True) == pytest.approx(0.003)


def test_what_was_dear_in_a_backlog_is_not_for_ever() -> None:
    """Of a machine that was slow in the last one, and is no longer, those tell that came one by one since."""
    model = CostModel()
    for seconds, behind in ((0.1, True), (0.002, False)):
        for _ in range(100):
            model.observe([("crop", 1000, seconds)], behind)
    assert model.predict("crop", 1000, behind=True) == pytest.approx(0.002, rel=0.01)


def test_a_backlog_that_takes_longer_than_the_last_is_soon_found_out() -> None:
    """Within a few batches, of which the first is news: what waits is priced anew."""
    model = CostModel()
    for seconds, behind in ((0.001, True), (0.009, False)):
        for _ in range(100):
            model.observe([("crop", 1000, seconds)] * 8, behind)
    assert model.observe([("crop", 1000, 0.009)] * 8, behind=True)
    assert model.predict("crop", 1000, behind=True) == pytest.approx(0.0025)  # it may have been held up
    for _ in range(5):
        model.observe([("crop", 1000, 0.009)] * 8, behind=True)
    assert model.predict("crop", 1000, behind=True) > 0.008


def refused_until_tried(model: CostModel) -> int:
    """How many are turned away before one is let in for nothing."""
    for refused in range(100):
        if model.is_tried("crop", 1000):
            return refused
    raise AssertionError("none is ever tried")


def test_a_price_that_turns_everybody_away_is_put_to_the_test() -> None:
    """The third is tried, and what it takes is believed if it is less; then all are let in."""
    model = CostModel()
    model.observe([("crop", 1000, 0.4)])
    model.observe([("crop", 1000, 0.4)])
    assert refused_until_tried(model) == 2
    model.observe([("crop", 1000, 0.001)])
    assert model.predict("crop", 1000) == pytest.approx(0.001)


def test_a_price_that_proves_right_is_put_to_the_test_ever_less_often() -> None:
    """What is run for nobody is one of many; and there is no end to trying."""
    model = CostModel()
    tries = []
    for _ in range(6):
        model.observe([("crop", 1000, 0.4)])
        tries.append(refused_until_tried(model))
    assert tries == [2, 4, 8, 16, 16, 16]
    assert model.predict("crop", 1000) == pytest.approx(0.4)


def test_a_price_that_is_a_little_too_high_has_proved_right() -> None:
    """It is put to the test no more often for it."""
    model = CostModel()
    tries = []
    for seconds in (0.4, 0.38, 0.36):
        model.observe([("crop", 1000, seconds)])
        tries.append(refused_until_tried(model))
    assert tries == [2, 4, 8]


def test_a_try_that_takes_longer_is_believed_no_more_than_others() -> None:
    """It may have been held up: a price is only ever lowered to what one took."""
    model = CostModel()
    for seconds in (0.001, 0.1):
        model.observe([("crop", 1000, seconds)])
    assert model.predict("crop", 1000) == pytest.approx(0.0013)


def test_a_price_that_has_proved_wrong_is_put_to_the_test_as_one_that_is_new() -> None:
    """However often it had proved right before: after two that it turns away."""
    model = CostModel()
    for _ in range(3):
        model.observe([("crop", 1000, 0.4)])
        refused_until_tried(model)
    model.observe([("crop", 1000, 0.001)])
    while model.predict("crop", 1000) < 0.3:
        model.observe([("crop", 1000, 0.4)])
    assert refused_until_tried(model) == 2


def test_only_one_try_is_believed() -> None:
    """Where the price proves right what takes less afterwards counts as any other does."""
    model = CostModel()
    for seconds in (0.4, 0.39, 0.001):
        model.observe([("crop", 1000, seconds)])
    assert model.predict("crop", 1000) == pytest.approx(0.9 * 0.39, rel=0.01)


def test_the_first_of_its_size_is_not_believed_where_the_second_takes_less() -> None:
    """It may have been cold, or the machine stood still; the third counts as any other."""
    model = CostModel()
    for seconds in (0.4, 0.001, 0.0001):
        model.observe([("crop", 1000, seconds)])
    assert model.predict("crop", 1000) == pytest.approx(0.0009, rel=0.02)


@pytest.mark.parametrize("priority", [HIGH, NORMAL])
@pytest.mark.parametrize("kind", ["inline", "threads"])
async def test_one_wrong_prediction_turns_away_only_a_few(engine: Engine, kind: str, priority: int) -> None:
    """A stall while the first of its kind was worked on: an idle service finds out that it can do it after all."""
    stalls = iter([1.0])
    inbox = Inbox()
    predictor = make_predictor(stalling(engine, stalls))
    executors = make(kind, predictor, inbox)
    executors.submit(Request(Peer(), 0, FACE, time.perf_counter()))
    await inbox.wait_for(1)
    # What came while the machine stood still has waited as long, and is refused for that.
    await asyncio.sleep(0.01)
    for number in range(1, 31):
        now = time.perf_counter()
        try:
            executors.submit(Request(Peer(), number, FACE, now, deadline=now + 0.9, priority=priority))
        except DeadlineExceeded as exc:
            late = Request(Peer(), number, FACE, now)
            late.fail(exc)
            inbox.deliver([late])
        await inbox.wait_for(number + 1)
        while isinstance(executors, ThreadExecutors) and not executors._idle:
            await asyncio.sleep(0)  # a thread learns what it took when it has answered
    codes = [reply.get("code") for reply in await inbox.wait_for(31)]
    assert codes.count("deadline_exceeded") == 2
    assert codes.count(None) == 29
    await executors.stop()


@pytest.mark.parametrize(("longest", "size"), [(LONGEST_SLICE, 1), (math.inf, 4)])
async def test_nobody_waits_for_the_rest_of_a_costly_batch(engine: Engine, longest: float, size: int) -> None:
    """A thread takes at once what a slice allows, one request at least; for a GPU all that there is room for.

    So it does after many that came alone, between which it had nothing to do.
    """
    free = threading.Event()

    def wait(_: npt.NDArray[np.uint8]) -> bool:
        time.sleep(0.02)
        assert free.wait(TIMEOUT)
        return False

    inbox = Inbox()
    held: Any = FaultyEngine(engine, wait)
    predictor = make_predictor(held)
    executors = make("threads", predictor, inbox, max_batch=4, longest=longest)
    free.set()
    for number in range(5):
        executors.submit(Request(Peer(), number, FACE, time.perf_counter()))
        await inbox.wait_for(number + 1)
    free.clear()
    executors.submit(Request(Peer(), 5, FACE, time.perf_counter()))
    async with asyncio.timeout(TIMEOUT):
        while executors.waiting:
            await asyncio.sleep(0)
    for number in range(6, 10):
        executors.submit(Request(Peer(), number, FACE, time.perf_counter()))
    free.set()
    replies = await inbox.wait_for(10)
    assert {reply["timing"]["batch_size"] for reply in replies[6:]} == {size}
    await executors.stop()
