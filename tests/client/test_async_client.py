"""The asynchronous client against a peer that commits faults on request, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import gc
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import serve

from client import (
    AsyncClient,
    CannotConnect,
    ConnectionLost,
    DeadlineExceeded,
    ImageSource,
    ImageTooLarge,
    InternalError,
    InvalidImage,
    InvalidRequest,
    NoFace,
    Overloaded,
    ProtocolViolation,
    RateLimited,
    Retry,
    ShuttingDown,
    Unauthorized,
    UnknownCommand,
    UnknownError,
    VisionAIError,
)
from tests.client.harness import QUICK
from tests.client.peer import V1_COMMANDS, Peer, image


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
async def any_peer(request: pytest.FixtureRequest) -> AsyncIterator[Peer]:
    """A peer of each protocol version."""
    commands = V1_COMMANDS if request.param == 1 else Peer().commands
    async with Peer(request.param, commands).running() as running:
        yield running


def connect(peer: Peer, **arguments: Any) -> AsyncClient:
    """A client that does not wait long before it tries again."""
    return AsyncClient(peer.url, **{"retry": QUICK, **arguments})


async def test_a_prediction_is_typed(any_peer: Peer) -> None:
    """Both protocol versions give a prediction; the second also its faces."""
    async with connect(any_peer) as client:
        found = await client.predict(image("sad"))
    assert (found.emotion_name, found.confidence, found.model_version_tag) == ("sad", 0.94, "peer-1")
    assert len(found.faces) == (any_peer.protocol == 2)


async def test_images_go_as_the_server_takes_them(any_peer: Peer) -> None:
    """A v2 server gets a binary frame, a v1 server JSON, and both the same bytes."""
    async with connect(any_peer) as client:
        await client.predict(image("sad"))
    (request,) = any_peer.predictions_received
    assert request.binary == (any_peer.protocol == 2)
    assert request.image == image("sad")


async def test_an_image_may_be_a_path(peer: Peer, tmp_path: Path) -> None:
    """A path, as text or as Path, is read and sent."""
    path = tmp_path / "face.jpg"
    path.write_bytes(image("fear"))
    async with connect(peer) as client:
        assert (await client.predict(path)).emotion_name == "fear"
        assert (await client.predict(str(path))).emotion_name == "fear"


async def test_a_missing_file_is_an_os_error(peer: Peer, tmp_path: Path) -> None:
    """A file that cannot be read is the system's own error, and nothing is sent."""
    async with connect(peer) as client:
        with pytest.raises(FileNotFoundError):
            await client.predict(tmp_path / "none.jpg")
    assert peer.predictions_received == []


async def test_the_server_describes_itself(any_peer: Peer) -> None:
    """Emotions, model and health are typed."""
    async with connect(any_peer) as client:
        emotions = await client.emotions()
        info = await client.model_info()
        health = await client.health()
        models = await client.models() if any_peer.protocol >= 2 else ()
        seconds = await client.ping() if any_peer.protocol >= 2 else 1.0
    assert [(model.version_tag, model.active, len(model.labels)) for model in models] in (
        [],
        [("peer-1", True, 7)],
    )
    assert seconds > 0
    assert [entry.name for entry in emotions][:2] == ["angry", "disgust"]
    assert (info.status, info.input_shape, info.num_classes) == ("loaded", (None, 64, 64, 1), 7)
    assert (health.status, health.clients_connected) == ("healthy", 1)


async def test_requests_are_in_flight_together_and_answered_out_of_order(peer: Peer) -> None:
    """A request that is answered last does not hold the others, and each task gets its own answer."""
    async with connect(peer) as client:
        late = asyncio.create_task(client.predict(image("angry", after=2)))
        first, second = await asyncio.gather(client.predict(image("happy")), client.predict(image("sad")))
        assert (first.emotion_name, second.emotion_name) == ("happy", "sad")
        assert (await late).emotion_name == "angry"
    assert peer.connections == 1


async def test_one_connection_serves_many_tasks(any_peer: Peer) -> None:
    """Fifty tasks share a connection; every one gets the answer to its own image."""
    emotions = [["happy", "sad", "fear"][number % 3] for number in range(50)]
    async with connect(any_peer) as client:
        found = await asyncio.gather(*(client.predict(image(emotion)) for emotion in emotions))
    assert [prediction.emotion_name for prediction in found] == emotions
    assert any_peer.connections == 1


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


async def test_a_policy_that_closes_in_place_of_a_welcome_is_about_who_asks(peer: Peer) -> None:
    """As gateways do that cannot refuse the handshake: nothing was sent yet that could be at fault."""
    peer.turns_away = 1008
    with pytest.raises(Unauthorized, match="not you"):
        await connect(peer).connect()


