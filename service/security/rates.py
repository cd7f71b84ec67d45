"""Token buckets. They know no clock: the time is passed in, in seconds of a clock that does not go back."""

from __future__ import annotations


class TokenBucket:
    """Allows `rate` units a second, and a second's worth at once, or `at_once`.

    What is taken may be more than there is, as long as there is something: the rest is owed. So a message that is
    larger than the bucket passes once, and what comes after it waits.
    """

    __slots__ = ("_level", "_rate", "_size", "_updated")

    def __init__(self, rate: float, now: float, at_once: float = 0.0) -> None:
        self._rate = rate
        self._size = at_once or max(rate, 1.0)
        self._level = self._size
        self._updated = now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; 0 if it may be now."""
        self._level = min(self._size, self._level + (now - self._updated) * self._rate)
        self._updated = now
        return max(0.0, (min(amount, 1.0) - self._level) / self._rate)

    def take(self, amount: float) -> None:
        """Take it, when there is nothing to wait for."""
        self._level -= amount

    def owe(self, amount: float, now: float) -> None:
        """Take it, whatever there is."""
        self.wait(0.0, now)  # which is a bucketful at most, however long ago it was looked at
        self.take(amount)
