"""One worker: listening, who is connected, readiness, and the order of a shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import mmap
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request as HTTPRequest
from websockets.http11 import Response
from websockets.typing import Subprotocol

from service import __version__, http, protocol
from service.connection import Backend, Connection
from service.emotions import describe
from service.engine import Engine
from service.errors import RequestError, ShuttingDown
from service.executors import InlineExecutor, ThreadExecutors
from service.faces import FaceDetector
from service.images.decode import ImageDecoder, peek_size
from service.lookups import Lookup, reader
from service.metrics import Gauge, Metrics, SharedCells
from service.page import Page
from service.predictor import Predictor, Request
from service.protocol import Options, Query
from service.security.perimeter import Perimeter
from service.settings import Settings
from service.store import Store
from service.tracing import Tracing

log = logging.getLogger(__name__)

SERVICE_NAME = "VisionAI"

# The network's queue of connections that wait for `accept`: a thousand clients may arrive at once.
BACKLOG = 4096

# How often a worker tells what it does not count: that it lives, its queue, its store, its memory.
_GAUGE_SECONDS = 0.5

# Work that takes longer than some milliseconds would hold up a worker's other clients: it goes to a thread. That is
# decoding a file larger than this, and the search for small faces in an image of more pixels a side than this.
_INLINE_BYTES = 400_000
_INLINE_DETECT_SIDE = 800
# Smaller files are no large images: their headers need not be looked at.
_PEEK_FROM = 8_000


class Service:
    """One worker: an engine, its executors, a store, and the connections. Everything runs on the event loop.

    Use `running` to start and stop it.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        store: Store,
        metrics: Metrics,
        detector: FaceDetector,
        tracing: Tracing | None = None,
        perimeter: Perimeter | None = None,
    ) -> None:
        # A worker makes it before, to tell what is wrong with it; alone, a service counts its own connections.
        self._perimeter = perimeter or Perimeter(settings, SharedCells(1), 0, metrics.refused)
        self._settings = settings
        self._tracing = tracing
        self._engine = engine
        self._store = store
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._connections: set[Connection] = set()
        self._in_flight = 0
        self._draining = False
        self._hurried = False
        self._failure: BaseException | None = None
        self._stopped = asyncio.Event()
        self._settled: asyncio.Future[None] | None = None
        self._gauge_timer: asyncio.TimerHandle | None = None
        self._heartbeats = 0
        predictor = Predictor(
            engine, ImageDecoder(engine.card.shape, settings.max_image_pixels), store, detector
        )
        self._threads = ThreadExecutors(
            predictor,
            count=settings.executors or 1,
            max_batch=settings.max_batch,
            capacity=settings.max_waiting,
            max_wait=settings.max_wait_ms / 1000,
            deliver=self._deliver,
            on_failure=self._executor_failed,
        )
        # With no executor threads set, work is done inline, and one thread is there for what is too large for that.
        self._inline = (
            None
            if settings.executors
            else InlineExecutor(
                predictor,
                max_batch=settings.max_batch,
                capacity=settings.max_waiting,
                max_wait=settings.max_wait_ms / 1000,
                deliver=self._deliver,
                on_failure=self._executor_failed,
            )
        )
        self._backend = Backend(
            submit=self._submit,
            withdraw=self._withdraw,
            answer=self._answer,
            look_up=self._look_up,
            on_error=metrics.failed,
            on_closed=metrics.refused,
            max_in_flight=settings.max_in_flight,
            options=Options(detect=settings.detect),
            rules=self._perimeter.rules,
        )
        self._page = Page()
        self._welcome = protocol.welcome(__version__, settings.auth)
        self._emotions = describe(engine.card.labels, settings.emotions_language)

    @asynccontextmanager
    async def running(self, sockets: Sequence[socket.socket]) -> AsyncIterator[None]:
        """Serve these bound sockets within the context. On exit, drain: see `_drain` for the order."""
        self._engine.warm(self._settings.max_batch)
        self._threads.start()
        try:
            servers = [await self._listen(sock) for sock in sockets]
            self._update_gauges()
            try:
                yield
            finally:
                await self._drain(servers)
        finally:
            if self._gauge_timer is not None:
                self._gauge_timer.cancel()
            await self._threads.stop()

    async def _listen(self, sock: socket.socket) -> Server:
        return await serve(
            self._handle,
            sock=sock,
            process_request=self._http,
            server_header=f"{SERVICE_NAME}/{__version__}",
            compression=None,  # a JPEG does not compress; it costs memory and latency
            max_size=self._settings.max_message_bytes,
            backlog=BACKLOG,
            create_connection=Connection,
            select_subprotocol=_select_subprotocol,
            logger=_connection_log(),
            ssl=None if self._perimeter.certificate is None else self._perimeter.certificate.context,
            open_timeout=self._settings.handshake_seconds,
            ping_interval=self._settings.ping_seconds or None,
            ping_timeout=self._settings.ping_seconds or None,
        )

    async def _drain(self, servers: Sequence[Server]) -> None:
        """Shut down without losing an answer. The order matters:

        1. Readiness turns, and new requests are refused as `shutting_down`.
        2. No new connections.
        3. Requests in flight are answered, within `drain_seconds`.
        4. What no executor has begun by then is refused.
        5. Connections are closed with 1001.

        The store is closed by its owner, after this: it holds the last predictions.
        """
        self._draining = True
        self._set_gauges()
        for server in servers:
            server.server.close()
        if self._in_flight and not self._hurried:
            self._settled = self._loop.create_future()
            await asyncio.wait([self._settled], timeout=self._settings.drain_seconds)
            if self._in_flight:
                log.warning("%d requests in flight were not waited for any longer", self._in_flight)
        self._threads.refuse_waiting()
        if self._inline is not None:
            await self._inline.stop()
        for server in servers:
            server.close(code=1001, reason="the service is shutting down")
        for server in servers:
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

    def hurry(self) -> None:
        """Do not wait for requests in flight any longer."""
        self._hurried = True
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    async def wait_stopped(self) -> None:
        """Wait until `stop` was called, or an executor failed."""
        await self._stopped.wait()

    # Connections

    async def _handle(self, connection: ServerConnection) -> None:
        assert isinstance(connection, Connection)
        self._connections.add(connection)
        self._metrics.set(Gauge.CONNECTIONS, len(self._connections))
        try:
            connection.open(self._backend, self._welcome)
            await connection.wait_closed()
        finally:
            self._connections.discard(connection)
            self._metrics.set(Gauge.CONNECTIONS, len(self._connections))
            dropped = self._threads.discard(connection)
            if self._inline is not None:
                dropped += self._inline.discard(connection)
            self._metrics.abandoned(dropped)
            self._left(dropped)

    def _http(self, connection: ServerConnection, request: HTTPRequest) -> Response | None:
        response = http.route(request, page=self._page, not_ready=self.not_ready, metrics=self._exposition)
        return self._admit(connection, request) if response is None else response

    def _admit(self, connection: ServerConnection, request: HTTPRequest) -> Response | None:
        assert isinstance(connection, Connection)
        peer = connection.remote_address
        gate = self._perimeter.gate
        admitted = gate.admit(peer[0] if isinstance(peer, tuple) else None, request.headers)
        if isinstance(admitted, Response):
            return admitted
        connection.visitor = admitted
        connection.on_left = lambda: gate.left(admitted)
        return None

    def _exposition(self) -> bytes:
        self._set_gauges()
        return self._metrics.exposition()

    # Requests

    def _submit(self, request: Request) -> None:
        if self._draining:
            raise ShuttingDown("the service is shutting down")
        if self._inline is None or _holds_up(request):
            self._threads.submit(request)
        else:
            self._inline.submit(request)
        self._in_flight += 1

    def _withdraw(self, request: Request) -> bool:
        inline = self._inline
        withdrawn = (inline is not None and inline.withdraw(request)) or self._threads.withdraw(request)
        if withdrawn:
            self._left(1)
        return withdrawn

    def _deliver(self, requests: list[Request]) -> None:
        for request in requests:
            connection = request.client
            assert isinstance(connection, Connection)
            try:
                connection.settle(request)
            except Exception:
                # A connection that cannot take its answer must not keep its batch-mates from theirs.
                log.exception("a reply could not be sent; its connection is closed")
                connection.transport.abort()
        self._metrics.answered(requests)
        if self._tracing is not None:
            self._tracing.answered(requests)
        self._left(len(requests))

    def _left(self, count: int) -> None:
        self._in_flight -= count
        if self._settled is not None and not self._in_flight and not self._settled.done():
            self._settled.set_result(None)

    def _executor_failed(self, exc: BaseException) -> None:
        """Not ready from here on. The worker drains and ends, and the supervisor starts its successor."""
        self._failure = exc
        self._stopped.set()

    def _look_up(
        self, lookup: Lookup, connection: Connection, user: str | None, done: Callable[[bytes], None]
    ) -> None:
        if self._draining:
            raise ShuttingDown("the service is shutting down")
        read = reader(
            lookup,
            user,
            connection.prediction_ids,
            datetime.now(UTC),
            self._store.status().pending,
        )
        found = self._store.queries.submit(read, lookup.id)
        self._in_flight += 1

        def deliver() -> None:
            try:
                reply = found.result()
            except (RequestError, CancelledError) as exc:
                error = exc if isinstance(exc, RequestError) else ShuttingDown("the service is shutting down")
                self._metrics.failed(error.code)
                reply = protocol.error_reply(error, lookup.id)
            done(reply)
            self._left(1)

        def found_in_thread(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the drain gave up on it, and the event loop is closed
                self._loop.call_soon_threadsafe(deliver)

        found.add_done_callback(found_in_thread)

    def _update_gauges(self) -> None:
        self._heartbeats += 1
        self._metrics.set(Gauge.HEARTBEATS, self._heartbeats)
        self._set_gauges()
        if self._perimeter.refresh():
            for connection in self._connections:
                connection.recheck()
        self._gauge_timer = self._loop.call_later(_GAUGE_SECONDS, self._update_gauges)

    def _set_gauges(self) -> None:
        metrics, store = self._metrics, self._store.status()
        waiting = self._threads.waiting + (0 if self._inline is None else self._inline.waiting)
        metrics.set(Gauge.QUEUE_DEPTH, waiting)
        metrics.set(Gauge.STORE_PENDING, store.pending)
        metrics.set(Gauge.STORE_WRITTEN, store.written)
        metrics.set(Gauge.JOURNAL_FAILING, not store.taking)
        metrics.set(Gauge.DATABASE_FAILING, not store.writing)
        metrics.set(Gauge.READY, self.not_ready() is None)
        metrics.set(Gauge.CPU_SECONDS, time.process_time())
        metrics.set(Gauge.RESIDENT_BYTES, _resident_bytes())

    def _answer(self, query: Query) -> bytes:
        match query.command:
            case "emotions":
                return protocol.emotions_reply(self._emotions, query.id)
            case "model_info":
                return protocol.model_info_reply(self._model_info(), query.id)
            case "models":
                return protocol.models_reply([self._model_summary()], query.id)
            case "ping":
                return protocol.pong_reply(datetime.now(UTC), query.id)
            case _:
                return self._health(query)

    def _health(self, query: Query) -> bytes:
        """Over all workers; of the store's errors this worker's in detail, and where only others have one, which."""
        self._set_gauges()
        metrics, store = self._metrics, self._store.status()
        failing = [
            part
            for part, gauge in (("journal", Gauge.JOURNAL_FAILING), ("database", Gauge.DATABASE_FAILING))
            if metrics.total(gauge)
        ]
        status = "degraded" if failing else "healthy"
        details: dict[str, Any] = {
            "pending": int(metrics.total(Gauge.STORE_PENDING)),
            "written": int(metrics.total(Gauge.STORE_WRITTEN)),
        }
        if failing:
            details["failing"] = failing
            details["error"] = (
                f"another worker cannot write to its {failing[0]}" if store.healthy else store.last_error
            )
        return protocol.health_reply(
            status if self.not_ready() is None else "unhealthy",
            f"{SERVICE_NAME} {__version__}",
            datetime.now(UTC),
            int(metrics.total(Gauge.CONNECTIONS)),
            details,
            query.id,
            reload_error=metrics.reloads.last_error,
        )

    def _model_summary(self) -> dict[str, Any]:
        card = self._engine.card
        return {
            "version_tag": card.version_tag,
            "active": True,
            "precision": card.precision,
            "labels": card.labels,
        }

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
            "workers": self._settings.workers,
            "executors": self._settings.executors,
            "max_batch": self._settings.max_batch,
        }


def _holds_up(request: Request) -> bool:
    """Whether a request would hold up others if it were worked on in the event loop."""
    size = len(request.image)
    if size > _INLINE_BYTES:
        return True
    if request.detect == "never" or size < _PEEK_FROM:
        return False
    pixels = peek_size(request.image)
    return pixels is None or max(pixels) > _INLINE_DETECT_SIDE


def _select_subprotocol(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Ours where it is asked for; none otherwise, and never a refusal: v1 clients offer none."""
    ours = Subprotocol(protocol.SUBPROTOCOL)
    return ours if ours in offered else None


def _resident_bytes() -> float:
    """Resident memory of this process; NaN where there is no /proc to read it from."""
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        return math.nan


def _connection_log() -> logging.Logger:
    """The library's log, without what peers can cause: handshakes that fail and connections that drop."""
    logger = logging.getLogger("service.websockets")
    logger.setLevel(logging.WARNING)
    logger.addFilter(lambda record: record.msg != "opening handshake failed")
    return logger