async def test_a_first_connection_to_a_server_that_leaves_is_made_again(peer: Peer) -> None:
    """It has greeted, so it is the right address: as while a service reloads."""
    peer.leaving = 2
    async with connect(peer) as client:
        assert (await client.predict(image("sad"))).emotion_name == "sad"
    assert peer.connections == 3


async def test_a_server_that_comes_back_is_found_again(peer: Peer) -> None:
    """While the server is away the client keeps trying; its requests are answered by the new one."""
    async with connect(peer, retry=Retry(attempts=200, first_delay=0.01, max_delay=0.05)) as client:
        await client.predict(image("happy"))
        peer.refuse = 503
        waiting = asyncio.create_task(client.predict(image("sad", first=[{"drop": True}])))
        while len(peer.handshakes) < 3:  # the first connection, and two attempts that were refused
            await asyncio.sleep(0.01)
        peer.refuse = None
        assert (await waiting).emotion_name == "sad"


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


async def test_the_server_is_told_how_long_the_client_waits(peer: Peer) -> None:
    """deadline_ms is what is left of the request's timeout, so that nobody computes what nobody reads."""
    async with connect(peer, timeout=7) as client:
        await client.predict(image())
        await client.predict(image(), timeout=3)
    first, second = (request.message["deadline_ms"] for request in peer.predictions_received)
    assert 6000 < first <= 7000
    assert 2000 < second <= 3000


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


async def test_a_reply_that_lacks_a_field_is_a_violation(peer: Peer) -> None:
    """A reply to the right request but of the wrong form is not passed off as a prediction."""
    async with connect(peer) as client:
        with pytest.raises(ProtocolViolation, match="prediction reply"):
            await client.predict(image("sad", faces=[{"box": []}]))


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


@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, Unauthorized), (403, Unauthorized), (404, CannotConnect), (429, RateLimited), (503, ShuttingDown)],
)
async def test_a_refused_handshake_is_told_apart(status: int, expected: type[VisionAIError]) -> None:
    """HTTP statuses in place of the upgrade have the errors that they mean."""
    async with Peer(refuse=status).running() as peer:
        with pytest.raises(expected):
            await connect(peer).connect()


async def test_a_server_that_is_not_visionai_is_recognised() -> None:
    """A WebSocket server with another first message is not taken for ours."""
    async with Peer(bad_welcome='{"type":"chat"}').running() as peer:
        with pytest.raises(ProtocolViolation, match="is not a VisionAI server"):
            await connect(peer).connect()


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


@pytest.mark.parametrize("url", ["http://x", "localhost:8000", "ws://", "ws://host:port", ""])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    """A wrong URL is a ValueError of the constructor, not a failure of the network."""
    with pytest.raises(ValueError, match=r"WebSocket address|Port"):
        AsyncClient(url)


async def test_the_token_goes_with_the_handshake_and_the_request(peer: Peer) -> None:
    """Servers that check the upgrade and servers that check the message both find it."""
    async with connect(peer, token="secret") as client:
        await client.predict(image())
    assert peer.handshakes[0].headers["Authorization"] == "Bearer secret"
    assert peer.predictions_received[0].message["token"] == "secret"


async def test_a_token_is_taken_without_the_space_around_it(peer: Peer) -> None:
    """A file that holds one ends with a newline, which no header may."""
    async with connect(peer, token="secret\n") as client:
        await client.predict(image())
    assert peer.handshakes[0].headers["Authorization"] == "Bearer secret"
    assert peer.predictions_received[0].message["token"] == "secret"


@pytest.mark.parametrize("token", ["sec\nret", "sec ret", "sec\x7fret", "sécret"])
def test_what_is_no_token_is_refused_without_being_shown(token: str) -> None:
    """It is a ValueError of the constructor, which may end up in a log."""
    with pytest.raises(ValueError, match="the whole token") as caught:
        AsyncClient(token=token)
    assert "ret" not in str(caught.value)


async def test_the_token_goes_only_where_it_matters(peer: Peer) -> None:
    """History is the user's own; configure would take the token for an unknown option."""
    async with connect(peer, token="secret") as client:
        await client.history()
        await client.configure(detect="never")
    tokens = {request.message["command"]: request.message.get("token") for request in peer.received}
    assert tokens == {"configure": None, "history": "secret"}


async def test_options_of_a_prediction_are_sent_only_when_given(peer: Peer) -> None:
    """Defaults are the server's business."""
    async with connect(peer) as client:
        await client.predict(image())
        await client.predict(image(), detect="never", max_faces=2, priority="low")
    plain, chosen = (request.message for request in peer.predictions_received)
    assert not {"detect", "max_faces", "priority"} & set(plain)
    assert (chosen["detect"], chosen["max_faces"], chosen["priority"]) == ("never", 2, "low")


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


