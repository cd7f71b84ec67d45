"""The blocking client, used from threads while the peer serves in the test's event loop."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from client import (
    AsyncClient,
    CannotConnect,
    Client,
    ConnectionLost,
    DeadlineExceeded,
    InvalidImage,
    Retry,
    Unauthorized,
)
from tests.client.harness import QUICK, TIMEOUT, run_command
from tests.client.peer import Peer, image


async def test_a_program_without_asyncio_predicts(peer: Peer, tmp_path: Path) -> None:
    """Bytes and paths, one after the other over one connection."""
    path = tmp_path / "face.jpg"
    path.write_bytes(image("fear"))

    def program() -> list[str]:
        with Client(peer.url) as client:
            return [client.predict(image("sad")).emotion_name, client.predict(path).emotion_name]

    assert await asyncio.to_thread(program) == ["sad", "fear"]
    assert peer.connections == 1


async def test_the_end_of_its_context_is_the_end_of_a_client(peer: Peer, tmp_path: Path) -> None:
    """Its threads have ended, also those that read files, and it stays closed."""
    path = tmp_path / "face.jpg"
    path.write_bytes(image("sad"))

    def program() -> None:
        before = set(threading.enumerate())
        with Client(peer.url) as client:
            assert client.predict(path).emotion_name == "sad"
            assert set(threading.enumerate()) > before
        assert set(threading.enumerate()) == before
        with pytest.raises(ConnectionLost, match="the client is closed"):
            client.ping()

    await asyncio.to_thread(program)


async def test_it_takes_what_the_asynchronous_client_takes(peer: Peer) -> None:
    """The same options with the same defaults, and each of them holds."""
    assert inspect.signature(Client) == inspect.signature(AsyncClient)

    def program() -> None:
        with (
            Client(peer.url, token="secret", retry=Retry(attempts=1)) as client,
            pytest.raises(ConnectionLost),
        ):
            client.predict(image("sad", first=[{"drop": True}]))
        with pytest.raises(ValueError, match="keepalive"):
            Client(peer.url, keepalive=0)
        with (
            pytest.raises(CannotConnect, match=r"no answer within 1e-06 s"),
            Client(peer.url, connect_timeout=1e-6),
        ):
            pass
        with Client(peer.url) as client:
            with pytest.raises(DeadlineExceeded, match=r"within 0.05 s"):
                client.predict(image(first=[{"silent": True}]), timeout=0.05)
            client.stats(window_s=60, buckets=3, connection_only=True)

    await asyncio.to_thread(program)
    assert peer.handshakes[0].headers["Authorization"] == "Bearer secret"
    assert len([request for request in peer.predictions_received if request.connection == 1]) == 1
    asked = peer.received[-1].message
    assert (asked["window_s"], asked["buckets"], asked["scope"]) == (60, 3, "connection")


async def test_the_server_describes_itself(peer: Peer) -> None:
    """Every query of the asynchronous client is here too."""

    def program() -> None:
        with Client(peer.url) as client:
            assert client.connect().protocol == 2
            assert client.emotions()[0].name == "angry"
            assert client.model_info().num_classes == 7
            assert client.health().status == "healthy"
            assert client.stats(window_s=60).count == 4
            assert len(client.history(limit=2).predictions) == 2
            assert client.configure(max_faces=2)["max_faces"] == 2
            assert client.models()[0].version_tag == "peer-1"
            assert client.ping() > 0
            assert client.predict(image(), priority="high").emotion_name == "happy"
            assert client.request("ping")["status"] == "success"

    await asyncio.to_thread(program)


async def test_threads_share_a_client(peer: Peer) -> None:
    """Each thread gets the answer to its own image, all over one connection."""
    emotions = [["happy", "sad", "fear"][number % 3] for number in range(30)]

    def program() -> list[str]:
        with Client(peer.url) as client, ThreadPoolExecutor(8) as threads:
            return list(threads.map(lambda emotion: client.predict(image(emotion)).emotion_name, emotions))

    assert await asyncio.to_thread(program) == emotions
    assert peer.connections == 1


async def test_many_images_come_out_in_order(peer: Peer) -> None:
    """Outcomes are in the order of the images, failures among them."""
    sources = [
        image("angry", after=2),
        image("sad"),
        image(first=[{"error": "invalid_image"}]),
        image("happy"),
    ]

    def program() -> list[object]:
        with Client(peer.url) as client:
            return [
                outcome.prediction.emotion_name if outcome.prediction else type(outcome.error)
                for outcome in client.predict_many(sources)
            ]

    assert await asyncio.to_thread(program) == ["angry", "sad", InvalidImage, "happy"]


async def test_many_images_are_drawn_only_as_needed(peer: Peer) -> None:
    """The program's own iterator runs in its own thread, at most `concurrency` images ahead."""
    taken = 0
    threads = set()

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            threads.add(threading.current_thread())
            yield image("sad", n=taken)

    def program() -> None:
        with Client(peer.url) as client:
            for seen, _ in enumerate(client.predict_many(endless(), concurrency=4), start=1):
                assert taken <= seen + 3
                if seen == 10:
                    break
            assert threads == {threading.current_thread()}

    await asyncio.to_thread(program)


