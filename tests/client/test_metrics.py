"""What two readings of a server's metrics say of the time between them."""

from __future__ import annotations

from collections import deque

import pytest

from client.cli.metrics import Reading, between, histogram_quantile
from client.cli.output import sparkline
from client.cli.top import metrics_address, metrics_connection
from tests.client.measured import METRICS

EMPTY = Reading({})


def test_an_interval_is_the_difference_of_two_readings() -> None:
    """Counters become rates, histograms become quantiles of what came in between, gauges are the latest."""
    later = METRICS.replace('{emotion="happy"} 100.0', '{emotion="happy"} 160.0').replace(
        "visionai_queue_depth 5.0", "visionai_queue_depth 7.0"
    )
    found = between(Reading.parse(METRICS), Reading.parse(later), seconds=2.0)
    assert (found.rate, found.predictions) == (30.0, {"happy": 60.0})
    assert (found.errors, found.stages) == ({}, {})
    assert (found.clients, found.queue_depth, found.batch_size) == (2.0, 7.0, None)
    assert (found.memory_bytes, found.cpu_share) == (None, None)


def test_quantiles_and_batch_size_come_from_the_histograms() -> None:
    """90 of 100 requests took up to 1 ms, the rest up to 10; 50 runs had 100 images."""
    found = between(EMPTY, Reading.parse(METRICS), seconds=1.0)
    assert found.stages["total"] == pytest.approx({"p50": 0.5556, "p90": 1.0, "p99": 9.1}, rel=1e-3)
    assert found.batch_size == 2.0
    assert found.errors == {"invalid_image": 3.0}


def test_a_restarted_server_counts_from_zero() -> None:
    """Counters that went back are those of a new process: nothing is negative."""
    before = Reading.parse(METRICS)
    after = Reading.parse(METRICS.replace(" 100.0", " 40.0").replace(" 90.0", " 40.0"))
    found = between(before, after, seconds=1.0)
    assert found.rate == 40.0
    assert found.stages["total"]["p99"] <= 1.0


def test_a_quantile_in_the_open_bucket_is_its_lower_bound() -> None:
    """Nothing is known of how far above the last bound an observation was."""
    assert histogram_quantile(0.99, [(1.0, 50.0), (float("inf"), 100.0)]) == 1.0


def test_an_empty_histogram_has_no_quantile() -> None:
    """Nothing was observed: asking is an error, not a zero."""
    with pytest.raises(ValueError, match="empty"):
        histogram_quantile(0.5, [(1.0, 0.0), (float("inf"), 0.0)])


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("ws://host:8000/ws", "http://host:8000/metrics"),
        ("ws://host:8000", "http://host:8000/metrics"),
        ("wss://host/visionai/ws?x=1", "https://host/visionai/metrics"),
        ("ws://[::1]:8000/", "http://[::1]:8000/metrics"),
    ],
)
def test_metrics_are_beside_the_websocket(url: str, address: str) -> None:
    """The same port, TLS as the WebSocket has it, and the same prefix behind a proxy."""
    assert metrics_address(url) == address


@pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
def test_an_address_of_ipv6_without_a_port_has_the_schemes(scheme: str, port: int) -> None:
    """Its last group is no port."""
    connection = metrics_connection(f"{scheme}://[2001:db8::1]/metrics")
    assert (connection.host, connection.port) == ("2001:db8::1", port)


def test_a_sparkline_reaches_from_nothing_to_the_peak() -> None:
    """The highest bar is the largest value; an idle server is flat."""
    assert sparkline(deque([0.0, 5.0, 10.0])) == "▁▅█"
    assert sparkline(deque([0.0, 0.0])) == "▁▁"
