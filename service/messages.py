"""From a connection's bytes to its whole messages, by `frames` or by the library's parser, and with a time-out."""

from __future__ import annotations

import asyncio
import codecs
import math
import sys
import time
from abc import abstractmethod
from typing import Any

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import Event, State

from service.frames import LargeMessage, begin_large_message, whole_messages, wire_size
from service.images import ImageFile
from service.opening import OpeningConnection

# uvloop reads one socket up to 32 times in a row: megabytes, and tens of milliseconds in which nobody else is served. A
# large message is read so many bytes at a turn of the event loop.
_BYTES_PER_TURN = 512 * 1024

# Small messages, and frames of a few bytes that the library reads, are thousands in one read, and take seconds in reads
# that come in a row. What is left after so many seconds waits for the next turn. The clock is looked at after so many
# messages, or so many bytes for the library.
_SECONDS_PER_TURN = 0.001
_MESSAGES_AT_ONCE = 256
_PARSED_AT_ONCE = 8192

_UTF8Decoder = codecs.getincrementaldecoder("utf-8")


class MessageConnection(OpeningConnection):
    """Hands over each message where it was read, not through the library's queue and a task that is woken for each."""

    # Beside the library's attributes, which have a dictionary: with ours in it each connection would have keys of its
    # own there, which take 1 KB, where now all share them.
    __slots__ = (
        "_bytes_this_turn",
        "_fragments",
        "_heard",
        "_incomplete_since",
        "_large",
        "_max_size",
        "_message_seconds",
        "_message_timer",
        "_text_check",
        "_unparsed",
        "_waiting",
        "reading_paused",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Seconds that a message may take to come in; None before the opening handshake is done.
        self._message_seconds: float | None = None
        self._max_size = 0
        # Bytes that were given to the library's parser and have not come back as frames: at 0 a frame begins.
        self._unparsed = 0
        self._large: LargeMessage | None = None
        self._bytes_this_turn = 0
        # What came in one read and is for later turns of the event loop.
        self._waiting = b""
        self._fragments: bytearray | None = None
        self._text_check: codecs.IncrementalDecoder | None = None
        # When a message began to come in that is not complete.
        self._incomplete_since = math.inf
        self._message_timer: asyncio.TimerHandle | None = None
        # Whether anything came since the last look, see `keepalive`.
        self._heard = False
        # Whether the client is not read from, until it has caught up.
        self.reading_paused = False

    @abstractmethod
    def message_received(self, message: str | ImageFile) -> None:
        """Take a whole message: str of a text frame, bytes of a binary one."""

    @abstractmethod
    def message_timed_out(self) -> None:
        """A message has not come to its end in the time that it may take."""

    def take_messages(self, message_seconds: float) -> None:
        """Hand over messages from here on, those that came with the handshake now."""
        self._message_seconds = message_seconds
        self._max_size = self.protocol.max_message_size or sys.maxsize
        # The library keeps the handshake as long as the connection. Nobody asks for it again, and it is some 2 KB.
        for message in (self.request, self.response):
            if message is not None:
                message.headers.clear()
        if behind := self.take_behind():
            self.data_received(behind)

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone, whether or not it became a WebSocket."""
        super().connection_lost(exc)
        # What a message has of memory must not wait for the collector: a connection refers to itself.
        self._large = self._fragments = None
        self._waiting = b""
        if self._message_timer is not None:
            self._message_timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Take bytes from the network, and notice when they end amid a message."""
        if self._message_seconds is None:
            self.opening_received(data)
            return
        self._heard = True
        if self._waiting:
            self._waiting += data  # TLS may have more, though it is not to read
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        """Take what came, as far as it does not hold up others; the rest waits."""
        assert self._message_seconds is not None
        # Not the loop's time, which stands still within a turn.
        until = time.monotonic() + _SECONDS_PER_TURN
        rest = self._take_part(data)
        while rest and not self.reading_paused and time.monotonic() < until:
            rest = self._take_part(rest)
        if rest and not self.transport.is_closing():
            self._waiting = rest
            self.transport.pause_reading()
            self.loop.call_soon(self._take_waiting)
        if self._large is None and self._fragments is None and not self.protocol.reader.buffer:
            self._incomplete_since = math.inf
        elif self._incomplete_since == math.inf:
            self._incomplete_since = self.loop.time()
            if self._message_timer is None:
                self._message_timer = self.loop.call_later(self._message_seconds, self._check_message)

    def _take_part(self, data: bytes) -> bytes:
        """Take some of what came. Returns the rest."""
        position, for_library = self._read_messages(data)
        if for_library and position < len(data):
            part = data[position : position + _PARSED_AT_ONCE]
            position += len(part)
            self._unparsed += len(part)
            super().data_received(part)
        return data[position:]

    def _take_waiting(self) -> None:
        """Take more of what waits, unless it is for when the client has caught up, or nobody can be answered.

        The end of a TLS connection comes though it is not to read, and behind it the library's parser takes nothing.
        """
        if self._waiting and not (self.reading_paused or self.transport.is_closing()):
            data, self._waiting = self._waiting, b""
            self._take(data)
            self._read_on()

    def _read_messages(self, data: bytes) -> tuple[int, bool]:
        """Take the messages that the library need not see, up to a number.

        Returns:
            Where what is left of `data` begins, and whether it is the library's.
        """
        position = 0
        if self._large is not None:
            # Also while the connection is being closed: the library must not take its middle for a frame's beginning.
            position = self._large.take(data)
            self._let_others_go_first(position)
            if not self._large.done:
                return position, False
            large, self._large = self._large, None
            if self.protocol.state is State.OPEN:
                self._message(large.payload, text=large.text)
        if self._unparsed or self._fragments is not None or self.protocol.state is not State.OPEN:
            return position, True
        messages, position = whole_messages(data, position, self._max_size, _MESSAGES_AT_ONCE)
        for text, message in messages:
            if self.protocol.state is not State.OPEN:
                return position, True  # the peer's close may follow, which the library waits for
            self._message(message, text=text)
        if len(messages) == _MESSAGES_AT_ONCE:
            return position, False
        if position < len(data):
            self._large = begin_large_message(data, position, self._max_size)
        return (position, True) if self._large is None else (len(data), True)

    def pause_reading(self) -> None:
        """Read nothing from the network until `resume_reading`. Of what was read already, messages may still come."""
        self.reading_paused = True
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self.reading_paused = False
        self._heard = True  # what came meanwhile is read only now
        if self._waiting:
            self.loop.call_soon(self._take_waiting)
        else:
            self._read_on()

    def _read_on(self) -> None:
        """Read from the network, if nothing is against it."""
        if not (self.reading_paused or self._waiting or self.transport.is_closing()):
            self.transport.resume_reading()

    async def keepalive(self) -> None:
        """Ping at intervals, and close the connection of a peer that neither answers nor sends anything else.

        In place of the library's, which wants the answer: a peer cannot give it amid a frame, and a large image takes
        minutes on a slow network. `_check_message` bounds those.
        """
        assert self.ping_interval is not None
        while True:
            await asyncio.sleep(self.ping_interval)
            pong = asyncio.ensure_future(await self.ping())
            while not pong.done():
                self._heard = False
                await asyncio.wait([pong], timeout=self.ping_timeout)
                if not (pong.done() or self._heard or self.reading_paused):
                    async with self.send_context():  # until the connection is gone, and this task with it
                        self.protocol.fail(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")

    def _let_others_go_first(self, taken: int) -> None:
        if not self._bytes_this_turn:
            self.loop.call_soon(self._next_turn)
        self._bytes_this_turn += taken
        if self._bytes_this_turn >= _BYTES_PER_TURN and not self.transport.is_closing():
            self.transport.pause_reading()

    def _next_turn(self) -> None:
        self._bytes_this_turn = 0
        self._read_on()

    def _check_message(self) -> None:
        """The timer outlives the message that it was set for: one per message would cost more than it watches for."""
        assert self._message_seconds is not None
        self._message_timer = None
        if self._incomplete_since == math.inf:
            return
        if self.reading_paused:
            self._incomplete_since = self.loop.time()  # it is we who do not read
        remaining = self._incomplete_since + self._message_seconds - self.loop.time()
        if remaining <= 0:
            self.message_timed_out()
        else:
            self._message_timer = self.loop.call_later(remaining, self._check_message)

    def process_event(self, event: Event) -> None:
        """Take a frame from the library's parser."""
        if self._message_seconds is None or not isinstance(event, Frame):
            super().process_event(event)
            return
        self._unparsed -= wire_size(event)
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
        self._incomplete_since = math.inf  # what may have come of the next one is seen when all is read
        message: str | ImageFile
        if text:
            try:
                message = str(data, "utf-8")
            except UnicodeDecodeError as exc:
                self._fail_text(exc)
                return
        else:
            message = data if isinstance(data, bytes | memoryview) else bytes(data)
        self.message_received(message)
