"""When the requests of an open loop are due.

* ``poisson``: at random, as from many independent clients; from the clients in turn.
* ``paced``: evenly, from the clients in turn: each client asks at its own moment of every round.
* ``burst``: all clients at the same instant, once per round.

A round is the time in which `rate` has each client ask once: a second for 1000 clients at 1000 requests per second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

import numpy as np

from benchmarks.timer import Timer

Arrivals = Literal["poisson", "paced", "burst"]

#: At least this long is between two looks at what is due, and what became due meanwhile is sent together. To be woken
#: for each request would take from the server, on whose cores the generator runs, what it measures. Latency counts from
#: when a request was due, so the wait is a part of it.
TOGETHER_S: Final = 0.25e-3

#: After so long the event loop has a turn, though more is due: replies are read, and signals heard, also where so many
#: are asked for that it never catches up.
TURN_S: Final = 20e-3

#: The last turn, which no signal waits for long: enough for what a stall of the machine has held up.
LAST_TURN_S: Final = 0.25


class OpenLoop:
    """Calls the senders when they are due, with the time they were due, from `start` to `stop`.

    `rate` is in requests per second, over all senders; times are those of `time.perf_counter`.

    What is late, because the event loop was busy, is sent as soon as it can be, each counted from when it was due.
    """

    def __init__(
        self,
        arrivals: Arrivals,
        rate: float,
        senders: Sequence[Callable[[float], None]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._rate = rate
        self._dues = dues(arrivals, rate, len(senders))
        self._next, self._client = next(self._dues)
        self._begin = 0.0
        self._senders = senders
        self._timer = Timer(loop, self._send_due)

    def start(self) -> None:
        """The first requests are due now."""
        self._begin = time.perf_counter()
        self._send_due()

    def stop(self) -> int:
        """Send what is due, for one last turn, and nothing after it; how many, about, were due and are not sent."""
        self._timer.close()
        passed = self._send(LAST_TURN_S)
        return max(0, round((passed - self._next) * self._rate))

    def close(self) -> None:
        """Send nothing more."""
        self._timer.close()

    def _send_due(self) -> None:
        passed = self._send(TURN_S)
        self._timer.arm(self._begin + max(self._next, passed + TOGETHER_S))

    def _send(self, turn: float) -> float:
        """Send what is due now, as far as so many seconds allow; what time it is, from the first."""
        now = time.perf_counter()
        passed, end = now - self._begin, now + turn
        while self._next <= passed and time.perf_counter() < end:
            self._senders[self._client](self._begin + self._next)
            self._next, self._client = next(self._dues)
        return passed


def dues(arrivals: Arrivals, rate: float, clients: int) -> Iterator[tuple[float, int]]:
    """When, in seconds from the first, and which client, without end; the same each time."""
    random = np.random.default_rng(0)
    due = 0.0
    while True:
        for client in range(clients):
            yield due, client
            if arrivals == "poisson":
                due += float(random.exponential(1 / rate))
            elif arrivals == "paced":
                due += 1 / rate
        if arrivals == "burst":
            due += clients / rate
