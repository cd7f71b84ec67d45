"""The micro-batching queue: order, fairness, bounds and deadlines."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.scheduler import HIGH, LOW, NORMAL, MicroBatchQueue, share
from service.errors import Overloaded
from tests.service.waiting import Waiting, filled


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


def test_a_client_with_costly_requests_does_not_hold_up_one_with_cheap_ones() -> None:
    """Turns are counted in predicted work: ten small images pass for one that costs as much."""
    large = [Waiting("large", number, cost=0.005) for number in range(5)]
    small = [Waiting("small", number) for number in range(40)]
    taken = filled(*large, *small).take(33, now=0).requests
    assert sum(request.client == "large" for request in taken) in (2, 3)
    half = [Waiting("half", number, cost=0.00025) for number in range(4)]
    whole = [Waiting("whole", number, cost=0.0005) for number in range(2)]
    taken = filled(*half, *whole).take(6, now=0).requests
    assert taken == [*half[:2], whole[0], *half[2:], whole[1]]


def test_a_client_alone_takes_all_places() -> None:
    """Nobody else waits, so there is nothing to be fair about."""
    requests = [Waiting("only", number, cost=1.0) for number in range(8)]
    assert filled(*requests).take(8, now=0).requests == requests


def test_a_client_that_was_alone_has_no_credit_with_those_that_come() -> None:
    """However much it has taken by itself: whoever comes has its turn in the next round."""
    queue = filled(Waiting("only", cost=0.1), *(Waiting("only", number) for number in range(1, 9)))
    queue.take(1, now=0)
    queue.admit(Waiting("newcomer"), now=0)
    assert [request.client for request in queue.take(2, now=0).requests] == ["only", "newcomer"]


def test_a_higher_priority_goes_first() -> None:
    """High before normal before low, whoever came first."""
    low, normal, high = Waiting("a", priority=LOW), Waiting("b"), Waiting("c", priority=HIGH)
    assert filled(low, normal, high).take(3, now=0).requests == [high, normal, low]


def test_a_low_priority_is_not_starved() -> None:
    """One place in eight is the lowest's, however much of higher priority waits."""
    queue = filled(
        *(Waiting("a", number, priority=HIGH) for number in range(100)),
        Waiting("b", priority=LOW),
        capacity=200,
    )
    assert "b" in [request.client for request in queue.take(8, now=0).requests]


def test_a_priority_between_two_others_is_not_starved() -> None:
    """Each leaves one place in eight to those below it: what waits in the middle goes before what is low."""
    priorities = (HIGH, NORMAL, LOW)
    queue = filled(
        *(
            Waiting(str(priority), number, priority=priority)
            for priority in priorities
            for number in range(300)
        ),
        capacity=1000,
    )
    taken = Counter(request.priority for request in queue.take(256, now=0).requests)
    assert (taken[HIGH], taken[NORMAL], taken[LOW]) == (224, 28, 4)


def test_a_batch_is_bounded_by_predicted_work() -> None:
    """As many as fit a slice of time; what is larger than a slice goes alone; expired ones take no part of it."""
    small = [Waiting("a", number, cost=0.0005) for number in range(10)]
    queue = filled(*small)
    assert queue.take(8, now=0, budget=0.002).requests == small[:4]
    assert queue.take(2, now=0, budget=0.002).requests == small[4:6]
    queue.drain()
    large = [Waiting("a", number, cost=0.1) for number in range(2)]
    for request in large:
        queue.admit(request, now=0)
    assert queue.take(8, now=0, budget=0.002).requests == large[:1]
    queue = filled(Waiting("a", deadline=1.0, cost=0.1), *small)
    batch = queue.take(8, now=1.0, budget=0.002)
    assert len(batch.expired) == 1
    assert batch.requests == small[:4]


def test_what_waits_can_be_priced_anew() -> None:
    """Who is next and who is admitted goes by the new prices."""
    queue = filled(*(Waiting("early", number) for number in range(20)), Waiting("other"))
    queue.reprice(lambda request: 0.01)
    assert queue.predicted_wait() == pytest.approx(0.21)
    queue.admit(Waiting("late", cost=0.01), now=0.0)
    clients = [request.client for request in queue.take(22, now=0.0).requests]
    assert set(clients[:3]) == {"early", "other", "late"}
    assert queue.predicted_wait() == pytest.approx(0.22 / 2)  # what was taken is half done, supposedly


def test_a_request_that_would_be_done_too_late_is_not_run() -> None:
    """Nobody waits for its answer any more, so no work goes into it, even if its deadline has not passed yet."""
    request = Waiting("a", deadline=1.0, cost=0.1)
    assert filled(request).take(1, now=0.95).expired == [request]
    assert filled(request).take(1, now=0.85).requests == [request]


def test_a_batch_is_done_by_the_earliest_deadline_in_it() -> None:
    """Replies go out together: what would make one late waits for the next batch; what is late anyway is refused."""
    requests = [
        Waiting("a", deadline=1.0, cost=0.3),
        *(Waiting("b", number, cost=0.3) for number in range(5)),
    ]
    queue = filled(*requests)
    assert queue.take(8, now=0.0).requests == [requests[0], requests[1], requests[2]]
    tight = Waiting("c", deadline=0.5, cost=0.3)
    queue.admit(tight, now=-10.0)
    batch = queue.take(8, now=0.0)
    assert tight in batch.expired
    assert len(batch.requests) == 3


