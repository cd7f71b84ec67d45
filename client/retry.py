"""When to try again: exponential backoff with full jitter."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how soon to try again, for lost connections and for refused requests.

    The pause before retry n (from 0) is uniform between 0 and ``min(max_delay, first_delay * 2**n)``: "full
    jitter" of Marc Brooker's *Exponential Backoff and Jitter* (AWS Architecture Blog, 2015), which spreads a
    crowd of clients best when a server comes back.

    Args:
        attempts: tries in all, at least 1. ``Retry(attempts=1)`` never tries again.
        first_delay: upper bound of the first pause, in seconds.
        max_delay: upper bound of every pause, in seconds.
    """

    attempts: int = 10
    first_delay: float = 0.1
    max_delay: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is at least 1, not {self.attempts}")
        if not 0 <= self.first_delay <= self.max_delay:
            raise ValueError(f"0 <= first_delay <= max_delay, not {self.first_delay} and {self.max_delay}")

    def delay(self, retry: int, at_least: float | None = None) -> float:
        """Seconds to wait before retry number `retry` (from 0).

        `at_least` is the server's own ``retry_after``: the jitter is then added to it, so that the clients
        that were refused together do not come back together.
        """
        # 2**63 seconds is past any max_delay: a larger exponent would overflow the float instead.
        ceiling = min(self.max_delay, self.first_delay * 2.0 ** min(retry, 63))
        return (at_least or 0.0) + random.uniform(0, ceiling)
