"""Cameras: of a stream's frames the newest wins, and takes its turn among other clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from websockets.asyncio.client import ClientConnection

from tests.service.doubles import HeldEngine
from tests.service.harness import TIMEOUT, Running, Serve, ask, predict_message, read


@asynccontextmanager
async def beside_a_busy_client(
    serve: Serve, held: HeldEngine, **settings: int
) -> AsyncIterator[ClientConnection]:
    """A camera, whose frames wait for the request of another client, which is in the model and answered in the end."""
    async with (
        serve(held, executors=1, max_batch=1, **settings) as running,
        running.client() as other,
        running.client() as camera,
    ):
        await other.send(predict_message())
        assert await asyncio.to_thread(held.entered.wait, TIMEOUT)
        yield camera
        assert (await read(other))["type"] == "prediction"


async def test_in_a_stream_the_newest_frame_wins(serve: Serve) -> None:
    """Each frame gets exactly one reply, in order: a prediction, or `superseded`; the last one is predicted."""
    async with serve(max_batch=1) as running, running.client() as websocket:
        await ask(websocket, '{"command": "configure", "stream": true}')
        for number in range(200):
            await websocket.send(predict_message(id=number))
        replies = [await read(websocket) for _ in range(200)]
        assert [reply["id"] for reply in replies] == list(range(200))
        assert replies[-1]["type"] == "prediction"
        overtaken = [reply for reply in replies if reply["type"] == "error"]
        assert overtaken
        assert {reply["code"] for reply in overtaken} == {"superseded"}
        counted = f'visionai_errors_total{{code="superseded"}} {len(overtaken)}.0\n'
        assert counted.encode() in running.service._exposition()
        assert (await ask(websocket, '{"command": "health"}'))["status"] == "healthy"


async def test_a_stream_is_served_in_its_turn_however_fast_its_frames_come(serve: Serve) -> None:
    """A frame takes the place in the line of the one that it overtakes: a camera beside busy clients is not starved."""
    clients, requests = 40, 20
    async with serve(max_batch=1) as running, AsyncExitStack() as stack:
        camera, *others = [await stack.enter_async_context(running.client()) for _ in range(1 + clients)]
        await ask(camera, '{"command": "configure", "stream": true}')
        for other in others:  # whose turn it is goes by what a request takes: it is known by then
            await ask(other, predict_message())
        answered = 0

        async def read_all(websocket: ClientConnection) -> None:
            nonlocal answered
            for _ in range(requests - 1):
                assert (await read(websocket))["type"] == "prediction"
                answered += 1

        for other in others:
            for _ in range(requests):
                await other.send(predict_message())
        for other in others:
            await read(other)  # all of them are in the line now
        async with asyncio.TaskGroup() as group:
            for other in others:
                group.create_task(read_all(other))
            types = []
            await camera.send(predict_message())
            while "prediction" not in types:  # two frames are under way at a time, as the page has it
                await camera.send(predict_message())
                types.append((await read(camera))["type"])
            assert answered < 4 * clients, "it was passed over again and again"


async def test_a_stream_does_not_supersede_another_clients_frames(running: Running) -> None:
    """Newest wins among the frames of one connection only."""
    async with running.client() as first, running.client() as second:
        for websocket in (first, second):
            await ask(websocket, '{"command": "configure", "stream": true}')
        await first.send(predict_message())
        await second.send(predict_message())
        assert (await read(first))["type"] == (await read(second))["type"] == "prediction"


async def test_a_frame_is_not_refused_for_the_one_that_it_overtakes(serve: Serve, held: HeldEngine) -> None:
    """It takes its place, also in a queue that is full of it: under load, too, the newest wins."""
    async with beside_a_busy_client(serve, held, max_waiting=1) as camera:
        await ask(camera, '{"command": "configure", "stream": true}')
        for name in ("first", "second", "newest"):
            await camera.send(predict_message(id=name))
        overtaken = [await read(camera) for _ in range(2)]
        assert [(reply["id"], reply["code"]) for reply in overtaken] == [
            ("first", "superseded"),
            ("second", "superseded"),
        ]
        held.released.set()
        predicted = await read(camera)
        assert (predicted["id"], predicted["type"]) == ("newest", "prediction")


async def test_a_frame_that_is_refused_overtakes_none(serve: Serve, held: HeldEngine) -> None:
    """The one that waits is predicted all the same: else a camera beside busy clients would get nothing but errors."""
    async with beside_a_busy_client(serve, held) as camera:
        await ask(camera, '{"command": "configure", "stream": true, "ordered": false}')
        await camera.send(predict_message(id="waits"))
        refused = await ask(camera, predict_message(id="is refused", deadline_ms=0.001))
        assert (refused["id"], refused["code"]) == ("is refused", "deadline_exceeded")
        held.released.set()
        predicted = await read(camera)
        assert (predicted["id"], predicted["type"]) == ("waits", "prediction")


async def test_what_was_asked_before_a_stream_is_no_frame_of_it(serve: Serve, held: HeldEngine) -> None:
    """A photo that waits while its client turns its camera on is predicted, whatever frames come behind it."""
    async with beside_a_busy_client(serve, held) as camera:
        await ask(camera, '{"command": "configure", "ordered": false}')
        await camera.send(predict_message(id="photo"))
        await ask(camera, '{"command": "configure", "id": 1, "stream": true}')
        await camera.send(predict_message(id="frame"))
        await camera.send('{"command": "ping", "id": "ping"}')
        replies = [await read(camera)]  # by then all has been read
        held.released.set()
        replies += [await read(camera) for _ in range(2)]
        types = {reply["id"]: reply["type"] for reply in replies}
        assert types == {"photo": "prediction", "frame": "prediction", "ping": "pong"}
