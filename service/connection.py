"""One client's connection: its frames become requests, and its replies go out in order.

Messages are handled where the library parses them, not through its queue and a task that is woken for each. Replies
are written from `settle`, on the event loop, as results come in; a reply that is ready waits for those before it.

Flow control: a client that has `max_in_flight` requests unanswered, or that does not read its replies, is not read
from until it has caught up.
"""

from __future__ import annotations

import codecs
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import Event, State

from service import protocol
from service.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RequestError,
    ShuttingDown,
    Superseded,
)
from service.faces.tracking import FaceTracker
from service.lookups import History, Lookup, Stats
from service.predictor import Request
from service.protocol import Configure, FrameError, Options, Predict, Query
from service.store.prediction_ids import PredictionIds

_DEFAULT_OPTIONS = Options()
_UTF8Decoder = codecs.getincrementaldecoder("utf-8")
_TEXT_FIN = 0x80 | Opcode.TEXT

# Questions about stored predictions that one connection may have unanswered: one client cannot keep others from asking.
MAX_LOOKUPS = 4
_RETRY_AFTER_MS = 100


@dataclass(slots=True, eq=False)
class _Reply:
    """The place of a reply that is no prediction's among those that are. None until it is known."""

    reply: bytes | None = None
    in_order: bool = True


@dataclass(frozen=True, slots=True)
class Backend:
    """What a connection needs of the service that it belongs to.

    `submit` admits a request for prediction, or raises `Overloaded`, `DeadlineExceeded` or `ShuttingDown`;
    `withdraw` takes one back that still waits; `answer` is the reply to a query; `look_up` starts to read what is
    stored, and later calls its last argument with the reply, or raises `InvalidRequest`, `Overloaded` or
    `ShuttingDown`; `on_error` is told the code of each
    error that is replied from here; `options` are those that a connection starts with.
    """

    submit: Callable[[Request], None]
    withdraw: Callable[[Request], bool]
    answer: Callable[[Query], bytes]
    look_up: Callable[[Lookup, Connection, Callable[[bytes], None]], None]
    on_error: Callable[[str], None]
    max_in_flight: int
    options: Options


