"""The micro-batching scheduler: which requests an executor takes next. No threads, no sockets, no clock.

Executors pull. A batch is made when an executor is free and asks for one (`MicroBatchQueue.take`), of what has
arrived by then: an idle service adds no wait, and a busy one batches by itself, because requests pile up while
its executors work. There is no timer and no maximum wait.

Requests wait in a queue per client, and batches are filled from the clients in turn, so that one that
pipelines a thousand requests delays another's single one by at most one place in the round.

Time is whatever the caller's clock says, in seconds; the queue only compares it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from service.errors import Overloaded


class Waiting(Protocol):
    """What the queue needs to know of a request."""

    @property
    def client(self) -> Hashable:
        """Whose turn it takes."""
        ...

    @property
    def deadline(self) -> float | None:
        """The clock's time after which it must not be run."""
        ...


R = TypeVar("R", bound=Waiting)


@dataclass(frozen=True, slots=True)
class Batch(Generic[R]):
    """What an executor takes: requests to run, and those that must be answered without being run."""

    requests: list[R]
    expired: list[R]

    def __bool__(self) -> bool:
        return bool(self.requests or self.expired)


class MicroBatchQueue(Generic[R]):
    """Holds admitted requests until an executor takes them.

    Every admitted request leaves exactly once: in a batch's `requests` or `expired`, or through `withdraw`,
    `discard` or `drain`. Not thread-safe: the caller holds a lock.

    Args:
        capacity: requests that may wait; one more is refused.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._size = 0
        # Each client with waiting requests is in `_turns` exactly once, and has a non-empty queue.
        self._turns: deque[Hashable] = deque()
        self._queues: dict[Hashable, deque[R]] = {}

    def __len__(self) -> int:
        return self._size

    def admit(self, request: R, retry_after_ms: int) -> None:
        """Let a request wait for its turn.

        Raises:
            Overloaded: the queue is full; `retry_after_ms` is passed on to the client.
        """
        if self._size >= self.capacity:
            raise Overloaded(f"{self._size} requests are waiting already; try again later", retry_after_ms)
        queue = self._queues.get(request.client)
        if queue is None:
            queue = self._queues[request.client] = deque()
            self._turns.append(request.client)
        queue.append(request)
        self._size += 1

    def take(self, limit: int, now: float) -> Batch[R]:
        """Take up to `limit` requests to run, one per client and turn, oldest first within a client.

        Requests whose deadline is before `now` are taken out too, beside the limit: they cost nothing to run.
        """
        requests: list[R] = []
        expired: list[R] = []
        turns, queues = self._turns, self._queues
        while turns and len(requests) < limit:
            client = turns.popleft()
            queue = queues[client]
            request = queue.popleft()
            if queue:
                turns.append(client)
            else:
                del queues[client]
            if request.deadline is not None and request.deadline < now:
                expired.append(request)
            else:
                requests.append(request)
        self._size -= len(requests) + len(expired)
        return Batch(requests, expired)

    def withdraw(self, request: R) -> bool:
        """Take out one request, if it still waits."""
        queue = self._queues.get(request.client)
        if queue is None or request not in queue:
            return False
        queue.remove(request)
        self._size -= 1
        if not queue:
            del self._queues[request.client]
            self._turns.remove(request.client)
        return True

    def discard(self, client: Hashable) -> int:
        """Forget the requests of a client that has gone. Returns how many there were."""
        queue = self._queues.pop(client, None)
        if queue is None:
            return 0
        self._turns.remove(client)
        self._size -= len(queue)
        return len(queue)

    def drain(self) -> list[R]:
        """Take everything out, in no particular order of clients."""
        left = [request for queue in self._queues.values() for request in queue]
        self._queues.clear()
        self._turns.clear()
        self._size = 0
        return left


def share(waiting: int, free_executors: int, max_batch: int) -> int:
    """How many of the waiting requests one executor takes, so that the other free ones get theirs.

    Args:
        waiting: requests in the queue, at least 1.
        free_executors: executors that wait for work, the one that asks included.
        max_batch: the largest batch that pays, from calibration.
    """
    return min(max_batch, -(-waiting // free_executors))
