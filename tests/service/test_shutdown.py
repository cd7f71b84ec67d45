"""The drain: what is in flight is waited for, for so long and no longer."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from wsproto.events import CloseConnection, Pong

from tests.service.doubles import HeldEngine
from tests.service.harness import (
    HELD,
    TIMEOUT,
    Running,
    Serve,
    StartProcess,
    ask,
    closed_with,
    predict_message,
    read,
)
from tests.service.raw_peer import PING, Peer, connected, frame


async def send_and_wait_until_run(websocket: ClientConnection, held: HeldEngine) -> None:
    """A request is in the model when this returns."""
    await websocket.send(predict_message(id="held"))
    assert await asyncio.to_thread(held.entered.wait, TIMEOUT)


async def fill(running: Running, peer: Peer) -> None:
    """Ping, and read nothing, until no more pongs can be sent."""
    async with asyncio.timeout(TIMEOUT):
        while not any(connection.paused for connection in running.service._connections):
            peer.send(frame(PING, bytes(125)) * 1000)
            await asyncio.sleep(0)


async def test_what_is_in_flight_is_answered_before_the_close(serve: Serve, held: HeldEngine) -> None:
    """The drain waits for the model; meanwhile new requests are refused; then comes 1001."""
    running = serve(held, executors=1, drain_seconds=600)
    started = await running.__aenter__()
    async with started.client() as websocket, started.client() as other:
        await send_and_wait_until_run(websocket, held)
        stopping = asyncio.create_task(running.__aexit__(None, None, None))
        while started.service.not_ready() is None:
            await asyncio.sleep(0)
        assert (await ask(other, predict_message()))["code"] == "shutting_down"
        assert (await ask(other, '{"command": "history"}'))["code"] == "shutting_down"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", started.port)
        assert not stopping.done()
        held.released.set()
        assert (await read(websocket))["id"] == "held"
        assert await closed_with(websocket) == 1001
        await stopping


async def test_what_a_client_left_behind_is_not_waited_for(serve: Serve, held: HeldEngine) -> None:
    """Its request was dropped from the line when it went: nobody would answer it."""
    running = serve(held, executors=1, max_batch=1, drain_seconds=600)
    started = await running.__aenter__()
    async with started.client() as websocket:
        await send_and_wait_until_run(websocket, held)
        async with asyncio.timeout(TIMEOUT):
            async with started.client() as gone:
                await gone.send(predict_message())
                while not started.service._threads.waiting:
                    await asyncio.sleep(0)
            while len(started.service._connections) > 1:
                await asyncio.sleep(0)
            held.released.set()
            assert (await read(websocket))["id"] == "held"
            await running.__aexit__(None, None, None)


async def test_a_question_in_flight_is_answered_before_the_close(
    serve: Serve, release: asyncio.Event
) -> None:
    """The drain waits for the database as it does for the model."""
    running = serve(drain_seconds=600)
    started = await running.__aenter__()
    async with started.client() as websocket:
        await ask(websocket, '{"command": "configure", "ordered": false}')
        await websocket.send('{"command": "history", "id": "held"}')
        # Overtakes it: when this is answered, that has been read.
        await ask(websocket, '{"command": "ping", "id": 1}')
        stopping = asyncio.create_task(running.__aexit__(None, None, None))
        async with asyncio.timeout(TIMEOUT):
            while started.service._settled is None:
                await asyncio.sleep(0)
        release.set()
        assert (await read(websocket))["id"] == "held"
        assert await closed_with(websocket) == 1001
        await stopping


@pytest.mark.usefixtures("release")
async def test_a_question_that_hangs_keeps_nobody_from_what_is_answered_behind_it(serve: Serve) -> None:
    """When the drain is over it is refused, and the prediction sent."""
    running = serve(drain_seconds=0.05)
    started = await running.__aenter__()
    async with started.client() as websocket:
        await websocket.send('{"command": "history"}')
        await websocket.send(predict_message())
        (connection,) = started.service._connections
        async with asyncio.timeout(TIMEOUT):
            while not connection._outstanding or connection._outstanding[-1].reply is None:
                await asyncio.sleep(0)
        stopping = asyncio.create_task(running.__aexit__(None, None, None))
        assert (await read(websocket))["code"] == "shutting_down"
        assert (await read(websocket))["status"] == "success"
        assert await closed_with(websocket) == 1001
        await stopping


async def test_hurrying_ends_the_wait(serve: Serve, held: HeldEngine) -> None:
    """A second signal closes connections at once, although a request is in the model still."""
    running = serve(held, executors=1, drain_seconds=600)
    started = await running.__aenter__()
    async with started.client() as websocket:
        await send_and_wait_until_run(websocket, held)
        stopping = asyncio.create_task(running.__aexit__(None, None, None))
        while started.service.not_ready() is None:
            await asyncio.sleep(0)
        started.service.hurry()
        assert await closed_with(websocket) == 1001
        held.released.set()
        await stopping


async def test_the_wait_is_bounded_by_drain_seconds(serve: Serve, held: HeldEngine) -> None:
    """A model that does not come back does not keep the service from closing its connections."""
    running = serve(held, executors=1, drain_seconds=0.05)
    started = await running.__aenter__()
    async with started.client() as websocket:
        await send_and_wait_until_run(websocket, held)
        stopping = asyncio.create_task(running.__aexit__(None, None, None))
        assert await closed_with(websocket) == 1001
        held.released.set()
        await stopping


async def test_connections_that_were_accepted_are_greeted_before_they_are_closed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handshakes that come when the service is shutting down are no error, and the close says what it is."""
    monkeypatch.setattr("service.network.handshakes._SECONDS", 600.0)
    running = serve()
    started = await running.__aenter__()
    early = [await asyncio.to_thread(socket.create_connection, ("127.0.0.1", started.port)) for _ in range(2)]
    async with started.client() as websocket:  # connections are accepted in turn: these after that
        assert (await ask(websocket, predict_message()))["status"] == "success"
        stopping = asyncio.create_task(running.__aexit__(None, None, None))
        while started.service.not_ready() is None:
            await asyncio.sleep(0)
        late = []
        for sock in early:
            sock.setblocking(False)
            late.append(await connect(started.url, sock=sock))
            assert (await read(late[-1]))["type"] == "welcome"
        for each in (*late, websocket):
            assert await closed_with(each) == 1001
            await each.close()
        await stopping


