"""Accepting connections in turns, so that each of the workers that share a listening socket has as many as the others.

The kernel wakes whoever listens, or spreads connections by chance; but clients stay for long, and a worker with ten
more of them than its sibling is the one that is late while the other is idle. So each worker tells, in memory that
all of them share, how many sockets it has open, and leaves a connection that waits to those that have fewer.

It leaves it for some milliseconds at most: a sibling that is busy comes round to it by then, and for one that hangs
nobody waits longer. Without connections that wait, nothing here wakes up.

A worker takes no more connections than leave it files for everything else: those that have not shaken hands make room
for others (`newcomers`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import uvloop

from service.network.newcomers import Newcomers
from service.processes.cells import Gauge, SharedCells
from service.telemetry.logs import Seldom

log = logging.getLogger(__name__)

# Seconds after which a worker looks again at a connection that it left to others, and after which it takes it itself.
_LOOK_AGAIN = 0.001
PATIENCE = 0.02

# Seconds to wait when the process may not open another file, as asyncio's own servers do.
_OUT_OF_FILES = 1.0

# Connections taken in one go are one in so many of those that the emptiest sibling has, and at least one: few clients
# are spread one by one, and a thousand at once are not taken one per millisecond.
_SHARE = 16


class Turns:
    """How many sockets this worker has open, told to its siblings, and whether it is its turn to take another.

    Args:
        shared: the memory of all workers.
        worker: which row is this process'.
    """

    def __init__(self, shared: SharedCells, worker: int) -> None:
        self._own = shared.row(worker)
        self._others = [row for index, row in enumerate(shared.rows()) if index != worker]

    def room(self) -> int:
        """How many connections may be taken now; 0 if a sibling that is ready has fewer."""
        fewest = min((row[Gauge.SOCKETS] for row in self._others if row[Gauge.READY]), default=None)
        if fewest is None:
            return _SHARE
        return 0 if self._own[Gauge.SOCKETS] > fewest else 1 + int(fewest) // _SHARE

    @property
    def sockets(self) -> int:
        """How many this worker has open."""
        return int(self._own[Gauge.SOCKETS])

    def taken(self) -> None:
        """A connection was accepted."""
        self._own[Gauge.SOCKETS] += 1

    def gone(self) -> None:
        """An accepted connection is closed."""
        self._own[Gauge.SOCKETS] -= 1


class SharingLoop(uvloop.Loop):
    """An event loop whose servers share their listening socket with sibling processes, in turns.

    Protocols that it serves must have the attributes `on_lost`, and call it when their connection is lost, and
    `on_settled`, and call it when it is greeted or lost.

    Args:
        turns: whose turn it is.
        newcomers: keeps those that are not greeted.
        most: connections that may be open at once.
    """

    def __init__(self, turns: Turns, newcomers: Newcomers, most: float) -> None:
        super().__init__()
        self.turns = turns
        self.newcomers = newcomers
        self.most = most

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], Any],
        host: None = None,
        port: None = None,
        *,
        sock: socket.socket,
        backlog: int = 128,
        **options: Any,
    ) -> Any:
        """Serve a bound socket; `options` are those of `connect_accepted_socket`."""
        sock.setblocking(False)
        sock.listen(backlog)
        return _SharingServer(self, sock, protocol_factory, options)


class _SharingServer:
    """What `SharingLoop.create_server` returns, as far as servers are asked anything."""

    def __init__(
        self,
        loop: SharingLoop,
        listener: socket.socket,
        factory: Callable[[], Any],
        options: dict[str, Any],
    ) -> None:
        self._loop = loop
        self._turns = loop.turns
        self._gone = self._turns.gone  # one for all: bound anew, each connection would keep its own
        self._newcomers = loop.newcomers
        self._listener = listener
        self._factory = factory
        self._options = options
        self._timer: asyncio.TimerHandle | None = None
        # When a connection was left to the siblings, the first time in a row.
        self._left_at = -math.inf
        self._told = Seldom()
        # The event loop holds its tasks weakly.
        self._opening: set[asyncio.Task[Any]] = set()
        self._closed = False
        loop.add_reader(listener, self._readable)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """What is listened on."""
        return () if self._closed else (self._listener,)

    def get_loop(self) -> SharingLoop:
        """Where it runs."""
        return self._loop

    def is_serving(self) -> bool:
        """Whether connections are accepted."""
        return not self._closed

    def close(self) -> None:
        """Accept no more; connections that wait are left to the siblings."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    async def wait_closed(self) -> None:
        """Returns at once: connections are closed by who opened them."""

    def _readable(self) -> None:
        """A connection waits, or waited: a sibling may be quicker."""
        room = self._turns.room()
        if not room:
            now = self._loop.time()
            if now - self._left_at > 2 * PATIENCE:
                self._left_at = now
            if now - self._left_at < PATIENCE:
                self._look_away(_LOOK_AGAIN)
                return
            room = 1
        self._left_at = -math.inf
        for _ in range(room):
            if self._turns.sockets >= self._loop.most or self._newcomers.are_full:
                self._make_room()
                return
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:  # no files left, no memory left
                self._wait(exc.strerror)
                return
            connection.setblocking(False)
            self._turns.taken()
            self._newcomers.arrived(connection)
            task = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def _make_room(self) -> None:
        """For the connection that waits: some that are not greeted go, if there are any."""
        if self._newcomers.make_room():
            self._look_away(_LOOK_AGAIN)  # their files are closed by then
        else:
            self._wait(f"{self._loop.most} are open, and there are no files for more")

    def _wait(self, reason: str | None) -> None:
        if self._told.is_due(self._loop.time()):
            log.error("connections cannot be accepted, and wait: %s", reason)
        self._look_away(_OUT_OF_FILES)

    def _look_away(self, seconds: float) -> None:
        """The event loop would turn round and round for a connection that is left alone."""
        self._loop.remove_reader(self._listener)
        self._timer = self._loop.call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        self._loop.add_reader(self._listener, self._readable)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                partial(self._counted, connection), connection, **self._options
            )
        except OSError:  # gone again, or its TLS handshake failed
            self._newcomers.settled(connection)
            self._turns.gone()

    def _counted(self, connection: socket.socket) -> Any:
        protocol = self._factory()
        protocol.on_lost = self._gone
        protocol.on_settled = partial(self._newcomers.settled, connection)
        return protocol
