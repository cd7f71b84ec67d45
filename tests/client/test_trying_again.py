"""Lost connections and refusals for load: what is tried again, and when."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Response

from client import (
    AsyncClient,
    ConnectionLost,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RateLimited,
    Retry,
)
from tests.client.harness import QUICK, connect
from tests.client.peer import Peer, image


async def test_a_lost_connection_is_restored_and_its_requests_sent_again(any_peer: Peer) -> None:
    """All requests in flight survive a connection that is cut before it answered any."""
    script = {"first": [{"drop": True}]}
    async with connect(any_peer) as client:
        found = await asyncio.gather(
            *(client.predict(image("sad", n=number, **script)) for number in range(3))
        )
    assert [prediction.emotion_name for prediction in found] == ["sad"] * 3
    assert any_peer.connections > 1


async def test_an_answered_request_is_not_sent_again(peer: Peer) -> None:
    """Only what has no reply is repeated when the connection is lost."""
    async with connect(peer) as client:
        await client.predict(image("happy"))
        await client.predict(image("sad", first=[{"drop": True}]))
    sent = [request.image for request in peer.predictions_received]
    assert sent.count(image("happy")) == 1
    assert sent.count(image("sad", first=[{"drop": True}])) == 2


@pytest.mark.parametrize("code", [1001, 1008, 1011, 1012, 1013])
async def test_a_closed_connection_is_restored(peer: Peer, code: int) -> None:
    """A shutdown, a policy, a fault and a refusal for load are all reasons to try again."""
    async with connect(peer) as client:
        assert (await client.predict(image("sad", first=[{"close": code}]))).emotion_name == "sad"
    assert peer.connections == 2


async def test_a_policy_that_closes_a_connection_is_not_taken_for_one_about_tokens(peer: Peer) -> None:
    """1008 is also that of a message which came in too slowly: its words are told, and nothing of a token."""
    async with connect(peer, retry=Retry(attempts=1)) as client:
        with pytest.raises(ConnectionLost, match="as asked") as caught:
            await client.predict(image("sad", first=[{"close": 1008}]))
    assert caught.value.close_code == 1008


async def test_a_server_that_comes_back_is_found_again(peer: Peer) -> None:
    """While it is away the client keeps trying; its requests are answered by the new one, and that it was is over."""
    async with connect(peer, retry=Retry(attempts=200, first_delay=0.01, max_delay=0.05)) as client:
        await client.predict(image("happy"))
        peer.refuse = 503
        waiting = asyncio.create_task(client.predict(image("sad", first=[{"drop": True}])))
        while len(peer.handshakes) < 3:  # the first connection, and two attempts that were refused
            await asyncio.sleep(0.01)
        peer.refuse = None
        assert (await waiting).emotion_name == "sad"
        with pytest.raises(DeadlineExceeded) as late:
            await client.predict(image("fear", first=[{"silent": True}]), timeout=0.3)
    assert "503" not in str(late.value)


class Patient(Retry):
    """Tries again in an hour."""

    def delay(self, retry: int, at_least: float | None = None) -> float:
        """Longer than any test waits."""
        return 3600.0


async def test_a_server_that_refuses_connections_is_left_alone_for_the_pause(peer: Peer) -> None:
    """It is not asked again at once; who waits no longer is told what it was that refused."""
    async with connect(peer, retry=Patient(attempts=5)) as client:
        with pytest.raises(ConnectionLost):
            await client.predict(image("sad", first=[{"drop": True}]))
        peer.refuse = 503
        with pytest.raises(DeadlineExceeded, match="503"):
            await client.predict(image("happy"), timeout=2)
    assert len(peer.handshakes) == 2


async def test_a_refused_connection_is_tried_again_when_the_server_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first pause of connecting again is retry 0's, and not shorter than the header Retry-After."""
    pauses: list[tuple[int, float | None]] = []

    def delay(_: Retry, retry: int, at_least: float | None = None) -> float:
        pauses.append((retry, at_least))
        return 0.0

    def refuse(connection: ServerConnection, _: object) -> Response | None:
        if len(pauses) != 1:  # only after the request that is lost has waited
            return None
        response = connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "")
        response.headers["Retry-After"] = "7"
        return response

    async def greet(websocket: ServerConnection) -> None:
        await websocket.send('{"type":"welcome","protocol":2}')
        request = json.loads(await websocket.recv())
        if not pauses:
            websocket.transport.abort()
            return
        await websocket.send(json.dumps({"type": "pong", "id": request["id"]}))
        await websocket.wait_closed()

    monkeypatch.setattr(Retry, "delay", delay)
    async with serve(greet, "127.0.0.1", 0, process_request=refuse) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with AsyncClient(url) as client:
            await client.ping()
    assert pauses == [(0, None), (0, 7.0)]


