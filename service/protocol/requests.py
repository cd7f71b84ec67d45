"""The wire protocol's requests, without sockets: frames in, typed requests out. What goes out is in `replies`.

A text frame holds one JSON object. A binary frame is an image, or a one-line JSON header, a newline and an
image. `parse_frame` turns either into a typed request, or raises a `RequestError` (which carries the
request's ``id`` where it could be read, see `FrameError`).

The base64 text of an image is kept as it came: it is decoded where the image is, off the event loop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeVar, get_args

import orjson

from service.batching.scheduler import HIGH, LOW, NORMAL
from service.errors import InvalidJSON, InvalidRequest, RequestError, UnknownCommand
from service.images import ImageFile
from service.settings import Detect

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
DETECT: Final[tuple[Detect, ...]] = get_args(Detect)
MAX_FACES: Final = 64
PRIORITIES: Final = {"high": HIGH, "normal": NORMAL, "low": LOW}
SUBPROTOCOL: Final = "visionai.v2"

MAX_LIMIT: Final = 1000
MAX_BUCKETS: Final = 500
MAX_WINDOW_S: Final = 10 * 366 * 86400.0
# Far below what anybody looks at, and far above the microseconds that times are told in.
MIN_BUCKET_S: Final = 0.001
_MAX_CURSOR: Final = 100

# A request id comes back in the reply and is stored with the prediction: long ones would be free storage.
MAX_ID_LENGTH: Final = 128
MAX_ID_INTEGER: Final = 2**53 - 1  # the largest integer that survives a JavaScript client

# Room for the longest token that is looked at. Without a bound a binary frame without a newline would be scanned to its
# end.
MAX_HEADER_BYTES: Final = 16_384

# What makes a message large is an image, which is one value. Of 16 MB of empty lists the parser would make objects for
# seconds, in which nobody else is served. Smaller messages take it milliseconds, whatever is in them.
_LARGE_TEXT: Final = 400_000
_MAX_VALUES: Final = 10_000

# The beginning of what is refused unparsed, in which its id is looked for: first, or behind the command.
_EARLY: Final = 1024
_EARLY_ID: Final = re.compile(
    rb'\s*(\{\s*(?:"command"\s*:\s*"\w*"\s*,\s*)?"id"\s*:\s*(?:"[^"\\]*"|-?\d+))\s*[,}]'
)


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
class History:
    """A request for stored predictions, newest first. `cursor` is the `next` of the page before."""

    id: RequestId
    limit: int = 50
    cursor: str | None = None
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Stats:
    """A request for figures over the last `window_s` seconds, in so many `buckets` or in none."""

    id: RequestId
    window_s: float = 3600.0
    buckets: int = 0
    scope: Literal["all", "connection"] = "all"
    token: str | None = field(default=None, repr=False)


Lookup = History | Stats


@dataclass(frozen=True, slots=True)
class Configure:
    """A request to change the connection's options; `changes` are those of its fields that `Options` takes."""

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
                raise InvalidRequest(
                    f"'{name[:40]}' cannot be configured; {', '.join(self.__slots__)}, token can"
                )
            if name in ("ordered", "stream") and not isinstance(value, bool | None):
                raise InvalidRequest(f"'{name}' is true or false, not {_json_type(value)}")
        # Null is as if the field was not there, but for the two where it means none.
        checked = {name: value for name, value in changes.items() if value is not None}
        for name in ("deadline_ms", "smoothing_ms"):
            if name in changes:
                checked[name] = _read_milliseconds(changes, name)
        if "detect" in checked:
            checked["detect"] = _read_detect(changes)
        if "max_faces" in checked:
            checked["max_faces"] = _integer(changes, "max_faces", None, 1, MAX_FACES)
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
        if len(frame) > _LARGE_TEXT and max(map(frame.count, ",[{")) > _MAX_VALUES:
            raise FrameError(
                InvalidRequest(
                    f"a large message of more than {_MAX_VALUES} values: send an image, and little else"
                ),
                _early_id(frame[:_EARLY].encode()),
            )
        return _parse_object(_load(frame), None)
    if frame[:1] == b"{":
        end = bytes(frame[: MAX_HEADER_BYTES + 1]).find(b"\n")
        if end < 0:
            raise FrameError(
                InvalidRequest(
                    f"a binary frame's JSON header has at most {MAX_HEADER_BYTES} bytes, and a newline and the image "
                    "behind it; JSON alone is sent as text"
                ),
                _early_id(bytes(frame[:_EARLY])),
            )
        return _parse_object(
            _load(frame[:end], "a binary frame's header, up to its first newline,"), frame[end + 1 :]
        )
    # Anything else is an image, or is found not to be one where images are read.
    return Predict(None, frame)


