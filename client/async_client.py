"""The asynchronous client: its requests, over one connection that any number of tasks share, see `link`."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

from client import results
from client.connection import check_url, checked_token
from client.defaults import Defaults
from client.errors import (
    ConnectionLost,
    DeadlineExceeded,
    RequestRejected,
    ShuttingDown,
    Unauthorized,
    Unavailable,
)
from client.images import ImageSource, bytes_of, check_several
from client.link import Link
from client.many import Outcome, in_order, settled
from client.protocol import Request, Welcome
from client.retry import Retry

DEFAULT_URL = "ws://127.0.0.1:8000/ws"

Detect = Literal["auto", "always", "never"]
Priority = Literal["high", "normal", "low"]


class AsyncClient:
    """A client for asyncio programs.

    ::

        async with AsyncClient("ws://127.0.0.1:8000/ws") as client:
            prediction = await client.predict("face.jpg")
            print(prediction.emotion_name, prediction.confidence)

    Tasks may share a client: their requests are in flight together on one connection. Every method may be cancelled.
    It belongs to one event loop: while it is connected there, `RuntimeError` is raised in any other.

    When the connection is lost, the next request restores it, and requests without an answer are sent again; so
    an image whose reply was lost may be stored twice by the server. Requests that the server refuses for load
    are sent again when it says so. All of it ends with the request's timeout.

    Args:
        url: the server's WebSocket address.
        token: a JSON Web Token or API key, for servers that ask for one.
        timeout: seconds until a request fails with `DeadlineExceeded`, retries included; ``math.inf`` for no limit.
        connect_timeout: seconds for one attempt to connect.
        retry: how often and how soon to try again. Until a server has greeted, connecting is tried once.
        keepalive: seconds between pings, and until a missing pong means that the connection is lost; longer while
            images are unanswered, which may still be on their way. ``math.inf`` sends none.

    Raises:
        ValueError: `url` is no WebSocket address, `token` no token, `timeout` None, or `keepalive` not above 0.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token: str | None = None,
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
        retry: Retry | None = None,
        keepalive: float = 10.0,
    ) -> None:
        check_url(url)
        if timeout is None:  # as elsewhere for no limit; here it would be one that is over at once
            raise ValueError("timeout is a number of seconds, math.inf for no limit")
        if keepalive <= 0:
            raise ValueError(f"keepalive is above 0, or math.inf for no pings; not {keepalive}")
        self.url = url
        self._defaults = Defaults(checked_token(token))
        self._timeout = timeout
        self._retry = retry or Retry()
        self._link = Link(url, self._defaults, self._retry, connect_timeout, keepalive)

    async def __aenter__(self) -> Self:
        """Connect. Raises what `connect` raises."""
        try:
            await self.connect()
        except asyncio.CancelledError:
            # The attempt goes on for others who share it, and here nobody would be left to close what it opens.
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Close the connection."""
        await self.aclose()

    async def connect(self) -> Welcome:
        """Connect if there is no connection; what the server says of itself.

        Raises:
            ConnectionFailed: nothing answers at the address, or it is no VisionAI server.
            Unauthorized, Unavailable: the server refuses the connection.
        """
        return (await self._link.connection()).welcome

    async def aclose(self) -> None:
        """Close the connection. Requests in flight fail with `ConnectionLost`. May be called again, and cancelled."""
        await self._link.aclose()

    async def predict(
        self,
        image: ImageSource,
        *,
        detect: Detect | None = None,
        max_faces: int | None = None,
        priority: Priority | None = None,
        timeout: float | None = None,
    ) -> results.Prediction:
        """The emotion in an image.

        Args:
            image: the bytes of a JPEG, PNG, WebP or BMP file, or the path of one.
            detect: ``auto`` finds faces and scores the whole image where there is none, ``always`` fails with
                `NoFace` then, ``never`` takes the image for a face crop. None is the server's choice (auto).
            max_faces: answer for this many faces at most, the largest first.
            priority: whether it goes before or after other requests while the server is busy. None is normal.
            timeout: seconds, in place of the client's.

        Raises:
            OSError: the file cannot be read.
            TypeError: `image` is neither.
            VisionAIError: see `client.errors`.
        """
        data = await bytes_of(image)
        # The server's own deadline would be overruled by what is left of the timeout, which always goes along.
        deadline_ms = self._defaults.options.get("deadline_ms")
        fields = {"detect": detect, "max_faces": max_faces, "priority": priority, "deadline_ms": deadline_ms}
        request = Request(
            "predict", {name: value for name, value in fields.items() if value is not None}, data
        )
        # A camera's frame that was lost is stale by the time it could be sent again.
        resend = not self._defaults.options.get("stream", False)
        return results.prediction(await self._ask(request, timeout, resend=resend))

    async def predict_many(
        self,
        images: Iterable[ImageSource] | AsyncIterable[ImageSource],
        *,
        concurrency: int = 16,
        detect: Detect | None = None,
        max_faces: int | None = None,
        priority: Priority | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[Outcome]:
        """The emotions in many images: an outcome for each, in their order.

        At most `concurrency` images are in memory and in flight. `images` is drawn from as needed, so it may be
        endless; where it waits for its images, as those of a camera, give an asynchronous one: outcomes come out
        meanwhile. An image that fails does not stop the others; what would fail all of them is raised.

        Raises:
            ConnectionFailed: the server cannot be reached any more.
            Unauthorized: the server does not accept the token.
        """
        check_several(images, concurrency)
        predict = partial(
            self.predict, detect=detect, max_faces=max_faces, priority=priority, timeout=timeout
        )
        async with aclosing(in_order(images, concurrency, partial(settled, predict))) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def emotions(self) -> tuple[results.Emotion, ...]:
        """The emotions that the server tells apart."""
        return results.emotions(await self.request("emotions"))

    async def model_info(self) -> results.ModelInfo:
        """The model that the server runs."""
        return results.model_info(await self.request("model_info"))

    async def models(self) -> tuple[results.ModelVersion, ...]:
        """The model versions that the server has."""
        return results.models(await self.request("models"))

    async def ping(self) -> float:
        """Seconds to the server and back, without an image."""
        began = time.perf_counter()
        await self.request("ping")
        return time.perf_counter() - began

    async def health(self) -> results.Health:
        """How the server is."""
        return results.health(await self.request("health"))

    async def stats(
        self, *, window_s: float = 3600.0, buckets: int = 0, connection_only: bool = False
    ) -> results.Stats:
        """Counts, confidence and latency of the predictions of the last `window_s` seconds.

        They are this user's or, for a client without a token, those of all such clients; with `connection_only`
        those of this connection. With `buckets`, emotions are also counted in so many equal parts of the time.
        """
        fields: dict[str, Any] = {"window_s": window_s}
        if buckets:
            fields["buckets"] = buckets
        if connection_only:
            fields["scope"] = "connection"
        return results.stats(await self.request("stats", **fields))

    async def history(self, *, limit: int = 50, cursor: str | None = None) -> results.HistoryPage:
        """Stored predictions, latest first, at most `limit`; `cursor` is the `next` of the page before."""
        fields = {"limit": limit} if cursor is None else {"limit": limit, "cursor": cursor}
        return results.history(await self.request("history", **fields))

    async def configure(self, **options: Any) -> Mapping[str, Any]:
        """Set defaults of this client's requests, such as ``detect``, ``max_faces`` or ``stream``.

        They are set again whenever the connection is restored. None turns ``deadline_ms`` or ``smoothing_ms`` off; what
        else is None stays as it is. ``token`` takes the place of the client's, as when that has expired; one that is
        refused does not. Returns the whole effective configuration.

        Raises:
            InvalidRequest: the server does not know an option; names it.
            Unauthorized: the server does not accept the token.
            ValueError: ``token`` is no token.
        """
        token = checked_token(options.pop("token", None))
        reply = await (self.request("configure", **options) if token is None else self._renew(token, options))
        effective = results.configuration(reply)
        self._defaults.remember(options, effective)
        return effective

    async def _renew(self, token: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Configure with a token that becomes the client's once it is accepted."""
        before = self._link.current
        try:
            with self._defaults.renewing(token):
                reply = await self.request("configure", token=token, **options)
        except BaseException as error:
            # Opened for it, it may have been so with what is not the client's; without an answer, it may have taken it.
            refused = isinstance(error, RequestRejected | Unauthorized)
            if self._defaults.token != token and not (refused and self._link.current is before):
                self._link.leave(self._link.current)
            raise
        if self._link.current is not None:
            self._link.current.token = token
        return reply

    async def request(self, command: str, **fields: Any) -> Mapping[str, Any]:
        """Send any command, and return its reply as it came, within the client's timeout. `id` is no field.

        Raises:
            VisionAIError: see `client.errors`.
        """
        return await self._ask(Request(command, fields))

    async def _ask(
        self, request: Request, timeout: float | None = None, *, resend: bool = True
    ) -> Mapping[str, Any]:
        seconds = self._timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(seconds) as limit:
                return await self._ask_until(limit.when() or 0.0, request, resend)
        except TimeoutError:
            obstacle = self._link.obstacle
            why = f"; {obstacle.message}" if obstacle is not None else ""
            raise DeadlineExceeded(f"no answer to {request.command!r} within {seconds:g} s{why}") from None

    async def _ask_until(self, deadline: float, request: Request, resend: bool) -> Mapping[str, Any]:
        """Send until there is an answer, within the attempts of the retry policy. `deadline` is in loop time."""
        now = asyncio.get_running_loop().time
        for attempt in itertools.count(1):
            connection = await self._link.connection()
            try:
                return await connection.exchange(request, deadline)
            except (ConnectionLost, Unavailable) as error:
                if isinstance(error, ShuttingDown):
                    self._link.leave(connection)
                if self._link.closed or not resend or attempt == self._retry.attempts:
                    raise
                pause = self._retry.delay(attempt - 1, error.retry_after)
                if now() + pause >= deadline:
                    raise  # the real reason says more than a timeout would
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")
