"""Connections from when they are accepted until they are greeted: a shutdown lets them come so far.

Their clients cannot know yet that they are with a service that goes: one that is closed after the welcome knows what to
do, connect again, while a handshake that is refused looks like a service that is down.
"""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable, Collection, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any
from weakref import WeakSet

from websockets.asyncio.server import Server, ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Response
from websockets.typing import Subprotocol

from service.network.connection import Connection
from service.protocol.requests import SUBPROTOCOL
from service.security.gate import Gate

# For those that are accepted and silent: a handshake is under way for one round trip.
_SECONDS = 1.0


class Handshakes:
    """Those of one worker that are under way, and the gate that they have to pass."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        # Accepted, and TLS is not there yet. One whose TLS handshake fails is never heard of again.
        self._arriving: WeakSet[Connection] = WeakSet()
        # With what is called where one is lost, and taken back when it is greeted: it would stay with each connection.
        self._under_way: dict[Connection, Callable[[object], None]] = {}
        self._over: asyncio.Future[None] | None = None

    def begin(self, *args: Any, **options: Any) -> Connection:
        """A connection was accepted: make it."""
        connection = Connection(*args, **options)
        connection.on_made = partial(self._begun, connection)
        self._arriving.add(connection)
        return connection

    def _begun(self, connection: Connection) -> None:
        connection.on_made = None
        self._arriving.discard(connection)

        def lost(_: object) -> None:
            self.end(connection)

        self._under_way[connection] = lost
        connection.connection_lost_waiter.add_done_callback(lost)

    def admit(self, connection: ServerConnection, headers: Headers) -> Response | None:
        """Let a client in whose handshake has come: None, or the HTTP response that refuses it."""
        assert isinstance(connection, Connection)
        if connection.connection_lost_waiter.done():
            # Already gone, and so it will not leave: counted now, it would be for ever. Nobody reads the response.
            return connection.respond(HTTPStatus.BAD_REQUEST, "the connection is gone\n")
        gate, peer = self._gate, connection.remote_address
        admitted = gate.admit(peer[0] if isinstance(peer, tuple) else None, headers)
        if isinstance(admitted, Response):
            return admitted
        connection.visitor = admitted
        connection.on_left = lambda: gate.left(admitted)
        return None

    def end(self, connection: Connection) -> None:
        """It was greeted, or it is gone."""
        lost = self._under_way.pop(connection, None)
        if lost is not None:
            connection.connection_lost_waiter.remove_done_callback(lost)
        settled, connection.on_settled = connection.on_settled, None
        if settled is not None:
            settled()
        if not self._under_way and not self._arriving and self._over is not None and not self._over.done():
            self._over.set_result(None)

    @property
    def under_way(self) -> Collection[Connection]:
        """Those that are connected and not greeted: their request has not come, or was not for a WebSocket."""
        return self._under_way.keys()

    async def finish(self, servers: list[Server]) -> None:
        """Accept nothing more on these servers, and wait, not long, until all that is connected is greeted."""
        for server in servers:
            server.server = _NoMore(server.server)  # type: ignore[assignment]
        await asyncio.sleep(0)  # what was accepted in this turn of the loop is begun in the next
        if self._arriving:
            gc.collect()  # those whose TLS handshake has failed: the library has made a cycle of each
        if self._under_way or self._arriving:
            self._over = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._over], timeout=_SECONDS)


def select_subprotocol(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Ours where it is asked for; none otherwise, and never a refusal: v1 clients offer none."""
    ours = Subprotocol(SUBPROTOCOL)
    return ours if ours in offered else None


class _NoMore:
    """A listening server that is closed, and says that it serves until `close`: the library refuses handshakes then."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        self._closed = False
        server.close()

    def is_serving(self) -> bool:
        """Whether handshakes are completed."""
        return not self._closed

    def close(self) -> None:
        """Refuse those that are not."""
        self._closed = True

    async def wait_closed(self) -> None:
        """Returns at once: the library waits for its connections.

        asyncio's own waits from Python 3.12 on, and for TLS handshakes, too, which may take HANDSHAKE_SECONDS.
        """

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """As the server's."""
        return self._server.get_loop()

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """None any longer."""
        return ()
