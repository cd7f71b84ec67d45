"""A client's session over a real socket: the v1 contract message by message, and what v2 adds to it."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol
from wsproto.events import Pong, TextMessage

from service.engine import Engine
from service.errors import InvalidJSON
from service.protocol.replies import error_reply
from tests.service.harness import (
    FACE,
    ROOT,
    TIMEOUT,
    Running,
    Serve,
    ask,
    closed_with,
    predict_message,
    read,
)
from tests.service.pictures import large_bitmap
from tests.service.raw_peer import PING, TEXT, connected, frame
from tests.service.reloading import change, copy_model

EMOTIONS = ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]


async def test_the_v1_session_of_an_existing_client(running: Running) -> None:
    """Welcome, then each command of v1 in turn: every field that existing clients read is there."""
    async with connect(running.url) as websocket:
        welcome = await read(websocket)
        assert welcome["type"] == "welcome"
        assert isinstance(welcome["message"], str)
        assert isinstance(welcome["version"], str)
        assert {"predict", "emotions", "model_info", "health"} <= set(welcome["commands"])

        reply = await ask(websocket, predict_message())
        assert reply["type"] == "prediction"
        assert reply["status"] == "success"
        assert reply["emotion_name"] == "happy"
        assert 0.5 < reply["confidence"] <= 1
        assert isinstance(reply["model_version_tag"], str)
        assert isinstance(reply["processing_time_ms"], int)
        taken = datetime.fromisoformat(reply["timestamp"])
        assert taken.tzinfo is None
        assert abs(taken.replace(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=1)

        reply = await ask(websocket, '{"command": "emotions"}')
        assert reply["type"] == "emotions"
        assert reply["status"] == "success"
        assert [(emotion["id"], emotion["name"]) for emotion in reply["emotions"]] == list(
            enumerate(EMOTIONS, 1)
        )
        assert reply["emotions"][0]["description"] == "Enojo o ira"

        reply = await ask(websocket, '{"command": "model_info"}')
        assert reply["type"] == "model_info"
        assert reply["status"] == "success"
        info = reply["info"]
        assert info["status"] == "loaded"
        assert info["model_path"].endswith(".onnx")
        assert info["input_shape"][0] is None
        assert info["output_shape"] == [None, 7]
        assert info["num_classes"] == 7
        assert info["total_params"] > 10_000
        assert info["emotion_classes"] == EMOTIONS

        reply = await ask(websocket, '{"command": "health"}')
        assert reply["type"] == "health"
        assert reply["status"] == "healthy"
        assert isinstance(reply["service"], str)
        assert datetime.fromisoformat(reply["timestamp"])
        assert reply["clients_connected"] == 1


async def test_there_is_exactly_one_welcome(running: Running) -> None:
    """A client that drops the first message unread gets the answer to its request next."""
    async with connect(running.url) as websocket:
        await websocket.send('{"command": "health"}')
        assert (await read(websocket))["type"] == "welcome"
        assert (await read(websocket))["type"] == "health"


@pytest.mark.parametrize("path", ["", "/", "/ws", "/?token=1", "/ws?client=web&v=2"])
async def test_clients_are_served_at_both_paths(running: Running, path: str) -> None:
    """The root and /ws, with any query string."""
    async with connect(running.url.rstrip("/") + path) as websocket:
        assert (await read(websocket))["type"] == "welcome"


async def test_another_path_is_refused_before_the_upgrade(running: Running) -> None:
    """A wrong address is an HTTP 404, not a connection that never answers."""
    with pytest.raises(InvalidStatus) as caught:
        await connect(running.url + "socket")
    assert caught.value.response.status_code == 404


async def test_a_missing_command_means_predict(running: Running) -> None:
    """v1 clients may send the image alone."""
    async with running.client() as websocket:
        reply = await ask(websocket, orjson.dumps({"image": base64.b64encode(FACE).decode()}).decode())
        assert reply["emotion_name"] == "happy"


async def test_an_image_may_be_a_data_uri(running: Running) -> None:
    """Browsers send what toDataURL gives."""
    async with running.client() as websocket:
        uri = "data:image/jpeg;base64," + base64.b64encode(FACE).decode()
        reply = await ask(websocket, orjson.dumps({"command": "predict", "image": uri}).decode())
        assert reply["status"] == "success"


async def test_a_token_does_no_harm(running: Running) -> None:
    """Clients that send a token are served where none is asked for."""
    async with running.client() as websocket:
        assert (await ask(websocket, predict_message(token="a.b.c")))["status"] == "success"


async def test_a_prediction_carries_what_v2_adds(running: Running) -> None:
    """The id comes back; probabilities, a stored id and timings are there."""
    async with running.client() as websocket:
        reply = await ask(websocket, predict_message(id="frame-1"))
    assert reply["id"] == "frame-1"
    assert len(reply["prediction_id"]) == 36
    assert list(reply["probabilities"]) == EMOTIONS
    assert sum(reply["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert reply["probabilities"]["happy"] == reply["confidence"]
    timing = reply["timing"]
    assert timing["batch_size"] == 1
    assert 0 < timing["decode"] + timing["inference"] <= timing["total"]
    assert timing["queue"] >= 0


async def test_a_binary_frame_is_predicted_without_base64(running: Running) -> None:
    """Raw bytes, and raw bytes behind a header line, give the same answer as base64."""
    async with running.client() as websocket:
        expected = (await ask(websocket, predict_message()))["probabilities"]
        assert (await ask(websocket, FACE))["probabilities"] == expected
        reply = await ask(websocket, b'{"id": 12}\n' + FACE)
        assert reply["id"] == 12
        assert reply["probabilities"] == expected


async def test_pipelined_requests_are_answered_in_their_order(running: Running) -> None:
    """Predictions, errors and queries come back in the order they were asked, whatever each takes."""
    large = (ROOT / "tests/data/astronaut.jpg").read_bytes()
    messages: list[tuple[str | bytes, str]] = []
    for number in range(40):
        kind = number % 4
        if kind == 0:
            messages.append((predict_message(large, id=number), "prediction"))
        elif kind == 1:
            messages.append((predict_message(id=number), "prediction"))
        elif kind == 2:
            messages.append((orjson.dumps({"command": "health", "id": number}).decode(), "health"))
        else:
            messages.append((predict_message(b"broken", id=number), "error"))
    async with running.client() as websocket:
        for message, _ in messages:
            await websocket.send(message)
        replies = [await read(websocket) for _ in messages]
    assert [reply["id"] for reply in replies] == list(range(40))
    assert [reply["type"] for reply in replies] == [kind for _, kind in messages]


async def test_many_clients_are_each_answered_their_own(running: Running) -> None:
    """Concurrent clients get their own ids back, and every request exactly one reply."""

    async def session(client: int) -> list[int]:
        async with running.client() as websocket:
            replies = []
            for number in range(10):
                reply = await ask(websocket, predict_message(id=client * 100 + number))
                assert reply["status"] == "success"
                replies.append(reply["id"])
            return replies

    sessions = await asyncio.gather(*(session(client) for client in range(30)))
    assert sessions == [[client * 100 + number for number in range(10)] for client in range(30)]


async def test_a_client_may_ask_for_more_than_may_be_in_flight(serve: Serve) -> None:
    """Beyond the bound the connection is read later; nothing is refused or lost."""
    async with serve(max_in_flight=2) as running, running.client() as websocket:
        for number in range(50):
            await websocket.send(predict_message(id=number))
        assert [(await read(websocket))["id"] for _ in range(50)] == list(range(50))


@pytest.mark.parametrize("as_text", [False, True], ids=["bytes", "base64"])
async def test_large_images_are_read_as_fast_as_they_are_worked_on(serve: Serve, as_text: bool) -> None:
    """A client may send more of them than may wait: those beyond a few megabytes stay in the network."""
    image = large_bitmap()
    message = predict_message(image) if as_text else image
    async with serve(max_waiting=3) as running, running.client() as websocket:
        for _ in range(12):
            await websocket.send(message)
        assert [(await read(websocket))["status"] for _ in range(12)] == ["success"] * 12
        assert (await ask(websocket, predict_message()))["status"] == "success"


async def test_large_images_beyond_those_in_flight_stay_in_the_network(serve: Serve) -> None:
    """Also where the last of them was read in several turns of the loop: a connection holds no more than one ahead."""
    image = large_bitmap()
    async with serve(max_in_flight=1) as running, running.client() as websocket, asyncio.TaskGroup() as group:

        async def send() -> None:
            for _ in range(12):
                await websocket.send(image)

        (connection,) = running.service._connections
        group.create_task(send())
        for _ in range(12):
            assert (await read(websocket))["status"] == "success"
            assert len(connection._unread) <= 1


async def test_a_full_queue_refuses_a_request_and_keeps_the_connection(serve: Serve) -> None:
    """Overload is an error reply that says when to try again."""
    async with serve(max_waiting=1, max_in_flight=500) as running, running.client() as websocket:
        for number in range(200):
            await websocket.send(predict_message(id=number))
        replies = [await read(websocket) for _ in range(200)]
        refused = [reply for reply in replies if reply["type"] == "error"]
        assert [reply["id"] for reply in replies] == list(range(200))
        assert refused
        assert all(reply["code"] == "overloaded" and reply["retry_after_ms"] >= 1 for reply in refused)
        counted = f'visionai_errors_total{{code="overloaded"}} {len(refused)}.0\n'
        assert counted.encode() in running.service._exposition()
        assert (await ask(websocket, predict_message()))["status"] == "success"


async def test_a_request_too_late_to_be_run_is_told_so(serve: Serve) -> None:
    """A deadline that passes in the queue costs no inference."""
    settings = {"max_batch": 1, "max_in_flight": 500}
    async with serve(**settings) as running, running.client() as websocket:
        for _ in range(100):
            await websocket.send(predict_message())
        await websocket.send(predict_message(deadline_ms=0.001, id="late"))
        replies = [await read(websocket) for _ in range(101)]
        assert replies[-1]["id"] == "late"
        assert replies[-1]["code"] == "deadline_exceeded"


async def test_the_language_of_descriptions_is_a_setting(serve: Serve) -> None:
    """English where it is asked for."""
    async with serve(emotions_language="en") as running, running.client() as websocket:
        reply = await ask(websocket, '{"command": "emotions"}')
        assert reply["emotions"][6] == {"id": 7, "name": "surprise", "description": "Surprise"}


async def test_an_emotion_has_its_id_whatever_the_models_order(serve: Serve, tmp_path: Path) -> None:
    """Existing clients know the seven by their ids; one that they do not know gets another."""
    model = copy_model(tmp_path)
    change(model, '"angry", "disgust"', '"disgust", "angry"')
    change(model, "surprise", "surprize")
    async with serve(Engine(model)) as running, running.client() as websocket:
        reply = await ask(websocket, '{"command": "emotions"}')
    assert [emotion["name"] for emotion in reply["emotions"][:2]] == ["disgust", "angry"]
    assert [emotion["id"] for emotion in reply["emotions"]] == [2, 1, 3, 4, 5, 6, 8]


async def test_queries_echo_the_id(running: Running) -> None:
    """An id in any request comes back in its reply."""
    async with running.client() as websocket:
        for command in ("emotions", "model_info", "health"):
            assert (await ask(websocket, orjson.dumps({"command": command, "id": command}).decode()))[
                "id"
            ] == command


async def test_a_client_that_leaves_does_not_disturb_the_others(running: Running) -> None:
    """Connections cut in mid-request leave the service answering."""

    async def cut() -> None:
        async with running.client() as websocket:
            for _ in range(20):
                await websocket.send(predict_message())
            websocket.transport.abort()

    async with running.client() as witness:
        await asyncio.gather(*(cut() for _ in range(10)))
        async with asyncio.timeout(30):
            # Refused at most until the service has noticed that they left, with an honest time to come again.
            while (reply := await ask(witness, predict_message()))["status"] != "success":
                assert reply["code"] == "overloaded"
                await asyncio.sleep(reply["retry_after_ms"] / 1000)
            while (await ask(witness, '{"command": "health"}'))["clients_connected"] > 1:
                await asyncio.sleep(0.01)


async def test_a_message_over_the_limit_closes_its_connection_only(serve: Serve) -> None:
    """1009 for the one that sent it; the others are served on."""
    async with serve(max_message_bytes=100_000) as running, running.client() as other:
        async with running.client() as websocket:
            await websocket.send("x" * 200_000)
            assert await closed_with(websocket) == 1009
        assert (await ask(other, predict_message()))["status"] == "success"


async def test_a_text_frame_of_bad_utf_8_closes_with_1007(running: Running) -> None:
    """As RFC 6455 has it."""
    async with running.client() as websocket:
        await websocket.send(b"\xff\xfe", text=True)
        assert await closed_with(websocket) == 1007


async def test_compression_is_not_negotiated(running: Running) -> None:
    """A JPEG does not compress; offers of permessage-deflate are declined."""
    async with connect(running.url, compression="deflate") as websocket:
        assert websocket.response is not None
        assert "Sec-WebSocket-Extensions" not in websocket.response.headers


async def test_a_fragmented_message_is_put_together(running: Running) -> None:
    """Text and binary messages may come in pieces, as RFC 6455 has it."""
    message = predict_message(id="pieces")
    async with running.client() as websocket:
        await websocket.send(iter([message[:100], message[100:105], "", message[105:]]))
        assert (await read(websocket))["id"] == "pieces"
        await websocket.send(iter([FACE[:1000], FACE[1000:]]))
        assert (await read(websocket))["emotion_name"] == "happy"


async def test_replies_of_every_size_are_framed(serve: Serve) -> None:
    """Below 126 bytes, below 64 KiB and beyond, a reply is one frame that a client can read."""
    async with serve() as running, running.client() as websocket:
        connection = next(iter(running.service._connections))
        empty = len(error_reply(InvalidJSON(""), None))
        for size in (empty, 125, 126, 65535, 65536, 200_000):
            connection._write(error_reply(InvalidJSON("x" * (size - empty)), None))
            async with asyncio.timeout(30):
                assert len(await websocket.recv()) == size


async def test_a_client_that_does_not_read_is_not_read_from(serve: Serve) -> None:
    """Its replies stop piling up; the others are served; once it reads, it gets everything in order."""
    async with serve() as running, running.client() as other, connect(running.url, max_queue=1) as slow:
        await read(slow)
        count = 3000
        sending = asyncio.create_task(_send_all(slow, ['{"command": "model_info", "id": 1}'] * count))
        for _ in range(20):
            assert (await ask(other, predict_message()))["status"] == "success"
        for _ in range(count):
            assert (await read(slow))["type"] == "model_info"
        await sending


async def test_a_client_that_reads_again_in_time_is_not_closed(serve: Serve) -> None:
    """What would have closed it is called off, and it is served on."""
    async with serve(ping_seconds=0) as running, connected(running.port) as peer:
        (connection,) = running.service._connections
        async with asyncio.timeout(TIMEOUT):
            while not connection.paused:
                peer.send(frame(PING, bytes(125)) * 1000)
                await asyncio.sleep(0)
            timer = connection._send_timer
            assert timer is not None
            peer.send(frame(TEXT, b'{"command": "health"}'))
            while isinstance(event := await peer.event(), Pong):
                pass
        assert isinstance(event, TextMessage)
        assert timer.cancelled()


async def _send_all(websocket: ClientConnection, messages: list[str]) -> None:
    for message in messages:
        await websocket.send(message)


async def test_ping_and_models(running: Running) -> None:
    """Browsers can measure a round trip, and see which version is served."""
    async with running.client() as websocket:
        reply = await ask(websocket, '{"command": "ping", "id": 1}')
        assert (reply["type"], reply["status"], reply["id"]) == ("pong", "success", 1)
        reply = await ask(websocket, '{"command": "models"}')
        tag = (await ask(websocket, predict_message()))["model_version_tag"]
        assert [(model["version_tag"], model["active"]) for model in reply["models"]] == [(tag, True)]


async def test_the_subprotocol_is_echoed_only_where_it_is_offered(running: Running) -> None:
    """A v2 client sees that it speaks to a v2 server; others are served without one."""
    async with connect(
        running.url, subprotocols=[Subprotocol("other"), Subprotocol("visionai.v2")]
    ) as websocket:
        assert websocket.subprotocol == "visionai.v2"
    async with connect(running.url, subprotocols=[Subprotocol("other")]) as websocket:
        assert websocket.subprotocol is None
        assert (await read(websocket))["type"] == "welcome"
