"""One WebSocket connection: opened, welcomed, then requests out and replies back, many in flight at once."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidProxy, InvalidStatus, WebSocketException

from client.causes import close_code, closed, proxy_hint, refusal, turned_away, unreachable, where
from client.errors import (
    CannotConnect,
    ConnectionLost,
    ImageTooLarge,
    ProtocolViolation,
    VisionAIError,
    error_of,
)
from client.protocol import Request, Unanswered, Welcome, encode, parse_reply, parse_welcome
from client.proxies import proxy_for

# A page of history is the largest reply; this is room for tens of thousands of rows.
MAX_REPLY_BYTES = 16 * 2**20

# Bytes in a second, 256 kbit/s. A line that is slower is taken for a server that is silent.
SLOWEST_LINE = 32_000

# Seconds for a connection to close in good order, before it is cut.
CLOSING = 2.0

# An error, too, is a result: of an exception that nobody awaits any more asyncio would log that.
_Waiter = asyncio.Future[dict[str, Any] | VisionAIError]


def check_url(url: str) -> None:
    """Raise ValueError unless `url` is a WebSocket address."""
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname or parts.fragment:
        raise ValueError(f"{url!r} is not a WebSocket address such as ws://127.0.0.1:8000/ws")
    _ = parts.port  # raises ValueError where it is no number
    try:
        parts.hostname.encode("idna")  # as the system's look-up does, whose error is of no address
    except UnicodeError:
        raise ValueError(
            f"{url!r} is not a WebSocket address: a part of {parts.hostname!r} is empty or too long"
        ) from None


def checked_token(token: str | None) -> str | None:
    """The token without the white space around it, as what is read from a file has at its end; None without any.

    Raises:
        ValueError: it holds what no token does, and no header may. The message does not show it.
    """
    token = token and token.strip()
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(
            "the token holds spaces, control characters or letters outside ASCII: is it the whole token?"
        )
    return token or None


class _Gone(asyncio.Transport):
    """What a connection that is gone has for a transport."""

    def abort(self) -> None:
        """Nothing is left to abort."""


class _WebSocket(ClientConnection):
    """As the library's, which aborts its transport also when the connection is gone."""

    def connection_lost(self, exc: Exception | None) -> None:
        if not hasattr(self, "recv_messages"):
            return  # never made, as where the handshake of TLS fails behind a proxy: the library would raise here
        super().connection_lost(exc)
        # asyncio's own cannot be aborted (`AttributeError`) where it was closed before its last bytes were written:
        # those of a message that the server did not want.
        self.transport = _Gone()


