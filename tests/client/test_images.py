"""What is taken for an image, and many of them."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import ImageSource, InvalidImage, Unauthorized
from tests.client.harness import TIMEOUT, connect
from tests.client.peer import Peer, image


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
        with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*none\.jpg'$"):
            await client.predict(tmp_path / "none.jpg")
    assert peer.predictions_received == []


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes")
async def test_a_pipe_that_is_written_to_after_it_was_given_up_is_read_by_nobody(
    peer: Peer, tmp_path: Path
) -> None:
    """The thread that reads it ends without an error, and nothing is sent."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    async with connect(peer) as client:
        given_up = asyncio.create_task(client.predict(path))
        async with asyncio.timeout(TIMEOUT):
            while True:
                with suppress(OSError):  # until there is a reader
                    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                    break
                await asyncio.sleep(0.01)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        (reader,) = (thread for thread in threading.enumerate() if thread.name == "visionai client stream")
        os.write(writer, image("sad"))
        os.close(writer)
        await asyncio.to_thread(reader.join, TIMEOUT)
        assert not reader.is_alive()
    assert peer.predictions_received == []


async def test_many_files_at_once_need_few_threads(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slowly they are read; so few are open at once, too."""
    path = tmp_path / "face.jpg"
    path.write_bytes(image("fear"))
    readable = threading.Event()
    monkeypatch.setattr(Path, "read_bytes", lambda _path: readable.wait(60) and image("fear"))
    before = threading.active_count()
    async with connect(peer) as client:
        asked = [asyncio.create_task(client.predict(path)) for _ in range(100)]
        await asyncio.sleep(0)  # each has begun
        threads = threading.active_count() - before
        readable.set()
        await asyncio.gather(*asked)
    assert 0 < threads <= 32


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


async def test_images_that_have_ended_are_not_asked_for_again(peer: Peer) -> None:
    """As the lines of a terminal, which would wait for further ones."""

    class Lines(Iterator[bytes]):
        left = 2
        ends = 0

        def __next__(self) -> bytes:
            if not self.left:
                self.ends += 1
                raise StopIteration
            self.left -= 1
            return image("sad", n=self.left)

    lines = Lines()
    async with connect(peer) as client:
        assert len([outcome async for outcome in client.predict_many(lines)]) == 2
    assert lines.ends == 1


async def test_outcomes_do_not_wait_for_the_images_after_them(peer: Peer) -> None:
    """Of an asynchronous source, such as a camera, each comes out while the next one is not there yet."""
    seen = asyncio.Event()

    async def answered_first() -> AsyncIterator[bytes]:
        for emotion in ("sad", "happy", "fear"):
            yield image(emotion)
            await seen.wait()
            seen.clear()

    found = []
    async with connect(peer) as client, asyncio.timeout(TIMEOUT):
        async for outcome in client.predict_many(answered_first()):
            assert outcome.prediction is not None
            found.append((outcome.index, outcome.prediction.emotion_name))
            seen.set()
    assert found == [(0, "sad"), (1, "happy"), (2, "fear")]


async def test_images_that_are_waited_for_are_drawn_only_as_needed(peer: Peer) -> None:
    """Of an asynchronous source too, at most `concurrency` are taken ahead, and all of them come out in order."""
    taken = 0

    async def some() -> AsyncIterator[bytes]:
        nonlocal taken
        while taken < 20:
            taken += 1
            yield image("sad", n=taken, gated=True)

    async def let_through() -> None:
        while len(peer.predictions_received) < 4:
            await asyncio.sleep(0.01)
        for _ in range(20):
            await asyncio.sleep(0)
        assert taken == 4
        peer.gate.set()

    seen = 0
    async with connect(peer) as client, asyncio.TaskGroup() as tasks, asyncio.timeout(TIMEOUT):
        tasks.create_task(let_through())
        async for outcome in client.predict_many(some(), concurrency=4):
            assert outcome.index == seen
            seen += 1
    assert seen == 20


async def test_a_source_may_have_a_limit_of_its_own(peer: Peer) -> None:
    """All of it runs in one task: a timeout that it begins with one image ends it at another."""

    limit = asyncio.timeout(None)

    async def one() -> AsyncIterator[bytes]:
        async with limit:
            yield image("sad")
            await asyncio.Event().wait()

    found = []
    with pytest.raises(TimeoutError):
        async with connect(peer) as client, asyncio.timeout(TIMEOUT):
            async for outcome in client.predict_many(one()):
                found.append(outcome.index)
                limit.reschedule(asyncio.get_running_loop().time())
    assert found == [0]


@pytest.mark.parametrize("way", ["closed", "cancelled"])
async def test_a_source_is_not_waited_for_by_nobody(peer: Peer, way: str) -> None:
    """Closed or cancelled while the source has no image: it is told so, and no task is left."""
    told = []

    async def one() -> AsyncIterator[bytes]:
        yield image("sad")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append(way)
            raise

    async with connect(peer) as client:
        await client.connect()
        before = asyncio.all_tasks()
        outcomes = client.predict_many(one())
        await anext(outcomes)
        if way == "closed":
            await outcomes.aclose()
        else:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await anext(outcomes)
        assert told == [way]
        assert asyncio.all_tasks() == before


async def test_what_a_source_raises_is_raised(peer: Peer) -> None:
    """An asynchronous source that fails ends it with its own error."""

    async def failing() -> AsyncIterator[bytes]:
        yield image("sad", gated=True)
        raise OSError("the camera is gone")

    async with connect(peer) as client:
        with pytest.raises(OSError, match="the camera is gone"):
            await anext(client.predict_many(failing()))


async def test_a_number_at_a_time_that_is_not_whole_is_a_limit_too(peer: Peer) -> None:
    """As half of the cores may be: it is not one that is never reached."""
    images = iter([image("sad", n=number) for number in range(8)])
    halves: Any = 2.5
    async with connect(peer) as client:
        outcomes = client.predict_many(images, concurrency=halves)
        await anext(outcomes)
        await outcomes.aclose()
    assert len(list(images)) == 5


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


@pytest.mark.parametrize("thing", [bytearray(b"x"), io.BytesIO(b"x"), np.zeros((4, 4), np.uint8), None])
async def test_what_is_no_image_is_told_what_to_do_with_it(peer: Peer, thing: Any) -> None:
    """A buffer, an open file and pixels are a TypeError that names them; nothing is sent."""
    async with connect(peer) as client:
        with pytest.raises(TypeError, match=rf"not {type(thing).__name__}: encode pixels"):
            await client.predict(thing)
    assert peer.predictions_received == []


async def test_an_image_as_text_is_not_shown(peer: Peer) -> None:
    """Base64 is taken for a path that is too long; the error says so, without all of it."""
    async with connect(peer) as client:
        with pytest.raises(OSError, match=r"text is a path; base64\.b64decode\(\)") as caught:
            await client.predict("/9j/" * 10_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["a\0b.jpg", "a\ud800b.jpg"])
async def test_a_name_that_no_file_can_have_does_not_stop_the_others(peer: Peer, name: str) -> None:
    """It is an OSError, as where a file cannot be read."""
    async with connect(peer) as client:
        outcomes = [outcome async for outcome in client.predict_many([name, image("sad")])]
    assert isinstance(outcomes[0].error, OSError)
    assert outcomes[1].prediction is not None


@pytest.mark.parametrize("one", ["photos/face.jpg", b"\xff\xd8", Path("photos")])
async def test_one_image_is_not_taken_for_many(peer: Peer, one: Any) -> None:
    """Text would be as many paths as it has letters."""
    async with connect(peer) as client:
        with pytest.raises(TypeError, match="several images"):
            await anext(client.predict_many(one))


async def test_the_bytes_of_an_image_are_not_printed_with_its_outcome(peer: Peer) -> None:
    """An outcome can be printed and logged: it says how many bytes there were, and shows a path as it is."""
    data = image("sad", padding="x" * 1000)
    async with connect(peer) as client:
        outcomes = [repr(outcome) async for outcome in client.predict_many([data, "none.jpg"])]
    assert outcomes[0].startswith(
        f"Outcome(index=0, source=<{len(data)} bytes>, prediction=Prediction(emotion_name='sad'"
    )
    assert outcomes[1].startswith(
        "Outcome(index=1, source='none.jpg', prediction=None, error=FileNotFoundError("
    )
