"""The connection of one client: opened when it is needed, shared by its tasks, and restored when it is lost."""

from __future__ import annotations

import asyncio
import copy
import itertools

from client.connection import Connection
from client.defaults import Defaults
from client.errors import CannotConnect, ConnectionLost, Unauthorized, Unavailable, VisionAIError
from client.retry import Retry


class Link:
    """What a client asks for its connection. It belongs to one event loop, see `AsyncClient`.

    Args:
        url: the server's WebSocket address.
        defaults: the token that it is opened with, and what is configured on it.
        retry: how often and how soon to try again, once a server has greeted; until then it is tried once.
        connect_timeout: seconds for one attempt.
        keepalive: seconds between pings, see `AsyncClient`.
    """

    def __init__(
        self, url: str, defaults: Defaults, retry: Retry, connect_timeout: float, keepalive: float
    ) -> None:
        self._url = url
        self._defaults = defaults
        self._retry = retry
        self._connect_timeout = connect_timeout
        self._keepalive = keepalive
        self.current: Connection | None = None
        self.closed = False
        # Why there is no connection, while it is tried again.
        self.obstacle: VisionAIError | None = None
        self._leaving: set[Connection] = set()
        self._opening: asyncio.Task[Connection] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._was_connected = False
        self._ending: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        """Close it for good. May be called again, and cancelled."""
        self._check_loop()
        self.closed = True
        self._ending = self._ending or asyncio.create_task(self._end(), name="visionai client closing")
        # Where this is cancelled, as by a timeout that is over just now, it goes on: nobody may call again.
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        await asyncio.gather(*(connection.aclose() for connection in self._connections()))

    def _connections(self) -> list[Connection]:
        return [*self._leaving, *([self.current] if self.current else [])]

    def _check_loop(self) -> None:
        """Raise RuntimeError where it is another event loop's: what waits in one is not woken by another."""
        loop = asyncio.get_running_loop()
        in_use = self._opening is not None or any(connection.usable for connection in self._connections())
        if in_use and self._loop is not loop:
            raise RuntimeError(
                "the client is connected in another event loop: close it there, and make a client for each"
            )
        self._loop = loop

    def leave(self, connection: Connection | None) -> None:
        """Use `connection` no more. It stays open for its requests in flight only."""
        if connection is not None and self.current is connection:
            self.current = None
            connection.retire()
            self._leaving.add(connection)
            self._leaving = {leaving for leaving in self._leaving if leaving.usable}

    async def connection(self) -> Connection:
        """The connection, restored if need be. Tasks that need it at once share one attempt.

        Raises:
            ConnectionFailed, Unauthorized, Unavailable: there is none to be had, or the client is closed.
            RuntimeError: it is connected in another event loop.
        """
        self._check_loop()
        if self.current is not None and self.current.usable:
            return self.current
        if self.closed:
            raise ConnectionLost("the client is closed")
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(), name="visionai client connecting")
            self._opening.add_done_callback(self._opened)
        opening = self._opening
        # Not awaited itself: a task that is cancelled must not cancel the attempt that others wait for.
        await asyncio.wait([opening])
        if opening.cancelled():
            raise ConnectionLost("the client is closed")
        if (error := opening.exception()) is not None:
            raise copy.copy(error)
        connection = opening.result()
        # Until this task's turn it may have been left: it has what is not the client's, or will answer nothing new.
        return await self.connection() if connection.retired else connection

    def _opened(self, opening: asyncio.Task[Connection]) -> None:
        self._opening = None
        if not opening.cancelled():
            opening.exception()  # those who asked may all have been cancelled

    async def _open(self) -> Connection:
        attempts = self._retry.attempts if self._was_connected else 1
        for attempt in itertools.count(1):
            token = self._defaults.token_to_connect
            try:
                connection = await Connection.open(
                    self._url, token=token, timeout=self._connect_timeout, keepalive=self._keepalive
                )
                # Greeted: it is the right address, whatever becomes of this connection.
                self._was_connected, attempts = True, self._retry.attempts
                await self._defaults.introduce(connection, token, self._connect_timeout)
            except Unauthorized:
                if token == self._defaults.token_to_connect:
                    raise
                continue  # another was brought meanwhile
            except (CannotConnect, ConnectionLost, Unavailable) as error:
                if attempt >= attempts:
                    raise
                self.obstacle = error
                pause = self._retry.delay(attempt - 1, error.retry_after)
            else:
                self.obstacle = None
                if token == self._defaults.token_to_connect:
                    self.current = connection
                    return connection
                await connection.aclose()
                continue  # another was brought meanwhile, or this one was given up
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")
