"""What clients noticed of an event, on requests that are known."""

from __future__ import annotations

import pytest

from benchmarks.replicas import Sent, _phase

# Every 50 ms one of 10 ms, but two that were hit: one under way at the event, one sent after it that failed.
SENT = [
    *(Sent(0.05 * number, 0.05 * number + 0.01, None, None) for number in range(100)),
    Sent(0.9, 1.4, None, None),
    Sent(1.2, 1.6, None, "ConnectionLost: it is gone"),
]


def test_an_event_is_charged_with_what_was_under_way_and_over_when_the_last_late_one_is_answered() -> None:
    """From 1 s to 3 s there are 40 and the two; the calm after 1.6 s is none of theirs."""
    phase = _phase("killed", [1.0, 3.0], SENT)
    assert (phase.requests, phase.failed, phase.late) == (42, 1, 2)
    assert phase.recovery_s == pytest.approx(0.6)
    assert (phase.p50_ms, phase.p99_ms) == pytest.approx((10, 10))


def test_an_event_in_parts_took_as_long_as_its_longest() -> None:
    """Each part is counted from its own beginning; one that hit nobody is over at once."""
    assert _phase("rolled", [1.0, 1.5, 3.0], SENT).recovery_s == pytest.approx(0.6)
    assert _phase("rolled", [0.5, 1.3, 3.0], SENT).recovery_s == pytest.approx(1.1)
    assert _phase("nothing", [2.0, 3.0], SENT).recovery_s == 0