def _early_id(beginning: bytes) -> RequestId:
    found = _EARLY_ID.match(beginning)
    try:
        return None if found is None else _read_id(_load(found[1] + b"}"))
    except FrameError:  # one that is no id hides nothing of what the message is refused for
        return None


# What most requests have and no more: the others are not looked for.
_PLAIN = frozenset(("command", "id", "image"))


def _load(text: str | ImageFile, what: str = "the message") -> dict[str, Any]:
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise FrameError(InvalidJSON(f"{what} is not JSON: {exc}")) from None
    if not isinstance(message, dict):
        raise FrameError(InvalidRequest(f"a message is a JSON object, not {_json_type(message)}"))
    return message


def _parse_object(
    message: dict[str, Any], attached_image: ImageFile | None
) -> Predict | Query | Configure | Lookup:
    request_id = _read_id(message)
    try:
        command = message.get("command")
        if command is None or command == "predict":
            image = attached_image if attached_image is not None else _read_image(message)
            if message.keys() <= _PLAIN:
                return Predict(request_id, image)
            return Predict(
                request_id,
                image,
                _read_milliseconds(message, "deadline_ms"),
                _read_priority(message),
                _read_detect(message),
                _integer(message, "max_faces", None, 1, MAX_FACES),
                _read_token(message),
            )
        if command == "configure":
            changes = {k: v for k, v in message.items() if k not in ("command", "id", "token")}
            # Before the token is looked at: of a request that is refused, nothing may be in force.
            Options().changed(changes)
            return Configure(request_id, changes, _read_token(message))
        # A list or an object is no command either, and is not hashable.
        if isinstance(command, str) and command in QUERIES:
            return Query(request_id, command, _read_token(message))
        if isinstance(command, str) and command in LOOKUPS:
            return replace(_parse_lookup(command, request_id, message), token=_read_token(message))
        shown = repr(command[:40]) if isinstance(command, str) else _json_type(command)
        raise UnknownCommand(f"unknown command {shown}; the commands are {', '.join(COMMANDS)}")
    except RequestError as exc:
        raise FrameError(exc, request_id) from None


def _parse_lookup(command: str, request_id: RequestId, fields: Mapping[str, Any]) -> Lookup:
    """The fields of a `history` or `stats` request. Null is as if the field was not there."""
    fields = {name: value for name, value in fields.items() if value is not None}
    if command == "history":
        cursor = fields.get("cursor")
        if cursor is not None and (not isinstance(cursor, str) or len(cursor) > _MAX_CURSOR):
            raise InvalidRequest("'cursor' is the 'next' of the page before, or left out")
        return History(request_id, _integer(fields, "limit", 50, 1, MAX_LIMIT), cursor)
    window = fields.get("window_s", 3600.0)
    if isinstance(window, bool) or not isinstance(window, int | float) or not 0 < window <= MAX_WINDOW_S:
        raise InvalidRequest(f"'window_s' is a number of seconds above 0, at most {MAX_WINDOW_S:.0f}")
    buckets = _integer(fields, "buckets", 0, 0, MAX_BUCKETS)
    # In whole microseconds: 0.071 / 71 is a little less than 0.001.
    if round(window * 1e6) < max(buckets, 1) * round(MIN_BUCKET_S * 1e6):
        raise InvalidRequest(f"'window_s' is at least {MIN_BUCKET_S} seconds for each of the 'buckets'")
    scope = fields.get("scope", "all")
    if scope not in ("all", "connection"):
        raise InvalidRequest("'scope' is all or connection")
    return Stats(request_id, float(window), buckets, scope)


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
        case float() if value.is_integer() and abs(value) <= MAX_ID_INTEGER:
            return int(value)
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


Default = TypeVar("Default", int, None)


def _integer(fields: Mapping[str, Any], name: str, default: Default, low: int, high: int) -> int | Default:
    """The integer of a field, `default` where it is null or not there. 4.0 is one, as in JSON Schema."""
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"'{name}' is an integer from {low} to {high}")
    return value


def _read_milliseconds(message: Mapping[str, Any], name: str) -> float | None:
    value = message.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InvalidRequest(f"'{name}' is a number of milliseconds above 0")
    return float(value)


def _read_priority(message: Mapping[str, Any]) -> int:
    value = message.get("priority")
    if value is None:
        return NORMAL
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
