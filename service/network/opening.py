"""A connection from its first bytes to the answer to its request, which is for a WebSocket or plain HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import HeaderLineTooLong, InvalidMessage, SecurityError

from service.network import http

_END = b"\r\n\r\n"

# Bytes that a request may have. The library keeps up to 1 MB of one that does not come to its end, of each client.
_LARGEST_REQUEST = 32 * 1024


class OpeningConnection(ServerConnection):
    """Shows the library the request alone until it is answered, and answers what the library would only hang up on.

    Behind a request may come the end of the stream, from a client that has no more to say; another request; or messages
    of a client that does not wait for the handshake. The library takes whatever comes for frames of a WebSocket, and
    of one that is none yet it keeps no messages and answers no request.
    """

    __slots__ = ("_behind", "_held_up", "_request_size", "on_settled")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What came in one read with the request, behind it.
        self._behind = b""
        # Whether nothing is read, because the request is not answered yet.
        self._held_up = False
        # Bytes of the request that have come.
        self._request_size = 0
        # Whoever accepted the connection is told when it is greeted, or gone before, see `newcomers`.
        self.on_settled: Callable[[], None] | None = None

    def opening_received(self, data: bytes) -> None:
        """Take bytes from the network, until the handshake is done."""
        if not self._request_size and data.startswith(b"\r\n"):  # an empty line is ignored (RFC 9112, 2.2)
            self._request_size = 2
            data = data[2:]
        # Nearly always all of the request comes in one read, and nothing behind it. Otherwise line by line: it ends
        # with one. A read that begins with a line's end may be its end.
        _, end, behind = data.partition(_END)
        whole = end and not behind and data[0] not in b"\r\n"
        while data and self.request is None and self.protocol.handshake_exc is None:
            size = len(data) if whole else data.find(b"\n") + 1 or len(data)
            self._request_size += size
            if self._request_size > _LARGEST_REQUEST:
                # Where the library waits for more of it, and then answers as it does of one line that is too long.
                self.protocol.parser.throw(HeaderLineTooLong(f"read more than {_LARGEST_REQUEST} bytes"))
            super().data_received(data[:size])
            data = data[size:]
        if self.request is None or self.protocol.eof_sent:
            return  # more of it is to come, or all is answered that will be
        self._behind += data
        if self.response is None and not self.transport.is_closing():
            self._held_up = True
            self.transport.pause_reading()

    def take_behind(self) -> bytes:
        """What came behind the request of a WebSocket that is open now."""
        behind, self._behind = self._behind, b""
        self._request_size = 0  # a number of its own would stay with each connection
        return behind

    def send_data(self) -> None:
        """Send what is due, and read on once that is the answer to the request."""
        refused = self.protocol.handshake_exc
        # Not at the end of the stream: whoever is gone reads no answer.
        if self.response is None and not self.protocol.reader.eof:
            if isinstance(refused, InvalidMessage):
                reason = refused.__cause__
                self.response = http.refuse(reason and (reason.__cause__ or reason))
                self.transport.write(self.response.serialize())
            elif isinstance(refused, SecurityError):
                # The library's own answer speaks of a WebSocket, which the client may not have asked for.
                self.response = http.refuse_size(refused)
                self.protocol.writes[0] = self.response.serialize()
        super().send_data()
        if self._held_up and self.response is not None:
            self._held_up = False
            if not self.transport.is_closing():
                self.transport.resume_reading()
