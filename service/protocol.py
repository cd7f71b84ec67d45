"""The wire protocol, without sockets: frames in, typed requests out; results in, reply frames out.

A text frame holds one JSON object. A binary frame is an image, or a one-line JSON header, a newline and an
image. `parse_frame` turns either into a typed request, or raises a `RequestError` (which carries the
request's ``id`` where it could be read, see `FrameError`). Reply functions return UTF-8 JSON for a text frame.

The base64 text of an image is kept as it came: it is decoded where the image is, off the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import orjson

from service.emotions import Emotion
from service.errors import InvalidJSON, InvalidRequest, RequestError, UnknownCommand
from service.images import ImageFile
from service.lookups import Lookup, parse_lookup
from service.scheduler import HIGH, LOW, NORMAL
from service.settings import Authentication, Detect

RequestId = str | int | None

COMMANDS: Final = {
    "predict": "Recognise the emotion in an image: {'command': 'predict', 'image': <base64 JPEG or PNG>}",
    "emotions": "List the emotions that can be recognised",
    "model_info": "Describe the model that is served",
    "health": "Tell whether the service is well",
    "models": "List the model versions that can be served",
    "history": "List this user's, or this connection's, stored predictions, newest first",
    "stats": "Count stored predictions by emotion over a time, with confidence and latency",
    "ping": "Answer pong: for browsers, which cannot send WebSocket pings",
    "configure": "Set this connection's defaults, such as 'ordered' and 'stream', and whose it is with 'token'; "
    "replies with all of them",
}
LOOKUPS: Final = frozenset({"history", "stats"})
QUERIES: Final = frozenset(COMMANDS) - LOOKUPS - {"predict", "configure"}
DETECT: Final[tuple[Detect, ...]] = ("auto", "always", "never")
MAX_FACES: Final = 64
PRIORITIES: Final = {"high": HIGH, "normal": NORMAL, "low": LOW}
SUBPROTOCOL: Final = "visionai.v2"

# A request id comes back in the reply and is stored with the prediction: long ones would be free storage.
MAX_ID_LENGTH: Final = 128
MAX_ID_INTEGER: Final = 2**53 - 1  # the largest integer that survives a JavaScript client

# A header line is small; without a bound a binary frame without a newline would be scanned to its end.
MAX_HEADER_BYTES: Final = 4096


# Not frozen: a frozen dataclass takes three times as long to make, and one is made per request.
@dataclass(slots=True)
class Predict:
    """A request for a prediction. `image` is base64 text (str) or an image file (bytes)."""

    id: RequestId
    image: str | ImageFile
    deadline_ms: float | None = None
    priority: int = NORMAL
    detect: Detect | None = None
    max_faces: int | None = None
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Query:
    """A request that is answered at once, from what the service knows: `command` is one of `QUERIES`."""

    id: RequestId
    command: str
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Configure:
    """A request to change the connection's options; `changes` holds those of its fields that are options."""

    id: RequestId
    changes: Mapping[str, Any]
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Options:
    """What a connection may set for itself with `configure`. The defaults are v1's behaviour.

    ============ =======================================================================================
    detect       "auto": find faces, and score the whole image where there is none; "always": no face is the error
                 `no_face`; "never": the image is a face
    max_faces    the largest faces, at most so many (1 to 64)
    ordered      replies come in the order of the requests; false lets those with an id come as they finish
    stream       for cameras: a frame that is overtaken by a newer one while it waits is `superseded`, and faces carry
                 a `face_id` that follows them
    smoothing_ms in a stream, probabilities are smoothed over time with this time constant; null for not at all
    deadline_ms  the deadline of requests that bring none of their own; null for none
    ============ =======================================================================================
    """

    detect: Detect = "auto"
    max_faces: int = 16
    ordered: bool = True
    stream: bool = False
    smoothing_ms: float | None = None
    deadline_ms: float | None = None

    def changed(self, changes: Mapping[str, Any]) -> Options:
        """These options with some replaced.

        Raises:
            InvalidRequest: a field is not an option, or its value is of the wrong type; names it.
        """
        for name, value in changes.items():
            if name not in self.__slots__:
                raise InvalidRequest(f"'{name[:40]}' cannot be configured; {', '.join(self.__slots__)} can")
            if name in ("ordered", "stream") and not isinstance(value, bool):
                raise InvalidRequest(f"'{name}' is true or false, not {_json_type(value)}")
        checked = dict(changes)
        for name in ("deadline_ms", "smoothing_ms"):
            if name in changes:
                checked[name] = _read_milliseconds(changes, name)
        if "detect" in changes:
            checked["detect"] = _read_detect(changes) or self.detect
        if "max_faces" in changes:
            checked["max_faces"] = _read_max_faces(changes) or self.max_faces
        return replace(self, **checked)