async def test_an_outcome_comes_out_once_the_next_image_is_there(peer: Peer) -> None:
    """A source that is slow, such as a camera, does not hold back all of what was answered meanwhile."""
    sources = [image("sad"), image("happy"), image("fear")]

    def program() -> list[int]:
        drawn = 0

        def slow() -> Iterator[bytes]:
            nonlocal drawn
            for number, source in enumerate(sources):
                if number:  # until the ones before are answered: they, and these in between
                    client.predict(image("neutral", after=2 * number - 1, n=number))
                drawn += 1
                yield source

        with Client(peer.url) as client:
            return [drawn for _ in client.predict_many(slow())]

    counts = await asyncio.to_thread(program)
    assert len(counts) == 3
    assert counts[0] <= 2


async def test_a_number_at_a_time_that_is_not_whole_is_a_limit_too(peer: Peer) -> None:
    """As half of the cores may be: it is not one that is never reached."""
    images = iter([image("sad", n=number) for number in range(8)])
    halves: Any = 2.5

    def program() -> None:
        with Client(peer.url) as client:
            next(client.predict_many(images, concurrency=halves))

    await asyncio.to_thread(program)
    assert len(list(images)) >= 5  # three are drawn, or fewer where the first was answered meanwhile


async def test_many_images_stop_at_what_fails_all(peer: Peer) -> None:
    """A refused token is raised, not repeated for each image; a concurrency of 0 is refused, and one image's name."""

    def program() -> None:
        with Client(peer.url) as client:
            with pytest.raises(Unauthorized):
                list(client.predict_many([image(first=[{"error": "unauthorized"}])] * 3, concurrency=1))
            with pytest.raises(ValueError, match="concurrency"):
                list(client.predict_many([image()], concurrency=0))
            with pytest.raises(TypeError, match="several images"):
                list(client.predict_many("photos"))

    await asyncio.to_thread(program)
    assert len(peer.predictions_received) == 1


async def test_a_lost_connection_is_restored(peer: Peer) -> None:
    """The blocking client retries as the asynchronous one does."""

    def program() -> str:
        with Client(peer.url, retry=QUICK) as client:
            return client.predict(image("sad", first=[{"drop": True}])).emotion_name

    assert await asyncio.to_thread(program) == "sad"


async def test_a_closed_client_leaves_no_thread(peer: Peer) -> None:
    """Closing ends the client's thread, also where connecting failed; closing again does nothing."""

    def program() -> None:
        before = threading.active_count()
        client = Client(peer.url)
        client.predict(image())
        client.close()
        client.close()
        peer.refuse = 404
        with pytest.raises(CannotConnect), Client(peer.url):
            pass
        assert threading.active_count() == before
        with pytest.raises(ConnectionLost, match="closed"):
            client.predict(image())

    await asyncio.to_thread(program)


