"""Who may wait in the queue: the wait that is predicted, against bounds and deadlines."""

from __future__ import annotations

import pytest

from service.batching.scheduler import HIGH, LOW, NORMAL, MicroBatchQueue
from service.errors import DeadlineExceeded, Overloaded
from tests.service.waiting import Waiting, filled


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


def test_what_a_request_overtakes_is_not_in_its_way() -> None:
    """Neither its place nor its price is counted, whether or not the request is let in; it waits until withdrawn."""
    queue: MicroBatchQueue[Waiting] = MicroBatchQueue(2, max_wait=1.0)
    other, first = Waiting("other", cost=0.1), Waiting("camera", 1, deadline=2.0, cost=0.6)
    queue.admit(other, now=0)
    queue.admit(first, now=0)
    newer = Waiting("camera", 2, deadline=0.8, cost=0.6)
    for refused, overtakes in ((newer, None), (Waiting("camera", deadline=0.65, cost=0.6), first)):
        with pytest.raises((Overloaded, DeadlineExceeded)):
            queue.admit(refused, now=0, overtakes=overtakes)
    assert len(queue) == 2
    assert queue.predicted_wait() == pytest.approx(0.7)
    queue.admit(newer, now=0, overtakes=first)
    assert len(queue) == 3
    assert queue.withdraw(first)
    assert queue.predicted_wait() == pytest.approx(0.7)
    newest = Waiting("camera", 3, deadline=0.8, cost=0.6)
    queue.admit(newest, now=0, overtakes=newer)
    assert queue.withdraw(newer)
    with pytest.raises(Overloaded):  # what has left already leaves no place
        queue.admit(Waiting("camera", 4, deadline=0.8, cost=0.6), now=0, overtakes=first)
    assert queue.take(2, now=0).requests == [other, newest]
    assert queue.predicted_wait() == pytest.approx(0.35)


def test_what_a_request_overtakes_takes_none_of_its_clients_turns() -> None:
    """Beside others' work, of which as much is before a request as its client takes turns until then."""
    queue: MicroBatchQueue[Waiting] = MicroBatchQueue(10, max_wait=10.0)
    first, newer = Waiting("camera", 1, cost=0.6), Waiting("camera", 2, deadline=1.5, cost=0.6)
    queue.admit(first, now=0)
    queue.admit(Waiting("other", cost=1.9), now=0)
    with pytest.raises(DeadlineExceeded):
        queue.admit(newer, now=0)
    queue.admit(newer, now=0, overtakes=first)


def test_a_queue_full_of_low_priority_turns_away_no_others() -> None:
    """The bound counts what is of the request's own priority or above, for each of the three."""
    queue = filled(capacity=2)
    for waiting, priority in enumerate((LOW, NORMAL, HIGH)):
        for number in range(2):
            queue.admit(Waiting(str(number), priority=priority), now=0)
        for no_higher in (LOW, NORMAL, HIGH)[: waiting + 1]:
            with pytest.raises(Overloaded):
                queue.admit(Waiting("refused", priority=no_higher), now=0)
    assert len(queue) == 6
    queue.take(2, now=0)
    queue.admit(Waiting("again", priority=HIGH), now=0)


def test_what_waits_for_others_is_not_waited_for() -> None:
    """Who is sent away is told of its own wait, however much is below it, and however many of those were sent away."""
    queue: MicroBatchQueue[Waiting] = MicroBatchQueue(2, max_wait=100.0, executors=4)
    queue.admit(Waiting("slow", cost=1.0), now=0)
    queue.worked(queue.take(1, now=0), 1.0, 3.0)  # twice as long as predicted, is believed from then on
    for number in range(2):
        queue.admit(Waiting("low", number, priority=LOW, cost=1.0), now=0)
    for _ in range(100):
        with pytest.raises(Overloaded):
            queue.admit(Waiting("low", priority=LOW, cost=1.0), now=0)
    for number in range(2):
        queue.admit(Waiting("high", number, priority=HIGH, cost=0.01), now=0)
    with pytest.raises(Overloaded) as caught:
        queue.admit(Waiting("high", priority=HIGH, cost=0.01), now=0)
    # Half of its wait, and twice the wait at most for those that were sent away before it.
    assert caught.value.retry_after_ms == 5 + 2 * 10


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
    for refused in (Waiting("c", priority=LOW), Waiting("c", deadline=0.001)):
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
    first = queue.take(1, now=0)
    assert queue.predicted_wait() == pytest.approx((1.8 + 0.9 / 2) / 2)
    second = queue.take(1, now=0)
    queue.worked(first, 0.9, 0.9)
    assert queue.predicted_wait() == pytest.approx((0.9 + 0.9 / 2) / 2)
    queue.worked(second, 0.9, 0.9)
    assert queue.predicted_wait() == pytest.approx(0.9 / 2)
    queue.admit(Waiting("a"), now=0)


