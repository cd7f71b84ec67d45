"""Connections in total and per address, counted over all workers.

Each worker counts in a row of its own, in memory that all share, so nothing is locked; a limit looks at the sum of the
rows. Workers that admit at the same instant do not see each other: so many more than the limit may come in as there
are other workers, not more. Addresses are counted in a count-min sketch: each adds to two cells that a keyed hash
chooses, and has as many connections as the lesser of the two says. An address is never undercounted; it is overcounted
only if it shares both cells with others, of 2^30 pairs.
"""

from __future__ import annotations

import hashlib

from service.processes.cells import ADDRESS_CELLS, Gauge, SharedCells
from service.security.addresses import group

_HALF = ADDRESS_CELLS // 2


class Admission:
    """Counts this worker's connections, and says whether another may come in.

    Args:
        shared: the memory of all workers.
        worker: which row is this process'.
        total: connections to the service, at most; 0 for any number.
        per_address: of them from one IPv4 address or IPv6 /64 network, at most; 0 for any number.
    """

    def __init__(self, shared: SharedCells, worker: int, total: int, per_address: int) -> None:
        self._own, self._rows = shared.row(worker), shared.rows()
        self._own_addresses, self._addresses = shared.address_row(worker), shared.address_rows()
        self._salt = shared.salt
        self._total = total
        self._per_address = per_address

    def is_full(self) -> bool:
        """Whether the service has as many connections as it may have."""
        return 0 < self._total <= sum(row[Gauge.ADMITTED] for row in self._rows)

    def has_enough(self, address: str | None) -> bool:
        """Whether an address has as many connections as it may have. None, a client's that has gone, has no limit."""
        if not self._per_address or address is None:
            return False
        first, second = self._cells(address)
        counts = (sum(row[cell] for row in self._addresses) for cell in (first, second))
        return min(counts) >= self._per_address

    def enter(self, address: str | None) -> None:
        """A connection comes in. Each that entered must leave."""
        self._own[Gauge.ADMITTED] += 1
        self._count(address, 1)

    def leave(self, address: str | None) -> None:
        """It is gone."""
        self._own[Gauge.ADMITTED] -= 1
        self._count(address, -1)

    def _count(self, address: str | None, change: int) -> None:
        if self._per_address and address is not None:
            for cell in self._cells(address):
                self._own_addresses[cell] += change

    def _cells(self, address: str) -> tuple[int, int]:
        digest = hashlib.blake2b(group(address).encode(), key=self._salt, digest_size=8).digest()
        first, second = int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big")
        return first % _HALF, _HALF + second % _HALF
