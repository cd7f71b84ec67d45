"""The capacity model: what so many cameras need, and what gives way first."""

from __future__ import annotations

import pytest

from benchmarks.capacity import Costs, Needs, Sizes, needs

COSTS = Costs(
    service_us=1000.0,
    haproxy_us=10.0,
    database_us=20.0,
    request_bytes=3000.0,
    reply_bytes=1000.0,
    row_bytes=200.0,
    connection_bytes=20_000.0,
)


def plan(cameras: int, rate: float = 1.0, **sizes: float) -> Needs:
    """What cameras need at these costs."""
    return needs(cameras, rate, COSTS, Sizes(**sizes))  # type: ignore[arg-type]


def test_cores_are_the_cost_of_a_second_of_requests_over_the_share_that_may_be_busy() -> None:
    """10 000 requests of 1 ms keep 10 cores busy; at half busy that is 20, five replicas of 4, and one to spare."""
    found = plan(10_000, busy_share=0.5, replica_cores=4)
    assert found.service_cores == 20
    assert found.replicas == 6
    assert found.connections_gb == 0.2


def test_what_is_stored_grows_with_the_retention() -> None:
    """A row of 200 bytes, once a second for a day."""
    assert plan(1, retention_days=1).stored_bytes == 200 * 86_400
    assert plan(1, retention_days=30).stored_bytes == 30 * 200 * 86_400


def test_loads_are_shares_of_what_one_machine_may_do() -> None:
    """Half of it: 20 000 requests a second take 0.4 cores of the database, 0.2 of the load balancer, 640 Mbit/s."""
    found = plan(
        10_000,
        rate=2.0,
        busy_share=0.5,
        database_cores=8,
        balancer_cores=2,
        balancer_bits=1.6e9,
        retention_days=1,
        database_bytes=200 * 86_400 * 20_000 / 0.3,
    )
    assert (found.requests_per_s, found.network_bits) == (20_000, 640e6)
    assert [found.database_cores, found.balancer_cores] == pytest.approx([0.8, 0.4])
    assert list(found.loads.values()) == pytest.approx([0.1, 0.3, 0.2, 0.8])


def test_what_is_most_used_of_what_there_is_one_of_gives_way_first() -> None:
    """Its load grows in proportion to the cameras, and past 1 there must be more than one of it."""
    small_disk = plan(1000, database_bytes=1e9)
    assert small_disk.bottleneck == "database: keeping them"
    slow_card = plan(1000, retention_days=0, balancer_bits=1e8)
    assert slow_card.bottleneck == "load balancer: network"
    assert plan(2000, retention_days=0, balancer_bits=1e8).loads["load balancer: network"] == (
        2 * slow_card.loads["load balancer: network"]
    )
