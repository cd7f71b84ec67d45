"""Connections, rates, and peers that are slow or gone: raw sockets, and short settings."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import struct
import time
from ipaddress import ip_network
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from service.errors import RateLimited
from service.metrics import SharedCells
from service.security.admission import Admission
from service.security.guard import Guard, Rules
from service.security.rates import TokenBucket
from tests.service.harness import FACE, TIMEOUT, Running, Serve, StartProcess, ask, predict_message, read

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


def refused(running: Running, reason: str) -> float:
    """How many connections were refused for a reason."""
    for line in running.service._exposition().decode().splitlines():
        if line.startswith(f'visionai_connections_refused_total{{reason="{reason}"}}'):
            return float(line.split()[-1])
    raise AssertionError(reason)


async def status_of(url: str, **options: Any) -> int:
    """The HTTP status of a handshake that is refused."""
    with pytest.raises(InvalidStatus) as caught:
        await connect(url, **options)
    return caught.value.response.status_code


async def test_connections_beyond_the_limit_get_503_until_one_leaves(serve: Serve) -> None:
    """The others are served on, and whoever leaves makes room."""
    async with serve(max_connections=2) as running, running.client() as first:
        async with running.client():
            assert await status_of(running.url) == 503
            assert refused(running, "connection_limit") == 1
        async with asyncio.timeout(TIMEOUT):
            while True:
                try:
                    async with running.client() as second:
                        assert (await ask(second, predict_message()))["status"] == "success"
                        break
                except InvalidStatus:  # the one that left is not gone yet
                    await asyncio.sleep(0.01)
        assert (await ask(first, predict_message()))["status"] == "success"


async def test_an_address_has_so_many_connections_over_all_workers(start_process: StartProcess) -> None:
    """With two workers: the limit is for both together; the next gets 429 with Retry-After; HTTP is still answered."""
    service = start_process(WORKERS="2", MAX_CONNECTIONS_PER_ADDRESS="6")
    clients = [await connect(service.url) for _ in range(6)]
    try:
        for _ in range(4):
            with pytest.raises(InvalidStatus) as caught:
                await connect(service.url)
            assert caught.value.response.status_code == 429
            assert caught.value.response.headers["Retry-After"] == "1"
    finally:
        for client in clients:
            await client.close()


def test_addresses_are_counted_apart_and_networks_of_one_subscriber_together() -> None:
    """IPv6 addresses of a /64 count as one, and IPv4 in IPv6 as IPv4; other addresses are not touched."""
    shared = SharedCells(2)
    one, other = Admission(shared, 0, 0, 2), Admission(shared, 1, 0, 2)
    one.enter("2001:db8::1")
    other.enter("2001:db8::ffff")
    assert one.has_enough("2001:db8::2")
    assert not one.has_enough("2001:db8:0:1::2")
    one.enter("192.0.2.1")
    other.enter("::ffff:192.0.2.1")
    assert other.has_enough("192.0.2.1")
    assert not any(other.has_enough(f"198.51.100.{last}") for last in range(256))
    other.leave("192.0.2.1")
    assert not one.has_enough("192.0.2.1")
    shared.forget(1)
    assert not one.has_enough("2001:db8::2")


async def test_behind_a_trusted_proxy_the_client_is_who_it_says(serve: Serve) -> None:
    """Limits count by the last address in X-Forwarded-For that is no proxy's; from others the header is ignored."""

    def forwarded(value: str) -> dict[str, Any]:
        return {"additional_headers": {"X-Forwarded-For": value}}

    proxies = (ip_network("127.0.0.0/8"),)
    async with (
        serve(max_connections_per_address=1, trusted_proxies=proxies) as running,
        connect(running.url, **forwarded("6.6.6.6, 192.0.2.1, 127.0.0.9")),
    ):
        assert await status_of(running.url, **forwarded("7.7.7.7, 192.0.2.1")) == 429
        async with connect(running.url, **forwarded("192.0.2.2")):
            pass
    async with (
        serve(max_connections_per_address=1) as running,
        connect(running.url, **forwarded("192.0.2.1")),
    ):
        assert await status_of(running.url, **forwarded("192.0.2.2")) == 429


async def test_pages_of_other_sites_are_refused_where_origins_are_set(serve: Serve) -> None:
    """403 for a page that is not listed; the service's own page and clients without Origin may connect."""
    async with serve(origins=("https://shop.example", "same-origin")) as running:
        own = f"http://127.0.0.1:{running.port}"
        for origin in ("https://shop.example", own, None):
            async with connect(running.url, origin=None if origin is None else Origin(origin)) as websocket:
                await read(websocket)
        for origin in (
            "https://evil.example",
            "null",
            f"{own}.evil.example",
            "http://shop.example",
            "http://[",
        ):
            assert await status_of(running.url, origin=Origin(origin)) == 403
        assert refused(running, "origin") == 5
    async with serve() as running, connect(running.url, origin=Origin("https://any.example")) as websocket:
        await read(websocket)


