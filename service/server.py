"""One worker: listening, who is connected, readiness, and the order of a shutdown."""

from __future__ import annotations

import asyncio
import logging
import math
import mmap
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request as HTTPRequest
from websockets.http11 import Response

from service import __version__
from service.batching.executors import LONGEST_SLICE, InlineExecutor, ThreadExecutors
from service.batching.predictor import Request
from service.canary import Chooser, Version, make_predictor, store_status
from service.commands.answers import SERVICE_NAME, Answers
from service.commands.lookups import reader
from service.commands.questions import Questions
from service.engine import Engine
from service.errors import ShuttingDown
from service.faces import FaceDetector
from service.images.peek import holds_up
from service.network import http
from service.network.backend import Backend
from service.network.connection import Connection
from service.network.handshakes import Handshakes, select_subprotocol
from service.network.page import Page
from service.processes.cells import Gauge
from service.protocol import replies
from service.protocol.requests import Lookup, Options
from service.security.perimeter import Perimeter
from service.settings import ON_GPU, Settings
from service.store import Store
from service.telemetry.logs import connection_log
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

# The network's queue of connections that wait for `accept`: a thousand clients may arrive at once.
BACKLOG = 4096

# How often a worker tells what it does not count: that it lives, its queue, its store, its memory.
_GAUGE_SECONDS = 0.5

_LARGE_IMAGE_NICENESS = 10

# Seconds after which a client that has not answered a shutdown's close is dropped: one to whom all has been sent, and
# one that has replies to read first.
_SILENT_SECONDS, _UNREAD_SECONDS = 2.0, 10.0


