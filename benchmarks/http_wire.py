"""A lean HTTP/1.1 client on one kept connection, for peers that speak HTTP: the counterpart of `wire`.

It reads replies with a Content-Length or in chunks, and hands over their bodies. A status other than 200 is handed
over as a body that says so, so that it is counted as an error.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from urllib.parse import urlsplit

from benchmarks.wire import Connection, ConnectionLost


def build_post(body: bytes) -> bytes:
    """A complete request with a JSON body, as peers take it."""
    return (
        "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


class HTTPClient(Connection):
    """One kept connection. `on_reply` is called with the body of each reply, in the order of the requests."""

    @classmethod
    async def connect(cls, url: str, on_reply: Callable[[bytes], None]) -> HTTPClient:
        """Connect.

        Raises:
            ConnectionLost: the server is not there.
        """
        parts = urlsplit(url)
        client = cls(on_reply)
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: client, parts.hostname or "", parts.port or 80
            )
        except OSError as exc:
            raise ConnectionLost(f"cannot connect to {url}: {exc.strerror or exc}") from None
        return client

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """Take the replies out of the stream."""
        self._buffer += data
        while (body := take_reply(self._buffer)) is not None:
            self.on_reply(body)


def take_reply(buffer: bytearray) -> bytes | None:
    """Remove one complete reply from the front; its body, or None while it is not complete."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    status, _, rest = bytes(buffer[:end]).partition(b"\r\n")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in rest.split(b"\r\n"))
    }
    start = end + 4
    if b"chunked" in headers.get(b"transfer-encoding", b""):
        found = _take_chunks(buffer, start)
        if found is None:
            return None
        body, stop = found
    else:
        stop = start + int(headers.get(b"content-length", b"0"))
        if len(buffer) < stop:
            return None
        body = bytes(buffer[start:stop])
    del buffer[:stop]
    code = status.split()[1].decode()
    return body if code == "200" else json.dumps({"status": "error", "code": f"http_{code}"}).encode()


def _take_chunks(buffer: bytearray, start: int) -> tuple[bytes, int] | None:
    """The body and the position after it; None while chunks are missing. Trailers are not read: no peer sends any."""
    parts: list[bytes] = []
    while True:
        line = buffer.find(b"\r\n", start)
        if line < 0:
            return None
        size = int(bytes(buffer[start:line]).split(b";")[0], 16)
        stop = line + 2 + size + 2
        if len(buffer) < stop:
            return None
        if size == 0:
            return b"".join(parts), stop
        parts.append(bytes(buffer[line + 2 : line + 2 + size]))
        start = stop
