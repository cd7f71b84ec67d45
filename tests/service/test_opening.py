"""A connection's first request, on a bare socket: what is behind it, and what is none."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import orjson
import pytest

from service.network.opening import OpeningConnection
from tests.service.harness import TIMEOUT, Running, Serve

HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def message(text: bytes) -> bytes:
    """A client's short text frame, with a mask of zeros."""
    return struct.pack("!BBI", 0x81, 0x80 | len(text), 0) + text


@asynccontextmanager
async def connected(running: Running) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TCP connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    try:
        async with asyncio.timeout(TIMEOUT):
            yield reader, writer
    finally:
        writer.close()


async def read_message(reader: asyncio.StreamReader) -> str:
    """The type of the server's next message."""
    _, size = await reader.readexactly(2)
    if size == 126:
        (size,) = struct.unpack("!H", await reader.readexactly(2))
    reply: dict[str, str] = orjson.loads(await reader.readexactly(size))
    return reply["type"]


@pytest.mark.parametrize(
    ("head", "body", "reason"),
    [
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\n", b"{}", b"body"),
        (b"PUT /ws HTTP/1.1\r\nContent-Length: 100000\r\n", b"\r\n" * 50_000, b"body"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", b"2\r\n{}\r\n0\r\n\r\n", b"transfer codings"),
        (b"GET / HTTP/2.0\r\n", b"", b"expected HTTP/1.1"),
        (b"GET /\xc3\xa9 HTTP/1.1\r\n", b"", b"ascii"),
        (b"GET / HTTP/1.1\r\n" + b"x" * 8000 + b"\r\n", b"", b"invalid HTTP header"),
        (b"GET / HTTP/1.1\n", b"", b"CRLF"),
    ],
)
async def test_a_request_that_cannot_be_read_is_told_why(
    running: Running, head: bytes, body: bytes, reason: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A 400 says what is wrong, in a line, and what is served here: it is not hung up on without a word."""
    async with connected(running) as (reader, writer):
        writer.write(head + b"Host: x\r\n\r\n" + body)
        answer, _, text = (await reader.read()).partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert reason in text
    assert b"images are sent over a WebSocket" in text
    assert len(text) < 400
    assert not caplog.records


@pytest.mark.parametrize(
    ("head", "status", "reason"),
    [
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n", 414, b"Too Long: read 9"),
        (b"GET / HTTP/1.1\r\nCookie: " + b"x" * 9000 + b"\r\n", 431, b"Too Large: read 9"),
        (
            b"GET / HTTP/1.1\r\n" + (b"X: " + b"y" * 4000 + b"\r\n") * 9,
            431,
            b"Too Large: read more than 32768 bytes",
        ),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200, 431, b"Too Large: expected no more than 128 headers"),
    ],
)
async def test_a_request_that_is_too_large_is_told_what_is(
    running: Running, head: bytes, status: int, reason: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Its address or its headers, and the limit; not that a WebSocket failed, which a browser did not ask for."""
    async with connected(running) as (reader, writer):
        writer.write(head + b"Host: x\r\n\r\n")
        answer, _, text = (await reader.read()).partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert reason in text
    assert b"WebSocket" not in text
    assert b"Content-Length: %d\r\n" % len(text) in answer + b"\r\n"
    assert not caplog.records


async def test_a_request_is_too_large_before_it_has_come_to_its_end(running: Running) -> None:
    """What is kept of it is bounded: the answer does not wait for the rest of its headers."""
    async with connected(running) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n")
        for _ in range(9):
            await writer.drain()
            writer.write(b"X: " + b"y" * 4000 + b"\r\n")
        assert b" 431 " in await reader.readline()


@pytest.mark.parametrize("behind", [b"\r\n", REQUEST, b"\x89\x80abcd", b"\xff" * 1000])
@pytest.mark.parametrize("cut", [0, -1, -2, -3, -20])
async def test_a_request_is_answered_whatever_is_behind_it(
    running: Running, behind: bytes, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Another request, an empty line, a frame: the first is answered, alone, also if it comes in two reads."""
    async with connected(running) as (reader, writer):
        if cut:
            writer.write(REQUEST[:cut])
            await asyncio.sleep(0.01)  # so that it is read by itself
            writer.write(REQUEST[cut:] + behind)
        else:
            writer.write(REQUEST + behind)
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b'\r\n\r\n{"status":"alive"}')
    assert not caplog.records


@pytest.mark.parametrize("request_bytes", [REQUEST, b"GET / HTTP/2.0\r\nHost: x\r\n\r\n"])
async def test_what_comes_behind_an_answer_is_not_kept(running: Running, request_bytes: bytes) -> None:
    """Megabytes of it, say of a program that sends a body and looks for the answer then."""
    async with connected(running) as (reader, writer):
        writer.write(request_bytes)
        assert (await reader.read()).startswith(b"HTTP/1.1 ")
        writer.write(bytes(16 * 2**20))
        await writer.drain()  # when most of it is read
        (connection,) = running.service._handshakes.under_way
        assert not connection._behind


@pytest.mark.parametrize("said", [b"", REQUEST, HANDSHAKE])
async def test_nothing_is_left_of_a_client_that_is_gone(running: Running, said: bytes) -> None:
    """Whether or not it was greeted: health checks come every few seconds, for months."""
    handshakes = running.service._handshakes
    async with connected(running) as (reader, writer):
        while not handshakes.under_way:
            await asyncio.sleep(0)
        writer.write(said)
        if said:
            assert (await reader.readline()).startswith(b"HTTP/1.1 ")
    async with asyncio.timeout(TIMEOUT):
        while handshakes.under_way or running.service._connections:
            await asyncio.sleep(0)


async def test_a_client_that_is_gone_before_its_handshake_is_looked_at_takes_no_place(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would have it for ever: nobody leaves who is gone already."""
    received = OpeningConnection.opening_received

    def receive_and_lose(connection: OpeningConnection, data: bytes) -> None:
        received(connection, data)
        connection.transport.abort()

    async with serve(max_connections=1) as running:
        with monkeypatch.context() as patch:
            patch.setattr(OpeningConnection, "opening_received", receive_and_lose)
            async with connected(running) as (reader, writer):
                writer.write(HANDSHAKE)
                with suppress(ConnectionError):
                    assert await reader.read() == b""
        async with connected(running) as (reader, writer):
            writer.write(HANDSHAKE)
            assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("request_bytes", [REQUEST, HANDSHAKE])
@pytest.mark.parametrize("together", [True, False])
async def test_an_empty_line_before_a_request_is_ignored(
    running: Running, request_bytes: bytes, together: bool
) -> None:
    """RFC 9112, 2.2: some programs put one behind what they said before. A second is none of theirs."""
    for before, answer in ((b"\r\n", {b"101", b"200"}), (b"\r\n\r\n", {b"400"})):
        async with connected(running) as (reader, writer):
            if not together:
                writer.write(before)
                await asyncio.sleep(0.01)  # so that it is read by itself
                before = b""
            writer.write(before + request_bytes)
            assert (await reader.readline()).split(b" ")[1] in answer


@pytest.mark.parametrize("request_bytes", [REQUEST, HANDSHAKE])
async def test_a_client_that_has_no_more_to_say_is_answered(running: Running, request_bytes: bytes) -> None:
    """One that ends its stream behind the request, as some health checks and scripts do, reads the answer."""
    async with connected(running) as (reader, writer):
        writer.write(request_bytes)
        writer.write_eof()
        assert (await reader.read()).startswith(b"HTTP/1.1 ")


@pytest.mark.parametrize("count", [1, 100])
async def test_messages_that_come_with_the_handshake_are_answered(running: Running, count: int) -> None:
    """A client that does not wait for the handshake has its welcome first, then a reply to each message."""
    async with connected(running) as (reader, writer):
        writer.write(HANDSHAKE + message(b'{"command":"ping"}') * count)
        await reader.readuntil(b"\r\n\r\n")
        assert await read_message(reader) == "welcome"
        for _ in range(count):
            assert await read_message(reader) == "pong"
        writer.write(message(b'{"command":"emotions"}'))
        assert await read_message(reader) == "emotions"
