"""Executors: every request gets exactly one answer, whatever fails round it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pytest

from service.engine import Engine
from service.errors import Overloaded, ShuttingDown
from service.executors import Executors, Request
from service.images.decode import ImageDecoder
from service.metrics import Metrics
from service.store.records import PredictionRecord
from tests.service.harness import FACE, TIMEOUT


class Peer:
    """A client without a connection."""

    def __init__(self, address: str | None = "127.0.0.1") -> None:
        self.address = address


@dataclass
class Ledger:
    """A store that keeps records in a list, or refuses them."""

    accepts: bool = True
    records: list[PredictionRecord] = field(default_factory=list)

    def record(self, records: Sequence[PredictionRecord]) -> bool:
        """Keep the records."""
        if self.accepts:
            self.records.extend(records)
        return self.accepts


class Inbox:
    """Collects delivered requests, and lets the test wait for them."""

    def __init__(self) -> None:
        self.delivered: list[Request] = []
        self._changed = threading.Condition()

    def deliver(self, requests: list[Request]) -> None:
        """Called by executors."""
        with self._changed:
            self.delivered += requests
            self._changed.notify_all()

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        """The replies, once there are `count`, by request id."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.delivered) >= count, TIMEOUT)
            assert len(self.delivered) == count
        replies = [orjson.loads(request.reply or b"null") for request in self.delivered]
        return sorted(replies, key=lambda reply: int(reply["id"]))


class FaultyEngine:
    """The real engine, told to raise for some batches."""

    def __init__(self, engine: Engine, fails: Callable[[npt.NDArray[np.uint8]], bool]) -> None:
        self._engine = engine
        self._fails = fails
        self.card = engine.card

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """As the engine, or a fault."""
        if self._fails(images):
            raise RuntimeError("injected")
        return self._engine.run(images)


@dataclass
class Bench:
    """Executors with what they need, and where their answers go."""

    executors: Executors
    inbox: Inbox
    ledger: Ledger
    failures: list[BaseException]

    def submit(self, number: int, image: bytes = FACE, client: Peer | None = None, **fields: Any) -> Request:
        """Submit one image."""
        request = Request(client or Peer(), number, image, time.monotonic(), **fields)
        self.executors.submit(request)
        return request


@contextmanager
def bench(engine: Any, ledger: Ledger | None = None, start: bool = True, **options: Any) -> Iterator[Bench]:
    """Executors for one test; stopped at its end."""
    inbox, ledger, failures = Inbox(), ledger or Ledger(), list[BaseException]()
    executors = Executors(
        engine,
        ImageDecoder(engine.card.shape, 50_000_000),
        ledger,
        Metrics(),
        **({"count": 2, "max_batch": 8, "capacity": 1000} | options),
        deliver=inbox.deliver,
        on_failure=failures.append,
    )
    if start:
        executors.start()
    yield Bench(executors, inbox, ledger, failures)
    executors.stop()


def test_every_request_is_answered_and_recorded_once(engine: Engine) -> None:
    """As many answers as requests, as many records as predictions, with matching ids."""
    with bench(engine) as at:
        for number in range(200):
            at.submit(number)
        replies = at.inbox.wait_for(200)
    assert [reply["id"] for reply in replies] == list(range(200))
    assert {reply["emotion_name"] for reply in replies} == {"happy"}
    recorded = {str(record.prediction_id) for record in at.ledger.records}
    assert recorded == {reply["prediction_id"] for reply in replies}
    assert len(at.ledger.records) == 200


def test_requests_that_wait_together_run_together(engine: Engine) -> None:
    """Requests that piled up before an executor was free share a run of the model, at most max_batch of them."""
    with bench(engine, start=False, count=1, max_batch=4) as at:
        for number in range(10):
            at.submit(number)
        at.executors.start()
        replies = at.inbox.wait_for(10)
    assert [reply["timing"]["batch_size"] for reply in replies] == [4] * 8 + [2] * 2


def test_a_record_holds_what_was_answered(engine: Engine) -> None:
    """Emotion, confidence, probabilities, request id and address, as the client was told."""
    with bench(engine) as at:
        at.submit(7, client=Peer("10.1.2.3"))
        (reply,) = at.inbox.wait_for(1)
    (record,) = at.ledger.records
    assert record.emotion == reply["emotion_name"]
    assert record.confidence == reply["confidence"]
    assert list(record.probabilities) == list(reply["probabilities"].values())
    assert record.request_id == "7"
    assert record.source_ip == "10.1.2.3"
    assert record.timestamp.tzinfo is not None


