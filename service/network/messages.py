"""From a connection's bytes to its whole messages, with a time-out. Pings, pongs and closes are the library's."""

from __future__ import annotations

import asyncio
import codecs
import math
import sys
import time
from abc import abstractmethod
from typing import Any

from websockets.frames import CloseCode
from websockets.protocol import State

from service.images import ImageFile
from service.network.frames import (
    Breach,
    IncomingFrame,
    LargeMessage,
    begin_frame,
    control_frames,
    whole_messages,
)
from service.network.opening import OpeningConnection

# uvloop reads one socket up to 32 times in a row: megabytes, and tens of milliseconds in which nobody else is served.
# So a client is read so many bytes at a turn of the event loop. Reads that are so small that 32 of them are no more
# need not be counted.
_BYTES_PER_TURN = 512 * 1024
_SMALL_READ = _BYTES_PER_TURN // 32

# Small frames are thousands in one read, and take seconds in reads that come in a row. What is left after so many
# seconds waits for the next turn. The clock is looked at after so many messages, after so many control frames, for
# which the library takes ten times as long, and after each fragment.
_SECONDS_PER_TURN = 0.001
_MESSAGES_AT_ONCE = 64
_CONTROL_FRAMES_AT_ONCE = 24

# So many short fragments a message may have before they count as small frames: where a program writes it in parts, a
# few of them are short.
_SHORT_FRAGMENTS = 16

# Seconds for the peer of a connection that is closed to end it too.
_END_SECONDS = 10.0

_UTF8Decoder = codecs.getincrementaldecoder("utf-8")