FORKING = """\
import os, signal, sys
from client import Client

client = Client(sys.argv[1])
client.connect()
if os.fork() == 0:
    signal.alarm(30)  # one that waits for ever would outlive the test
    try:
        with client:
            pass
    except RuntimeError as error:
        client.close()
        print(error, flush=True)
    os._exit(0)
os.wait()
print(client.predict(b'{"emotion": "sad"}').emotion_name)
client.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
async def test_a_forked_process_is_told_to_make_its_own_client(peer: Peer, tmp_path: Path) -> None:
    """As of a web server's worker: the thread that would answer is not there, and nothing waits for it for ever."""
    # Python itself warns of forks in programs with threads, from 3.12 on.
    quiet = {"PYTHONWARNINGS": "ignore"}
    done = await run_command([sys.executable, "-c", FORKING, peer.url], folder=tmp_path, environment=quiet)
    assert (done.code, done.err) == (0, "")
    told, answered = done.out.splitlines()
    assert "make one in each process" in told
    assert answered == "sad"


UNCLOSED = """\
import sys
from client import Client

client = Client(sys.argv[1])
print(client.predict(b'{"emotion": "sad"}').emotion_name)
"""


async def test_a_program_that_closes_no_client_ends(peer: Peer, tmp_path: Path) -> None:
    """Its thread keeps no program alive."""
    done = await run_command([sys.executable, "-c", UNCLOSED, peer.url], folder=tmp_path)
    assert (done.code, done.out, done.err) == (0, "sad\n", "")


UNFINISHED = """\
import sys
from client import Client

class Late:
    def __init__(self, client):
        self.client = client

    def __del__(self):
        try:
            self.client.ping()
        except Exception as error:
            print(error)

def emotions():
    with Client(sys.argv[1]) as client:
        late = Late(client)
        while True:
            yield client.predict(b'{"emotion": "sad"}').emotion_name

unfinished = emotions()
print(next(unfinished))
"""


async def test_a_client_of_a_generator_that_is_not_finished_ends_with_the_program(
    peer: Peer, tmp_path: Path
) -> None:
    """Python ends the generator last of all, and the thread before it: nothing waits for that for ever."""
    done = await run_command([sys.executable, "-c", UNFINISHED, peer.url], folder=tmp_path)
    assert (done.code, done.out, done.err) == (0, "sad\nthe client is closed\n", "")


OUTLIVING = """
import sys
import threading
from client import Client

def work():
    threading.main_thread().join()
    client = Client("ws://localhost:1/ws")
    for ask in (client.connect, lambda: client.predict(sys.executable)):
        try:
            ask()
        except RuntimeError as error:
            print(*error.__notes__)
    client.close()

threading.Thread(target=work).start()
"""


async def test_a_thread_that_outlives_the_main_one_is_told_to_be_joined(tmp_path: Path) -> None:
    """Python looks up no name and reads no file for it any more, and says so in words of its own machinery."""
    done = await run_command([sys.executable, "-c", OUTLIVING], folder=tmp_path)
    assert (done.code, done.out.count("join this one\n"), done.err) == (0, 2, "")


async def test_closing_wakes_the_threads_that_wait(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread whose request waits to be tried again hears that another one has closed the client."""
    told_when = threading.Event()

    def delay(_retry: Retry, _number: int, _at_least: float | None) -> float:
        told_when.set()
        return 600.0

    monkeypatch.setattr(Retry, "delay", delay)
    busy = image(first=[{"error": "overloaded", "retry_after_ms": 600_000}])
    client = Client(peer.url, timeout=3600.0, retry=Retry(attempts=2))
    waiting = asyncio.create_task(asyncio.to_thread(client.predict, busy))
    async with asyncio.timeout(TIMEOUT):
        assert await asyncio.to_thread(told_when.wait, TIMEOUT)
        await asyncio.to_thread(client.close)
        with pytest.raises(ConnectionLost, match="closed"):
            await waiting
