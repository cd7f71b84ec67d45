"""Clients that connect and do not shake hands."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.asyncio.client import connect

from service.network.accept import SharingLoop, Turns
from service.network.newcomers import Newcomers
from service.processes.cells import Gauge, SharedCells
from tests.security.conftest import write_certificate
from tests.service.harness import TIMEOUT, ServiceProcess, StartProcess, ask, predict_message, read

# A worker may have so many files open; 64 of them are not for connections.
LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))"


@contextmanager
def silent_clients(service: ServiceProcess, count: int) -> Iterator[None]:
    """So many connections that nothing is said on. Those that the service does not take wait."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), TIMEOUT))
        yield


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("secure", [False, True])
async def test_clients_that_say_nothing_keep_nobody_out(
    start_process: StartProcess, tmp_path: Path, workers: int, secure: bool
) -> None:
    """More of them than there are files: others come in, what is predicted is stored, and it is counted and told."""
    options: dict[str, Any] = {}
    settings = {"MAX_CONNECTIONS": "50"}
    if secure:
        authority = trustme.CA()
        certificate, key = write_certificate(authority, tmp_path)
        settings |= {"TLS_CERTIFICATE": str(certificate), "TLS_KEY": str(key)}
        options["ssl"] = ssl.create_default_context()
        authority.configure_trust(options["ssl"])
    service = start_process(faults=LIMITED, WORKERS=str(workers), HANDSHAKE_SECONDS="300", **settings)
    url = service.url.replace("ws:", "wss:") if secure else service.url
    async with connect(url, **options) as before:
        await read(before)
        with silent_clients(service, 100 * workers):
            for _ in range(5):
                async with connect(url, open_timeout=TIMEOUT, **options) as websocket:
                    assert (await read(websocket))["type"] == "welcome"
                    for each in (before, websocket):
                        assert (await ask(each, predict_message()))["prediction_id"] is not None
            assert await dropped(service.port, options.get("ssl")) >= 100 * workers - 64 * workers
    service.process.terminate()
    _, log = await asyncio.to_thread(service.process.communicate, timeout=TIMEOUT)
    assert log.count("have not shaken hands") == workers
    assert len(log.splitlines()) == workers


async def dropped(port: int, context: ssl.SSLContext | None) -> float:
    """How many connections were dropped for others, by /metrics."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(TIMEOUT):
        text = (await reader.read()).decode()
    writer.close()
    with contextlib.suppress(ssl.SSLError):
        await writer.wait_closed()
    line = 'visionai_connections_refused_total{reason="handshake_limit"} '
    return float(text.partition(line)[2].partition("\n")[0])


def test_the_oldest_go_and_those_that_are_greeted_or_have_just_come_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where room is needed; what has settled is no newcomer any longer."""
    clock = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    gone: list[None] = []
    ours = Newcomers(2, lambda: gone.append(None))
    with ExitStack() as stack:
        pairs = [[stack.enter_context(end) for end in socket.socketpair()] for _ in range(3)]
        (greeted, _), (silent, _), (late, _) = pairs
        assert not ours.make_room()
        ours.arrived(greeted)
        ours.arrived(silent)
        assert ours.are_full
        ours.settled(greeted)
        assert not ours.are_full
        clock = 10.0
        ours.arrived(late)
        assert ours.make_room()
        assert [ended(peer) for _, peer in pairs] == [False, True, False]
        assert ours.make_room()  # soon
        assert len(gone) == 1
        ours.settled(silent)
        ours.settled(late)
        assert not ours.make_room()


@pytest.mark.parametrize("waiting", [1, 16, 17])
def test_so_many_go_at_once_or_all_that_there_are(monkeypatch: pytest.MonkeyPatch, waiting: int) -> None:
    """A few make room as well as many, and of many some stay."""
    clock = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    gone: list[None] = []
    ours = Newcomers(waiting, lambda: gone.append(None))
    with ExitStack() as stack:
        for _ in range(waiting):
            ours.arrived(stack.enter_context(socket.socket()))
        clock = 10.0
        assert ours.make_room()
        assert len(gone) == min(waiting, 16)


def ended(peer: socket.socket) -> bool:
    """Whether the other end of a connection on which nothing was sent has been dropped."""
    peer.setblocking(False)
    try:
        return peer.recv(1) == b""
    except BlockingIOError:
        return False


def test_no_more_connections_are_taken_than_there_are_files_for(caplog: pytest.LogCaptureFixture) -> None:
    """Where all that are open are greeted the next waits, which is told, until one of them goes."""
    shared = SharedCells(1)

    class Greeted(asyncio.Protocol):
        on_lost: Any = None
        on_settled: Any = None

        def connection_made(self, transport: Any) -> None:
            self.on_settled()
            transport.write(b"x")

        def connection_lost(self, exc: Exception | None) -> None:
            self.on_lost()

    loop = SharingLoop(Turns(shared, 0), Newcomers(10, lambda: None), 2)

    async def serve_three_clients(listener: socket.socket) -> None:
        address, port = listener.getsockname()
        clients = [await asyncio.open_connection(address, port) for _ in range(3)]
        for reader, _ in clients[:2]:
            assert await reader.read(1) == b"x"
        waiting = asyncio.create_task(clients[2][0].read(1))
        while "cannot be accepted, and wait: 2 are open" not in caplog.text:
            await asyncio.sleep(0.001)
        assert not waiting.done()
        assert shared.row(0)[Gauge.SOCKETS] == 2
        clients[0][1].close()
        assert await waiting == b"x"
        for _, writer in clients:
            writer.close()
        while shared.row(0)[Gauge.SOCKETS]:
            await asyncio.sleep(0.001)

    async def serve() -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            server = await loop.create_server(Greeted, sock=listener)
            try:
                async with asyncio.timeout(TIMEOUT):
                    await serve_three_clients(listener)
            finally:
                server.close()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(serve())