class MessageConnection(OpeningConnection):
    """Hands over each message where it was read, not through the library's queue and a task that is woken for each."""

    # Beside the library's attributes, which have a dictionary: with ours in it each connection would have keys of its
    # own there, which take 1 KB, where now all share them.
    __slots__ = (
        "_begun",
        "_bytes_this_turn",
        "_fragments",
        "_frame",
        "_heard",
        "_incomplete_since",
        "_max_size",
        "_message_seconds",
        "_message_timer",
        "_short_fragments",
        "_text_check",
        "_turn_is_due",
        "_waiting",
        "reading_paused",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Seconds that a message may take to come in; None before the opening handshake is done.
        self._message_seconds: float | None = None
        self._max_size = 0
        # The beginning of a frame that is not read before there is more of it: a part of a head, or of a control frame.
        self._begun = b""
        # The frame whose payload is coming in.
        self._frame: IncomingFrame | None = None
        self._bytes_this_turn = 0
        # What came in one read and is for later turns of the event loop.
        self._waiting = b""
        self._turn_is_due = False
        # What the fragments of a message had so far; None between messages.
        self._fragments: bytearray | None = None
        self._short_fragments = 0
        self._text_check: codecs.IncrementalDecoder | None = None
        # When a message began to come in that is not complete.
        self._incomplete_since = math.inf
        self._message_timer: asyncio.TimerHandle | None = None
        # Whether anything came since the last look, see `keepalive`.
        self._heard = False
        # Whether the client is not read from, until it has caught up.
        self.reading_paused = False

    @abstractmethod
    def message_received(self, message: str | ImageFile, size: int) -> None:
        """Take a whole message: str of a text frame, bytes of a binary one. It had `size` bytes."""

    @abstractmethod
    def small_frames_received(self, count: int, size: int) -> None:
        """Account for so many frames that are no message, with `size` bytes that belong to none."""

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
        self._frame = self._fragments = None
        self._waiting = b""
        if self._message_timer is not None:
            self._message_timer.cancel()

    def eof_received(self) -> None:
        """The peer sends nothing more. What it has not read is still sent, but not waited for as long as it likes."""
        super().eof_received()
        self._end()

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
        if self.protocol.eof_sent:
            return  # behind a close there is nothing
        if self._begun:
            data, self._begun = self._begun + data, b""
        # Not the loop's time, which stands still within a turn.
        until = time.monotonic() + _SECONDS_PER_TURN
        size = len(data)
        position = self._take_part(data, 0)
        while (
            position < size
            and not (self.reading_paused or self.protocol.eof_sent)
            and time.monotonic() < until
        ):
            position = self._take_part(data, position)
        if self.protocol.eof_sent:
            self._end()
            return
        if position > _SMALL_READ:
            self._let_others_go_first(position)
        if position < size and not self.transport.is_closing():
            self._waiting = data[position:]
            self.transport.pause_reading()
            self._take_soon()
        if self._frame is None and self._fragments is None and not self._begun:
            self._incomplete_since = math.inf
        elif self._incomplete_since == math.inf:
            self._incomplete_since = self.loop.time()
            if self._message_timer is None:
                self._message_timer = self.loop.call_later(self._message_seconds, self._check_message)

    def _end(self) -> None:
        """The connection is closed: what came of a message is let go, and the peer has so long to end it too.

        The library would look at that time only when it pings, which may be never.
        """
        self._frame = self._fragments = None
        if self._message_timer is not None:
            self._message_timer.cancel()
        self._message_timer = self.loop.call_later(_END_SECONDS, self.transport.abort)

    def _take_part(self, data: bytes, position: int) -> int:
        """Take some of what came, from `position` on. Returns where the rest begins.

        Also while the connection is being closed: the peer's close is among the frames.
        """
        if self._frame is not None:
            return self._take_payload(self._frame, data, position)
        if self._fragments is None:
            messages, position = whole_messages(data, position, self._max_size, _MESSAGES_AT_ONCE)
            for text, message in messages:
                self._message(message, text=text)
            if messages:
                return position
        return self._take_other(data, position)

    def _take_other(self, data: bytes, position: int) -> int:
        """Take what is no whole message: control frames, or a frame's beginning. Returns where the rest begins."""
        if position == len(data):
            return position
        count, end = control_frames(data, position, _CONTROL_FRAMES_AT_ONCE)
        if count:
            self.small_frames_received(count, end - position)
            super().data_received(data[position:end])
            return end
        fragments = self._fragments
        room = self._max_size if fragments is None else self._max_size - len(fragments)
        try:
            frame = begin_frame(data, position, room, continued=fragments is not None)
        except Breach as exc:
            self._fail(exc.code, str(exc))
            return len(data)
        if frame is None:
            self._begun = data[position:]
            return len(data)
        self._frame = frame
        if fragments is None and not isinstance(frame, LargeMessage):
            self._fragments = bytearray()
            self._short_fragments = 0
            self._text_check = _UTF8Decoder() if frame.text else None
        return self._take_payload(frame, data, frame.start)

    def _take_payload(self, frame: IncomingFrame, data: bytes, position: int) -> int:
        """Take what there is of a frame's payload. Returns where the rest begins."""
        part = frame.take(data, position)
        if not frame.left:
            self._frame = None
        if not isinstance(frame, LargeMessage):
            self._take_fragment(frame, part)
        elif not frame.left:
            self._message(frame.payload, text=frame.text)
        return position + len(part)

    def _take_fragment(self, frame: IncomingFrame, part: bytes) -> None:
        """Keep a part of a message. Text that can be no UTF-8 any longer is not waited for to its end."""
        assert self._fragments is not None
        self._fragments += part
        if self._text_check is not None:
            try:
                self._text_check.decode(part)
            except UnicodeDecodeError as exc:
                self._fail_text(exc)
                return
        if frame.left:
            return
        if frame.is_final:
            data, self._fragments = self._fragments, None
            # Neither is copied once more: it may be all that a message may have.
            if self._text_check is None:
                self._message(memoryview(data), text=False)
            else:
                self._message(data, text=True)
        elif frame.is_short:
            self._short_fragments += 1
            if self._short_fragments > _SHORT_FRAGMENTS:
                self.small_frames_received(1, 0)

    def _take_soon(self) -> None:
        """Take more of what waits in the next turn. Once: twice there were two turns' worth in each from then on."""
        if not self._turn_is_due:
            self._turn_is_due = True
            self.loop.call_soon(self._take_waiting)

    def _take_waiting(self) -> None:
        """Take more of what waits, unless it is for when the client has caught up, or nobody can be answered.

        The end of a TLS connection comes though it is not to read, and behind it the library's parser takes nothing.
        """
        self._turn_is_due = False
        if self._waiting and not (self.reading_paused or self.transport.is_closing()):
            data, self._waiting = self._waiting, b""
            self._take(data)
            self._read_on()

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
            self._take_soon()
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

    def _fail(self, code: CloseCode, reason: str) -> None:
        self.protocol.fail(code, reason)
        super().data_received(b"")  # the library sends that

    def _fail_text(self, exc: UnicodeDecodeError) -> None:
        self._fail(CloseCode.INVALID_DATA, f"{exc.reason} at position {exc.start}")

    def _message(self, data: bytes | bytearray | memoryview, *, text: bool) -> None:
        if self.protocol.state is not State.OPEN:
            return
        self._incomplete_since = math.inf  # what may have come of the next one is seen when all is read
        message: str | ImageFile
        if text:
            try:
                message = str(data, "utf-8")
            except UnicodeDecodeError as exc:
                self._fail_text(exc)
                return
        else:
            assert not isinstance(data, bytearray)
            message = data
        self.message_received(message, len(data))
