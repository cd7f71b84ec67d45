"""Plain HTTP on the WebSocket port: the web page, health, readiness, metrics and the protocol's description."""

from __future__ import annotations

import re
from collections.abc import Callable
from email.utils import formatdate
from functools import cache
from http import HTTPStatus
from importlib import resources

import orjson
from websockets.datastructures import Headers
from websockets.exceptions import RequestLineTooLong, SecurityError
from websockets.http11 import Request, Response

from service.network.page import Page

_METHODS = ("GET", "HEAD")
_VERSION = "13"  # of the WebSocket protocol, which a client of another one is to be told (RFC 6455, 4.2.2)
_WEBSOCKET_PATHS = frozenset({"/", "/ws"})
_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*")

# For those who look for an HTTP API.
_SERVED = "there is GET and HEAD here, without a body; images are sent over a WebSocket, see /asyncapi.yaml\n"
# Of what is wrong with a request, which the client may have filled with anything.
_MAX_REASON = 200


def route(
    request: Request, *, page: Page, not_ready: Callable[[], str | None], metrics: Callable[[], bytes]
) -> Response | None:
    """Answer a plain HTTP request; None for a WebSocket handshake on a path where one is served.

    Args:
        page: what is served at ``/``, with its files.
        not_ready: says why the service cannot predict now; None when it can.
        metrics: the Prometheus exposition.
    """
    if request.method not in _METHODS:
        refused = respond(HTTPStatus.METHOD_NOT_ALLOWED, _SERVED.encode())
        refused.headers["Allow"] = ", ".join(_METHODS)
        return refused
    path = _path(request.path)
    upgrades = any("websocket" in value.lower() for value in request.headers.get_all("Upgrade"))
    # Two are refused, as RFC 9112, 3.2, asks: a proxy may have taken the other. It would refuse none at all, too; but a
    # client in use may send none.
    if len(request.headers.get_all("Host")) > 1:
        response = respond(HTTPStatus.BAD_REQUEST, b"a request has one Host header\n")
    elif upgrades and request.method == "GET":
        if path not in _WEBSOCKET_PATHS:
            return respond(HTTPStatus.NOT_FOUND, b"WebSocket connections are served at / and /ws\n")
        if request.headers.get_all("Sec-WebSocket-Version") in ([], [_VERSION]):
            return None  # without one it is the library that refuses
        refused = respond(HTTPStatus.BAD_REQUEST, b"the WebSocket protocol's version 13 is spoken here\n")
        refused.headers["Sec-WebSocket-Version"] = _VERSION
        return refused
    else:
        response = _answer(path, request, page, not_ready, metrics)
    if request.method == "HEAD":
        response.body = b""  # `Content-Length` stays what GET has
    return response


def refuse(reason: BaseException | None) -> Response:
    """The answer to a request that cannot be read: it has a body, or is no HTTP/1.

    Args:
        reason: what the library found wrong with it.
    """
    shown = str(reason)[:_MAX_REASON]
    return respond(HTTPStatus.BAD_REQUEST, f"{shown}; {_SERVED}".encode(errors="backslashreplace"))


def refuse_size(reason: SecurityError) -> Response:
    """The answer to a request whose first line or headers are too large.

    Args:
        reason: what the library found too large.
    """
    status = HTTPStatus(414 if isinstance(reason, RequestLineTooLong) else 431)
    return respond(status, f"{status.phrase}: {reason}\n".encode())


def _path(target: str) -> str:
    """The path in what a request asks for: ``/path?query``, or ``http://host/path?query`` (RFC 9112, 3.2).

    What is neither stays as it is, which is no path that is served: a proxy that keeps a path from its clients must not
    see another one in it than we do.
    """
    target = target.partition("?")[0]
    scheme, _, rest = target.partition("://")
    return "/" + rest.partition("/")[2] if rest and _SCHEME.fullmatch(scheme) else target


def _answer(
    path: str,
    request: Request,
    page: Page,
    not_ready: Callable[[], str | None],
    metrics: Callable[[], bytes],
) -> Response:
    match path:
        case "/healthz":
            return _json(HTTPStatus.OK, {"status": "alive"})
        case "/readyz":
            reason = not_ready()
            if reason is None:
                return _json(HTTPStatus.OK, {"status": "ready"})
            return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "not ready", "reason": reason})
        case "/asyncapi.yaml":
            return respond(HTTPStatus.OK, _asyncapi(), "application/yaml; charset=utf-8")
        case "/metrics":
            return respond(HTTPStatus.OK, metrics(), "text/plain; version=0.0.4; charset=utf-8")
        case "/ws":
            # A proxy that passes no upgrades on asks like this, and so do people.
            return respond(
                HTTPStatus.NOT_FOUND, b"WebSocket connections are served here, and no upgrade was asked for\n"
            )
    return page.respond(path, request) or respond(HTTPStatus.NOT_FOUND, b"there is nothing here\n")


@cache
def _asyncapi() -> bytes:
    """The protocol in machine-readable form."""
    return (resources.files("service") / "asyncapi.yaml").read_bytes()


def _json(status: HTTPStatus, body: dict[str, str]) -> Response:
    return respond(status, orjson.dumps(body), "application/json")


def respond(status: HTTPStatus, body: bytes, content_type: str = "text/plain; charset=utf-8") -> Response:
    """An answer that is made for this request alone. Nothing comes behind it."""
    headers = Headers(
        [
            ("Date", formatdate(usegmt=True)),
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
        ]
    )
    return Response(status.value, status.phrase, headers, body)
