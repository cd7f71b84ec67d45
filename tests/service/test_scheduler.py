"""The micro-batching queue: order, fairness, bounds and deadlines."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Overloaded
from service.scheduler import MicroBatchQueue, share


@dataclass(eq=False)
class Waiting:
    """A request, as far as the queue is concerned."""

    client: str
    number: int = 0
    deadline: float | None = None


def filled(*requests: Waiting, capacity: int = 100) -> MicroBatchQueue[Waiting]:
    queue: MicroBatchQueue[Waiting] = MicroBatchQueue(capacity)
    for request in requests:
        queue.admit(request, retry_after_ms=1)
    return queue


def test_an_empty_queue_gives_an_empty_batch() -> None:
    """Taking never waits."""
    batch = filled().take(8, now=0)
    assert not batch
    assert batch.requests == []


def test_requests_of_one_client_leave_in_their_order() -> None:
    """First come, first served within a client."""
    requests = [Waiting("a", number) for number in range(5)]
    queue = filled(*requests)
    assert queue.take(3, now=0).requests == requests[:3]
    assert queue.take(3, now=0).requests == requests[3:]


def test_a_client_with_many_requests_does_not_hold_up_one_with_few() -> None:
    """Clients take turns: a single request waits for one round, not for the thousand before it."""
    queue = filled(*(Waiting("flood", number) for number in range(1000)), Waiting("quiet"), capacity=2000)
    assert [request.client for request in queue.take(3, now=0).requests] == ["flood", "quiet", "flood"]


def test_a_full_queue_refuses_with_the_time_to_wait() -> None:
    """Admission is bounded, and the refused request is not kept."""
    queue = filled(Waiting("a"), Waiting("b"), capacity=2)
    with pytest.raises(Overloaded) as caught:
        queue.admit(Waiting("c"), retry_after_ms=17)
    assert caught.value.retry_after_ms == 17
    assert len(queue) == 2


def test_a_request_past_its_deadline_is_not_run() -> None:
    """It is handed out as expired, and takes no place in the batch."""
    late, timely, unbounded = Waiting("a", deadline=1.0), Waiting("b", deadline=3.0), Waiting("c")
    batch = filled(late, timely, unbounded).take(2, now=2.0)
    assert batch.expired == [late]
    assert batch.requests == [timely, unbounded]


def test_what_a_gone_client_left_is_forgotten() -> None:
    """Nothing is run for a client that cannot be answered, and the others keep their turns."""
    queue = filled(Waiting("gone"), Waiting("here"), Waiting("gone"))
    assert queue.discard("gone") == 2
    assert queue.discard("gone") == 0
    assert len(queue) == 1
    assert [request.client for request in queue.take(8, now=0).requests] == ["here"]


def test_a_request_can_be_withdrawn_while_it_waits() -> None:
    """It is gone from the queue, the others keep their places, and a second try finds nothing."""
    first, second, other = Waiting("a", 1), Waiting("a", 2), Waiting("b")
    queue = filled(first, second, other)
    assert queue.withdraw(first)
    assert not queue.withdraw(first)
    assert queue.withdraw(other)
    assert len(queue) == 1
    assert queue.take(8, now=0).requests == [second]
    assert not queue.withdraw(second)


def test_draining_empties_the_queue() -> None:
    """At shutdown every waiting request is accounted for."""
    requests = [Waiting("a"), Waiting("b"), Waiting("a")]
    queue = filled(*requests)
    assert set(queue.drain()) == set(requests)
    assert len(queue) == 0
    assert not queue.take(8, now=0)


@pytest.mark.parametrize(
    ("waiting", "free", "most", "expected"),
    [(1, 1, 8, 1), (1, 2, 8, 1), (8, 2, 8, 4), (9, 2, 8, 5), (100, 2, 8, 8), (3, 1, 8, 3)],
)
def test_waiting_requests_are_shared_among_free_executors(
    waiting: int, free: int, most: int, expected: int
) -> None:
    """One executor leaves to the other free ones what is theirs, and takes no more than a batch."""
    assert share(waiting, free, most) == expected


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), st.sampled_from("abc"), st.none() | st.floats(0, 10)),
        st.tuples(st.just("take"), st.integers(1, 4), st.floats(0, 10)),
        st.tuples(st.just("discard"), st.sampled_from("abc"), st.none()),
    ),
    max_size=60,
)


@given(OPERATIONS)
def test_every_admitted_request_leaves_exactly_once(
    operations: list[tuple[str, str | int, float | None]],
) -> None:
    """Whatever the order of events, no request is lost, run twice, or run after its deadline."""
    queue: MicroBatchQueue[Waiting] = MicroBatchQueue(capacity=10)
    admitted: list[Waiting] = []
    left: Counter[Waiting] = Counter()
    discarded = 0
    for name, subject, value in operations:
        if name == "admit":
            request = Waiting(str(subject), len(admitted), value)
            try:
                queue.admit(request, retry_after_ms=1)
            except Overloaded:
                assert len(queue) == 10
            else:
                admitted.append(request)
        elif name == "take":
            assert isinstance(subject, int)
            assert value is not None
            batch = queue.take(subject, now=value)
            assert len(batch.requests) <= subject
            assert all(request.deadline is None or request.deadline >= value for request in batch.requests)
            left.update(batch.requests)
            left.update(batch.expired)
        else:
            discarded += queue.discard(str(subject))
        assert len(queue) == len(admitted) - left.total() - discarded
    left.update(queue.drain())
    assert left.total() + discarded == len(admitted)
    assert all(count == 1 for count in left.values())