class Connection(ServerConnection):
    """Serves one client, from `open` to the close."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.address: str | None = None
        # Who the client is; None for anybody.
        self.user: str | None = None
        self.prediction_ids = PredictionIds()
        self._backend: Backend | None = None
        self._options = _DEFAULT_OPTIONS
        # What is to be answered in order, and how many requests may be answered in any order.
        self._outstanding: deque[Request | _Reply] = deque()
        self._unordered = 0
        self._lookups = 0
        # The newest frame of a stream, which may wait still.
        self._newest: Request | None = None
        self._tracker: FaceTracker | None = None
        # Complete messages that came in one read with those that filled the room.
        self._unread: deque[str | bytes] = deque()
        self._fragments: bytearray | None = None
        self._text_check: codecs.IncrementalDecoder | None = None
        self._reading_paused = False
        # Whoever accepted the connection is told when it is gone, see `accept`.
        self.on_lost: Callable[[], None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone, whether or not it became a WebSocket."""
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def open(self, backend: Backend, welcome: bytes) -> None:
        """Greet, and serve from here on. To be called right after the opening handshake."""
        self._options = backend.options
        peer = self.remote_address
        self.address = peer[0] if isinstance(peer, tuple) else None
        self._backend = backend
        self._write(welcome)

    # Messages

    def process_event(self, event: Event) -> None:
        """Take a frame from the library's parser."""
        if self._backend is None or not isinstance(event, Frame):
            super().process_event(event)
            return
        opcode = event.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            if event.fin:
                self._message(event.data, text=opcode is Opcode.TEXT)
            else:
                # The library bounds the sum of the fragments by its maximum message size.
                self._fragments = bytearray()
                self._text_check = _UTF8Decoder() if opcode is Opcode.TEXT else None
                self._fragment(event.data)
        elif opcode is Opcode.CONT:
            assert self._fragments is not None, "the library admits a continuation only after a beginning"
            self._fragment(event.data)
            if event.fin and self.protocol.state is State.OPEN:
                data, self._fragments = bytes(self._fragments), None
                self._message(data, text=self._text_check is not None)
        else:
            super().process_event(event)

    def _fragment(self, data: bytes | bytearray | memoryview) -> None:
        """Keep a part of a message. Text that can be no UTF-8 any longer is not waited for to its end."""
        assert self._fragments is not None
        self._fragments += data
        if self._text_check is not None:
            try:
                self._text_check.decode(data)
            except UnicodeDecodeError as exc:
                self._fail_text(exc)

    def _fail_text(self, exc: UnicodeDecodeError) -> None:
        self.protocol.fail(CloseCode.INVALID_DATA, f"{exc.reason} at position {exc.start}")
        self.send_data()

    def _message(self, data: bytes | bytearray | memoryview, *, text: bool) -> None:
        message: str | bytes
        if text:
            try:
                message = str(data, "utf-8")
            except UnicodeDecodeError as exc:
                self._fail_text(exc)
                return
        else:
            message = bytes(data)
        if self._reading_paused:
            self._unread.append(message)
            return
        self._receive(message)
        if self._is_full():
            self._reading_paused = True
            if not self.transport.is_closing():
                self.transport.pause_reading()

    def _receive(self, message: str | bytes) -> None:
        assert self._backend is not None
        received = time.perf_counter()
        try:
            parsed = protocol.parse_frame(message)
        except FrameError as exc:
            self._refuse(exc.error, exc.id)
        else:
            match parsed:
                case Predict():
                    self._predict(parsed, received)
                case Query():
                    self._reply(self._backend.answer(parsed))
                case Configure():
                    self._configure(parsed)
                case History() | Stats():
                    self._look_up(parsed)

    def _look_up(self, lookup: Lookup) -> None:
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
            self._backend.look_up(lookup, self, answered)
        except (InvalidRequest, Overloaded, ShuttingDown) as exc:
            self._refuse(exc, lookup.id)
            return
        self._lookups += 1
        if place.in_order:
            self._outstanding.append(place)
        else:
            self._unordered += 1

    def _configure(self, configure: Configure) -> None:
        try:
            self._options = self._options.changed(configure.changes)
        except RequestError as exc:
            self._refuse(exc, configure.id)
        else:
            self._reply(protocol.configuration_reply(self._options, configure.id))

    def _predict(self, predict: Predict, received: float) -> None:
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
            user=self.user,
        )
        if options.ordered or predict.id is None:
            self._outstanding.append(request)
        else:
            request.in_order = False
            self._unordered += 1
        if options.stream:
            if self._tracker is None:
                self._tracker = FaceTracker()
            request.tracker = self._tracker
            request.smoothing = None if options.smoothing_ms is None else options.smoothing_ms / 1000
            overtaken, self._newest = self._newest, request
            if overtaken is not None and self._backend.withdraw(overtaken):
                self._answer_here(overtaken, Superseded("a newer frame took this one's place"))
        try:
            self._backend.submit(request)
        except (Overloaded, DeadlineExceeded, ShuttingDown) as exc:
            self._answer_here(request, exc)

    def _answer_here(self, request: Request, error: RequestError) -> None:
        assert self._backend is not None
        self._backend.on_error(error.code)
        request.fail(error)
        self._send(request)

    def _refuse(self, error: RequestError, request_id: protocol.RequestId) -> None:
        assert self._backend is not None
        self._backend.on_error(error.code)
        self._reply(protocol.error_reply(error, request_id))

    # Replies

    def settle(self, request: Request | _Reply) -> None:
        """A request of this connection has been answered: send what that makes ready."""
        self._send(request)
        if self._reading_paused:
            self._resume()

    def _send(self, request: Request | _Reply) -> None:
        """Send a reply: at once, or in its place, with those behind it that had waited for it."""
        if request.in_order:
            outstanding = self._outstanding
            while outstanding and (reply := outstanding[0].reply) is not None:
                outstanding.popleft()
                self._write(reply)
        else:
            assert request.reply is not None
            self._unordered -= 1
            self._write(request.reply)

    def _reply(self, reply: bytes) -> None:
        if self._outstanding:
            self._outstanding.append(_Reply(reply))
        else:
            self._write(reply)

    def _write(self, reply: bytes) -> None:
        """Write one text frame; nothing if the connection is closing.

        The frame is put together here, without the library's frame object and buffer: unfragmented, unmasked (RFC
        6455, section 5.1) and without extensions, since none are negotiated.
        """
        if self.protocol.state is not State.OPEN:
            return
        size = len(reply)
        if size < 126:
            head = struct.pack("!BB", _TEXT_FIN, size)
        elif size < 65536:
            head = struct.pack("!BBH", _TEXT_FIN, 126, size)
        else:
            head = struct.pack("!BBQ", _TEXT_FIN, 127, size)
        self.transport.write(head + reply)

    # Flow control

    def _is_full(self) -> bool:
        assert self._backend is not None
        return self.paused or len(self._outstanding) + self._unordered >= self._backend.max_in_flight

    def _resume(self) -> None:
        """Go on with what had been read already, then with the network, as far as there is room."""
        while not self._is_full():
            if not self._unread:
                self._reading_paused = False
                if not self.transport.is_closing():
                    self.transport.resume_reading()
                return
            self._receive(self._unread.popleft())

    def resume_writing(self) -> None:
        """The client has read enough of its replies."""
        super().resume_writing()
        if self._reading_paused:
            self._resume()
