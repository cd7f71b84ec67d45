"""What so many cameras need: cores, replicas, database writes, storage and network, and what gives way first.

Linear in the requests per second, from the cost of one request. `Costs` are measured on this machine by
`measure_costs`; what is assumed instead is in `Sizes`. No cost here grows with the number of replicas: they share
nothing but the database and the load balancer, which are therefore what gives way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one request, in µs of CPU and in bytes; of one idle connection, in bytes."""

    service_us: float
    haproxy_us: float
    database_us: float
    request_bytes: float
    reply_bytes: float
    row_bytes: float
    connection_bytes: float


@dataclass(frozen=True, slots=True)
class Sizes:
    """What one machine of each kind is taken to be. The busy share leaves room for peaks, drains and a lost replica.

    `database_bytes` is the room on the database's disk, `balancer_bits` what the load balancer's network card sends a
    second, and receives.
    """

    replica_cores: int = 4
    busy_share: float = 0.6
    database_cores: int = 16
    database_bytes: float = 4e12
    balancer_cores: int = 16
    balancer_bits: float = 25e9
    retention_days: float = 30.0


MACHINES = Sizes()


@dataclass(frozen=True, slots=True)
class Needs:
    """What the cameras need. `loads` are shares of one database and one load balancer; above 1 there must be more.

    Cores are with the room that the busy share leaves, `replicas` with one to spare; `stored_bytes` are those of all
    days of retention, `network_bits` a second's, at the load balancer, each way.
    """

    cameras: int
    requests_per_s: float
    service_cores: float
    replicas: int
    connections_gb: float
    database_cores: float
    stored_bytes: float
    balancer_cores: float
    network_bits: float
    loads: dict[str, float]

    @property
    def bottleneck(self) -> str:
        """What there is only one of and is used most: it gives way first."""
        return max(self.loads, key=self.loads.__getitem__)


def needs(cameras: int, frames_per_s: float, costs: Costs, sizes: Sizes) -> Needs:
    """What `cameras` need that send `frames_per_s` each, every frame of them stored."""
    rate = cameras * frames_per_s
    service = rate * costs.service_us / 1e6 / sizes.busy_share
    database = rate * costs.database_us / 1e6 / sizes.busy_share
    balancer = rate * costs.haproxy_us / 1e6 / sizes.busy_share
    stored = rate * costs.row_bytes * SECONDS_PER_DAY * sizes.retention_days
    # A network card sends and receives at once, and what passes the load balancer is received once and sent once.
    bits = rate * (costs.request_bytes + costs.reply_bytes) * 8
    return Needs(
        cameras=cameras,
        requests_per_s=rate,
        service_cores=service,
        # One more than needed: one may be lost or rolled.
        replicas=math.ceil(service / sizes.replica_cores) + 1,
        connections_gb=cameras * costs.connection_bytes / 1e9,
        database_cores=database,
        stored_bytes=stored,
        balancer_cores=balancer,
        network_bits=bits,
        loads={
            "database: writing rows": database / sizes.database_cores,
            "database: keeping them": stored / sizes.database_bytes,
            "load balancer: CPU": balancer / sizes.balancer_cores,
            "load balancer: network": bits / sizes.balancer_bits / sizes.busy_share,
        },
    )
