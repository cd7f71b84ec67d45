"""What a batch of requests costs each of them, and what they are answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest

from service.batching.predictor import Predictor, Request
from service.engine import Engine
from service.faces import Face, FaceDetector
from service.images.decode import ImageDecoder, Pixels
from service.protocol.replies import Timing
from tests.service.doubles import Blind, Ledger, Peer, make_predictor
from tests.service.harness import FACE
from tests.service.pictures import encode


class Crowd(FaceDetector):
    """Finds seven faces in every image."""

    def __init__(self) -> None: ...

    def detect(self, image: Pixels, max_faces: int) -> list[Face]:
        """All in the same place."""
        return [Face((40, 40, 60, 60), 0.9, np.full((6, 2), 70, np.float32))] * 7


@pytest.mark.parametrize("buffered", [2, 64])
def test_a_request_is_charged_for_each_of_its_faces(engine: Engine, buffered: int) -> None:
    """The model's time is shared by the faces of a batch, whether they went through it in one run or in several."""
    predictor = make_predictor(engine, detector=Crowd())
    crowd = Request(Peer(), 1, FACE, time.perf_counter(), detect="always", max_faces=7)
    alone = Request(Peer(), 2, FACE, time.perf_counter(), detect="never")
    predictor.serve([crowd, alone], predictor.make_buffer(buffered))
    assert crowd.timing is not None
    assert crowd.model_seconds == pytest.approx(7 * alone.model_seconds)
    assert crowd.model_seconds + alone.model_seconds == pytest.approx(crowd.timing.inference / 1000)
    # Runs that came while its faces were cut out are inference, and no decoding too.
    assert crowd.timing.decode + crowd.timing.inference <= crowd.timing.total


def test_timing_is_in_milliseconds_of_each_stage(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting since the request came in, decoding, the model's run, and all of it."""
    clock = SimpleNamespace(now=10.0)
    monkeypatch.setattr("service.batching.predictor.time", SimpleNamespace(perf_counter=lambda: clock.now))

    def taking(seconds: float, work: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any) -> Any:
            clock.now += seconds
            return work(*args)

        return slow

    decoder = ImageDecoder(engine.card.shape, 50_000_000)
    monkeypatch.setattr(decoder, "decode_into", taking(0.25, decoder.decode_into))
    monkeypatch.setattr(engine, "run", taking(0.5, engine.run))
    predictor, request = Predictor(engine, decoder, Ledger(), Blind()), Request(Peer(), 1, FACE, 8.0)
    predictor.serve([request], predictor.make_buffer(1))
    assert request.timing == Timing(decode=250, queue=2000, inference=500, total=2750, batch_size=1)


def test_an_image_counts_for_the_emotion_of_its_first_face(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest, of which the reply tells before all others."""
    labels = engine.card.labels
    monkeypatch.setattr(engine, "run", lambda faces: np.eye(len(faces), len(labels), dtype=np.float32))
    predictor = make_predictor(engine, detector=Crowd())
    request = Request(Peer(), 1, FACE, time.perf_counter(), detect="always", max_faces=7)
    predictor.serve([request], predictor.make_buffer(7))
    assert request.reply is not None
    assert request.emotion == orjson.loads(request.reply)["emotion_name"] == labels[0]


def test_an_image_is_let_go_once_it_was_looked_at(engine: Engine) -> None:
    """Its reply may wait for those before it, and the image may have megabytes."""
    predictor = make_predictor(engine)
    requests = [Request(Peer(), 1, image, time.perf_counter()) for image in (FACE, b"broken")]
    predictor.serve(requests, predictor.make_buffer(2))
    assert not any(request.image for request in requests)


@pytest.mark.parametrize("image", ["A" * 1000, "\U0001f600" * 1000, b"\xff" * 1000, "A" * 999 + "\U0001f600"])
def test_an_image_that_waits_counts_by_its_bytes(image: str | bytes) -> None:
    """Of text with other letters than base64 has, each takes as many as the widest."""
    wide = isinstance(image, str) and not image.isascii()
    assert Request(Peer(), 1, image, 0.0).size // 1000 == (4 if wide else 1)


@pytest.mark.parametrize(("side", "found"), [(100, False), (101, True)])
def test_auto_takes_an_image_of_at_most_100_pixels_a_side_for_a_face(
    engine: Engine, side: int, found: bool
) -> None:
    """It was cut out already: no face is looked for in it."""
    predictor = make_predictor(engine, detector=Crowd())
    image = encode(np.zeros((50, side), np.uint8), ".png")
    request = Request(Peer(), 1, image, time.perf_counter(), detect="auto", max_faces=7)
    predictor.serve([request], predictor.make_buffer(8))
    assert request.reply is not None
    assert orjson.loads(request.reply)["face_detected"] is found


def test_a_face_at_the_edge_of_a_reduced_photo_does_not_leave_the_sent_image(engine: Engine) -> None:
    """Its box is in pixels of the sent image and ends with it, where the photo was decoded at 7/8 of its size."""

    class AtTheCorner(FaceDetector):
        def __init__(self) -> None: ...

        def detect(self, image: Pixels, max_faces: int) -> list[Face]:
            assert image.shape[:2] == (974, 1300)
            return [Face((910, 585, 390, 389), 0.9, np.zeros((6, 2), np.float32))]

    predictor = make_predictor(engine, detector=AtTheCorner())
    photo = encode(np.zeros((1113, 1485), np.uint8), ".jpg")
    request = Request(Peer(), 1, photo, time.perf_counter(), detect="always")
    predictor.serve([request], predictor.make_buffer(1))
    assert request.reply is not None
    (face,) = orjson.loads(request.reply)["faces"]
    assert face["box"] == [1040, 668, 445, 445]
