"""When the requests of an open loop are due.

* ``poisson``: at random, as from many independent clients; from the clients in turn.
* ``paced``: evenly, from the clients in turn: each client asks at its own moment of every round.
* ``burst``: all clients at the same instant, once per round.

A round is the time in which `rate` has each client ask once: a second for 1000 clients at 1000 requests per second.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

Arrivals = Literal["poisson", "paced", "burst"]


def send_at(
    arrivals: Arrivals,
    rate: float,
    senders: Sequence[Callable[[float], None]],
    loop: asyncio.AbstractEventLoop,
    stop: threading.Event,
) -> None:
    """Have senders called on the event loop when they are due, with the time they were due, until `stop`.

    To be run in a thread, since event loops sleep in whole milliseconds. A late wake-up sends all that has become
    due, each counted from when it was due.
    """

    def burst(due: float) -> None:
        for send in senders:
            send(due)

    random = np.random.default_rng(0)
    due = time.perf_counter()
    turn = 0
    while not stop.is_set():
        now = time.perf_counter()
        if due > now:
            # In short sleeps, so that a long pause between bursts does not outlive the load.
            time.sleep(min(due - now, 0.1))
            continue
        if arrivals == "burst":
            loop.call_soon_threadsafe(burst, due)
            due += len(senders) / rate
            continue
        loop.call_soon_threadsafe(senders[turn], due)
        turn = (turn + 1) % len(senders)
        due += float(random.exponential(1 / rate)) if arrivals == "poisson" else 1 / rate
