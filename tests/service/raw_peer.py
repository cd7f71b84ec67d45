"""A WebSocket client that shares no code with the server: raw frames out, the server's frames read with wsproto."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, CloseConnection, Event, Pong, TextMessage
from wsproto.events import Request as Handshake

from tests.service.harness import FACE, TIMEOUT, predict_message

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

# Payloads on both sides of where the length is written otherwise.
SIZES = (0, 1, 125, 126, 127, 128, 65535, 65536)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """A client's frame (RFC 6455, section 5.2), also one that must not be sent."""
    head = bytearray([fin << 7 | rsv << 4 | opcode])
    size, bit = len(payload), masked << 7
    if size < 126:
        head.append(bit | size)
    elif size < 65536:
        head += struct.pack("!BH", bit | 126, size)
    else:
        head += struct.pack("!BQ", bit | 127, size)
    if not masked:
        return bytes(head) + payload
    mask = os.urandom(4)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return bytes(head) + mask + (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


def close(code: int | None = None, reason: bytes = b"") -> bytes:
    """A close frame."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


class Peer:
    """A client on a bare TCP connection. What the server sends must be what RFC 6455 allows: wsproto checks it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._events: list[Event] = []

    async def shake_hands(self) -> None:
        """Open, and read the welcome."""
        self._writer.write(self._protocol.send(Handshake(host="localhost", target="/")))
        assert isinstance(await self.event(), AcceptConnection)
        assert (await self.reply())["type"] == "welcome"

    def send(self, *frames: bytes, chop: int = 0) -> None:
        """Send bytes, by default at once, or in pieces of so many."""
        data = b"".join(frames)
        for at in range(0, len(data), chop or len(data)):
            self._writer.write(data[at : at + (chop or len(data))])

    async def event(self) -> Event:
        """What comes next from the server."""
        while not self._events:
            data = await asyncio.wait_for(self._reader.read(65536), TIMEOUT)
            self._protocol.receive_data(data or None)
            self._events += self._protocol.events()
        return self._events.pop(0)

    async def reply(self) -> dict[str, object]:
        """The next message, which is whole text."""
        text = ""
        while True:
            event = await self.event()
            assert isinstance(event, TextMessage), event
            text += event.data
            if event.message_finished:
                reply: dict[str, object] = orjson.loads(text)
                return reply

    async def pong(self) -> bytes:
        """The payload of the pong that comes next."""
        event = await self.event()
        assert isinstance(event, Pong), event
        return bytes(event.payload)

    async def error(self) -> object:
        """The code of the error that comes next."""
        return (await self.reply())["code"]

    async def closed(self) -> int:
        """The code of the close that comes next. After it nothing comes but the end of the TCP connection."""
        event = await self.event()
        assert isinstance(event, CloseConnection), event
        if self._protocol.state is ConnectionState.REMOTE_CLOSING:
            with contextlib.suppress(ConnectionError):
                self._writer.write(self._protocol.send(event.response()))
        assert not self._events
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(self._reader.read(), TIMEOUT) == b""
        return int(event.code)

    async def is_served(self) -> None:
        """The connection lives, and predicts."""
        self.send(frame(TEXT, predict_message(FACE, detect="never").encode()))
        assert (await self.reply())["emotion_name"] == "happy"


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Peer]:
    """A peer of the server at this port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        peer = Peer(reader, writer)
        await peer.shake_hands()
        yield peer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
