"""The service: listening, who is connected, readiness, and the order of a shutdown."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request as HTTPRequest
from websockets.http11 import Response

from service import __version__, http, protocol
from service.connection import Connection
from service.emotions import describe
from service.engine import Engine
from service.errors import ShuttingDown, StartupError
from service.executors import Executors, Request
from service.images.decode import ImageDecoder
from service.metrics import Metrics
from service.protocol import Query
from service.settings import Settings
from service.store import Store

log = logging.getLogger(__name__)

SERVICE_NAME = "VisionAI"

# The network's queue of connections that wait for `accept`: a thousand clients may arrive at once.
_BACKLOG = 4096


class Service:
    """One serving process: an engine, its executors, a store, and the connections.

    Everything but `_deliver` runs on the event loop. Use `running` to start and stop it.
    """

    def __init__(self, settings: Settings, engine: Engine, store: Store) -> None:
        self._settings = settings
        self._engine = engine
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._metrics = Metrics()
        self._connections: set[Connection] = set()
        self._in_flight = 0
        self._draining = False
        self._failure: BaseException | None = None
        self._stopped = asyncio.Event()
        self._settled: asyncio.Future[None] | None = None
        # Answered requests on their way from the executors to the event loop; see `_deliver`.
        self._answered: deque[list[Request]] = deque()
        self._settle_scheduled = False
        self._executors = Executors(
            engine,
            ImageDecoder(engine.card.shape, settings.max_image_pixels),
            store,
            self._metrics,
            count=settings.executors,
            max_batch=settings.max_batch,
            capacity=settings.max_waiting,
            deliver=self._deliver,
            on_failure=self._executor_failed,
        )
        self._welcome = protocol.welcome(__version__)
        self._emotions = describe(engine.card.labels, settings.emotions_language)
        self._metrics.watch("visionai_connections", "Connected clients", lambda: len(self._connections))
        self._metrics.watch(
            "visionai_queue_depth", "Requests waiting for an executor", lambda: self._executors.waiting
        )
        self._metrics.watch(
            "visionai_store_pending",
            "Predictions not yet in the database",
            lambda: self._store.status().pending,
        )
        self._metrics.watch(
            "visionai_store_written",
            "Predictions written to the database",
            lambda: self._store.status().written,
        )
        self._metrics.watch(
            "visionai_ready", "1 when the service can predict", lambda: self.not_ready() is None
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[str, int]]:
        """Serve within the context; yields the address. On exit, drain: see `_drain` for the order.

        Raises:
            StartupError: the address cannot be listened on.
        """
        settings = self._settings
        self._engine.warm(settings.max_batch)
        self._executors.start()
        try:
            server = await self._listen()
            try:
                host, port = server.sockets[0].getsockname()[:2]
                yield host, port
            finally:
                await self._drain(server)
        finally:
            # Joins threads that may be at work for some milliseconds; nothing else is left to serve.
            await asyncio.to_thread(self._executors.stop)

    async def _listen(self) -> Server:
        settings = self._settings
        try:
            return await serve(
                self._handle,
                settings.host,
                settings.port,
                process_request=self._http,
                server_header=f"{SERVICE_NAME}/{__version__}",
                compression=None,  # a JPEG does not compress; it costs memory and latency
                max_size=settings.max_message_bytes,
                backlog=_BACKLOG,
                logger=_connection_log(),
            )
        except OSError as exc:
            raise StartupError(
                f"cannot listen on {settings.host}:{settings.port}: {os.strerror(exc.errno or 0)}; set HOST or PORT"
            ) from None

    async def _drain(self, server: Server) -> None:
        """Shut down without losing an answer. The order matters:

        1. Readiness turns, and new requests are refused as `shutting_down`.
        2. No new connections.
        3. Requests in flight are answered, within `drain_seconds`.
        4. Connections are closed with 1001.

        The store is closed by its owner, after this: it holds the last predictions.
        """
        self._draining = True
        server.server.close()
        if self._in_flight:
            self._settled = self._loop.create_future()
            try:
                async with asyncio.timeout(self._settings.drain_seconds):
                    await self._settled
            except TimeoutError:
                log.warning("%d requests were not answered within DRAIN_SECONDS", self._in_flight)
            except asyncio.CancelledError:
                log.warning("shutdown was hurried with %d requests in flight", self._in_flight)
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()  # the signal was for the wait; the connections still want their close frame
        server.close(code=1001, reason="the service is shutting down")
        await server.wait_closed()

    def not_ready(self) -> str | None:
        """Why the service cannot predict; None when it can."""
        if self._failure is not None:
            return "an executor failed"
        return "shutting down" if self._draining else None

    @property
    def failure(self) -> BaseException | None:
        """What ended an executor, if that is why `wait_stopped` returned."""
        return self._failure

    def stop(self) -> None:
        """Make `wait_stopped` return."""
        self._stopped.set()

    async def wait_stopped(self) -> None:
        """Wait until `stop` was called, or an executor failed."""
        await self._stopped.wait()

    # Connections

    async def _handle(self, websocket: ServerConnection) -> None:
        connection = Connection(
            websocket,
            submit=self._submit,
            answer=self._answer,
            on_error=self._metrics.failed,
            max_in_flight=self._settings.max_in_flight,
        )
        self._connections.add(connection)
        try:
            await connection.serve(self._welcome)
        finally:
            self._connections.discard(connection)
            if dropped := self._executors.discard(connection):
                self._metrics.abandoned(dropped)
                self._left(dropped)

    def _http(self, connection: ServerConnection, request: HTTPRequest) -> Response | None:
        return http.route(request, not_ready=self.not_ready, metrics=self._metrics.exposition)

    # Requests

    def _submit(self, request: Request) -> None:
        if self._draining:
            raise ShuttingDown("the service is shutting down")
        self._executors.submit(request)
        self._in_flight += 1

    def _deliver(self, requests: list[Request]) -> None:
        """Hand answered requests to the event loop. Called in executor threads.

        One wake-up of the loop takes whatever has been answered by the time it runs. The flag is cleared there
        before the queue is emptied, so that what is appended after that schedules a wake-up of its own.
        """
        self._answered.append(requests)
        if not self._settle_scheduled:
            self._settle_scheduled = True
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        self._settle_scheduled = False
        answered = self._answered
        while answered:
            requests = answered.popleft()
            for request in requests:
                connection = request.client
                assert isinstance(connection, Connection)
                connection.settle()
            self._left(len(requests))

    def _left(self, count: int) -> None:
        self._in_flight -= count
        if self._settled is not None and not self._in_flight and not self._settled.done():
            self._settled.set_result(None)

    def _executor_failed(self, exc: BaseException) -> None:
        """Called in the thread that ends. What it held is lost with it; what waits is answered at `stop`."""

        def fail() -> None:
            self._failure = exc
            self._stopped.set()

        self._loop.call_soon_threadsafe(fail)

    def _answer(self, query: Query) -> bytes:
        match query.command:
            case "emotions":
                return protocol.emotions_reply(self._emotions, query.id)
            case "model_info":
                return protocol.model_info_reply(self._model_info(), query.id)
            case _:
                return self._health(query)

    def _health(self, query: Query) -> bytes:
        store = self._store.status()
        status = "healthy" if store.healthy else "degraded"
        details: dict[str, Any] = {"pending": store.pending, "written": store.written}
        if store.last_error is not None and not store.healthy:
            details["error"] = store.last_error
        return protocol.health_reply(
            status if self.not_ready() is None else "unhealthy",
            f"{SERVICE_NAME} {__version__}",
            datetime.now(UTC),
            len(self._connections),
            details,
            query.id,
        )

    def _model_info(self) -> dict[str, Any]:
        card = self._engine.card
        shape = card.shape
        return {
            "status": "loaded",
            "model_path": str(card.path),
            "input_shape": [None, shape.height, shape.width, shape.channels],
            "output_shape": [None, len(card.labels)],
            "num_classes": len(card.labels),
            "total_params": card.parameters,
            "emotion_classes": list(card.labels),
            "model_version_tag": card.version_tag,
            "input_color": shape.color,
            "precision": card.precision,
            "opset": card.opset,
            "provider": self._engine.provider,
            "source": card.source,
            "source_sha256": card.source_sha256,
            "executors": self._settings.executors,
            "max_batch": self._settings.max_batch,
        }


def stop_on_signals(stop: Callable[[], None], hurry: Callable[[], object]) -> None:
    """Call `stop` on the first SIGTERM or SIGINT, and `hurry` on each that follows."""
    loop = asyncio.get_running_loop()
    received = 0

    def on_signal() -> None:
        nonlocal received
        received += 1
        if received == 1:
            stop()
        else:
            hurry()

    for number in (signal.SIGTERM, signal.SIGINT):
        if sys.platform == "win32":
            # Windows' event loops take no signal handlers; this one wakes the loop from the main thread.
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(on_signal))
        else:
            loop.add_signal_handler(number, on_signal)


def _connection_log() -> logging.Logger:
    """The library's log, without what peers can cause: handshakes that fail and connections that drop."""
    logger = logging.getLogger("service.websockets")
    logger.setLevel(logging.WARNING)
    logger.addFilter(lambda record: record.msg != "opening handshake failed")
    return logger
