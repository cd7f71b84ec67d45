"""Peers that are slow, do not read, or are gone: raw sockets, and short settings."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import socket
import struct

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.service.harness import (
    FACE,
    TIMEOUT,
    Running,
    Serve,
    StartProcess,
    ask,
    predict_message,
    read,
    refused,
)

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: " + base64.b64encode(bytes(16)) + b"\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def frame(payload: bytes, *, first: int = 0x81) -> bytes:
    """A masked frame; the mask is zero."""
    return struct.pack("!BBQ", first, 0x80 | 127, len(payload)) + bytes(4) + payload


async def raw(running: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has shaken hands and read nothing since."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=2**16)
    writer.write(HANDSHAKE)
    async with asyncio.timeout(TIMEOUT):
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def closing(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection is closed."""
    async with asyncio.timeout(TIMEOUT):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize("begin", [b"", HANDSHAKE[:20]])
async def test_a_handshake_that_does_not_come_to_its_end_is_dropped(serve: Serve, begin: bytes) -> None:
    """A client that says nothing, and one that stops amid its headers."""
    async with serve(handshake_seconds=0.2) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(begin)
        assert await closing(reader) == b""
        writer.close()


@pytest.mark.parametrize(
    "begin", [b"\x82", frame(FACE)[:500], frame(b"x", first=0x01), frame(b"{}") + frame(FACE)[:3]]
)
async def test_a_message_that_does_not_come_to_its_end_is_closed_with_1008(
    serve: Serve, begin: bytes
) -> None:
    """Amid a frame's header, amid an image, between fragments, after a complete message; dribbling does not help."""
    async with serve(message_seconds=0.3) as running:
        reader, writer = await raw(running)
        writer.write(begin)

        async def dribble() -> None:
            for byte in frame(FACE)[500:]:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)

        dribbling = asyncio.create_task(dribble()) if len(begin) == 500 else None
        received = await closing(reader)
        assert b"\x03\xf0" in received  # 1008
        assert refused(running, "slow_writer") == 1
        if dribbling is not None:
            dribbling.cancel()
        writer.close()


async def test_a_client_that_goes_amid_a_message_is_not_slow(serve: Serve) -> None:
    """Nothing looks later for what it did not send."""
    async with serve(message_seconds=600.0) as running, asyncio.timeout(TIMEOUT):
        reader, writer = await raw(running)
        await reader.readuntil(b'"welcome"')
        (connection,) = running.service._connections
        writer.write(frame(FACE)[:500])
        while connection._message_timer is None:
            await asyncio.sleep(0)
        writer.transport.abort()
        while running.service._connections:
            await asyncio.sleep(0)
        assert connection._message_timer.cancelled()


async def test_a_client_that_is_slow_between_messages_is_left_alone(serve: Serve) -> None:
    """The time is for a message; a connection may be idle for as long as it answers pings."""
    async with serve(message_seconds=0.1) as running, running.client() as websocket:
        for _ in range(3):
            assert (await ask(websocket, predict_message()))["status"] == "success"
            await asyncio.sleep(0.25)


async def test_messages_that_follow_each_other_without_a_gap_have_their_time_each(serve: Serve) -> None:
    """A stream that is always amid a message is not slow as long as messages come to their end."""
    async with serve(message_seconds=2.0) as running:
        _, writer = await raw(running)
        health = frame(b'{"command": "ping"}')
        writer.write(health[:-1])
        for _ in range(60):  # all of them take longer than one may
            await asyncio.sleep(0.05)
            writer.write(health[-1:] + health[:-1])
        assert refused(running, "slow_writer") == 0
        writer.close()


