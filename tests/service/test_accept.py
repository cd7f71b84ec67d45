"""Workers that share a listening socket take turns in accepting."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from service.network.accept import _LOOK_AGAIN, PATIENCE, SharingLoop, Turns, _SharingServer
from service.network.newcomers import Newcomers
from service.processes.cells import Gauge, SharedCells
from tests.service.harness import TIMEOUT


class Peer(asyncio.Protocol):
    """What a worker makes of a connection: it says who took it."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.on_lost: Callable[[], None] | None = None
        self.on_settled: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say who."""
        cast("asyncio.WriteTransport", transport).write(self.name)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever accepted it."""
        assert self.on_lost is not None
        assert self.on_settled is not None
        self.on_settled()
        self.on_lost()


@pytest.fixture
def shared() -> SharedCells:
    """The memory of two workers that are ready."""
    cells = SharedCells(2)
    for worker in range(2):
        cells.row(worker)[Gauge.READY] = 1
    return cells


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A bound socket."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


def test_a_worker_leaves_connections_to_those_that_have_fewer(shared: SharedCells) -> None:
    """One by one while there are few; with many, a share of them at a time; never to a sibling that is not ready."""
    turns, other = Turns(shared, 0), shared.row(1)
    assert turns.room() == 1
    turns.taken()
    assert turns.room() == 0
    other[Gauge.SOCKETS] = 1
    assert turns.room() == 1
    other[Gauge.SOCKETS] = 160
    assert turns.room() == 11
    other[Gauge.SOCKETS] = 0
    turns.gone()
    assert turns.room() == 1
    turns.taken()
    other[Gauge.READY] = 0
    assert turns.room() > 0


def test_a_worker_that_is_gone_has_nothing_connected(shared: SharedCells) -> None:
    """Its siblings do not wait for it, and its counters stay."""
    row = shared.row(1)
    row[Gauge.SOCKETS], row[len(Gauge)] = 3, 7
    shared.forget(1)
    assert row[Gauge.SOCKETS] == row[Gauge.READY] == 0
    assert row[len(Gauge)] == 7


def test_connections_are_spread_and_none_waits_for_a_worker_that_hangs(
    shared: SharedCells, listener: socket.socket
) -> None:
    """A worker ahead of its sibling leaves what comes, takes it when the sibling does not, and counts what is open."""
    row = shared.row(0)
    loop = SharingLoop(Turns(shared, 0), Newcomers(10, lambda: None), 10)

    async def serve_two_clients() -> None:
        server = await loop.create_server(lambda: Peer(b"0"), sock=listener)
        address, port = listener.getsockname()
        async with asyncio.timeout(TIMEOUT):
            first, first_out = await asyncio.open_connection(address, port)
            assert await first.read(1) == b"0"
            assert row[Gauge.SOCKETS] == 1
            # The second is the sibling's, which does not come.
            begun = loop.time()
            second, second_out = await asyncio.open_connection(address, port)
            assert await second.read(1) == b"0"
            assert loop.time() - begun >= PATIENCE
            assert row[Gauge.SOCKETS] == 2
            for writer in (first_out, second_out):
                writer.close()
                await writer.wait_closed()
            while row[Gauge.SOCKETS]:
                await asyncio.sleep(0.001)
        server.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address, port)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(serve_two_clients())


def test_a_client_whose_tls_handshake_fails_is_counted_no_longer(
    shared: SharedCells, listener: socket.socket
) -> None:
    """Else a worker would take itself for full in the end, by what scans ports, and leave all to its siblings."""
    row, newcomers = shared.row(0), Newcomers(1, lambda: None)
    loop = SharingLoop(Turns(shared, 0), newcomers, 10)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)

    async def serve_a_client_without_tls() -> None:
        server = await loop.create_server(lambda: Peer(b"0"), sock=listener, ssl=context)
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            while not row[Gauge.SOCKETS]:
                await asyncio.sleep(0)
            assert newcomers.are_full
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await reader.read()
            while row[Gauge.SOCKETS] or newcomers.are_full or server._opening:
                await asyncio.sleep(0)
            writer.close()
        server.close()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(serve_a_client_without_tls())


def test_a_server_that_is_closed_looks_at_nothing(shared: SharedCells, listener: socket.socket) -> None:
    """Also where a connection waits that it has left to its sibling, which may take it now."""
    row = shared.row(0)
    row[Gauge.SOCKETS] = 1
    loop = SharingLoop(Turns(shared, 0), Newcomers(10, lambda: None), 10)
    faults: list[dict[str, Any]] = []

    async def close_while_a_client_waits() -> None:
        loop.set_exception_handler(lambda _, fault: faults.append(fault))
        server = await loop.create_server(lambda: Peer(b"0"), sock=listener)
        address = listener.getsockname()
        async with asyncio.timeout(TIMEOUT):
            with socket.create_connection(address):
                while server._timer is None:
                    await asyncio.sleep(0)
                server.close()
                await asyncio.sleep(2 * _LOOK_AGAIN)  # when it would have looked again

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(close_while_a_client_waits())
    assert not faults
    assert row[Gauge.SOCKETS] == 1


class Clock:
    """As much of an event loop as a server asks of it while it cannot accept."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.newcomers, self.most = turns, Newcomers(10, lambda: None), 10
        self.now = 0.0
        self.look: Callable[[], object] = list

    def time(self) -> float:
        """Seconds."""
        return self.now

    def add_reader(self, _: object, look: Callable[[], None]) -> None:
        """A connection waits all the time."""
        self.look = look

    def remove_reader(self, _: object) -> None:
        """It will be added again."""

    def call_later(self, *_: object) -> None:
        """The test does."""


class FullListener:
    """A socket whose process has no file left for a connection."""

    def accept(self) -> None:
        """There is none."""
        raise OSError(errno.EMFILE, "Too many open files")


def test_connections_that_cannot_be_accepted_are_told_of_once_a_minute(
    shared: SharedCells, caplog: pytest.LogCaptureFixture
) -> None:
    """As long as one waits it is tried each second, for hours perhaps."""
    clock = Clock(Turns(shared, 0))
    loop, listener = cast("SharingLoop", clock), cast("socket.socket", FullListener())
    factory: Callable[[], Any] = list
    _SharingServer(loop, listener, factory, {})
    for now, told in ((0.0, 1), (1.0, 1), (59.0, 1), (61.0, 2), (62.0, 2)):
        clock.now = now
        clock.look()
        assert caplog.text.count("cannot be accepted, and wait: Too many open files") == told