def test_the_earliest_deadline_of_a_batch_holds_for_all_that_follows() -> None:
    """A later one behind it loosens nothing; what is late in any case is taken out, and ends no batch."""
    deadlines_and_costs = ((0.5, 0.3), (9.0, 0.1), (0.4, 0.3), (None, 0.01), (None, 0.3))
    requests = [
        Waiting("a", number, deadline, cost=cost)
        for number, (deadline, cost) in enumerate(deadlines_and_costs)
    ]
    urgent, relaxed, late, small, other = requests
    queue = filled()
    for request in requests:
        queue.admit(request, now=-10.0)
    batch = queue.take(8, now=0.0)
    assert batch.requests == [urgent, relaxed, small]
    assert batch.expired == [late]
    assert queue.take(8, now=0.5).requests == [other]


def test_a_batch_ends_before_a_costly_request_that_would_make_another_late() -> None:
    """However little the others take that wait: it is begun with the next batch, and keeps its turn."""
    urgent, costly = Waiting("urgent", deadline=0.005), Waiting("costly", cost=0.008)
    cheap = [Waiting(str(number)) for number in range(30)]
    queue = filled(urgent, *cheap, costly)
    batches = [queue.take(100, now=0.0, budget=0.02).requests for _ in range(3)]
    assert urgent in batches[0]
    assert sum(request.cost for request in batches[0]) <= 0.005
    assert {each for batch in batches for each in batch} == {urgent, costly, *cheap}
    queue = filled(Waiting("urgent", deadline=0.005, priority=HIGH), *cheap)
    queue.admit(Waiting("costly", cost=0.008, priority=HIGH), now=0.0)
    assert [request.client for request in queue.take(16, now=0.0).requests] == ["urgent"]
    assert queue.take(16, now=0.0).requests[0].client == "costly"


def test_a_place_that_a_batch_had_no_time_for_is_not_lost() -> None:
    """The one in eight of a low priority is the first of the next batch, where it would have made another late."""
    queue = filled(
        Waiting("a", deadline=0.004, priority=HIGH),
        *(Waiting("a", number, priority=HIGH) for number in range(20)),
        Waiting("b", cost=0.01, priority=LOW),
    )
    assert len(queue.take(16, now=0.0).requests) == 7
    assert queue.take(16, now=0.0).requests[0].client == "b"


def test_a_request_of_more_than_a_slice_is_alone() -> None:
    """Those before it do not wait for it to be answered, nor it for those behind it."""
    requests = [Waiting("a", number, cost=0.1 if number == 2 else 0.0005) for number in range(5)]
    queue = filled(*requests)
    batches = [queue.take(8, now=0.0, budget=0.002).requests for _ in range(3)]
    assert batches == [requests[:2], requests[2:3], requests[3:]]


def test_a_round_is_one_request_of_each_client() -> None:
    """It grows with the clients that wait, not with what one of them has piled up."""
    queue = filled(*(Waiting("flood", number, cost=0.01) for number in range(50)))
    assert queue.round == pytest.approx(0.01)
    queue.admit(Waiting("b", cost=0.01), now=0.0)
    assert queue.round == pytest.approx(0.02)
    assert filled().round == 0


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


def test_a_client_that_has_gone_is_kept_by_nothing() -> None:
    """Nor one that has been served: a queue lives for months, and sees a connection a second."""
    client: Any = type("Client", (), {})()
    known = weakref.ref(client)
    queue = filled(Waiting(client), Waiting("here"))
    assert len(queue.take(2, now=0).requests) == 2
    queue.admit(Waiting(client), now=0)
    queue.discard(client)
    del client
    assert known() is None


def test_a_request_can_be_withdrawn_while_it_waits() -> None:
    """It is gone from the queue, the others keep their places, and a second try finds nothing."""
    first, second, other = Waiting("a", 1), Waiting("a", 2), Waiting("b")
    queue = filled(other, first, second)
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
        st.tuples(
            st.just("admit"),
            st.tuples(st.sampled_from("abc"), st.sampled_from([HIGH, NORMAL, LOW]), st.floats(0, 0.01)),
            st.none() | st.floats(5, 10),
        ),
        st.tuples(st.just("take"), st.integers(1, 4), st.floats(0, 10)),
        st.tuples(st.just("discard"), st.sampled_from("abc"), st.none()),
        st.tuples(st.just("withdraw"), st.integers(0, 20), st.none()),
    ),
    max_size=60,
)


@given(OPERATIONS)
def test_every_admitted_request_leaves_exactly_once(
    operations: list[tuple[str, Any, float | None]],
) -> None:
    """Whatever the order of events, no request is lost, run twice, or run after its deadline."""
    queue: MicroBatchQueue[Waiting] = MicroBatchQueue(capacity=10, max_wait=100.0)
    admitted: list[Waiting] = []
    left: Counter[Waiting] = Counter()
    discarded = 0
    subject: Any
    for name, subject, value in operations:
        if name == "admit":
            client, priority, cost = subject
            request = Waiting(client, len(admitted), value, priority, cost)
            try:
                queue.admit(request, now=0.0)
            except Overloaded:
                assert len(queue) >= 10
            else:
                admitted.append(request)
        elif name == "take":
            assert value is not None
            batch = queue.take(subject, now=value)
            assert len(batch.requests) <= subject
            assert all(request.deadline is None or request.deadline >= value for request in batch.requests)
            queue.worked(batch, 0.001, 0.001)
            left.update(batch.requests)
            left.update(batch.expired)
        elif name == "discard":
            discarded += queue.discard(str(subject))
        elif subject < len(admitted) and queue.withdraw(admitted[subject]):
            left[admitted[subject]] += 1
        assert len(queue) == len(admitted) - left.total() - discarded <= 30
    left.update(queue.drain())
    assert left.total() + discarded == len(admitted)
    assert all(count == 1 for count in left.values())
