"""A line that is slow, and a server that is silent: which is which."""

from __future__ import annotations

import asyncio
import gc
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from client import AsyncClient, CannotConnect, ConnectionLost, DeadlineExceeded, Retry
from client.connection import Connection
from client.protocol import Request
from tests.client.harness import TIMEOUT
from tests.client.peer import Peer, image


@asynccontextmanager
async def gated_line(url: str, opened: asyncio.Event) -> AsyncIterator[str]:
    """A relay to `url` that takes data from the client only while `opened` is set; its own address."""
    port = int(url.rsplit(":", 1)[1].removesuffix("/ws"))
    opened.set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)

        async def carry(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter, gate: asyncio.Event
        ) -> None:
            while data := await source.read(65536):
                await gate.wait()
                sink.write(data)
                await sink.drain()
            sink.close()

        always = asyncio.Event()
        always.set()
        await asyncio.gather(carry(reader, upstream_writer, opened), carry(upstream_reader, writer, always))

    server = await asyncio.start_server(relay, "127.0.0.1", 0, limit=65536)
    async with server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"


async def test_what_is_given_up_before_its_turn_is_not_sent() -> None:
    """A line that is busy with a large image: a request whose time is over meanwhile never goes onto it."""
    async with Peer(max_size=2**26).running() as peer:
        opened = asyncio.Event()
        async with gated_line(peer.url, opened) as url, AsyncClient(url) as client:
            opened.clear()
            # More than the buffers of both systems hold, so that it is still being sent.
            large = asyncio.create_task(client.predict(image("sad", padding="x" * 2**25)))
            await asyncio.sleep(0)
            with pytest.raises(DeadlineExceeded):
                await client.predict(image("fear"), timeout=0.1)
            opened.set()
            assert (await large).emotion_name == "sad"
            assert (await client.predict(image("happy"))).emotion_name == "happy"
    assert [json.loads(request.image or b"")["emotion"] for request in peer.predictions_received] == [
        "sad",
        "happy",
    ]


async def test_what_waits_for_its_turn_is_told_that_the_connection_has_ended() -> None:
    """As is what was being sent: nobody would ever answer either."""
    gone = asyncio.Event()

    async def vanish(websocket: ServerConnection) -> None:
        await websocket.send('{"type":"welcome","protocol":2}')
        websocket.transport.pause_reading()
        await gone.wait()
        websocket.transport.abort()

    once = Retry(attempts=1)
    async with serve(vanish, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with AsyncClient(url, timeout=math.inf, retry=once) as client, asyncio.timeout(TIMEOUT):
            # More than the buffers of both systems hold, so that the other waits.
            asked = [
                asyncio.create_task(client.predict(each)) for each in (image(padding="x" * 2**25), image())
            ]
            await asyncio.sleep(0)
            gone.set()
            errors = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(error) for error in errors] == [ConnectionLost] * 2


async def test_what_is_given_up_after_its_connection_failed_leaves_asyncio_no_error_to_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request that is still being sent when the server talks nonsense, and is then cancelled."""
    monkeypatch.setattr("client.connection.CLOSING", 0.1)
    asked = asyncio.Event()

    async def babble(websocket: ServerConnection) -> None:
        await websocket.send('{"type":"welcome","protocol":2}')
        websocket.transport.pause_reading()
        await asked.wait()
        await websocket.send("nonsense")
        await websocket.wait_closed()

    logged: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
    async with serve(babble, "127.0.0.1", 0) as server, asyncio.timeout(TIMEOUT):
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        connection = await Connection.open(url, token=None, timeout=TIMEOUT, keepalive=math.inf)
        # More than the buffers of both systems hold.
        request = Request("predict", image=image(padding="x" * 2**25))
        sending = asyncio.create_task(connection.exchange(request))
        await asyncio.sleep(0)
        asked.set()
        while connection.usable:
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait([sending])
        assert sending.cancelled()
        await connection.aclose()
        for websocket in server.connections:
            websocket.transport.abort()
    del sending
    gc.collect()
    assert not logged


async def test_an_image_that_is_long_on_its_way_is_not_taken_for_a_server_that_is_silent() -> None:
    """No ping overtakes an image: while one waits in the system's buffers no pong is due."""
    async with Peer(max_size=2**26).running() as peer:
        opened = asyncio.Event()
        once = Retry(attempts=1)
        async with gated_line(peer.url, opened) as url, AsyncClient(url, keepalive=0.1, retry=once) as client:
            opened.clear()
            # On the slowest line that there may be it takes half a minute.
            large = asyncio.create_task(client.predict(image("sad", padding="x" * 2**20)))
            await asyncio.sleep(1)
            opened.set()
            assert (await large).emotion_name == "sad"
    assert peer.connections == 1


@asynccontextmanager
async def frozen_server() -> AsyncIterator[str]:
    """A server that reads nothing after its welcome, as where the network has gone; its address."""

    async def frozen(websocket: ServerConnection) -> None:
        await websocket.send('{"type":"welcome","protocol":2}')
        websocket.transport.pause_reading()
        await websocket.wait_closed()

    async with serve(frozen, "127.0.0.1", 0, close_timeout=0.1) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for websocket in server.connections:
            websocket.transport.abort()


# In bytes: what the buffers of both systems hold, and more than they do.
@pytest.mark.parametrize("size", [1, 2**25])
async def test_a_server_that_answers_no_ping_is_given_up(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Also where the ping itself cannot be sent: the client says that it was its own decision, and why."""
    monkeypatch.setattr("client.connection.SLOWEST_LINE", math.inf)
    async with frozen_server() as url, asyncio.timeout(TIMEOUT):
        client = AsyncClient(url, keepalive=0.1, timeout=math.inf, retry=Retry(attempts=1))
        with pytest.raises(ConnectionLost, match=r"given up \(keepalive ping timeout\)"):
            await client.predict(image(padding="x" * size))
        await client.aclose()


async def test_closing_does_not_wait_for_what_cannot_be_sent() -> None:
    """A client is closed within seconds, whatever its line does; what waits on it is told."""
    async with frozen_server() as url, asyncio.timeout(TIMEOUT):
        client = AsyncClient(url, keepalive=math.inf, timeout=math.inf, retry=Retry(attempts=1))
        with pytest.raises(DeadlineExceeded):
            await client.predict(image(padding="x" * 2**25), timeout=0.1)
        waiting = asyncio.create_task(client.predict(image()))
        await asyncio.sleep(0)
        await client.aclose()
        with pytest.raises(ConnectionLost, match="closed"):
            await waiting


async def test_a_server_that_only_greets_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting ends in the time it is given, also where the server answers nothing after its welcome."""
    open_ = Connection.open

    async def greeted(url: str, **arguments: Any) -> Connection:
        return await open_(url, **{**arguments, "timeout": TIMEOUT})  # on a slow machine, too

    monkeypatch.setattr(Connection, "open", greeted)

    async def greet(websocket: ServerConnection) -> None:
        await websocket.send('{"type": "welcome", "protocol": 2, "commands": {"configure": ""}}')
        await websocket.wait_closed()

    async with serve(greet, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(CannotConnect, match=r"gives no answer within 0\.2 s"):
            await AsyncClient(url, connect_timeout=0.2, retry=Retry(attempts=1)).connect()