async def test_a_client_that_is_not_read_from_is_not_slow(serve: Serve) -> None:
    """What a message lacks may lie in what is not read yet."""
    message = frame(FACE, first=0x82)
    async with serve(message_seconds=0.3) as running, asyncio.timeout(TIMEOUT):
        reader, writer = await raw(running)
        await reader.readuntil(b'"welcome"')
        writer.write(message[:500])
        (connection,) = running.service._connections
        while connection._incomplete_since == math.inf:
            await asyncio.sleep(0)
        connection.pause_reading()
        writer.write(message[500:])
        await asyncio.sleep(1.0)
        connection.resume_reading()
        await reader.readuntil(b'"prediction"')
        assert refused(running, "slow_writer") == 0
        writer.close()


@pytest.mark.parametrize("message", [frame(b'{"command": "model_info"}'), b"\x89\xfd" + bytes(4 + 125)])
async def test_a_client_that_does_not_read_is_closed_and_costs_bounded_memory(
    serve: Serve, message: bytes
) -> None:
    """Replies, or pongs, fill the buffers, then it is not read from, then it is closed; others are served meanwhile."""
    async with serve(send_seconds=0.5) as running, running.client() as other:
        reader, writer = await raw(running)

        async def flood() -> None:
            while True:
                writer.write(message * 1000)
                await writer.drain()

        flooding = asyncio.create_task(flood())
        async with asyncio.timeout(TIMEOUT):
            while not refused(running, "slow_reader"):
                assert (await ask(other, predict_message()))["status"] == "success"
                assert all(
                    connection.transport.get_write_buffer_size() < 2**20
                    for connection in running.service._connections
                )
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(TIMEOUT):
                await flooding
        await closing(reader)
        writer.close()


async def test_a_client_that_catches_up_with_its_replies_is_served_on(serve: Serve) -> None:
    """The time to catch up is for each time that it has fallen behind."""
    async with serve(send_seconds=600.0) as running, asyncio.timeout(TIMEOUT):
        reader, writer = await raw(running)
        (connection,) = running.service._connections
        while not connection.paused:
            # Whatever is written beyond that has to be answered, too.
            if not writer.transport.get_write_buffer_size():
                writer.write(frame(b'{"command": "model_info"}') * 100)
            await asyncio.sleep(0)
        deadline = connection._send_timer
        writer.write(frame(b'{"command": "ping", "id": "the last"}'))
        received = b""
        while b'"the last"' not in received:
            more = await reader.read(2**16)
            assert more, "it was closed"
            received = received[-100:] + more
        assert deadline is not None
        assert deadline.cancelled()
        writer.close()


async def test_a_client_that_is_being_closed_and_does_not_read_is_dropped(serve: Serve) -> None:
    """It is not read from, so neither its close nor its end would be noticed."""
    async with serve(send_seconds=0.5, ping_seconds=0) as running:
        _, writer = await raw(running)
        (connection,) = running.service._connections
        async with asyncio.timeout(TIMEOUT):
            while not connection.paused:
                writer.write((b"\x89\xfd" + bytes(4 + 125)) * 1000)
                await asyncio.sleep(0)
            assert connection.reading_paused
            connection.protocol.fail(1002)
            await connection.wait_closed()
        assert not running.service._connections
        writer.close()


@pytest.mark.parametrize(
    "last",
    [b"\x88\x80" + bytes(4), b"\xff", b"\x00\xfd" + bytes(4) + b"\xff"],
    ids=["close", "breach", "no text"],
)
async def test_a_client_that_is_closed_and_does_not_end_is_dropped(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, last: bytes
) -> None:
    """Also where nobody is pinged, and whatever it sends; what it had sent of a message is let go at once."""
    monkeypatch.setattr("service.network.messages._END_SECONDS", 0.5)
    async with serve(ping_seconds=0) as running, asyncio.timeout(TIMEOUT):
        _, writer = await raw(running)
        (connection,) = running.service._connections
        writer.write(frame(b"text", first=0x01) + last)
        while not connection.protocol.eof_sent:
            await asyncio.sleep(0)
        assert connection._frame is None
        assert connection._fragments is None
        while running.service._connections:
            writer.write(b"x" * 100)
            await asyncio.sleep(0.05)
            assert connection._frame is None
            assert connection._fragments is None
        writer.close()


