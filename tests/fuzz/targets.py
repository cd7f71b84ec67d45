"""What mutants are thrown at: the parser and the image path, without sockets. Nothing but an error of a client may
come back, and within a second of work.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import numpy as np

from service.batching.predictor import Predictor, Request
from service.errors import RequestError
from service.images import ImageFile
from service.images.decode import ImageDecoder, InputShape
from service.images.peek import holds_up, peek_header
from service.protocol.requests import Configure, FrameError, Options, Predict, parse_frame
from service.settings import Settings
from service.store.prediction_ids import PredictionIds

LIMIT_SECONDS = 1.0

GRAY = ImageDecoder(InputShape(64, 64, "gray"), Settings().max_image_pixels)
RGB = ImageDecoder(InputShape(96, 96, "rgb"), Settings().max_image_pixels)


class TooSlow(Exception):
    """An input that took more than `LIMIT_SECONDS` of this thread's CPU."""


class OurFault(Exception):
    """An input that was answered `internal`."""


def as_frame(data: bytes) -> str | bytes:
    """A text frame where the bytes are UTF-8, a binary one where not, or where they begin with a zero byte."""
    if data[:1] == b"\0":
        return data[1:]
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def parse(data: bytes) -> None:
    """Through the parser, and what follows it in the connection. Raises what is a fault of ours."""
    began = time.thread_time()
    with suppress(FrameError, RequestError):
        parsed = parse_frame(as_frame(data))
        if isinstance(parsed, Configure):
            Options().changed(parsed.changes)
        elif isinstance(parsed, Predict):
            peek(parsed.image)
    _check(began)


def peek(image: str | ImageFile) -> None:
    """What is told of an image before it is decoded. Raises what is a fault of ours."""
    header = peek_header(image)
    if not holds_up(image, False) and header is not None and header.width * header.height > 4_000_000:
        raise OurFault


def decode(data: bytes) -> None:
    """Through the header's check and the decoder, as a face and as a photo. Raises what is a fault of ours."""
    began = time.thread_time()
    peek(data)
    for decoder in (GRAY, RGB):
        shape = decoder.shape
        out = np.empty((shape.height, shape.width, shape.channels), np.uint8)
        with suppress(RequestError):
            decoder.decode_into(data, out)
        with suppress(RequestError):
            decoder.decode_photo(data)
    _check(began)


class _Client:
    address = None
    prediction_ids = PredictionIds()


def predict(predictor: Predictor, buffer: Any, data: bytes, number: int) -> None:
    """Through all of the prediction, faces and all. Raises what is a fault of ours."""
    began = time.thread_time()
    detect = ("auto", "always", "never")[number % 3]
    request = Request(_Client(), None, data, time.perf_counter(), detect=detect)  # type: ignore[arg-type]
    predictor.serve([request], buffer)
    _check(began)
    if request.error == "internal":
        raise OurFault


def _check(began: float) -> None:
    seconds = time.thread_time() - began
    if seconds > LIMIT_SECONDS:
        raise TooSlow(f"{seconds:.1f} s")
