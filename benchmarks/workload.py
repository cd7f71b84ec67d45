"""What is sent: a real face as JPEG files of several sizes, in the frames that clients use."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import orjson

from benchmarks.http_wire import build_post
from benchmarks.wire import build_frame

_DATA = Path(__file__).parents[1] / "tests/data"

Framing = Literal["json", "binary", "http"]
Detect = Literal["never", "auto", "always"]

# A face cut out by the client, one that the served network is unsure of and looks at mirrored, too, a larger crop, a
# webcam's frame.
SIZES: dict[str, tuple[int, int]] = {
    "64x64": (64, 64),
    "64x64-unsure": (64, 64),
    "224x224": (224, 224),
    "640x480": (640, 480),
}
_UNSURE = ("64x64-unsure",)


@dataclass(frozen=True, slots=True)
class Workload:
    """One request, ready to send again and again, and the answer that is right for it."""

    size: str
    framing: Framing
    detect: Detect
    image: bytes
    frame: bytes
    expected_emotion: str


def face_jpeg(size: str) -> bytes:
    """The public-domain face at one of `SIZES`, JPEG quality 90: a smile, of which networks are sure. In an unsure one
    the part with the mouth is nearly upside down."""
    pixels = cv2.imdecode(
        np.frombuffer((_DATA / "astronaut_face.jpg").read_bytes(), np.uint8), cv2.IMREAD_COLOR
    )
    assert pixels is not None
    if size in _UNSURE:
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
    """Build the frame for a size and a framing.

    Args:
        size: one of `SIZES`.
        framing: base64 in a JSON text frame, a binary frame, or base64 in the JSON body of an HTTP POST to
            ``/predict``, as the peers take it.
        detect: whether the service looks for faces in the image, or takes it as one. Peers always take it as one.
        deadline_ms: sent with each request; None for none.
    """
    image = face_jpeg(size)
    options: dict[str, Any] = {"detect": detect}
    if deadline_ms is not None:
        options["deadline_ms"] = deadline_ms
    match framing:
        case "binary":
            frame = build_frame(orjson.dumps(options) + b"\n" + image, text=False)
        case "http":
            frame = build_post("/predict", orjson.dumps({"image": base64.b64encode(image).decode()}))
        case "json":
            message = {"command": "predict", "image": base64.b64encode(image).decode(), **options}
            frame = build_frame(orjson.dumps(message), text=True)
    return Workload(size, framing, detect, image, frame, "neutral" if size in _UNSURE else "happy")