class Connection:
    """An open connection. Ends with the first fault, and then tells every request that waits.

    `exchange` may be cancelled at any time: the reply that comes later is dropped. `token` is the one that it has.
    """

    def __init__(self, websocket: ClientConnection, welcome: Welcome, token: str | None, keepalive: float):
        self.welcome = welcome
        self.token = token
        self.retired = False
        self._waiting = 0
        self._unused = asyncio.Event()  # retired, and nobody waits for a reply any more
        self._websocket = websocket
        self._ids = itertools.count(1)
        self._unanswered: Unanswered[_Waiter] = Unanswered(welcome.protocol)
        self._sending = asyncio.Lock()
        self._ended = False
        self._reader = asyncio.create_task(self._read(), name="visionai client reader")
        self._pings = asyncio.create_task(self._ping(keepalive), name="visionai client pings")

    @classmethod
    async def open(cls, url: str, *, token: str | None, timeout: float, keepalive: float) -> Connection:
        """Connect and read the welcome, all within `timeout` seconds.

        Raises:
            CannotConnect: nothing answers, it speaks no WebSocket, or its certificate is not trusted.
            ProtocolViolation: it speaks WebSocket but is no VisionAI server.
            Unauthorized, Overloaded, RateLimited, ShuttingDown: the server refuses the connection.
        """
        websocket = proxy = None
        try:
            proxy = proxy_for(url)
            async with asyncio.timeout(timeout):
                websocket = await connect(
                    url,
                    create_connection=_WebSocket,
                    additional_headers={"Authorization": f"Bearer {token}"} if token else None,
                    compression=None,  # JPEG does not compress
                    proxy=proxy,
                    max_size=MAX_REPLY_BYTES,
                    ping_interval=None,  # see `_ping`
                    open_timeout=None,
                    close_timeout=1,
                )
                welcome = parse_welcome(await websocket.recv(decode=False))
                connection = cls(websocket, welcome, token, keepalive)
                websocket = None  # the connection owns it now
                return connection
        except TimeoutError:
            raise CannotConnect(
                f"{where(url)} gave no answer within {timeout:g} s{proxy_hint(proxy, url)}"
            ) from None
        except InvalidStatus as error:
            raise refusal(url, error) from None
        except ConnectionClosed as error:
            raise turned_away(error) from None
        except ProtocolViolation as error:
            raise ProtocolViolation(f"{where(url)} is not a VisionAI server: {error.message}") from None
        except OSError as error:
            raise CannotConnect(unreachable(url, error) + proxy_hint(proxy, url)) from None
        except (ImportError, InvalidProxy, ValueError) as error:  # no SOCKS library, no such kind or port
            # All of InvalidProxy may hold a password, and so may what was taken for a port.
            why = getattr(error, "msg", "the proxy's address is none" if proxy else error)
            raise CannotConnect(f"{where(url)} cannot be reached: {why}{proxy_hint(proxy, url)}") from None
        except WebSocketException as error:
            raise CannotConnect(
                f"{where(url)} does not speak WebSocket ({error}): check host and port, and ws:// against wss://"
                + proxy_hint(proxy, url)
            ) from None
        finally:
            if websocket is not None:
                await websocket.close()

    @property
    def usable(self) -> bool:
        """False once the connection has ended."""
        return not self._ended

    async def exchange(self, request: Request, deadline: float | None = None) -> Mapping[str, Any]:
        """Send `request` and wait for its reply. `deadline` is in the event loop's time; the server is told.

        Raises:
            ConnectionLost: the connection ended before the reply came.
            VisionAIError: whatever the server answered that is not a success, see `client.errors`.
        """
        loop = asyncio.get_running_loop()
        reply: _Waiter = loop.create_future()
        request_id = next(self._ids)
        self._waiting += 1
        try:
            # One at a time: on a slow line, what waits for its turn can still be given up without being sent, and
            # the server is told what is left of its time when it goes.
            async with self._sending:
                if self._ended:
                    raise ConnectionLost("the connection is closed")
                remaining = None if deadline is None else max(0.001, (deadline - loop.time()) * 1000)
                frame, is_text = encode(request.of(self.token), request_id, self.welcome, remaining)
                # `send` writes before it first waits: requests are registered in the order in which they are sent.
                self._unanswered.add(request_id, reply, len(frame))
                # The reader sees a closed connection too, and knows better what becomes of each request.
                with contextlib.suppress(ConnectionClosed):
                    await self._websocket.send(frame, text=is_text)
            answer = await reply
        except asyncio.CancelledError:
            self._unanswered.give_up(request_id)
            raise
        finally:
            self._waiting -= 1
            if self.retired:
                self.retire()
        if isinstance(answer, VisionAIError):
            raise answer
        if answer.get("type") == "error":
            raise error_of(answer)
        return answer

    async def _ping(self, keepalive: float) -> None:
        """Give up a connection on which no ping is answered, as nothing else may tell; close one that is unused.

        No ping overtakes an image, and how much of that still waits in the system's buffers cannot be seen: what is
        unanswered is given the time that it takes on the slowest line.
        """
        with contextlib.suppress(ConnectionClosed):
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(keepalive):
                        await self._unused.wait()
                if self._unused.is_set():
                    await self._close()
                    return
                try:
                    async with asyncio.timeout(keepalive + self._unanswered.size / SLOWEST_LINE):
                        # Sending it waits, too: for as long as much is unsent before it.
                        await (await self._websocket.ping())
                except TimeoutError:
                    await self._close(1011, "keepalive ping timeout")
                    return

    def retire(self) -> None:
        """Close as soon as nobody waits for a reply."""
        self.retired = True
        if not self._waiting:
            self._unused.set()

    async def aclose(self) -> None:
        """Close, and wait until the connection is gone. Requests that still wait get `ConnectionLost`."""
        await self._close()
        if not self._reader.cancelled():
            await self._reader

    async def _close(self, code: int = 1000, reason: str = "") -> None:
        try:
            async with asyncio.timeout(CLOSING):
                await self._websocket.close(code, reason)
        except TimeoutError:
            # The library's own limit begins when all is sent, which on a dead line is never.
            self._websocket.transport.abort()
            await self._websocket.wait_closed()

    async def _read(self) -> None:
        """Hand out replies until the connection ends; then every request that is left gets an error."""
        reason: VisionAIError = ConnectionLost("the connection is closed")
        try:
            while True:
                reply = parse_reply(await self._websocket.recv(decode=False))
                waiter = self._unanswered.answer(reply)
                if waiter is not None:
                    _give(waiter, reply)
        except ConnectionClosed as error:
            reason = closed(error)
            if close_code(error) == 1009 and (waiter := self._unanswered.take_largest()):
                _give(waiter, ImageTooLarge("the image is larger than the messages that the server accepts"))
        except ProtocolViolation as error:
            reason = error
        except asyncio.CancelledError:
            # The end of asyncio.run. What is closed in good order would still be open when the loop is gone.
            self._websocket.transport.abort()
            raise
        finally:
            # Nothing may wait for a reader that is gone, whatever ended it.
            self._ended = True
            self._pings.cancel()
            for waiter in self._unanswered.take_all():
                # Each its own: one exception raised in several tasks would gather all their tracebacks.
                _give(waiter, copy.copy(reason))
        await self._close()


def _give(waiter: _Waiter, answer: dict[str, Any] | VisionAIError) -> None:
    # A cancelled wait is removed from the unanswered ones one step of the loop later.
    if not waiter.done():
        waiter.set_result(answer)
