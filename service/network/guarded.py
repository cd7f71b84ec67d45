"""A connection that is watched: who the client is, how much it asks for, and the close of one that oversteps."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

from websockets.frames import CloseCode
from websockets.protocol import State

from service.network.backend import Backend
from service.network.messages import MessageConnection
from service.security.guard import PATIENCE, Guard
from service.security.identity import Identity

# Seconds for a peer that is closed to read why and to close its end.
_LAST_WORDS_SECONDS = 2.0


class GuardedConnection(MessageConnection):
    """Closes a client that shows no credential in time, floods, or whose messages do not come to their end."""

    __slots__ = ("_backend", "_credential_timer", "_guard")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # None where nobody asks who the client is, or how much it asks for.
        self._guard: Guard | None = None
        self._backend: Backend | None = None
        self._credential_timer: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone, whether or not it became a WebSocket."""
        super().connection_lost(exc)
        if self._credential_timer is not None:
            self._credential_timer.cancel()

    def watch(self, backend: Backend, identity: Identity | None) -> None:
        """Let the service's rules hold from here on. `identity` is who the handshake showed."""
        self._backend = backend
        rules = backend.rules
        if rules.ask_anything:
            self._guard = Guard(rules, identity, time.perf_counter())
            if rules.required:
                self._credential_timer = self.loop.call_later(PATIENCE, self._check_credential)

    def recheck(self) -> None:
        """The credentials that are known have changed."""
        if self._guard is not None:
            before = self._guard.holds_until
            self._guard.recheck()
            # Who held none has no more time for it, however often others get theirs.
            lost = self._guard.holds_until != before
            if lost and self._backend is not None and self._backend.rules.required:
                if self._credential_timer is not None:
                    self._credential_timer.cancel()
                self._credential_timer = self.loop.call_later(PATIENCE, self._check_credential)

    def _check_credential(self) -> None:
        """Where a credential is required, one must have been shown, and must not have expired for long."""
        assert self._guard is not None
        remaining = self._guard.holds_until + PATIENCE - time.time()
        if remaining <= 0:
            self._close("no_credential", "no token or API key that holds")
        elif remaining < math.inf:
            # In steps of an hour: the time of day may be set.
            self._credential_timer = self.loop.call_later(min(remaining, 3600), self._check_credential)

    def _close(self, reason: str, text: str, *, abort: bool = False) -> None:
        """Close with 1008. `abort` drops the TCP connection at once: the peer would not read the close anyway."""
        assert self._backend is not None
        if self.protocol.state is State.OPEN:
            self._backend.on_closed(reason)
            self.protocol.fail(CloseCode.POLICY_VIOLATION, text)
            self.send_data()
        if abort:
            self.transport.abort()
        else:
            self.loop.call_later(_LAST_WORDS_SECONDS, self.transport.abort)

    def small_frames_received(self, count: int, size: int) -> None:
        """Pings, pongs and the like have come. Whoever sends far more of them than anything needs is closed."""
        guard = self._guard
        if guard is not None and not guard.allows_frames(count, size, time.perf_counter()):
            self._close("small_frames", "too many small frames")

    def message_timed_out(self) -> None:
        """A message has not come to its end."""
        assert self._backend is not None
        seconds = self._backend.rules.message_seconds
        self._close("slow_writer", f"a message did not come to its end within {seconds:g} s")
