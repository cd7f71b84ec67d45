"""Connecting: what is refused, what is no VisionAI server, and what keeps it from being reached."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import re
from http import HTTPStatus
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Response

from client import (
    AsyncClient,
    CannotConnect,
    ConnectionLost,
    DeadlineExceeded,
    InternalError,
    Overloaded,
    ProtocolViolation,
    RateLimited,
    Retry,
    ShuttingDown,
    Unauthorized,
    Unavailable,
    VisionAIError,
)
from tests.client.harness import TIMEOUT, connect
from tests.client.peer import Peer, image


async def test_without_a_context_the_first_request_connects(peer: Peer) -> None:
    """A client may be made before there is a loop or a server; it connects when it is used."""
    client = connect(peer)
    assert peer.connections == 0
    assert (await client.predict(image("sad"))).emotion_name == "sad"
    await client.aclose()
    await client.aclose()


async def test_tasks_that_need_the_connection_at_once_share_it(peer: Peer) -> None:
    """Concurrent first requests open one connection, not one each."""
    client = connect(peer)
    await asyncio.gather(*(client.predict(image("sad", n=number)) for number in range(10)))
    await client.aclose()
    assert peer.connections == 1


async def test_a_policy_that_closes_in_place_of_a_welcome_is_about_who_asks(peer: Peer) -> None:
    """As gateways do that cannot refuse the handshake: nothing was sent yet that could be at fault."""
    peer.turns_away = 1008
    with pytest.raises(Unauthorized, match="not you"):
        await connect(peer).connect()


@pytest.mark.parametrize(("code", "expected"), [(1013, Overloaded), (1011, ConnectionLost)])
async def test_a_server_that_closes_in_place_of_a_welcome_is_not_about_who_asks(
    peer: Peer, code: int, expected: type[VisionAIError]
) -> None:
    """One that is full, or at fault, says so by its code; it may be tried again."""
    peer.turns_away = code
    with pytest.raises(expected, match="not you"):
        await connect(peer).connect()


async def test_a_first_connection_to_a_server_that_leaves_is_made_again(peer: Peer) -> None:
    """It has greeted, so it is the right address: as while a service reloads."""
    peer.leaving = 2
    async with connect(peer) as client:
        assert (await client.predict(image("sad"))).emotion_name == "sad"
    assert peer.connections == 3


async def test_until_a_server_has_greeted_it_is_tried_once(peer: Peer) -> None:
    """It may be the wrong address: whoever gave it is told at once, whatever the policy says of later."""
    peer.refuse = 503
    with pytest.raises(ShuttingDown):
        await connect(peer).connect()
    assert len(peer.handshakes) == 1


async def test_the_time_of_a_request_includes_connecting() -> None:
    """A server that does not greet is waited for no longer than the request may take."""

    async def silent(websocket: ServerConnection) -> None:
        await websocket.wait_closed()

    async with serve(silent, "127.0.0.1", 0) as server:
        client = AsyncClient(
            f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout=0.05, connect_timeout=TIMEOUT
        )
        with pytest.raises(DeadlineExceeded, match=r"no answer to 'predict' within 0.05 s$"):
            await client.predict(image())
        await client.aclose()


async def test_a_refused_connection_says_where_and_what_to_check(unused_url: str) -> None:
    """Nothing listens: the error comes at once and names the address."""
    with pytest.raises(
        CannotConnect, match=rf"nothing answers at {unused_url} \(.+\): check that the service"
    ):
        async with AsyncClient(unused_url):
            pass


@pytest.mark.parametrize("scheme", ["http", "socks5h", "ftp"])
async def test_a_proxy_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, unused_url: str, scheme: str
) -> None:
    """Where the environment sends everything through one, the server is not what to look at; no password is shown."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(
        "ws_proxy", unused_url.replace("ws://", f"{scheme}://user:secret@").removesuffix("/ws")
    )
    with pytest.raises(CannotConnect, match=r"the proxy.+NO_PROXY=vision\.example") as caught:
        await AsyncClient("ws://vision.example/ws").connect()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "user:secret@127.0.0.1:65536",
        "user:secret@127.0.0.1:abc",
        "user:secret@127.0.0.1:80]",
        "user:[secret]@127.0.0.1:80",
        "user:secret",
    ],
)
async def test_a_proxy_whose_address_is_none_is_named(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """That is what keeps the server from being reached, and an error of this package, without the password."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ws_proxy", f"http://{address}")
    with pytest.raises(CannotConnect, match=r"cannot be reached: .+ the proxy that is set here") as caught:
        await AsyncClient("ws://vision.example/ws").connect()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
async def test_this_machine_is_not_looked_for_behind_a_proxy(
    monkeypatch: pytest.MonkeyPatch, peer: Peer, unused_url: str, host: str
) -> None:
    """A proxy that is set for the web has no part in it, nor in what is said where nothing answers."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ws_proxy", unused_url.replace("ws://", "http://").removesuffix("/ws"))
    async with connect(peer) as client:
        assert (await client.predict(image("sad"))).emotion_name == "sad"
    with pytest.raises(CannotConnect) as caught:
        await AsyncClient(unused_url.replace("127.0.0.1", host)).connect()
    assert "proxy" not in caught.value.message