async def test_a_handshake_that_comes_when_connections_are_being_closed_is_refused(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was open after that would not be told why it ends."""
    monkeypatch.setattr("service.network.handshakes._SECONDS", 0.0)
    monkeypatch.setattr("service.server._SILENT_SECONDS", 600.0)
    running = serve()
    started = await running.__aenter__()
    early = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", started.port))
    early.setblocking(False)
    async with started.client() as websocket:
        stopping = asyncio.create_task(running.__aexit__(None, None, None))
        assert await closed_with(websocket) == 1001
        with pytest.raises(InvalidStatus, match="503"):
            await connect(started.url, sock=early)
    await stopping


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\n\r\n"])
async def test_a_connection_that_is_not_greeted_is_not_waited_for(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """Longer than a moment: browsers connect before they have anything to ask, and keep open what is answered."""
    monkeypatch.setattr("service.server._SILENT_SECONDS", 0.0)
    running = serve(handshake_seconds=600.0)
    started = await running.__aenter__()
    _, writer = await asyncio.open_connection("127.0.0.1", started.port)
    writer.write(said)
    while not started.service._handshakes.under_way:
        await asyncio.sleep(0)
    async with asyncio.timeout(TIMEOUT):
        await running.__aexit__(None, None, None)
    writer.close()


async def test_a_tls_handshake_that_comes_to_no_end_is_not_waited_for(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the server of asyncio, which is Windows', waits for it from Python 3.12 on: for HANDSHAKE_SECONDS."""

    async def wait_closed(_: asyncio.Server) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.Server, "wait_closed", wait_closed)
    async with asyncio.timeout(TIMEOUT), serve():
        pass


