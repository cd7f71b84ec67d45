"""Accepting connections in turns, so that each of the workers that share a listening socket has as many as the others.

The kernel wakes whoever listens, or spreads connections by chance; but clients stay for long, and a worker with ten
more of them than its sibling is the one that is late while the other is idle. So each worker tells, in memory that
all of them share, how many sockets it has open, and leaves a connection that waits to those that have fewer.

It leaves it for some milliseconds at most: a sibling that is busy comes round to it by then, and for one that hangs
nobody waits longer. Without connections that wait, nothing here wakes up.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Callable
from typing import Any

import uvloop

from service.metrics import Gauge, SharedCells

log = logging.getLogger(__name__)

# Seconds after which a worker looks again at a connection that it left to others, and after which it takes it itself.
_LOOK_AGAIN = 0.001
PATIENCE = 0.02

# Seconds to wait when the process cannot open another file, as asyncio's own servers do; and until that is told again.
_OUT_OF_FILES, _TOLD_AGAIN = 1.0, 60.0

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

    def taken(self) -> None:
        """A connection was accepted."""
        self._own[Gauge.SOCKETS] += 1

    def gone(self) -> None:
        """An accepted connection is closed."""
        self._own[Gauge.SOCKETS] -= 1


class SharingLoop(uvloop.Loop):
    """An event loop whose servers share their listening socket with sibling processes, in turns.

    Protocols that it serves must have an attribute `on_lost`, and call it when their connection is lost.
    """

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns

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
        return _SharingServer(self, self._turns, sock, protocol_factory, options)


class _SharingServer:
    """What `SharingLoop.create_server` returns, as far as servers are asked anything."""

    def __init__(
        self,
        loop: SharingLoop,
        turns: Turns,
        listener: socket.socket,
        factory: Callable[[], Any],
        options: dict[str, Any],
    ) -> None:
        self._loop = loop
        self._turns = turns
        self._listener = listener
        self._factory = factory
        self._options = options
        self._timer: asyncio.TimerHandle | None = None
        # When a connection was left to the siblings, the first time in a row.
        self._left_at = -math.inf
        self._silent_until = -math.inf
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
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:  # no files left, no memory left
                if self._loop.time() >= self._silent_until:
                    log.error("connections cannot be accepted, and wait: %s", exc.strerror)
                    self._silent_until = self._loop.time() + _TOLD_AGAIN
                self._look_away(_OUT_OF_FILES)
                return
            connection.setblocking(False)
            self._turns.taken()
            task = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def _look_away(self, seconds: float) -> None:
        """The event loop would turn round and round for a connection that is left alone."""
        self._loop.remove_reader(self._listener)
        self._timer = self._loop.call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        self._loop.add_reader(self._listener, self._readable)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._counted, connection, **self._options)
        except OSError:  # gone again, or its TLS handshake failed
            self._turns.gone()

    def _counted(self) -> Any:
        protocol = self._factory()
        protocol.on_lost = self._turns.gone
        return protocol
