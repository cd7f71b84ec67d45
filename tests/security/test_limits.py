"""How many connections there may be, from where, and how much each may ask."""

from __future__ import annotations

import asyncio
import time
from ipaddress import ip_network
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin
from wsproto.events import CloseConnection, Pong

from service.errors import RateLimited
from service.processes.cells import SharedCells
from service.security import origins
from service.security.admission import Admission
from service.security.guard import Guard, Rules
from service.security.rates import TokenBucket
from tests.service import raw_peer
from tests.service.harness import (
    TIMEOUT,
    Serve,
    StartProcess,
    ask,
    fetch,
    predict_message,
    read,
    refused,
)


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
        assert "alive" in await asyncio.to_thread(fetch, service, "/healthz")
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


def test_zero_is_any_number_of_connections() -> None:
    """In all as well as from one address; and a client that has gone before its address was asked has none."""
    admission = Admission(SharedCells(1), 0, 0, 0)
    for _ in range(3):
        admission.enter("192.0.2.1")
        admission.enter(None)
    assert not admission.is_full()
    assert not admission.has_enough("192.0.2.1")
    limited = Admission(SharedCells(1), 0, 1, 1)
    assert not limited.is_full()
    limited.enter(None)
    assert limited.is_full()
    assert not limited.has_enough(None)
    limited.leave(None)
    assert not limited.is_full()


@pytest.mark.parametrize("shared_one", [0, 1])
def test_an_address_that_shares_a_cell_with_others_may_come_in(shared_one: int) -> None:
    """It has as many connections as the lesser of its two cells says: only who shares both is taken for another."""
    shared = SharedCells(2)
    admission = Admission(shared, 0, 0, 1)
    cells = admission._cells("192.0.2.1")
    others = shared.address_row(1)
    others[cells[shared_one]] += 1
    assert not admission.has_enough("192.0.2.1")
    others[cells[1 - shared_one]] += 1
    assert admission.has_enough("192.0.2.1")


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


@pytest.mark.parametrize(
    ("headers", "allow_list", "allowed"),
    [
        ([("Origin", "HTTPS://Shop.Example")], ["https://shop.example"], True),
        ([("Origin", "http://own.example"), ("Host", "own.example")], ["https://shop.example"], False),
        ([("Origin", "HTTP://Own.example"), ("Host", "oWn.example")], ["same-origin"], True),
        ([("Origin", "http://own.example:81"), ("Host", "own.example")], ["same-origin"], False),
        ([("Origin", "http://own.example")], ["same-origin"], False),
        (
            [("Origin", "https://shop.example"), ("Origin", "https://evil.example")],
            ["https://shop.example"],
            False,
        ),
    ],
)
def test_an_origin_is_allowed_if_it_is_listed(
    headers: list[tuple[str, str]], allow_list: list[str], allowed: bool
) -> None:
    """In capitals too; the service's own page only where the list says so, and several origins are none of it."""
    assert origins.allowed(Headers(headers), allow_list) is allowed


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


@pytest.mark.parametrize("letter", ["a", "\U0001f600"])
async def test_bytes_are_counted_as_they_are_sent(serve: Serve, letter: str) -> None:
    """Not letters, of which one may have four: whoever sends 40 000 of 1000 a second comes again in 39 seconds."""
    text = letter * (40_000 // len(letter.encode()))
    async with serve(max_bytes_per_second=1000.0) as running, running.client() as websocket:
        for command in (f'{{"command": "ping", "more": "{text}"}}', '{"command": "ping"}'):
            await websocket.send(command)
        assert (await read(websocket))["type"] == "pong"
        limited = await read(websocket)
        assert limited["code"] == "rate_limited"
        assert limited["retry_after_ms"] > 10_000


@pytest.mark.parametrize(
    "flood",
    [
        raw_peer.frame(raw_peer.PING) * 10_000,
        raw_peer.frame(raw_peer.PONG) * 10_000,
        raw_peer.frame(raw_peer.TEXT, fin=False) + raw_peer.frame(raw_peer.CONT, fin=False) * 10_000,
    ],
    ids=["pings", "pongs", "fragments"],
)
@pytest.mark.parametrize("limit", ["max_requests_per_second", "max_bytes_per_second", None])
async def test_a_flood_of_small_frames_is_closed_where_there_is_a_limit(
    serve: Serve, flood: bytes, limit: str | None
) -> None:
    """With 1008, and counted. Without a limit there is none for these either."""
    limits = {} if limit is None else {limit: 1e6}
    async with serve(**limits) as running, raw_peer.connected(running.port) as peer:
        peer.send(flood, raw_peer.frame(raw_peer.PING, b"the end"), raw_peer.close(1000))
        while isinstance(event := await peer.event(), Pong):
            pass
        assert isinstance(event, CloseConnection)
        assert event.code == (1000 if limit is None else 1008)
        assert refused(running, "small_frames") == (limit is not None)


async def test_pings_and_messages_in_a_few_fragments_cost_no_request(serve: Serve) -> None:
    """A client that has used up its rate keeps alive, and one that writes its messages in parts is served."""
    async with serve(max_requests_per_second=0.1) as running, raw_peer.connected(running.port) as peer:
        parts = [b'{"com', b"mand", b'": "', b"pi", b"n", b'g"}']
        first, *rest = parts
        peer.send(
            raw_peer.frame(raw_peer.TEXT, first, fin=False),
            *(raw_peer.frame(raw_peer.CONT, part, fin=False) for part in rest),
            raw_peer.frame(raw_peer.CONT),
        )
        assert (await peer.reply())["type"] == "pong"
        for number in range(500):
            peer.send(raw_peer.frame(raw_peer.PING, b"%d" % number))
            assert await peer.pong() == b"%d" % number
        peer.send(raw_peer.frame(raw_peer.TEXT, b'{"command": "ping"}'))
        assert await peer.error() == "rate_limited"
        assert refused(running, "small_frames") == 0


async def test_what_pongs_hold_is_owed_by_messages(serve: Serve) -> None:
    """Bytes are bytes: beside what may be sent in messages nothing passes for nothing."""
    async with serve(max_bytes_per_second=1000.0) as running, raw_peer.connected(running.port) as peer:
        peer.send(raw_peer.frame(raw_peer.PONG, bytes(125)) * 1000)
        peer.send(raw_peer.frame(raw_peer.TEXT, b'{"command": "ping"}'))
        assert await peer.error() == "rate_limited"


async def test_each_message_may_have_a_few_fragments(serve: Serve) -> None:
    """However many were written in parts before it."""
    message = b"".join(
        (
            raw_peer.frame(raw_peer.TEXT, b'{"com', fin=False),
            *(raw_peer.frame(raw_peer.CONT, part, fin=False) for part in (b"mand", b'": "', b"pi", b"n")),
            raw_peer.frame(raw_peer.CONT, b'g"}'),
        )
    )
    async with serve(max_requests_per_second=1e6) as running, raw_peer.connected(running.port) as peer:
        peer.send(message * 1000)
        for _ in range(1000):
            assert (await peer.reply())["type"] == "pong"


async def test_garbage_counts_as_requests(serve: Serve) -> None:
    """What is not JSON cannot be sent faster than what is."""
    async with serve(max_requests_per_second=3.0) as running, running.client() as websocket:
        codes = [(await ask(websocket, "garbage"))["code"] for _ in range(60)]
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