def test_a_bucket_allows_its_rate_and_a_second_at_once() -> None:
    """What is over is told when to come again; what is larger than the bucket passes once and is owed."""
    bucket = TokenBucket(10, now=0)
    for _ in range(10):
        assert bucket.wait(1, 0) == 0
        bucket.take(1)
    assert bucket.wait(1, 0) == pytest.approx(0.1)
    assert bucket.wait(1, 0.11) == 0
    assert bucket.wait(1, 100) == 0
    large = TokenBucket(1000, now=0)
    assert large.wait(5000, 0) == 0
    large.take(5000)
    assert large.wait(1, 1) == pytest.approx(3.001)
    assert large.wait(1, 4.1) == 0


def test_who_waits_as_told_is_let_in_by_both_limits() -> None:
    """The longer wait is told, and what is refused for its bytes costs no request."""
    guard = Guard(Rules(requests_per_second=0.5, bytes_per_second=1000.0), None, 0.0)
    guard.charge(5000, 0.0)
    for clock in (0.0, 4.0):  # 2 s for a request, and 4.001 s for a byte
        with pytest.raises(RateLimited) as refused:
            guard.charge(100, clock)
        assert refused.value.retry_after_ms == pytest.approx((4.001 - clock) * 1000, abs=1)
    guard.charge(100, 4.002)


@pytest.mark.parametrize(
    "limits", [{"max_requests_per_second": 3.0}, {"max_bytes_per_second": 3.0 * len(predict_message())}]
)
async def test_a_client_that_asks_for_too_much_is_told_when_to_come_again(
    serve: Serve, limits: dict[str, float]
) -> None:
    """`rate_limited` with `retry_after_ms`, id included; the connection goes on, and others have their own rate."""
    async with serve(**limits) as running, running.client() as websocket, running.client() as other:
        for number in range(12):
            await websocket.send(predict_message(id=number))
        replies = [await read(websocket) for _ in range(12)]
        assert [reply["id"] for reply in replies] == list(range(12))
        limited = [reply for reply in replies if reply["type"] == "error"]
        assert 1 <= len(limited) < 12
        assert {reply["code"] for reply in limited} == {"rate_limited"}
        assert all(0 < reply["retry_after_ms"] <= 2000 for reply in limited)
        assert (await ask(other, predict_message()))["status"] == "success"
        await asyncio.sleep(limited[-1]["retry_after_ms"] / 1000)
        assert (await ask(websocket, predict_message()))["status"] == "success"


async def test_garbage_counts_as_requests(serve: Serve) -> None:
    """What is not JSON cannot be sent faster than what is."""
    async with serve(max_requests_per_second=3.0) as running, running.client() as websocket:
        codes = [(await ask(websocket, "garbage"))["code"] for _ in range(6)]
        assert codes[:3] == ["invalid_json"] * 3
        assert "rate_limited" in codes


async def test_deeply_nested_json_is_an_error_at_once(serve: Serve) -> None:
    """Megabytes of brackets cost milliseconds, and no stack."""
    async with serve() as running, running.client() as websocket:
        for text, code in (
            ("[" * 400_000, "invalid_json"),
            ("[" * 4_000_000, "invalid_request"),
            ('{"a":' * 1_000_000, "invalid_request"),
        ):
            begun = time.perf_counter()
            assert (await ask(websocket, text))["code"] == code
            assert time.perf_counter() - begun < TIMEOUT
        assert (await ask(websocket, predict_message()))["status"] == "success"


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


async def test_a_client_that_is_being_closed_and_does_not_read_is_dropped(serve: Serve) -> None:
    """It is not read from, so neither its close nor its end would be noticed."""
    async with serve(send_seconds=0.5, ping_seconds=0) as running:
        _, writer = await raw(running)
        (connection,) = running.service._connections
        async with asyncio.timeout(TIMEOUT):
            while not connection.paused:
                writer.write((b"\x89\xfd" + bytes(4 + 125)) * 1000)
                await asyncio.sleep(0)
            connection.protocol.fail(1002)
            await connection.wait_closed()
        assert not running.service._connections
        writer.close()


@pytest.mark.parametrize("begin", [b"", frame(FACE)[:500]])
async def test_a_peer_that_does_not_answer_pings_is_closed(serve: Serve, begin: bytes) -> None:
    """A half-open connection is dropped, also one that broke amid a message; one that answers stays."""
    # Both ends of `alive` are in this process: much less, and on a busy machine its own pong would come too late.
    async with serve(ping_seconds=1.5) as running, running.client() as alive:
        reader, writer = await raw(running)
        writer.write(begin)
        assert b"keepalive ping timeout" in await closing(reader)
        writer.close()
        assert (await ask(alive, predict_message()))["status"] == "success"


async def test_a_peer_that_is_busy_sending_need_not_answer_pings(serve: Serve) -> None:
    """An upload over a slow network takes longer than a ping's time: no answer can come amid its frame."""
    async with serve(ping_seconds=0.5) as running:
        reader, writer = await raw(running)
        message = frame(FACE, first=0x82)
        writer.write(message[:-30])
        for byte in message[-30:]:
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
