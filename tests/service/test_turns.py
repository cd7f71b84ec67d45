"""What one client sends at once is worked off in turns of the event loop, between which the others have theirs."""

from __future__ import annotations

import asyncio
import math

import pytest
from wsproto.events import Event, Pong, TextMessage

from tests.service.harness import Serve
from tests.service.raw_peer import BINARY, CONT, PING, PONG, TEXT, Peer, connected, frame


async def turns_until(last: type[Event], peer: Peer, *frames: bytes) -> int:
    """How many turns the event loop has until what was sent is read, and the first event of this type is the answer."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    peer.send(*frames)
    while not isinstance(event := await peer.event(), last):
        assert isinstance(event, TextMessage)
    counting.cancel()
    return turns


async def turns_until_read(peer: Peer, flood: bytes) -> int:
    """The same, of what may not be answered, by a ping behind it."""
    return await turns_until(Pong, peer, flood, frame(PING))


@pytest.mark.parametrize(
    "flood",
    [
        frame(PONG) * 40_000,
        frame(TEXT, b"{", fin=False) + frame(CONT, b" ", fin=False) * 35_000 + frame(CONT, b"}"),
        frame(PONG) * 20_000 + frame(TEXT, b"{") * 10 + frame(PONG) * 20_000,
    ],
    ids=["pongs", "fragments", "pongs around messages"],
)
async def test_small_frames_are_read_in_many_turns(serve: Serve, flood: bytes) -> None:
    """Of some bytes each, there are tens of thousands in one read: hundreds of milliseconds."""
    async with serve() as running, connected(running.port) as peer:
        assert await turns_until_read(peer, flood) > 20


async def test_the_clock_is_looked_at_after_a_few_control_frames(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of them take ten turns' time: where a turn has none, each holds a few."""
    monkeypatch.setattr("service.network.messages._SECONDS_PER_TURN", 0.0)
    async with serve() as running, connected(running.port) as peer:
        assert await turns_until_read(peer, frame(PONG) * 4000) > 100


async def test_a_turn_holds_no_more_for_a_client_that_was_not_read_from(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is read from again while there is a turn to come has that turn, and not two from then on."""
    monkeypatch.setattr("service.network.messages._SECONDS_PER_TURN", 0.0)
    async with serve() as running, connected(running.port) as peer:
        (connection,) = running.service._connections

        async def hold_up() -> None:
            while True:
                if connection._waiting:
                    connection.pause_reading()
                    connection.resume_reading()
                await asyncio.sleep(0)

        holding_up = asyncio.create_task(hold_up())
        assert await turns_until_read(peer, frame(PONG) * 4000) > 100
        holding_up.cancel()


@pytest.mark.parametrize("fin", [True, False], ids=["messages", "fragments"])
@pytest.mark.parametrize("size", [1000, 60_000])
async def test_reads_in_a_row_end_with_what_a_turn_may_have(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, size: int, fin: bool
) -> None:
    """uvloop reads on, up to 32 times, while the network has more. However short each read takes, that is too long."""
    monkeypatch.setattr("service.network.messages._SECONDS_PER_TURN", math.inf)
    frames = frame(TEXT if fin else CONT, bytes(size), fin=fin) * (256 * 1024 // size)
    async with serve() as running, connected(running.port):
        (connection,) = running.service._connections
        connection.data_received(b"" if fin else frame(BINARY, fin=False))
        reads = 0
        while connection.transport.is_reading() and reads < 32:
            connection.data_received(frames)
            reads += 1
        assert 2 <= reads <= 3
        assert not connection.reading_paused
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert connection.transport.is_reading()


async def test_a_large_message_in_many_fragments_is_read_in_few_turns(serve: Serve) -> None:
    """Each turn of a busy worker takes as long as a batch: browsers send their photos in such fragments."""
    fragments = [frame(CONT, bytes(65_536), fin=False) for _ in range(64)]
    photo = b"".join([frame(TEXT, b"{", fin=False), *fragments, frame(CONT, b"}")])
    async with serve() as running, connected(running.port) as peer:
        assert await turns_until(TextMessage, peer, photo) < 250


async def test_small_messages_are_answered_in_many_turns(serve: Serve) -> None:
    """As many as come in one read, and none is lost."""
    async with serve() as running, connected(running.port) as peer:
        peer.send(*(frame(TEXT, b'{"command": "ping", "id": %d}' % number) for number in range(3000)))
        assert [(await peer.reply())["id"] for _ in range(3000)] == list(range(3000))
        await peer.is_served()


async def test_what_comes_though_it_is_not_to_read_is_behind_what_waits(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of TLS, which hands over what it has decrypted already: all is answered, in order."""
    monkeypatch.setattr("service.network.messages._SECONDS_PER_TURN", 0.0)
    messages = [frame(TEXT, b'{"command": "ping", "id": %d}' % number) for number in range(300)]
    async with serve() as running, connected(running.port) as peer:
        (connection,) = running.service._connections
        connection.data_received(b"".join(messages[:200]))
        assert not connection.transport.is_reading()
        connection.data_received(b"".join(messages[200:]))
        assert [(await peer.reply())["id"] for _ in range(300)] == list(range(300))
