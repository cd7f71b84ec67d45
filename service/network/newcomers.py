"""Connections that are accepted and not greeted yet: so many at most, and the oldest make room for others.

Until it has sent all of its request, nothing limits a client by its address or by the number of connections, see
`security.gate`. Whoever connects and says nothing would keep others out, for whom no files are left, and the store from
its own. A client that means it shakes hands in a few round trips, and is not among the oldest for long.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

from service.telemetry.logs import Seldom

log = logging.getLogger(__name__)

# Seconds for which nobody is dropped: a client that is near has shaken hands by then.
_UNTOUCHED_SECONDS = 0.1

# How many are dropped in one go: one by one, clients that wait behind many would wait for seconds.
_AT_ONCE = 16


class Newcomers:
    """Those of one worker, TLS handshakes included.

    Args:
        most: how many there may be.
        on_dropped: told of each that is dropped.
    """

    def __init__(self, most: int, on_dropped: Callable[[], None]) -> None:
        self._most = most
        self._on_dropped = on_dropped
        # When each was accepted, the oldest first.
        self._arrivals: OrderedDict[socket.socket, float] = OrderedDict()
        self._told = Seldom()

    @property
    def are_full(self) -> bool:
        """Whether there are as many as there may be."""
        return len(self._arrivals) >= self._most

    def arrived(self, connection: socket.socket) -> None:
        """A connection was accepted."""
        self._arrivals[connection] = time.monotonic()

    def settled(self, connection: socket.socket) -> None:
        """It was greeted, or it is gone."""
        self._arrivals.pop(connection, None)

    def make_room(self) -> bool:
        """Drop some of the oldest. Returns whether there is anybody who makes room, now or soon.

        Their files are closed by the event loop, which hears of the end: soon, and not at once.
        """
        if not self._arrivals:
            return False
        now = time.monotonic()
        for _ in range(_AT_ONCE):
            oldest = next(iter(self._arrivals), None)
            if oldest is None or now - self._arrivals[oldest] < _UNTOUCHED_SECONDS:
                break
            self._drop(oldest, now)
        return True

    def _drop(self, connection: socket.socket, now: float) -> None:
        if self._told.is_due(now):
            log.warning(
                "%d clients are connected and have not shaken hands, and there is no room for more of them: the oldest "
                "are dropped",
                len(self._arrivals),
            )
        del self._arrivals[connection]
        with suppress(OSError):  # it is gone already
            connection.shutdown(socket.SHUT_RDWR)
        self._on_dropped()
