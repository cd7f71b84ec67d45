"""Backoff with full jitter."""

from __future__ import annotations

import pytest

from client import Retry


def test_delays_stay_under_a_doubling_ceiling() -> None:
    """The pause before retry n is between 0 and first_delay * 2**n, and never above max_delay."""
    retry = Retry(first_delay=0.1, max_delay=1.0)
    for number, ceiling in enumerate([0.1, 0.2, 0.4, 0.8, 1.0, 1.0]):
        delays = [retry.delay(number) for _ in range(200)]
        assert all(0 <= delay <= ceiling for delay in delays)
        assert max(delays) > ceiling / 2 > min(delays)  # chance of failing: 2 * 0.5**200


def test_the_server_is_not_asked_earlier_than_it_said() -> None:
    """The jitter is added to the server's own retry_after."""
    retry = Retry(first_delay=0.1)
    assert all(0.5 <= retry.delay(0, at_least=0.5) <= 0.6 for _ in range(100))


def test_a_very_late_retry_still_has_a_delay() -> None:
    """The exponent is bounded: retry one million does not overflow."""
    assert Retry().delay(10**6) <= Retry().max_delay


def test_once_and_without_a_pause_is_a_policy() -> None:
    """The least that may be asked for."""
    assert Retry(attempts=1, first_delay=0, max_delay=0).delay(0) == 0


@pytest.mark.parametrize(
    "arguments", [{"attempts": 0}, {"first_delay": -1}, {"first_delay": 2, "max_delay": 1}]
)
def test_an_impossible_policy_is_refused(arguments: dict[str, float]) -> None:
    """A policy that could never be kept is a ValueError when it is made."""
    with pytest.raises(ValueError, match=r"attempts|first_delay"):
        Retry(**arguments)  # type: ignore[arg-type]
