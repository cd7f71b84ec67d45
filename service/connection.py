"""One client's connection: its frames become requests, and its replies go out in order.

The task that reads the connection never waits for a prediction, so that a client may pipeline; replies are
written from `settle`, on the event loop, as results come in. A reply that is ready waits for those before it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from websockets.asyncio.server import ServerConnection, broadcast
from websockets.exceptions import ConnectionClosed

from service import protocol
from service.errors import Overloaded, RequestError, ShuttingDown
from service.executors import Request
from service.protocol import FrameError, Predict, Query


@dataclass(slots=True, eq=False)
class _Answered:
    """A reply that was known at once, in its place among those that are not."""

    reply: bytes


class Connection:
    """Serves one client from the welcome to the close.

    Args:
        websocket: the connection, after its opening handshake.
        submit: admits a request for prediction; raises `Overloaded` or `ShuttingDown`.
        answer: the reply to a query.
        on_error: told the code of each error that is replied from here.
        max_in_flight: replies outstanding at most; beyond it the client's frames stay in the network.
    """

    def __init__(
        self,
        websocket: ServerConnection,
        *,
        submit: Callable[[Request], None],
        answer: Callable[[Query], bytes],
        on_error: Callable[[str], None],
        max_in_flight: int,
    ) -> None:
        self._websocket = websocket
        self._submit = submit
        self._answer = answer
        self._on_error = on_error
        self._max_in_flight = max_in_flight
        self._outstanding: deque[Request | _Answered] = deque()
        # Set while `serve` waits for room; a future rather than an event, since there is one waiter at most.
        self._room: asyncio.Future[None] | None = None
        peer = websocket.remote_address
        self.address: str | None = peer[0] if isinstance(peer, tuple) else None

    async def serve(self, welcome: bytes) -> None:
        """Greet, then read until the connection closes. Returns; does not raise `ConnectionClosed`."""
        self._send(welcome)
        websocket = self._websocket
        try:
            while True:
                self._receive(await websocket.recv())
                if len(self._outstanding) >= self._max_in_flight:
                    await self._wait_for_room()
                if websocket.paused:
                    # The client reads slower than it asks: no more of its requests until it has caught up.
                    await websocket.drain()
        except (ConnectionClosed, ConnectionError):
            return

    def settle(self) -> None:
        """Send what is ready. Called on the event loop when a request of this connection has its reply."""
        outstanding = self._outstanding
        while outstanding and (reply := outstanding[0].reply) is not None:
            outstanding.popleft()
            self._send(reply)
        if self._room is not None and len(outstanding) < self._max_in_flight and not self._room.done():
            self._room.set_result(None)

    def _receive(self, frame: str | bytes) -> None:
        received = time.monotonic()
        try:
            parsed = protocol.parse_frame(frame)
        except FrameError as exc:
            self._refuse(exc.error, exc.id)
            return
        if isinstance(parsed, Query):
            self._reply(self._answer(parsed))
            return
        self._predict(parsed, received)

    def _predict(self, predict: Predict, received: float) -> None:
        deadline = None if predict.deadline_ms is None else received + predict.deadline_ms / 1000
        request = Request(self, predict.id, predict.image, received, deadline)
        # It takes its place in the order first: an executor may answer before `submit` returns.
        self._outstanding.append(request)
        try:
            self._submit(request)
        except (Overloaded, ShuttingDown) as exc:
            self._on_error(exc.code)
            request.fail(exc)
            self.settle()

    def _refuse(self, error: RequestError, request_id: protocol.RequestId) -> None:
        self._on_error(error.code)
        self._reply(protocol.error_reply(error, request_id))

    def _reply(self, reply: bytes) -> None:
        if self._outstanding:
            self._outstanding.append(_Answered(reply))
        else:
            self._send(reply)

    def _send(self, reply: bytes) -> None:
        # The public way to send without a task or an await; it passes over a connection that is closing.
        broadcast((self._websocket,), reply, text=True)

    async def _wait_for_room(self) -> None:
        self._room = asyncio.get_running_loop().create_future()
        closed = asyncio.ensure_future(self._websocket.wait_closed())
        try:
            await asyncio.wait((self._room, closed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            closed.cancel()
            self._room = None
