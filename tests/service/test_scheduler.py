"""The micro-batching queue: order, fairness, bounds and deadlines."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import DeadlineExceeded, Overloaded
from service.scheduler import HIGH, LOW, NORMAL, CostModel, MicroBatchQueue, share


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


def test_a_backlog_of_low_priority_turns_away_no_others() -> None:
    """They go before it: neither the bound of the wait nor deadlines count it, but for its share of the places."""
    queue: MicroBatchQueue[Waiting] = MicroBatchQueue(100, max_wait=1.0)
    for number in range(11):
        queue.admit(Waiting("backlog", number, priority=LOW, cost=0.1), now=0)
    with pytest.raises(Overloaded):
        queue.admit(Waiting("backlog", priority=LOW), now=0)
    queue.admit(Waiting("live", deadline=0.25, cost=0.2), now=0)
    assert queue.predicted_wait(Waiting("live", priority=HIGH)) == 0
    assert queue.predicted_wait(Waiting("live")) == pytest.approx(0.2 * 8 / 7)
    assert queue.predicted_wait() == pytest.approx(1.3)
    assert queue.take(1, now=0).requests[0].client == "live"


def test_what_one_client_has_waiting_turns_away_no_others() -> None:
    """They have their turn before most of it: neither the bound of the wait nor deadlines count all of it."""
    queue: MicroBatchQueue[Waiting] = MicroBatchQueue(1000, max_wait=1.0)
    with pytest.raises(Overloaded):
        for number in range(1000):
            queue.admit(Waiting("flood", number, cost=0.01), now=0)
    assert queue.predicted_wait() > 1.0
    for number in range(5):
        queue.admit(Waiting(f"quiet {number}", deadline=0.1, cost=0.01), now=0)
    with pytest.raises(DeadlineExceeded):
        queue.admit(
            Waiting("quiet 0", deadline=0.1, cost=0.01), now=0
        )  # a second one of a client waits two rounds
    with pytest.raises(Overloaded):
        queue.admit(Waiting("flood", cost=0.01), now=0)
    batch = queue.take(10, now=0)
    assert not batch.expired
    assert {request.client for request in batch.requests} > {f"quiet {number}" for number in range(5)}


def test_a_deadline_counts_only_what_is_before_the_request() -> None:
    """Also where all that waits is within the bound of the wait."""
    queue = filled(*(Waiting("flood", number, cost=0.01) for number in range(20)))
    queue.admit(Waiting("quiet", deadline=0.1, cost=0.01), now=0)
    with pytest.raises(DeadlineExceeded):
        queue.admit(Waiting("flood", deadline=0.1, cost=0.01), now=0)
    assert queue.take(3, now=0).requests[1].client == "quiet"


def test_no_more_is_before_a_request_than_waits() -> None:
    """However many rounds it takes, and whatever has been taken: a wait ends with what there is to wait for."""
    queue = filled(
        *(Waiting("a", number, cost=0.1) for number in range(2)),
        Waiting("small", cost=0.01),
        Waiting("low", priority=LOW, cost=0.01),
    )
    for client in ("a", "b"):
        assert queue.predicted_wait(Waiting(client, cost=0.5)) == pytest.approx(0.22)
    queue.worked(queue.take(2, now=0), 0.11, 0.11)
    for client, priority in (("a", NORMAL), ("b", NORMAL), ("b", LOW)):
        assert queue.predicted_wait(Waiting(client, priority=priority, cost=0.5)) == pytest.approx(0.11)


def test_a_full_queue_refuses_with_the_time_to_wait() -> None:
    """Admission is bounded, and the refused request is not kept; however soon it would have its turn, all must wait."""
    queue = filled(Waiting("a", cost=0.01), Waiting("b", cost=0.01), capacity=2)
    for refused in (Waiting("c", priority=HIGH), Waiting("c", deadline=0.001)):
        with pytest.raises(Overloaded) as caught:
            queue.admit(refused, now=0)
        assert caught.value.retry_after_ms == 10
    assert len(queue) == 2
    with pytest.raises(Overloaded) as caught:
        filled(Waiting("a", cost=0.0001), capacity=1).admit(Waiting("b"), now=0)
    assert caught.value.retry_after_ms == 1  # at once, it would be refused again


def test_a_wait_that_would_be_too_long_is_refused() -> None:
    """What waits is counted in predicted work, shared by the executors that work it off."""
    queue: MicroBatchQueue[Waiting] = MicroBatchQueue(100, max_wait=1.0, executors=2)
    for _ in range(3):
        queue.admit(Waiting("a", cost=0.9), now=0)
    assert queue.predicted_wait() == pytest.approx(1.35)
    with pytest.raises(Overloaded):
        queue.admit(Waiting("a"), now=0)
    batch = queue.take(1, now=0)
    assert queue.predicted_wait() == pytest.approx(1.125)
    queue.worked(batch, 0.9, 0.9)
    assert queue.predicted_wait() == pytest.approx(0.9)
    queue.admit(Waiting("a"), now=0)


def test_the_wait_follows_the_pace_at_which_work_is_done() -> None:
    """An executor that takes twice the predicted time, with all that is round its work, makes waits twice as long."""
    queue: MicroBatchQueue[Waiting] = MicroBatchQueue(1000, max_wait=100.0)
    for _ in range(20):
        for number in range(10):
            queue.admit(Waiting("a", number, cost=0.001), now=0)
        queue.worked(queue.take(10, now=0), 0.01, 0.02)
    assert queue.predicted_wait() == 0.0
    queue.admit(Waiting("a", cost=1.0), now=0)
    assert queue.predicted_wait() == pytest.approx(2.0, rel=0.01)
    with pytest.raises(DeadlineExceeded):
        queue.admit(Waiting("a", deadline=1.5), now=0.0)


def test_a_standstill_does_not_spoil_the_prediction() -> None:
    """One batch that took a second, on a machine that stood still, moves the wait by little, and not for long."""
    queue: MicroBatchQueue[Waiting] = MicroBatchQueue(1000, max_wait=100.0)
    for seconds in (0.001, 1.0, *[0.001] * 200):
        queue.admit(Waiting("a", cost=0.001), now=0)
        queue.worked(queue.take(1, now=0), 0.001, seconds)
        queue.admit(Waiting("a", cost=0.1), now=0)
        assert queue.predicted_wait() < 0.11
        queue.drain()
    queue.admit(Waiting("a", cost=0.1), now=0)
    assert queue.predicted_wait() == pytest.approx(0.1, rel=0.01)


def test_one_long_batch_does_not_tell_the_pace_alone() -> None:
    """It counts for half, however long it was: the wait is never taken for longer than it, nor for less than before."""
    queue = filled(Waiting("a", cost=1.0))
    queue.worked(queue.take(1, now=0), 1.0, 3.0)
    queue.admit(Waiting("a", cost=1.0), now=0)
    assert queue.predicted_wait() == pytest.approx(2.0)


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


def test_a_deadline_that_cannot_be_kept_is_told_at_once() -> None:
    """A request that would be done too late does not wait in vain; one of high priority may overtake, and does."""
    queue = filled(*(Waiting("a", number, cost=0.1) for number in range(10)))
    with pytest.raises(DeadlineExceeded):
        queue.admit(Waiting("a", deadline=5.5), now=5.0)
    queue.admit(Waiting("a", deadline=6.5), now=5.0)
    queue.admit(Waiting("a", deadline=5.5, priority=HIGH, cost=0.4), now=5.0)
    queue.admit(Waiting("b", deadline=5.5, priority=HIGH, cost=0.3), now=5.0)  # the benefit of the doubt
    assert len(queue) == 13


def test_an_empty_queue_predicts_no_wait() -> None:
    """Sums of predictions do not drift once everything has left."""
    queue = filled(*(Waiting("a", number, cost=0.01 * number) for number in range(50)))
    while batch := queue.take(7, now=0):
        queue.worked(batch, 0.1, 0.1)
    assert queue.predicted_wait() == queue.predicted_wait(Waiting("b", priority=LOW)) == 0.0


def test_the_cost_of_a_kind_and_size_is_learnt() -> None:
    """A prediction follows what was observed for sizes alike, and takes the nearest size for one not seen."""
    model = CostModel()
    assert model.predict("crop", 1000) > 0
    for _ in range(100):
        model.observe("crop", 1000, 0.0005)
        model.observe("crop", 1_000_000, 0.02)
        model.observe("photo", 1000, 0.1)
    assert model.predict("crop", 1023) == pytest.approx(0.0005)
    assert model.predict("crop", 900_000) == pytest.approx(0.02)
    assert model.predict("crop", 10) == pytest.approx(0.0005)
    assert model.predict("crop", 50_000_000) == pytest.approx(0.02)
    assert model.predict("photo", 1000) == pytest.approx(0.1)
    for _ in range(100):
        model.observe("crop", 1000, 0.001)
    assert model.predict("crop", 1000) == pytest.approx(0.001, rel=0.01)
    model.observe("crop", 1000, 10.0)  # a machine that stood still for ten seconds
    assert model.predict("crop", 1000) < 0.0014


def test_what_is_far_from_what_was_predicted_is_news() -> None:
    """Once: what waits need not be priced anew with every request that takes a little more, or less."""
    model = CostModel()
    assert model.observe("photo", 1000, 0.01)  # where the first guess was a millisecond
    assert not any(model.observe("photo", 1000, seconds) for seconds in [0.009, 0.01, 0.011] * 10)
    assert sum(model.observe("photo", 1000, 0.02) for _ in range(50)) == 1


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


def test_a_deadline_counts_to_the_end_of_the_slice() -> None:
    """Who is admitted into a slice of work is answered at its end, but never waits for more than there is."""
    queue = filled(*(Waiting("a", number, cost=0.1) for number in range(10)))
    with pytest.raises(DeadlineExceeded):
        queue.admit(Waiting("a", deadline=1.4, cost=0.1), now=0.0, slice_work=0.5)
    queue.admit(Waiting("a", deadline=1.6, cost=0.1), now=0.0, slice_work=0.5)
    filled().admit(Waiting("b", deadline=0.2, cost=0.1), now=0.0, slice_work=0.5)


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


@settings(deadline=None)  # a slow machine is no fault
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
                assert len(queue) == 10
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
        assert len(queue) == len(admitted) - left.total() - discarded
    left.update(queue.drain())
    assert left.total() + discarded == len(admitted)
    assert all(count == 1 for count in left.values())
