"""Where micro-batches are worked on: in the event loop itself, or in threads. Executors pull, see `scheduler`.

`InlineExecutor` works in the event loop, between two looks at the network: no hand-over between threads, and no
waiting for the GIL. It is what a worker process on a CPU uses; there is one such process per core.
`ThreadExecutors` work beside the event loop: for a GPU, and for images so large that decoding them inline would
hold up everyone else.

Guarantees of both:

* Every submitted request is answered exactly once, or was discarded because its client has gone. Answered
  requests are handed to `deliver`, on the event loop.
* Whatever is raised while a batch is worked on, its requests are answered and the next batch is taken. If an
  executor itself fails, what it held is answered, and what waits too when no other executor is left; then
  `on_failure` is called, for the owner to end the service.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from service.batching.costs import CostModel
from service.batching.lingering import Lingering
from service.batching.predictor import Batches, Client, Request
from service.batching.scheduler import Batch, MicroBatchQueue, share
from service.errors import DeadlineExceeded, Internal, RequestError, ShuttingDown
from service.processes.niceness import give_way

log = logging.getLogger(__name__)

Deliver = Callable[[list[Request]], None]
OnFailure = Callable[[BaseException], None]

_LATE = "the deadline passed before the image could be looked at"
_FAULT = "the service failed and starts anew; try again"


def _observe(
    cost: CostModel, queue: MicroBatchQueue[Request], requests: list[Request], behind: bool
) -> float:
    """Teach the cost model what a batch took: each its own decoding, and its share of the run. Returns the sum.

    The search that finds no face is work as any other; an image that cannot be read says nothing of those that can.
    """
    took = [
        (request.detect, request.size, request.decoded - request.started + request.model_seconds)
        for request in requests
        if request.decoded
    ]
    if cost.observe(took, behind):
        queue.reprice(lambda request: cost.predict(request.detect, request.size, True))
    return sum(seconds for _, _, seconds in took)


def _try(cost: CostModel, queue: MicroBatchQueue[Request], request: Request, now: float) -> None:
    """Let a request that only its price makes late be run now and then: it costs what any does, and may be late."""
    if queue.is_hopeless(request, now) and cost.is_tried(request.detect, request.size):
        request.deadline = None


def _refuse(requests: list[Request], error: RequestError) -> list[Request]:
    for request in requests:
        request.fail(error)
    return requests


# Nothing is read while the event loop works. So it works for about this long at a time, in seconds, and looks at the
# network in between; a request that takes longer is worked on alone.
SLICE = 0.0015

# Each look at the network costs, and leaves the caches cold. With many clients waiting a slice is this share of a
# round, in which each of them has its turn, up to the longest: whoever arrives meanwhile waits longer for those before
# it than for the slice to end. What one client alone has waiting makes no slice longer.
ROUND_SHARE = 0.5
LONGEST_SLICE = 0.008


def slice_seconds(round_seconds: float) -> float:
    """For how long to work until the next look at the network, when a round of those that wait takes so long."""
    return max(SLICE, min(LONGEST_SLICE, ROUND_SHARE * round_seconds))


# The event loop polls the network this soon after a slice, in seconds, if it polls without having slept.
_SAME_TURN = 0.0005


class InlineExecutor:
    """Works in the event loop. All methods are called on it.

    A batch is taken one turn of the loop after its first request came in: by then the loop has read whatever
    else had arrived, so that requests which came together are worked on together, at the price of no wait.

    While a slice is worked on requests arrive unread. When they are read, it is not known for how long they have
    waited; their deadlines count from the slice's beginning, so that none is answered late for want of knowing.
    """

    def __init__(
        self,
        predictor: Batches,
        *,
        max_batch: int,
        capacity: int,
        max_wait: float,
        deliver: Deliver,
        on_failure: OnFailure,
        slice_of: Callable[[float], float] = slice_seconds,
    ) -> None:
        self._predictor = predictor
        self._deliver = deliver
        self._on_failure = on_failure
        self._slice_of = slice_of
        self._max_batch = max_batch
        self._buffer = predictor.make_buffer(max_batch)
        self._queue: MicroBatchQueue[Request] = MicroBatchQueue(capacity, max_wait)
        self._cost = CostModel()
        self._loop = asyncio.get_running_loop()
        self._lingering = Lingering(self._loop.call_soon)
        self._scheduled = False
        self._stopping = False
        # When the last slice began and ended, and since when what is read now may have been there.
        self._began = self._ended = self._since = 0.0
        # How many requests the last slice left waiting.
        self._left = 0
        # What was taken and is not delivered yet.
        self._held: list[Request] = []

    @property
    def waiting(self) -> int:
        """Requests that are not being worked on yet."""
        return len(self._queue)

    def submit(self, request: Request, overtakes: Request | None = None) -> None:
        """Admit a request. One that it overtakes is not in its way: the caller withdraws it then.

        Raises:
            Overloaded: too many are waiting, or for too long.
            DeadlineExceeded: it could not be done in time.
            ShuttingDown: `stop` was called.
        """
        if self._stopping:
            raise ShuttingDown()
        request.cost = self._cost.predict(request.detect, request.size, bool(self._queue))
        now = request.received
        if not self._scheduled:
            self._lingering.asked(request.client, now)
            self._since = self._began if now - self._ended < _SAME_TURN else now
        slice_work = 0.0
        # Before what others took is taken off: whether it is late by its price alone is asked.
        _try(self._cost, self._queue, request, now)
        if request.deadline is not None:
            request.deadline -= now - self._since
            slice_work = self._slice_of(self._queue.round)
        self._queue.admit(request, now, slice_work, overtakes)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._work)

    def withdraw(self, request: Request) -> bool:
        """Take back a request, if it still waits; it is then the caller's to answer."""
        return self._queue.withdraw(request)

    def discard(self, client: Client) -> int:
        """Drop what waits for a client that has gone."""
        self._lingering.stop(client)
        return self._queue.discard(client)

    async def stop(self) -> None:
        """Refuse what still waits as `shutting_down`."""
        self._stopping = True
        self._lingering.stop()
        if left := self._queue.drain():
            self._deliver(_refuse(left, ShuttingDown()))

    def _work(self) -> None:
        try:
            self._work_on_slice()
        except Exception as exc:
            # Nothing in it is expected to raise. If it does, what waits must not hang, and nobody else would take it.
            log.critical("the executor failed", exc_info=True)
            self._stopping = True
            held, self._held = self._held, []
            self._deliver(_refuse(held + self._queue.drain(), Internal(_FAULT)))
            self._on_failure(exc)

    def _work_on_slice(self) -> None:
        began = time.perf_counter()
        came = len(self._queue) - self._left
        batch = self._queue.take(self._max_batch, began, self._slice_of(self._queue.round))
        self._held = batch.requests + batch.expired
        gone = len(self._held)
        if batch.requests:
            self._predictor.serve(batch.requests, self._buffer)
        # Scheduled again before replies are delivered: the network is looked at in between.
        self._scheduled = bool(self._queue)
        if self._scheduled:
            self._loop.call_soon(self._work)
        _refuse(batch.expired, DeadlineExceeded(_LATE))
        if batch:
            answered, self._held = self._held, []
            self._deliver(answered)
        work = _observe(self._cost, self._queue, batch.requests, self._left > 0)
        ended = time.perf_counter()
        seconds = ended - began
        if self._left:
            # With a backlog, reading belongs to what a slice takes: it delays those that wait as much as the work. But
            # where more came than went, as in a burst, what waits has been read: no more of that is still to come.
            seconds += (began - self._ended) * min(1.0, gone / max(1, came))
        self._queue.worked(batch, work, seconds)
        self._left = len(self._queue)
        self._began, self._ended, self._since = began, ended, began
        if not self._scheduled:
            self._lingering.answered(batch.requests[0].client if len(batch.requests) == 1 else None, ended)