def test_the_wait_follows_the_pace_at_which_work_is_done() -> None:
    """An executor that takes twice the predicted time, with all that is round its work, makes waits twice as long."""
    queue: MicroBatchQueue[Waiting] = MicroBatchQueue(1000, max_wait=100.0)
    for _ in range(20):
        for number in range(10):
            queue.admit(Waiting("a", number, cost=0.001), now=0)
        queue.worked(queue.take(10, now=0), 0.01, 0.02)
    assert queue.predicted_wait() == 0.0
    hopeless, timely = (Waiting("b", deadline=deadline, cost=0.1) for deadline in (0.15, 0.25))
    assert queue.is_hopeless(hopeless, 0.0)
    assert not queue.is_hopeless(timely, 0.0)
    with pytest.raises(DeadlineExceeded):
        queue.admit(hopeless, now=0)
    queue.admit(timely, now=0)
    queue.withdraw(timely)
    queue.admit(Waiting("a", cost=1.0), now=0)
    assert queue.predicted_wait() == pytest.approx(2.0, rel=0.01)
    with pytest.raises(DeadlineExceeded):
        queue.admit(Waiting("a", deadline=1.5), now=0.0)
    urgent = Waiting("b", deadline=0.15, priority=HIGH, cost=0.1)
    queue.admit(urgent, now=0.0)
    assert queue.take(1, now=0.0).expired == [urgent]


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


def paced(queue: MicroBatchQueue[Waiting], *paces: float) -> float:
    """The wait for a second of work, after small batches that took so many times as long as their work."""
    for pace in paces:
        queue.admit(Waiting("a", cost=0.001), now=0)
        queue.worked(queue.take(1, now=0), 0.001, 0.001 * pace)
    queue.admit(Waiting("a", cost=1.0), now=0)
    wait = queue.predicted_wait()
    queue.drain()
    return wait


def test_a_lasting_slowness_is_learnt_and_forgotten() -> None:
    """However slow: a disk that is waited for with each batch takes many times what the work does."""
    queue: MicroBatchQueue[Waiting] = MicroBatchQueue(1000, max_wait=1000.0)
    assert paced(queue, *[15.0] * 300) == pytest.approx(15.0, rel=0.05)
    assert paced(queue, 15.0 * 1000) < 20.0  # held up, on top of that
    # With deadlines few are run that could tell that it has ended.
    assert paced(queue, *[1.0] * 3) < 5.0
    assert paced(queue, *[1.0] * 200) == pytest.approx(1.0, rel=0.1)


def test_a_small_batch_tells_little_of_the_pace() -> None:
    """A slower one as little as one that is faster: a fiftieth, where its work is a fiftieth of what is averaged."""
    for pace, wait in ((2.0, 1.02), (0.5, 0.99)):
        assert paced(MicroBatchQueue(10, max_wait=10.0), pace) == pytest.approx(wait)


def test_one_long_batch_does_not_tell_the_pace_alone() -> None:
    """It counts for half, however long it was: the wait is never taken for longer than it, nor for less than before."""
    queue = filled(Waiting("a", cost=1.0))
    queue.worked(queue.take(1, now=0), 1.0, 3.0)
    queue.admit(Waiting("a", cost=1.0), now=0)
    assert queue.predicted_wait() == pytest.approx(2.0)


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


def test_a_deadline_counts_to_the_end_of_the_slice() -> None:
    """Who is admitted into a slice of work is answered at its end, but never waits for more than there is."""
    queue = filled(*(Waiting("a", number, cost=0.1) for number in range(10)))
    with pytest.raises(DeadlineExceeded):
        queue.admit(Waiting("a", deadline=1.4, cost=0.1), now=0.0, slice_work=0.5)
    queue.admit(Waiting("a", deadline=1.6, cost=0.1), now=0.0, slice_work=0.5)
    filled().admit(Waiting("b", deadline=0.2, cost=0.1), now=0.0, slice_work=0.5)
    alone = filled(overtaken := Waiting("b", 1, cost=0.1), Waiting("b", 2, cost=0.1))
    with pytest.raises(DeadlineExceeded):
        alone.admit(Waiting("b", 3, deadline=0.25, cost=0.1), now=0.0, slice_work=0.5, overtakes=overtaken)


def test_those_that_are_sent_away_are_told_to_come_one_after_the_other() -> None:
    """There is room for one at a time; what there was time for since counts no more, and there is a bound."""
    queue: MicroBatchQueue[Waiting] = MicroBatchQueue(100, max_wait=1.0, executors=2)
    for number in range(21):
        queue.admit(Waiting(str(number), cost=0.1), now=0)

    def told(now: float) -> int | None:
        with pytest.raises(Overloaded) as caught:
            queue.admit(Waiting("late", cost=0.2), now=now)
        return caught.value.retry_after_ms

    assert [told(now=0) for _ in range(3)] == [525, 625, 725]
    assert told(now=0.25) == 575
    assert told(now=10) == 525
    assert [told(now=10) for _ in range(100)][-1] == 525 + 2100
