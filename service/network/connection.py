"""One client's connection: its frames become requests, and its replies go out in order.

Messages are handled where they are read (`messages`). Replies are written from `settle`, on the event loop, as results
come in; a reply that is ready waits for those before it.

Flow control: a client that has `max_in_flight` requests or `MAX_UNANSWERED_BYTES` unanswered, or that does not read its
replies, is not read from until it has caught up.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from websockets.protocol import State

from service.batching.predictor import Request
from service.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RateLimited,
    RequestError,
    ShuttingDown,
    Superseded,
    Unauthorized,
)
from service.faces.tracking import FaceTracker
from service.images import ImageFile
from service.network.backend import Backend
from service.network.frames import text_frame
from service.network.guarded import GuardedConnection
from service.protocol import replies
from service.protocol import requests as protocol
from service.protocol.requests import Configure, FrameError, Lookup, Options, Predict, Query, RequestId
from service.security.gate import Visitor
from service.store.prediction_ids import PredictionIds

_DEFAULT_OPTIONS = Options()

# Bytes of one connection's images that may be unanswered: large ones are read as fast as they are worked on, and not in
# order to be refused.
MAX_UNANSWERED_BYTES = 4 * 2**20

# Questions about stored predictions that one connection may have unanswered: one client cannot keep others from asking.
MAX_LOOKUPS = 4
_RETRY_AFTER_MS = 100


@dataclass(slots=True, eq=False)
class _Reply:
    """The place of a reply that is no prediction's among those that are. None until it is known.

    `size` is that of the image, which there is none of.
    """

    reply: bytes | None = None
    size: int = 0
    in_order: bool = True


class Connection(GuardedConnection):
    """Serves one client, from `open` to the close."""

    __slots__ = (
        "_lookups",
        "_newest",
        "_options",
        "_outstanding",
        "_send_timer",
        "_tracker",
        "_unanswered_bytes",
        "_unordered",
        "_unread",
        "address",
        "on_left",
        "on_lost",
        "on_made",
        "prediction_ids",
        "visitor",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.address: str | None = None
        self.prediction_ids = PredictionIds()
        # Who came through the gate, see `handshakes`.
        self.visitor: Visitor | None = None
        self._options = _DEFAULT_OPTIONS
        # What is to be answered in order, and how many requests may be answered in any order. A deque is made where
        # there is something to put in: most connections are idle, and an empty one has 0.8 KB.
        self._outstanding: deque[Request | _Reply] | tuple[()] = ()
        self._unordered = 0
        self._unanswered_bytes = 0
        self._lookups = 0
        # The newest frame of a stream, which may wait still.
        self._newest: Request | None = None
        self._tracker: FaceTracker | None = None
        # Complete messages, and their bytes, that came in one read with those that filled the room.
        self._unread: deque[tuple[str | ImageFile, int]] | tuple[()] = ()
        # What watches for what does not end.
        self._send_timer: asyncio.TimerHandle | None = None
        # Whoever made it is told when it is connected, TLS included, see `handshakes`.
        self.on_made: Callable[[], None] | None = None
        # Whoever accepted the connection is told when it is gone, see `accept`.
        self.on_lost: Callable[[], None] | None = None
        # Whoever let the visitor in, likewise.
        self.on_left: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The TCP connection is there, and TLS on it where it is used."""
        super().connection_made(transport)
        if self.on_made is not None:
            self.on_made()

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone, whether or not it became a WebSocket."""
        super().connection_lost(exc)
        self._unread = ()  # nor this, which may be megabytes, for the collector
        if self._send_timer is not None:
            self._send_timer.cancel()
        if self.on_lost is not None:
            self.on_lost()
        if self.on_left is not None:
            self.on_left()

    def open(self, backend: Backend, welcome: bytes) -> None:
        """Greet, and serve from here on. To be called right after the opening handshake, with `visitor` set."""
        assert self.visitor is not None
        self._options = backend.options
        self.address = self.visitor.address
        self.watch(backend, self.visitor.identity)
        self._write(welcome)
        self.take_messages(backend.rules.message_seconds)

    # Messages

    def message_received(self, message: str | ImageFile, size: int) -> None:
        """Serve a message, or keep it for when there is room."""
        if self.reading_paused:
            if not isinstance(self._unread, deque):
                self._unread = deque()
            self._unread.append((message, size))
            return
        self._receive(message, size)
        if self._is_full():
            self.pause_reading()

    def _receive(self, message: str | ImageFile, size: int) -> None:
        assert self._backend is not None
        received = time.perf_counter()
        guard = self._guard
        try:
            parsed = protocol.parse_frame(message)
        except FrameError as exc:
            # Garbage counts as a request too.
            self._refuse(exc.error if guard is None else guard.charged(exc.error, size, received), exc.id)
        else:
            user = None
            if guard is not None:
                try:
                    guard.charge(size, received)
                    user = guard.user_of(parsed, time.time())
                except (RateLimited, Unauthorized) as exc:
                    self._refuse(exc, parsed.id)
                    if guard.is_guessing:
                        self._close("guessing", "too many wrong credentials")
                    return
            match parsed:
                case Predict():
                    self._predict(parsed, received, user)
                case Query():
                    bare = guard is not None and guard.came_bare(parsed)
                    self._reply(self._backend.answer(parsed, not bare), parsed.id)
                case Configure():
                    self._configure(parsed, user)
                case protocol.History() | protocol.Stats():
                    self._look_up(parsed, user)

    def _look_up(self, lookup: Lookup, user: str | None) -> None:
        assert self._backend is not None
        if self._lookups == MAX_LOOKUPS:
            error = Overloaded(f"{MAX_LOOKUPS} questions of this connection are unanswered", _RETRY_AFTER_MS)
            self._refuse(error, lookup.id)
            return
        place = _Reply(in_order=self._options.ordered or lookup.id is None)

        def answered(reply: bytes) -> None:
            self._lookups -= 1
            place.reply = reply
            self.settle(place)

        try:
            self._backend.look_up(lookup, self, user, answered)
        except (InvalidRequest, Overloaded, ShuttingDown) as exc:
            self._refuse(exc, lookup.id)
            return
        self._lookups += 1
        self._queue(place)

    def _configure(self, configure: Configure, user: str | None) -> None:
        options = self._options.changed(configure.changes)
        # Before they hold: its own reply keeps its place.
        self._reply(replies.configuration_reply(options, configure.id, user), configure.id)
        self._options = options

    def _predict(self, predict: Predict, received: float, user: str | None) -> None:
        assert self._backend is not None
        options = self._options
        deadline_ms = options.deadline_ms if predict.deadline_ms is None else predict.deadline_ms
        deadline = None if deadline_ms is None else received + deadline_ms / 1000
        request = Request(
            self,
            predict.id,
            predict.image,
            received,
            deadline,
            predict.priority,
            predict.detect or options.detect,
            predict.max_faces or options.max_faces,
            user=user,
        )
        self._unanswered_bytes += request.size
        request.in_order = options.ordered or predict.id is None
        self._queue(request)
        if options.stream:
            if self._tracker is None:
                self._tracker = FaceTracker()
            request.tracker = self._tracker
            request.smoothing = None if options.smoothing_ms is None else options.smoothing_ms / 1000
        overtaken = self._newest if options.stream else None
        try:
            self._backend.submit(request, overtaken)
        except (Overloaded, DeadlineExceeded, ShuttingDown) as exc:
            self._answer_here(request, exc)
            return
        if options.stream:
            # Only now: a client keeps its turn while a frame of its waits. Else one whose frames come faster than its
            # turns would go to the end of the line with each, and never be served; and a frame that is refused
            # overtakes none.
            self._newest = request
            if overtaken is not None and self._backend.withdraw(overtaken):
                self._answer_here(overtaken, Superseded("a newer frame took this one's place"))

    def _answer_here(self, request: Request, error: RequestError) -> None:
        assert self._backend is not None
        self._backend.on_error(error.code)
        request.fail(error)
        self._send(request)

    def _refuse(self, error: RequestError, request_id: RequestId) -> None:
        assert self._backend is not None
        self._backend.on_error(error.code)
        self._reply(replies.error_reply(error, request_id), request_id)

    # Replies

    def _queue(self, request: Request | _Reply) -> None:
        """Count it among what is unanswered; if it is answered in order, behind all that is."""
        if not request.in_order:
            self._unordered += 1
            return
        if not isinstance(self._outstanding, deque):
            self._outstanding = deque()
        self._outstanding.append(request)

    def settle(self, request: Request | _Reply) -> None:
        """A request of this connection has been answered: send what that makes ready."""
        self._send(request)
        if self.reading_paused:
            self._resume()

    def _send(self, request: Request | _Reply) -> None:
        """Send a reply: at once, or in its place, with those behind it that had waited for it."""
        self._unanswered_bytes -= request.size
        if request.in_order:
            outstanding = self._outstanding
            while outstanding and (reply := outstanding[0].reply) is not None:
                outstanding.popleft()
                self._write(reply)
        else:
            assert request.reply is not None
            self._unordered -= 1
            self._write(request.reply)

    def _reply(self, reply: bytes, request_id: RequestId) -> None:
        """Send what is ready as soon as its request is read: at once, or behind what is answered in order."""
        if self._outstanding and (self._options.ordered or request_id is None):
            self._queue(_Reply(reply))
        else:
            self._write(reply)

    def _write(self, reply: bytes) -> None:
        """Write one text frame; nothing if the connection is closing, which TLS knows first, and logs of each write."""
        if self.protocol.state is State.OPEN and not self.transport.is_closing():
            self.transport.write(text_frame(reply))

    # Flow control

    def _is_full(self) -> bool:
        assert self._backend is not None
        return (
            self.paused
            or len(self._outstanding) + self._unordered >= self._backend.max_in_flight
            or self._unanswered_bytes >= MAX_UNANSWERED_BYTES
        )

    def _resume(self) -> None:
        """Go on with what had been read already, then with the network, as far as there is room."""
        while not self._is_full():
            if not self._unread:
                self.resume_reading()
                return
            self._receive(*self._unread.popleft())

    def pause_writing(self) -> None:
        """The client does not read its replies as fast as they come: it has so long to catch up."""
        super().pause_writing()
        if self._backend is not None:
            self.pause_reading()  # pings would be answered still
            self._send_timer = self.loop.call_later(self._backend.rules.send_seconds, self._give_up_sending)

    def _give_up_sending(self) -> None:
        self._close("slow_reader", "replies were not read", abort=True)

    def resume_writing(self) -> None:
        """The client has read enough of its replies."""
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None
        if self.reading_paused:
            self._resume()
