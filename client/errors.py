"""What can go wrong, as exceptions with stable codes.

::

    VisionAIError                   every error of this package
      ConnectionFailed              the server cannot be reached, or not understood
        CannotConnect               cannot_connect       nothing answers there, or it is no VisionAI server
        ConnectionLost              connection_lost      it closed before the reply, and retrying did not help
        ProtocolViolation           protocol_violation   the server sent something that the protocol excludes
      RequestRejected               the same request would fail again
        InvalidRequest              invalid_request, invalid_json
        UnknownCommand              unknown_command      this server has no such command
        InvalidImage                invalid_image, invalid_base64
        ImageTooLarge               image_too_large
        NoFace                      no_face              ``detect="always"`` and there is none
      Unavailable                   the same request may succeed later; `retry_after` says when, if known
        Overloaded                  overloaded
        RateLimited                 rate_limited
        ShuttingDown                shutting_down
      Unauthorized                  unauthorized         no token, or one that is not accepted
      DeadlineExceeded              deadline_exceeded    not answered in time
      Superseded                    superseded           a newer camera frame overtook this one
      InternalError                 internal             a fault of the server
      UnknownError                  any other code       of a newer server, or ``error`` of an older one

Branch on the class or on ``code``; ``message`` is for people and may change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class VisionAIError(Exception):
    """Base of all errors. `retry_after` is in seconds, None where the server gave none."""

    code: str = "error"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class ConnectionFailed(VisionAIError):
    """The server cannot be reached, or what answers cannot be understood."""


class CannotConnect(ConnectionFailed):
    """Nothing answers at the address, or it is not a VisionAI server."""

    code = "cannot_connect"


class ConnectionLost(ConnectionFailed):
    """The connection closed before the reply came. `close_code` is WebSocket's; 1006 without a closing frame."""

    code = "connection_lost"

    def __init__(self, message: str, *, close_code: int = 1006, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.close_code = close_code


class ProtocolViolation(ConnectionFailed):
    """The server sent something that the protocol excludes."""

    code = "protocol_violation"


class RequestRejected(VisionAIError):
    """The request is at fault: sending it again would fail again."""


class InvalidRequest(RequestRejected):
    """A field is missing, unknown, or has an impossible value."""

    code = "invalid_request"


class UnknownCommand(RequestRejected):
    """The server does not have this command."""

    code = "unknown_command"


class InvalidImage(RequestRejected):
    """The bytes are not an image that the server can read."""

    code = "invalid_image"


class ImageTooLarge(RequestRejected):
    """The image has more pixels, or the message more bytes, than the server accepts."""

    code = "image_too_large"


class NoFace(RequestRejected):
    """A face was asked for and none was found."""

    code = "no_face"


class Unavailable(VisionAIError):
    """The server cannot take the request now."""


class Overloaded(Unavailable):
    """The server has more requests waiting than it can answer in time."""

    code = "overloaded"


class RateLimited(Unavailable):
    """This client sends more than it is allowed to."""

    code = "rate_limited"


class ShuttingDown(Unavailable):
    """This server is going away; another connection may reach another one."""

    code = "shutting_down"


class Unauthorized(VisionAIError):
    """No token was given, or the server does not accept it."""

    code = "unauthorized"


class DeadlineExceeded(VisionAIError):
    """No answer within the request's timeout, whether the server or this client noticed."""

    code = "deadline_exceeded"


class Superseded(VisionAIError):
    """A newer frame of the same stream overtook this one, which was not looked at."""

    code = "superseded"


class InternalError(VisionAIError):
    """A fault inside the server."""

    code = "internal"


class UnknownError(VisionAIError):
    """An error whose code this client does not know. `code` is the server's."""

    def __init__(self, message: str, *, code: str = "error", retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.code = code


_BY_CODE: Mapping[str, type[VisionAIError]] = {
    **{
        error.code: error
        for error in (
            InvalidRequest,
            UnknownCommand,
            InvalidImage,
            ImageTooLarge,
            NoFace,
            Overloaded,
            RateLimited,
            ShuttingDown,
            Unauthorized,
            DeadlineExceeded,
            Superseded,
            InternalError,
        )
    },
    "invalid_json": InvalidRequest,
    "invalid_base64": InvalidImage,
}


def error_of(reply: Mapping[str, Any]) -> VisionAIError:
    """The exception for an error reply. Servers of protocol 1 send no code: theirs is an `UnknownError`."""
    message = str(reply.get("message") or "the server gave no reason")
    code = reply.get("code")
    milliseconds = reply.get("retry_after_ms")
    retry_after = milliseconds / 1000 if isinstance(milliseconds, int | float) else None
    if not isinstance(code, str):
        return UnknownError(message, retry_after=retry_after)
    known = _BY_CODE.get(code)
    if known is None:
        return UnknownError(message, code=code, retry_after=retry_after)
    error = known(message, retry_after=retry_after)
    error.code = code  # invalid_json and invalid_base64 keep their own
    return error
