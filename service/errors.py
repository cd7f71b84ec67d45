"""What can go wrong with a request, each with its stable code.

::

    RequestError                    any failure that one request is told about
      InvalidJSON                   the text frame is not JSON
      InvalidRequest                a field is missing or has the wrong type; names the field
      UnknownCommand                lists the commands
      InvalidBase64
      InvalidImage                  not an image, damaged, or of a kind that is not served
      ImageTooLarge                 refused by its header, before decoding
      NoFace                        a face was asked for, and none was found
      Unauthorized                  no credential where one is needed, or one that is not accepted
      TryAgain                      says when
        RateLimited                 more than one client may ask for
        Overloaded                  refused at the door
      DeadlineExceeded              its deadline passed while it waited; it was not run
      Superseded                    a newer frame of the same stream took its place
      ShuttingDown
      Internal                      our fault; the log has the cause

    StartupError                    the service cannot start; the message says what to do

Clients branch on ``code``; ``message`` is for people and may change.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Final


class RequestError(Exception):
    """A request that is answered with an error. The connection stays open."""

    code: ClassVar[str]
    retry_after_ms: int | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidJSON(RequestError):
    """The frame is not a JSON text."""

    code = "invalid_json"


class InvalidRequest(RequestError):
    """A field is missing, has the wrong type or an impossible value."""

    code = "invalid_request"


class UnknownCommand(RequestError):
    """The command does not exist."""

    code = "unknown_command"


class InvalidBase64(RequestError):
    """The image field is not base64."""

    code = "invalid_base64"


class InvalidImage(RequestError):
    """The bytes are not an image that can be read."""

    code = "invalid_image"


class ImageTooLarge(RequestError):
    """The image's header announces more pixels than are accepted."""

    code = "image_too_large"


class NoFace(RequestError):
    """`detect` is "always", and no face was found."""

    code = "no_face"


class Unauthorized(RequestError):
    """The client has not proved who it is."""

    code = "unauthorized"


class TryAgain(RequestError):
    """One that says when to try again."""

    def __init__(self, message: str, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class RateLimited(TryAgain):
    """The client has asked for more than it may."""

    code = "rate_limited"


class Overloaded(TryAgain):
    """The queue is full; the request was not admitted."""

    code = "overloaded"


class DeadlineExceeded(RequestError):
    """The request's deadline passed before an executor was free."""

    code = "deadline_exceeded"


class Superseded(RequestError):
    """A newer frame of the same stream came in while this one waited."""

    code = "superseded"


class ShuttingDown(RequestError):
    """The service drains; another instance should be asked."""

    code = "shutting_down"

    def __init__(self) -> None:
        super().__init__("the service is shutting down")


class Internal(RequestError):
    """A fault inside the service."""

    code = "internal"


def _kinds(kind: type[RequestError]) -> Iterator[type[RequestError]]:
    for each in kind.__subclasses__():
        yield each
        yield from _kinds(each)


ERROR_CODES: Final = tuple(kind.code for kind in _kinds(RequestError) if hasattr(kind, "code"))


def as_utf8(text: str) -> str:
    """A text that can be sent and stored: the bytes of a file's name that are no UTF-8 are escapes in it."""
    return text.encode(errors="backslashreplace").decode()


# The exit code of a process that cannot start.
EXIT_CANNOT_START: Final = 2


class StartupError(Exception):
    """The service cannot start. The message is one line and says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(as_utf8(message))


@contextmanager
def telling_missing_packages() -> Iterator[None]:
    """Where one is not installed that is not ours, the StartupError that says so."""
    try:
        yield
    except ModuleNotFoundError as exc:
        package = (exc.name or "service").partition(".")[0]
        if package == "service":
            raise
        raise StartupError(
            f"{package} is not installed for {sys.executable}: use the Python of .venv, which `make run` makes "
            "(README.md)"
        ) from None
