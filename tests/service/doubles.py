"""What stands in for what executors and the predictor work with: a client, a store, the delivery, an engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from service.batching.predictor import Predictor, Request
from service.engine import Engine
from service.faces import Face, FaceDetector
from service.images.decode import ImageDecoder, Pixels
from service.store.prediction_ids import PredictionIds
from service.store.records import PredictionRecord
from tests.service.harness import TIMEOUT


class Peer:
    """A client without a connection."""

    def __init__(self, address: str | None = "127.0.0.1") -> None:
        self.address = address
        self.prediction_ids = PredictionIds()


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


class Blind(FaceDetector):
    """Finds no face."""

    def __init__(self) -> None: ...

    def detect(self, image: Pixels, max_faces: int) -> list[Face]:
        """None in any image."""
        return []


def make_predictor(
    engine: Any, ledger: Ledger | None = None, detector: FaceDetector | None = None
) -> Predictor:
    """One that decodes for this engine, stores in a ledger, and finds no face unless it is given a detector."""
    decoder = ImageDecoder(engine.card.shape, 50_000_000)
    return Predictor(engine, decoder, ledger or Ledger(), detector or Blind())


class Inbox:
    """Collects delivered requests, and lets the test wait for them."""

    def __init__(self) -> None:
        self.delivered: list[Request] = []
        self._changed = asyncio.Event()

    def deliver(self, requests: list[Request]) -> None:
        """Called by executors, on the event loop."""
        self.delivered += requests
        self._changed.set()

    async def wait_for(self, count: int) -> list[dict[str, Any]]:
        """The replies, once there are `count`, by request id."""
        async with asyncio.timeout(TIMEOUT):
            while len(self.delivered) < count:
                self._changed.clear()
                await self._changed.wait()
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


class HeldEngine(Engine):
    """The real engine, whose runs wait until they are let go."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.card = engine.card
        self.provider = engine.provider
        self.entered = threading.Event()
        self.released = threading.Event()

    def warm(self, batch: int) -> None:
        """Warming is not held."""
        self._engine.warm(batch)

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Wait, then run."""
        self.entered.set()
        assert self.released.wait(TIMEOUT)
        return self._engine.run(images)


def fail(exc: BaseException) -> None:
    """For executors that must not fail."""
    raise exc