async def test_an_address_is_named_as_it_was_given(unused_url: str) -> None:
    """An IPv6 address has its brackets: what is shown can be copied."""
    url = unused_url.replace("127.0.0.1", "[::1]")
    with pytest.raises(CannotConnect, match=re.escape(f"nothing answers at {url} ")):
        await AsyncClient(url).connect()


async def test_a_page_in_place_of_the_upgrade_says_what_to_check(peer: Peer) -> None:
    """As of a proxy that passes no upgrades on: at the right path the answer is 404, or a page."""
    peer.refuse = 404
    with pytest.raises(CannotConnect, match=r"HTTP 404 .+ path.+ proxy"):
        await connect(peer).connect()


@pytest.mark.parametrize("status", [502, 504])
async def test_a_proxy_whose_service_is_down_says_so(peer: Peer, status: int) -> None:
    """The path and the upgrade are not at fault: the proxy found nobody behind it."""
    peer.refuse = status
    with pytest.raises(
        CannotConnect, match=rf"does not reach the service \(HTTP {status}\): check that the service"
    ):
        await connect(peer).connect()


@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, Unauthorized), (403, Unauthorized), (404, CannotConnect), (429, RateLimited), (503, ShuttingDown)],
)
async def test_a_refused_handshake_is_told_apart(status: int, expected: type[VisionAIError]) -> None:
    """HTTP statuses in place of the upgrade have the errors that they mean."""
    async with Peer(refuse=status).running() as peer:
        with pytest.raises(expected):
            await connect(peer).connect()


@pytest.mark.parametrize("status", [429, 503])
async def test_a_refusal_says_when_to_come_back(status: int) -> None:
    """The header Retry-After is the error's `retry_after`, in seconds."""

    def refuse(connection: ServerConnection, _: object) -> Response:
        response = connection.respond(HTTPStatus(status), "")
        response.headers["Retry-After"] = "7"
        return response

    async with serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, process_request=refuse) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(Unavailable) as caught:
            await AsyncClient(url).connect()
    assert caught.value.retry_after == 7


@pytest.mark.parametrize(
    ("kind", "body", "told"),
    [
        ("text/plain; charset=utf-8", "the API key has expired\n", r"\(HTTP 401: the API key has expired\)"),
        ("text/html", "<h1>Unauthorized</h1>", r"\(HTTP 401\)"),
        ("text/plain", "one\ntwo", r"\(HTTP 401\)"),
        ("text/plain", "x" * 1000, r"\(HTTP 401\)"),
        ("text/plain", "", r"\(HTTP 401\)"),
    ],
)
async def test_why_a_credential_is_refused_is_told(kind: str, body: str, told: str) -> None:
    """In the server's words, where they are a line for people; a proxy's page is not."""

    def refuse(connection: ServerConnection, _: object) -> Response:
        response = connection.respond(HTTPStatus.UNAUTHORIZED, body)
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = kind
        return response

    async with serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, process_request=refuse) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(Unauthorized, match=f"{told}: check the token"):
            await AsyncClient(url).connect()