def test_a_prediction_that_the_store_refuses_is_answered_without_an_id(engine: Engine) -> None:
    """The client is served, and told by a null id that nothing was stored."""
    with bench(engine, Ledger(accepts=False)) as at:
        at.submit(1)
        (reply,) = at.inbox.wait_for(1)
    assert reply["status"] == "success"
    assert reply["prediction_id"] is None


def test_an_image_that_fails_in_the_model_does_not_fail_its_batch(engine: Engine) -> None:
    """A run that raises is repeated one by one; only the culprit is answered `internal`."""
    white = np.full((64, 64), 255, np.uint8)
    poison = _png(white)
    faulty = FaultyEngine(engine, lambda images: bool((images == 255).all(axis=(1, 2, 3)).any()))
    with bench(faulty, start=False, count=1) as at:
        for number in range(6):
            at.submit(number, poison if number == 3 else FACE)
        at.executors.start()
        replies = at.inbox.wait_for(6)
        assert [reply["type"] for reply in replies] == ["prediction"] * 3 + ["error"] + ["prediction"] * 2
        assert replies[3]["code"] == "internal"
        at.submit(6)
        assert at.inbox.wait_for(7)[-1]["type"] == "prediction"
    assert not at.failures
    assert len(at.ledger.records) == 6


def test_a_failing_store_does_not_leave_clients_waiting(engine: Engine) -> None:
    """An exception where none is expected is answered `internal`, and the executor goes on."""

    class Broken(Ledger):
        def record(self, records: Sequence[PredictionRecord]) -> bool:
            if any(record.request_id == "0" for record in records):
                raise RuntimeError("injected")
            return super().record(records)

    with bench(engine, Broken(), count=1, max_batch=1) as at:
        at.submit(0)
        at.submit(1)
        replies = at.inbox.wait_for(2)
    assert replies[0]["code"] == "internal"
    assert replies[1]["status"] == "success"
    assert not at.failures


def test_an_executor_that_dies_says_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner is told, so that the service can end instead of hanging, and what waits is answered at stop."""
    died = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: died.set())
    with bench(engine, start=False, count=1) as at:

        def explode(*_: object) -> None:
            raise MemoryError("injected")

        monkeypatch.setattr(at.executors, "_take", explode)
        at.executors.start()
        assert died.wait(TIMEOUT)
        at.submit(1)
    assert isinstance(at.failures[0], MemoryError)
    (reply,) = at.inbox.wait_for(1)
    assert reply["code"] == "shutting_down"


def test_an_expired_request_is_answered_without_being_run(engine: Engine) -> None:
    """Its deadline passed in the queue: no inference, no record."""
    with bench(engine, start=False) as at:
        at.submit(1, deadline=time.monotonic() - 1)
        at.executors.start()
        (reply,) = at.inbox.wait_for(1)
    assert reply["code"] == "deadline_exceeded"
    assert not at.ledger.records


def test_a_full_queue_refuses(engine: Engine) -> None:
    """What does not fit is told so at once."""
    with bench(engine, start=False, capacity=3) as at:
        for number in range(3):
            at.submit(number)
        with pytest.raises(Overloaded) as caught:
            at.submit(3)
        assert caught.value.retry_after_ms is not None
        at.executors.start()
        at.inbox.wait_for(3)


def test_what_a_gone_client_left_is_not_run(engine: Engine) -> None:
    """Discarded requests cost nothing and are not answered."""
    gone = Peer()
    with bench(engine, start=False) as at:
        for number in range(5):
            at.submit(number, client=gone)
        at.submit(5)
        assert at.executors.discard(gone) == 5
        at.executors.start()
        assert [reply["id"] for reply in at.inbox.wait_for(1)] == [5]


def test_stopping_answers_what_still_waits(engine: Engine) -> None:
    """No request hangs at shutdown, and none is admitted after it."""
    with bench(engine, start=False) as at:
        for number in range(4):
            at.submit(number)
        at.executors.stop()
        assert {reply["code"] for reply in at.inbox.wait_for(4)} == {"shutting_down"}
        with pytest.raises(ShuttingDown):
            at.submit(9)


def test_submitting_from_many_threads_loses_nothing(engine: Engine) -> None:
    """Idle executors are woken for each request, under any interleaving."""
    with bench(engine, count=3, capacity=10_000) as at:

        def submit(start: int) -> None:
            for number in range(start, start + 100):
                at.submit(number)

        threads = [threading.Thread(target=submit, args=(start,)) for start in range(0, 400, 100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [reply["id"] for reply in at.inbox.wait_for(400)] == list(range(400))


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    import cv2

    ok, data = cv2.imencode(".png", image)
    assert ok
    return data.tobytes()
