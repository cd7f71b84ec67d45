"""Executor threads: each takes a micro-batch, decodes, runs the model, stores, and hands the replies back.

One thread per core does the whole of a request's work, so that a request changes threads twice and no more:
from the event loop to an executor, and back. Decoding and inference release the GIL.

Guarantees:

* Every submitted request is answered exactly once, through `Request.answer`, or was discarded because its
  client has gone.
* An image that cannot be decoded fails its own request only; the others of its batch are run.
* Whatever is raised while a batch is worked on, its unanswered requests are answered `internal`, and the
  executor takes the next batch. If an executor thread itself ends by an error, `on_failure` is called.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Protocol
from uuid import UUID, uuid4

import numpy as np
import numpy.typing as npt

from service import protocol
from service.engine import Engine
from service.errors import DeadlineExceeded, Internal, RequestError, ShuttingDown
from service.images.decode import ImageDecoder
from service.metrics import Metrics
from service.protocol import Prediction, RequestId, Timing
from service.scheduler import MicroBatchQueue, share
from service.store.records import PredictionRecord

log = logging.getLogger(__name__)


class Client(Hashable, Protocol):
    """Who a request is from, as far as an executor is concerned. Hashable: turns are taken by client."""

    address: str | None


class Recorder(Protocol):
    """Where predictions are stored."""

    def record(self, records: Sequence[PredictionRecord]) -> bool:
        """Take records without blocking on I/O. False: they could not be taken, and are not stored."""


@dataclass(slots=True, eq=False)
class Request:
    """One prediction on its way through the service. Times are `time.monotonic` seconds."""

    client: Client
    id: RequestId
    image: str | bytes
    received: float
    deadline: float | None = None
    reply: bytes | None = None
    started: float = 0.0
    decoded: float = 0.0

    def answer(self, reply: bytes) -> None:
        """Set the reply frame. The first answer stands."""
        if self.reply is None:
            self.reply = reply

    def fail(self, error: RequestError) -> None:
        """Answer with an error."""
        self.answer(protocol.error_reply(error, self.id))


@dataclass(slots=True)
class _Desk:
    """What the event loop and the executors share, under `lock`.

    An executor that finds the queue empty counts itself as idle and blocks on `wake`. Whoever admits a request
    takes one executor out of that count and puts one token into `wake`: as many tokens as executors taken out,
    so that no executor is woken for nothing and none sleeps beside a request.
    """

    queue: MicroBatchQueue[Request]
    lock: threading.Lock = field(default_factory=threading.Lock)
    wake: SimpleQueue[None] = field(default_factory=SimpleQueue)
    idle: int = 0
    stopping: bool = False


class Executors:
    """A fixed number of executor threads that share one queue and one engine.

    Args:
        deliver: called in an executor thread with the answered requests of a batch.
        on_failure: called in the dying thread if an executor ends by an error.
    """

    def __init__(
        self,
        engine: Engine,
        decoder: ImageDecoder,
        store: Recorder,
        metrics: Metrics,
        *,
        count: int,
        max_batch: int,
        capacity: int,
        deliver: Callable[[list[Request]], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.max_batch = max_batch
        self._engine = engine
        self._decoder = decoder
        self._store = store
        self._metrics = metrics
        self._deliver = deliver
        self._on_failure = on_failure
        self._desk = _Desk(MicroBatchQueue(capacity))
        # Seconds per request, as an exponential average: what an overloaded client's wait is told from.
        self._seconds_per_request = 0.001
        self._threads = [
            threading.Thread(target=self._work, name=f"executor-{number}", daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Requests that no executor has taken yet."""
        return len(self._desk.queue)

    def submit(self, request: Request) -> None:
        """Admit a request, and wake an executor if one is idle.

        Raises:
            Overloaded: too many are waiting.
            ShuttingDown: `stop` was called.
        """
        desk = self._desk
        with desk.lock:
            if desk.stopping:
                raise ShuttingDown("the service is shutting down")
            desk.queue.admit(request, self._retry_after_ms())
            if not desk.idle:
                return
            desk.idle -= 1
        desk.wake.put(None)

    def discard(self, client: Client) -> int:
        """Drop what waits for a client that has gone; what is being run is run to its end."""
        with self._desk.lock:
            return self._desk.queue.discard(client)

    def stop(self) -> None:
        """End the threads, once what they are at is done. Requests that still wait are answered `shutting_down`."""
        desk = self._desk
        with desk.lock:
            desk.stopping = True
            desk.idle = 0
            left = desk.queue.drain()
        for _ in self._threads:
            desk.wake.put(None)
        self._refuse(left, ShuttingDown("the service is shutting down"))
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _refuse(self, requests: list[Request], error: RequestError) -> None:
        if not requests:
            return
        self._metrics.failed(error.code, len(requests))
        for request in requests:
            request.fail(error)
        self._deliver(requests)

    def _retry_after_ms(self) -> int:
        wait = len(self._desk.queue) * self._seconds_per_request / len(self._threads)
        return max(1, round(wait * 1000))

    def _work(self) -> None:
        """An executor's life: take, work, repeat."""
        shape = self._decoder.shape
        images = np.empty((self.max_batch, shape.height, shape.width, shape.channels), np.uint8)
        try:
            while (batch := self._take()) is not None:
                self._refuse(
                    batch[1], DeadlineExceeded("the deadline passed before the image could be looked at")
                )
                if batch[0]:
                    self._serve(batch[0], images)
        except BaseException as exc:
            # Nothing above is expected to raise. If it does, this thread is gone, and requests that wait for
            # it must not hang: the owner is told, and ends the service.
            log.critical("an executor ended", exc_info=True)
            self._on_failure(exc)
            raise

    def _take(self) -> tuple[list[Request], list[Request]] | None:
        """Block until there is work. Returns (requests to run, requests too late to run), or None to end."""
        desk = self._desk
        while True:
            with desk.lock:
                if desk.stopping:
                    return None
                if waiting := len(desk.queue):
                    limit = share(waiting, desk.idle + 1, self.max_batch)
                    batch = desk.queue.take(limit, time.monotonic())
                    return batch.requests, batch.expired
                desk.idle += 1
            desk.wake.get()

    def _serve(self, requests: list[Request], images: npt.NDArray[np.uint8]) -> None:
        """Answer every request of a batch, whatever happens."""
        try:
            self._predict(requests, images)
        except Exception:
            log.exception("a batch of %d failed", len(requests))
        unanswered = [request for request in requests if request.reply is None]
        if unanswered:
            self._metrics.failed(Internal.code, len(unanswered))
            for request in unanswered:
                request.fail(Internal("the prediction failed; the fault is ours"))
        self._deliver(requests)

    def _predict(self, requests: list[Request], images: npt.NDArray[np.uint8]) -> None:
        decoded: list[Request] = []
        for request in requests:
            request.started = time.monotonic()
            try:
                self._decoder.decode_into(request.image, images[len(decoded)])
            except RequestError as exc:
                self._metrics.failed(exc.code, 1)
                request.fail(exc)
                continue
            finally:
                request.image = b""  # an image may be megabytes, and the request lives on until it is sent
            request.decoded = time.monotonic()
            decoded.append(request)
        if not decoded:
            return
        size = len(decoded)
        begun = time.monotonic()
        try:
            probabilities = self._engine.run(images[:size])
        except Exception:  # ONNX Runtime's exceptions share no narrower base
            if size == 1:
                raise
            log.exception("a batch of %d failed in the model; its requests are run one by one", size)
            self._predict_singly(decoded, images)
            return
        self._complete(decoded, probabilities, begun)

    def _predict_singly(self, decoded: list[Request], images: npt.NDArray[np.uint8]) -> None:
        """An input that the model fails on must not fail its batch-mates."""
        for index, request in enumerate(decoded):
            begun = time.monotonic()
            try:
                probabilities = self._engine.run(images[index : index + 1])
            except Exception:  # as above; `_serve` answers the request
                log.exception("the model failed on a single image")
                continue
            self._complete([request], probabilities, begun)

    def _complete(
        self, requests: list[Request], probabilities: npt.NDArray[np.float32], begun: float
    ) -> None:
        """Store the predictions of one run, then make their replies."""
        inferred = time.monotonic()
        card = self._engine.card
        size = len(requests)
        inference = inferred - begun
        # Six decimals: more would only be noise in the JSON; the sum stays within 1e-5 of 1.
        rounded = np.round(probabilities.astype(np.float64), 6)
        rows: list[list[float]] = rounded.tolist()
        best: list[int] = rounded.argmax(axis=1).tolist()
        moment = datetime.now(UTC)
        predictions = []
        records = []
        for request, row, top in zip(requests, rows, best, strict=True):
            total = (inferred - request.received) * 1000
            timing = Timing(
                decode=(request.decoded - request.started) * 1000,
                queue=(request.started - request.received) * 1000,
                inference=inference * 1000,
                total=total,
                batch_size=size,
            )
            prediction_id = uuid4()
            predictions.append(
                Prediction(request.id, prediction_id, card.labels, row, top, card.version_tag, timing, moment)
            )
            records.append(_record(request, prediction_id, card.labels[top], row, row[top], total, moment))
        stored = self._store.record(records)
        for request, prediction in zip(requests, predictions, strict=True):
            request.answer(protocol.prediction_reply(prediction, stored=stored))
        self._metrics.predicted(predictions, stored=stored)
        busy = time.monotonic() - requests[0].started
        self._seconds_per_request += 0.1 * (busy / size - self._seconds_per_request)


def _record(
    request: Request,
    prediction_id: UUID,
    emotion: str,
    probabilities: list[float],
    confidence: float,
    total_ms: float,
    moment: datetime,
) -> PredictionRecord:
    return PredictionRecord(
        prediction_id=prediction_id,
        emotion=emotion,
        confidence=confidence,
        probabilities=tuple(probabilities),
        processing_ms=total_ms,
        timestamp=moment,
        source_ip=request.client.address,
        request_id=None if request.id is None else str(request.id),
    )
