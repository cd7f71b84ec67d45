"""The wire protocol's replies: results in, UTF-8 JSON for a text frame out. What comes in is in `protocol`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from service.errors import RequestError
from service.protocol.requests import COMMANDS, Options, RequestId
from service.settings import Authentication


# Not frozen: a frozen dataclass takes three times as long to make, and one is made per request.
@dataclass(slots=True)
class Timing:
    """Milliseconds spent on one request, from frame to prediction in `total`, and the size of its micro-batch."""

    decode: float
    queue: float
    inference: float
    total: float
    batch_size: int


def whole_milliseconds(milliseconds: float) -> int:
    """v1's `processing_time_ms` and its column are integers; what took less than one counts as one."""
    return max(1, round(milliseconds))


def naive_utc(moment: datetime) -> str:
    """ISO 8601 in UTC without an offset: existing clients parse exactly this form."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")


@dataclass(slots=True)
class ScoredFace:
    """What the model says of one face, or of a whole image, whose box and detection score are None.

    `probabilities` are in the order of the labels and sum to 1; `box` is x, y, width, height in pixels of the sent
    image, turned upright; `face_id` follows a face through a stream.
    """

    probabilities: Sequence[float]
    box: tuple[int, int, int, int] | None = None
    detection_score: float | None = None
    face_id: int | None = None


class PredictionReplies:
    """Makes the replies to the requests of one micro-batch, which share the model's version and the moment."""

    def __init__(self, labels: Sequence[str], version_tag: str, moment: datetime) -> None:
        self._labels = labels
        self._version_tag = version_tag
        self._timestamp = naive_utc(moment)

    def reply(
        self,
        request_id: RequestId,
        prediction_id: str | None,
        faces: Sequence[ScoredFace],
        timing: Timing,
    ) -> bytes:
        """The reply to `predict`: v1's fields, then ours.

        Args:
            request_id: left out of the reply where it is None.
            prediction_id: the stored rows' id; None if the prediction was not stored.
            faces: largest first, at least one; the first is what v1's fields tell of.
            timing: how long it took.
        """
        first = self._scores(faces[0].probabilities)
        detected = faces[0].box is not None
        reply: dict[str, Any] = {
            "type": "prediction",
            "status": "success",
            "emotion_name": first["emotion_name"],
            "confidence": first["confidence"],
            "model_version_tag": self._version_tag,
            "processing_time_ms": whole_milliseconds(timing.total),
            "timestamp": self._timestamp,
            "prediction_id": prediction_id,
            "probabilities": first["probabilities"],
            "face_detected": detected,
            "faces": [self._face(face) for face in faces] if detected else [],
            # Three decimals; `round` takes five times as long.
            "timing": {
                "decode": int(timing.decode * 1000 + 0.5) / 1000,
                "queue": int(timing.queue * 1000 + 0.5) / 1000,
                "inference": int(timing.inference * 1000 + 0.5) / 1000,
                "total": int(timing.total * 1000 + 0.5) / 1000,
                "batch_size": timing.batch_size,
            },
        }
        if request_id is not None:
            reply["id"] = request_id
        return orjson.dumps(reply)

    def _face(self, face: ScoredFace) -> dict[str, Any]:
        reply = {"box": face.box, "detection_score": face.detection_score} | self._scores(face.probabilities)
        if face.face_id is not None:
            reply["face_id"] = face.face_id
        return reply

    def _scores(self, probabilities: Sequence[float]) -> dict[str, Any]:
        confidence = max(probabilities)
        return {
            "emotion_name": self._labels[probabilities.index(confidence)],
            "confidence": confidence,
            "probabilities": dict(zip(self._labels, probabilities, strict=True)),
        }


def error_reply(error: RequestError, request_id: RequestId) -> bytes:
    """The reply to a request that failed. v1 clients read `message`, others branch on `code`."""
    reply: dict[str, Any] = {"type": "error", "status": "error", "code": error.code, "message": error.message}
    if request_id is not None:
        reply["id"] = request_id
    if error.retry_after_ms is not None:
        reply["retry_after_ms"] = error.retry_after_ms
    return orjson.dumps(reply)


def welcome(version: str, authentication: Authentication = "off") -> bytes:
    """The one message that the server sends before it is asked.

    `authentication` says whether a credential is needed; with "off" the field is left out.
    """
    message: dict[str, Any] = {
        "type": "welcome",
        "message": "Welcome to VisionAI: send an image, get an emotion.",
        "version": version,
        "protocol": 2,
        "commands": COMMANDS,
    }
    if authentication != "off":
        message["authentication"] = authentication
    return orjson.dumps(message)


def configuration_reply(options: Options, request_id: RequestId, user: str | None) -> bytes:
    """The reply to `configure`: the options that are in force from the next request on, and whose connection it is."""
    body: dict[str, Any] = {"type": "configuration", "configuration": asdict(options)}
    if user is not None:
        body["user"] = user
    return success(body, request_id)


def success(body: dict[str, Any], request_id: RequestId) -> bytes:
    """The reply to what succeeded: the body, whose `type` goes first.

    That of `health` brings a `status` of its own, the health itself: so v1 has it.
    """
    reply = {"type": body.pop("type"), "status": "success", **body}
    if request_id is not None:
        reply["id"] = request_id
    return orjson.dumps(reply)