async def test_a_command_that_an_old_server_lacks_says_so() -> None:
    """Asking a v1 server for its history names what it has instead."""
    async with Peer(1, V1_COMMANDS).running() as peer, connect(peer) as client:
        with pytest.raises(UnknownCommand, match=r"no command 'history'; it has emotions, health"):
            await client.history()
        assert peer.received == []


async def test_history_is_read_page_by_page(peer: Peer) -> None:
    """`next` of a page is the cursor of the one after it, and None on the last."""
    async with connect(peer) as client:
        first = await client.history(limit=3)
        second = await client.history(limit=3, cursor=first.next)
    assert [row.emotion_name for row in first.predictions] == ["happy", "sad", "happy"]
    assert [row.emotion_name for row in second.predictions] == ["sad", "happy"]
    assert second.next is None


async def test_stats_are_typed(peer: Peer) -> None:
    """Counts, confidence and percentiles of the asked window."""
    async with connect(peer) as client:
        stats = await client.stats(window_s=60)
    assert (stats.window_s, stats.count, stats.mean_confidence) == (60, 4, 0.8)
    assert stats.emotions["happy"].count == 3
    assert stats.latency_ms == {"p50": 1.2, "p99": 3.4}


async def test_any_command_can_be_asked(peer: Peer) -> None:
    """Commands without a method of their own give the reply as it came."""
    async with connect(peer) as client:
        assert (await client.request("ping"))["status"] == "success"


async def test_closing_tells_requests_in_flight(peer: Peer) -> None:
    """Nobody hangs on a client that was closed, and a closed client stays closed."""
    client = connect(peer)
    waiting = asyncio.create_task(client.predict(image(first=[{"silent": True}])))
    while not peer.predictions_received:
        await asyncio.sleep(0.001)
    await client.aclose()
    with pytest.raises(ConnectionLost, match="the client is closed"):
        await waiting
    with pytest.raises(ConnectionLost, match="the client is closed"):
        await client.predict(image())
    assert peer.connections == 1


async def test_many_images_come_out_in_order_with_their_errors(peer: Peer, tmp_path: Path) -> None:
    """Each image has one outcome, in its place; those that fail don't stop the others."""
    sources: list[ImageSource] = [
        image("angry", after=2),
        image("sad"),
        image(first=[{"error": "invalid_image"}]),
        tmp_path / "missing.jpg",
        image("happy"),
    ]
    async with connect(peer) as client:
        outcomes = [outcome async for outcome in client.predict_many(sources)]
    assert [outcome.index for outcome in outcomes] == [0, 1, 2, 3, 4]
    assert [outcome.source for outcome in outcomes] == sources
    found = [outcome.prediction.emotion_name if outcome.prediction else outcome.error for outcome in outcomes]
    assert (found[0], found[1], found[4]) == ("angry", "sad", "happy")
    assert isinstance(found[2], InvalidImage)
    assert isinstance(found[3], FileNotFoundError)


async def test_many_images_are_drawn_only_as_needed(peer: Peer) -> None:
    """Never more than `concurrency` images are taken ahead of the outcomes."""
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield image("sad", n=taken)

    seen = 0
    async with connect(peer) as client:
        outcomes = client.predict_many(endless(), concurrency=4)
        async for _ in outcomes:
            seen += 1
            assert taken <= seen + 3
            if seen == 20:
                break
        await outcomes.aclose()


async def test_many_images_need_at_least_one_at_a_time(peer: Peer) -> None:
    """A concurrency of 0 could never answer."""
    async with connect(peer) as client:
        with pytest.raises(ValueError, match="concurrency is at least 1"):
            await anext(client.predict_many([image()], concurrency=0))


async def test_many_images_stop_when_the_server_refuses_the_token(peer: Peer) -> None:
    """What would fail every image is raised instead of being repeated for each."""
    async with connect(peer) as client:
        with pytest.raises(Unauthorized):
            async for _ in client.predict_many([image(first=[{"error": "unauthorized"}])] * 3, concurrency=1):
                pass
    assert len(peer.predictions_received) == 1


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


async def test_base64_is_what_v1_servers_decode() -> None:
    """The text frame of a v1 image is plain standard base64."""
    async with Peer(1, V1_COMMANDS).running() as peer, connect(peer) as client:
        await client.predict(image("sad"))
    assert base64.b64decode(peer.received[0].message["image"], validate=True) == image("sad")
