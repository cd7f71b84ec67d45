"""What requests are taken to cost, by what those before them took."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from service.engine import Engine
from service.errors import DeadlineExceeded, Overloaded
from service.executors import InlineExecutor, ThreadExecutors
from service.faces import Face, FaceDetector
from service.images.decode import ImageDecoder
from service.predictor import Predictor, Request
from tests.service.doubles import FaultyEngine, Inbox, Ledger, Peer, fail
from tests.service.harness import FACE
from tests.service.pictures import encode


def slow(engine: Engine, seconds: float) -> Any:
    """The engine, with runs that take so long at least."""

    def wait(_: npt.NDArray[np.uint8]) -> bool:
        time.sleep(seconds)
        return False

    return FaultyEngine(engine, wait)


async def test_an_image_that_cannot_be_read_says_nothing_of_those_that_can(engine: Engine) -> None:
    """They are taken to cost what they were before it."""
    inbox = Inbox()
    predictor = Predictor(engine, ImageDecoder(engine.card.shape, 50_000_000), Ledger())
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
    predictor = Predictor(engine, ImageDecoder(engine.card.shape, 50_000_000), Ledger(), Slow())
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
    predictor = Predictor(slow(engine, 0.005), ImageDecoder(engine.card.shape, 50_000_000), Ledger())
    options: dict[str, Any] = {
        "max_batch": 1,
        "capacity": 100,
        "max_wait": 0.1,
        "deliver": inbox.deliver,
        "on_failure": fail,
    }
    executors: InlineExecutor | ThreadExecutors
    if kind == "inline":
        executors = InlineExecutor(predictor, **options)
    else:
        executors = ThreadExecutors(predictor, count=1, **options)
        executors.start()
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
    predictor = Predictor(slow(engine, 0.01), ImageDecoder(engine.card.shape, 50_000_000), Ledger())
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