class Service:
    """One worker: an engine, its executors, a store, and the connections. Everything runs on the event loop.

    With a `canary`, its share of the connections is answered by that instead. Use `running` to start and stop it.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        store: Store,
        metrics: Metrics,
        detector: FaceDetector,
        perimeter: Perimeter,
        tracing: Tracing | None = None,
        canary: Version | None = None,
    ) -> None:
        self._settings = settings
        self._perimeter = perimeter
        self._tracing = tracing
        self._versions = [Version(engine, store)]
        if canary is not None:
            self._versions = [Version(engine, store, 1.0 - canary.share), canary]
        self._chooser = Chooser(0.0 if canary is None else canary.share)
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._connections: set[Connection] = set()
        self._handshakes = Handshakes(self._perimeter.gate)
        self._in_flight = 0
        self._questions = Questions(store.queries, metrics.failed)
        self._draining = False
        self._hurried = False
        # What ended an executor, if that is why `wait_stopped` returned.
        self.failure: BaseException | None = None
        self._stopped = asyncio.Event()
        self._settled: asyncio.Future[None] | None = None
        self._gauge_timer: asyncio.TimerHandle | None = None
        self._heartbeats = 0
        predictor = make_predictor(self._versions, detector, settings.max_image_pixels)
        self._threads = ThreadExecutors(
            predictor,
            count=settings.executors or 1,
            max_batch=settings.max_batch,
            capacity=settings.max_waiting,
            max_wait=settings.max_wait_ms / 1000,
            deliver=self._deliver,
            on_failure=self._executor_failed,
            niceness=0 if settings.executors else _LARGE_IMAGE_NICENESS,
            longest=math.inf if settings.executors and settings.provider in ON_GPU else LONGEST_SLICE,
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
        self._answers = Answers(settings, self._versions, metrics, self._set_gauges, self.not_ready)
        self._backends = [self._backend(number) for number in range(len(self._versions))]
        self._page = Page()
        self._welcome = replies.welcome(__version__, settings.auth)

    def _backend(self, version: int) -> Backend:
        """What connections get that are answered by this version."""
        return Backend(
            submit=partial(self._submit, version),
            withdraw=self._withdraw,
            answer=partial(self._answers.answer, self._versions[version]),
            look_up=self._look_up,
            on_error=self._metrics.failed,
            on_closed=self._metrics.refused,
            max_in_flight=self._settings.max_in_flight,
            options=Options(detect=self._settings.detect),
            rules=self._perimeter.rules,
        )

    @asynccontextmanager
    async def running(self, sockets: Sequence[socket.socket]) -> AsyncIterator[None]:
        """Serve these bound sockets within the context. On exit, drain: see `_drain` for the order."""
        for version in self._versions:
            version.engine.warm(self._settings.max_batch)
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
            create_connection=self._handshakes.begin,  # type: ignore[arg-type]
            select_subprotocol=select_subprotocol,
            logger=connection_log(),
            ssl=None if self._perimeter.certificate is None else self._perimeter.certificate.context,
            open_timeout=self._settings.handshake_seconds,
            ping_interval=self._settings.ping_seconds or None,
            ping_timeout=self._settings.ping_seconds or None,
        )

    async def _drain(self, servers: list[Server]) -> None:
        """Shut down without losing an answer. The order matters:

        1. Readiness turns, and new requests are refused as `shutting_down`.
        2. No new connections; those that were accepted are greeted.
        3. Requests in flight are answered, within `drain_seconds`.
        4. What no executor has begun by then is refused, and questions that the database has not answered.
        5. Connections are closed with 1001. Who does not answer that is dropped.

        The store is closed by its owner, after this: it holds the last predictions.
        """
        self._draining = True
        self._metrics.set(Gauge.ENDING, 1.0)
        self._set_gauges()
        await self._handshakes.finish(servers)
        if self._in_flight and not self._hurried:
            self._settled = self._loop.create_future()
            await asyncio.wait([self._settled], timeout=self._settings.drain_seconds)
            if self._in_flight:
                log.warning("%d requests in flight were not waited for any longer", self._in_flight)
        self._threads.refuse_waiting()
        if self._inline is not None:
            await self._inline.stop()
        # Predictions behind them may have been made.
        self._questions.refuse()
        for server in servers:
            server.close(code=1001, reason=ShuttingDown().message)
        timers = [
            self._loop.call_later(_SILENT_SECONDS, self._drop, False),
            # The library has a time-out for those, too, but looks at it once they read again.
            self._loop.call_later(_UNREAD_SECONDS, self._drop, True),
        ]
        for server in servers:
            await server.wait_closed()
        for timer in timers:
            timer.cancel()

    def _drop(self, unread: bool) -> None:
        """Drop the clients that are left: a phone out of reach must not hold up every reload."""
        # Those that are not greeted, too: the library gives them HANDSHAKE_SECONDS.
        for connection in (*self._connections, *self._handshakes.under_way):
            if unread or not connection.transport.get_write_buffer_size():
                connection.transport.abort()

    def not_ready(self) -> str | None:
        """Why the service cannot predict; None when it can."""
        if self.failure is not None:
            return "an executor failed"
        return "shutting down" if self._draining else None

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
            connection.open(self._backends[self._chooser.next()], self._welcome)
            self._handshakes.end(connection)
            await connection.wait_closed()
        finally:
            self._connections.discard(connection)
            self._metrics.set(Gauge.CONNECTIONS, len(self._connections))
            dropped = self._threads.discard(connection)
            if self._inline is not None:
                dropped += self._inline.discard(connection)
            self._metrics.abandoned(dropped)
            self._left(dropped)
            self._questions.drop(connection)

    def _http(self, connection: ServerConnection, request: HTTPRequest) -> Response | None:
        response = http.route(request, page=self._page, not_ready=self.not_ready, metrics=self._exposition)
        return self._handshakes.admit(connection, request.headers) if response is None else response

    def _exposition(self) -> bytes:
        self._set_gauges()
        return self._metrics.exposition()

    # Requests

    def _submit(self, version: int, request: Request, overtakes: Request | None) -> None:
        if self._draining:
            raise ShuttingDown()
        request.version = version
        if self._inline is None or holds_up(request.image, request.detect != "never"):
            self._threads.submit(request, overtakes)
        else:
            self._inline.submit(request, overtakes)
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
        self.failure = exc
        self._stopped.set()

    def _look_up(
        self, lookup: Lookup, connection: Connection, user: str | None, done: Callable[[bytes], None]
    ) -> None:
        if self._draining:
            raise ShuttingDown()
        read = reader(
            lookup,
            user,
            connection.prediction_ids,
            self._versions[0].engine.card.labels,
            datetime.now(UTC),
            store_status(self._versions).pending,
        )

        def ended(reply: bytes | None) -> None:
            self._left(1)
            if reply is None:
                self._metrics.abandoned(1)
            else:
                done(reply)

        self._questions.ask(connection, read, lookup.id, ended)
        self._in_flight += 1

    def _update_gauges(self) -> None:
        self._heartbeats += 1
        self._metrics.set(Gauge.HEARTBEATS, self._heartbeats)
        # First of all: without its heartbeats a worker is taken for one that hangs, whatever fails below.
        self._gauge_timer = self._loop.call_later(_GAUGE_SECONDS, self._update_gauges)
        self._set_gauges()
        if self._perimeter.refresh():
            for connection in self._connections:
                connection.recheck()

    def _set_gauges(self) -> None:
        metrics, store = self._metrics, store_status(self._versions)
        waiting = self._threads.waiting + (0 if self._inline is None else self._inline.waiting)
        metrics.set(Gauge.QUEUE_DEPTH, waiting)
        metrics.set(Gauge.STORE_PENDING, store.pending)
        metrics.stored(store.written, store.rejected)
        metrics.set(Gauge.JOURNAL_FAILING, not store.taking)
        metrics.set(Gauge.DATABASE_FAILING, not store.writing)
        metrics.set(Gauge.READY, self.not_ready() is None)
        metrics.spent(time.process_time())
        metrics.set(Gauge.RESIDENT_BYTES, _resident_bytes())


def _resident_bytes() -> float:
    """Resident memory of this process; NaN where there is no /proc to read it from."""
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        return math.nan