class ThreadExecutors:
    """A fixed number of threads that share one queue. Methods are called on the event loop.

    On Linux the threads are nicer than their process by `niceness`: those beside an event loop that works inline take
    the processor when it has nothing to do.

    A batch ends with `longest` seconds of predicted work, and a request that takes longer by itself is alone: nobody
    waits for long for what others of the batch take. Where a GPU works on it whole that is no bound.

    An executor that finds the queue empty counts itself as idle and blocks on a token. Whoever admits a request
    takes one executor out of that count and puts one token: as many tokens as executors taken out, so that no
    executor is woken for nothing and none sleeps beside a request.
    """

    def __init__(
        self,
        predictor: Batches,
        *,
        count: int,
        max_batch: int,
        capacity: int,
        max_wait: float,
        deliver: Deliver,
        on_failure: OnFailure,
        niceness: int = 0,
        longest: float = LONGEST_SLICE,
    ) -> None:
        self._predictor = predictor
        self._longest = longest
        self._niceness = niceness
        self._max_batch = max_batch
        self._deliver = deliver
        self._on_failure = on_failure
        self._cost = CostModel()
        self._loop = asyncio.get_running_loop()
        # `_lock` guards the queue, the cost model, the counts of idle and living threads and the stopping flag.
        self._lock = threading.Lock()
        self._queue: MicroBatchQueue[Request] = MicroBatchQueue(capacity, max_wait, count)
        self._idle = 0
        self._alive = count
        self._stopping = False
        self._tokens: SimpleQueue[None] = SimpleQueue()
        # Answered requests on their way to the event loop; see `_hand_over`.
        self._answered: deque[list[Request]] = deque()
        self._hand_over_scheduled = False
        self._threads = [
            threading.Thread(target=self._work, name=f"executor-{number}", daemon=True)
            for number in range(count)
        ]

    @property
    def waiting(self) -> int:
        """Requests that no executor has taken yet."""
        return len(self._queue)

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request, overtakes: Request | None = None) -> None:
        """Admit a request, and wake an executor if one is idle.

        One that it overtakes is not in its way: the caller withdraws it then.

        Raises:
            Overloaded: too many are waiting, or for too long.
            DeadlineExceeded: it could not be done in time.
            ShuttingDown: `stop` was called.
        """
        with self._lock:
            if self._stopping:
                raise ShuttingDown()
            request.cost = self._cost.predict(request.detect, request.size, bool(self._queue))
            _try(self._cost, self._queue, request, request.received)
            self._queue.admit(request, request.received, overtakes=overtakes)
            if not self._idle:
                return
            self._idle -= 1
        self._tokens.put(None)

    def withdraw(self, request: Request) -> bool:
        """Take back a request, if it still waits; it is then the caller's to answer."""
        with self._lock:
            return self._queue.withdraw(request)

    def discard(self, client: Client) -> int:
        """Drop what waits for a client that has gone; what is being worked on is answered to no one."""
        with self._lock:
            return self._queue.discard(client)

    async def stop(self) -> None:
        """End the threads, once what they are at is done. Refuse what still waits as `shutting_down`."""
        self.refuse_waiting()
        for thread in self._threads:
            if thread.ident is not None:
                await asyncio.to_thread(thread.join)

    def refuse_waiting(self) -> None:
        """Admit nothing more, and answer what no thread has taken yet as `shutting_down`."""
        with self._lock:
            self._stopping = True
            left = self._queue.drain()
        for _ in self._threads:
            self._tokens.put(None)
        if left:
            self._deliver(_refuse(left, ShuttingDown()))

    def _work(self) -> None:
        """An executor's life: take, work, repeat."""
        held: list[Request] = []
        behind = False
        try:
            give_way(self._niceness)
            buffer = self._predictor.make_buffer(self._max_batch)
            while (batch := self._take()) is not None:
                began = time.perf_counter()
                held = batch.requests + batch.expired
                if batch.requests:
                    self._predictor.serve(batch.requests, buffer)
                _refuse(batch.expired, DeadlineExceeded(_LATE))
                self._hand_over(held)
                held = []
                with self._lock:
                    work = _observe(self._cost, self._queue, batch.requests, behind)
                    self._queue.worked(batch, work, time.perf_counter() - began)
                    behind = bool(self._queue)
        except BaseException as exc:
            # Nothing above is expected to raise. If it does, this thread is gone, and requests that wait for
            # it must not hang: they are answered, and the owner is told, and ends the service.
            log.critical("an executor ended", exc_info=True)
            with self._lock:
                self._alive -= 1
                if not self._alive:
                    self._stopping = True
                    held = held + self._queue.drain()
            self._hand_over(_refuse(held, Internal(_FAULT)))
            self._loop.call_soon_threadsafe(self._on_failure, exc)
            raise

    def _take(self) -> Batch[Request] | None:
        """Block until there is work; None to end."""
        while True:
            with self._lock:
                if self._stopping:
                    return None
                if waiting := len(self._queue):
                    limit = share(waiting, self._idle + 1, self._max_batch)
                    return self._queue.take(limit, time.perf_counter(), self._longest)
                self._idle += 1
            self._tokens.get()

    def _hand_over(self, requests: list[Request]) -> None:
        """Give answered requests to the event loop: one wake-up for whatever is answered by the time it runs.

        The flag is cleared there before the queue is emptied, so that what is appended after that schedules a
        wake-up of its own.
        """
        self._answered.append(requests)
        if not self._hand_over_scheduled:
            self._hand_over_scheduled = True
            self._loop.call_soon_threadsafe(self._receive)

    def _receive(self) -> None:
        self._hand_over_scheduled = False
        while self._answered:
            self._deliver(self._answered.popleft())
