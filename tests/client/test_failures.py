"""Requests that fail, are given up or get nonsense, and what becomes of the others on their connection."""

from __future__ import annotations

import asyncio
import gc
import math
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from client import (
    AsyncClient,
    ConnectionLost,
    DeadlineExceeded,
    ImageTooLarge,
    InternalError,
    InvalidImage,
    InvalidRequest,
    NoFace,
    ProtocolViolation,
    Retry,
    Unauthorized,
    UnknownCommand,
    UnknownError,
    VisionAIError,
)
from tests.client.harness import TIMEOUT, connect
from tests.client.peer import V1_COMMANDS, Peer, image


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("invalid_image", InvalidImage),
        ("image_too_large", ImageTooLarge),
        ("no_face", NoFace),
        ("invalid_request", InvalidRequest),
        ("unauthorized", Unauthorized),
        ("deadline_exceeded", DeadlineExceeded),
        ("internal", InternalError),
        ("from_the_future", UnknownError),
    ],
)
async def test_an_error_is_raised_once_and_the_connection_lives_on(
    peer: Peer, code: str, expected: type[VisionAIError]
) -> None:
    """Errors that trying again cannot mend are raised as they are; the next request uses the same connection."""
    async with connect(peer) as client:
        with pytest.raises(expected, match=f"as asked: {code}") as caught:
            await client.predict(image(first=[{"error": code}]))
        assert caught.value.code == code
        assert (await client.predict(image("sad"))).emotion_name == "sad"
    assert peer.connections == 1
    assert len(peer.predictions_received) == 2


async def test_a_v1_error_is_its_message() -> None:
    """Servers of protocol 1 send no code."""
    async with Peer(1, V1_COMMANDS).running() as peer, connect(peer) as client:
        with pytest.raises(UnknownError, match="Imagen mala"):
            await client.predict(image(first=[{"error": "x", "message": "Imagen mala"}]))


async def test_a_request_fails_when_its_time_is_over(any_peer: Peer) -> None:
    """A request without an answer ends with its timeout, and the connection serves the next one."""
    async with connect(any_peer) as client:
        with pytest.raises(DeadlineExceeded, match=r"no answer to 'predict' within 0.05 s"):
            await client.predict(image(gated=True), timeout=0.05)
        any_peer.gate.set()
        assert (await client.predict(image("sad"))).emotion_name == "sad"
    assert any_peer.connections == 1


async def test_a_cancelled_request_leaves_the_others_alone(any_peer: Peer) -> None:
    """A task may be cancelled while it waits: the reply that comes later is nobody's."""
    async with connect(any_peer) as client:
        blocked = asyncio.create_task(client.predict(image("angry", gated=True)))
        while not any_peer.predictions_received:
            await asyncio.sleep(0.001)
        blocked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await blocked
        others = asyncio.gather(*(client.predict(image(emotion)) for emotion in ("sad", "fear")))
        any_peer.gate.set()
        found = await others
    assert [prediction.emotion_name for prediction in found] == ["sad", "fear"]


async def test_an_image_above_the_message_limit_fails_alone() -> None:
    """A message too big closes the connection: its image fails, the others are sent again and answered."""
    async with Peer(max_size=4096).running() as peer, connect(peer) as client:
        small = [client.predict(image("sad", n=number)) for number in range(3)]
        large = client.predict(image("happy", padding="x" * 8192))
        answers = await asyncio.gather(*small[:2], large, *small[2:], return_exceptions=True)
    assert isinstance(answers[2], ImageTooLarge)
    assert [getattr(answers[at], "emotion_name", answers[at]) for at in (0, 1, 3)] == ["sad"] * 3


async def test_a_client_whose_image_was_too_large_can_be_closed() -> None:
    """The server closes while most of the image is unsent: the client leaves nothing of that, and closes quietly."""
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    async with Peer(max_size=4096).running() as peer, connect(peer) as client:
        for _ in range(2):
            with pytest.raises(ImageTooLarge):
                await client.predict(image(padding="x" * 2**24))
    gc.collect()
    assert not problems


