"""What is sent: a real face as JPEG files of several sizes, in the frames that clients use."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import orjson

from benchmarks.http_wire import build_post
from benchmarks.wire import build_frame
from service.settings import Detect

_DATA = Path(__file__).parents[1] / "tests/data"

Framing = Literal["json", "binary", "http"]

# A face cut out by the client, a larger crop, a webcam's frame.
SIZES: dict[str, tuple[int, int]] = {
    "64x64": (64, 64),
    "64x64-sure": (64, 64),
    "64x64-unsure": (64, 64),
    "224x224": (224, 224),
    "640x480": (640, 480),
}
Face = Literal["sure", "unsure"]
# Of a face that it is unsure of the served network looks at the mirror image, too, which takes as long again: of 35 of
# 100 in FER2013's validation part. Hence these, in turn, where the size does not say which.
_MIXED: tuple[Face, ...] = ("sure", "sure", "unsure")
_FACES: dict[str, tuple[Face, ...]] = {"64x64-sure": ("sure",), "64x64-unsure": ("unsure",)}
# A smile is one to every network; what half a smile upside down is, nobody can say.
_EMOTIONS: dict[Face, str | None] = {"sure": "happy", "unsure": None}


@dataclass(frozen=True, slots=True)
class Request:
    """An image, the frame that asks about it, and the answer that is right for it; None where any is."""

    image: bytes
    frame: bytes
    expected_emotion: str | None


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that are ready to send again and again, in turn."""

    size: str
    framing: Framing
    detect: Detect
    requests: tuple[Request, ...]


def faces_of(size: str) -> tuple[Face, ...]:
    """The faces of one of `SIZES` in the order in which they take turns."""
    return _FACES.get(size, _MIXED)


def face_jpeg(size: str, face: Face) -> bytes:
    """The public-domain face at one of `SIZES`, JPEG quality 90: a smile, of which networks are sure. In an unsure one
    the part with the mouth is nearly upside down."""
    pixels = cv2.imdecode(
        np.frombuffer((_DATA / "astronaut_face.jpg").read_bytes(), np.uint8), cv2.IMREAD_COLOR
    )
    assert pixels is not None
    if face == "unsure":
        mouth = pixels[int(0.55 * len(pixels)) : int(0.9 * len(pixels))]
        mouth[:] = cv2.addWeighted(mouth, 0.15, mouth[::-1].copy(), 0.85, 0)
    width, height = SIZES[size]
    shrinks = width < pixels.shape[1]
    pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    ok, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert ok
    return data.tobytes()


def make_workload(
    size: str, framing: Framing = "json", detect: Detect = "never", deadline_ms: float | None = None
) -> Workload:
    """Build the requests for a size and a framing.

    Args:
        size: one of `SIZES`.
        framing: base64 in a JSON text frame, a binary frame, or base64 in the JSON body of an HTTP POST to
            ``/predict``, as the peers take it.
        detect: whether the service looks for faces in the image, or takes it as one. Peers always take it as one.
        deadline_ms: sent with each request; None for none.
    """
    options: dict[str, Any] = {"detect": detect}
    if deadline_ms is not None:
        options["deadline_ms"] = deadline_ms
    requests = []
    for face in faces_of(size):
        image = face_jpeg(size, face)
        requests.append(Request(image, _frame(image, framing, options), _EMOTIONS[face]))
    return Workload(size, framing, detect, tuple(requests))


def _frame(image: bytes, framing: Framing, options: Mapping[str, Any]) -> bytes:
    match framing:
        case "binary":
            return build_frame(orjson.dumps(options) + b"\n" + image, text=False)
        case "http":
            return build_post(orjson.dumps({"image": base64.b64encode(image).decode()}))
        case "json":
            message = {"command": "predict", "image": base64.b64encode(image).decode(), **options}
            return build_frame(orjson.dumps(message), text=True)
