"""A lean WebSocket client: as little CPU per request as Python allows.

The load generator shares the machine with the server that it measures, so what it spends is what the server
lacks. Frames are masked and assembled once and sent many times; replies are counted by their length prefix and
parsed only by whoever wants to look at them. This is a measuring instrument, not a client library: it speaks
just enough of RFC 6455 for one request-reply dialogue with unfragmented messages.
"""

from __future__ import annotations

import asyncio
import base64
import os
import struct
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

# A server that shakes hands with many at once takes its time; one that speaks another protocol says nothing at all.
_GREETING_SECONDS = 30.0

_TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x1, 0x2, 0x8, 0x9, 0xA


def build_frame(payload: bytes, *, text: bool) -> bytes:
    """A complete client frame. The mask is all zeros, which RFC 6455 allows and which keeps the payload as it is."""
    opcode = 0x80 | (_TEXT if text else _BINARY)
    size = len(payload)
    if size < 126:
        head = struct.pack(">BB", opcode, 0x80 | size)
    elif size < 2**16:
        head = struct.pack(">BBH", opcode, 0x80 | 126, size)
    else:
        head = struct.pack(">BBQ", opcode, 0x80 | 127, size)
    return head + bytes(4) + payload


class ConnectionLost(Exception):
    """The server closed the connection, or refused it."""


class Connection(asyncio.Protocol):
    """One connection. `on_reply` is called with each reply, `on_lost` when it ends before `close`."""

    def __init__(self, on_reply: Callable[[bytes], None]) -> None:
        self.on_reply = on_reply
        self.on_lost: Callable[[], None] = lambda: None
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def send(self, request: bytes) -> None:
        """Write a complete request: one that `build_frame` made, or `build_post`."""
        assert self._transport is not None
        self._transport.write(request)

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self.on_lost = lambda: None
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        self.on_lost()


class WireClient(Connection):
    """A WebSocket. `on_reply` is called with the payload of each message, the welcome apart."""

    def __init__(self, on_reply: Callable[[bytes], None]) -> None:
        super().__init__(on_reply)
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._shook_hands = False
        self._welcomed = False

    @classmethod
    async def connect(cls, url: str, on_reply: Callable[[bytes], None]) -> WireClient:
        """Connect, shake hands and read the welcome.

        Raises:
            ConnectionLost: the server is not there, refuses, or does not greet in time.
        """
        parts = urlsplit(url)
        if parts.scheme != "ws" or parts.hostname is None:
            raise ConnectionLost(f"{url!r} is not of the form ws://HOST:PORT")
        loop = asyncio.get_running_loop()
        client = cls(on_reply)
        try:
            await loop.create_connection(lambda: client, parts.hostname, parts.port or 80)
        except OSError as exc:
            raise ConnectionLost(f"cannot connect to {url}: {exc.strerror or exc}") from None
        key = base64.b64encode(os.urandom(16)).decode()
        client.send(
            f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        try:
            async with asyncio.timeout(_GREETING_SECONDS):
                await client._ready
        except TimeoutError:
            client.close()
            raise ConnectionLost(
                f"{url} takes connections, but sent no welcome within {_GREETING_SECONDS:g} s"
            ) from None
        return client

    # asyncio.Protocol

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits, also for the welcome."""
        if not self._ready.done():
            self._ready.set_exception(ConnectionLost("the connection was closed during the handshake"))
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take the messages out of the stream."""
        buffer = self._buffer
        buffer += data
        if not self._shook_hands:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            status = bytes(buffer[: buffer.find(b"\r\n")])
            if b" 101 " not in status:
                self._ready.set_exception(ConnectionLost(f"refused: {status.decode(errors='replace')}"))
                self.close()
                return
            del buffer[: end + 4]
            self._shook_hands = True
        while (frame := self._next_frame()) is not None:
            opcode, payload = frame
            if opcode == _PING:
                self.send(struct.pack(">BB", 0x80 | _PONG, 0x80 | len(payload)) + bytes(4) + payload)
            elif opcode == _CLOSE:
                assert self._transport is not None
                self._transport.close()
            elif opcode in (_TEXT, _BINARY):
                if self._welcomed:
                    self.on_reply(payload)
                else:
                    self._welcomed = True
                    self._ready.set_result(None)

    def _next_frame(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, start = buffer[1] & 0x7F, 2
        if size == 126:
            if len(buffer) < 4:
                return None
            size, start = int.from_bytes(buffer[2:4], "big"), 4
        elif size == 127:
            if len(buffer) < 10:
                return None
            size, start = int.from_bytes(buffer[2:10], "big"), 10
        if len(buffer) < start + size:
            return None
        opcode = buffer[0] & 0x0F
        payload = bytes(buffer[start : start + size])
        del buffer[: start + size]
        return opcode, payload