@pytest.mark.parametrize(
    "text", ["not JSON", "[1, 2]", '{"type": "prediction"}', '{"id": 999, "type": "prediction"}']
)
async def test_nonsense_from_the_server_ends_the_connection(peer: Peer, text: str) -> None:
    """What the protocol excludes is said to every request in flight; none hangs, and a new connection works."""
    async with connect(peer) as client:
        outcomes = await asyncio.gather(
            client.predict(image("sad", after=99)),
            client.predict(image(first=[{"garbage": text}])),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [ProtocolViolation, ProtocolViolation]
        assert (await client.predict(image("happy"))).emotion_name == "happy"


async def test_a_server_that_talks_nonsense_is_hung_up_on() -> None:
    """The connection is closed, and not only left: also where nobody makes another."""
    gone = asyncio.Event()

    async def babble(websocket: ServerConnection) -> None:
        await websocket.send('{"type": "welcome", "protocol": 2, "commands": {"ping": ""}}')
        await websocket.recv()
        await websocket.send("not JSON")
        await websocket.wait_closed()
        gone.set()

    async with serve(babble, "127.0.0.1", 0) as server:
        client = AsyncClient(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(ProtocolViolation):
            await client.ping()
        async with asyncio.timeout(TIMEOUT):
            await gone.wait()
        await client.aclose()


async def test_a_reply_that_lacks_a_field_is_a_violation(peer: Peer) -> None:
    """A reply to the right request but of the wrong form is not passed off as a prediction."""
    async with connect(peer) as client:
        with pytest.raises(ProtocolViolation, match="prediction reply"):
            await client.predict(image("sad", faces=[{"box": []}]))


async def test_a_command_that_an_old_server_lacks_says_so() -> None:
    """Asking a v1 server for its history names what it has instead."""
    async with Peer(1, V1_COMMANDS).running() as peer, connect(peer) as client:
        with pytest.raises(UnknownCommand, match=r"no command 'history'; it has emotions, health"):
            await client.history()
        assert peer.received == []


async def test_closing_tells_requests_in_flight(peer: Peer) -> None:
    """Nobody hangs on a client that was closed, or waits to try again, and a closed client stays closed."""
    client = connect(peer, timeout=math.inf, retry=Retry(first_delay=1e9, max_delay=1e9))
    waiting = asyncio.create_task(client.predict(image(first=[{"silent": True}])))
    while not peer.predictions_received:
        await asyncio.sleep(0.001)
    await client.aclose()
    async with asyncio.timeout(TIMEOUT):
        with pytest.raises(ConnectionLost, match="the client is closed"):
            await waiting
    with pytest.raises(ConnectionLost, match="the client is closed"):
        await client.predict(image())
    assert peer.connections == 1


async def test_closing_tells_requests_on_a_connection_that_was_left(peer: Peer) -> None:
    """Of a server that shuts down: its connection stays open for them, and is closed with the other."""
    client = connect(peer)
    waiting = asyncio.create_task(client.predict(image(first=[{"silent": True}])))
    assert (await client.predict(image("sad", first=[{"error": "shutting_down"}]))).emotion_name == "sad"
    assert peer.connections == 2
    assert not waiting.done()
    await client.aclose()
    with pytest.raises(ConnectionLost, match="the client is closed"):
        await waiting


async def test_closing_tells_requests_that_wait_for_a_connection() -> None:
    """A server that does not greet keeps nobody: neither who closes the client, nor who asked for something."""
    asked = asyncio.Event()

    async def silent(websocket: ServerConnection) -> None:
        asked.set()
        await websocket.wait_closed()

    async with serve(silent, "127.0.0.1", 0) as server:
        client = AsyncClient(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", connect_timeout=TIMEOUT)
        waiting = asyncio.create_task(client.predict(image()))
        await asked.wait()
        await client.aclose()
        with pytest.raises(ConnectionLost, match="the client is closed"):
            await waiting


async def test_a_context_that_is_given_up_while_it_closes_leaves_nothing_open(peer: Peer) -> None:
    """As by a timeout that is over just then: nobody could close the connection any more, and its pings went on."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def use() -> None:
        async with connect(peer):
            entered.set()
            await leave.wait()

    using = asyncio.create_task(use())
    await entered.wait()
    leave.set()
    await asyncio.sleep(0)  # it has begun to close, and nothing of that is done
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    async with asyncio.timeout(TIMEOUT):
        while [task for task in asyncio.all_tasks() if task.get_name().startswith("visionai client")]:
            await asyncio.sleep(0.001)


async def test_a_close_that_was_cancelled_can_be_done_again(peer: Peer) -> None:
    """Nothing of the connection is left after the second one, however far the first one came."""
    client = connect(peer)
    await client.connect()
    closing = asyncio.create_task(client.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await client.aclose()
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("visionai client")] == []