async def test_a_client_that_ends_and_does_not_read_is_dropped(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody is pinged, and what it leaves unread is too little to be a reason to close it."""
    monkeypatch.setattr("service.network.messages._END_SECONDS", 0.5)
    async with serve(ping_seconds=0) as running, asyncio.timeout(TIMEOUT):
        _, writer = await raw(running)
        (connection,) = running.service._connections
        connection.transport.set_write_buffer_limits(2**30)
        # Little fits into the system's buffers, and no more is sent: all of it is answered before the end is heard.
        system = connection.transport.get_extra_info("socket")
        system.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**14)
        while not connection.transport.get_write_buffer_size():
            writer.write((b"\x89\xfd" + bytes(4 + 125)) * 100)
            await writer.drain()
            await asyncio.sleep(0)
        writer.write_eof()
        await connection.wait_closed()
        writer.close()


@pytest.mark.parametrize("begin", [b"", frame(FACE)[:500]])
async def test_a_peer_that_does_not_answer_pings_is_closed(serve: Serve, begin: bytes) -> None:
    """A half-open connection is dropped, also one that broke amid a message; one that answers stays."""
    async with serve(ping_seconds=0.5) as running, running.client() as alive:
        # Both ends of it are in this process: on a busy machine its pong may come late.
        (connection,) = running.service._connections
        connection.ping_timeout = TIMEOUT
        reader, writer = await raw(running)
        writer.write(begin)
        assert b"keepalive ping timeout" in await closing(reader)
        writer.close()
        async with asyncio.timeout(TIMEOUT):
            for _ in range(2):  # whose answer counts is pinged again
                connection.latency = 0.0
                while not connection.latency:
                    await asyncio.sleep(0.01)
        assert (await ask(alive, predict_message()))["status"] == "success"


async def test_a_peer_that_is_busy_sending_need_not_answer_pings(serve: Serve) -> None:
    """An upload over a slow network takes longer than a ping's time: no answer can come amid its frame."""
    async with serve(ping_seconds=1.0) as running:
        reader, writer = await raw(running)
        message = frame(FACE, first=0x82)
        writer.write(message[:-50])
        for byte in message[-50:]:
            await asyncio.sleep(0.05)
            writer.write(bytes([byte]))
        async with asyncio.timeout(TIMEOUT):
            await reader.readuntil(b'"prediction"')  # where a connection that is closed would end
        writer.close()


async def test_a_client_that_is_not_read_from_need_not_answer_pings(serve: Serve) -> None:
    """Its answer may lie in what is not read yet."""
    async with serve(ping_seconds=0.5) as running, running.client() as websocket:
        (connection,) = running.service._connections
        connection.pause_reading()
        await asyncio.sleep(1.5)
        connection.resume_reading()
        assert (await ask(websocket, predict_message()))["status"] == "success"


async def test_ten_thousand_attempts_leave_the_service_well(start_process: StartProcess) -> None:
    """Connections that come and go, half of them amid the handshake: the others are served, and none keeps a place."""
    service = start_process(MAX_CONNECTIONS="50", HANDSHAKE_SECONDS="2")
    async with connect(service.url) as other:
        await read(other)

        async def attempt(number: int) -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", service.port)
            writer.write(HANDSHAKE[: None if number % 2 else 30])
            writer.transport.abort()

        for start in range(0, 10_000, 100):
            await asyncio.gather(*(attempt(number) for number in range(start, start + 100)))
            if start % 1000 == 0:
                assert (await ask(other, predict_message()))["status"] == "success"
        async with asyncio.timeout(TIMEOUT):
            while (await ask(other, '{"command": "health"}'))["clients_connected"] > 1:
                await asyncio.sleep(0.05)
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(TIMEOUT):
            while (await ask(other, '{"command": "health"}'))["clients_connected"] < 50:
                with contextlib.suppress(InvalidStatus):  # the last ones have not left yet
                    await read(await stack.enter_async_context(connect(service.url)))
