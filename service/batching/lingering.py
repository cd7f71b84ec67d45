"""Staying awake for a client that asks again as soon as it is answered.

A core that falls asleep between a reply and the next request is woken late: it costs a client alone some 13 % of its
time (docs/architecture.md). So while one client asks, is answered and asks again, the event loop polls the network for
a moment after each reply, where it would have slept. It yields the core to whoever wants it, and among other clients'
requests it does not poll at all: there it would only take time from them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from service.batching.predictor import Client

# For how long, in seconds: some half of what a request takes.
LINGER = 0.0003


class Lingering:
    """Told of requests and replies by an executor that works in the event loop; times are `time.perf_counter`'s."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        # Who was answered last, by itself and with nothing left waiting; and until when it asks again "at once".
        self._client: Client | None = None
        self._until = 0.0
        self._prompt = False
        self._polling = False

    def asked(self, client: Client, now: float) -> None:
        """A request was read while none waited."""
        self._prompt = client is self._client and now < self._until
        self._polling = False

    def answered(self, client: Client | None, now: float) -> None:
        """A batch was answered and none waits: the `client`'s, or several clients' (None)."""
        self._client, self._until = client, now + LINGER
        if self._prompt and client is not None:
            self._polling = True
            self._call_soon(self._poll)

    def stop(self, client: Client | None = None) -> None:
        """Wait for none any more, or not for a client that has gone."""
        if client is None or client is self._client:
            self._client, self._polling = None, False

    def _poll(self) -> None:
        # With something to call in its next turn the loop looks at the network without sleeping.
        if self._polling and time.perf_counter() < self._until:
            _yield_core()
            self._call_soon(self._poll)


def _yield_core() -> None:
    if sys.platform == "win32":
        time.sleep(0)  # elsewhere that sleeps, if not for long
    else:
        os.sched_yield()
