"""The web page: its files, read once at start, and the headers that they are served with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

_ROOT = Path(__file__).parents[2]
_WEB = Path(__file__).parents[1] / "web"
_CLIENT = _ROOT / "client" / "js"

_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".ts": "text/plain; charset=utf-8",  # declarations, for people and editors
}

# Nothing is loaded from elsewhere, nothing is inline, and no string becomes code or markup. `connect-src 'self'`
# covers the WebSocket of the same origin. Photos that a person chose are drawn on canvases, and need no leave.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)

_PAGE_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# The client may be imported by other sites' pages: it is a public script, and the WebSocket checks its own origin.
_CLIENT_HEADERS = {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    etag: str
    headers: tuple[tuple[str, str], ...]


class Page:
    """The files of the page and of the JavaScript client, in memory, by the path that they are served at.

    ``/`` is `service/web/index.html`, ``/web/NAME`` are its other files; ``/visionai.js`` and ``/visionai.d.ts`` are
    the client.
    """

    def __init__(self) -> None:
        self._files = {"/": _read(_WEB / "index.html", _PAGE_HEADERS)}
        for path in _WEB.iterdir():
            if path.suffix in _CONTENT_TYPES and path.name != "index.html":
                self._files[f"/web/{path.name}"] = _read(path, _PAGE_HEADERS)
        for name in ("visionai.js", "visionai.d.ts"):
            self._files[f"/{name}"] = _read(_CLIENT / name, _CLIENT_HEADERS)

    def respond(self, path: str, request: Request) -> Response | None:
        """The file at a path, or 304 where the browser has it; None where there is none."""
        file = self._files.get(path)
        if file is None:
            return None
        headers = Headers([("Date", formatdate(usegmt=True)), *file.headers])
        if _has(request.headers.get_all("If-None-Match"), file.etag):
            status, body = HTTPStatus.NOT_MODIFIED, b""
        else:
            status, body = HTTPStatus.OK, file.body
            headers["Content-Length"] = str(len(body))
        return Response(status.value, status.phrase, headers, body)


def _read(path: Path, headers: dict[str, str]) -> _File:
    body = path.read_bytes()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    common = {
        "Content-Type": _CONTENT_TYPES[path.suffix],
        "ETag": etag,
        # Kept, and asked about each time: after an update nobody mixes old and new modules.
        "Cache-Control": "no-cache",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
    }
    return _File(body, etag, tuple((common | headers).items()))


def _has(if_none_match: list[str], etag: str) -> bool:
    """Whether one of the entity tags is this one; they are compared weakly, as RFC 9110, 13.1.2 asks."""
    tags = [tag.strip().removeprefix("W/") for value in if_none_match for tag in value.split(",")]
    return etag in tags or "*" in tags
