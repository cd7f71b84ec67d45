"""What a client may set for its connection: `configure`, and replies in any order."""

from __future__ import annotations

import asyncio

import pytest

from tests.service.doubles import HeldEngine
from tests.service.harness import TIMEOUT, Running, Serve, ask, predict_message, read
from tests.service.pictures import large_bitmap

DEFAULTS = {
    "detect": "auto",
    "max_faces": 16,
    "ordered": True,
    "stream": False,
    "smoothing_ms": None,
    "deadline_ms": None,
}


async def test_configure_replies_with_all_options(running: Running) -> None:
    """A change is confirmed together with what was left as it is, and holds for this connection only."""
    async with running.client() as websocket, running.client() as other:
        reply = await ask(websocket, '{"command": "configure", "id": "c", "ordered": false}')
        assert reply["type"] == "configuration"
        assert reply["status"] == "success"
        assert reply["id"] == "c"
        assert reply["configuration"] == DEFAULTS | {"ordered": False}
        reply = await ask(websocket, '{"command": "configure", "deadline_ms": 250}')
        assert reply["configuration"] == DEFAULTS | {"ordered": False, "deadline_ms": 250.0}
        reply = await ask(other, '{"command": "configure"}')
        assert reply["configuration"] == DEFAULTS


async def test_a_whole_number_of_faces_may_be_written_with_a_point(running: Running) -> None:
    """Some languages know no other numbers; what is asked for then is predicted as with an integer."""
    async with running.client() as websocket:
        await ask(websocket, '{"command": "configure", "max_faces": 1.0}')
        assert (await ask(websocket, predict_message()))["status"] == "success"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("colour", '"red"'),
        ("ordered", '"no"'),
        ("stream", "1"),
        ("deadline_ms", "-5"),
        ("smoothing_ms", "0"),
        ("detect", '"maybe"'),
        ("max_faces", "0"),
    ],
)
async def test_a_wrong_option_is_named_and_changes_nothing(running: Running, field: str, value: str) -> None:
    """An unknown field, or a value of the wrong type, leaves the configuration as it was."""
    async with running.client() as websocket:
        reply = await ask(websocket, f'{{"command": "configure", "stream": true, "{field}": {value}}}')
        assert reply["code"] == "invalid_request"
        assert f"'{field}'" in reply["message"]
        assert (await ask(websocket, '{"command": "configure"}'))["configuration"]["stream"] is False


async def test_a_deadline_that_is_configured_holds_for_requests_without_one(running: Running) -> None:
    """Nothing is done in a microsecond; a request's own deadline goes before it."""
    async with running.client() as websocket:
        await ask(websocket, '{"command": "configure", "deadline_ms": 0.001}')
        assert (await ask(websocket, predict_message()))["code"] == "deadline_exceeded"
        assert (await ask(websocket, predict_message(deadline_ms=600_000)))["status"] == "success"


async def test_unordered_replies_overtake_slow_ones(serve: Serve) -> None:
    """With ids and ordered off, a query does not wait for predictions, and each request is answered once."""
    async with serve(max_batch=1) as running, running.client() as websocket:
        await ask(websocket, '{"command": "configure", "ordered": false}')
        for number in range(20):
            await websocket.send(predict_message(id=number))
        await websocket.send('{"command": "ping", "id": "ping"}')
        replies = [await read(websocket) for _ in range(21)]
        assert sorted(str(reply["id"]) for reply in replies) == sorted([*map(str, range(20)), "ping"])
        assert replies[-1]["id"] != "ping"


async def test_what_is_answered_in_any_order_is_in_flight_too(serve: Serve, held: HeldEngine) -> None:
    """As much as may be is taken; the rest is read when there is room."""
    async with serve(held, executors=1, max_in_flight=2) as running, running.client() as websocket:
        await ask(websocket, '{"command": "configure", "ordered": false}')
        for number in range(6):
            await websocket.send(predict_message(id=number))
        (connection,) = running.service._connections
        async with asyncio.timeout(TIMEOUT):
            while not connection.reading_paused:
                await asyncio.sleep(0)
        assert running.service._in_flight == 2
        held.released.set()
        assert {(await read(websocket))["id"] for _ in range(6)} == set(range(6))


async def test_nothing_with_an_id_waits_for_what_has_none(running: Running) -> None:
    """With ordered off, also what is ready when it is read: answers, settings and errors."""
    async with running.client() as websocket:
        await ask(websocket, '{"command": "configure", "ordered": false}')
        await websocket.send(large_bitmap())
        for command in ("ping", "configure", "nonsense"):
            await websocket.send(f'{{"command": "{command}", "id": 1}}')
        types = [(await read(websocket))["type"] for _ in range(4)]
        assert types == ["pong", "configuration", "error", "prediction"]


async def test_a_question_with_an_id_overtakes_what_has_none(serve: Serve, held: HeldEngine) -> None:
    """With ordered off, its answer waits for the database alone."""
    async with serve(held, executors=1) as running, running.client() as websocket:
        await ask(websocket, '{"command": "configure", "ordered": false}')
        await websocket.send(predict_message())
        assert (await ask(websocket, '{"command": "stats", "id": 1}'))["type"] == "stats"
        held.released.set()
        assert (await read(websocket))["type"] == "prediction"


async def test_the_reply_that_replies_may_overtake_overtakes_none(running: Running) -> None:
    """What was asked before it was asked in order."""
    async with running.client() as websocket:
        await websocket.send(large_bitmap())
        await websocket.send('{"command": "configure", "ordered": false, "id": 1}')
        assert [(await read(websocket))["type"] for _ in range(2)] == ["prediction", "configuration"]


async def test_requests_without_an_id_stay_in_order(running: Running) -> None:
    """Without ids a client can only tell replies by their order, also where the first takes long, in a thread."""
    image = large_bitmap()
    async with running.client() as websocket:
        await ask(websocket, '{"command": "configure", "ordered": false}')
        for number in range(6):
            await websocket.send(b"broken" if number % 2 else image)
        for command in ("history", "ping"):
            await websocket.send(f'{{"command": "{command}"}}')
        types = [(await read(websocket))["type"] for _ in range(8)]
        assert types == ["prediction", "error"] * 3 + ["history", "pong"]
