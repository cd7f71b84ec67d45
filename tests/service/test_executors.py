"""Executors of both kinds: every request gets exactly one answer, whatever fails round it."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from service.batching.executors import InlineExecutor, ThreadExecutors, slice_seconds
from service.batching.predictor import Predictor, Request
from service.engine import Engine
from service.errors import Internal, Overloaded, ShuttingDown
from service.store.records import PredictionRecord
from tests.service.doubles import FaultyEngine, Inbox, Ledger, Peer, fail, make_predictor
from tests.service.harness import FACE, TIMEOUT
from tests.service.pictures import encode


@dataclass
class Bench:
    """Executors with what they need, and where their answers go."""

    executors: InlineExecutor | ThreadExecutors
    inbox: Inbox
    ledger: Ledger
    failures: list[BaseException]

    def start(self) -> None:
        """Start the threads; an event loop that works inline is running already."""
        if isinstance(self.executors, ThreadExecutors):
            self.executors.start()

    def submit(self, number: int, image: bytes = FACE, client: Peer | None = None, **fields: Any) -> Request:
        """Submit one image."""
        request = Request(client or Peer(), number, image, time.perf_counter(), **fields)
        self.executors.submit(request)
        return request


OpenBench = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.fixture(params=["inline", "threads"])
def bench(request: pytest.FixtureRequest, engine: Engine) -> OpenBench:
    """Executors of either kind for one test; stopped at its end."""

    @asynccontextmanager
    async def opened(
        model: Any = engine, ledger: Ledger | None = None, start: bool = True, **options: Any
    ) -> AsyncIterator[Bench]:
        inbox, ledger, failures = Inbox(), ledger or Ledger(), list[BaseException]()
        predictor = make_predictor(model, ledger)
        count = options.pop("count", 2)
        chosen: dict[str, Any] = {
            "max_batch": 8,
            "capacity": 10_000,
            "max_wait": 100.0,
            "deliver": inbox.deliver,
            "on_failure": failures.append,
        } | options
        executors: InlineExecutor | ThreadExecutors
        # Batches do not depend on how fast this machine is just now.
        if request.param == "inline":
            executors = InlineExecutor(predictor, **{"slice_of": lambda _: math.inf} | chosen)
        else:
            executors = ThreadExecutors(predictor, count=count, **{"longest": math.inf} | chosen)
        at = Bench(executors, inbox, ledger, failures)
        if start:
            at.start()
        yield at
        await executors.stop()

    return opened


async def test_every_request_is_answered_and_recorded_once(bench: OpenBench) -> None:
    """As many answers as requests, as many records as predictions, with matching ids."""
    async with bench() as at:
        for number in range(200):
            at.submit(number)
        replies = await at.inbox.wait_for(200)
    assert [reply["id"] for reply in replies] == list(range(200))
    assert {reply["emotion_name"] for reply in replies} == {"happy"}
    recorded = {str(record["prediction_id"]) for record in at.ledger.records}
    assert recorded == {reply["prediction_id"] for reply in replies}
    assert len(at.ledger.records) == 200


async def test_requests_that_wait_together_run_together(bench: OpenBench) -> None:
    """Requests that piled up before an executor was free share a run of the model, at most max_batch of them."""
    async with bench(start=False, count=1, max_batch=4) as at:
        for number in range(10):
            at.submit(number)
        at.start()
        replies = await at.inbox.wait_for(10)
    assert [reply["timing"]["batch_size"] for reply in replies] == [4] * 8 + [2] * 2


async def test_a_record_holds_what_was_answered(bench: OpenBench) -> None:
    """Emotion, confidence, probabilities, request id and address, as the client was told."""
    async with bench() as at:
        at.submit(7, client=Peer("10.1.2.3"))
        (reply,) = await at.inbox.wait_for(1)
    (record,) = at.ledger.records
    assert record["emotion"] == reply["emotion_name"]
    assert record["confidence"] == reply["confidence"]
    assert list(record["probabilities"]) == list(reply["probabilities"].values())
    assert record["request_id"] == "7"
    assert record["source_ip"] == "10.1.2.3"
    assert record["timestamp"].tzinfo is not None


async def test_a_prediction_that_the_store_refuses_is_answered_without_an_id(bench: OpenBench) -> None:
    """The client is served, and told by a null id that nothing was stored."""
    async with bench(ledger=Ledger(accepts=False)) as at:
        at.submit(1)
        (reply,) = await at.inbox.wait_for(1)
    assert reply["status"] == "success"
    assert reply["prediction_id"] is None


async def test_an_image_that_fails_in_the_model_does_not_fail_its_batch(
    bench: OpenBench, engine: Engine
) -> None:
    """A run that raises is repeated one by one; only the culprit is answered `internal`."""
    poison = encode(np.full((64, 64), 255, np.uint8), ".png")
    faulty = FaultyEngine(engine, lambda images: bool((images == 255).all(axis=(1, 2, 3)).any()))
    async with bench(faulty, start=False, count=1) as at:
        for number in range(6):
            at.submit(number, poison if number == 3 else FACE)
        at.start()
        replies = await at.inbox.wait_for(6)
        assert [reply["type"] for reply in replies] == ["prediction"] * 3 + ["error"] + ["prediction"] * 2
        assert replies[3]["code"] == "internal"
        at.submit(6)
        assert (await at.inbox.wait_for(7))[-1]["type"] == "prediction"
    assert not at.failures
    assert len(at.ledger.records) == 6


async def test_an_image_that_is_answered_with_no_numbers_does_not_fail_its_batch(
    bench: OpenBench, engine: Engine
) -> None:
    """One answer of the run is not finite: it is `internal`, is not stored, and the others are predictions."""
    spoilt = iter([math.nan, math.inf])

    class Unsure(Engine):
        def __init__(self) -> None:
            self.card = engine.card

        def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            rows = engine.run(images).copy()
            rows[1, 3] = next(spoilt)
            return rows

    async with bench(Unsure(), start=False, count=1, max_batch=3) as at:
        for number in range(6):
            at.submit(number)
        at.start()
        replies = await at.inbox.wait_for(6)
    assert [reply.get("code") for reply in replies] == [None, "internal", None] * 2
    assert len(at.ledger.records) == 4


async def test_a_failing_store_does_not_leave_clients_waiting(bench: OpenBench) -> None:
    """An exception where none is expected is answered `internal`, and the executor goes on."""

    class Broken(Ledger):
        def record(self, records: Sequence[PredictionRecord]) -> bool:
            if any(record["request_id"] == "0" for record in records):
                raise RuntimeError("injected")
            return super().record(records)

    async with bench(ledger=Broken(), count=1, max_batch=1) as at:
        at.submit(0)
        at.submit(1)
        replies = await at.inbox.wait_for(2)
    assert replies[0]["code"] == "internal"
    assert replies[1]["status"] == "success"
    assert not at.failures


async def test_an_executor_that_fails_leaves_nobody_waiting(
    bench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it held and what waited is answered `internal`, its owner is told, and nothing more is admitted."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    async with bench(start=False, count=1, max_batch=2) as at:
        for number in range(5):
            at.submit(number)

        def explode(*_: object) -> None:
            raise MemoryError("injected")

        monkeypatch.setattr(Predictor, "serve", explode)
        at.start()
        assert {reply["code"] for reply in await at.inbox.wait_for(5)} == {"internal"}
        async with asyncio.timeout(TIMEOUT):
            while not at.failures:
                await asyncio.sleep(0)
        assert [type(failure) for failure in at.failures] == [MemoryError]
        with pytest.raises(ShuttingDown):
            at.submit(5)


@pytest.mark.parametrize("bench", ["threads"], indirect=True)
async def test_a_thread_that_has_no_memory_to_begin_with_leaves_nobody_waiting(
    bench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is answered `internal`, and its owner is told, as where it fails later."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def refuse(*_: object) -> None:
        raise MemoryError("injected")

    monkeypatch.setattr(Predictor, "make_buffer", refuse)
    async with bench(start=False, count=1) as at:
        at.submit(0)
        at.start()
        assert [reply["code"] for reply in await at.inbox.wait_for(1)] == ["internal"]
        async with asyncio.timeout(TIMEOUT):
            while not at.failures:
                await asyncio.sleep(0)
        assert [type(failure) for failure in at.failures] == [MemoryError]


@pytest.mark.parametrize("bench", ["threads"], indirect=True)
async def test_a_thread_that_fails_takes_only_its_batch_with_it(
    bench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other thread goes on with what waits."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    async with bench(start=False, count=2, max_batch=1) as at:
        serve = Predictor.serve

        def explode_once(
            predictor: Predictor, requests: list[Request], buffer: npt.NDArray[np.uint8]
        ) -> None:
            if requests[0].id == 0:
                raise MemoryError("injected")
            serve(predictor, requests, buffer)

        monkeypatch.setattr(Predictor, "serve", explode_once)
        for number in range(20):
            at.submit(number)
        at.start()
        replies = await at.inbox.wait_for(20)
        assert replies[0]["code"] == "internal"
        assert {reply["type"] for reply in replies[1:]} == {"prediction"}


async def test_what_a_thread_answers_while_the_event_loop_looks_is_delivered(engine: Engine) -> None:
    """Also where it comes right after the look that found nothing more."""
    inbox = Inbox()
    predictor = make_predictor(engine)
    executors = ThreadExecutors(
        predictor,
        count=1,
        max_batch=1,
        capacity=10,
        max_wait=100.0,
        deliver=inbox.deliver,
        on_failure=fail,
    )
    answered = [Request(Peer(), number, FACE, 0.0) for number in range(2)]
    for request in answered:
        request.fail(Internal("injected"))

    class Raced(deque[list[Request]]):
        def __bool__(self) -> bool:
            found = len(self) > 0
            if not found and answered:
                executors._hand_over([answered.pop()])
            return found

    executors._answered = Raced()
    executors._hand_over([answered.pop()])
    assert [reply["code"] for reply in await inbox.wait_for(2)] == ["internal"] * 2


async def test_an_expired_request_is_answered_without_being_run(bench: OpenBench) -> None:
    """Its deadline passed in the queue: no inference, no record."""
    async with bench(start=False) as at:
        late = at.submit(1, deadline=time.perf_counter() + 600.0)
        late.deadline = time.perf_counter()
        at.start()
        (reply,) = await at.inbox.wait_for(1)
    assert reply["code"] == "deadline_exceeded"
    assert not at.ledger.records


async def test_the_event_loop_is_not_held_up_by_a_backlog(engine: Engine) -> None:
    """Between two slices of work the loop turns, however much waits: each slice is one request where time is short."""
    inbox, turns = Inbox(), 0
    predictor = make_predictor(engine)
    executor = InlineExecutor(
        predictor,
        max_batch=8,
        capacity=100,
        max_wait=100.0,
        deliver=inbox.deliver,
        on_failure=fail,
        slice_of=lambda _: 1e-6,
    )
    for number in range(20):
        executor.submit(Request(Peer(), number, FACE, time.perf_counter()))
    while len(inbox.delivered) < 20:
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 20
    assert {reply["timing"]["batch_size"] for reply in await inbox.wait_for(20)} == {1}


def test_a_slice_is_half_of_a_round_within_bounds() -> None:
    """When few clients wait the network is looked at every 1.5 ms, when many do every 8 ms at most."""
    assert [slice_seconds(each) for each in (0.0, 0.001, 0.004, 0.010, 0.016, 10.0)] == [
        0.0015, 0.0015, 0.002, 0.005, 0.008, 0.008,
    ]  # fmt: skip


async def test_a_deadline_counts_from_when_a_request_may_have_arrived(engine: Engine) -> None:
    """What is read right after a slice may have waited through all of it, unread."""
    inbox = Inbox()
    predictor = make_predictor(engine)
    executor = InlineExecutor(
        predictor, max_batch=1, capacity=100, max_wait=100.0, deliver=inbox.deliver, on_failure=fail
    )
    for number in range(2):
        executor.submit(Request(Peer(), number, FACE, time.perf_counter()))
    await asyncio.sleep(0)  # the first is worked on, the second waits
    (first,) = inbox.delivered
    now = time.perf_counter()
    late = Request(Peer(), 2, FACE, now, deadline=now + 100.0)
    executor.submit(late)
    assert late.deadline is not None
    assert late.deadline <= now + 100.0 - (first.decoded - first.started)
    await inbox.wait_for(3)
    await asyncio.sleep(0.01)
    now = time.perf_counter()
    idle = Request(Peer(), 3, FACE, now, deadline=now + 100.0)
    executor.submit(idle)
    assert idle.deadline == now + 100.0  # nothing was worked on: it was read as it came
    await inbox.wait_for(4)


async def test_a_full_queue_refuses(bench: OpenBench) -> None:
    """What does not fit is told so at once."""
    async with bench(start=False, capacity=3) as at:
        for number in range(3):
            at.submit(number)
        with pytest.raises(Overloaded) as caught:
            at.submit(3)
        assert caught.value.retry_after_ms is not None
        at.start()
        await at.inbox.wait_for(3)


async def test_what_a_gone_client_left_is_not_run(bench: OpenBench) -> None:
    """Discarded requests cost nothing and are not answered."""
    gone = Peer()
    async with bench(start=False) as at:
        for number in range(5):
            at.submit(number, client=gone)
        at.submit(5)
        assert at.executors.discard(gone) == 5
        at.start()
        assert [reply["id"] for reply in await at.inbox.wait_for(1)] == [5]


async def test_stopping_answers_what_still_waits(bench: OpenBench) -> None:
    """No request hangs at shutdown, and none is admitted after it."""
    async with bench(start=False) as at:
        for number in range(4):
            at.submit(number)
        await at.executors.stop()
        assert {reply["code"] for reply in await at.inbox.wait_for(4)} == {"shutting_down"}
        # They live on until their turn to be sent, which may be behind others; their images may be megabytes.
        assert not any(request.image for request in at.inbox.delivered)
        with pytest.raises(ShuttingDown):
            at.submit(9)


async def test_bursts_and_pauses_lose_nothing(bench: OpenBench) -> None:
    """Idle executors are woken for each request, however submissions and answers interleave."""
    async with bench(count=3) as at:
        submitted = 0
        for burst in (1, 5, 1, 40, 2, 100, 1, 50):
            for _ in range(burst):
                at.submit(submitted)
                submitted += 1
            await at.inbox.wait_for(submitted) if burst % 2 else await asyncio.sleep(0)
        assert [reply["id"] for reply in await at.inbox.wait_for(submitted)] == list(range(submitted))