async def test_a_server_that_is_not_visionai_is_recognised() -> None:
    """A WebSocket server with another first message is not taken for ours, and is hung up on."""
    gone = asyncio.Event()

    async def chat(websocket: ServerConnection) -> None:
        await websocket.send('{"type":"chat"}')
        await websocket.wait_closed()
        gone.set()

    async with serve(chat, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = AsyncClient(url)
        with pytest.raises(ProtocolViolation, match="is not a VisionAI server"):
            await client.connect()
        async with asyncio.timeout(TIMEOUT):
            await gone.wait()
        await client.aclose()


@pytest.mark.parametrize("reply", ['{"type": "error", "code": "internal", "message": "no", "id": %s}', ""])
async def test_a_server_that_greets_and_then_fails_is_hung_up_on(reply: str) -> None:
    """Whether it refuses what a client sets, or says nothing: nobody would close the connection later."""
    gone = asyncio.Event()

    async def greet(websocket: ServerConnection) -> None:
        await websocket.send('{"type": "welcome", "protocol": 2, "commands": {"configure": ""}}')
        configure = json.loads(await websocket.recv())
        assert configure["command"] == "configure"
        if reply:
            await websocket.send(reply % json.dumps(configure["id"]))
        await websocket.wait_closed()
        gone.set()

    async with serve(greet, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = AsyncClient(url, connect_timeout=TIMEOUT if reply else 1.0, retry=Retry(attempts=1))
        with pytest.raises(InternalError if reply else CannotConnect):
            await client.connect()
        async with asyncio.timeout(TIMEOUT):
            await gone.wait()
        await client.aclose()


async def test_a_server_that_says_nothing_is_not_waited_for_forever() -> None:
    """The welcome has to come within connect_timeout."""

    async def silent(websocket: Any) -> None:
        await websocket.wait_closed()

    async with serve(silent, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(CannotConnect, match=r"no answer within 0.1 s"):
            await AsyncClient(url, connect_timeout=0.1).connect()


async def test_something_that_is_no_websocket_is_told() -> None:
    """Another protocol on the port is named as such."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"220 mail ready\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(CannotConnect, match="does not speak WebSocket"):
            await AsyncClient(url).connect()


@pytest.mark.parametrize(
    "url",
    [
        "http://x",
        "ws://x/ws#a",
        "localhost:8000",
        "ws://",
        "ws://host:port",
        "",
        "ws://a..b/ws",
        f"ws://{'a' * 64}.example/ws",
    ],
)
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    """A wrong URL is a ValueError of the constructor, not a failure of the network."""
    with pytest.raises(ValueError, match=r"WebSocket address|Port"):
        AsyncClient(url)


@pytest.mark.parametrize("keepalive", [0, -1.5])
def test_a_keepalive_of_nothing_is_refused(keepalive: float) -> None:
    """It would close every connection as one whose other end is gone; infinity is for no pings."""
    with pytest.raises(ValueError, match=rf"math\.inf for no pings; not {keepalive}"):
        AsyncClient(keepalive=keepalive)


async def test_no_limit_of_time_is_infinity(peer: Peer) -> None:
    """None would be a deadline that is over before anything is sent: it is refused, with what to write."""
    none: Any = None
    with pytest.raises(ValueError, match=r"timeout is a number of seconds, math\.inf for no limit"):
        AsyncClient(timeout=none)
    async with connect(peer, timeout=math.inf) as client:
        assert (await client.predict(image("sad"))).emotion_name == "sad"


async def test_a_client_that_pings_never_is_one(peer: Peer) -> None:
    """A keepalive of infinity is waited for in no way."""
    async with connect(peer, keepalive=math.inf) as client:
        assert (await client.predict(image("sad"))).emotion_name == "sad"


async def test_an_attempt_that_nobody_waits_for_any_more_ends_quietly(
    unused_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """When those who asked were cancelled, a failed attempt to connect warns of nothing."""
    client = AsyncClient(unused_url)
    task = asyncio.create_task(client.predict(image()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    attempt = asyncio.all_tasks() - {asyncio.current_task()}
    assert len(attempt) == 1
    await asyncio.wait(attempt)
    del task, attempt
    gc.collect()  # an exception that was never retrieved would be logged here, as an error
    assert caplog.records == []
    await client.aclose()


async def test_a_client_connects_again_after_an_attempt_failed(peer: Peer) -> None:
    """A failed attempt is not remembered: the next request tries anew."""
    peer.refuse = 404
    client = connect(peer)
    with pytest.raises(CannotConnect):
        await client.predict(image())
    peer.refuse = None
    assert (await client.predict(image("sad"))).emotion_name == "sad"
    await client.aclose()


async def test_a_context_that_is_given_up_while_it_connects_leaves_nothing_open() -> None:
    """As within a timeout of the program's own: its body never runs, so that nobody could close the connection."""
    asked, greet = asyncio.Event(), asyncio.Event()

    async def greet_late(websocket: Any) -> None:
        asked.set()
        await greet.wait()
        await websocket.send('{"type": "welcome", "commands": {}}')
        await websocket.wait_closed()

    async with serve(greet_late, "127.0.0.1", 0) as server:
        client = AsyncClient(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        entering = asyncio.create_task(client.__aenter__())
        await asked.wait()
        entering.cancel()
        greet.set()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert [task for task in asyncio.all_tasks() if task.get_name().startswith("visionai client")] == []
