"""A micro-batch from images to replies: decode, run the model, store, answer. Blocks; knows no threads or loops.

Guarantees:

* Every request given to `serve` has its reply when `serve` returns, whatever happened on the way.
* An image that cannot be decoded fails its own request only; so does one that the model raises on.
* A prediction is handed to the store before its reply exists.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

import numpy as np
import numpy.typing as npt

from service import protocol
from service.engine import Engine
from service.errors import Internal, RequestError
from service.images.decode import ImageDecoder
from service.protocol import RequestId, Timing
from service.scheduler import NORMAL
from service.store.records import PredictionRecord

log = logging.getLogger(__name__)


class Client(Hashable, Protocol):
    """Who a request is from, as far as predicting is concerned. Hashable: turns are taken by client."""

    address: str | None


class Recorder(Protocol):
    """Where predictions are stored."""

    def record(self, records: Sequence[PredictionRecord]) -> bool:
        """Take records without waiting for a database. False: they could not be taken, and are not stored."""


@dataclass(slots=True, eq=False)
class Request:
    """One prediction on its way through the service. Times are `time.perf_counter` seconds.

    `in_order` is false if its reply may overtake others of its client.

    Once answered, `reply` is the frame for the client, and either `emotion` and `timing` are set, or `error` is.
    """

    client: Client
    id: RequestId
    image: str | bytes
    received: float
    deadline: float | None = None
    priority: int = NORMAL
    in_order: bool = True
    size: int = field(init=False)
    cost: float = 0.0
    reply: bytes | None = None
    emotion: str | None = None
    timing: Timing | None = None
    stored: bool = False
    error: str | None = None
    started: float = 0.0
    decoded: float = 0.0

    def __post_init__(self) -> None:
        self.size = len(self.image)

    def fail(self, error: RequestError) -> None:
        """Answer with an error. The first answer stands."""
        if self.reply is None:
            self.error = error.code
            self.reply = protocol.error_reply(error, self.id)


class Predictor:
    """Answers batches with one engine. Threads may share it if each brings a buffer of its own."""

    def __init__(self, engine: Engine, decoder: ImageDecoder, store: Recorder) -> None:
        self._engine = engine
        self._decoder = decoder
        self._store = store
        self._ids = PredictionIds()

    def make_buffer(self, max_batch: int) -> npt.NDArray[np.uint8]:
        """A model input for batches of up to `max_batch` images: uint8 [max_batch, height, width, channels]."""
        shape = self._decoder.shape
        return np.empty((max_batch, shape.height, shape.width, shape.channels), np.uint8)

    def serve(self, requests: list[Request], buffer: npt.NDArray[np.uint8]) -> None:
        """Answer every request of a batch, at most as many as `buffer` holds. Does not raise."""
        try:
            self._predict(requests, buffer)
        except Exception:
            log.exception("a batch of %d failed", len(requests))
        for request in requests:
            if request.reply is None:
                request.fail(Internal("the prediction failed; the fault is ours"))

    def _predict(self, requests: list[Request], buffer: npt.NDArray[np.uint8]) -> None:
        decoded: list[Request] = []
        clock = time.perf_counter
        for request in requests:
            request.started = clock()
            try:
                self._decoder.decode_into(request.image, buffer[len(decoded)])
            except RequestError as exc:
                request.fail(exc)
                continue
            finally:
                request.image = b""  # an image may be megabytes, and the request lives on until it is sent
            request.decoded = clock()
            decoded.append(request)
        if not decoded:
            return
        size = len(decoded)
        begun = clock()
        try:
            probabilities = self._engine.run(buffer[:size])
        except Exception:  # ONNX Runtime's exceptions share no narrower base
            if size == 1:
                raise
            log.exception("a batch of %d failed in the model; its requests are run one by one", size)
            self._predict_singly(decoded, buffer)
            return
        self._complete(decoded, probabilities, begun)

    def _predict_singly(self, decoded: list[Request], buffer: npt.NDArray[np.uint8]) -> None:
        """An input that the model fails on must not fail its batch-mates."""
        for index, request in enumerate(decoded):
            begun = time.perf_counter()
            try:
                probabilities = self._engine.run(buffer[index : index + 1])
            except Exception:  # as above; `serve` answers the request
                log.exception("the model failed on a single image")
                continue
            self._complete([request], probabilities, begun)

    def _complete(
        self, requests: list[Request], probabilities: npt.NDArray[np.float32], begun: float
    ) -> None:
        """Store the predictions of one run, then make their replies."""
        inferred = time.perf_counter()
        labels = self._engine.card.labels
        size = len(requests)
        inference = (inferred - begun) * 1000
        moment = datetime.now(UTC)
        answers: list[tuple[UUID, list[float]]] = []
        records = []
        for request, exact in zip(requests, probabilities.tolist(), strict=True):
            # Six decimals: more would only be noise in the JSON; the sum stays within 1e-5 of 1.
            row = [round(value, 6) for value in exact]
            confidence = max(row)
            total = (inferred - request.received) * 1000
            request.timing = Timing(
                decode=(request.decoded - request.started) * 1000,
                queue=(request.started - request.received) * 1000,
                inference=inference,
                total=total,
                batch_size=size,
            )
            request.emotion = labels[row.index(confidence)]
            prediction_id = self._ids.next()
            answers.append((prediction_id, row))
            records.append(
                PredictionRecord(
                    prediction_id=prediction_id,
                    emotion=request.emotion,
                    confidence=confidence,
                    probabilities=tuple(row),
                    processing_ms=total,
                    timestamp=moment,
                    source_ip=request.client.address,
                    request_id=None if request.id is None else str(request.id),
                )
            )
        stored = self._store.record(records)
        template = protocol.PredictionReplies(labels, self._engine.card.version_tag, moment)
        for request, (prediction_id, row) in zip(requests, answers, strict=True):
            assert request.timing is not None
            request.stored = stored
            request.reply = template.reply(request.id, prediction_id if stored else None, row, request.timing)


class PredictionIds:
    """Random (version 4) UUIDs, from random bytes that are fetched for many at a time.

    `uuid.uuid4` makes a system call for each, and each system call gives up the GIL, to wait for it again.
    """

    _BATCH = 256

    def __init__(self) -> None:
        self._bytes: list[bytes] = []

    def next(self) -> UUID:
        """A new UUID. Threads may share this: popping from a list is atomic."""
        try:
            chunk = self._bytes.pop()
        except IndexError:
            random = os.urandom(16 * self._BATCH)
            chunks = [random[start : start + 16] for start in range(0, len(random), 16)]
            chunk = chunks.pop()
            self._bytes += chunks
        return UUID(bytes=chunk, version=4)
