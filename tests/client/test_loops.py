"""A client and the event loops of a program: it belongs to the one that it is connected in."""

from __future__ import annotations

import asyncio
import gc

import pytest

from client import AsyncClient, ConnectionLost
from tests.client.harness import TIMEOUT
from tests.client.peer import Peer, image


async def test_runs_of_a_program_after_one_another_leave_no_socket_open(peer: Peer) -> None:
    """The end of asyncio.run is the end of the connection, which the next run makes anew."""

    def program() -> None:
        client = AsyncClient(peer.url)
        for _ in range(2):
            assert asyncio.run(client.predict(image("sad"))).emotion_name == "sad"
        asyncio.run(client.aclose())
        del client
        gc.collect()  # what is open still would warn here, and warnings are errors

    await asyncio.to_thread(program)
    assert peer.connections == 2


async def test_another_loop_is_told_at_once_whose_the_client_is(peer: Peer) -> None:
    """Whether it asks or closes, and also where that loop has gone; in its own loop the client goes on."""

    def program(client: AsyncClient) -> None:
        for ask in (client.predict(image()), client.connect(), client.aclose()):
            with pytest.raises(RuntimeError, match=r"connected in another event loop: .+ a client for each"):
                asyncio.run(ask)

    async with AsyncClient(peer.url) as client:
        await asyncio.to_thread(program, client)
        assert (await client.predict(image("sad"))).emotion_name == "sad"
    with pytest.raises(ConnectionLost, match="closed"):
        await client.predict(image())


async def test_another_loop_is_told_while_the_first_connects() -> None:
    """It cannot share the attempt, as tasks of one loop do."""
    greet = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        client = AsyncClient(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        connecting = asyncio.create_task(client.connect())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, asyncio.wait_for(client.connect(), TIMEOUT))
        await client.aclose()
        greet.set()
        with pytest.raises(ConnectionLost, match="closed"):
            await connecting
