"""The clients of a load, and the count of what they are answered."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from benchmarks.wire import Connection
from benchmarks.workload import Request


@dataclass(slots=True)
class Tally:
    """Counts replies while `measuring`. While `ending` it notes how late those are to what was in flight.

    `latencies` are of successes, of which `right` had the right answer, `in_time` by the deadline.
    """

    deadline: float
    measuring: bool = False
    ending: bool = False
    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    right: int = 0
    in_time: int = 0
    last_of_due: dict[float, float] = field(default_factory=dict)

    def count(self, reply: dict[str, Any] | None, expected: str | None, due: float, seconds: float) -> bool:
        """Look at one reply, in which this emotion is expected, or any; true for a success that counts."""
        if not self.measuring and not self.ending:
            return False
        if reply is None or (reply["status"] == "success" and "emotion_name" not in reply):
            self.errors["unreadable"] += 1
            return False
        if reply["status"] != "success":
            self.errors[str(reply.get("code", "?"))] += 1
            return False
        right = expected is None or reply["emotion_name"] == expected
        self.wrong += not right
        if self.ending:
            self.late.append(seconds)
            return False
        self.right += right
        self.in_time += right and seconds <= self.deadline
        self.latencies.append(seconds)
        self.last_of_due[due] = seconds
        return True

    def fail(self, code: str, requests: int = 1) -> None:
        """So many requests have no reply, or a message came that is none."""
        if requests and (self.measuring or self.ending):
            self.errors[code] += requests


class Client:
    """One connection and its requests in flight with their times, oldest first: replies come in order."""

    def __init__(self, requests: Iterator[Request], tally: Tally, resend: bool) -> None:
        self._requests = requests
        self._tally = tally
        self._resend = resend
        self._finished: asyncio.Event | None = None
        self._sent: deque[tuple[float, Request]] = deque()
        self.lost = False
        self.succeeded = 0
        self.wire: Connection

    @property
    def waiting(self) -> int:
        """Requests that have no reply yet."""
        return len(self._sent)

    def send(self, due: float) -> None:
        """Send the next request, which was due at this time. Without a connection it is an error at once."""
        if self.lost:
            self._tally.fail("connection_lost")
            return
        request = next(self._requests)
        self._sent.append((due, request))
        self.wire.send(request.frame)

    def on_reply(self, payload: bytes) -> None:
        """Count a reply; in a closed loop, ask again. What answers nothing is an error, and takes no reply's place."""
        now = time.perf_counter()
        reply = _read(payload)
        if not self._sent or (reply is not None and "status" not in reply):
            self._tally.fail("unasked")
            return
        due, request = self._sent.popleft()
        self.succeeded += self._tally.count(reply, request.expected_emotion, due, now - due)
        if self._resend:
            self.send(time.perf_counter())
        elif self._finished is not None and not self._sent:
            self._finished.set()

    async def finish(self) -> None:
        """Ask no more, and wait until all is answered, or the connection lost."""
        self._resend = False
        if self._sent:
            self._finished = asyncio.Event()
            await self._finished.wait()

    def on_lost(self) -> None:
        """Every request in flight is an error of its own kind."""
        # Also where nothing was asked just then, while it is measured.
        self._tally.fail("connection_lost", max(1, self.waiting) if self._tally.measuring else self.waiting)
        self._sent.clear()
        self._resend, self.lost = False, True
        if self._finished is not None:
            self._finished.set()


def _read(payload: bytes) -> dict[str, Any] | None:
    """The JSON object of a message; None where it is none."""
    try:
        reply = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    return reply if isinstance(reply, dict) else None
