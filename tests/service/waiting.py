"""Requests as the scheduler's queue sees them."""

from __future__ import annotations

from dataclasses import dataclass

from service.batching.scheduler import NORMAL, MicroBatchQueue


@dataclass(eq=False)
class Waiting:
    """A request, as far as the queue is concerned."""

    client: str
    number: int = 0
    deadline: float | None = None
    priority: int = NORMAL
    cost: float = 0.0005


def filled(*requests: Waiting, capacity: int = 100) -> MicroBatchQueue[Waiting]:
    queue: MicroBatchQueue[Waiting] = MicroBatchQueue(capacity, max_wait=100.0)
    for request in requests:
        queue.admit(request, now=0.0)
    return queue