class FrameError(Exception):
    """A frame that is not a valid request: the error to reply with, and the id to reply to."""

    def __init__(self, error: RequestError, request_id: RequestId = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.id = request_id


def parse_frame(frame: str | ImageFile) -> Predict | Query | Configure | Lookup:
    """Read one frame: str for a text frame, bytes for a binary one.

    Raises:
        FrameError: whatever is wrong with it; the connection goes on.
    """
    if isinstance(frame, str):
        return _parse_object(_load(frame), None)
    if frame[:1] == b"{":
        end = bytes(frame[:MAX_HEADER_BYTES]).find(b"\n")
        if end < 0:
            raise FrameError(
                InvalidRequest(
                    f"a binary frame's JSON header ends with a newline in its first {MAX_HEADER_BYTES} bytes"
                )
            )
        return _parse_object(_load(frame[:end]), frame[end + 1 :])
    # Anything else is an image, or is found not to be one where images are read.
    return Predict(None, frame)


# What most requests have and no more: the others are not looked for.
_PLAIN = frozenset(("command", "id", "image"))


def _load(text: str | ImageFile) -> dict[str, Any]:
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise FrameError(InvalidJSON(f"the message is not JSON: {exc}")) from None
    if not isinstance(message, dict):
        raise FrameError(InvalidRequest(f"a message is a JSON object, not {_json_type(message)}"))
    return message


def _parse_object(
    message: dict[str, Any], attached_image: ImageFile | None
) -> Predict | Query | Configure | Lookup:
    request_id = _read_id(message)
    try:
        command = message.get("command", "predict")
        if command == "predict":
            image = attached_image if attached_image is not None else _read_image(message)
            if message.keys() <= _PLAIN:
                return Predict(request_id, image)
            return Predict(
                request_id,
                image,
                _read_milliseconds(message, "deadline_ms"),
                _read_priority(message),
                _read_detect(message),
                _read_max_faces(message),
                _read_token(message),
            )
        if command == "configure":
            changes = {k: v for k, v in message.items() if k not in ("command", "id", "token")}
            return Configure(request_id, changes, _read_token(message))
        # A list or an object is no command either, and is not hashable.
        if isinstance(command, str) and command in QUERIES:
            return Query(request_id, command, _read_token(message))
        if isinstance(command, str) and command in LOOKUPS:
            return replace(parse_lookup(command, request_id, message), token=_read_token(message))
        shown = repr(command[:40]) if isinstance(command, str) else _json_type(command)
        raise UnknownCommand(f"unknown command {shown}; the commands are {', '.join(COMMANDS)}")
    except RequestError as exc:
        raise FrameError(exc, request_id) from None


def _read_id(message: dict[str, Any]) -> RequestId:
    value = message.get("id")
    match value:
        case None:
            return None
        case bool():
            pass
        case str() if len(value) <= MAX_ID_LENGTH:
            return value
        case int() if abs(value) <= MAX_ID_INTEGER:
            return value
    raise FrameError(
        InvalidRequest(
            f"'id' is a string of at most {MAX_ID_LENGTH} characters or an integer within ±(2^53 - 1)"
        )
    )


def _read_image(message: dict[str, Any]) -> str:
    try:
        image = message["image"]
    except KeyError:
        raise InvalidRequest("'image' is missing: send the file's bytes as base64") from None
    if not isinstance(image, str):
        raise InvalidRequest(f"'image' is a base64 string, not {_json_type(image)}")
    return image


def _read_milliseconds(message: Mapping[str, Any], name: str) -> float | None:
    value = message.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InvalidRequest(f"'{name}' is a number of milliseconds above 0")
    return float(value)


def _read_priority(message: Mapping[str, Any]) -> int:
    value = message.get("priority", "normal")
    try:
        return PRIORITIES[value]
    except (KeyError, TypeError):  # TypeError: a list or an object is not hashable
        raise InvalidRequest(f"'priority' is one of {', '.join(PRIORITIES)}") from None


def _read_detect(message: Mapping[str, Any]) -> Detect | None:
    value = message.get("detect")
    if value is None:
        return None
    for known in DETECT:
        if value == known:
            return known
    raise InvalidRequest(f"'detect' is one of {', '.join(DETECT)}")


def _read_token(message: Mapping[str, Any]) -> str | None:
    value = message.get("token")
    if value is None or isinstance(value, str):
        return value or None
    raise InvalidRequest(f"'token' is a string, not {_json_type(value)}")


def _read_max_faces(message: Mapping[str, Any]) -> int | None:
    value = message.get("max_faces")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_FACES:
        raise InvalidRequest(f"'max_faces' is an integer from 1 to {MAX_FACES}")
    return value


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


@dataclass(slots=True)  # not frozen, as above
class Timing:
    """Milliseconds spent on one request, from frame to reply in `total`, and the size of its micro-batch."""

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
        prediction_id: UUID | str | None,
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


def emotions_reply(emotions: Sequence[Emotion], request_id: RequestId) -> bytes:
    """The reply to `emotions`."""
    return _success({"type": "emotions", "emotions": emotions}, request_id)


def model_info_reply(info: Mapping[str, Any], request_id: RequestId) -> bytes:
    """The reply to `model_info`."""
    return _success({"type": "model_info", "info": info}, request_id)


def configuration_reply(options: Options, request_id: RequestId, user: str | None = None) -> bytes:
    """The reply to `configure`: the options that are in force from the next request on, and whose connection it is."""
    body: dict[str, Any] = {"type": "configuration", "configuration": asdict(options)}
    if user is not None:
        body["user"] = user
    return _success(body, request_id)


def pong_reply(now: datetime, request_id: RequestId) -> bytes:
    """The reply to `ping`."""
    return _success({"type": "pong", "timestamp": naive_utc(now)}, request_id)


def models_reply(models: Sequence[Mapping[str, Any]], request_id: RequestId) -> bytes:
    """The reply to `models`."""
    return _success({"type": "models", "models": models}, request_id)


def health_reply(
    status: str,
    service: str,
    now: datetime,
    clients: int,
    store: Mapping[str, Any],
    request_id: RequestId,
    *,
    models: Sequence[Mapping[str, Any]],
    reload_error: str | None = None,
) -> bytes:
    """The reply to `health`. Its `status` is the health itself, not "success": so v1 has it.

    `models` are the versions that are served, each with its share of the connections. `reload_error` says why the last
    reload left the old model serving; the field is there only then.
    """
    reply = {
        "type": "health",
        "status": status,
        "service": service,
        "timestamp": naive_utc(now),
        "clients_connected": clients,
        "store": store,
        "models": models,
    }
    if reload_error is not None:
        reply["reload_error"] = reload_error
    if request_id is not None:
        reply["id"] = request_id
    return orjson.dumps(reply)


def _success(body: dict[str, Any], request_id: RequestId) -> bytes:
    reply = {"type": body.pop("type"), "status": "success", **body}
    if request_id is not None:
        reply["id"] = request_id
    return orjson.dumps(reply)
