"""The micro-batching scheduler: which requests an executor takes next. No threads, no sockets, no clock.

Executors pull. A batch is made when an executor is free and asks for one (`MicroBatchQueue.take`), of what has
arrived by then: an idle service adds no wait, and a busy one batches by itself, because requests pile up while
its executors work. There is no timer, and nothing waits for a batch to fill.

Who is next: the highest priority first, but for one place in `_LOW_SHARE`, which goes to those below it, by the same
rule, so that none is ever starved. Within a priority clients take turns by deficit round robin (Shreedhar and Varghese
1995): a client may take as much predicted work per round as any other, so neither one that pipelines a thousand
requests nor one that sends huge images delays another's small single one by more than a round.

Who is admitted: a request whose predicted wait is within bounds and within its deadline. It waits for its turn, not for
all that waits: of other clients' work counts as much as they take until then, and what has a lower priority is
overtaken, and hardly counts. Times are whatever the caller's clock says, in seconds; the queue only compares them.
Predictions are in seconds of an executor's work; how many seconds of the clock these take is observed
(`MicroBatchQueue.worked`), since an executor also reads, writes and waits for the processor.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from service.errors import DeadlineExceeded, Overloaded

HIGH, NORMAL, LOW = 1, 0, -1

# One request in so many is taken from the priorities below the highest that waits.
_LOW_SHARE = 8

# Predicted work, in seconds, that a client may take per round: about that of one small image, so that clients which
# send these alternate one by one.
_QUANTUM = 0.0005

# A wait is at times so much longer than was predicted. Who waits that long and is late then took others' time.
_CAUTION = 1.05


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

    @property
    def priority(self) -> int:
        """`HIGH`, `NORMAL` or `LOW`."""
        ...

    # The work that it is predicted to take, in seconds of one executor.
    cost: float


R = TypeVar("R", bound=Waiting)


@dataclass(frozen=True, slots=True)
class Batch(Generic[R]):
    """What an executor takes: requests to run, and those that must be answered without being run."""

    requests: list[R]
    expired: list[R]

    def __bool__(self) -> bool:
        return bool(self.requests or self.expired)


class _Level(Generic[R]):
    """The waiting requests of one priority: a queue per client, served by deficit round robin."""

    def __init__(self) -> None:
        # How many wait, and their predicted seconds.
        self.size = 0
        self.work = 0.0
        # Each client with waiting requests is in `turns` exactly once, and has a non-empty queue.
        self.turns: deque[Hashable] = deque()
        self.queues: dict[Hashable, deque[R]] = {}
        self._deficits: dict[Hashable, float] = {}

    def append(self, request: R) -> None:
        queue = self.queues.get(request.client)
        if queue is None:
            queue = self.queues[request.client] = deque()
            self.turns.append(request.client)
            self._deficits[request.client] = 0.0
        queue.append(request)

    def next(self) -> R:
        """Whose turn it is. There must be one; it stays where it is, and is the next still when this is asked again."""
        turns = self.turns
        while True:
            client = turns[0]
            request = self.queues[client][0]
            # A client alone owes nothing to others, and the rounds until it may go are not spun through.
            if len(turns) == 1 or self._deficits[client] >= request.cost:
                return request
            self._deficits[client] += _QUANTUM
            if self._deficits[client] >= request.cost:
                return request
            turns.rotate(-1)

    def pop(self) -> None:
        """Take out what `next` has just found."""
        turns = self.turns
        client = turns[0]
        queue = self.queues[client]
        request = queue.popleft()
        if not queue:
            self.forget(client)
        elif len(turns) > 1:
            self._deficits[client] -= request.cost
            if self._deficits[client] < queue[0].cost:
                turns.rotate(-1)

    def work_before(self, request: R) -> float:
        """Predicted seconds of what is taken before a request that comes now."""
        queue = self.queues.get(request.client, ())
        own = sum(each.cost for each in queue)
        # In each round until it may go the others take a quantum at most, on average.
        rounds = math.ceil((own + request.cost) / _QUANTUM)
        others = len(self.turns) - bool(queue)
        return own + min(self.work - own, others * rounds * _QUANTUM)

    def forget(self, client: Hashable) -> deque[R]:
        """Take out a client with what it has waiting. Its deficit goes too: idleness earns no credit."""
        self.turns.remove(client)
        del self._deficits[client]
        return self.queues.pop(client)


class MicroBatchQueue(Generic[R]):
    """Holds admitted requests until an executor takes them.

    Every admitted request leaves exactly once: in a batch's `requests` or `expired`, or through `withdraw`,
    `discard` or `drain`. Not thread-safe: the caller holds a lock.

    Args:
        capacity: requests that may wait, those of a lower priority not counted; one more is refused.
        max_wait: seconds of predicted wait; a request that would wait longer is refused.
        executors: how many work off the queue at the same time.
    """

    # The pace is averaged over so many seconds of predicted work. One batch counts for no more than half of it, and for
    # no more than `_FAR` times what was believed: what is slower than that was held up. What is as much faster counts
    # for half: whatever slowed those before it has ended, and few are run to tell while the others are refused for it.
    _PACE_SECONDS = 0.05
    _FAR = 4.0

    def __init__(self, capacity: int, max_wait: float, executors: int = 1) -> None:
        self._capacity = capacity
        self._max_wait = max_wait
        self._executors = executors
        self._size = 0
        self._work = 0.0
        # Work that was taken and is not done, and seconds of the clock that a second of work takes.
        self._running = 0.0
        self._pace = 1.0
        # Work of those that were sent away, as far as there was no time for it since, and when the last of them was.
        self._sent_away = 0.0
        self._sent_at = 0.0
        self._levels: dict[int, _Level[R]] = {priority: _Level() for priority in (HIGH, NORMAL, LOW)}
        self._taken = 0

    def __len__(self) -> int:
        return self._size

    @property
    def round(self) -> float:
        """Seconds of work, predicted, until a client that had nothing waiting has its turn: one request of each."""
        clients = sum(len(level.turns) for level in self._levels.values())
        return self._work * clients / self._size if self._size else 0.0

    def predicted_wait(self, request: R | None = None) -> float:
        """Seconds until all that waits is begun, or one request that comes now; half of what runs is taken for done."""
        before = self._work
        if request is not None:
            above = sum(level.work for its, level in self._levels.items() if its > request.priority)
            level = self._levels[request.priority]
            below = self._work - above - level.work
            before = above + level.work_before(request)
            # What is below it has its share of the places before it.
            before += min(before / (_LOW_SHARE - 1), below)
        return (before + self._running / 2) / self._executors * self._pace

    def admit(self, request: R, now: float, slice_work: float = 0.0, overtakes: R | None = None) -> None:
        """Let a request wait for its turn.

        Args:
            request: it waits from here on.
            now: the clock's time.
            slice_work: predicted seconds of work whose replies go out together; its own waits for them.
            overtakes: one that will be withdrawn if this one is let in, and so is not in its way.

        Raises:
            Overloaded: the queue is full, or the wait would be too long; says when there will be room.
            DeadlineExceeded: it would not be done before its deadline.
        """
        if overtakes is not None and self._waits(overtakes):
            level, cost = self._levels[overtakes.priority], overtakes.cost
            self._left(level, overtakes)
            overtakes.cost = 0.0
            try:
                self.admit(request, now, slice_work)
            finally:
                overtakes.cost = cost
                self._came(level, overtakes)
            return
        wait = self.predicted_wait()
        is_full = False
        if self._size >= self._capacity:
            # What has a lower priority is overtaken: it takes no room from this one, and it is not waited for.
            counted, lower_work = self._size, 0.0
            for its, level in self._levels.items():
                if its < request.priority:
                    counted -= level.size
                    lower_work += level.work
            is_full = counted >= self._capacity
        if is_full:
            wait -= lower_work / self._executors * self._pace
        # What is in its own way is less than all that waits, and takes longer to tell: only where that decides.
        elif wait > self._max_wait or self._is_late(request, now, wait, slice_work):
            wait = self.predicted_wait(request)
        if is_full or wait > self._max_wait:
            retry_after_ms = max(1, round(self._send_away(request, now, wait) * 1000))
            raise Overloaded(f"{self._size} requests are waiting already; try again later", retry_after_ms)
        if self._is_late(request, now, wait, slice_work):
            raise DeadlineExceeded("the deadline is sooner than the image could be looked at")
        level = self._levels[request.priority]
        level.append(request)
        self._came(level, request)

    def _send_away(self, request: R, now: float, wait: float) -> float:
        """Seconds until there will be room for a request, after those that were sent away before it.

        By half of its wait half of what is in the way will be gone. Of what was sent away no more counts than takes
        twice the wait: who comes again at once, whatever it is told, must not send the others away for long.
        """
        per_work = self._pace / self._executors
        most = 2 * wait / per_work
        ahead = min(max(0.0, self._sent_away - (now - self._sent_at) / per_work), most)
        self._sent_away = min(ahead + request.cost, most)
        self._sent_at = now
        return wait / 2 + ahead * per_work

    def _is_late(self, request: R, now: float, wait: float, slice_work: float) -> bool:
        """Whether a request that waits so long would not be done before its deadline."""
        # A high priority goes first, in a batch that ends with its deadline: it is given the benefit of the doubt.
        if request.deadline is None or request.priority == HIGH:
            return False
        together = max(request.cost, min(slice_work, self._work + request.cost))
        return now + _CAUTION * wait + together * self._pace > request.deadline

    def is_hopeless(self, request: R, now: float) -> bool:
        """Whether a request would be late with nothing in its way, though its deadline has not passed yet."""
        deadline = request.deadline
        return deadline is not None and now < deadline < now + request.cost * self._pace

    def take(self, limit: int, now: float, budget: float = math.inf) -> Batch[R]:
        """Take up to `limit` requests to run, at least one, until they make up `budget` seconds of predicted work.

        One that is more than that by itself is alone. Replies go out when all of the batch is done: it ends before a
        request with which it would not be done by the earliest deadline in it. Requests that would be late
        nevertheless are taken out too, beside the limit: they cost nothing to run. The caller tells with `worked` when
        what it took is done.
        """
        requests: list[R] = []
        expired: list[R] = []
        work, earliest = 0.0, math.inf
        while self._size and len(requests) < limit and work < budget:
            level = self._next_level()
            request = level.next()
            done = now + (work + request.cost) * self._pace
            deadline = request.deadline
            is_late = deadline is not None and deadline < done
            if requests and not is_late and (done > earliest or request.cost > budget):
                break
            level.pop()
            self._left(level, request)
            self._taken += 1
            if is_late:
                expired.append(request)
                continue
            if deadline is not None:
                earliest = min(earliest, deadline)
            requests.append(request)
            work += request.cost
        self._running += work
        return Batch(requests, expired)

    def worked(self, batch: Batch[R], work: float, seconds: float) -> None:
        """A batch that was taken is done.

        Args:
            batch: what `take` returned.
            work: seconds that its requests took, by the measure that `costs.CostModel` predicts.
            seconds: how long the executor was busy with it, replies and all.
        """
        self._running -= sum(request.cost for request in batch.requests)
        if work > 0:
            pace = seconds / work
            weight = 0.5 if pace * self._FAR < self._pace else min(0.5, work / self._PACE_SECONDS)
            self._pace += weight * (min(pace, self._FAR * self._pace) - self._pace)

    def reprice(self, cost_of: Callable[[R], float]) -> None:
        """Predict anew what each request that waits takes.

        Else those that came before it was known would go first, at the price that they were admitted for.
        """
        for level in self._levels.values():
            for queue in level.queues.values():
                for request in queue:
                    request.cost = cost_of(request)
            level.work = sum(request.cost for queue in level.queues.values() for request in queue)
        self._work = sum(level.work for level in self._levels.values())

    def withdraw(self, request: R) -> bool:
        """Take out one request, if it still waits."""
        if not self._waits(request):
            return False
        level = self._levels[request.priority]
        queue = level.queues[request.client]
        queue.remove(request)
        if not queue:
            level.forget(request.client)
        self._left(level, request)
        return True

    def discard(self, client: Hashable) -> int:
        """Forget the requests of a client that has gone. Returns how many there were."""
        count = 0
        for level in self._levels.values():
            if client in level.queues:
                for request in level.forget(client):
                    self._left(level, request)
                    count += 1
        return count

    def drain(self) -> list[R]:
        """Take everything out, in no particular order of clients."""
        left: list[R] = []
        for level in self._levels.values():
            for client in list(level.turns):
                for request in level.forget(client):
                    self._left(level, request)
                    left.append(request)
        return left

    def _next_level(self) -> _Level[R]:
        """The highest priority that waits; every so often the next, and every so often in its place the last."""
        taken = self._taken + 1
        for level in self._levels.values():
            if level.turns:
                chosen = level
                if taken % _LOW_SHARE:
                    break
                taken //= _LOW_SHARE
        return chosen

    def _waits(self, request: R) -> bool:
        return request in self._levels[request.priority].queues.get(request.client, ())

    def _came(self, level: _Level[R], request: R) -> None:
        level.size += 1
        level.work += request.cost
        self._size += 1
        self._work += request.cost

    def _left(self, level: _Level[R], request: R) -> None:
        self._size -= 1
        level.size -= 1
        # Exactly zero when empty: sums of floats drift.
        level.work = max(0.0, level.work - request.cost) if level.size else 0.0
        self._work = max(0.0, self._work - request.cost) if self._size else 0.0


def share(waiting: int, free_executors: int, max_batch: int) -> int:
    """How many of the waiting requests one executor takes, so that the other free ones get theirs.

    Args:
        waiting: requests in the queue, at least 1.
        free_executors: executors that wait for work, the one that asks included.
        max_batch: the largest batch that pays, from calibration.
    """
    return min(max_batch, -(-waiting // free_executors))