async def test_a_client_that_does_not_answer_the_close_is_dropped(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phone out of reach, say. One that has something to read still is waited for longer."""
    monkeypatch.setattr("service.server._SILENT_SECONDS", 0.0)
    running = serve(send_seconds=600.0, ping_seconds=0)
    started = await running.__aenter__()
    async with connected(started.port):
        (silent,) = started.service._connections
        silent.close_timeout = None  # the library's, which is longer
        async with connected(started.port) as busy:
            await fill(started, busy)
            stopping = asyncio.create_task(running.__aexit__(None, None, None))
            async with asyncio.timeout(TIMEOUT):
                await silent.wait_closed()
            while isinstance(event := await busy.event(), Pong):
                pass
            assert isinstance(event, CloseConnection)
            assert event.code == 1001
    await stopping


async def test_a_client_that_reads_nothing_is_dropped_in_the_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long SEND_SECONDS lets it take while the service runs."""
    monkeypatch.setattr("service.server._UNREAD_SECONDS", 0.0)
    running = serve(send_seconds=600.0, ping_seconds=0)
    started = await running.__aenter__()
    async with connected(started.port) as busy:
        await fill(started, busy)
        async with asyncio.timeout(TIMEOUT):
            await running.__aexit__(None, None, None)


async def test_a_drain_of_a_year_is_a_drain(start_process: StartProcess) -> None:
    """DRAIN_SECONDS may say that nothing is ever cut short; a service with nothing to do ends at once all the same."""
    service = start_process(DRAIN_SECONDS="31536000", WORKERS="1")
    async with connect(service.url) as websocket:
        await read(websocket)
        service.process.terminate()
        assert await closed_with(websocket) == 1001
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0


# Whoever waits for it knows that the supervisor has passed the signal on.
_TOLD = """
from pathlib import Path
from service.processes.supervisor import Supervisor
stop_all = Supervisor._stop_all
def told(self):
    stop_all(self)
    Path("told").touch()
Supervisor._stop_all = told
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("again", [False, True])
async def test_a_signal_to_the_whole_process_group_is_one_signal(
    start_process: StartProcess, tmp_path: Path, again: bool
) -> None:
    """A worker hears it, and from the supervisor, too: what is in flight is answered. The next one hurries."""
    service = start_process(
        faults=HELD + _TOLD, WORKERS="1", EXECUTORS="1", MAX_BATCH="1", DRAIN_SECONDS="600"
    )
    (worker,) = service.workers
    hold, told, entered = (tmp_path / name for name in ("hold", "told", "entered"))
    hold.touch()

    async def signal_the_group() -> None:
        worker.send_signal(signal.SIGTERM)
        service.process.send_signal(signal.SIGTERM)
        while not told.exists():
            await asyncio.sleep(0.01)
        told.unlink()

    async with connect(service.url) as websocket, connect(service.url) as other, asyncio.timeout(TIMEOUT):
        await read(websocket)
        await read(other)
        for name in ("first", "second"):
            await websocket.send(predict_message(id=name))
        while not entered.exists():
            await asyncio.sleep(0.01)
        await signal_the_group()
        while (await ask(other, '{"command": "health"}'))["status"] != "unhealthy":
            pass  # what has come is heard after a turn or two of the event loop
        for _ in range(3):  # by the last the other has been, too
            assert (await ask(other, '{"command": "health"}'))["status"] == "unhealthy"
        if again:
            await signal_the_group()
            assert await closed_with(other) == 1001
        hold.unlink()
        if not again:
            replies = [await read(websocket) for _ in range(2)]
            assert [(reply["type"], reply["id"]) for reply in replies] == [
                ("prediction", "first"),
                ("prediction", "second"),
            ]
            assert await closed_with(other) == 1001
    assert await asyncio.to_thread(service.process.wait, TIMEOUT) == 0


# As the kernel does where memory runs out.
KILLED_WHILE_STOPPING = """
import os, signal, service.processes.worker
service.processes.worker._close_stores = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are not forked, and lack the fault")
def test_a_worker_that_dies_instead_of_stopping_is_told(start_process: StartProcess) -> None:
    """The exit code is 1, and the log says why."""
    service = start_process(faults=KILLED_WHILE_STOPPING, WORKERS="1")
    service.process.terminate()
    _, log = service.process.communicate(timeout=TIMEOUT)
    assert service.process.returncode == 1
    assert log.count("\n") == 1
    assert "worker 0 ended with exit code -9 instead of stopping" in log


# Somebody is impatient, when the service has stopped and its process is not gone yet.
SIGNALLED_AT_THE_END = """
import os, signal
from service.processes.supervisor import Supervisor
run = Supervisor.run
def run_and_be_signalled(self):
    code = run(self)
    os.kill(os.getpid(), signal.{})
    return code
Supervisor.run = run_and_be_signalled
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there a signal ends a process at once")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_at_the_very_end_changes_no_exit_code(start_process: StartProcess, number: str) -> None:
    """All is stored by then, and nobody listens any longer: there is nothing to hurry."""
    service = start_process(faults=SIGNALLED_AT_THE_END.format(number), WORKERS="1")
    service.process.terminate()
    _, log = service.process.communicate(timeout=TIMEOUT)
    assert (service.process.returncode, log) == (0, "")