async def test_giving_up_says_what_happened(peer: Peer) -> None:
    """After the last attempt the error says that the connection was lost."""
    always = [{"drop": True}] * 5
    async with connect(peer) as client:
        with pytest.raises(ConnectionLost, match="before it answered"):
            await client.predict(image("sad", first=always))
    assert len(peer.predictions_received) == QUICK.attempts


async def test_a_refusal_for_load_is_tried_again_when_the_server_says(peer: Peer) -> None:
    """An overloaded server is asked again, not before its retry_after has passed."""
    script = image("sad", first=[{"error": "overloaded", "retry_after_ms": 120}])
    async with connect(peer) as client:
        started = asyncio.get_running_loop().time()
        assert (await client.predict(script)).emotion_name == "sad"
        assert asyncio.get_running_loop().time() - started >= 0.12
    assert peer.connections == 1


async def test_a_retry_after_beyond_the_timeout_is_not_waited_for(peer: Peer) -> None:
    """When the server's pause is longer than the request has left, its refusal is raised at once."""
    script = image("sad", first=[{"error": "rate_limited", "retry_after_ms": 60_000}])
    async with connect(peer, timeout=20) as client:
        started = asyncio.get_running_loop().time()
        with pytest.raises(RateLimited) as caught:
            await client.predict(script)
        assert asyncio.get_running_loop().time() - started < 10
    assert caught.value.retry_after == 60


async def test_without_retries_a_refusal_is_raised(peer: Peer) -> None:
    """Retry(attempts=1) leaves every decision to the program."""
    async with connect(peer, retry=Retry(attempts=1)) as client:
        with pytest.raises(Overloaded):
            await client.predict(image("sad", first=[{"error": "overloaded"}]))
        with pytest.raises(ConnectionLost):
            await client.predict(image("sad", first=[{"drop": True}]))
        assert (await client.predict(image("happy"))).emotion_name == "happy"


async def test_a_server_that_shuts_down_is_left(peer: Peer) -> None:
    """A request refused for shutdown goes to a new connection; the old one keeps what it has in flight."""
    async with connect(peer) as client:
        in_flight = asyncio.create_task(client.predict(image("fear", after=1)))
        assert (await client.predict(image("sad", first=[{"error": "shutting_down"}]))).emotion_name == "sad"
        assert (await in_flight).emotion_name == "fear"
    assert peer.connections == 2
    assert sum(request.image == image("fear", after=1) for request in peer.received) == 1


async def test_a_configuration_outlives_its_connection(peer: Peer) -> None:
    """What was configured is configured again before anything is sent on a new connection."""
    async with connect(peer) as client:
        effective = await client.configure(detect="always")
        assert effective["detect"] == "always"
        await client.predict(image(first=[{"drop": True}]))
    commands = [request.message for request in peer.received if request.connection == 2]
    assert (commands[0]["command"], commands[0]["detect"], commands[0]["ordered"]) == (
        "configure",
        "always",
        False,
    )
    assert commands[1]["command"] == "predict"


async def test_what_null_means_to_the_server_is_what_is_configured_again(peer: Peer) -> None:
    """It turns a deadline and smoothing off, and is elsewhere as if it was not there: the value of before holds."""
    async with connect(peer) as client:
        await client.configure(detect="always", max_faces=2, deadline_ms=9000, smoothing_ms=300)
        before = await client.configure(detect=None, max_faces=None, smoothing_ms=None)
        await client.predict(image(first=[{"drop": True}]))
        after = await client.configure()
    assert peer.connections == 2
    assert after == before
    assert {
        "detect": "always",
        "max_faces": 2,
        "deadline_ms": 9000,
        "smoothing_ms": None,
    }.items() <= after.items()


async def test_an_unknown_option_is_named_and_forgotten(peer: Peer) -> None:
    """A refused option is not set again on the next connection."""
    async with connect(peer) as client:
        with pytest.raises(InvalidRequest, match="colour"):
            await client.configure(colour="red")
        assert (await client.predict(image("sad", first=[{"drop": True}]))).emotion_name == "sad"


async def test_a_frame_of_a_stream_is_not_sent_again(peer: Peer) -> None:
    """A camera's frame is stale once its connection is lost: the loss is reported, and the next frame goes."""
    async with connect(peer) as client:
        await client.configure(stream=True)
        with pytest.raises(ConnectionLost):
            await client.predict(image(first=[{"drop": True}]))
        assert (await client.predict(image("sad"))).emotion_name == "sad"
