"""What requests are taken to cost, by what those before them took."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from service.engine import Engine
from service.errors import DeadlineExceeded
from service.executors import InlineExecutor
from service.faces import Face, FaceDetector
from service.images.decode import ImageDecoder
from service.predictor import Predictor, Request
from tests.service.test_bad_input import encode
from tests.service.test_executors import Inbox, Ledger, Peer, fail


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
